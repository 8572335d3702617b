"""The slot: remedies in an encoder, start values of parameters, and a user's own operation."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import svt_jax
from svt_jax.models.config import EncoderConfig
from svt_jax.models.encoder import Encoder
from svt_jax.models.slot import SVTLayer, SVTParam
from svt_jax.models.svt_config import SVTConfig
from svt_jax.spectral import registry

TINY = EncoderConfig.from_hf(
    {
        "model_type": "bert",
        "vocab_size": 50,
        "hidden_size": 16,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "intermediate_size": 32,
        "max_position_embeddings": 20,
        "initializer_range": 0.3,
    }
)
IDS = np.random.default_rng(0).integers(0, 50, (2, 7)).astype(np.int32)
MASK = (np.arange(7) < np.array([[7], [4]])).astype(np.int32)


def encoder(config):
    return Encoder(TINY, config, rngs=nnx.Rngs(0))


@pytest.mark.parametrize(
    ("function", "placement", "trained"),
    [
        ("contra_norm", "before_norm", ["scale"]),
        ("token_whitening", "output", []),
        ("token_all_but_the_top", "replace_norm", []),
    ],
)
def test_a_remedy_works_in_the_slot(function, placement, trained):
    model = encoder(SVTConfig(function, placement=placement))
    graphdef, params = nnx.split(model)

    @jax.jit
    def gradient_and_output(params):
        def loss(params):
            out = nnx.merge(graphdef, params)(IDS, MASK).last_hidden_state
            return jnp.sum(out[:, 0] ** 3), out

        return jax.grad(loss, has_aux=True)(params)

    gradient, out = gradient_and_output(params)
    assert np.all(np.isfinite(out))
    assert all(np.all(np.isfinite(leaf)) for leaf in jax.tree.leaves(gradient))
    parameters = gradient["layers"][0]["svt"]["parameters"] if trained else {}
    assert [name for name in parameters if parameters[name].get_value() != 0.0] == trained
    without_padding = jax.jit(lambda ids: model(ids).last_hidden_state)(IDS[1:, :4])
    np.testing.assert_allclose(out[1, :4], without_padding[0], atol=1e-5)


@pytest.mark.parametrize(
    ("function", "params", "starts"),
    [
        ("log_shift", {"gamma": 5}, {"gamma": 5.0}),
        ("log_shift", {"gamma": 1e4}, {"gamma": 1e4}),  # its exp overflows
        ("contra_norm", {"scale": 0.005, "temperature": 0.5}, {"scale": 0.005, "temperature": 0.5}),
        ("token_all_but_the_top", {"directions": 3}, {"directions": 3}),
        ("soft_decay", {"centered": True, "eps": 1e-7}, {"alpha": -0.2, "centered": 1, "eps": 1e-7}),
    ],
)
def test_params_are_where_the_function_starts(function, params, starts):
    layer = SVTLayer(SVTConfig(function, params=params), alpha=-0.2)
    present = layer.function
    assert {name: float(getattr(present, name)) for name in starts} == pytest.approx(starts, rel=1e-5)


@pytest.mark.parametrize(
    ("config", "alpha"),
    [(SVTConfig("log_shift", params={"gamma": 1e-9}), -0.2), (SVTConfig("soft_decay", alpha=-1e-9), -1e-9)],
)
def test_a_start_at_the_very_end_of_the_bounds_stays_inside(config, alpha):
    layer = SVTLayer(config, alpha)
    (name,) = layer.parameters
    low, high = type(layer.function).bounds[name]
    assert low < float(getattr(layer.function, name)) < high
    assert np.isfinite(layer.parameters[name][...])


def test_a_users_operation_is_one_class_and_one_call(monkeypatch):
    monkeypatch.setattr(registry, "_REGISTRY", dict(registry._REGISTRY))

    class Shrink(svt_jax.TokenOperation):
        factor: float = 0.5
        bounds = {"factor": (0.0, 1.0)}  # noqa: RUF012

        def operate(self, x, mask, solver):
            return self.factor * x

    svt_jax.register_function("shrink", Shrink)
    layer = SVTLayer(SVTConfig("shrink", params={"factor": 0.25}), alpha=-0.2)
    assert isinstance(layer.parameters["factor"], SVTParam)
    out, _ = layer(jnp.ones((1, 2, 3)), jnp.array([[True, False]]), rngs=None)
    np.testing.assert_allclose(out, [[[0.25] * 3, [0.0] * 3]], rtol=1e-6)
    with pytest.raises(
        ValueError, match=r"svt.params: factor of Shrink must lie in \(0.0, 1.0\), got 2. Start from 0.5"
    ):
        SVTConfig("shrink", params={"factor": 2})


def test_no_step_of_a_users_optimizer_takes_alpha_out_of_its_interval():
    """A plain number alpha does leave it, and `svt_and_failures` reports that."""
    x = 3.0 + jax.random.normal(jax.random.key(0), (2, 4, 6))
    for rate in (1e3, -1e3):
        graphdef, params = nnx.split(svt_jax.SVTLayer(SVTConfig("soft_decay"), alpha=-0.2))
        slope = jax.grad(lambda params, graphdef=graphdef: jnp.std(nnx.merge(graphdef, params)(x, None, rngs=None)[0]))
        params = jax.tree.map(lambda value, step, rate=rate: value - rate * step, params, slope(params))
        layer = nnx.merge(graphdef, params)
        assert -1.0 < float(layer.function.alpha) < 0.0
        assert layer(x, None, rngs=None)[1].tolist() == [False, False]
    apply = jax.jit(lambda alpha: svt_jax.svt_and_failures(x, svt_jax.SoftDecay(alpha=alpha, centered=True)))
    out, failed = apply(-0.2 - 1.5)
    assert failed.tolist() == [True, True]
    np.testing.assert_array_equal(out, x)
