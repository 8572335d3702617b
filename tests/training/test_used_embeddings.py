"""Training only the rows of the used words gives the same parameters as training the whole table."""

import dataclasses

import jax
import numpy as np
import pytest
from flax import nnx

from svt_jax.data.tokens import Tokens
from svt_jax.mesh import make_mesh
from svt_jax.models.svt_config import SVTConfig
from svt_jax.run.config import OptimConfig
from svt_jax.run.task_model import DEMO_ENCODER, TaskModel, random_classifier
from svt_jax.training.optimizer import make_optimizer
from svt_jax.training.step import TrainState, make_train_step
from svt_jax.training.used_embeddings import UsedEmbeddings, trained_part, used_embeddings

# As in RoBERTa: the padding token's number decides positions, and is not 0.
ENCODER = dataclasses.replace(
    DEMO_ENCODER,
    vocab_size=100,
    hidden_size=32,
    intermediate_size=64,
    num_hidden_layers=1,
    pad_token_id=2,
    positions_skip_padding=True,
    hidden_dropout_prob=0.1,
)
RNG = np.random.default_rng(0)
REAL = np.arange(6) < RNG.integers(2, 7, (8, 1))
IDS = np.where(REAL, RNG.integers(5, 40, (8, 6)), ENCODER.pad_token_id).astype(np.int32)
BATCH = {
    "token_type_ids": np.zeros((8, 6), np.int32),
    "attention_mask": REAL.astype(np.int32),
    "labels": RNG.integers(0, 2, 8).astype(np.int32),
    "weights": np.array([1, 1, 1, 1, 1, 0, 0, 0], np.float32),
}


def tokens(ids, pad_id=ENCODER.pad_token_id):
    return Tokens.of_padded(ids, np.zeros_like(ids), np.full(len(ids), ids.shape[-1]), None, pad_id)


ROWS = used_embeddings(tokens(IDS), ENCODER, OptimConfig())


def table(state: nnx.State) -> np.ndarray:
    return np.asarray(state["encoder"]["embeddings"]["word"]["embedding"].get_value())


def trained(rows: UsedEmbeddings | None, ids=IDS, *, steps=3, accumulate=1, **optim):
    """The parameters before and after some steps, the last step's metrics and the optimizer's state."""
    model = TaskModel.of(random_classifier(ENCODER, SVTConfig("soft_decay"), 2, dtype="float32", seed=0), make_mesh())
    params, constants = model.params, model.constants
    optimizer = make_optimizer(OptimConfig(learning_rate=0.01, schedule="constant", **optim), 10)
    step = jax.jit(make_train_step(model, optimizer, accumulate=accumulate, used=rows))
    state = TrainState(params, constants, optimizer.init(trained_part(params, rows)))
    for number in range(steps):
        state, metrics = step(state, {**BATCH, "input_ids": ids}, np.int32(0), np.int32(number))
    return params, state.params, metrics, state.optimizer


@pytest.mark.parametrize(
    "settings",
    [
        {"accumulate": 2, "grad_clip": 0.01},
        *(pytest.param(each, marks=pytest.mark.slow) for each in ({}, {"accumulate": 2})),
    ],
    ids=str,
)
def test_equals_training_of_the_whole_table(settings):
    assert ROWS is not None
    before, whole, metrics, moments = trained(None, **settings)
    _, ours, our_metrics, our_moments = trained(ROWS, **settings)
    for first, second in zip(jax.tree.leaves(ours), jax.tree.leaves(whole), strict=True):
        np.testing.assert_allclose(first, second, rtol=0, atol=1e-6)
    for name in ("loss", "grad_norm"):
        assert float(our_metrics[name]) == pytest.approx(float(metrics[name]), rel=1e-6)
    moved = np.any(table(ours) != table(before), axis=1)
    assert set(np.flatnonzero(moved)) == set(np.unique(IDS[REAL][: int(REAL[:5].sum())]))
    sizes = [leaf.shape[0] for leaf in jax.tree.leaves(moments) if leaf.shape[:1] == (100,)]
    assert len(sizes) == 2  # both moments of the whole table
    assert sum(leaf.shape == (len(ROWS.rows), 32) for leaf in jax.tree.leaves(our_moments)) == 2


@pytest.mark.slow
def test_a_token_without_a_row_is_not_a_number():
    """It never takes another word's row, which would be a silent wrong result."""
    assert ROWS is not None
    ids = IDS.copy()
    ids[0, 0] = 99
    assert np.isnan(trained(ROWS, ids, steps=1)[2]["loss"])


@pytest.mark.parametrize(
    ("ids", "optim"),
    [(IDS, OptimConfig(weight_decay=0.01)), (np.arange(60)[None], OptimConfig())],
    ids=["decay", "most words"],
)
def test_the_whole_table_is_trained_where_all_of_it_changes_or_most_is_used(ids, optim):
    assert used_embeddings(tokens(ids), ENCODER, optim) is None


def test_padding_has_a_row_though_no_example_is_padded():
    rows = used_embeddings(tokens(np.array([[7, 9], [9, 30]]), pad_id=50), ENCODER, OptimConfig())
    assert rows.rows.tolist() == [0, 1, 2, 7, 9, 30, 50]
