"""The encoder under transforms and modes of JAX: per-example gradients, ensembles, meshes, strict promotion, no input."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny
from flax import nnx
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

from svt_jax.models.svt_config import SVTConfig

IDS, MASK = np.tile(tiny.IDS, (4, 1)), np.tile(tiny.MASK, (4, 1))
MODEL = tiny.encoder("bert", SVTConfig("soft_decay"), num_hidden_layers=1)
GRAPHDEF, PARAMS = nnx.split(MODEL)


def loss(params, ids, mask, graphdef=GRAPHDEF, key=None):
    rngs = None if key is None else nnx.Rngs(dropout=key)
    out = nnx.merge(graphdef, params)(ids, mask, rngs=rngs)
    return jnp.sum(out.last_hidden_state.astype(jnp.float32)[:, 0] ** 3) + jnp.sum(out.pooled.astype(jnp.float32))


gradient = jax.jit(jax.grad(loss))


@functools.cache
def expected():
    return gradient(PARAMS, IDS, MASK)


def assert_equal(ours, theirs):
    for a, b in zip(jax.tree.leaves(ours), jax.tree.leaves(theirs), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-3)


def test_gradients_of_each_example_add_up_to_that_of_the_batch():
    each = jax.jit(jax.vmap(jax.grad(loss), (None, 0, 0)))(PARAMS, IDS[:, None], MASK[:, None])
    assert_equal(jax.tree.map(lambda leaf: leaf.sum(0), each), expected())


@pytest.mark.slow
def test_an_ensemble_maps_over_the_parameters():
    pair = jax.tree.map(lambda leaf: jnp.stack([leaf, 1.1 * leaf]), PARAMS)
    both = jax.jit(jax.vmap(jax.grad(loss), (0, None, None)))(pair, IDS, MASK)
    assert_equal(jax.tree.map(lambda leaf: leaf[0], both), expected())
    assert_equal(jax.tree.map(lambda leaf: leaf[1], both), gradient(jax.tree.map(lambda p: 1.1 * p, PARAMS), IDS, MASK))


@pytest.mark.slow
def test_forward_mode_is_the_gradient_and_remat_changes_nothing():
    tangent = jax.tree.map(jnp.cos, PARAMS)
    _, forward = jax.jit(lambda p, t: jax.jvp(lambda p: loss(p, IDS, MASK), (p,), (t,)))(PARAMS, tangent)
    pairs = zip(jax.tree.leaves(expected()), jax.tree.leaves(tangent), strict=True)
    np.testing.assert_allclose(forward, sum(jnp.vdot(a, b) for a, b in pairs), rtol=1e-3)
    assert_equal(jax.jit(jax.grad(jax.checkpoint(loss)))(PARAMS, IDS, MASK), expected())


@pytest.mark.parametrize("kind", [AxisType.Explicit, AxisType.Auto], ids=["explicit", "auto"])
def test_a_mesh_of_the_users_own_divides_the_batch(kind):
    mesh = jax.make_mesh((8,), ("examples",), axis_types=(kind,))
    ids, mask = jax.device_put((IDS, MASK), NamedSharding(mesh, P("examples")))
    params = jax.device_put(PARAMS, NamedSharding(mesh, P()))
    compiled = gradient.lower(params, ids, mask).compile()
    assert_equal(compiled(params, ids, mask), expected())
    assert not [word for word in ("all-gather", "all-to-all", "permute") if word + "(" in compiled.as_text()]


@pytest.mark.slow
def test_dropout_on_explicit_axes_draws_what_it_draws_without_and_moves_on():
    mesh = jax.make_mesh((8,), ("examples",))
    divided = jax.device_put(IDS, NamedSharding(mesh, P("examples")))

    @jax.jit
    def two_calls(params, ids):
        rngs, model = nnx.Rngs(dropout=3), nnx.merge(GRAPHDEF, params)
        return [model(ids, rngs=rngs).last_hidden_state for _ in range(2)]

    ours, theirs = two_calls(PARAMS, divided), two_calls(PARAMS, IDS)
    for a, b in zip(ours, theirs, strict=True):
        np.testing.assert_allclose(a, b, atol=1e-4)
    assert not np.allclose(ours[0], ours[1], atol=1e-2)


@pytest.mark.slow
@pytest.mark.parametrize("family", tiny.DIFFERENT)
def test_strict_dtype_and_rank_promotion_raise_nothing(family):
    for dtype in (jnp.bfloat16, jnp.float32):
        graphdef, params = nnx.split(tiny.encoder(family, SVTConfig("soft_decay"), dtype=dtype, num_hidden_layers=1))
        apply = lambda p, graphdef=graphdef: jnp.sum(
            nnx.merge(graphdef, p)(IDS, MASK, rngs=nnx.Rngs(dropout=0)).last_hidden_state
        )
        with jax.numpy_dtype_promotion("strict"), jax.numpy_rank_promotion("raise"):
            slopes = jax.jit(jax.grad(apply, allow_int=True))(params)
        assert all(np.isfinite(np.asarray(leaf, np.float32)).all() for leaf in jax.tree.leaves(slopes))


@pytest.mark.parametrize("shape", [(0, 5), (2, 0)], ids=str)
@pytest.mark.parametrize("family", ["bert", "roberta"])
def test_no_examples_and_no_tokens_give_no_states(family, shape):
    model = tiny.classifier(family, SVTConfig("soft_decay"), num_hidden_layers=1)
    run = jax.jit(lambda model, ids: (model.encoder(ids, jnp.ones_like(ids)), model(ids)))
    out, logits = run(model, jnp.zeros(shape, jnp.int32))
    assert out.last_hidden_state.shape == (*shape, 12)
    assert out.svt_failures.tolist() == [0] * shape[0]
    assert logits.shape == (shape[0], 3)
    assert np.isnan(logits).all()  # without tokens there is no first one


@pytest.mark.slow
def test_second_derivatives_are_right_without_an_svt_and_one_sentence_with_one():
    plain, params = nnx.split(tiny.encoder("bert", num_hidden_layers=1))
    slope = jax.jit(jax.grad(functools.partial(loss, graphdef=plain)))
    tangent = jax.tree.map(lambda leaf: 0.1 * jnp.cos(jnp.arange(leaf.size).reshape(leaf.shape)), params)
    second = jax.jit(lambda p, t: jax.jvp(lambda p: slope(p, IDS, MASK), (p,), (t,))[1])(params, tangent)
    move = lambda step: jax.tree.map(lambda p, t: p + step * t, params, tangent)
    difference = jax.tree.map(lambda a, b: (a - b) / 2e-3, slope(move(1e-3), IDS, MASK), slope(move(-1e-3), IDS, MASK))
    for a, b in zip(jax.tree.leaves(second), jax.tree.leaves(difference), strict=True):
        np.testing.assert_allclose(a, b, atol=0.02 * max(1.0, float(np.abs(b).max())))
    with pytest.raises(NotImplementedError, match="second derivative through a singular value decomposition; allowed"):
        jax.jvp(lambda p: gradient(p, IDS, MASK), (PARAMS,), (PARAMS,))
