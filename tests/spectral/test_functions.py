"""Spectral functions: closed forms, bounds, registry."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import svt_jax
from svt_jax.spectral import registry

SIGMA = jnp.array([20.0, 5.0, 1.0, 0.05])


def test_soft_decay_is_the_papers_formula():
    alpha = -0.3
    f = lambda s: -np.log(1 - alpha * (s + alpha)) / alpha
    s = np.asarray(SIGMA, np.float64)
    expected = f(s) * s[0] / f(s[0])
    np.testing.assert_allclose(svt_jax.SoftDecay(alpha=alpha)(SIGMA, SIGMA), expected, rtol=1e-5)


def test_centered_soft_decay_is_the_papers_minus_its_value_at_zero():
    alpha = -0.3
    beta = -alpha / (1 - alpha**2)
    s = np.asarray(SIGMA, np.float64)
    expected = s[0] * np.log1p(beta * s) / np.log1p(beta * s[0])
    np.testing.assert_allclose(svt_jax.SoftDecay(alpha=alpha, centered=True)(SIGMA, SIGMA), expected, rtol=1e-6)


@pytest.mark.parametrize("centered", [False, True])
def test_soft_decay_keeps_the_largest_and_lifts_the_ratio_of_the_others(centered):
    new = np.asarray(svt_jax.SoftDecay(alpha=-0.5, centered=centered)(SIGMA, SIGMA))
    assert new[0] == pytest.approx(20.0, rel=1e-6)
    assert new[1] > SIGMA[1]
    assert np.all(np.diff(new) < 0)


def test_soft_decay_near_alpha_zero_is_the_identity():
    for centered in (False, True):
        new = svt_jax.SoftDecay(alpha=-1e-4, centered=centered)(SIGMA, SIGMA)
        np.testing.assert_allclose(new, SIGMA, rtol=2e-3, atol=2e-4)


@pytest.mark.parametrize("alpha", [0.0, -1.0, 0.2, -1.5])
def test_alpha_outside_its_interval_is_an_error(alpha):
    with pytest.raises(ValueError, match=r"alpha of SoftDecay must lie in \(-1.0, 0.0\), got .* Start from -0.2"):
        svt_jax.SoftDecay(alpha=alpha)


def test_values_of_another_kind_are_errors_all_at_once():
    with pytest.raises(
        ValueError, match="alpha of SoftDecay must be a number, got 'x'.*centered .* true or false, got 0"
    ):
        svt_jax.SoftDecay(alpha="x", centered=0)
    with pytest.raises(ValueError, match="gamma of LogShift must be a number, got True"):
        svt_jax.LogShift(gamma=True)
    batch = np.array([-0.2, -0.5])
    assert svt_jax.SoftDecay(alpha=batch).alpha is batch


def test_a_gradient_may_hold_values_outside_the_bounds():
    grad = jax.grad(lambda f: jnp.sum(f(SIGMA, SIGMA)))(svt_jax.SoftDecay(alpha=-0.2))
    assert isinstance(grad, svt_jax.SoftDecay)
    assert abs(float(grad.alpha)) > 1.0


def test_functions_are_pytrees_with_only_their_parameters_as_leaves():
    leaves, treedef = jax.tree.flatten(svt_jax.SoftDecay(alpha=-0.4, centered=True, eps=1e-7))
    assert leaves == [-0.4]
    again = jax.tree.unflatten(treedef, leaves)
    assert (again.centered, again.eps) == (True, 1e-7)


def test_get_function_knows_the_names_and_says_so_otherwise():
    assert svt_jax.get_function("centered_soft_decay", alpha=-0.6) == svt_jax.SoftDecay(alpha=-0.6, centered=True)
    with pytest.raises(ValueError, match="unknown function or remedy 'soft_decy'.*Did you mean soft_decay?"):
        svt_jax.get_function("soft_decy")
    with pytest.raises(ValueError, match="spectral function 'soft_decay'.*beta"):
        svt_jax.get_function("soft_decay", beta=1.0)


def test_a_users_function_is_one_class_and_one_call(monkeypatch):
    monkeypatch.setattr(registry, "_REGISTRY", dict(registry._REGISTRY))

    class Power(svt_jax.SpectralFunction):
        exponent: float = 0.5
        vanishes_at_zero = True

        def __call__(self, values, spectrum):
            largest = jnp.max(spectrum, axis=-1, keepdims=True)
            return largest * (jnp.maximum(values, 1e-30) / largest) ** self.exponent

    svt_jax.register_function("power", Power)
    x = jnp.diag(jnp.array([4.0, 1.0]))
    np.testing.assert_allclose(svt_jax.svt(x, svt_jax.get_function("power")), np.diag([4.0, 2.0]), atol=1e-6)
    with pytest.raises(ValueError, match="registered already"):
        svt_jax.register_function("power", Power)
