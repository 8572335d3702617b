"""What bfloat16, rematerialisation and accumulation save, from the compiler's own figures on one device."""

import dataclasses
import functools

import jax
import pytest
from flax import nnx

from benchmarks.compiled import programs
from svt_jax.mesh import make_mesh
from svt_jax.models.svt_config import SVTConfig
from svt_jax.run.task_model import DEMO_ENCODER, random_classifier

ENCODER = dataclasses.replace(
    DEMO_ENCODER, num_hidden_layers=4, hidden_dropout_prob=0.1, attention_probs_dropout_prob=0.1
)


def training_step(*, batch=32, solver="gram", **settings):
    mesh = make_mesh(data=1, devices=jax.devices()[:1])
    svt = SVTConfig("soft_decay", solver=solver)
    return programs(ENCODER, svt, mesh, batch=batch, tokens=32, **settings)[0]


@functools.cache
def temporary_bytes(**settings) -> int:
    """Memory for 32 examples that a training step needs in addition to its state."""
    return training_step(**settings).compile().memory_analysis().temp_size_in_bytes


def kept_bytes(*, remat: bool) -> int:
    """Bytes that the forward pass of 32 examples keeps for the backward pass, in addition to the parameters."""
    make = functools.partial(random_classifier, ENCODER, SVTConfig("soft_decay"), 2, dtype="float32", seed=0)
    graphdef, params, constants = nnx.split(nnx.eval_shape(make), nnx.Param, ...)
    whole = jax.ShapeDtypeStruct((32, 32), "int32")

    def backward(params, constants, ids):
        def loss(params):
            model = nnx.merge(graphdef, params, constants)
            model.encoder.remat = remat
            return model(ids, rngs=nnx.Rngs(dropout=0)).sum()

        return jax.vjp(loss, params)[1]

    kept = jax.tree.leaves(jax.eval_shape(backward, params, constants, whole))
    size = lambda leaves: sum(leaf.size * leaf.dtype.itemsize for leaf in leaves)
    return size(kept) - size(jax.tree.leaves(params))


def test_rematerialisation_keeps_less_than_half():
    # We do not read the compiled program: XLA for CPUs drops the barriers that separate the second computation from the
    # first, finds that they are equal, and keeps everything. Other platforms keep the barriers.
    assert kept_bytes(remat=True) < 0.5 * kept_bytes(remat=False)


@pytest.mark.slow
def test_accumulation_of_four_takes_a_third_of_the_memory():
    assert temporary_bytes(batch=8, accumulate=4) < temporary_bytes() / 3


@pytest.mark.slow
@pytest.mark.parametrize("solver", ["svd", "gram"])
def test_rematerialisation_decomposes_once(solver):
    calls = [training_step(solver=solver, remat=remat).lower().as_text().count("@lapack_s") for remat in (False, True)]
    assert calls[0] == calls[1] > 0


def test_a_bfloat16_step_multiplies_in_bfloat16_and_keeps_float32_state():
    step = training_step(dtype="bfloat16")
    text = step.lower().as_text()
    products = [line for line in text.splitlines() if "stablehlo.dot_general" in line]
    products = [line for line in products if not line.endswith("-> tensor<4x4xf32>")]  # squared norms of gradients
    half = [line for line in products if "xbf16>" in line.split(":")[-1]]
    assert len(half) > 0.7 * len(products)  # all but the sums over rows, the pooler's head and the transformation
    assert {leaf.dtype.name for leaf in jax.tree.leaves(step.arguments[0].params)} == {"float32"}
