"""Corpus maps: equal to the in-memory transformation, exact over streams, saved and loaded; errors."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding, PartitionSpec

import svt_jax

RNG = np.random.default_rng(0)
ROWS = (RNG.normal(size=(300, 12)) * np.geomspace(5, 0.2, 12) + 1.0).astype(np.float32)
FUNCTIONS = [
    svt_jax.SoftDecay(alpha=-0.6),
    svt_jax.SoftDecay(alpha=-0.6, centered=True),
    svt_jax.LogShift(10.0),
    svt_jax.Linear(2.0),
]


@pytest.mark.parametrize("function", FUNCTIONS, ids=lambda f: type(f).__name__)
def test_spectral_map_equals_the_transformation_in_memory(function):
    fitted = svt_jax.SpectralMap(function).fit(np.split(ROWS, [10, 200]))
    np.testing.assert_allclose(fitted.transform(ROWS), svt_jax.svt(jnp.asarray(ROWS), function), rtol=1e-3, atol=2e-4)
    assert fitted.count == 300


@pytest.mark.shared
def test_spectral_map_equals_the_published_on_the_golden_embeddings(golden):
    golden = golden("spectral.npz")
    x = golden["EMB.f32.x"]
    fitted = svt_jax.SpectralMap(svt_jax.SoftDecay(alpha=-0.6, eps=1e-7)).fit(x)
    np.testing.assert_allclose(fitted.transform(x), golden["EMB.f32.sts_soft_expand.alpha-0.6.out"], atol=2e-5)


@pytest.mark.shared
def test_whitening_equals_the_published_up_to_scale_and_sign(golden):
    golden = golden("spectral.npz")
    x = golden["EMB.f64.x"].astype(np.float32)
    white = np.asarray(svt_jax.Whitening().fit(x).transform(x), np.float64)
    np.testing.assert_allclose(white @ white.T / len(x), golden["EMB.f64.whitening.gram"], atol=1e-4)


def test_directions_without_rows_have_the_slope_at_zero():
    flat = ROWS.copy()
    flat[:, 5] = 0.0
    function = svt_jax.LogShift(10.0)
    fitted = svt_jax.SpectralMap(function).fit(flat)
    sigma = np.linalg.svd(flat, compute_uv=False)
    unit = np.eye(12, dtype=np.float32)[5]
    slope = 10.0 / np.log(11.0)
    np.testing.assert_allclose(fitted.transform(unit), slope * unit, rtol=1e-3, atol=1e-4)
    assert sigma[-1] < 1e-4


def test_a_stream_loses_nothing_against_float64():
    rows = (RNG.normal(size=(200_000, 16)) + 3.0).astype(np.float32)
    fitted = svt_jax.SpectralMap(svt_jax.Identity()).fit(np.array_split(rows, 7))
    exact = rows.astype(np.float64).T @ rows.astype(np.float64)
    assert np.abs(fitted._gram - exact).max() / np.abs(exact).max() < 1e-14


def test_rows_sharded_over_devices_give_the_same_map():
    mesh = jax.make_mesh((8,), ("data",), axis_types=(AxisType.Auto,))
    sharded = jax.device_put(ROWS[:296], NamedSharding(mesh, PartitionSpec("data")))
    maps = [svt_jax.Whitening(4).fit(x).transform(ROWS) for x in (sharded, ROWS[:296])]
    np.testing.assert_allclose(np.abs(maps[0]), np.abs(maps[1]), atol=1e-3)


def test_all_but_the_top_leaves_nothing_along_the_top():
    out = np.asarray(svt_jax.AllButTheTop(2).fit(ROWS).transform(ROWS))
    centered = ROWS - ROWS.mean(0)
    _, _, vt = np.linalg.svd(centered, full_matrices=False)
    assert np.abs(out @ vt[:2].T).max() < 1e-3
    np.testing.assert_allclose(out @ vt[2:].T, centered @ vt[2:].T, atol=1e-3)


def test_all_but_the_top_differs_from_the_sources_uncentred_projection_by_one_vector():
    mean = ROWS.mean(axis=0)
    top = np.linalg.svd(ROWS - mean, full_matrices=False)[2][:2].T
    published = ROWS - mean - ROWS @ top @ top.T
    ours = np.asarray(svt_jax.AllButTheTop(2).fit(ROWS).transform(ROWS))
    np.testing.assert_allclose(ours - published, np.broadcast_to(top @ top.T @ mean, ROWS.shape), atol=1e-4)
    assert np.linalg.norm(top.T @ mean) > 0.1


@pytest.mark.parametrize(
    "fitted",
    [svt_jax.SpectralMap(FUNCTIONS[1]), svt_jax.Whitening(5), svt_jax.AllButTheTop()],
    ids=lambda m: type(m).__name__,
)
def test_saved_and_loaded_it_transforms_and_goes_on_fitting(tmp_path, fitted):
    fitted.fit(ROWS[:100]).save(tmp_path)
    loaded = type(fitted).load(tmp_path)
    assert np.array_equal(loaded.transform(ROWS), fitted.transform(ROWS))
    again = loaded.partial_fit(ROWS[100:]).transform(ROWS)
    np.testing.assert_allclose(np.abs(again), np.abs(type(fitted).load(tmp_path).fit(ROWS).transform(ROWS)), atol=1e-3)


MAPS = [lambda: svt_jax.SpectralMap(FUNCTIONS[1]), lambda: svt_jax.Whitening(5), svt_jax.AllButTheTop]


@pytest.mark.parametrize("make", MAPS, ids=["spectral", "whitening", "all_but_the_top"])
def test_what_can_be_read_only_once_gives_the_map_of_a_list(make):
    expected = make().fit(ROWS)
    rows = np.asarray(expected.transform(ROWS))
    others = (
        make().fit(part for part in np.split(ROWS, [10, 200])),
        make().fit(map(np.ndarray.tolist, np.split(ROWS, [10, 200]))),
        make().fit(ROWS.tolist()),
        make().partial_fit(row for row in ROWS),
    )
    for fitted in others:
        assert fitted.count == 300
        np.testing.assert_allclose(np.abs(fitted.transform(iter(ROWS))), np.abs(rows), atol=1e-4)


def test_wrong_use_is_an_error(tmp_path):
    whitening = svt_jax.Whitening()
    with pytest.raises(ValueError, match="has seen no rows"):
        whitening.transform(ROWS)
    with pytest.raises(ValueError, match=r"rows must come as \[n, 12\], got \[3, 5\]"):
        whitening.fit(ROWS).partial_fit(np.ones((3, 5), np.float32))
    with pytest.raises(ValueError, match="not finite"):
        whitening.partial_fit(np.full((2, 12), np.nan, np.float32))
    assert whitening.count == 300
    with pytest.raises(ValueError, match="whitening to 12 dimensions .* there are 12 and 5"):
        svt_jax.Whitening().fit(ROWS[:5]).transform(ROWS)
    with pytest.raises(ValueError, match="holds no saved map"):
        svt_jax.Whitening.load(tmp_path)
    whitening.save(tmp_path)
    with pytest.raises(ValueError, match="holds a Whitening, not a SpectralMap. Use Whitening.load"):
        svt_jax.SpectralMap.load(tmp_path)


def test_whole_numbers_are_mapped_as_numbers():
    rows = np.random.default_rng(0).integers(-3, 4, (9, 4))
    fitted = svt_jax.SpectralMap(svt_jax.SoftDecay(-0.6, centered=True)).fit(rows)
    np.testing.assert_array_equal(fitted.transform(rows), fitted.transform(rows.astype(np.float32)))


def test_a_token_operation_is_no_spectral_function():
    with pytest.raises(ValueError, match="needs a spectral function, got ContraNorm"):
        svt_jax.SpectralMap(svt_jax.ContraNorm())
