"""`eval.py sts`: its output, its errors for bad input, and the published scores from the real model and files."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import yaml

import svt_jax
from svt_jax import cli
from svt_jax.embeddings.cache import encode_cached
from svt_jax.embeddings.sts import distinct_sentences
from svt_jax.embeddings.sts_files import load_sts
from svt_jax.embeddings.sts_maps import PostProcessing, Vectors, fit_published
from svt_jax.embeddings.sts_scores import score_tasks

ROOT = Path(__file__).parents[2]


def run(tmp_path, model, data, *more):
    output = tmp_path / "out.json"
    output.unlink(missing_ok=True)  # nothing is overwritten
    arguments = ["--model", str(model), "--data", str(data), "--max_length", "32", "--output", str(output), *more]
    status = cli.evaluate(["sts", *arguments])
    return status, json.loads(output.read_text()) if output.exists() else None


def test_one_configuration_gives_the_table_of_the_contract(tmp_path, tiny_model, sts_folder, capsys):
    status, table = run(tmp_path, tiny_model, sts_folder, "--pooling", "first_last", "--post", "soft_decay")
    assert status == 0
    assert (table["model"], table["pooling"], table["post"], table["alpha"]) == (
        str(tiny_model),
        "first_last",
        "soft_decay",
        -0.6,
    )
    assert list(table["files"]) == ["x.tsv", "y.tsv", "z.tsv"]
    assert list(table["tasks"]) == ["t1", "t2"]
    np.testing.assert_allclose(table["tasks"]["t1"]["mean"], (table["files"]["x.tsv"] + table["files"]["y.tsv"]) / 2)
    assert set(table["average"]) == {"mean", "all"}
    assert table["wall_time_s"] > 0
    assert set(table["analysis"]["before"]) == set(table["analysis"]["after"])
    assert {"token_uniformity", "explained_variance_1", "rbf_distance", "local_structure"} <= set(
        table["analysis"]["after"]
    )
    printed = capsys.readouterr().out
    assert f"{table['average']['mean']:.2f}" in printed
    assert f"{table['average']['all']:.2f}" in printed

    tasks = load_sts(sts_folder)  # the same by hand, with the published mean's factor n/(n + 0.01)
    texts = distinct_sentences(tasks)
    (rows,), lengths = encode_cached(tiny_model, texts, ["first_last"], 32, None)
    vectors = Vectors(texts, rows * (lengths / (lengths + 0.01))[:, None].astype(np.float32))
    expected = score_tasks(tasks, vectors, fit_published(tasks, vectors, PostProcessing("soft_decay")))
    assert {name: table[name] for name in expected} == expected


def test_a_config_holds_options_and_the_command_line_goes_before_it(tmp_path, tiny_model, sts_folder, capsys):
    (tmp_path / "c.yaml").write_text("{model: elsewhere, pooling: first_last, post: [none, soft_decay], alpha: -0.4}")
    config = ["--config", str(tmp_path / "c.yaml")]
    status, tables = run(tmp_path, tiny_model, sts_folder, *config)
    assert status == 0
    assert [(t["pooling"], t["post"], t["alpha"]) for t in tables] == [
        ("first_last", "none", None),
        ("first_last", "soft_decay", -0.4),
    ]
    status, table = run(tmp_path, tiny_model, sts_folder, "--post", "soft_decay", "--alpha", "-0.6", *config)
    assert (status, table["post"], table["alpha"]) == (0, "soft_decay", -0.6)

    for text, message in (
        ("{posts: none, fitt: x}", "unknown key 'posts'.*Did you mean post?.*unknown key 'fitt'.*Did you mean fit?"),
        ("- none", "allowed is a table of plugin, model, data"),
    ):
        (tmp_path / "c.yaml").write_text(text)
        capsys.readouterr()
        assert run(tmp_path, tiny_model, sts_folder, *config)[0] == 2
        assert re.search(message, capsys.readouterr().err)


@pytest.mark.parametrize("path", sorted((ROOT / "configs" / "paper" / "sts").glob("*.yaml")), ids=lambda p: p.stem)
def test_a_paper_config_is_run_as_its_header_says(path, tmp_path, tiny_model, sts_folder):
    """It runs with another model; the header's rows are those of its post-processing, and their average is the mean."""
    header, values = path.read_text(), yaml.safe_load(path.read_text())
    command = re.search(r"python eval.py (.*)", header)[1].split()
    assert command[:3] == ["sts", "--config", str(path.relative_to(ROOT))]
    _, tables = run(tmp_path, tiny_model, sts_folder, "--config", str(path))
    rows = {
        name: [float(x) for x in numbers.split()]
        for name, numbers in re.findall(r"^#   (\w+) +([\d. ]+)$", header, re.M)
    }
    assert [t["post"] for t in tables] == values["post"] == list(rows)
    for numbers in rows.values():
        assert abs(sum(numbers[:7]) / 7 - numbers[7]) < 0.03
    assert {t["pooling"] for t in tables} == {values["pooling"]}


def test_several_poolings_and_posts_give_a_list_from_one_file_of_embeddings(tmp_path, tiny_model, sts_folder):
    kept = ["--embeddings", str(tmp_path / "e.safetensors")]
    status, tables = run(
        tmp_path, tiny_model, sts_folder, "--pooling", "mean", "cls", "--post", "none", "whitening", *kept
    )
    assert status == 0
    assert [(t["pooling"], t["post"]) for t in tables] == [
        ("mean", "none"),
        ("mean", "whitening"),
        ("cls", "none"),
        ("cls", "whitening"),
    ]
    status, again = run(tmp_path, tiny_model, sts_folder, "--pooling", "cls", "--post", "whitening", *kept)
    assert again["files"] == tables[3]["files"]


def test_the_honest_protocol_fits_on_the_users_sentences_without_the_scored_ones(
    tmp_path, tiny_model, sts_folder, sentences
):
    corpus = tmp_path / "corpus.txt"
    corpus.write_text("\n".join(sentences) + "\n")
    honest = ["--protocol", "honest", "--post", "whitening", "--fit", str(corpus)]
    status, table = run(tmp_path, tiny_model, sts_folder, *honest)
    assert status == 0
    texts = distinct_sentences(load_sts(sts_folder))
    unseen = [s for s in sentences if s not in texts]
    assert 20 <= len(unseen) < 60
    assert table["fit"] == {"file": str(corpus), "sentences": len(unseen), "left_out": len(texts)}
    fitted = svt_jax.Whitening().fit(svt_jax.embed(tiny_model, unseen))
    rows = np.asarray(fitted.transform(svt_jax.embed(tiny_model, texts)), np.float64)
    tasks = load_sts(sts_folder)
    expected = score_tasks(tasks, Vectors(texts, rows), [(None, None)] * 2)
    np.testing.assert_allclose(list(table["files"].values()), list(expected["files"].values()), atol=1e-6)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--pooling", "max"], "pooling is 'max'; allowed are mean, cls, first_last"),
        (["--post", "pca"], "post is 'pca'; allowed are none, soft_decay, centered_soft_decay, whitening, all_but_the_top"),
        (["--protocol", "fair"], "--protocol is 'fair'; allowed is paper or honest"),
        (["--post", "soft_decay", "--alpha", "0.6"], "alpha"),
        (["--alpha", "-2"], "alpha"),
        (["--dim", "3"], "--dim is for --post whitening only"),
        (["--post", "whitening", "--dim", "9"], "whitening cannot be fitted on t1: whitening to 9 dimensions"),
        (["--protocol", "honest", "--post", "whitening"], "protocol honest needs sentences to fit on .*Give --fit FILE"),
        (["--protocol", "honest", "--post", "whitening", "--fit", "no.txt"], "no.txt cannot be read"),
        (["--protocol", "honest", "--post", "whitening", "--fit", "CORPUS"], "whitening cannot be fitted on the corpus: .*there are 8 and 3"),
        (["--post", "whitening", "--fit", "CORPUS"], "corpus.txt would not be used: only protocol honest"),
        (["--protocol", "honest", "--fit", "CORPUS"], "corpus.txt would not be used"),
        (["--data", "nowhere"], "nowhere/tasks.json does not exist"),
        (["--model", "nowhere"], "'nowhere' is not a folder here"),
        (["--max_length", "64"], "max_length is 64 and the model has 32 positions"),
        (["--max_length", "2"], "need at least 3"),
        (["--output", "no/such/folder/a.json"], "--output no/such/folder/a.json: allowed is a file in a folder that exists"),
        (["--poling", "mean"], "unknown key 'poling'"),
        (["--config", "no.yaml"], "--config 'no.yaml' does not exist"),
    ],
)  # fmt: skip
def test_bad_input_is_one_line_and_status_2_and_writes_nothing(
    tmp_path, tiny_model, sts_folder, capsys, arguments, words
):
    (tmp_path / "corpus.txt").write_text("the kite\nthe lamp\na drum\n")
    arguments = [str(tmp_path / "corpus.txt") if a == "CORPUS" else a for a in arguments]
    status, table = run(tmp_path, tiny_model, sts_folder, *arguments)
    error = capsys.readouterr().err
    assert status == 2
    assert error.startswith("error: ")
    assert error.count("\n") == 1
    assert re.search(words, error), error
    assert table is None


def test_a_malformed_line_of_the_data_is_named(tmp_path, tiny_model, sts_folder, capsys):
    with (sts_folder / "y.tsv").open("a") as file:
        file.write("5.5\ta\tb\n")
    status, table = run(tmp_path, tiny_model, sts_folder)
    assert status == 2
    assert table is None
    assert re.search(r"error: .*y.tsv, line 13: score '5.5', allowed is a number from 0 to 5", capsys.readouterr().err)


POSTS = {"none": "none", "soft_decay": "soft_decay", "whitening": "whitebert"}
POOLINGS = {"mean": "aver_last", "first_last": "aver_first_last", "cls": "cls_last"}
# From the README of the golden arrays.
TOLERANCES = {
    ("mean", "none"): 3e-4, ("mean", "whitening"): 0.014, ("mean", "soft_decay"): 0.08,
    ("first_last", "none"): 3e-4, ("first_last", "whitening"): 0.014, ("first_last", "soft_decay"): 0.008,
    ("cls", "none"): 3e-4, ("cls", "whitening"): 0.014, ("cls", "soft_decay"): 0.08,
}  # fmt: skip
# Two of the 234 scores lie outside them here, because of rounding; on another processor it may be another one.
# (XLA's fusions move a third, mean, soft_decay, sts16.question-question, by 0.01024, and no other file by more than
# 2e-5: one pair of cosines changes places.)
# - first_last, none, sts12.surprise.OnWN, by 4e-4: two pairs have cosines 3e-8 apart, half of float32's resolution; in
#   the other order the score is the golden's.
# - mean, soft_decay, sts14.deft-news, by 0.008: three columns are null up to 1e-7 and 1e-32, and rounding decides where
#   the published SVD puts their singular vectors. We leave them null. The golden of the authors' functions without null
#   directions differs from them as much: 0.0881.
# - cls, none, sts14.tweet-news, by 0.0002, since rows are packed: its vectors move by 3e-7, and near ties change ranks.
ROUNDING = 4
"""Scores that may lie outside the tolerance, by at most 0.01."""


def golden_scores(shared, pooling, post, kind="per_file"):
    goldens = json.loads((shared / "golden" / "sts_minilm.json").read_text())["spearman_x100"]
    scores = goldens[f"{POOLINGS[pooling]}+{POSTS[post]}"][kind]
    return {name.removesuffix("-white") + ".tsv": score for name, score in scores.items()}


@pytest.mark.slow
@pytest.mark.shared
@pytest.mark.model
def test_every_file_has_the_published_score_with_every_pooling_and_post(shared, minilm, tmp_path):
    """26 files x 3 poolings x 3 kinds of post-processing; also the time that these and the scores take."""
    output = tmp_path / "all.json"
    command = [
        sys.executable, "eval.py", "sts", "--model", str(minilm), "--data", str(shared / "data" / "sts"),
        "--pooling", *POOLINGS, "--post", *POSTS, "--output", str(output),
    ]  # fmt: skip
    environment = {**os.environ, "JAX_DISABLE_MOST_OPTIMIZATIONS": "0", "XLA_FLAGS": ""}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=900, check=False)
    assert done.returncode == 0, done.stderr
    tables = json.loads(output.read_text())
    assert [(t["pooling"], t["post"]) for t in tables] == [(p, q) for p in POOLINGS for q in POSTS]
    check_goldens(shared, tables)


def check_goldens(shared, tables):
    outside = []
    for table in tables:
        key = (table["pooling"], table["post"])
        golden = golden_scores(shared, *key)
        assert table["files"].keys() == golden.keys()
        for name, score in table["files"].items():
            excess = abs(score - golden[name]) - TOLERANCES[key]
            assert excess <= 0.01, (*key, name, score, golden[name])
            if excess > 0:
                outside.append((*key, name, score, excess))
        if table["post"] == "soft_decay":  # without null directions all agree
            dropped = golden_scores(shared, *key, "per_file_float64_null_directions_dropped")
            for name, score in table["files"].items():
                excess = abs(score - dropped[name]) - 0.01
                assert excess <= 0.01, (*key, name, "dropped", score, dropped[name])
                if excess > 0:
                    outside.append((*key, name, "dropped", score, excess))
    assert len(outside) <= ROUNDING, outside
