"""A decomposition that fails for a finite matrix: the matrix passes unchanged, derivatives stay finite, it is counted."""

import contextlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import svt_jax
from svt_jax.spectral import solvers
from svt_jax.spectral.transform import svt_and_failures

FAILING = 1
FUNCTIONS = [
    svt_jax.SoftDecay(-0.6),
    svt_jax.SoftDecay(-0.6, centered=True),
    svt_jax.get_function("token_whitening"),
    svt_jax.get_function("all_but_the_top"),
]


@contextlib.contextmanager
def failing_solver():
    """Solvers that find NaN for the matrix number FAILING of every batch, as LAPACK reports a failure."""
    original = solvers.per_matrix

    def fail(decomposition, x):
        return jax.tree.map(lambda leaf: leaf.at[FAILING].set(jnp.nan), original(decomposition, x))

    jax.clear_caches()  # programs of other tests were traced with the real one
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(solvers, "per_matrix", fail)
        yield
    jax.clear_caches()


@pytest.fixture(scope="module")
def x():
    return jax.random.normal(jax.random.key(0), (3, 4, 11))


MASK = jnp.array([[True] * 4, [True, True, True, False], [True] * 4])


@pytest.mark.parametrize("solver", ["svd", "gram", "gram64"])
@pytest.mark.parametrize("function", FUNCTIONS, ids=lambda f: type(f).__name__)
def test_the_matrix_passes_and_so_does_its_gradient(x, function, solver):
    cotangent = jax.random.normal(jax.random.key(1), x.shape)
    apply = lambda x, f: svt_and_failures(x, f, mask=MASK, solver=solver)
    with failing_solver():
        out, vjp, failed = jax.vjp(apply, x, function, has_aux=True)
        dx, dfunction = vjp(cotangent)
        forward = jax.jvp(lambda x: apply(x, function)[0], (x,), (cotangent,))[1]
    assert failed.tolist() == [False, True, False]
    keep = np.asarray(MASK[FAILING])[:, None]
    np.testing.assert_array_equal(out[FAILING], np.where(keep, x[FAILING], 0))
    for derivative in (dx, forward):
        np.testing.assert_array_equal(derivative[FAILING], np.where(keep, cotangent[FAILING], 0))
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves((out, dx, forward, dfunction)))


def test_the_other_matrices_of_the_batch_are_not_touched(x):
    whole = svt_jax.svt(x, svt_jax.SoftDecay(-0.6), solver="svd")
    with failing_solver():
        broken = svt_jax.svt(x, svt_jax.SoftDecay(-0.6), solver="svd")
    np.testing.assert_array_equal(broken[::2], whole[::2])
    assert not np.allclose(broken[FAILING], whole[FAILING])


def test_a_matrix_that_is_not_finite_is_no_failure_and_stays_not_finite(x):
    bad = x.at[2, 0, 0].set(jnp.nan)
    out, failed = svt_and_failures(bad, svt_jax.SoftDecay(), solver="gram64")
    assert failed.tolist() == [False] * 3
    assert np.isnan(out[2]).any()
    assert np.isfinite(out[:2]).all()
