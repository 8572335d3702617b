"""Remedies of site `loss` in training: value, gradient, state, accumulation, and what a run writes."""

import json
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from test_step import BATCH, classifier, stepped

import svt_jax
from svt_jax import cli
from svt_jax.models.slot import SVTState
from svt_jax.models.svt_config import SVTConfig
from svt_jax.run.task_model import TaskModel

REAL = BATCH["attention_mask"].astype(bool) & (BATCH["weights"] > 0)[:, None]


def config(name, weight=0.5, **params):
    return SVTConfig(name, site="loss", layers=[0, 1], params={"weight": weight, **params})


def hidden_states():
    model = classifier(SVTConfig())
    run = jax.jit(lambda ids, mask, types: model.encoder(ids, mask, types, output_hidden_states=True).hidden_states)
    return run(BATCH["input_ids"], BATCH["attention_mask"], BATCH["token_type_ids"])


def expected(name, **params):
    """The term of the real tokens behind both layers."""
    x = jnp.stack(hidden_states()[1:], axis=1)
    mask = np.broadcast_to(REAL[:, None], x.shape[:-1])
    return svt_jax.get_function(name, **params)(x, mask), x, mask


def state_of(state):
    return [leaf.get_value() for _, leaf in nnx.to_flat_state(state.constants) if isinstance(leaf, SVTState)]


def test_i_star_is_weighted_beside_the_loss_and_keeps_its_covariance():
    plain = stepped(BATCH, svt=SVTConfig())[1]
    state, metrics = stepped(BATCH, svt=config("i_star", zeta=0.2))
    term, x, mask = expected("i_star", zeta=0.2)
    assert float(metrics["svt_loss"]) == pytest.approx(0.5 * float(term), rel=1e-5)
    assert float(metrics["loss"]) == pytest.approx(float(plain["loss"]), rel=1e-6)  # the term is no part of it
    assert abs(float(metrics["grad_norm"]) - float(plain["grad_norm"])) > 1e-4
    (kept,) = state_of(state)
    tokens = np.asarray(x)[mask]
    np.testing.assert_allclose(kept, np.cov(tokens, rowvar=False), atol=1e-5)
    assert "svt_loss" not in plain
    assert state_of(stepped(BATCH, svt=config("i_star", zeta=0.0))[0]) == []


@pytest.mark.slow
@pytest.mark.parametrize("name", ["cos_reg", "gor", "spectrum_area"])
def test_each_loss_is_of_the_real_tokens_of_examples_that_count(name):
    _, metrics = stepped(BATCH, svt=config(name, weight=-2.0))
    assert float(metrics["svt_loss"]) == pytest.approx(-2.0 * float(expected(name)[0]), rel=1e-4)


@pytest.mark.slow
def test_with_accumulation_the_term_is_the_mean_of_the_micro_batches():
    halves = [
        {name: values[n::2] for name, values in BATCH.items()} for n in range(2)
    ]  # every second row, as they divide
    parts = [stepped(half, svt=config("i_star")) for half in halves]
    state, metrics = stepped(BATCH, svt=config("i_star"), accumulate=2)
    assert float(metrics["svt_loss"]) == pytest.approx(np.mean([float(m["svt_loss"]) for _, m in parts]), rel=1e-5)
    np.testing.assert_allclose(state_of(state)[0], np.mean([state_of(s)[0] for s, _ in parts], axis=0), atol=1e-6)


@pytest.mark.slow
def test_a_weight_of_zero_is_the_plain_gradient():
    ours, plain = stepped(BATCH, svt=config("cos_reg", weight=0.0))[0], stepped(BATCH, svt=SVTConfig())[0]
    for a, b in zip(jax.tree.leaves(ours.params), jax.tree.leaves(plain.params), strict=True):
        np.testing.assert_allclose(a, b, atol=1e-6)


@pytest.mark.slow
def test_a_run_logs_the_term_resumes_its_state_and_evaluates_without_it(tmp_path, capsys):
    command = ["--config", "demo", "--run.name", "run"]
    command += ["--svt.function", "i_star", "--svt.site", "loss", "--svt.layers", "all"]
    command += ["--svt.params", "{weight: 1.0, zeta: 0.2}", "--optim.max_steps", "4", "--log.every_steps", "1"]
    command += [
        "--checkpoint.every_steps",
        "2",
        "--run.output_dir",
        str(tmp_path),
        "--mesh.data",
        "2",
        "--mesh.fsdp",
        "4",
    ]
    assert cli.train(command) == 0
    run = tmp_path / "run"
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert all(0.0 < line["svt_loss"] < 1.0 for line in lines)
    results = json.loads((run / "results.json").read_text())
    assert (results["svt"]["function"], results["svt"]["site"], results["svt"]["layers"]) == ("i_star", "loss", [0, 1])
    (state,) = state_of(TaskModel.from_run(run))
    assert np.trace(state) > 0

    shutil.rmtree(run / "checkpoints" / "4")
    (run / "results.json").unlink()
    assert cli.train(command) == 0
    assert "after step 2 of 4" in " ".join(capsys.readouterr().out.split())
    again = [json.loads(line)["svt_loss"] for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert again == [line["svt_loss"] for line in lines]
    np.testing.assert_array_equal(state_of(TaskModel.from_run(run))[0], state)
