"""Activations and layer norm against their formulas in float64."""

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from scipy import special

from svt_jax.models.activations import ACTIVATION_FUNCTIONS
from svt_jax.models.layers import LayerNorm

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


def test_layer_norm_and_its_gradients_are_those_of_the_formula():
    rng = np.random.default_rng(0)
    x, weight = 3.0 + rng.standard_normal((2, 2, 5, 24))
    scale, bias = rng.standard_normal((2, 24))
    norm = LayerNorm(24, epsilon=1e-5, rngs=nnx.Rngs(0))
    graphdef, params = nnx.split(norm)
    params["scale"].set_value(jnp.asarray(scale, jnp.float32))
    params["bias"].set_value(jnp.asarray(bias, jnp.float32))

    @jax.jit
    def gradients(params, x):
        return jax.grad(lambda p, x: jnp.sum(nnx.merge(graphdef, p)(x) * weight.astype(np.float32)), (0, 1))(params, x)

    rows, weight_rows = x.reshape(-1, 24), weight.reshape(-1, 24)
    deviation = np.sqrt(rows.var(1, keepdims=True) + 1e-5)
    standard = (rows - rows.mean(1, keepdims=True)) / deviation
    np.testing.assert_allclose(
        nnx.merge(graphdef, params)(jnp.asarray(x, jnp.float32)).reshape(-1, 24), standard * scale + bias, atol=3e-6
    )
    of_params, of_x = gradients(params, jnp.asarray(x, jnp.float32))
    np.testing.assert_allclose(of_params["scale"][...], (weight_rows * standard).sum(0), rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(of_params["bias"][...], weight_rows.sum(0), rtol=1e-6)
    scaled = weight_rows * scale
    along = (scaled * standard).mean(1, keepdims=True)
    expected = (scaled - scaled.mean(1, keepdims=True) - standard * along) / deviation
    np.testing.assert_allclose(of_x.reshape(-1, 24), expected, rtol=1e-4, atol=1e-5)


def test_layer_norm_of_a_parameter_that_is_not_finite_is_not_finite():
    """If there is a derivative, `_kept` decides by this parameter."""
    norm = LayerNorm(4, epsilon=1e-5, rngs=nnx.Rngs(0))
    norm.scale.set_value(jnp.array([jnp.nan, 1.0, 1.0, 1.0]))
    x = jnp.arange(8.0).reshape(1, 2, 4)
    out, gradient = jax.value_and_grad(lambda x: jnp.sum(norm(x)[..., 0]))(x)
    assert np.isnan(out)
    assert np.isnan(gradient).all()
