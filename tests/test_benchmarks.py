"""The benchmarks' PyTorch side computes the same as ours, and the GLUE benchmarks run and resume."""

import dataclasses
import itertools
import json

import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import svt_jax
from svt_jax.data.demo import load_demo
from svt_jax.data.tokenizer import demo_tokenizer
from svt_jax.models.encoder import Encoder
from svt_jax.models.export import export_hf
from svt_jax.models.hf import load_classifier
from svt_jax.models.svt_config import SVTConfig
from svt_jax.run.task_model import DEMO_ENCODER

pytestmark = [pytest.mark.parity, pytest.mark.slow]
SIZES = {"hidden_size": 16, "num_attention_heads": 2, "intermediate_size": 16, "num_hidden_layers": 2}
STORIES = load_demo("validation")


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    """A tiny BERT without a head, and its tokenizer."""
    folder = tmp_path_factory.mktemp("model") / "tiny"
    export_hf(
        Encoder(dataclasses.replace(DEMO_ENCODER, max_position_embeddings=128, **SIZES), rngs=nnx.Rngs(0)), folder
    )
    demo_tokenizer().save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    folder = tmp_path_factory.mktemp("glue")
    (folder / "RTE").mkdir()
    for file, start, rows in (("train", 0, 75), ("dev", 75, 21)):
        lines = [
            f"{n}\t{STORIES.first[n]}\t{STORIES.second[n]}\t{('', 'not_')[n % 2]}entailment\n"
            for n in range(start, start + rows)
        ]
        (folder / "RTE" / f"{file}.tsv").write_text("index\tsentence1\tsentence2\tlabel\n" + "".join(lines))
    return folder


def test_torch_soft_decay_is_the_transformation_of_the_real_tokens():
    import torch

    from benchmarks.torch_training import SoftDecay

    x = np.random.default_rng(0).normal(size=(3, 7, 12)).astype(np.float32)
    lengths = [7, 4, 1]
    module = SoftDecay(alpha=-0.4).eval()
    ours = svt_jax.svt(jnp.asarray(x), svt_jax.SoftDecay(alpha=-0.4), mask=jnp.arange(7) < jnp.array(lengths)[:, None])
    with torch.no_grad():
        theirs = module(torch.tensor(x), lengths).numpy()
    np.testing.assert_allclose(theirs, ours, atol=2e-5)
    assert not theirs[1, 4:].any()
    dropped = module.train()(torch.tensor(x), lengths)
    assert not torch.allclose(dropped, torch.tensor(theirs), atol=1e-2)


@pytest.mark.parametrize("function", ["none", "soft_decay"])
def test_torch_classifier_is_ours_with_the_same_weights(model, tmp_path, function):
    import torch
    from transformers import BertForSequenceClassification

    from benchmarks.torch_training import Classifier, Data
    from svt_jax.data.glue import Examples

    torch.manual_seed(0)
    BertForSequenceClassification.from_pretrained(model, num_labels=2).save_pretrained(tmp_path)  # with its head
    theirs = Classifier(tmp_path, 2, soft_decay=function == "soft_decay").eval()
    data = Data(Examples(STORIES.first[:5], STORIES.second[:5], STORIES.labels[:5]), model)
    batch = next(iter(data.loader(5)))
    assert batch["input_ids"].shape[1] % 8 == 0
    assert (batch["attention_mask"].sum(1) < batch["input_ids"].shape[1]).any()
    with torch.no_grad():
        expected = theirs(**batch).logits.numpy()
    ours = load_classifier(tmp_path, num_labels=2, svt=SVTConfig(function))
    inputs = (batch[name].numpy().astype(np.int32) for name in ("input_ids", "attention_mask", "token_type_ids"))
    np.testing.assert_allclose(ours(*inputs), expected, atol=1e-5)
    assert ("svt" in dict(theirs.output.named_modules()) if theirs.output else False) == (function == "soft_decay")


def test_scores_are_written_once_for_each_variant_and_seed(model, source, tmp_path, monkeypatch, capsys):
    from benchmarks import glue_scores

    command = [
        "glue_scores",
        f"--model={model}",
        f"--source={source}",
        "--task=rte",
        f"--output={tmp_path}",
        "--threads=1",
    ]
    monkeypatch.setattr("sys.argv", [*command, "--max-steps=2", "--seed", "0", "1"])
    (tmp_path / "rte-plain-1.json").write_text("kept")
    glue_scores.main()
    assert {path.name for path in tmp_path.iterdir()} == {
        f"rte-{variant}-{seed}.json" for variant in ("plain", "soft_decay") for seed in (0, 1)
    }
    assert (tmp_path / "rte-plain-1.json").read_text() == "kept"
    results = [json.loads((tmp_path / f"rte-{name}-0.json").read_text()) for name in ("plain", "soft_decay")]
    for result in results:
        assert (result["steps"], result["seed"]) == (2, 0)
        assert 0 <= result["metrics"]["accuracy"] <= 1
        assert result["train"]["examples_per_second"] > 0
    assert results[0]["alpha"] is None
    assert 0 < abs(results[1]["alpha"] + 0.2) < 2e-4  # alpha is trained: two steps at 5e-5
    first = glue_scores.fine_tune(model, str(source), "rte", "plain", 0, max_steps=2)
    assert first["evaluations"] == results[0]["evaluations"]  # the seed fixes them


def test_the_glue_benchmark_measures_both_sides(model, source, tmp_path, monkeypatch, capsys):
    from benchmarks import glue

    options = ["--task=rte", "--chunk=1", "--turns=2", "--repeats=1", f"--output={tmp_path / 'out.json'}"]
    monkeypatch.setattr("sys.argv", ["glue", f"--model={model}", f"--source={source}", *options])
    glue.main()
    result = json.loads((tmp_path / "out.json").read_text())
    assert [r["function"] for r in result["training"]] == ["none", "soft_decay"]
    for measured in result["training"]:
        assert [len(turns) for turns in measured["turns"].values()] == [2, 2, 2]
        assert measured["compiles"] >= 1
    for measured in result["evaluation"]:
        assert measured["compiles"] == 1
        assert all(rate > 0 for rate in measured["examples_per_second"].values())
    printed = capsys.readouterr().out
    assert printed.count("rte, SVT off") == printed.count("rte, soft_decay") == 6


def test_the_body_benchmark_measures_both_sides(monkeypatch, capsys):
    from benchmarks import body

    monkeypatch.setattr(body, "SIZES", {"tiny": (SIZES, 2)})
    svts = [body.OFF, body.ALL_TOKENS, "soft_decay (gram64)"]
    result = body.measure("tiny", 8, None, "float32", svts, 2)
    ours = [f"training, {label}" for label in svts]
    assert list(result["p10_p50_p90_s"]) == [
        "training, PyTorch",
        "inference, PyTorch",
        *ours,
        "training, off, packed",
        "inference",
        "inference, packed",
        "inference, 3 at a time",
    ]
    shares = {cells[1]: cells[6] for line in capsys.readouterr().out.splitlines() if len(cells := line.split("|")) > 6}
    rows = {name.strip() for name, share in shares.items() if "%" in share}
    assert rows == {"training, soft_decay (gram64)"}


def test_the_packed_batch_of_the_body_benchmark_has_the_same_examples():
    from benchmarks import body
    from svt_jax.models.config import EncoderConfig

    config = EncoderConfig.from_hf({"model_type": "bert", "vocab_size": 50, **SIZES})
    padded = body.make_batch(50, 3, 8)
    packed, static = body.packed_batch(padded)
    expected, logits = (
        body.our_inference(config, padded, "float32"),
        body.our_inference(config, packed, "float32", static),
    )
    np.testing.assert_allclose(logits(), expected(), atol=1e-5)
    assert static["per_row"] == 3


@pytest.mark.parametrize("layout", ["packed", "padded"])
def test_the_batch_of_a_program_has_the_shape_that_is_asked_for(layout):
    import jax

    from benchmarks.compiled import abstract_batch
    from svt_jax.mesh import make_mesh

    mesh = make_mesh(data=2, devices=jax.devices()[:2])
    static, arrays = abstract_batch(mesh, batch=12, tokens=16, layout=layout, accumulate=3)
    shapes = {name: array.shape for name, array in arrays.items()}
    if layout == "packed":  # 3 rows a device and micro-batch
        assert static == {"longest": 16, "per_row": 6, "groups": 2}
        assert (shapes["ids"], shapes["start"], shapes["labels"]) == ((18, 16), (36,), (36,))
    else:
        assert static == {}
        assert (shapes["input_ids"], shapes["labels"]) == ((36, 16), (36,))


def test_the_time_to_a_score_is_that_of_whole_processes(model, source, monkeypatch, capsys):
    from benchmarks import time_to_score

    options = ["--tasks", "rte", "--only=soft_decay", "--max_steps=2", "--data.eval_batch_size=16"]
    monkeypatch.setattr("sys.argv", ["time_to_score", f"--model={model}", f"--source={source}", *options])
    time_to_score.main()
    printed = capsys.readouterr().out.splitlines()
    summary = json.loads(printed[-1])
    assert summary["options"] == ["--data.eval_batch_size=16"]  # went to train.py
    [result] = summary["results"]
    assert list(result["runs"]) == ["empty", "full", "PyTorch"]
    for [run] in result["runs"].values():
        assert run["steps"] == 2
        assert run["seconds"] > 0
    empty, full = (result["runs"][side][0] for side in ("empty", "full"))
    assert empty["metrics"] == full["metrics"]
    assert empty["train"]["compiles"] == full["train"]["compiles"] == 1
    [cells] = [line.split("|") for line in printed if line.startswith("| rte, soft_decay")]
    assert float(cells[5]) == pytest.approx(empty["seconds"] / result["runs"]["PyTorch"][0]["seconds"], rel=0.01)


def test_a_turn_counts_the_examples_of_its_chunk_and_the_others_follow():
    from benchmarks.glue import InTurns, TurnsOverError

    class Clock:
        examples, training_seconds = 0, 0.0

    class Run:
        clock = Clock()
        batches = type("Batches", (), {"from_batch": staticmethod(lambda start: iter(range(start, 1000)))})()

    order = []

    def other():
        order.append("other")
        Run.clock.training_seconds += 100.0  # advances the run's clock meanwhile

    turns = InTurns(Run.batches, [other], chunk=3, turns=2)
    turns.on_start(Run)
    stream = turns.from_batch(5)
    for batch in itertools.islice(stream, 9):
        order.append(batch)
        Run.clock.examples += 32
        Run.clock.training_seconds += 2.0
    with pytest.raises(TurnsOverError):
        next(stream)
    assert order == [5, 6, 7, "other", 8, 9, 10, "other", 11, 12, 13, "other"]
    assert turns.rate.examples == [96, 96]  # the first turn only warms up
    assert turns.rate.seconds == [6.0, 6.0]
    assert turns.rate.total == 16.0


def test_the_benchmark_of_the_transformation_runs(monkeypatch, capsys):
    from benchmarks import svt

    monkeypatch.setattr("sys.argv", ["svt", "--widths=16", "--repeats=2", "--forward", "--dtype=bfloat16"])
    svt.main()
    result = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert result["results"][0]["dtype"] == "bfloat16"
    assert {"gram centred", "svd published", "autodiff", "torch"} < result["results"][0]["p10_p50_p90_ms"].keys()
    assert {"jax", "cores", "compiler"} < result["environment"].keys()


def test_the_benchmark_of_scaling_runs(monkeypatch, capsys):
    from benchmarks import scaling

    monkeypatch.setattr("sys.argv", ["scaling", "--meshes", "1,1,1", "2,1,1", "--solvers=none", "--layers=1"])
    scaling.main()
    one, two = json.loads(capsys.readouterr().out.splitlines()[-1])["results"]
    assert one["sent"] == {}
    assert two["sent"].keys() == {"data"}
    assert two["flops"] == pytest.approx(one["flops"], rel=0.01)  # per device, with the same number of examples


@pytest.mark.slow
def test_the_accelerator_benchmark_runs_every_part_and_keeps_what_a_stopped_part_had(tmp_path, monkeypatch, capsys):
    from benchmarks import accelerator

    output, names = tmp_path / "out.jsonl", ("device", "numbers")
    monkeypatch.setattr("sys.argv", ["accelerator", "--small", f"--output={output}", "--parts", *names])
    accelerator.main()
    results = [json.loads(line) for line in output.read_text().splitlines()]
    parts = {name: [each for each in results if each["part"] == name] for name in names}
    assert [each[-1].keys() for each in parts.values()] == [{"part", "done_after_s"}] * 2, results
    parts |= {name: list(accelerator.PARTS[name](small=True)) for name in ("svt", "step", "seeds")}
    solvers = {each["svt"] for each in parts["svt"] if "svt" in each}
    assert solvers == {each["svt"] for each in parts["numbers"] if "svt" in each}
    assert len(solvers) == 7
    assert max(each["value_error"] for each in parts["numbers"] if "svt" in each) < 1e-2
    errors = {each["model"]: each["logits_error"] for each in parts["numbers"] if "model" in each}
    assert errors["float32, full"] < 1e-6 < 1e-4 < errors["bfloat16"] < 0.1
    steps = [each for each in parts["step"] if "flops" in each]
    assert [each["svt"] for each in steps] == ["plain", "SoftDecay, centred, shifted"] * 2
    assert all(each["flops"] > 0 and each["tokens_per_second"] > 0 for each in steps)
    assert [each["seeds"] for each in parts["seeds"]] == [1, 2]
    flat = [{"part": name, **each} for name, several in parts.items() for each in several]
    assert "of large product" in accelerator.tables(flat)

    (stopped,) = accelerator.run_part("svt", 0.2, small=True)
    assert stopped["stopped_after_s"] < 20
