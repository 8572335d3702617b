"""Measures equal the numbers of their authors' own programs: 1e-10 in float64, 1e-5 in float32."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from svt_jax import measures

pytestmark = pytest.mark.shared
PRECISIONS = {"float32": 1e-5, "float64": 1e-10}


def cases(*names):
    """By default the first one."""
    return pytest.mark.parametrize(
        "case", [pytest.param(name, marks=pytest.mark.slow if n else []) for n, name in enumerate(names)]
    )


@pytest.fixture
def remedies(golden):
    return lambda file: golden(f"remedies/{file}.npz")


@pytest.fixture(params=PRECISIONS)
def dtype(request):
    with jax.enable_x64(request.param == "float64"):
        yield request.param


def assert_equal(ours, theirs, dtype, least=0.0):
    assert ours.dtype == dtype
    tolerance = max(PRECISIONS[dtype], least)
    np.testing.assert_allclose(ours, theirs, rtol=tolerance, atol=tolerance)


def normalized(x):
    """The rows as the prompt entropy's authors prepare them: centred, then of length 1."""
    x = x.astype(np.float64) - x.astype(np.float64).mean(0)
    return x / np.linalg.norm(x, axis=1, keepdims=True)


@cases("wide", "decay", "uniform")
def test_measures_of_one_matrix_equal_their_authors(remedies, case, dtype):
    get = lambda key: remedies("measures")[f"{case}/{key}"]
    x = jnp.asarray(get("x"), dtype)
    assert_equal(measures.rank_one_residual(x), get("dong")[4], dtype)
    assert_equal(measures.stable_rank(x), get("stable_rank"), dtype)
    assert_equal(measures.participation_ratio(x, centered=True), get("participation_ratio"), dtype)
    assert_equal(measures.rank_me(x, eps=1e-5), get("rankme")[0], dtype)
    assert_equal(measures.rank_me(x), get("rankme")[1], dtype, 1e-7)  # theirs adds 1e-7 to the sum as well
    cosine, rank = get("contranorm_sim_erank")
    assert_equal(measures.token_uniformity(x), cosine, dtype)
    assert_equal(measures.spectrum_summary(x).effective_rank, rank, dtype)
    # ranks 3 to 9; their weights are float32
    assert_equal(measures.alpha_req(x, last=9, centered=True), get("alphareq")[0], dtype, 1e-7)


@cases("wide", "decay", "uniform")
def test_matrix_entropy_equals_the_authors_where_their_program_keeps_the_matrix_and_divides_by_the_trace(
    remedies, case, dtype
):
    get = lambda key: remedies("measures")[f"{case}/{key}"]
    x = jnp.asarray(normalized(get("x")), dtype)
    theirs = get("matrix_entropy_noclamp")
    assert_equal(measures.matrix_entropy(x), theirs[0], dtype)
    assert_equal(measures.matrix_entropy(x, order=0.5), theirs[2], dtype, 1e-7)  # theirs takes rounding as directions
    if x.shape[0] <= x.shape[1]:  # else they divide by the squared number of dimensions
        assert_equal(measures.matrix_entropy(x, order=2.0), theirs[1], dtype)
    if case == "uniform":  # all entries of X X^T are positive, so that nothing is set to zero
        assert_equal(measures.matrix_entropy(jnp.asarray(get("x"), dtype)), get("prompt_entropy")[0, 0, 0], dtype)


@cases("wide", "decay", "uniform")
def test_lidar_equals_the_authors(remedies, case, dtype):
    get = lambda key: remedies("measures")[f"{case}/{key}"]
    groups, views = get("group")
    x = jnp.asarray(get("x")[: groups * views], dtype).reshape(groups, views, -1)
    assert_equal(measures.lidar(x), get("lidar")[2], dtype, 1e-8)  # they add 1e-12 inside the logarithm
    assert_equal(measures.lidar(x), get("lidar")[1], dtype, 2e-7)  # and 1e-8


@cases("gauss", "aniso", "shift")
def test_iso_score_and_its_gradient_equal_the_authors(remedies, case, dtype):
    get = lambda key: remedies("isotropy")[f"{case}/{key}"]
    x, reference = jnp.asarray(get("x"), dtype), jnp.asarray(get("C0"), dtype)
    assert_equal(measures.iso_score(x), get("isoscore")[0], dtype)
    for zeta, eye, drawn in zip((0.0, 0.2, 0.75), get("star_eye/value"), get("star_C0/value"), strict=True):
        assert_equal(measures.iso_score_star(x, zeta=zeta), eye, dtype)
        if zeta:
            assert_equal(measures.iso_score_star(x, reference, zeta), drawn, dtype)
    assert_equal(jax.grad(measures.iso_score)(x), get("star_eye/gx"), dtype)
    assert_equal(jax.grad(measures.iso_score_star)(x, reference, 0.2), get("star_C0/gx"), dtype)


@cases("a", "b")
def test_alignment_and_uniformity_and_their_gradients_equal_the_authors(remedies, case, dtype):
    get = lambda key: remedies("losses")[f"au/{case}/{key}"]
    x, y = (jnp.asarray(get(name), dtype) for name in "xy")

    def all_four(x, y, normalize):
        align = [measures.alignment(x, y, power, normalize=normalize) for power in (2.0, 1.0)]
        return jnp.stack(align + [measures.uniformity(x, t, normalize=normalize) for t in (2.0, 3.0)])

    assert_equal(all_four(x, y, True), get("unit/values"), dtype)
    assert_equal(all_four(x, y, False), get("raw/values"), dtype)
    of_x, of_y = jax.jacobian(lambda x, y: all_four(x, y, True), argnums=(0, 1))(x, y)
    assert_equal(of_x, get("unit/gx"), dtype)
    assert_equal(of_y[:2], get("unit/gy"), dtype)
