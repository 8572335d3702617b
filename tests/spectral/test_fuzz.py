"""Every finite input has a finite result: hypothesis looks for a counterexample."""

import functools

import hypothesis.extra.numpy as hnp
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

import svt_jax

FUNCTIONS = {
    "soft_decay": svt_jax.SoftDecay(alpha=-0.6),
    "centered_soft_decay": svt_jax.SoftDecay(alpha=-0.6, centered=True),
    "soft_exponential": svt_jax.SoftExponential(alpha=0.5),
    "log_shift": svt_jax.LogShift(gamma=10.0),
    "linear": svt_jax.Linear(k=1.1),
    "average": svt_jax.Average(),
    "identity": svt_jax.Identity(),
}
QUICK = {
    ("soft_decay", "gram64"),
    ("centered_soft_decay", "gram"),
}  # what "auto" takes; only slow tests compile the rest


@functools.partial(jax.jit, static_argnames="solver")
def value_and_gradients(x, mask, function, solver):
    out, vjp = jax.vjp(lambda x, f: svt_jax.svt(x, f, mask=mask, solver=solver), x, function)
    return out, *vjp(jnp.ones_like(out))


@st.composite
def token_matrices(draw):
    """(x float32 [L, D], mask): wide, tall and one token; zeros, repeated rows, ties, scales from 1e-18 to 1e18."""
    shape = draw(st.sampled_from([(1, 3), (4, 6), (6, 4)]))
    entries = st.sampled_from([0.0, 1.0, -1.0]) | st.floats(-1.0, 1.0, width=32, allow_subnormal=False)
    x = draw(hnp.arrays(np.float32, shape, elements=entries))
    if draw(st.booleans()):
        x = x[draw(hnp.arrays(np.int64, shape[0], elements=st.integers(0, shape[0] - 1)))]
    scale = np.float32(10.0 ** draw(st.integers(-18, 18)))
    return x * scale, draw(hnp.arrays(np.bool_, shape[0]))


@pytest.mark.parametrize(
    ("name", "solver"),
    [
        pytest.param(name, solver, marks=[] if (name, solver) in QUICK else pytest.mark.slow)
        for name in FUNCTIONS
        for solver in ("svd", "gram", "gram64")
        if "decay" in name or solver == "gram"
    ],
)
@settings(max_examples=60, deadline=None, derandomize=True, database=None)
@given(token_matrices())
@example((np.zeros((4, 6), np.float32), np.ones(4, bool)))
@example((np.ones((4, 6), np.float32), np.zeros(4, bool)))
@example((np.full((6, 4), 1e18, np.float32), np.arange(6) < 1))
def test_everything_is_finite(name, solver, inputs):
    x, mask = inputs
    everything = value_and_gradients(x, mask, FUNCTIONS[name], solver)
    for leaf in jax.tree.leaves(everything):
        assert np.all(np.isfinite(leaf)), (x, mask, everything)
    assert np.all(np.asarray(everything[0])[~mask] == 0)


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16])
@pytest.mark.parametrize("scale", [1e-4, 1.0, 6e4])
def test_low_precision_stays_finite(dtype, scale):
    x = jnp.asarray(np.random.default_rng(0).uniform(-1, 1, (4, 6)) * scale, dtype)
    out = svt_jax.svt(x, svt_jax.Average())  # lifts small values the most
    assert out.dtype == dtype
    assert np.all(np.isfinite(np.asarray(out, np.float32)))
