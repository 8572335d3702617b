"""How long the transformation takes, beside other implementations: `python -m benchmarks.svt`.

On token-uniform matrices (32, 128, D), forward and backward or --forward alone, in one process and in turns:

  svd, gram, gram64   svt() with each solver, SoftDecay as published and centred
  poly                svt() by matrix products only, an approximation, centred
  shifted             svt() by inverses of shifted Gram matrices, an approximation, centred
  torch               the published formula through torch.svd and PyTorch's derivative (skipped where it is not installed)
  autodiff            the same formula through jnp.linalg.svd and JAX's derivative
  products            the bare matrix products that `gram` cannot avoid, laid out as it lays them out, and nothing else
  five products       only X X^T, H X, G X^T, H G and N X, as plain matmuls: what remains if the singular values are
                      not refined and the L x L products are taken as free

The last two run only with the backward pass. All except svt() are in float32, whatever --dtype says. All have one BLAS
thread. Compilation is timed apart. Prints tables and one line of JSON.
"""

from __future__ import annotations

import os

os.environ["OPENBLAS_NUM_THREADS"] = "1"  # for jnp.linalg.svd of `autodiff`; svt() sees to that by itself

import argparse
import json
import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import svt_jax
from benchmarks.timing import Candidates, environment, paired, ratio, table, torch_device, torch_done
from svt_jax.spectral.base import Solver
from svt_jax.spectral.solvers import product

ALPHA = -0.5
ROWS, TOKENS = 32, 128
SOLVERS: tuple[Solver, ...] = ("gram", "gram64", "svd", "poly", "shifted")


def token_uniform(width: int, seed: int = 0) -> np.ndarray:
    """float32[32, 128, width]: tokens of one example share a vector three times as long as their own."""
    rng = np.random.default_rng(seed)
    return (rng.normal(size=(ROWS, TOKENS, width)) + 3.0 * rng.normal(size=(ROWS, 1, width))).astype(np.float32)


def forward_backward(transform: Callable[..., jax.Array], *, backward: bool = True) -> Callable[..., Any]:
    if not backward:
        return lambda x, alpha, cotangent: transform(x, alpha)

    def run(x: jax.Array, alpha: jax.Array, cotangent: jax.Array) -> Any:
        out, vjp = jax.vjp(transform, x, alpha)
        return out, *vjp(cotangent)

    return run


def published(x: jax.Array, alpha: jax.Array) -> jax.Array:
    """The formula as published, differentiated by JAX."""
    u, sigma, vt = jnp.linalg.svd(x, full_matrices=False)
    f = -jnp.log(1.0 - alpha * (sigma + alpha) + 1e-7) / alpha
    new = f / (f.max(-1, keepdims=True) / sigma.max(-1, keepdims=True))
    return (u * new[..., None, :]) @ vt


def five_products(x: jax.Array, h: jax.Array, n: jax.Array, g: jax.Array) -> Any:
    return x @ x.mT, h @ x, g @ x.mT, h @ g, n @ x


def all_products(x: jax.Array, u: jax.Array, ut: jax.Array, g: jax.Array) -> Any:
    """Every product of `gram`'s forward and backward pass, in its layout: six with a side of D, three without."""
    gram, rows = product(x, x.mT), product(u.mT, x)
    out, h = product(ut.mT, rows), product(ut.mT, ut)
    inner = product(u.mT, product(g, rows.mT))
    return gram, out, product(h.mT, g), product(product(inner, ut).mT, rows)


def torch_candidate(x: np.ndarray, cotangent: np.ndarray, backward: bool) -> Callable[[], Any] | None:
    try:
        import torch
    except ImportError:
        return None
    device = torch_device()
    tx, tc = torch.tensor(x, device=device), torch.tensor(cotangent, device=device)

    def run() -> None:
        leaf, alpha = tx.clone().requires_grad_(), torch.tensor(ALPHA, device=device, requires_grad=True)
        u, sigma, v = torch.svd(leaf)
        f = -torch.log(1.0 - alpha * (sigma + alpha) + 1e-7) / alpha
        new = f / (f.max(-1, keepdim=True)[0] / sigma.max(-1, keepdim=True)[0])
        out = u @ torch.diag_embed(new) @ v.mT
        if backward:
            (out * tc).sum().backward()
        torch_done()

    return run


def compiled(run: Callable[..., Any], *arguments: Any) -> tuple[Callable[[], Any], float]:
    """Returns the compiled call, and the seconds that tracing and compiling took."""
    start = time.perf_counter()
    executable = jax.jit(run).lower(*arguments).compile()
    return lambda: executable(*arguments), time.perf_counter() - start


def measure(width: int, repeats: int, dtype: str, backward: bool) -> dict[str, Any]:
    x, cotangent = token_uniform(width), np.random.default_rng(1).normal(size=(ROWS, TOKENS, width)).astype(np.float32)
    jx, jc, alpha = jnp.asarray(x, dtype), jnp.asarray(cotangent, dtype), jnp.asarray(ALPHA)
    u = jnp.linalg.qr(jnp.asarray(np.random.default_rng(2).normal(size=(ROWS, TOKENS, TOKENS)), jnp.float32))[0]
    ut = jnp.asarray(np.ascontiguousarray(np.asarray(u).swapaxes(1, 2)))
    programs: dict[str, tuple[Callable[..., Any], tuple[Any, ...]]] = {
        f"{solver} {name}": (
            forward_backward(
                lambda x, a, solver=solver, centered=centered: svt_jax.svt(
                    x, svt_jax.SoftDecay(alpha=a, centered=centered), solver=solver
                ),
                backward=backward,
            ),
            (jx, alpha, jc),
        )
        for solver in SOLVERS
        for name, centered in (("centred", True), ("published", False))
        if centered or solver not in ("poly", "shifted")
    }
    x32, c32 = jnp.asarray(x), jnp.asarray(cotangent)
    programs["autodiff"] = (forward_backward(published, backward=backward), (x32, alpha, c32))
    if backward:
        programs["products"] = (all_products, (x32, u, ut, c32))
        programs["five products"] = (five_products, (x32, u, ut, c32))
    candidates: Candidates = {}
    compile_seconds = {}
    for name, (run, arguments) in programs.items():
        candidates[name], compile_seconds[name] = compiled(run, *arguments)
    torch_run = torch_candidate(x, cotangent, backward)
    if torch_run is None:
        print("PyTorch is not installed: its row is left out.")
    else:
        candidates["torch"] = torch_run
    seconds = paired(candidates, repeats)
    rows = [
        [
            name,
            *(1e3 * np.percentile(s, [0, 50, 90])),
            ratio(seconds, name, "gram centred"),
            compile_seconds.get(name, ""),
        ]
        for name, s in seconds.items()
    ]
    what = "forward and backward" if backward else "forward alone"
    print(f"\n({ROWS}, {TOKENS}, {width}), {dtype}, {what}, {repeats} turns")
    print(table(["", "min ms", "median ms", "p90 ms", "times gram centred", "compile s"], rows))
    against = {
        f"{name} / gram centred": ratio(seconds, name, "gram centred") for name in seconds if name != "gram centred"
    }
    spreads = {name: (1e3 * np.percentile(s, [10, 50, 90])).tolist() for name, s in seconds.items()}
    return {"width": width, "dtype": dtype, "backward": backward, "ratios": against, "p10_p50_p90_ms": spreads}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--widths", type=int, nargs="+", default=[768, 384], help="hidden sizes D")
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32", help="of svt()'s input")
    parser.add_argument("--forward", action="store_true", help="without the backward pass")
    parser.add_argument("--repeats", type=int, default=20, help="turns of each candidate")
    arguments = parser.parse_args()
    results = [measure(w, arguments.repeats, arguments.dtype, not arguments.forward) for w in arguments.widths]
    print("\n" + json.dumps({"environment": environment(), "results": results}))


if __name__ == "__main__":
    main()
