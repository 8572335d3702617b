"""The solver without an eigenproblem: values and gradients against float64, odd input, and what its program holds."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings

import svt_jax
from svt_jax.spectral.shifted import _SQUARINGS, _leading
from svt_jax.spectral.transform import svt_and_failures
from tests.spectral.test_fuzz import token_matrices, value_and_gradients

L, D = 24, 48
CENTRED = svt_jax.SoftDecay(alpha=-0.6, centered=True)
SPECTRA = {
    "exponential": np.geomspace(1.0, 1e-6, L),
    "linear": np.linspace(1.0, 1e-3, L),
    "ties": np.concatenate([[1.0], np.full(8, 0.5), np.geomspace(0.5, 1e-4, L - 9)]),
    "rank 1": np.eye(L)[0],
}


def matrix(values, dtype=np.float64):
    rng = np.random.default_rng(0)
    u, _ = np.linalg.qr(rng.normal(size=(L, L)))
    v, _ = np.linalg.qr(rng.normal(size=(D, L)))
    return jnp.asarray((u * values) @ v.T, dtype)


@functools.partial(jax.jit, static_argnames="solver")
def both(x, function, solver):
    weights = jnp.cos(jnp.arange(x.size, dtype=x.dtype)).reshape(x.shape)
    out, vjp = jax.vjp(lambda x, f: svt_jax.svt(x, f, solver=solver), x, function)
    return out, *vjp(weights)


def relative(ours, exact):
    return float(np.linalg.norm(np.asarray(ours, np.float64) - exact) / np.linalg.norm(exact))


@pytest.mark.parametrize(
    ("name", "scale"), [(name, 1.0) for name in SPECTRA] + [("exponential", 1e-11), ("exponential", 1e16)]
)
def test_value_and_gradients_are_those_of_float64(name, scale):
    """The gradient in X and in the parameter, also with equal rows and rows of zeros; LogShift is the same at all scales.

    With these scales all singular values lie between 1e-18 and 1e18.
    """
    function = svt_jax.SoftDecay(alpha=-0.2, centered=True) if scale == 1.0 else svt_jax.LogShift(gamma=10.0)
    x = matrix(SPECTRA[name] * 50.0, np.float32)
    x = jnp.concatenate([x[:10], x[9:10], jnp.zeros((3, D), np.float32), x[10:]]) * scale
    with jax.enable_x64(True):
        exact = jax.tree.map(np.asarray, both(x.astype(np.float64), jax.tree.map(np.float64, function), "svd"))
    out, slope, slope_function = both(x, function, "shifted")
    assert relative(out, exact[0]) <= 1e-4
    assert relative(slope, exact[1]) <= 1e-3
    terms = np.sum(np.abs(exact[0] * np.cos(np.arange(x.size)).reshape(x.shape)))  # they cancel in the parameter's
    (parameter,), (ours,), (theirs,) = (jax.tree.leaves(each) for each in (function, slope_function, exact[2]))
    assert abs(float(ours) - float(theirs)) * abs(parameter) <= 1e-4 * terms


def test_a_matrix_that_it_would_miss_by_more_than_its_tolerance_passes_and_counts_as_a_failure():
    x = matrix(SPECTRA["exponential"], np.float32)
    x = jnp.stack([x * 1e4, x])

    @jax.jit
    def run(x, alpha):
        apply = lambda x, alpha: svt_and_failures(x, svt_jax.SoftDecay(alpha=alpha, centered=True), solver="shifted")
        out, vjp, failed = jax.vjp(apply, x, alpha, has_aux=True)
        return out, failed, *vjp(jnp.ones_like(out))

    out, failed, slope, slope_alpha = run(x, -0.8)
    assert failed.tolist() == [True, False]
    np.testing.assert_array_equal(out[0], x[0])
    np.testing.assert_array_equal(slope[0], 1.0)
    assert np.isfinite(slope).all()
    assert np.isfinite(slope_alpha)
    exact = svt_jax.svt(x[1], svt_jax.SoftDecay(alpha=-0.8, centered=True), solver="svd")
    assert relative(out[1], np.asarray(exact, np.float64)) <= 1e-4


@pytest.mark.parametrize("gap", [1e-1, 1e-2, 2.4e-4, 1e-6, 0.0])
def test_the_largest_singular_value_is_kept_whatever_the_second(gap):
    """2.4e-4 is the gap of sigma^2 at which the iteration errs most, by its docstring's share."""
    values = np.concatenate([[1.0, np.sqrt(1.0 - gap)], np.geomspace(0.5, 1e-3, L - 2)])
    x = matrix(values, np.float32)
    gram = x @ x.T
    vector = _leading(gram)
    assert 1.0 - float(vector @ gram @ vector) <= 1.0 / (np.e * 2 ** (_SQUARINGS + 1)) + 3e-6
    out = svt_jax.svt(x, CENTRED, solver="shifted")
    assert np.linalg.norm(out, 2) == pytest.approx(1.0, abs=1e-4)


@pytest.mark.slow
@settings(max_examples=60, deadline=None, derandomize=True, database=None)
@given(token_matrices())
def test_every_finite_input_has_a_finite_result(inputs):
    x, mask = inputs
    everything = value_and_gradients(x, mask, CENTRED, "shifted")
    for leaf in jax.tree.leaves(everything):
        assert np.all(np.isfinite(leaf)), (x, mask, everything)
    assert np.all(np.asarray(everything[0])[~mask] == 0)


@pytest.mark.parametrize("tokens", [1, 12, 60])
def test_padding_bfloat16_and_more_tokens_than_features(tokens):
    """A mask has the effect of leaving the tokens out; bfloat16 is the rounded result of the rounded input."""
    x = jnp.asarray(np.random.default_rng(2).normal(size=(2, tokens, 16)) + 1.0, jnp.bfloat16)
    mask = jnp.arange(tokens) < jnp.array([[tokens], [(tokens + 1) // 2]])
    out = svt_jax.svt(x, CENTRED, mask=mask, solver="shifted")
    assert out.dtype == jnp.bfloat16
    for one, rows in zip(out, np.sum(mask, axis=-1), strict=True):
        np.testing.assert_array_equal(one[rows:].astype(np.float32), 0.0)
    half = (tokens + 1) // 2
    alone = svt_jax.svt(x[1, :half].astype(np.float32), CENTRED, solver="svd")
    np.testing.assert_allclose(out[1, :half].astype(np.float32), alone, rtol=2**-7, atol=1e-3)


@pytest.mark.parametrize("function", [svt_jax.SoftDecay(), svt_jax.Average(), svt_jax.ContraNorm()], ids=repr)
def test_a_function_that_it_cannot_serve_is_an_error(function):
    with pytest.raises(ValueError, match=r"solver 'shifted'.*Use"):
        svt_jax.svt(jnp.ones((3, 4)), function, solver="shifted")


def test_it_is_an_error_in_a_config_too():
    with pytest.raises(ValueError, match="solver 'shifted' and SoftDecay"):
        svt_jax.SVTConfig("soft_decay", solver="shifted")
    svt_jax.SVTConfig("centered_soft_decay", solver="shifted")


@pytest.mark.parametrize("platform", ["cpu", "tpu", "cuda"])
def test_its_program_holds_no_eigenproblem_and_does_not_grow_with_the_batch(platform):
    loss = lambda x: jnp.sum(svt_jax.svt(x, CENTRED, solver="shifted") ** 2)

    def program(batch):
        exported = jax.export.export(jax.jit(jax.grad(loss)), platforms=[platform])(jnp.ones((batch, 16, 32)))
        return exported.mlir_module()

    small, large = program(4), program(32)
    for word in ("eigh", "syevd", "gesdd", "svd", "householder", "geqrf", "orgqr", "Qr", "Eigh"):
        assert word not in large
    assert large.count(" = ") <= small.count(" = ") + 20
