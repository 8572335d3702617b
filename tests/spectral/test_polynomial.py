"""The solver without a decomposition: its error bound, its derivative, its cost."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import svt_jax
from svt_jax.spectral import polynomial
from svt_jax.spectral.polynomial import DEGREE, TOLERANCE, _interpolate, _leading, error_bound, transform_by_products
from svt_jax.spectral.transform import svt_and_failures

pytestmark = pytest.mark.slow  # an experiment that no default uses

L, D = 48, 96
SPECTRA = {
    "exponential": np.geomspace(1.0, 1e-5, L),
    "linear": np.linspace(1.0, 1e-3, L),
    "nearly tied on top": np.concatenate([np.ones(3), np.full(5, 0.99), np.geomspace(0.5, 1e-4, L - 8)]),
    "rank 1": np.eye(L)[0],
}


def matrix(values, dtype=np.float64):
    rng = np.random.default_rng(0)
    u, _ = np.linalg.qr(rng.normal(size=(L, L)))
    v, _ = np.linalg.qr(rng.normal(size=(D, L)))
    return jnp.asarray((u * values) @ v.T, dtype)


@pytest.fixture
def x64():
    with jax.enable_x64(True):
        yield


@pytest.mark.parametrize(("alpha", "gamma", "degree"), [(-0.2, 5, 15), (-0.2, 20, 63), (-0.6, 50, 63), (-0.9, 50, 127)])
def test_the_error_is_within_its_bound_and_near_it(x64, alpha, gamma, degree):
    function = svt_jax.SoftDecay(alpha=alpha, centered=True)
    largest = gamma * (1 - alpha**2) / abs(alpha)
    worst = 0.0
    for name, values in SPECTRA.items():
        x = matrix(values * largest)
        difference = transform_by_products(x, function, degree) - svt_jax.svt(x, function, solver="svd")
        error = float(jnp.linalg.norm(difference, 2)) / largest
        assert error <= error_bound(gamma, degree), name
        worst = max(worst, error)
    assert worst >= 0.4 * error_bound(gamma, degree)


@pytest.mark.parametrize(
    "function",
    [svt_jax.SoftDecay(alpha=-0.3, centered=True), svt_jax.LogShift(gamma=5.0), svt_jax.Identity()],
    ids=lambda function: type(function).__name__,
)
def test_float32_adds_rounding_only(x64, function):
    x = matrix(30.0 * SPECTRA["linear"])
    exact = transform_by_products(x, function)
    rounded = transform_by_products(x.astype(np.float32), function)
    assert rounded.dtype == np.float32
    assert float(jnp.linalg.norm(rounded.astype(np.float64) - exact, 2)) / 30.0 <= 2e-5


def test_the_derivative_is_that_of_the_polynomial(x64):
    """Central differences in the same interval; also close to the derivative of the exact transformation."""
    function = svt_jax.SoftDecay(alpha=-0.4, centered=True)
    x = matrix(20.0 * SPECTRA["linear"])[:8]
    rng = np.random.default_rng(1)
    direction, weights = (jnp.asarray(rng.normal(size=x.shape)) for _ in range(2))

    def loss(x, alpha, solver):
        return jnp.sum(weights * svt_jax.svt(x, svt_jax.SoftDecay(alpha=alpha, centered=True), solver=solver))

    slope, slope_alpha = jax.grad(loss, argnums=(0, 1))(x, function.alpha, "poly")
    step = 1e-5
    interval = _leading(x @ x.mT)
    fixed = lambda x: jnp.sum(weights * _interpolate(x, x @ x.mT, jnp.ones((1, 1)), *interval, function, DEGREE))
    np.testing.assert_allclose(fixed(x), loss(x, -0.4, "poly"), rtol=1e-12)
    difference = fixed(x + step * direction) - fixed(x - step * direction)
    np.testing.assert_allclose(jnp.sum(slope * direction), difference / (2 * step), rtol=1e-7)
    difference = loss(x, -0.4 + step, "poly") - loss(x, -0.4 - step, "poly")
    np.testing.assert_allclose(slope_alpha, difference / (2 * step), rtol=1e-7)
    exact, exact_alpha = jax.grad(loss, argnums=(0, 1))(x, function.alpha, "svd")
    assert float(jnp.linalg.norm(slope - exact) / jnp.linalg.norm(exact)) < 0.05
    assert abs(slope_alpha / exact_alpha - 1) < 0.01


def test_masked_tall_batched_and_zero_input():
    function = svt_jax.SoftDecay(alpha=-0.2, centered=True)
    x = jnp.asarray(np.random.default_rng(2).normal(size=(3, 40, 16)) + 1.0, jnp.float32)
    mask = jnp.arange(40) < jnp.array([[40], [13], [0]])
    run = lambda x, f: svt_jax.svt(x, f, mask=mask, solver="poly")
    out, vjp = jax.vjp(run, x, function)
    np.testing.assert_allclose(out, svt_jax.svt(x, function, mask=mask, solver="svd"), atol=0.05)
    np.testing.assert_array_equal(out[2], 0.0)
    np.testing.assert_array_equal(out[1, 13:], 0.0)
    assert all(bool(jnp.all(jnp.isfinite(leaf))) for leaf in jax.tree.leaves(vjp(jnp.ones_like(out))))


def test_a_matrix_that_it_would_miss_by_more_than_its_tolerance_passes_and_counts_as_a_failure():
    far = matrix(247.0 * np.geomspace(1.0, 1e-3, L), np.float32)
    x = jnp.stack([far, 0.04 * far])

    @jax.jit
    def run(x, alpha):
        apply = lambda x, alpha: svt_and_failures(x, svt_jax.SoftDecay(alpha=alpha, centered=True), solver="poly")
        out, vjp, failed = jax.vjp(apply, x, alpha, has_aux=True)
        return out, failed, *vjp(jnp.ones_like(out))

    out, failed, slope, slope_alpha = run(x, -0.82)
    assert failed.tolist() == [True, False]
    np.testing.assert_array_equal(out[0], far)
    np.testing.assert_array_equal(slope[0], 1.0)
    assert np.isfinite(slope).all()
    assert np.isfinite(slope_alpha)
    exact = svt_jax.svt(x, svt_jax.SoftDecay(alpha=-0.82, centered=True), solver="svd")
    assert float(jnp.linalg.norm(out[1] - exact[1], 2)) <= TOLERANCE * 0.04 * 247.0
    assert float(jnp.linalg.norm(transform_unchecked(far, -0.82) - exact[0], 2)) > TOLERANCE * 247.0


def transform_unchecked(x, alpha):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(polynomial, "TOLERANCE", np.inf)
        return transform_by_products(x, svt_jax.SoftDecay(alpha=alpha, centered=True))


@pytest.mark.parametrize("alpha", [-0.1, -0.2, -0.4, -0.6, -0.8, -0.9])
def test_the_bound_of_the_page_is_served(alpha):
    """The page's bound, beta sigma_1 of 52, is allowed for every alpha."""
    largest = 52.0 * (1 - alpha**2) / abs(alpha)
    x = matrix(largest * SPECTRA["linear"], np.float32)
    function = svt_jax.SoftDecay(alpha=alpha, centered=True)
    out, failed = svt_and_failures(x, function, solver="poly")
    assert not failed
    exact = svt_jax.svt(x, function, solver="svd")
    assert float(jnp.linalg.norm(out - exact, 2)) <= error_bound(52.0) * largest <= 1e-2 * largest


@pytest.mark.parametrize("scale", [1e-15, 1e15])
def test_scales_are_harmless(scale):
    x = matrix(SPECTRA["linear"], np.float32)
    np.testing.assert_allclose(
        svt_jax.svt(x * scale, svt_jax.LogShift(gamma=5.0), solver="poly") / scale,
        svt_jax.svt(x, svt_jax.LogShift(gamma=5.0), solver="poly"),
        atol=1e-6,
    )


@pytest.mark.parametrize("function", [svt_jax.SoftDecay(), svt_jax.Average(), svt_jax.ContraNorm()], ids=repr)
def test_a_function_that_it_cannot_serve_is_an_error(function):
    with pytest.raises(ValueError, match=r"solver 'poly'.*Use"):
        svt_jax.svt(jnp.ones((3, 4)), function, solver="poly")


def test_it_is_an_error_in_a_config_too():
    with pytest.raises(ValueError, match="solver 'poly' and SoftDecay"):
        svt_jax.SVTConfig("soft_decay", solver="poly")
    svt_jax.SVTConfig("centered_soft_decay", solver="poly")


def test_the_program_is_products_and_nothing_else_also_for_tpu():
    function = svt_jax.SoftDecay(centered=True)
    loss = lambda x: jnp.sum(svt_jax.svt(x, function, solver="poly") ** 2)
    exported = jax.export.export(jax.jit(jax.grad(loss)), platforms=["tpu", "cuda"])(jnp.ones((4, 16, 32)))
    assert "custom_call" not in exported.mlir_module()
