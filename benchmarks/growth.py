"""How time and memory grow with the size of the input: `python -m benchmarks.growth`.

One size doubles while the others stay: tokens L, hidden size D and batch B of svt(), forward and backward, with each
solver; and rows of a corpus map. Time is the least of several calls. Memory is the temporary buffers of the compiled
program, or the arrays that the fit of a corpus map holds. An exponent is the slope of a straight line through the
logarithms: 1 is linear growth. Prints tables and one line of JSON.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import svt_jax
from benchmarks.corpus import synthetic
from benchmarks.timing import environment, table
from svt_jax.spectral.base import Solver

BASE = {"B": 8, "L": 64, "D": 384}
SIZES = {"B": [4, 8, 16, 32], "L": [32, 64, 128, 256], "D": [192, 384, 768, 1536]}
ROWS = [20_000, 40_000, 80_000, 160_000]
SOLVERS: tuple[Solver, ...] = ("svd", "gram", "gram64", "poly", "shifted")
ALPHA = -0.2


def exponent(sizes: list[int], values: list[float]) -> float:
    """The slope of log(values) over log(sizes), by least squares."""
    return float(np.polyfit(np.log(sizes), np.log(values), 1)[0])


def least(call: Callable[[], Any], repeats: int) -> float:
    """The least seconds of a call, after one that is not counted."""
    seconds = []
    for _ in range(repeats + 1):
        start = time.perf_counter()
        jax.block_until_ready(call())
        seconds.append(time.perf_counter() - start)
    return min(seconds[1:])


def transformation(solver: Solver, repeats: int, *, B: int, L: int, D: int) -> tuple[float, float]:
    """(seconds, MiB) of svt() forward and backward, on tokens that share a vector."""
    rng = np.random.default_rng(0)
    x = jnp.asarray(rng.normal(size=(B, L, D)) + 3.0 * rng.normal(size=(B, 1, D)), jnp.float32)

    def loss(x: jax.Array, alpha: jax.Array) -> jax.Array:
        return jnp.sum(jnp.square(svt_jax.svt(x, svt_jax.SoftDecay(alpha=alpha, centered=True), solver=solver)))

    arguments = (x, jnp.float32(ALPHA))
    program = jax.jit(jax.grad(loss, argnums=(0, 1))).lower(*arguments).compile()
    memory = program.memory_analysis()
    assert memory is not None, "every backend has it"
    return least(lambda: program(*arguments), repeats), memory.temp_size_in_bytes / 2**20


def corpus(rows: int) -> tuple[float, float]:
    """(seconds, MiB) of fitting a corpus map on rows of 384, batch by batch."""
    fitted = svt_jax.SpectralMap(svt_jax.SoftDecay(alpha=-0.6, centered=True))
    seconds = 0.0
    for batch in synthetic(rows, BASE["D"], 10_000):
        start = time.perf_counter()
        fitted.partial_fit(batch)
        seconds += time.perf_counter() - start
    held = sum(value.nbytes for value in vars(fitted).values() if isinstance(value, np.ndarray | jax.Array))
    return seconds, held / 2**20


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=5, help="calls of each size")
    parser.add_argument("--solvers", nargs="+", default=list(SOLVERS))
    arguments = parser.parse_args()
    results: list[dict[str, Any]] = []

    def add(what: str, of: str, sizes: list[int], found: list[tuple[float, float]]) -> None:
        seconds, mib = [list(values) for values in zip(*found, strict=True)]
        results.append(
            {
                "what": what, "grows": of, "sizes": sizes, "ms": [1e3 * s for s in seconds], "mib": mib,
                "time_exponent": exponent(sizes, seconds), "memory_exponent": exponent(sizes, mib),
            }
        )  # fmt: skip

    for solver in arguments.solvers:
        for name, sizes in SIZES.items():
            found = [transformation(solver, arguments.repeats, **{**BASE, name: size}) for size in sizes]
            add(solver, name, sizes, found)
    corpus(10_000)  # compiles
    add("corpus map", "rows", ROWS, [corpus(rows) for rows in ROWS])
    header = ["", "grows", "from, to", "ms", "MiB", "time ~ size^", "memory ~ size^"]
    print(f"Others stay at {BASE}; centred SoftDecay, forward and backward.")
    print(
        table(
            header,
            [
                [
                    r["what"], r["grows"], f"{r['sizes'][0]}, {r['sizes'][-1]}",
                    f"{r['ms'][0]:.3g}, {r['ms'][-1]:.3g}", f"{r['mib'][0]:.3g}, {r['mib'][-1]:.3g}",
                    f"{r['time_exponent']:.2f}", f"{r['memory_exponent']:.2f}",
                ]
                for r in results
            ],
        )
    )  # fmt: skip
    print("\n" + json.dumps({"environment": environment(), "results": results}))


if __name__ == "__main__":
    main()
