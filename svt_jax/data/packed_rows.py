"""Packed batches: the arrays of examples that share rows, as `packing` places them."""

from __future__ import annotations

import numpy as np

from svt_jax.data.batching import Batch
from svt_jax.data.packing import Shape, place
from svt_jax.data.tokens import Tokens


def pack(tokens: Tokens, rows: np.ndarray, shape: Shape, parts: np.ndarray | None = None) -> Batch:
    """The batch of the given examples.

    Args:
      rows: int[n], numbers of the examples, at most `shape.parts * shape.examples`; they must fit.
      parts: the parts of the batch that this process holds; None is all.
    Returns:
      ids, token_types, segment, position: int32[R, S], R the rows of the held parts one after another; segment counts
      the part's examples from 1, and is 0 for padding.
      row, start, length, number: int32[E], E the places for examples of the held parts: see `models.packed.Packed`. A
      place without example has length 0.
      labels [E].
      weights float32, index int32: of the whole batch's places; weight 0 for a place without example.
    """
    lengths = tokens.lengths[rows]
    places = place(lengths, shape)
    assert places is not None, "these examples do not fit"
    order = np.lexsort((places.start, places.row, places.part))
    rows, lengths = rows[order], lengths[order]
    part, row, start = places.part[order], places.row[order], places.start[order]
    number = np.arange(len(rows)) - np.searchsorted(part, part)  # among the examples of its part
    slot = part * shape.examples + number
    in_row = np.arange(len(rows)) - np.searchsorted(part * shape.rows + row, part * shape.rows + row)

    size = shape.parts * shape.examples
    batch: Batch = {name: np.zeros(size, np.int32) for name in ("row", "start", "length", "number", "index")}
    batch["row"][slot], batch["start"][slot], batch["length"][slot] = row, start, lengths
    batch["number"][slot], batch["index"][:] = in_row, rows[0]
    batch["index"][slot] = rows
    batch["weights"] = np.zeros(size, np.float32)
    batch["weights"][slot] = 1.0
    labels = np.zeros(len(tokens), np.int32) if tokens.labels is None else tokens.labels
    batch["labels"] = np.zeros(size, labels.dtype)
    batch["labels"][slot] = labels[rows]

    # one after another: the tokens of each example, at the places from its first one on
    position = np.arange(lengths.sum()) - np.repeat(np.cumsum(lengths) - lengths, lengths)
    first = (part * shape.rows + row) * shape.row_length + start
    target = np.repeat(first, lengths) + position
    token = np.repeat(tokens.starts[rows], lengths) + position
    values = {
        "ids": tokens.flat_ids[token],
        "token_types": tokens.flat_types[token],
        "segment": np.repeat(number + 1, lengths),
        "position": position,
    }
    held = np.arange(shape.parts) if parts is None else parts
    for name, each in values.items():
        flat = np.full(shape.slots, tokens.pad_id if name == "ids" else 0, np.int32)
        flat[target] = each
        batch[name] = flat.reshape(shape.parts, -1, shape.row_length)[held].reshape(-1, shape.row_length)
    for name in ("row", "start", "length", "number", "labels"):
        by_part = batch[name].reshape(shape.parts, -1)
        batch[name] = by_part[held].ravel()
    return batch
