"""The remedies without goldens, and what holds for all: closed forms, differences, padding, order, no tokens."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import svt_jax
from svt_jax.spectral import registry

RNG = np.random.default_rng(0)
REAL = np.arange(6) < np.array([[6], [4], [0]])
X = RNG.normal(size=(3, 6, 5)).astype(np.float32) + 1.0
SCORES = RNG.normal(size=(3, 2, 6, 6))
MAPS = np.where(REAL[:, None, None], np.exp(SCORES), 0.0)
MAPS = (MAPS / np.maximum(MAPS.sum(-1, keepdims=True), 1e-9)).astype(np.float32)
VALUES = RNG.normal(size=(3, 3, 2, 6, 4)).astype(np.float32)

TOKENS = {
    "contra_norm": {"scale": 0.3},
    "de_escalation": {"tau": 0.4},
    "feat_scale": {"mean": np.linspace(-1, 1, 5, dtype=np.float32), "rest": 0.3},
}
ON_MAPS = {
    "attn_scale": {"scale": np.array([0.5, -0.2], np.float32)},
    "gfsa": {"w_k": 0.4, "k": 4, "w_0": 0.1},
    "laplacian": {"share": 0.3},
}
LOSSES = {"i_star": {"zeta": 0.2}, "cos_reg": {}, "gor": {}, "spectrum_area": {}}
STATE = np.eye(5, dtype=np.float32) + 0.1


def remedy(name):
    settings = {**TOKENS, **ON_MAPS, **LOSSES, "neutreno": {"scale": 0.6}}[name]
    return svt_jax.get_function(name, **settings)


@functools.partial(jax.jit, static_argnums=0)
def applied(name, x, mask):
    """The result of a remedy on tokens, maps, values or as a loss; and the gradient of a sum with fixed weights."""

    def run(x):
        if name in LOSSES:
            out = remedy(name)(x, mask, jnp.asarray(STATE, x.dtype) if name == "i_star" else None)
        elif name == "neutreno":
            out = remedy(name)(*x, mask)
        else:
            out = remedy(name)(x, mask)
        weights = jnp.cos(jnp.arange(out.size, dtype=out.dtype)).reshape(out.shape)
        real = mask if name in (*TOKENS, *LOSSES) else mask[:, None, :]
        keep = real if name in LOSSES else real[..., None] & (mask[:, None, None, :] if name in ON_MAPS else True)
        return jnp.sum(jnp.where(keep if out.ndim else True, out * weights, 0.0)), out

    (_, out), slope = jax.value_and_grad(run, has_aux=True)(x)
    return out, slope


def input_of(name):
    return VALUES if name == "neutreno" else MAPS if name in ON_MAPS else X


@pytest.mark.parametrize("name", [*TOKENS, *ON_MAPS, "neutreno", *LOSSES])
def test_padding_has_no_influence_and_stays_zero_and_an_input_of_padding_only_is_finite(name):
    x = input_of(name)
    hidden = (
        ~REAL[:, None, :, None] if name == "neutreno" else ~REAL[:, None, None] if name in ON_MAPS else ~REAL[..., None]
    )
    garbage = np.where(hidden, 1e3, x).astype(np.float32)
    (out, slope), (again, its_slope) = applied(name, x, REAL), applied(name, garbage, REAL)
    real = np.broadcast_to(~hidden, np.shape(out)) if np.ndim(out) else ...
    if name in ON_MAPS:
        real = real & REAL[:, None, :, None]
    np.testing.assert_array_equal(np.asarray(out)[real], np.asarray(again)[real])
    assert np.all(np.isfinite(out))
    assert np.all(np.isfinite(slope))
    np.testing.assert_array_equal(np.where(hidden, its_slope, 0.0), 0.0)
    if np.ndim(out):
        np.testing.assert_array_equal(np.where(hidden, out, 0.0), 0.0)


@pytest.mark.parametrize("name", [*TOKENS, *ON_MAPS, "neutreno", *LOSSES])
def test_the_order_of_tokens_does_not_matter(name):
    order, x = np.array([3, 0, 2, 1, 5, 4]), input_of(name)
    moved = lambda x: x[..., order, :][..., order] if name in ON_MAPS else x[..., order, :]
    out, theirs = applied(name, x, REAL)[0], applied(name, moved(x), REAL[:, order])[0]
    np.testing.assert_allclose(theirs, moved(np.asarray(out)) if np.ndim(out) else out, atol=2e-5)


@pytest.mark.parametrize("name", ["de_escalation", "laplacian", "spectrum_area", "polynomial"])
def test_values_and_slopes_are_those_of_the_formula_and_of_differences(name):
    theta = [0.7, 0.2, -0.3]
    with jax.enable_x64(True):
        x = jnp.asarray(MAPS[0] if name == "laplacian" else X[0], jnp.float64)
        sigma = np.linalg.svd(np.asarray(X[0], np.float64), compute_uv=False)
        if name == "polynomial":
            function = svt_jax.Polynomial(theta=theta)
            run = jax.jit(lambda x: svt_jax.svt(x, function, solver="svd"))
            u, s, vt = np.linalg.svd(np.asarray(x))
            ratio = s / s[0]
            phi = s * (theta[0] + theta[1] * ratio + theta[2] * (3 * ratio**2 - 1) / 2)
            expected = u[:, :5] @ np.diag(phi) @ vt
        else:
            run = jax.jit(remedy(name))
            expected = {
                "de_escalation": lambda: x - 0.4 * x.mean(axis=0),
                "laplacian": lambda: 0.7 * x + 0.3 * (np.eye(6) - x),
                "spectrum_area": lambda: np.mean(sigma / sigma[0]),
            }[name]()
        np.testing.assert_allclose(run(x), expected, atol=1e-10)
        direction, cot = (jnp.asarray(RNG.normal(size=shape)) for shape in (x.shape, np.shape(expected)))
        slope = jax.jit(jax.grad(lambda x: jnp.sum(run(x) * cot)))(x)
        difference = jnp.sum((run(x + 1e-6 * direction) - run(x - 1e-6 * direction)) * cot) / 2e-6
        np.testing.assert_allclose(jnp.sum(slope * direction), difference, rtol=1e-6, atol=1e-7)


def test_the_running_covariance_is_shrunk_towards_and_has_no_gradient():
    loss, x, mask = svt_jax.IStar(zeta=0.25), jnp.asarray(X[0]), jnp.ones(6, bool)
    covariance = np.cov(X[0], rowvar=False)
    start = loss.initial_state(5)
    first = loss.next_state(x, mask, start)
    np.testing.assert_allclose(first, covariance, rtol=1e-4)  # nothing to shrink towards yet
    np.testing.assert_allclose(loss(x, mask, start), svt_jax.IStar(zeta=0.0)(x, mask), rtol=1e-6)
    np.testing.assert_allclose(
        loss.next_state(x, mask, jnp.asarray(STATE)), 0.75 * covariance + 0.25 * STATE, rtol=1e-4, atol=1e-6
    )
    assert not np.any(jax.grad(lambda state: loss(x, mask, state))(jnp.asarray(STATE)))
    assert svt_jax.IStar(zeta=0.0).initial_state(5) is None


def test_all_tokens_of_a_batch_are_one_set_to_i_star_and_cos_reg():
    for name in ("i_star", "cos_reg"):
        together = remedy(name)(X[:2].reshape(12, 5), REAL[:2].reshape(12))
        np.testing.assert_allclose(remedy(name)(X, REAL), together, rtol=1e-5)


def test_every_remedy_is_found_by_name_with_its_sites():
    sites = {name: svt_jax.get_function(name).sites for name in registry.function_names()}
    assert sites["contra_norm"] == sites["polynomial"] == sites["soft_decay"] == ("feed_forward", "attention")
    assert sites["feat_scale"] == ("attention",)
    assert {name for name, has in sites.items() if has == ("attention_map",)} == {"attn_scale", "gfsa", "laplacian"}
    assert {name for name, has in sites.items() if has == ("value",)} == {"neutreno"}
    assert {name for name, has in sites.items() if has == ("loss",)} == set(LOSSES)
    with pytest.raises(
        ValueError, match="svt needs a spectral function or a token operation, got GFSA.*Call it itself"
    ):
        svt_jax.svt(jnp.ones((2, 2)), svt_jax.GFSA())


def test_wrong_shapes_are_errors():
    with pytest.raises(ValueError, match=r"GFSA needs a floating-point array \[..., N, L, L\], got float32\[2, 3\]"):
        svt_jax.GFSA()(jnp.ones((2, 3)))
    with pytest.raises(ValueError, match=r"mask must have the keys' shape \(3,\); got \(2,\)"):
        svt_jax.AttnScale()(jnp.ones((2, 3, 3)), jnp.ones(2, bool))
    with pytest.raises(ValueError, match=r"NeuTRENO needs three floating-point arrays .* of one shape, got"):
        svt_jax.NeuTRENO()(jnp.ones((2, 3, 4)), jnp.ones((2, 3, 4)), jnp.ones((2, 3, 5)))
    with pytest.raises(ValueError, match=r"CosReg needs a floating-point array \[..., L, D\], got int32"):
        svt_jax.CosReg()(jnp.ones((2, 3), jnp.int32))
    with pytest.raises(ValueError, match="theta of Polynomial must be a list of numbers"):
        svt_jax.Polynomial(theta="1, 0")
