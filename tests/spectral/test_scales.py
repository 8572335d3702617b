"""Singular values from 1e-18 to 1e18 in float32: values and derivatives against closed forms in float64."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import svt_jax

SHARES = np.array([1.0, 0.7, 1e-2, 1e-5])
SCALES = [10.0**k for k in range(-18, 19, 3)] + [2e7, 8e7]
ALPHAS = [-0.05, -0.2, -0.6, -0.9, -0.99]


def closed_form(sigma, alpha, centered):
    """phi; dphi/dsigma of one value with the largest held fixed; dphi/dalpha, and the size of its cancelling terms."""
    largest = sigma[0]
    shift = 0.0 if centered else alpha
    width = 1.0 - alpha**2 if centered else 1.0
    u = -alpha * (sigma + shift) / width
    f = np.log1p(u)  # -alpha f: the factor cancels
    slope = -alpha / width / (1.0 + u)
    du = -(sigma + shift) / width + (-2 * alpha**2 * sigma / width**2 if centered else -alpha)
    df = du / (1.0 + u)
    phi = f / f[0] * largest
    parts = df / f[0] * largest, -f * df[0] / f[0] ** 2 * largest
    return phi, slope / f[0] * largest, sum(parts), sum(np.abs(part) for part in parts)


def ours(make, sigma, alpha):
    sigma = jnp.asarray(sigma, jnp.float32)
    phi = lambda values, alpha: make(alpha)(values, sigma)
    one = jnp.ones_like(sigma)
    slope = jax.jvp(lambda values: phi(values, alpha), (sigma,), (one,))[1]
    return phi(sigma, alpha), slope, jax.jvp(lambda a: phi(sigma, a), (alpha,), (jnp.float32(1.0),))[1]


MAKERS = {
    "published": lambda alpha: svt_jax.SoftDecay(alpha=alpha),
    "centered": lambda alpha: svt_jax.SoftDecay(alpha=alpha, centered=True),
    "exponential": lambda alpha: svt_jax.SoftExponential(alpha=alpha),
}


@pytest.mark.parametrize("name", MAKERS)
def test_soft_decay_is_its_formula_with_its_derivatives_at_every_scale(name):
    compute = jax.jit(lambda sigma, alpha: ours(MAKERS[name], sigma, alpha))
    for alpha in ALPHAS:
        for scale in SCALES:
            sigma = (SHARES * scale).astype(np.float32)
            exact = np.float64(np.float32(alpha))
            phi, slope, dalpha, terms = closed_form(sigma.astype(np.float64), exact, name == "centered")
            got = [np.asarray(part, np.float64) for part in compute(sigma, jnp.float32(alpha))]
            where = f"alpha {alpha}, scale {scale}"
            np.testing.assert_allclose(got[0][0], sigma[0], rtol=1e-6, err_msg=where)
            np.testing.assert_allclose(got[0], phi, rtol=3e-5, err_msg=where)
            np.testing.assert_allclose(got[1], slope, rtol=3e-5, err_msg=where)
            assert np.all(np.abs(got[2] - dalpha) <= 3e-5 * (terms + np.abs(phi))), where


@pytest.mark.parametrize("solver", ["svd", "gram", "gram64"])
@pytest.mark.parametrize("scale", [1e-15, 2e7, 1e15])
def test_the_transformation_keeps_the_largest_and_its_derivative_at_far_scales(scale, solver):
    function = svt_jax.SoftDecay(alpha=-0.9, centered=True)
    rng = np.random.default_rng(0)
    x = (scale * rng.normal(size=(4, 6))).astype(np.float32)
    weights = rng.normal(size=x.shape)
    run = lambda x, solver: jax.jit(
        jax.value_and_grad(lambda x: jnp.vdot(svt_jax.svt(x, function, solver=solver), jnp.asarray(weights, x.dtype)))
    )(x)
    with jax.enable_x64(True):
        value, slope = run(x.astype(np.float64), "svd")
    got_value, got_slope = run(x, solver)
    np.testing.assert_allclose(got_value, value, rtol=1e-3, atol=1e-4 * scale)
    np.testing.assert_allclose(got_slope, slope, rtol=1e-2, atol=1e-3)
    largest = lambda x: np.linalg.norm(np.asarray(x, np.float64), 2)
    np.testing.assert_allclose(largest(svt_jax.svt(x, function, solver=solver)), largest(x), rtol=1e-5)


@pytest.mark.parametrize(
    "function",
    [
        *(make(-0.3) for make in MAKERS.values()),
        svt_jax.SoftExponential(alpha=0.3),
        svt_jax.LogShift(),
    ],
    ids=repr,
)
def test_near_zero_a_function_grows_in_proportion_and_has_the_derivative_of_that(function):
    """So phi'(sigma) sigma = phi(sigma) in the limit (Euler), also where the square of sigma underflows."""
    for scale in (1e-17, 6e-20, 1e-22, 1e-30):
        sigma = jnp.asarray(SHARES * scale, jnp.float32)
        phi, along = jax.jvp(lambda sigma: function(sigma, sigma), (sigma,), (sigma,))
        np.testing.assert_allclose(along, phi, rtol=1e-5, atol=1e-6 * scale, err_msg=f"scale {scale}")
