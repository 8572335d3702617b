"""The commands with everything in a bucket: train, resume, evaluate, report, compare, export; data and model from there."""

import json

import numpy as np
import pytest

from svt_jax import cli
from svt_jax.data import token_cache
from svt_jax.data.demo import load_demo
from svt_jax.data.token_cache import cached_tokens
from svt_jax.data.tokenizer import demo_tokenizer
from svt_jax.run.folder import RunFolder
from svt_jax.stores import as_path
from tests.stores.test_stores import full

FAST = [
    "--config", "demo", "--optim.batch_size", "8", "--data.max_length", "32", "--data.eval_batch_size", "200",
    "--checkpoint.every_steps", "2", "--log.every_steps", "1",
]  # fmt: skip


def one_line(capsys, status, arguments):
    """The command's single line of error."""
    assert cli.train(arguments) == status
    error = capsys.readouterr().err
    assert error.count("\n") == 1, error
    return error


def test_a_wrong_bucket_is_one_line_before_training(server, capsys):
    error = one_line(capsys, 2, [*FAST, "--run.output_dir", f"{server.scheme}://no-such-bucket/runs"])
    assert f"there is no bucket {server.scheme}://no-such-bucket. Make it, or correct the name." in error


def test_wrong_credentials_are_one_line_before_training(server, place, capsys):
    with server.failing(lambda request: (403, full(server)[1].replace(b"quotaExceeded", b"no access"))):
        error = one_line(capsys, 2, [*FAST, "--run.output_dir", place])
    assert "the store refuses" in error
    assert "credentials" in error
    assert list(as_path(place).objects()) == []


def test_a_bucket_that_may_only_be_read_is_one_line_before_training(server, place, capsys):
    with server.failing(lambda request: full(server) if request.writes else None):
        error = one_line(capsys, 2, [*FAST, "--run.output_dir", place])
    assert "cannot be written (the store refuses" in error
    assert list(as_path(place).objects()) == []


def test_a_name_that_a_store_cannot_hold_is_refused(server, place, capsys):
    error = one_line(capsys, 2, [*FAST, "--run.output_dir", place, "--run.name", "lr-[1e-5]"])
    assert "Choose another --run.name" in error


def test_a_name_with_a_single_slash_is_refused(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    error = one_line(capsys, 2, [*FAST, "--run.output_dir", "gs:/bucket/runs"])
    assert "a bucket is gs://bucket" in error
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
def test_all_commands_work_in_a_bucket(server, place, tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    runs, folder = f"{place}/runs", as_path(place)
    assert (
        cli.train(
            [*FAST, "--run.output_dir", runs, "--run.name", "a", "--optim.max_steps", "4", "--log.tensorboard", "true"]
        )
        == 0
    )
    assert f"see {runs}/a/results.json" in capsys.readouterr().out
    run = RunFolder(folder / "runs" / "a")
    assert [line["step"] for line in run.read_metrics()] == [1, 2, 3, 4]
    assert not any(".parts/" in name for name in folder.objects())
    assert any("tensorboard/events" in name for name in folder.objects())
    assert cli.train([*FAST, "--run.output_dir", runs, "--run.name", "a", "--optim.max_steps", "4"]) == 0
    assert "is complete already" in capsys.readouterr().out
    assert cli.train([*FAST, "--run.output_dir", runs, "--run.name", "a", "--optim.max_steps", "6"]) == 2
    assert "holds another run's config" in capsys.readouterr().err
    assert (
        cli.train([*FAST, "--run.output_dir", runs, "--run.name", "b", "--optim.max_steps", "4", "--run.seed", "1"])
        == 0
    )
    capsys.readouterr()

    assert cli.evaluate(["glue", "--run", f"{runs}/a"]) == 0
    outcome = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert outcome["metrics"] == run.read_results()["metrics"]["validation"]
    assert cli.evaluate(["report", "--run", f"{runs}/a", "--baseline", f"{runs}/b"]) == 0
    assert len(run.report.read_bytes()) > 1000
    assert cli.evaluate(["compare", "--runs", f"{runs}/a", f"{runs}/b", "--output", f"{place}/compare"]) == 0
    assert cli.evaluate(["spectrum", "--run", f"{runs}/a", "--output", f"{place}/spectra"]) == 0
    assert cli.evaluate(["export", "--run", f"{runs}/a", "--svt", "drop", "--output", f"{place}/model"]) == 0
    written = set(folder.objects())
    assert {"compare/compare.json", "compare/compare.png", "spectra/spectrum.json", "spectra/cdf.png"} <= written
    assert {"model/config.json", "model/model.safetensors", "model/tokenizer.json"} <= written

    rows = "".join(f"{text}\t{label}\n" for text, label in [("red cube", "0"), ("blue ball", "1")] * 8)
    for split in ("train", "validation", "test"):
        (folder / "data" / f"{split}.tsv").write_text("text\tlabel\n" + rows)
    custom = [
        "--model.path",
        f"{place}/model",
        "--data.task",
        "custom",
        "--data.source",
        f"{place}/data",
        "--data.text_columns=[text]",
        "--data.label_column",
        "label",
    ]
    config = [
        "--run.output_dir",
        runs,
        "--run.name",
        "c",
        "--optim.max_steps",
        "2",
        "--optim.batch_size",
        "8",
        "--data.max_length",
        "16",
    ]
    assert cli.train([*custom, *config]) == 0, capsys.readouterr()
    capsys.readouterr()
    assert cli.evaluate(["glue", "--run", f"{runs}/c", "--split", "test"]) == 0
    assert json.loads(capsys.readouterr().out.splitlines()[-1])["examples"] == 16


def test_hosts_share_tokens_in_a_bucket(place, monkeypatch, tmp_path):
    def next_host(number):
        monkeypatch.setenv("SVT_JAX_CACHE", place)
        monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / f"host{number}"))

    next_host(0)
    examples, tokenizer = load_demo("validation"), demo_tokenizer()
    made = cached_tokens(examples, tokenizer, 32)
    names = list(as_path(place).objects())
    assert len(names) == 1
    next_host(1)
    monkeypatch.setattr(token_cache, "tokenize", None)  # it only reads
    read = cached_tokens(examples, tokenizer, 32)
    assert all(np.array_equal(getattr(made, name), getattr(read, name)) for name in ("ids", "types", "lengths"))
    (as_path(place) / names[0]).write_bytes(b"damaged")
    monkeypatch.undo()
    next_host(2)
    assert np.array_equal(cached_tokens(examples, tokenizer, 32).ids, made.ids)
    assert len((as_path(place) / names[0]).read_bytes()) > 1000


@pytest.mark.slow
def test_a_search_and_a_grid_have_their_runs_in_a_bucket(server, place, tmp_path, capsys):
    if server.scheme != "gs":
        pytest.skip("nothing here differs between stores")
    setting = tmp_path / "plain.yaml"
    setting.write_text("svt: {function: none}\nsearch: {optim.learning_rate: [1.0e-3, 1.0e-4]}\n")
    command = ["compare", "--config", f"demo+{setting}", "--seeds", "0,1", "--output", f"{place}/out", *FAST[2:]]
    command += ["--optim.max_steps", "2"]
    assert cli.evaluate(command) == 0
    written = as_path(place).objects()
    runs = ["search/demo-plain-try0", "search/demo-plain-try1", "runs/demo-plain-seed0", "runs/demo-plain-seed1"]
    assert {f"out/{run}/results.json" for run in runs} <= written.keys()
    assert {"out/compare.json", "out/compare.png", "out/curves.png"} <= written.keys()
    assert not any(".parts/" in name for name in written)
    assert cli.evaluate(command) == 0  # nothing is trained again
    now = as_path(place).objects()
    assert all(now[f"out/{run}/results.json"] == written[f"out/{run}/results.json"] for run in runs)
