"""What the transformation must ignore, and what it must keep; every function, both solvers, float64."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import svt_jax

FUNCTIONS = {
    "soft_decay": svt_jax.SoftDecay(alpha=-0.6),
    "centered_soft_decay": svt_jax.SoftDecay(alpha=-0.6, centered=True),
    "soft_exponential": svt_jax.SoftExponential(alpha=0.3),
    "log_shift": svt_jax.LogShift(gamma=10.0),
    "linear": svt_jax.Linear(k=1.5),
    "average": svt_jax.Average(),
}
every_function = pytest.mark.parametrize("function", FUNCTIONS.values(), ids=FUNCTIONS)
both_solvers = pytest.mark.parametrize("solver", ["svd", "gram", "gram64"])


@pytest.fixture(autouse=True)
def x64():
    with jax.enable_x64(True):
        yield


apply = functools.partial(jax.jit, static_argnames="solver")(svt_jax.svt)  # one shape below: one compilation


@pytest.fixture
def x():
    return np.random.default_rng(0).normal(size=(2, 5, 9)) + 2.0


def orthogonal(size):
    return np.linalg.qr(np.random.default_rng(1).normal(size=(size, size)))[0]


@both_solvers
@every_function
def test_rotating_the_features_rotates_the_result(x, function, solver):
    rotation = orthogonal(9)
    out = apply(x, function, solver=solver)
    np.testing.assert_allclose(apply(x @ rotation, function, solver=solver), out @ rotation, atol=1e-10)


@both_solvers
@every_function
def test_permuting_the_tokens_permutes_the_result(x, function, solver):
    order = np.array([3, 0, 4, 1, 2])
    out = apply(x, function, solver=solver)
    np.testing.assert_allclose(apply(x[:, order], function, solver=solver), out[:, order], atol=1e-10)


@both_solvers
@every_function
def test_examples_of_a_batch_do_not_see_each_other(x, function, solver):
    other = x.copy()
    other[1] = np.random.default_rng(2).normal(size=(5, 9)) * 100.0
    mine, theirs = (apply(batch, function, solver=solver)[0] for batch in (x, other))
    assert np.array_equal(mine, theirs)


@both_solvers
@pytest.mark.parametrize("function", [f for n, f in FUNCTIONS.items() if n != "average"])
def test_the_largest_singular_value_is_kept_and_the_singular_vectors_too(x, function, solver):
    out = np.asarray(apply(x, function, solver=solver))
    before, after = (np.linalg.svd(m, compute_uv=False) for m in (x, out))
    np.testing.assert_allclose(after[:, 0], before[:, 0], rtol=1e-12)
    u, _, vt = np.linalg.svd(x, full_matrices=False)
    inside = np.einsum("bli,bld,bjd->bij", u, out, vt)
    np.testing.assert_allclose(inside, inside * np.eye(5), atol=1e-10)


@both_solvers
@pytest.mark.parametrize("centered", [True, False])
def test_towards_alpha_zero_it_becomes_the_identity(x, centered, solver):
    distances = []
    for alpha in (-1e-2, -1e-4, -1e-6):
        function = svt_jax.SoftDecay(alpha=jnp.asarray(alpha), centered=centered)
        distances.append(float(np.abs(apply(x, function, solver=solver) - x).max()))
    assert distances[0] > 50 * distances[1] > 2500 * distances[2]  # in proportion to alpha
    assert distances[2] < 1e-4
