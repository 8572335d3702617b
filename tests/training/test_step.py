"""The training step: accumulation, weights of rows that fill up, fixed parameters, one compilation."""

import dataclasses

import jax
import numpy as np
import optax
import pytest
from flax import nnx

from svt_jax.data.custom import custom_task
from svt_jax.mesh import make_mesh
from svt_jax.models.config import EncoderConfig
from svt_jax.models.heads import Classifier
from svt_jax.models.svt_config import SVTConfig
from svt_jax.run.task_model import DEMO_ENCODER, TaskModel, random_classifier
from svt_jax.spectral import solvers
from svt_jax.training.step import TrainState, make_train_step

SVT = SVTConfig("soft_decay", dropout=0.0)
RNG = np.random.default_rng(0)
BATCH = {
    "input_ids": RNG.integers(5, 40, (8, 6)).astype(np.int32),
    "token_type_ids": np.zeros((8, 6), np.int32),
    "attention_mask": (np.arange(6) < RNG.integers(2, 7, (8, 1))).astype(np.int32),
    "labels": RNG.integers(0, 2, 8).astype(np.int32),
    "weights": np.array([1, 1, 1, 1, 1, 0, 0, 0], np.float32),
}


def classifier(svt=SVT, encoder=DEMO_ENCODER) -> Classifier:
    return random_classifier(encoder, svt, 2, dtype="float32", seed=0)


def stepped(batch, *, accumulate=1, svt=SVT, regression=False, clip=None, encoder=DEMO_ENCODER, **settings):
    """State and metrics after one step of plain gradient descent, so that parameters show the gradient."""
    model = classifier(svt, encoder)
    for name, value in settings.items():
        assert hasattr(model.encoder, name)
        setattr(model.encoder, name, value)
    regression_task = custom_task(["text"], "score", None)
    whole = TaskModel.of(
        model, make_mesh(data=1, devices=jax.devices()[:1]), task=regression_task if regression else None
    )
    optimizer = optax.sgd(1.0) if clip is None else optax.chain(optax.clip_by_global_norm(clip), optax.sgd(1.0))
    step = make_train_step(whole, optimizer, accumulate=accumulate)
    state = TrainState(whole.params, whole.constants, optimizer.init(whole.params))
    return jax.jit(step)(state, batch, np.int32(0), np.int32(0))


def arrays(state):
    return [np.asarray(leaf) for leaf in jax.tree.leaves((state.params, state.constants))]


@pytest.fixture(scope="module")
def whole():
    return stepped(BATCH)


def assert_close(first, second, tolerance=1e-5):
    for ours, theirs in zip(arrays(first), arrays(second), strict=True):
        np.testing.assert_allclose(ours, theirs, atol=tolerance)


def test_accumulation_equals_the_large_batch(whole):
    state, metrics = stepped(BATCH, accumulate=4)
    assert_close(state, whole[0])
    assert float(metrics["loss"]) == pytest.approx(float(whole[1]["loss"]), rel=1e-5)
    assert float(metrics["grad_norm"]) == pytest.approx(float(whole[1]["grad_norm"]), rel=1e-4)


@pytest.mark.slow
def test_it_is_the_whole_gradient_that_is_clipped():
    """Clipping each micro-batch would make the sum of four longer, or different."""
    whole, metrics = stepped(BATCH, clip=0.05)
    assert float(metrics["grad_norm"]) > 0.1  # before clipping
    parts, _ = stepped(BATCH, accumulate=4, clip=0.05)
    assert_close(parts, whole, 1e-6)
    before = nnx.state(classifier(), nnx.Param)
    moved = [
        np.asarray(a) - np.asarray(b)
        for a, b in zip(jax.tree.leaves(parts.params), jax.tree.leaves(before), strict=True)
    ]
    assert np.sqrt(sum(np.sum(m**2) for m in moved)) == pytest.approx(0.05, rel=1e-3)


@pytest.mark.slow
def test_rematerialisation_changes_no_gradient_with_dropout_on():
    encoder = dataclasses.replace(
        DEMO_ENCODER, num_hidden_layers=1, hidden_dropout_prob=0.2, attention_probs_dropout_prob=0.2
    )
    kept, metrics = stepped(BATCH, encoder=encoder, svt=SVTConfig("soft_decay", dropout=0.2))
    again, their_metrics = stepped(BATCH, encoder=encoder, svt=SVTConfig("soft_decay", dropout=0.2), remat=True)
    assert float(their_metrics["loss"]) == pytest.approx(float(metrics["loss"]), rel=1e-6)
    assert_close(again, kept, 1e-6)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("changes", "remat"),
    [
        ({}, False),
        ({}, True),
        ({"model_type": "albert", "embedding_size": 16}, False),
        ({"model_type": "albert", "num_hidden_groups": 2}, False),
    ],
)
def test_a_loop_over_layers_changes_no_gradient_with_dropout_on(changes, remat):
    """Two layers in one loop, and a third with an SVT."""
    sizes = {
        "num_hidden_layers": 3,
        "hidden_size": 16,
        "num_attention_heads": 2,
        "intermediate_size": 32,
        "vocab_size": 64,
    }
    dropouts = {"hidden_dropout_prob": 0.2, "attention_probs_dropout_prob": 0.2}
    encoder = EncoderConfig.from_hf({"model_type": "bert", "hidden_act": "gelu", **sizes, **dropouts, **changes})
    svt = SVTConfig("soft_decay", dropout=0.2)
    one_by_one, metrics = stepped(BATCH, encoder=encoder, svt=svt)
    looped, their_metrics = stepped(BATCH, encoder=encoder, svt=svt, scan_layers=True, remat=remat)
    assert float(their_metrics["loss"]) == pytest.approx(float(metrics["loss"]), rel=1e-6)
    assert_close(looped, one_by_one, 1e-6)


def test_rows_of_weight_zero_count_for_nothing(whole):
    changed = {name: values.copy() for name, values in BATCH.items()}
    changed["input_ids"][5:] = 7
    changed["labels"][5:] = 1 - changed["labels"][5:]
    assert_close(stepped(changed)[0], whole[0])


def test_loss_is_the_mean_over_the_real_rows(whole):
    logits = classifier()(BATCH["input_ids"], BATCH["attention_mask"], BATCH["token_type_ids"])
    losses = optax.softmax_cross_entropy_with_integer_labels(logits, BATCH["labels"])
    assert float(whole[1]["loss"]) == pytest.approx(float(losses[:5].mean()), rel=1e-5)


@pytest.mark.slow
def test_a_function_that_is_not_learnable_stays(whole):
    fixed, _ = stepped(BATCH, svt=SVTConfig("soft_decay", dropout=0.0, learnable=False))
    kept = nnx.to_flat_state(fixed.constants)
    before = nnx.to_flat_state(nnx.split(classifier(SVTConfig("soft_decay", learnable=False)), nnx.Param, ...)[2])
    assert len(kept) == 1
    assert np.array_equal(kept[0][1].get_value(), before[0][1].get_value())
    alpha = next(v.get_value() for k, v in nnx.to_flat_state(whole[0].params) if "svt" in k)
    assert not np.array_equal(alpha, kept[0][1].get_value())


def test_failed_decompositions_of_real_rows_are_counted(monkeypatch):
    original = solvers.per_matrix
    fail = lambda f, x, one=None: jax.tree.map(lambda leaf: leaf.at[np.array([1, 3, 6])].set(np.nan), original(f, x))
    monkeypatch.setattr(solvers, "per_matrix", fail)
    shorter = {name: values[:, :5] if values.ndim == 2 else values for name, values in BATCH.items()}  # traced again
    state, metrics = stepped(shorter)
    assert int(metrics["svt_failures"]) == 2  # row 6 weighs nothing
    assert all(np.isfinite(array).all() for array in arrays(state))


def test_squared_norms_follow_the_order_of_the_leaves(whole):
    params = nnx.state(classifier(), nnx.Param)
    moved = [
        np.sum((np.asarray(a) - np.asarray(b)) ** 2)
        for a, b in zip(jax.tree.leaves(params), jax.tree.leaves(whole[0].params), strict=True)
    ]
    np.testing.assert_allclose(whole[1]["squared_norms"], moved, rtol=1e-2, atol=1e-9)
