"""How examples become the arrays of a batch: packed rows, or padded ones."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Sequence

import numpy as np
from jax.sharding import NamedSharding

from svt_jax.data.batching import (
    Batch,
    choose_buckets,
    collate,
    even_batch_size,
    longest_of_each,
    sorted_batches,
)
from svt_jax.data.packed_rows import pack
from svt_jax.data.packing import Shape, choose_even_shape
from svt_jax.data.shards import rows_here
from svt_jax.data.tokens import Tokens


@dataclasses.dataclass(frozen=True)
class Plan:
    """How batches of some examples are laid out.

    Attributes:
      collate: numbers of a batch's examples -> its arrays, of which a process makes what its devices hold.
      num_rows, num_examples: the first sizes of the global arrays.
      static: what `models.packed.read_batch` must know beside the arrays.
    """

    collate: Callable[[np.ndarray], Batch]
    num_rows: int
    num_examples: int
    static: dict[str, int]


def packed(tokens: Tokens, shape: Shape, sharding: NamedSharding) -> Plan:
    """Several examples in each row."""
    parts = rows_here(sharding, shape.parts)
    return Plan(
        functools.partial(pack, tokens, shape=shape, parts=parts),
        shape.parts * shape.rows,
        shape.parts * shape.examples,
        shape.static,
    )


def padded(tokens: Tokens, buckets: Sequence[int], batch_size: int, sharding: NamedSharding) -> Plan:
    """One example in each row."""
    part = rows_here(sharding, batch_size)
    make = functools.partial(collate, tokens, buckets=sorted(buckets), batch_size=batch_size, part=part)
    return Plan(make, batch_size, batch_size, {})


def for_evaluation(
    tokens: Tokens, layout: str, batch_size: int, shards: int, sharding: NamedSharding, positions: int
) -> tuple[Plan, list[np.ndarray]]:
    """The plan, and the examples of each batch, every example once.

    Args:
      layout: "packed" or "padded".
      batch_size: the largest number of examples of a batch; `shards` divides it.
      positions: the model's.
    """
    if layout == "packed":
        shape, batches = choose_even_shape(tokens.lengths, batch_size, groups=shards)
        return packed(tokens, shape, sharding), batches
    size = even_batch_size(len(tokens), batch_size, shards)
    batches = sorted_batches(tokens.lengths, size)
    buckets = choose_buckets(longest_of_each(tokens.lengths, batches), longest=positions)
    return padded(tokens, buckets, size, sharding), batches
