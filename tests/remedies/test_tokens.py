"""The remedies: plain formulas in float64, gradients against central differences, padding, ties, degenerate input."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import svt_jax
from svt_jax.spectral import registry

REMEDIES = [svt_jax.ContraNorm(scale=0.3), svt_jax.TokenWhitening(), svt_jax.TokenAllButTheTop(directions=2)]
every_remedy = pytest.mark.parametrize("remedy", REMEDIES, ids=lambda p: type(p).__name__)


@pytest.fixture
def x64():
    with jax.enable_x64(True):
        yield


@functools.partial(jax.jit, static_argnames="solver")  # one compilation for all tests with the same shapes
def value_and_vjp(x, remedy, cotangent, mask=None, solver="auto"):
    out, vjp = jax.vjp(lambda x, p: svt_jax.svt(x, p, mask=mask, solver=solver), x, remedy)
    return out, *vjp(cotangent)


def contra_norm(x, scale=0.3, temperature=1.0):
    unit = x / np.linalg.norm(x, axis=1, keepdims=True)
    weights = np.exp(unit @ unit.T / temperature)
    weights /= weights.sum(axis=1, keepdims=True)
    return (1 + scale) * x - scale * weights @ x


def whitening(x):
    """X_c C^{-1/2} by the eigenvectors of the covariance, rescaled to the energy of X_c."""
    centered = x - x.mean(axis=0)
    variances, v = np.linalg.eigh(centered.T @ centered / len(x))
    live = variances > 1e-12 * variances.max()
    white = centered @ (v[:, live] / np.sqrt(variances[live])) @ v[:, live].T
    return white * np.sqrt(np.sum(centered**2) / np.sum(live) / len(x))


def all_but_the_top(x, directions=2):
    centered = x - x.mean(axis=0)
    _, v = np.linalg.eigh(centered.T @ centered)
    top = v[:, -directions:]
    return centered - centered @ top @ top.T


FORMULAS = {"ContraNorm": contra_norm, "TokenWhitening": whitening, "TokenAllButTheTop": all_but_the_top}


def formula(remedy):
    return FORMULAS[type(remedy).__name__]


def tokens(sigma, rows, columns, seed=0, mean=1.0):
    """float64 tokens whose centred matrix has these singular values (and zeros), plus a common part."""
    rng = np.random.default_rng(seed)
    u, _ = np.linalg.qr(np.concatenate([np.ones((rows, 1)), rng.normal(size=(rows, rows - 1))], axis=1))
    v, _ = np.linalg.qr(rng.normal(size=(columns, columns)))
    return (u[:, 1 : len(sigma) + 1] * np.asarray(sigma)) @ v[:, : len(sigma)].T + mean * rng.normal(size=columns)


SPECTRA = {
    "distinct": [5.0, 3.0, 2.0, 1.0],
    "repeated at the top": [3.0, 3.0, 1.0, 0.5],
    "repeated below": [5.0, 3.0, 1.0, 1.0],
    "close at the cut": [5.0, 2.0 + 2e-3, 2.0, 1.9],
}


@pytest.mark.parametrize("solver", ["svd", "gram"])
@every_remedy
@pytest.mark.parametrize("shape", [(5, 9), (9, 4)], ids=["wide", "tall"])
@pytest.mark.parametrize("sigma", SPECTRA.values(), ids=SPECTRA)
def test_value_and_gradient_equal_float64_references(x64, sigma, shape, remedy, solver):
    x = tokens(sigma, *shape)
    cotangent = np.random.default_rng(1).normal(size=shape)
    out, grad, _ = value_and_vjp(x, remedy, cotangent, solver=solver)
    np.testing.assert_allclose(out, formula(remedy)(x), atol=1e-8 if solver == "gram" else 1e-10)
    for seed in range(3):
        direction = np.random.default_rng(10 + seed).normal(size=shape)
        # The rank is full, so no direction of change leaves it; the gap at the cut must stay large beside the step.
        change = formula(remedy)(x + 2e-7 * direction) - formula(remedy)(x - 2e-7 * direction)
        expected = np.sum(change / 4e-7 * cotangent)
        np.testing.assert_allclose(np.sum(np.asarray(grad) * direction), expected, rtol=2e-6, atol=2e-6)


def test_contra_norms_scale_gradient_and_temperature(x64):
    x = tokens([5.0, 3.0, 1.0], 4, 6)
    cotangent = np.random.default_rng(1).normal(size=x.shape)
    out, _, grad = value_and_vjp(x, svt_jax.ContraNorm(scale=0.2, temperature=0.5), cotangent)
    at = lambda scale: contra_norm(x, scale, temperature=0.5)
    np.testing.assert_allclose(out, at(0.2), atol=1e-12)
    expected = np.sum((at(0.2 + 1e-5) - at(0.2 - 1e-5)) / 2e-5 * cotangent)
    np.testing.assert_allclose(grad.scale, expected, rtol=1e-8)


@every_remedy
def test_forward_and_reverse_mode_agree(remedy):
    x = jnp.asarray(tokens([5.0, 3.0, 2.0, 1.0], 5, 9), jnp.float32)
    tangent, cotangent = (jnp.asarray(np.random.default_rng(s).normal(size=x.shape), jnp.float32) for s in (2, 3))
    _, pushed = jax.jvp(lambda x: svt_jax.svt(x, remedy), (x,), (tangent,))
    _, pulled, _ = value_and_vjp(x, remedy, cotangent)
    np.testing.assert_allclose(jnp.vdot(pushed, cotangent), jnp.vdot(pulled, tangent), rtol=1e-4)


@every_remedy
def test_padding_has_no_influence_and_gets_none(remedy):
    rng = np.random.default_rng(0)
    real = jnp.asarray(rng.normal(size=(2, 5, 16)) * 3 + rng.normal(size=16), jnp.float32)
    garbage = jnp.full((2, 7, 16), 1e3, jnp.float32).at[0, 0, 0].set(jnp.nan)
    padded = jnp.concatenate([real[:, :2], garbage, real[:, 2:]], axis=1)  # padding not only at the end
    place = np.array([0, 1, 9, 10, 11])
    mask = jnp.zeros((2, 12), bool).at[:, place].set(True)
    cotangent = jnp.asarray(rng.normal(size=padded.shape), jnp.float32)
    out, grad, grad_remedy = value_and_vjp(padded, remedy, cotangent, mask)
    expected, expected_grad, expected_grad_remedy = value_and_vjp(real, remedy, cotangent[:, place])
    np.testing.assert_allclose(out[:, place], expected, atol=2e-5)
    np.testing.assert_allclose(grad[:, place], expected_grad, atol=5e-5)
    for ours, theirs in zip(jax.tree.leaves(grad_remedy), jax.tree.leaves(expected_grad_remedy), strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-5)
    rest = np.setdiff1d(np.arange(12), place)
    assert np.all(np.asarray(out[:, rest]) == 0.0)
    assert np.all(np.asarray(grad[:, rest]) == 0.0)


DEGENERATE = {
    "zeros": jnp.zeros((4, 6)),
    "equal tokens": jnp.broadcast_to(jnp.linspace(0.1, 1.3, 6), (7, 6)),
    "orthonormal tokens": jnp.eye(4, 6),
    "one zero token": jnp.eye(4, 6).at[1].set(0.0),
    "one token": jnp.ones((1, 6)),
    "two tokens": jnp.arange(12.0).reshape(2, 6),
    "one column": jnp.arange(4.0).reshape(4, 1),
    "huge": 1e18 * jnp.eye(4, 6) + 1e18,
    "tiny": 1e-18 * jnp.eye(4, 6) + 1e-18,
    "huge beside tiny": jnp.ones((4, 6)).at[0].mul(1e18).at[1].mul(1e-18),
}


@every_remedy
@pytest.mark.parametrize("x", DEGENERATE.values(), ids=DEGENERATE)
def test_degenerate_input_gives_finite_values_and_gradients(x, remedy):
    for real in (x.shape[0], 1, 0):
        everything = value_and_vjp(x, remedy, jnp.ones_like(x), jnp.arange(x.shape[0]) < real)
        assert all(np.all(np.isfinite(leaf)) for leaf in jax.tree.leaves(everything)), real


@pytest.mark.parametrize("solver", ["svd", "gram"])
@every_remedy
def test_every_scale_gives_finite_values_and_gradients(remedy, solver):
    rng = np.random.default_rng(0)
    equal = np.broadcast_to(rng.normal(size=5), (8, 5))  # centring leaves only rounding
    steep = rng.normal(size=(8, 5)) * np.exp(8 * rng.normal(size=(8, 1)))
    cotangent = jnp.asarray(rng.normal(size=(8, 5)), jnp.float32)
    for mask in (np.ones(8, bool), np.array([1, 1, 0, 1, 0, 1, 0, 1], bool)):
        for x in [x * 10.0**exponent for x in (equal, steep) for exponent in range(-37, 14, 3)]:
            everything = value_and_vjp(jnp.asarray(x, jnp.float32), remedy, cotangent, jnp.asarray(mask), solver=solver)
            assert all(np.all(np.isfinite(leaf)) for leaf in jax.tree.leaves(everything)), np.abs(x).max()


@pytest.mark.parametrize("remedy", REMEDIES[1:], ids=lambda p: type(p).__name__)
@pytest.mark.parametrize("name", ["zeros", "equal tokens", "one token"])
def test_what_has_only_a_mean_becomes_zero(remedy, name):
    np.testing.assert_allclose(svt_jax.svt(DEGENERATE[name], remedy), 0.0, atol=1e-12)


def relative_error(ours, reference):
    return float(np.linalg.norm(np.asarray(ours, np.float64) - reference) / np.linalg.norm(reference))


@pytest.mark.parametrize("remedy", REMEDIES[1:], ids=lambda p: type(p).__name__)
def test_a_large_common_part_is_removed_to_float32_accuracy(remedy):
    """Centring once leaves a mean of 1e-7 of the old one, here 1e-3 of the tokens; whitening would amplify it."""
    x = np.float32(tokens(np.geomspace(8.0, 2.0, 18), 19, 64, mean=1e4))
    out = svt_jax.svt(jnp.asarray(x), remedy)
    assert relative_error(out, formula(remedy)(np.float64(x))) < 1e-5
    assert np.abs(np.asarray(out).mean(axis=0)).max() < 1e-6


def test_whitening_keeps_the_energy_and_sets_tokens_equally_far_apart():
    x = jnp.asarray(np.random.default_rng(0).normal(size=(6, 20)) * 3 + 5, jnp.float32)
    out = np.asarray(svt_jax.svt(x, svt_jax.TokenWhitening()))
    assert np.sum(out**2) == pytest.approx(np.sum(np.square(x - x.mean(axis=0))), rel=1e-5)
    distances = np.linalg.norm(out[:, None] - out[None], axis=-1)[~np.eye(6, dtype=bool)]
    np.testing.assert_allclose(distances, distances[0], rtol=1e-5)


@pytest.mark.parametrize("solver", ["svd", "gram"])
@pytest.mark.parametrize(
    ("sigma", "directions", "left"),
    [
        ([3.0, 3.0, 3.0, 3.0], 1, [3.0, 3.0, 3.0, 3.0]),
        ([3.0, 2.0, 2.0, 1.0], 2, [2.0, 2.0, 1.0, 0.0]),
        ([3.0, 3.0, 2.0, 1.0], 2, [2.0, 1.0, 0.0, 0.0]),
        ([3.0, 2.0, 0.0, 0.0], 3, [0.0, 0.0, 0.0, 0.0]),
        ([3.0, 2.0, 1.0, 0.5], 9, [0.0, 0.0, 0.0, 0.0]),
    ],
)
def test_a_direction_tied_with_the_next_one_stays(sigma, directions, left, solver):
    remedy = svt_jax.TokenAllButTheTop(directions=directions)
    x = jnp.asarray(tokens(sigma, 5, 8), jnp.float32)
    out, grad, _ = value_and_vjp(x, remedy, jnp.ones_like(x), solver=solver)
    rounding = max(x.shape) * float(jnp.finfo(x.dtype).eps) * sigma[0]  # LAPACK's bound on a singular value
    np.testing.assert_allclose(np.linalg.svd(out, compute_uv=False)[:4], left, atol=rounding)
    assert np.all(np.isfinite(grad))


@every_remedy
def test_commutes_with_rotation_of_features_and_permutation_of_tokens(remedy):
    rng = np.random.default_rng(0)
    x = jnp.asarray(tokens([5.0, 3.0, 2.0, 1.0], 5, 8), jnp.float32)
    rotation, order = np.float32(np.linalg.qr(rng.normal(size=(8, 8)))[0]), rng.permutation(5)
    out = svt_jax.svt(x, remedy)
    np.testing.assert_allclose(svt_jax.svt(x @ rotation, remedy), out @ rotation, atol=1e-5)
    np.testing.assert_allclose(svt_jax.svt(x[order], remedy), out[order], atol=1e-5)


@every_remedy
def test_makes_tokens_less_alike(remedy):
    x = jnp.asarray(np.random.default_rng(0).normal(size=(8, 32)) + 2, jnp.float32)
    assert svt_jax.measures.token_uniformity(remedy(x)) < svt_jax.measures.token_uniformity(x) - 0.01


@every_remedy
def test_batching_by_vmap_and_by_leading_axes_agree(remedy):
    x = jnp.asarray(np.random.default_rng(0).normal(size=(2, 3, 5, 7)), jnp.float32)
    mask = jnp.ones((2, 3, 5), bool).at[0, 1, 4:].set(False)
    mapped = jax.jit(jax.vmap(jax.vmap(lambda x, m: svt_jax.svt(x, remedy, mask=m))))(x, mask)
    np.testing.assert_allclose(mapped, svt_jax.svt(x, remedy, mask=mask), atol=1e-5)


@every_remedy
def test_bfloat16_input_is_worked_on_in_float32(remedy):
    x = jnp.asarray(np.random.default_rng(0).normal(size=(4, 6)), jnp.bfloat16)
    out = svt_jax.svt(x, remedy)
    assert out.dtype == jnp.bfloat16
    expected = svt_jax.svt(x.astype(jnp.float32), remedy).astype(jnp.bfloat16)
    assert np.array_equal(np.asarray(out, np.float32), np.asarray(expected, np.float32))


@every_remedy
def test_a_sharded_batch_is_not_gathered(remedy):
    mesh = jax.make_mesh((8,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))
    x = jnp.asarray(np.random.default_rng(0).normal(size=(8, 4, 6)), jnp.float32)
    placed = jax.device_put(x, jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec("data")))
    with jax.set_mesh(mesh):
        program = value_and_vjp.lower(placed, remedy, placed).compile()
        out = program(placed, remedy, placed)[0]
    assert "all-gather" not in program.as_text()
    np.testing.assert_allclose(out, svt_jax.svt(x, remedy), atol=1e-6)


def test_remedies_are_found_by_name_with_their_parameters():
    assert registry.get_function("contra_norm", scale=0.2) == svt_jax.ContraNorm(scale=0.2)
    assert registry.get_function("token_whitening") == svt_jax.TokenWhitening()
    assert registry.get_function("token_all_but_the_top", directions=3) == svt_jax.TokenAllButTheTop(directions=3)
    assert {"contra_norm", "token_whitening", "token_all_but_the_top"} < set(registry.function_names())


def test_wrong_arguments_are_errors():
    remedy = svt_jax.ContraNorm()
    with pytest.raises(ValueError, match=r"ContraNorm needs a floating-point array.*int32\[2, 2\]"):
        svt_jax.svt(jnp.ones((2, 2), jnp.int32), remedy)
    with pytest.raises(ValueError, match=r"mask must have .* \(2,\); got \(3,\).*unknown solver 'qr'"):
        svt_jax.svt(jnp.ones((2, 2)), remedy, mask=jnp.ones(3, bool), solver="qr")
    with pytest.raises(
        ValueError, match=r"scale of ContraNorm must lie in \(0.0, inf\), got 0.*temperature .* got nan"
    ):
        svt_jax.ContraNorm(scale=0, temperature=float("nan"))
    with pytest.raises(
        ValueError, match="directions of TokenAllButTheTop must be a whole number, got 1.5. Start from 1"
    ):
        svt_jax.TokenAllButTheTop(directions=1.5)
