"""A run returns the same numbers on every mesh: loss curve, parameters, scores, with dropout and SVT on."""

import dataclasses
import functools

import jax
import numpy as np
import pytest
from flax import nnx

from svt_jax.data.batching import TrainingBatches
from svt_jax.data.layouts import packed
from svt_jax.data.packing import choose_shape, random_batches
from svt_jax.data.tokenizer import demo_tokenizer
from svt_jax.evaluation.glue import Evaluator
from svt_jax.mesh import batch_sharding, make_mesh
from svt_jax.models.config import EncoderConfig
from svt_jax.models.svt_config import SVTConfig
from svt_jax.run.config import MeshConfig, ModelConfig, TrainConfig
from svt_jax.run.task_data import find_task
from svt_jax.run.task_model import DEMO_ENCODER, TaskModel, draw_classifier, random_classifier
from svt_jax.training.optimizer import make_optimizer, named_paths
from svt_jax.training.step import TrainState, jit_step, state_shardings
from svt_jax.training.used_embeddings import trained_part, used_embeddings

# Weights are larger than usual, so that the answers are not constant.
ENCODER = dataclasses.replace(
    DEMO_ENCODER,
    vocab_size=4 * DEMO_ENCODER.vocab_size,  # most words are unused, as in a real task
    hidden_size=32,
    intermediate_size=64,
    hidden_dropout_prob=0.1,
    attention_probs_dropout_prob=0.1,
    classifier_dropout=0.1,
    initializer_range=0.2,
)
NEWER = {  # windows are narrower than rows, so that attention goes block by block
    "modernbert": {"embedding_dropout": 0.1, "attention_dropout": 0.1, "mlp_dropout": 0.1, "local_attention": 8},
    "nomic_bert": {"hidden_dropout_prob": 0.1, "attention_probs_dropout_prob": 0.1},
}
ENCODERS = {
    "bert": ENCODER,
    **{
        family: EncoderConfig.from_hf(
            {
                "model_type": family,
                **{name: getattr(ENCODER, name) for name in ("vocab_size", "hidden_size", "intermediate_size")},
                "num_hidden_layers": 2,
                "num_attention_heads": 4,
                "pad_token_id": 0,
                "initializer_range": 0.2,
                **own,
            }
        )
        for family, own in NEWER.items()
    },
}
SVT = {
    **{name: SVTConfig(name) for name in ("none", "soft_decay")},
    "gfsa": SVTConfig("gfsa", site="attention_map", layers="all", params={"k": 4, "w_0": 0.05}),
    "neutreno": SVTConfig("neutreno", site="value", layers="all", params={"scale": 0.4}),
    "contra_norm": SVTConfig("contra_norm", site="attention", placement="norm_input", layers="all"),
    "output": SVTConfig("soft_decay", placement="output"),
    "i_star": SVTConfig("i_star", site="loss", layers="all", params={"weight": 1.0}),
}
ONE, FSDP, TENSOR = MeshConfig(data=1), MeshConfig(data=1, fsdp=8), MeshConfig(data=1, tensor=4)
STEPS = 20


@functools.cache
def run(mesh_config: MeshConfig, function: str, *, scan_layers: bool = False, family: str = "bert"):
    """Losses [20], the parameters before and after, the validation split's logits, and its score."""
    config = TrainConfig(model=ModelConfig(scan_layers=scan_layers), svt=SVT[function], mesh=mesh_config)
    mesh = make_mesh(
        **dataclasses.asdict(mesh_config),
        devices=jax.devices()[: mesh_config.data * mesh_config.fsdp * mesh_config.tensor],
    )
    task = find_task(config.data)
    classifier = draw_classifier(ENCODERS[family], config, task.num_labels, mesh)
    model = TaskModel.of(classifier, mesh, task=task, data=config.data, tokenizer=demo_tokenizer())
    train, held_out = (model.tokens(split) for split in ("train", "validation"))
    # groups decide what shares a row, and so the last digits; one value for all meshes
    shape = choose_shape(train.lengths, config.optim.batch_size, groups=8)
    plan = packed(train, shape, batch_sharding(mesh))
    batches = TrainingBatches(100, lambda epoch: random_batches(train.lengths, shape, 0, epoch), plan.collate)
    optimizer = make_optimizer(config.optim, STEPS)
    shardings = state_shardings(model, optimizer)
    rows = used_embeddings(train, ENCODERS[family], config.optim)
    assert rows is not None
    step = jit_step(model, optimizer, shardings, used=rows, static=plan.static)
    before = arrays(model.params)
    init = jax.jit(lambda params: optimizer.init(trained_part(params, rows)), out_shardings=shardings.optimizer)
    state = TrainState(model.params, model.constants, init(model.params))
    losses = []
    with jax.set_mesh(mesh):
        for number, batch in zip(range(STEPS), batches.from_batch(0), strict=False):
            placed = jax.device_put({n: v for n, v in batch.items() if n != "index"}, batch_sharding(mesh))
            state, metrics = step(state, placed, np.int32(0), np.int32(number))
            losses.append(float(metrics["loss"]))
    evaluator = Evaluator(model, held_out, 64)
    outcome = evaluator.logits(state), evaluator.score(state)
    return np.array(losses), before, arrays(state.params), *outcome


def names(function, family):
    shapes = nnx.eval_shape(lambda: random_classifier(ENCODERS[family], SVT[function], 2, dtype="float32", seed=0))
    return named_paths(nnx.state(shapes, nnx.Param))


def arrays(tree):
    return [np.asarray(leaf) for leaf in jax.tree.leaves(tree)]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("mesh", "function", "family"),
    [
        (MeshConfig(data=8), "soft_decay", "bert"),
        (MeshConfig(2, 2, 2), "soft_decay", "bert"),
        (FSDP, "soft_decay", "bert"),
        (TENSOR, "soft_decay", "bert"),
        (MeshConfig(2, 2, 2), "none", "bert"),
        *((MeshConfig(2, 2, 2), name, "bert") for name in ("gfsa", "neutreno", "contra_norm", "i_star")),
        (FSDP, "output", "modernbert"),
        (TENSOR, "output", "nomic_bert"),
    ],
    ids=str,
)
def test_a_mesh_changes_no_number(mesh, function, family):
    scan_layers = function == "none"
    losses, before, after, logits, score = run(ONE, function, family=family)
    their_losses, their_before, their_after, their_logits, their_score = run(
        mesh, function, scan_layers=scan_layers, family=family
    )
    np.testing.assert_allclose(their_losses, losses, rtol=0, atol=1e-5)
    for ours, theirs in zip(before, their_before, strict=True):
        np.testing.assert_array_equal(theirs, ours)  # the same random numbers on any mesh
    for name, ours, theirs in zip(names(function, family), after, their_after, strict=True):
        np.testing.assert_allclose(theirs, ours, rtol=0, atol=1e-5, err_msg=name)
    np.testing.assert_allclose(their_logits, logits, rtol=0, atol=1e-5)
    assert their_score == score
    assert 0 < score["accuracy"] < 1
    assert np.ptp(logits, axis=0).min() > 0.1  # answers differ between examples
    moved = max(np.abs(a - b).max() for a, b in zip(after, before, strict=True))
    assert moved > 1e-4  # ten times the tolerance
