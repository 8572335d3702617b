"""Packed batches for a program that is called again and again: their shape hardly depends on the texts."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

import numpy as np

from svt_jax.data.tokens import Tokens
from svt_jax.host import same_settings

if TYPE_CHECKING:
    from svt_jax.data.packing import Shape

Progress = Callable[[int], None]
"""Called with the number of texts that a batch finished."""
Static = tuple[tuple[str, int], ...]
"""What `models.packed.read_batch` must know beside a batch's arrays, hashable."""
Compute = Callable[[dict[str, np.ndarray], Static], Sequence[Any]]
"""A batch's input arrays -> arrays with a row for each of its places."""

_WORKERS = 2
_BATCH_TOKENS = 1536  # on two CPU cores 1000 to 3000 take the same time
_ROW_LENGTH = 64  # a token of a row of 128 takes 1.09 times as long on two CPU cores, for its attention
_LEAST = 8  # the largest batch has room for a text in every so many tokens


def fill(out: Sequence[np.ndarray], tokens: Tokens, compute: Compute, progress: Progress | None = None) -> None:
    """Fills arrays [N, ...] with what a program computes of each text's tokens, in the order of the texts.

    Two batches at a time: while one is in a small operation, which a single core does, the other fills the cores. So
    `compute` is called from several threads. There are at most two shapes.
    """
    from svt_jax.data.packed_rows import pack  # imported here: `import svt_jax` needs no grain

    settings = same_settings()

    def run(shape: Shape, rows: np.ndarray) -> int:
        batch = pack(tokens, rows, shape)
        inputs = {name: values for name, values in batch.items() if name not in ("labels", "weights", "index")}
        with settings():
            computed = compute(inputs, tuple(shape.static.items()))
        real = batch["weights"] > 0
        for all_rows, found in zip(out, computed, strict=True):
            all_rows[batch["index"][real]] = np.asarray(found)[real]
        return len(rows)

    with ThreadPoolExecutor(_WORKERS) as pool:
        for done in pool.map(run, *zip(*steady_batches(tokens.lengths), strict=True)):
            if progress is not None:
                progress(done)


def steady_batches(lengths: np.ndarray) -> list[tuple[Shape, np.ndarray]]:
    """Each packed batch's shape and its texts.

    There are at most two shapes: rows of 64 tokens, and for longer texts rows of the next power of two that holds the
    longest, so that a few long ones do not make all rows long.
    """
    short = lengths <= _ROW_LENGTH
    parts = [(rows, _same_shape(lengths[rows])) for rows in map(np.flatnonzero, (short, ~short)) if len(rows)]
    return [(shape, rows[batch]) for rows, (shape, batches) in parts for batch in batches]


def _same_shape(lengths: np.ndarray) -> tuple[Shape, list[np.ndarray]]:
    """One shape, and the texts of each batch; all batches have about the same tokens.

    The shape hardly depends on the texts, so that another call finds its program compiled: `_BATCH_TOKENS` in rows
    of `_ROW_LENGTH` or of the next power of two that holds the longest text, or the next power of two rows that
    holds all texts.
    """
    from svt_jax.data.packing import Shape, dealt_evenly, place

    size = max(_ROW_LENGTH, 1 << (int(lengths.max()) - 1).bit_length())
    most = max(1, _BATCH_TOKENS // size)
    needed = math.ceil(lengths.sum() / size)
    rows = min(most, 1 << max(0, needed - 1).bit_length())
    while True:
        shape = Shape(rows, size, rows * size // _LEAST, size)
        number = max(math.ceil(lengths.sum() / (rows * size)), math.ceil(len(lengths) / shape.examples))
        if rows == most or number == 1:
            break
        rows = min(most, 2 * rows)
    while True:
        batches = dealt_evenly(lengths, number)
        if all(place(lengths[batch], shape) is not None for batch in batches):
            return shape, batches
        number += 1
