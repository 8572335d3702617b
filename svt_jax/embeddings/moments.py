r"""Second moments of a set of rows: E^T E and the column sums, in float64, at the speed of float32 products.

Float32 is not enough, however it is summed: the rounding of a product is relative to sigma_1^2, and the small singular
values, squared, are below it. The table shows the error of the covariance of whitened rows, max |W^T C W - I|, for
32768 rows of 256 columns with singular values spread evenly in log scale. Blocks of 256 to 2048 rows are summed in
float64. A shift subtracts a mean before the product and puts it back in float64; hi/lo is three products of split
numbers.

    sigma_1/sigma_min    float32    float32, shift    float32, hi/lo    float64 (here)
    1e3                    1e-03             1e-03             1e-02             6e-11
    1e3, mean of 1         7e-02             1e-03             2e-01             2e-09
    1e4                    1e-01             1e-01             5e-01             4e-09
    1e5                    lost              lost              lost              4e-07

E^T E is symmetric, and BLAS's product for that (syrk) does half of the work. A float64 product costs twice a float32
one, so half of it costs about the same: a whole fit runs at 80 to 90 % of the rate of the bare float32 product on a CPU
(`benchmarks/corpus.py`). XLA has no such product: its float64 product takes 2.3 times its float32 one, and blocks of a
triangle gained nothing. So rows in the memory of a CPU go to BLAS, through NumPy. Rows on an accelerator, or sharded
over devices, are multiplied where they are.
"""

from __future__ import annotations

import contextlib
import functools
import os
from concurrent.futures import ThreadPoolExecutor
from itertools import repeat
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from threadpoolctl import ThreadpoolController

from svt_jax.spectral.solvers import product

Array = jax.Array

_BLOCK = 2048
"""Rows in one product: their float64 copy stays in the cache, and adding D x D numbers after it is cheap."""


def moments(rows: Any) -> tuple[np.ndarray, np.ndarray]:
    """Computes E^T E and the sum of the rows of E, in float64.

    Args:
      rows: real[N, D], D >= 1; a JAX array (sharded or not), or whatever NumPy can slice and read, also a memory map.
        Memory beside the rows is O(D^2): D x D numbers for each thread, and at most N/D threads. Rows that are sharded
        or on an accelerator need room for their float64 copy there.
    Returns:
      float64[D, D], exactly symmetric on CPU, and float64[D]. Not finite where the rows are not; nothing is raised.

    Example:
      >>> import numpy as np
      >>> moments(np.array([[1.0, 2.0], [3.0, 4.0]], np.float32))
      (array([[10., 14.],
             [14., 20.]]), array([4., 6.]))
    """
    if isinstance(rows, jax.Array):
        in_host_memory = [device.platform for device in rows.devices()] == ["cpu"]
        return _by_blas(np.asarray(rows)) if in_host_memory else _by_xla(rows, len(rows))
    rows = rows if hasattr(rows, "shape") else np.asarray(rows)
    return _by_blas(rows) if jax.default_backend() == "cpu" else _by_xla(rows, _BLOCK)


def _by_blas(rows: Any) -> tuple[np.ndarray, np.ndarray]:
    # One thread of ours for each core, with its share of the rows and a BLAS of one thread: BLAS's own threads share
    # out a syrk badly, and wait for each other on a busy machine. A thread has at least D rows, so all the D x D sums
    # together are no larger than the rows. Room is made here: malloc would keep some for each thread that makes it.
    number, width = rows.shape
    threads = max(1, min(_cores(), number // width))
    bounds = [number * i // threads for i in range(threads + 1)]
    grams = [np.zeros((width, width)) for _ in range(threads)]
    rooms = [(np.empty((_BLOCK, width)), np.empty((width, width))) for _ in range(threads)]
    with one_blas_thread(), ThreadPoolExecutor(threads) as pool:
        totals = list(pool.map(_add_share, repeat(rows), bounds[:-1], bounds[1:], grams, rooms))
    with np.errstate(all="ignore"):
        for gram, total in zip(grams[1:], totals[1:], strict=True):
            grams[0] += gram
            totals[0] += total
    return grams[0], totals[0]


def _add_share(rows: Any, start: int, stop: int, gram: np.ndarray, room: tuple[np.ndarray, np.ndarray]) -> np.ndarray:
    total = np.zeros(len(gram))
    with np.errstate(all="ignore"):
        for first in range(start, stop, _BLOCK):
            last = min(first + _BLOCK, stop)
            block = room[0][: last - first]
            block[:] = rows[first:last]
            gram += np.matmul(block.T, block, out=room[1])  # the same array on both sides: NumPy calls syrk
            total += block.sum(axis=0)
    return total


def one_blas_thread() -> contextlib.AbstractContextManager[Any]:
    """Holds NumPy's BLAS and LAPACK to one thread meanwhile: several wait seconds for each other on a busy machine."""
    return _blas().limit(limits=1, user_api="blas")


@functools.cache
def _blas() -> ThreadpoolController:
    return ThreadpoolController()


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _by_xla(rows: Any, step: int) -> tuple[np.ndarray, np.ndarray]:
    # A slice of sharded rows would be gathered on every device. The product of all rows is a psum of D x D numbers.
    with jax.enable_x64(True):
        sums = None
        for first in range(0, max(1, len(rows)), max(1, step)):
            block = rows if step == len(rows) else rows[first : first + step]
            more = _product(jnp.asarray(block))
            sums = more if sums is None else jax.tree.map(jnp.add, sums, more)
        assert sums is not None
        return np.asarray(sums[0]), np.asarray(sums[1])


@jax.jit
def _product(rows: Array) -> tuple[Array, Array]:
    rows = rows.astype(jnp.float64)
    return product(rows.T, rows), jnp.sum(rows, axis=0)
