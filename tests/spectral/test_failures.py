"""A decomposition that fails for a finite matrix: the matrix passes unchanged, derivatives stay finite, it is counted."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import svt_jax
from svt_jax.spectral import solvers
from svt_jax.spectral.transform import svt_and_failures

FAILING = 1
# It has its own shape, so that no other test finds what is traced with a failing solver.
X = jax.random.normal(jax.random.key(0), (3, 4, 11))
COTANGENT = jax.random.normal(jax.random.key(1), X.shape)
MASK = jnp.array([[True] * 4, [True, True, True, False], [True] * 4])


@pytest.mark.parametrize(
    ("function", "solver"),
    [
        (svt_jax.SoftDecay(-0.6), "svd"),
        (svt_jax.SoftDecay(-0.6, centered=True), "gram"),
        (svt_jax.SoftDecay(-0.6), "gram64"),
        (svt_jax.get_function("token_whitening"), "auto"),
        (svt_jax.get_function("token_all_but_the_top"), "auto"),
    ],
)
def test_the_matrix_passes_and_so_does_its_gradient(monkeypatch, function, solver):
    original = solvers.per_matrix

    def fail(decomposition, x, one=None):  # as LAPACK reports a failure
        return jax.tree.map(lambda leaf: leaf.at[FAILING].set(jnp.nan), original(decomposition, x))

    @jax.jit
    def everything(x, function):
        apply = lambda x, f: svt_and_failures(x, f, mask=MASK, solver=solver)
        out, vjp, failed = jax.vjp(apply, x, function, has_aux=True)
        forward = jax.jvp(lambda x: apply(x, function)[0], (x,), (COTANGENT,))[1]
        return out, failed, forward, *vjp(COTANGENT)

    monkeypatch.setattr(solvers, "per_matrix", fail)
    out, failed, forward, dx, dfunction = everything(X, function)
    monkeypatch.undo()
    assert failed.tolist() == [False, True, False]
    keep = np.asarray(MASK[FAILING])[:, None]
    np.testing.assert_array_equal(out[FAILING], np.where(keep, X[FAILING], 0))
    for derivative in (forward, dx):
        np.testing.assert_array_equal(derivative[FAILING], np.where(keep, COTANGENT[FAILING], 0))
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves((out, forward, dx, dfunction)))
    whole = svt_jax.svt(X[None], function, mask=MASK[None], solver=solver)[0]  # another shape, so traced separately
    np.testing.assert_allclose(out[::2], whole[::2], atol=1e-5)  # another program, so other rounding
    assert not np.allclose(out[FAILING], whole[FAILING])


def test_a_matrix_that_is_not_finite_is_no_failure_and_stays_not_finite():
    bad = X[:, :3].at[2, 0, 0].set(jnp.nan)
    out, failed = svt_and_failures(bad, svt_jax.SoftDecay(), solver="gram64")
    assert failed.tolist() == [False] * 3
    assert np.isnan(out[2]).any()
    assert np.isfinite(out[:2]).all()
