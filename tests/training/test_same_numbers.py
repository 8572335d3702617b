"""A run gives the same numbers on every mesh: loss curve, parameters, scores, with dropout and SVT on."""

import dataclasses
import functools

import jax
import numpy as np
import pytest
from flax import nnx

from svt_jax.data.batching import TrainingBatches
from svt_jax.evaluation.glue import Evaluator
from svt_jax.mesh import batch_sharding, make_mesh, shard_step, state_shardings
from svt_jax.models.config import SVTConfig
from svt_jax.run.config import MeshConfig, ModelConfig, TrainConfig
from svt_jax.training import assemble
from svt_jax.training.optimizer import make_optimizer, named_paths
from svt_jax.training.step import TrainState, make_train_step, split_model
from svt_jax.training.used_embeddings import trained_part, trained_rows

# Weights larger than usual, so that the scores are not those of a constant answer.
ENCODER = dataclasses.replace(
    assemble.DEMO_ENCODER,
    vocab_size=4 * assemble.DEMO_ENCODER.vocab_size,  # most words are not in use, as in a real task
    hidden_size=32,
    intermediate_size=64,
    hidden_dropout_prob=0.1,
    attention_probs_dropout_prob=0.1,
    classifier_dropout=0.1,
    initializer_range=0.2,
)
ONE = MeshConfig(data=1)
STEPS = 20


@functools.cache
def run(mesh_config: MeshConfig, function: str, *, scan_layers: bool = False):
    """Losses [20], the parameters before and after, logits of the validation split and its score."""
    config = TrainConfig(model=ModelConfig(scan_layers=scan_layers), svt=SVTConfig(function), mesh=mesh_config)
    mesh = make_mesh(mesh_config, jax.devices()[: mesh_config.data * mesh_config.fsdp * mesh_config.tensor])
    task = assemble.find_task(config.data)
    model = assemble.Pretrained(assemble.open_model("demo").tokenizer, ENCODER, None)
    train, held_out = (
        assemble.load_tokens(task, config.data, model.tokenizer, ENCODER, split) for split in ("train", "validation")
    )
    batches = TrainingBatches(train, config.optim.batch_size, 0, [int(train.lengths.max())])
    graphdef, params, constants = split_model(assemble.make_classifier(config, model, task.num_labels, mesh))
    optimizer = make_optimizer(config.optim, STEPS)
    shardings = state_shardings(params, constants, optimizer, mesh)
    rows = trained_rows(train, ENCODER, config.optim)
    assert rows is not None
    step = shard_step(make_train_step(graphdef, optimizer, accumulate=1, regression=False, rows=rows), shardings, mesh)
    before = arrays(params)
    moments = jax.jit(lambda params: optimizer.init(trained_part(params, rows)), out_shardings=shardings.optimizer)(
        params
    )
    state = TrainState(params, constants, moments)
    losses = []
    with jax.set_mesh(mesh):
        for number, batch in zip(range(STEPS), batches.from_batch(0), strict=False):
            placed = jax.device_put({n: v for n, v in batch.items() if n != "index"}, batch_sharding(mesh))
            state, metrics = step(state, placed, np.int32(0), np.int32(number))
            losses.append(float(metrics["loss"]))
    evaluator = Evaluator(graphdef, task, held_out, 64, ENCODER.max_tokens, mesh)
    outcome = evaluator.logits(state.params, state.constants), evaluator.score(state.params, state.constants)
    return np.array(losses), before, arrays(state.params), *outcome


def names(function):
    shapes = nnx.eval_shape(
        lambda: assemble.random_classifier(ENCODER, SVTConfig(function), 2, dtype="float32", seed=0)
    )
    return named_paths(split_model(shapes)[1])


def arrays(tree):
    return [np.asarray(leaf) for leaf in jax.tree.leaves(tree)]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("mesh", "function", "scan_layers"),
    [
        (MeshConfig(data=8), "soft_decay", False),
        (MeshConfig(2, 2, 2), "soft_decay", False),
        (MeshConfig(data=1, fsdp=8), "soft_decay", False),
        (MeshConfig(data=1, tensor=4), "soft_decay", False),
        (MeshConfig(2, 2, 2), "centered_soft_decay", False),
        (MeshConfig(2, 2, 2), "none", True),
    ],
    ids=str,
)
def test_a_mesh_changes_no_number(mesh, function, scan_layers):
    losses, before, after, logits, score = run(ONE, function)
    their_losses, their_before, their_after, their_logits, their_score = run(mesh, function, scan_layers=scan_layers)
    np.testing.assert_allclose(their_losses, losses, rtol=0, atol=1e-5)
    for ours, theirs in zip(before, their_before, strict=True):
        np.testing.assert_array_equal(theirs, ours)  # the same random numbers, wherever they are drawn
    for name, ours, theirs in zip(names(function), after, their_after, strict=True):
        np.testing.assert_allclose(theirs, ours, rtol=0, atol=1e-5, err_msg=name)
    np.testing.assert_allclose(their_logits, logits, rtol=0, atol=1e-5)
    assert their_score == score
    assert 0 < score["accuracy"] < 1
    assert np.ptp(logits, axis=0).min() > 0.1  # answers differ between examples
    moved = max(np.abs(a - b).max() for a, b in zip(after, before, strict=True))
    assert moved > 1e-4  # ten times what is allowed
