"""Every function of token matrices under every transform and mode of JAX: the same numbers, and no error.

By default each function runs under some modes, and each mode with some functions; slow tests take the whole product for one
function of each kind of code, and a third of it for the others.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

import svt_jax
from svt_jax import measures

B, L, D = 8, 4, 6
RNG = np.random.default_rng(0)
X = jnp.asarray(RNG.normal(size=(B, L, D)) + 1.0, jnp.float32)
TANGENT = jnp.asarray(RNG.normal(size=(B, L, D)), jnp.float32)
KEEP = np.array([True, True, True, False])  # the last row of each matrix is padding

PAPER, CENTERED = svt_jax.SoftDecay(alpha=-0.4), svt_jax.SoftDecay(alpha=-0.4, centered=True)


def mask_of(x):
    return np.broadcast_to(KEEP[: x.shape[-2]], x.shape[:-1])


def transformed(function, solver):
    return lambda x: svt_jax.svt(x, function, mask=mask_of(x), solver=solver)


def local_structure(x):
    apply = lambda x: measures.local_structure(x, jnp.sin(x), k=2)
    for _ in x.shape[:-2]:
        apply = jax.vmap(apply)
    return apply(x)


def several(*names):
    return lambda x: tuple(getattr(measures, name)(x, mask=mask_of(x)) for name in names)


SVT = {
    f"svt-{name}-{solver}": transformed(function, solver)
    for name, function, solver in (
        ("soft_decay", PAPER, "auto"),
        ("soft_decay", PAPER, "svd"),
        ("soft_decay", PAPER, "gram"),
        ("centered", CENTERED, "auto"),
        ("centered", CENTERED, "gram64"),
        ("centered", CENTERED, "poly"),
        ("centered", CENTERED, "shifted"),
        ("log_shift", svt_jax.LogShift(), "auto"),
        ("soft_exponential", svt_jax.SoftExponential(alpha=-0.3), "auto"),
        ("linear", svt_jax.Linear(), "auto"),
        ("average", svt_jax.Average(), "auto"),
        ("identity", svt_jax.Identity(), "auto"),
        ("contra_norm", svt_jax.ContraNorm(), "auto"),
        ("token_whitening", svt_jax.TokenWhitening(), "auto"),
        ("all_but_the_top", svt_jax.TokenAllButTheTop(), "auto"),
    )
}
MEASURES = {
    "token_uniformity": lambda x: measures.token_uniformity(x, mask_of(x)),
    "cls_uniformity": lambda x: measures.cls_uniformity(x, mask_of(x)),
    "singular_values": lambda x: measures.singular_values(x, mask_of(x)),
    "explained_variance": lambda x: measures.explained_variance(x, 2, mask_of(x)),
    "rbf_distance": lambda x: measures.rbf_distance(x, mask=mask_of(x)),
    "spectrum_summary": lambda x: measures.spectrum_summary(x, mask_of(x)),
    "local_structure": local_structure,
}
GROUPS = {
    "ranks": several("stable_rank", "participation_ratio", "matrix_entropy", "rank_me", "alpha_req"),
    "tokens": several(
        "mean_token_share", "rank_one_residual", "dirichlet_energy", "massive_activation", "outlier_dimensions",
        "intra_sentence_similarity",
    ),
    "isotropy": several("iso_score", "iso_score_star", "uniformity", "two_nn"),
    "two_sets": lambda x: (
        measures.self_similarity(x, np.broadcast_to(np.arange(x.shape[-2]) % 2, x.shape[:-1]), mask_of(x)),
        measures.alignment(x, jnp.sin(x), mask=mask_of(x)),
        measures.linear_cka(x, jnp.sin(x), mask_of(x)),
    ),
}  # fmt: skip
MEASURES |= GROUPS
FUNCTIONS = SVT | MEASURES
NO_DECOMPOSITION = (
    "token_uniformity", "cls_uniformity", "rbf_distance", "tokens", "isotropy", "two_sets",
    "svt-contra_norm-auto",
)  # fmt: skip


def loss(function, x):
    """Unequal weights on the entries of one result; a batch is summed."""
    leaves = [leaf.astype(jnp.float32) for leaf in jax.tree.leaves(function(x))]
    weigh = lambda leaf: jnp.cos(jnp.arange(np.prod(leaf.shape[x.ndim - 2 :]), dtype=jnp.float32))
    return sum(jnp.sum(leaf * weigh(leaf).reshape(leaf.shape[x.ndim - 2 :])[None]) for leaf in leaves)


def gradient(function):
    return jax.grad(functools.partial(loss, function))


@functools.cache
def expected(name):
    """(value, gradient) without any mode."""
    function = FUNCTIONS[name]
    return jax.jit(lambda x: (function(x), gradient(function)(x)))(X)


def assert_equal(ours, theirs, name):
    # A polynomial's derivative magnifies rounding by its degree squared, and programs differ in rounding.
    atol = 3e-3 if "poly" in name else 1e-4
    for a, b in zip(jax.tree.leaves(ours), jax.tree.leaves(theirs), strict=True):
        np.testing.assert_allclose(np.asarray(a, np.float32), b, rtol=1e-3, atol=atol)


def both(name, x):
    function = FUNCTIONS[name]
    assert_equal(jax.jit(lambda x: (function(x), gradient(function)(x)))(x), expected(name), name)


def vmap(name):
    function = FUNCTIONS[name]
    assert_equal(jax.jit(jax.vmap(lambda x: (function(x), gradient(function)(x))))(X), expected(name), name)


def jvp(name):
    function = FUNCTIONS[name]
    _, forward = jax.jit(lambda x, t: jax.jvp(functools.partial(loss, function), (x,), (t,)))(X, TANGENT)
    np.testing.assert_allclose(forward, jnp.vdot(expected(name)[1], TANGENT), rtol=1e-3, atol=1e-3)


def remat(name):
    function = FUNCTIONS[name]
    assert_equal(jax.jit(gradient(jax.checkpoint(function)))(X), expected(name)[1], name)


def scan(name):
    function = FUNCTIONS[name]
    body = lambda carry, x: (carry + loss(function, x), (function(x), gradient(function)(x)))
    total, each = jax.jit(lambda x: jax.lax.scan(body, 0.0, x))(X)
    assert_equal(each, expected(name), name)
    assert np.isfinite(total)


def shard_map(name):
    """A shard_map over an axis that has the name of one of the package's own."""
    mesh = jax.make_mesh((8,), ("data",), axis_types=(AxisType.Auto,))
    function = FUNCTIONS[name]
    whole = lambda x: (function(x), gradient(function)(x))
    assert_equal(
        jax.jit(jax.shard_map(whole, mesh=mesh, in_specs=P("data"), out_specs=P("data"), check_vma=False))(X),
        expected(name),
        name,
    )


COLLECTIVES = ("all-gather", "all-to-all", "all-reduce", "collective-permute")


def on_mesh(name, kind, spec, shape=(8,), axes=("batch",)):
    mesh = jax.make_mesh(shape, axes, axis_types=(kind,) * len(axes))
    x = jax.device_put(X, NamedSharding(mesh, spec))
    function = FUNCTIONS[name]
    compiled = jax.jit(lambda x: (function(x), gradient(function)(x))).lower(x).compile()
    assert_equal(compiled(x), expected(name), name)
    assert function(x).shape == function(X).shape if name in SVT else True
    if spec == P(axes[0]):
        assert not [word for word in COLLECTIVES if word + "(" in compiled.as_text()]


def explicit_mesh(name):
    on_mesh(name, AxisType.Explicit, P("batch"))


def users_mesh(name):
    on_mesh(name, AxisType.Auto, P("batch"))


def explicit_mesh_over_columns(name):
    on_mesh(name, AxisType.Explicit, P("batch", "tokens", "columns"), (2, 2, 2), ("batch", "tokens", "columns"))


def strict_promotion(name):
    with jax.numpy_dtype_promotion("strict"):
        both(name, X)
        function = FUNCTIONS[name]
        x = X.astype(jnp.bfloat16)
        out, slope = jax.jit(lambda x: (function(x), gradient(function)(x)))(x)
    assert slope.dtype == jnp.bfloat16
    of_float32 = function(x.astype(jnp.float32))
    for a, b in zip(jax.tree.leaves(out), jax.tree.leaves(of_float32), strict=True):
        assert a.dtype == (jnp.bfloat16 if name in SVT else jnp.float32)
        np.testing.assert_allclose(np.asarray(a, np.float32), b, rtol=1e-2, atol=1e-5)
    assert np.isfinite(np.asarray(slope, np.float32)).all()


def rank_promotion(name):
    with jax.numpy_rank_promotion("raise"):
        both(name, X)


MODES = [
    vmap, jvp, remat, scan, shard_map, explicit_mesh, users_mesh, explicit_mesh_over_columns, strict_promotion, rank_promotion,
]  # fmt: skip


KINDS = (
    "svt-soft_decay-svd",
    "svt-centered-gram64",
    "svt-centered-poly",
    "svt-token_whitening-auto",
    "spectrum_summary",
    *GROUPS,
)


def pairs():
    for m, mode in enumerate(MODES):
        for n, name in enumerate(FUNCTIONS):
            fast = (m + n) % 17 == 0 and name not in GROUPS
            if fast or name in KINDS or (m + n) % 3 == 0:
                yield pytest.param(mode, name, id=f"{mode.__name__}-{name}", marks=[] if fast else pytest.mark.slow)


@pytest.mark.parametrize(("mode", "name"), list(pairs()))
def test_the_numbers_are_those_without_the_mode(mode, name):
    mode(name)


@pytest.mark.parametrize("shape", [(0, L, D), (2, 0, D), (2, L, 0), (0, D), (L, 0)], ids=str)
@pytest.mark.parametrize("name", SVT)
def test_an_array_without_entries_comes_back_as_it_is(name, shape):
    out, slope = jax.value_and_grad(functools.partial(loss, FUNCTIONS[name]))(jnp.zeros(shape))
    assert (float(out), slope.shape) == (0.0, shape)
    assert FUNCTIONS[name](jnp.zeros(shape)).shape == shape


@pytest.mark.parametrize("shape", [(0, L, D), (2, 0, D), (2, L, 0), (0, D), (L, 0)], ids=str)
@pytest.mark.parametrize("name", [name for name in MEASURES if name != "local_structure"])
def test_a_matrix_without_entries_measures_zero(name, shape):
    for leaf in jax.tree.leaves(FUNCTIONS[name](jnp.zeros(shape))):
        rest = (min(shape[-2:]),) if name == "singular_values" else ()
        np.testing.assert_array_equal(leaf, np.zeros((*shape[:-2], *rest)))


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=pytest.mark.slow if name in GROUPS else []) for name in FUNCTIONS]
)
def test_second_derivatives_are_right_or_one_clear_sentence(name):
    x = X[0]
    slope = gradient(FUNCTIONS[name])
    second = lambda: jax.jit(lambda x, t: jax.jvp(slope, (x,), (t,)))(x, TANGENT[0])[1]
    if name in NO_DECOMPOSITION:
        step = 1e-2
        difference = (slope(x + step * TANGENT[0]) - slope(x - step * TANGENT[0])) / (2 * step)
        np.testing.assert_allclose(second(), difference, rtol=2e-2, atol=2e-3)
        return
    reverse = lambda: jax.grad(lambda x: jnp.sum(slope(x) ** 2))(x)
    for attempt in (second, reverse, lambda: jax.hessian(functools.partial(loss, FUNCTIONS[name]))(x)):
        with pytest.raises(
            NotImplementedError, match=r"second derivative through a singular value.* allowed are first"
        ):
            attempt()


@pytest.mark.parametrize("centered", [False, True])
def test_second_derivatives_in_alpha_are_right(centered):
    total = lambda a, x: jnp.sum(jnp.sin(svt_jax.svt(x, svt_jax.SoftDecay(alpha=a, centered=centered), solver="svd")))
    with jax.enable_x64(True):
        slope = jax.jit(jax.grad(total))
        x = np.asarray(X, np.float64)
        difference = (slope(-0.4 + 1e-5, x) - slope(-0.4 - 1e-5, x)) / 2e-5
    np.testing.assert_allclose(jax.jit(jax.grad(jax.grad(total)))(-0.4, X), difference, rtol=1e-3)


@pytest.mark.parametrize("kind", [AxisType.Auto, AxisType.Explicit], ids=str)
def test_the_gradient_of_a_parameter_adds_up_over_devices(kind):
    """The parameter alone is differentiated: later versions of JAX give the rule a tangent of x that is on no mesh."""
    mesh = jax.make_mesh((8,), ("batch",), axis_types=(kind,))
    slope = jax.jit(jax.grad(lambda function, x: jnp.sum(svt_jax.svt(x, function) ** 3)))
    divided = slope(PAPER, jax.device_put(X, NamedSharding(mesh, P("batch"))))
    np.testing.assert_allclose(divided.alpha, slope(PAPER, X).alpha, rtol=1e-4)
