"""Measures: the published numbers if their definition is sound, otherwise NumPy's; masks."""

import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from svt_jax.spectral import measures

RNG = np.random.default_rng(0)
X = RNG.normal(size=(3, 9, 6)).astype(np.float32) + 1.0
MASK = np.arange(9) < np.array([[9], [5], [2]])


@pytest.mark.shared
@pytest.mark.parametrize("name", ["TOKa", "TOKb", "TOKc", "TOKd"])
def test_token_measures_equal_the_published(golden, name):
    get = lambda key: golden("metrics.npz")[f"{name}.f32.{key}"]
    x, real = jnp.asarray(get("x")), int(get("nopad_len"))
    mask = jnp.arange(x.shape[0]) < real
    ours = [[f(x), f(x, mask)] for f in (measures.token_uniformity, measures.cls_uniformity)]
    theirs = np.stack([get("vis_tokenSimi"), get("vis_tokenSimi_nopad")], axis=1)
    np.testing.assert_allclose(ours, theirs, atol=2e-6)
    np.testing.assert_allclose(measures.singular_values(x)[:-1], get("vis_svals"), rtol=2e-4)


@pytest.mark.shared
@pytest.mark.parametrize("name", ["TOKa", "TOKb", "TOKc", "TOKd"])
def test_spectrum_summary_equals_the_published_on_the_same_singular_values(golden, name):
    """The published code leaves out the smallest singular value, so we pass it the spectrum without that."""
    get = lambda key: golden("metrics.npz")[f"{name}.f64.{key}"]
    summary = measures.spectrum_summary(jnp.diag(jnp.asarray(get("vis_svals"), jnp.float32)))
    _, skewness, kurtosis = get("vis_var_skew_kurt")
    assert float(summary.skewness) == pytest.approx(skewness, rel=1e-4, abs=1e-5)
    assert float(summary.kurtosis) == pytest.approx(kurtosis, rel=1e-4, abs=1e-5)
    assert float(summary.median_ratio) == pytest.approx(get("vis_pct_10_25_50")[2], rel=1e-5)


@pytest.mark.shared
@pytest.mark.parametrize("name", ["EMBa", "EMBb"])
def test_embedding_measures_equal_the_published(golden, name):
    get = lambda key: golden("metrics.npz")[f"{name}.f32.{key}"]
    x = jnp.asarray(get("x"))
    assert float(measures.rbf_distance(x)) == pytest.approx(float(get("sts_rbf_t2")), rel=2e-5)
    for k in (1, 3, 10):
        assert float(measures.explained_variance(x, k)) == pytest.approx(float(get(f"sts_Evs_k{k}")), rel=2e-5)
    n = x.shape[0]  # the published mean includes i = j
    with_itself = (float(measures.token_uniformity(x)) * (n - 1) + 1) / n
    assert with_itself == pytest.approx(float(get("sts_tokenSimi")), abs=2e-6)


ONE_MATRIX = {
    "token_uniformity": measures.token_uniformity,
    "cls_uniformity": measures.cls_uniformity,
    "explained_variance": lambda x, mask=None: measures.explained_variance(x, 2, mask),
    "rbf_distance": lambda x, mask=None: measures.rbf_distance(x, mask=mask),
    "spectrum_summary": measures.spectrum_summary,
}


@pytest.mark.parametrize("name", ONE_MATRIX)
def test_masked_rows_play_no_part_and_batches_are_independent(name):
    f = ONE_MATRIX[name]
    garbage = np.where(MASK[..., None], X, np.nan)
    batched = np.asarray(f(jnp.asarray(garbage), jnp.asarray(MASK)))
    for n in range(3):
        alone = f(jnp.asarray(X[n, : MASK[n].sum()]))
        np.testing.assert_allclose(batched[..., n], alone, rtol=2e-5, atol=2e-6)


@pytest.mark.parametrize("rows", [2, 5, 6, 9])
def test_spectrum_summary_equals_scipy(rows):
    x = RNG.normal(size=(rows, 6)) + 2.0
    sigma = np.linalg.svd(x, compute_uv=False)
    summary = measures.spectrum_summary(jnp.asarray(x, jnp.float32))
    assert float(summary.skewness) == pytest.approx(stats.skew(sigma), abs=1e-4)
    assert float(summary.kurtosis) == pytest.approx(stats.kurtosis(sigma), abs=1e-4)
    assert float(summary.median_ratio) == pytest.approx(np.median(sigma) / sigma[0], rel=1e-4)
    assert float(summary.effective_rank) == pytest.approx(np.exp(stats.entropy(sigma)), rel=1e-4)


def local_structure_in_numpy(x, y, k):
    u, v = (a / np.linalg.norm(a, axis=1, keepdims=True) for a in (x, y))
    total = 0.0
    for i in range(len(u)):
        near = [j for j in np.argsort(((u - u[i]) ** 2).sum(1), kind="stable") if j != i][:k]
        offsets = u[near] - u[i]
        gram = offsets @ offsets.T
        gram += 1e-3 * np.trace(gram) * np.eye(k)
        weights = np.linalg.solve(gram, np.ones(k))
        total += ((v[i] - weights / weights.sum() @ v[near]) ** 2).sum()
    return np.sqrt(total)


def test_local_structure_equals_numpy_and_leaves_the_point_itself_out():
    x, noise = RNG.normal(size=(40, 10)), RNG.normal(size=(40, 10))
    for y in (x, x + 0.3 * noise, noise):
        ours = float(measures.local_structure(jnp.asarray(x, jnp.float32), jnp.asarray(y, jnp.float32)))
        assert ours == pytest.approx(local_structure_in_numpy(x, y, 12), rel=1e-4)


@pytest.mark.parametrize(
    "x", [np.zeros((4, 3)), np.ones((4, 3)), np.ones((1, 3)), np.full((4, 3), 1e18), np.full((4, 3), 1e-18)]
)
@pytest.mark.parametrize("name", ONE_MATRIX)
def test_degenerate_input_gives_finite_numbers(name, x):
    if name == "explained_variance" and len(x) < 2:
        x = np.vstack([x, 0 * x])
    assert np.all(np.isfinite(np.asarray(ONE_MATRIX[name](jnp.asarray(x, jnp.float32)))))
    nothing = np.zeros(len(x), bool)
    assert np.all(np.isfinite(np.asarray(ONE_MATRIX[name](jnp.asarray(x, jnp.float32), jnp.asarray(nothing)))))


def test_wrong_arguments_are_errors():
    with pytest.raises(ValueError, match=r"k must lie in \[1, 2\]"):
        measures.explained_variance(jnp.ones((2, 3)), 3)
    with pytest.raises(ValueError, match="mask must have"):
        measures.token_uniformity(jnp.ones((2, 3)), jnp.ones(3, bool))
    with pytest.raises(ValueError, match="N > k = 12"):
        measures.local_structure(jnp.ones((12, 3)), jnp.ones((12, 3)))
