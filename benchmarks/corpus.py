"""How fast a map is fitted to a stream of rows, beside the bare matrix products of the same shape, and in how much memory.

    python -m benchmarks.corpus --rows 1000000

The first part times the whole fit: float32 rows are generated batch by batch, and only `partial_fit` is timed. Peak
memory is that of the whole process, before anything else has run. The second part times pairs: fit and bare products
E^T E take turns on the same batch, so that a busy machine slows all of them alike. A ratio is the median of
(time of the product) / (time of the fit) over batches. GFLOP/s counts 2 N D^2 for all, a general product's work; the
fit needs half.
"""

from __future__ import annotations

import argparse
import functools
import json
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import svt_jax
from benchmarks.timing import environment
from svt_jax.spectral.solvers import product


def main() -> None:
    """Prints both parts as a table."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.corpus", description=__doc__.splitlines()[0])
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--width", type=int, default=768)
    parser.add_argument("--batch", type=int, default=16_384, help="rows that are in memory at once")
    parser.add_argument("--pairs", type=int, default=15, help="batches on which fit and bare products take turns")
    arguments = parser.parse_args()
    rows, width, batch = arguments.rows, arguments.width, arguments.batch

    fitted = svt_jax.SpectralMap(svt_jax.SoftDecay(alpha=-0.6, centered=True))
    start = time.perf_counter()
    fit_s = sum(seconds(functools.partial(fitted.partial_fit, x)) for x in synthetic(rows, width, batch))
    map_s = seconds(lambda: fitted.matrix)
    print(f"whole fit: {fitted.count} x {width} float32 in batches of {batch}, {time.perf_counter() - start:.1f} s")
    print(
        f"  partial_fit {fit_s:.1f} s, {report(fitted.count, width, fit_s)}; matrix {map_s:.2f} s; the rest makes rows"
    )
    print(f"  peak memory {peak_memory_mib():.0f} MiB")

    times: dict[str, list[float]] = {"partial_fit": []}
    for x in synthetic((arguments.pairs + 1) * batch, width, batch):
        work: dict[str, Callable[[], Any]] = {"partial_fit": functools.partial(fitted.partial_fit, x), **products(x)}
        for name, call in work.items():
            times.setdefault(name, []).append(seconds(call))
    print(f"pairs: medians of {arguments.pairs} batches of {batch}")
    fit = np.array(times["partial_fit"][1:])  # the first batch compiles
    for name, spent in times.items():
        median, ratio = float(np.median(spent[1:])), float(np.median(np.array(spent[1:]) / fit))
        print(
            f"  {name:28} {1e3 * median:7.0f} ms  {report(batch, width, median)}  fit at {100 * ratio:4.0f} % of its rate"
        )
    seconds_of = {name: np.percentile(spent[1:], [10, 50, 90]).tolist() for name, spent in times.items()}
    print("\n" + json.dumps({"environment": environment(), "p10_p50_p90_s": seconds_of, "fit_s": fit_s}))


def synthetic(rows: int, width: int, batch: int) -> Iterator[np.ndarray]:
    """Normal rows with a mean and a decaying spectrum, as sentence embeddings have; float32[batch, width] at a time."""
    generator = np.random.default_rng(0)
    scale, mean = np.geomspace(1, 1e-2, width, dtype=np.float32), generator.normal(size=width).astype(np.float32)
    for start in range(0, rows, batch):
        x = generator.standard_normal((min(batch, rows - start), width), dtype=np.float32)
        x *= scale
        x += mean
        yield x


def products(x: np.ndarray) -> dict[str, Callable[[], Any]]:
    """The bare general products E^T E of a batch, by library and precision; inputs are laid out beforehand."""
    with jax.enable_x64(True):
        wide = jax.block_until_ready(jnp.asarray(x, jnp.float64))
    narrow = jax.block_until_ready(jnp.asarray(x))
    x_twice = x, x.copy()  # NumPy would see that the two are one, and do half of the work
    wide_twice = np.asarray(wide), x.astype(np.float64)
    return {
        "XLA float32 product": lambda: jax.block_until_ready(xla_product(narrow)),
        "NumPy float32 product": lambda: x_twice[0].T @ x_twice[1],
        "XLA float64 product": lambda: xla_product_64(wide),
        "NumPy float64 product": lambda: wide_twice[0].T @ wide_twice[1],
    }


@jax.jit
def xla_product(x: jax.Array) -> jax.Array:
    """E^T E."""
    return product(x.T, x)


def xla_product_64(x: jax.Array) -> jax.Array:
    """E^T E of float64 rows."""
    with jax.enable_x64(True):
        return jax.block_until_ready(xla_product(x))


def seconds(call: Callable[[], Any]) -> float:
    """Wall time of a call."""
    start = time.perf_counter()
    call()
    return time.perf_counter() - start


def report(rows: int, width: int, spent_s: float) -> str:
    """Rows and operations in a second."""
    return f"{rows / spent_s:9.0f} rows/s {2e-9 * rows * width**2 / spent_s:6.1f} GFLOP/s"


def peak_memory_mib() -> float:
    """Returns the most memory that this process has held. In getrusage a child starts with its parent's peak."""
    status = Path("/proc/self/status").read_text(encoding="utf-8")
    return int(status.split("VmHWM:")[1].split()[0]) / 1024


if __name__ == "__main__":
    main()
