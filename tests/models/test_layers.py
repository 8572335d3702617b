"""Activations against their formulas in float64."""

import jax
import jax.numpy as jnp
import numpy as np
from scipy import special

from svt_jax.models.layers import ACTIVATION_FUNCTIONS

X = np.concatenate([np.linspace(-12.0, 12.0, 4801), [-1e4, -1e-20, 1e-20, 1e4]]).astype(np.float32)
NORMAL = special.ndtr(X.astype(np.float64))


def test_gelu_is_x_times_the_normal_distribution_and_so_is_its_derivative():
    gelu = ACTIVATION_FUNCTIONS["gelu"]
    value, slope = jax.vmap(jax.value_and_grad(gelu))(jnp.asarray(X))
    x = X.astype(np.float64)
    density = np.exp(-0.5 * x * x) / np.sqrt(2.0 * np.pi)
    np.testing.assert_allclose(value, x * NORMAL, rtol=3e-7, atol=1e-6)
    np.testing.assert_allclose(slope, NORMAL + x * density, rtol=0, atol=1e-6)


def test_gelu_in_bfloat16_is_the_rounded_exact_value():
    x = jnp.asarray(X, jnp.bfloat16)
    value = ACTIVATION_FUNCTIONS["gelu"](x)
    exact = np.asarray(x, np.float64) * special.ndtr(np.asarray(x, np.float64))
    assert value.dtype == jnp.bfloat16
    np.testing.assert_allclose(np.asarray(value, np.float64), exact, rtol=2**-8, atol=1e-6)
