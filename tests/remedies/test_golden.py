"""The remedies against the authors' own code: values and gradients, padded and each sequence by itself."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import svt_jax

pytestmark = pytest.mark.shared
TOLERANCE = {"float64": 1e-10, "float32": 1e-5}


@pytest.fixture(params=TOLERANCE)
def close(request):
    """Compares with the golden arrays: 1e-10 in float64, 1e-5 in float32, beside 1 or the largest entry."""
    with jax.enable_x64(request.param == "float64"):

        def compare(ours, theirs, factor=1.0):
            ours, theirs = np.asarray(ours, np.float64), np.asarray(theirs, np.float64)
            scale = max(1.0, float(np.abs(theirs).max(initial=0.0)))
            np.testing.assert_allclose(ours, theirs, rtol=0, atol=factor * TOLERANCE[request.param] * scale)

        compare.cast = lambda x: jnp.asarray(x, request.param)
        yield compare


@functools.partial(jax.jit, static_argnums=0)
def with_vjp(run, cot, *arguments):
    """The result, and the gradients of sum(result * cot); one compilation for each function."""
    out, vjp = jax.vjp(run, *arguments)
    return out, *vjp(cot)


def real(lengths, size):
    return np.arange(size) < np.asarray(lengths)[:, None]


@pytest.mark.parametrize("place", [0, 1])
def test_contra_norm(golden, close, place):
    found, scale = golden("remedies/contranorm.npz"), close.cast([0.01, 0.1][place])
    run = lambda x, scale, mask: svt_jax.ContraNorm(scale=scale)(x, mask)
    for case in "abd":
        x, cot = (close.cast(found[f"op/{case}/{name}"]) for name in ("x", "cot"))
        lengths = found.get(f"op/{case}/lengths")
        for mask, start in [(None, ""), *([] if lengths is None else [(real(lengths, x.shape[1]), "alone_")])]:
            out, gx, *_ = with_vjp(lambda x, scale, mask=mask: run(x, scale, mask), cot, x, scale)
            close(out, found[f"op/{case}/v1/{start}out"][place])
            close(gx, found[f"op/{case}/v1/{start}gx"][place])


@pytest.mark.parametrize(("place", "times"), [(0, 2.0), (1, 1.0)], ids=["DeiT", "CaiT"])
def test_feat_scale_adds_its_terms_once_and_the_file_for_deit_twice(golden, close, place, times):
    for case in "abd":
        part, _ = case_of(golden("remedies/attnscale_featscale.npz"), f"featscale/{case}/", close.cast)
        masks = [(None, ""), *([(real(part["lengths"], part["y"].shape[1]), "alone_")] if "lengths" in part else [])]
        for mask, start in masks:

            def run(y, lamb, mask=mask):
                return svt_jax.FeatScale(mean=times * lamb[0], rest=times * lamb[1])(y, mask)

            found = with_vjp(run, part["cot"], part["y"], part["lamb"])
            for ours, name in zip(found, ("out", "gy", "glamb"), strict=True):
                close(ours, part[start + name][place])


def attention(w, x, heads, mask=None):
    """Map and values of the ViT's attention: qkv in one matrix."""
    qkv = x @ w["qkv.weight"].T + w.get("qkv.bias", 0)
    q, k, v = (part.reshape(*x.shape[:2], heads, -1).swapaxes(1, 2) for part in jnp.split(qkv, 3, axis=-1))
    scores = q @ k.mT / np.sqrt(q.shape[-1])
    if mask is not None:
        scores = jnp.where(mask[:, None, None], scores, -1e30)
    return jax.nn.softmax(scores, axis=-1), v


def projected(w, mixed):
    joined = mixed.swapaxes(1, 2)
    return joined.reshape(*joined.shape[:2], -1) @ w["proj.weight"].T + w["proj.bias"]


def case_of(found, start, cast):
    """The arrays of a case by their names, and its weights."""
    part = {key.removeprefix(start): value for key, value in found.items() if key.startswith(start)}
    part = {name: value if name == "lengths" else cast(value) for name, value in part.items()}
    return part, {name[2:]: value for name, value in part.items() if name.startswith("w/")}


@pytest.mark.parametrize("case", "ab")
def test_attn_scale(golden, close, case):
    part, w = case_of(golden("remedies/attnscale_featscale.npz"), f"attnscale/{case}/", close.cast)
    heads = int(part["heads"])

    def run(x, w, mask=None):
        maps, v = attention(w, x, heads, mask)
        out = projected(w, svt_jax.AttnScale(scale=w["lamb"])(maps, mask) @ v)
        return out if mask is None else jnp.where(mask[..., None], out, 0.0)

    out, gx, gw = with_vjp(run, part["cot"], part["x"], w)
    scaled = jax.jit(lambda x, w: svt_jax.AttnScale(scale=w["lamb"])(attention(w, x, heads)[0]))(part["x"], w)
    names = ("out", "gx", "g/lamb", "g/qkv.weight", "map")
    for ours, name in zip((out, gx, gw["lamb"], gw["qkv.weight"], scaled), names, strict=True):
        close(ours, part[name])
    if "lengths" in part:
        mask = real(part["lengths"], out.shape[1])
        out, gx, gw = with_vjp(lambda x, w: run(x, w, mask), part["cot"], part["x"], w)
        for ours, name in ((out, "alone_out"), (gx, "alone_gx"), (gw["lamb"], "alone_g_lamb")):
            close(ours, part[name])


@pytest.mark.parametrize("case", "abef")
def test_gfsa(golden, close, case):
    part, _ = case_of(golden("remedies/gfsa_map.npz"), f"{case}/", close.cast)
    k, w_0 = int(part["K"]), float(golden("remedies/gfsa_map.npz")[f"{case}/w_0"])
    found = with_vjp(lambda a, w: svt_jax.GFSA(w_k=w, k=k, w_0=w_0)(a), part["cot"], part["A"], part["w_K"])
    for ours, name in zip(found, ("out", "gA", "gw_K"), strict=True):
        close(ours, part[name])
    if "lengths" in part:  # pads have no columns in the authors' map either, but for w_0 on their own diagonal
        mask = real(part["lengths"], part["A"].shape[-1])
        masked = svt_jax.GFSA(w_k=part["w_K"], k=k, w_0=w_0)(part["A"], mask)
        close(masked, np.where(mask[:, None, None], part["out"], 0.0))


@pytest.mark.parametrize("case", "ab")
def test_neutreno(golden, close, case):
    part, w = case_of(golden("remedies/neutreno.npz"), f"deit/{case}/", close.cast)
    masks = [(None, ""), *([(real(part["lengths"], part["x"].shape[1]), "alone_")] if "lengths" in part else [])]
    for mask, start in masks:

        def run(x, v0, scale, mask=mask):
            maps, v = attention(w, x, int(part["heads"]), mask)
            out = projected(w, svt_jax.NeuTRENO(scale=scale)(maps @ v, v, v0, mask))
            return out if mask is None else jnp.where(mask[..., None], out, 0.0)

        found = with_vjp(run, part["cot"], part["x"], part["v0"], part["alpha"])
        for ours, name in zip(found[: 4 if mask is None else 3], ("out", "gx", "gv0", "galpha"), strict=False):
            close(ours, part[start + name])


@functools.partial(jax.jit, static_argnums=0)
def term(remedy, x, state=None):
    return jax.value_and_grad(lambda x: remedy(x, state=state))(x)


@pytest.mark.parametrize("case", ["gauss", "aniso", "shift"])
def test_i_star(golden, close, case):
    found = golden("remedies/isotropy.npz")
    x, c0 = close.cast(found[f"{case}/x"]), close.cast(found[f"{case}/C0"])
    for name, state, at in (("star_eye", jnp.eye(len(c0), dtype=x.dtype), 0.0), ("star_C0", c0, 0.2)):
        for zeta, score in zip((0.0, 0.2, 0.75), found[f"{case}/{name}/value"], strict=True):
            value, slope = term(svt_jax.IStar(zeta=zeta), x, state)
            if np.isfinite(score):
                close(1.0 - value, score)
            if zeta == at:
                close(slope, -found[f"{case}/{name}/gx"])
    close(1.0 - term(svt_jax.IStar(zeta=0.0), x)[0], found[f"{case}/isoscore"][0])


def test_cos_reg(golden, close):
    found = golden("remedies/isotropy.npz")
    for case in ("gauss", "shift"):
        value, slope = term(svt_jax.CosReg(), close.cast(found[f"{case}/x"]))
        close(value, found[f"{case}/cosreg"])
        close(slope, found[f"{case}/cosreg_gx"])


def test_global_orthogonal_regularization(golden, close):
    found, gor = golden("remedies/losses.npz"), svt_jax.GlobalOrthogonalRegularization()
    for case in ("b", "one", "flat"):
        value, slope = term(gor, close.cast(found[f"gor/{case}/e0"]))
        close(value, found[f"gor/{case}/mean_sum"][0].sum())
        close(slope, found[f"gor/{case}/g0"].sum(axis=0))
    value, slope = term(gor, close.cast(np.stack([found["gor/a/e0"], found["gor/a/e1"]])))
    close(value, found["gor/a/mean_sum"][0].sum())  # columns are averaged
    close(slope[1], found["gor/a/g1"].sum(axis=0) / 2)


@pytest.mark.parametrize(
    ("name", "settings"),
    [
        ("monomial", {"powers": True}),
        ("legendre", {}),
        ("chebyshev", {"a": -0.5, "b": -0.5}),
        ("jacobi_1.5_2", {"a": 1.5, "b": 2.0}),
        ("jacobi_2_-1", {"a": 2.0, "b": -1.0}),
        ("jacobi_2_-2", {"a": 2.0, "b": -2.0}),
    ],
)
def test_polynomial(golden, close, name, settings):
    found = golden("remedies/agf.npz")
    thetas = np.float64(found[f"poly/{name}/thetas"])
    at = found["poly/s"] != 0
    x = close.cast(found["poly/s"][at])
    coefficients = close.cast([thetas[0], *np.tanh(thetas[1:])])  # the authors train the tanh's argument

    @jax.jit
    def value_and_slopes(theta, x):
        # phi(x; 1) = x p(x): divided by x it is p, also at negative x, which no singular value is
        run = lambda theta, x: svt_jax.Polynomial(theta=theta, **settings)(x, jnp.ones(1, x.dtype)) / x
        return jax.jvp(lambda x: run(theta, x), (x,), (jnp.ones_like(x),)), jax.jacobian(run)(theta, x)

    (value, slope), by_theta = value_and_slopes(coefficients, x)
    close(value, found[f"poly/{name}/out_ds"][0][at])
    close(slope, found[f"poly/{name}/out_ds"][1][at])
    # at 0, which x leaves out, P_k is the constant term: that of the same polynomial near 0
    at_zero = np.zeros_like(thetas) if at.all() else value_and_slopes(coefficients, close.cast([1e-30]))[1][0]
    sums = np.asarray(by_theta, np.float64).sum(axis=0) + np.asarray(at_zero, np.float64)
    close(sums[1:] * (1 - np.tanh(thetas[1:]) ** 2), found[f"poly/{name}/gthetas_1toK"])
