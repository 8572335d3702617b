"""Where the examples of a batch lie in its rows: one in each row, or several (packed).

An encoder computes rows [R, S, D]. What concerns examples goes through a layout: which tokens attend to each other, the
token matrices [E, L, D] that an SVT transforms, the first tokens that a classifier reads. Tokens of one example never
see those of another.

Shape letters: `R` rows, `S` tokens of a row, `E` examples, `L` tokens of the longest example, `M` examples of a row.
"""

from __future__ import annotations

import dataclasses
from typing import Any, Protocol

import jax
import jax.numpy as jnp

from svt_jax.mesh import shard_batch

Array = jax.Array


class Layout(Protocol):
    """What the encoder asks a layout for."""

    @property
    def attends(self) -> Array:
        """bool[R, S or 1, S]: which keys (last axis) each token attends to."""

    @property
    def segments(self) -> tuple[Array, Array]:
        """int32[R, S or 1] and int32[R, S]: a token attends to the keys of its own number; 0 is that of no key."""

    @property
    def per_row(self) -> int:
        """M, the largest number of examples in a row."""

    @property
    def mask(self) -> Array:
        """bool[E, L]: the real tokens of each example's matrix."""

    @property
    def real(self) -> Array:
        """bool[R, S]: the real tokens of each row."""

    @property
    def position(self) -> Array | None:
        """int32[R, S], each token's place in its example; None where that is its place in the row."""

    def takes_part(self, mask_padding: bool) -> Array | None:
        """Which rows of the matrices an SVT transforms, as `mask`; None is all of them, padding included."""

    def to_matrices(self, x: Array) -> Array:
        """[R, S, D] -> [E, L, D]. Rows where `mask` is false hold any finite numbers."""

    def to_rows(self, matrices: Array) -> Array:
        """[E, L, D] -> [R, S, D], zero where there is no token."""

    def to_maps(self, attention: Array) -> Array:
        """[R, N, S, S] -> [E, N, L, L]. Rows and columns where `mask` is false hold any finite numbers."""

    def first_tokens(self, x: Array) -> Array:
        """[R, S, D] -> [E, 1, D]."""

    def asking_first(self, x: Array) -> tuple[Array, Array]:
        """The first tokens by row [R, M, D], and which keys they attend to: bool[R, M, S]."""

    def of_first(self, asked: Array) -> Array:
        """[R, M, D] of `asking_first` -> [E, 1, D]."""

    def means(self, x: Array) -> Array:
        """[R, S, D] -> [E, D], the mean of each example's real tokens."""


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class OneInEachRow:
    """One example in each row, real tokens anywhere in it.

    Attributes:
      mask: bool[B, L], true for real tokens.
    """

    mask: Array

    @property
    def attends(self) -> Array:
        return self.mask[:, None, :]

    @property
    def segments(self) -> tuple[Array, Array]:
        return jnp.ones((len(self.mask), 1), jnp.int32), self.mask.astype(jnp.int32)

    @property
    def per_row(self) -> int:
        return 1

    @property
    def real(self) -> Array:
        return self.mask

    @property
    def position(self) -> None:
        return None

    def takes_part(self, mask_padding: bool) -> Array | None:
        return self.mask if mask_padding else None

    def to_matrices(self, x: Array) -> Array:
        return x

    def to_rows(self, matrices: Array) -> Array:
        return matrices

    def to_maps(self, attention: Array) -> Array:
        return attention

    def first_tokens(self, x: Array) -> Array:
        return x[:, :1]

    def asking_first(self, x: Array) -> tuple[Array, Array]:
        return x[:, :1], self.attends

    def of_first(self, asked: Array) -> Array:
        return asked

    def means(self, x: Array) -> Array:
        count = jnp.sum(self.mask, axis=1, dtype=jnp.float32)[:, None]
        return jnp.sum(x.astype(jnp.float32), axis=1, where=self.mask[..., None]) / count


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Packed:
    """Several examples in each row.

    Rows and examples come in `groups` of consecutive ones; an example lies in the rows of its own group. Where a mesh
    divides rows and examples by groups, nothing below needs another device's data.

    Attributes:
      segment: int32[R, S], the number from 1 of a token's example in its group; 0 for padding.
      position: int32[R, S], the token's place in its example.
      row, start, length: int32[E], each example's row in its group, its first token's place in the row, its number of
        tokens. An example of length 0 only fills up the batch.
      number: int32[E], how many examples begin before it in its row.
      longest: L.
      per_row: M, the largest number of examples in a row.
      groups: number of groups; divides R and E.
    """

    segment: Array
    position: Array
    row: Array
    start: Array
    length: Array
    number: Array
    longest: int = dataclasses.field(metadata={"static": True})
    per_row: int = dataclasses.field(metadata={"static": True})
    groups: int = dataclasses.field(default=1, metadata={"static": True})

    @property
    def attends(self) -> Array:
        return (self.segment[:, :, None] == self.segment[:, None, :]) & (self.segment > 0)[:, None, :]

    @property
    def segments(self) -> tuple[Array, Array]:
        return self.segment, self.segment

    @property
    def real(self) -> Array:
        return self.segment > 0

    @property
    def mask(self) -> Array:
        return jnp.arange(self.longest) < self.length[:, None]

    def takes_part(self, mask_padding: bool) -> Array:
        return self.mask  # an example has no padding here: the rest of its matrix are tokens of others

    def to_matrices(self, x: Array) -> Array:
        last = self.segment.size // self.groups - 1
        index = jnp.minimum(self._first[:, None] + jnp.arange(self.longest), last)  # [E, L]
        return self._taken(x, index)

    def to_rows(self, matrices: Array) -> Array:
        # Tokens lie in matrices as in rows of L, so this is the same gather with the other index.
        place = (self.segment - 1) * self.longest + self.position
        return jnp.where((self.segment > 0)[..., None], self._taken(matrices, jnp.maximum(place, 0)), 0.0)

    def to_maps(self, attention: Array) -> Array:
        rows, heads, size, _ = attention.shape
        asking = self.to_matrices(attention.swapaxes(1, 2).reshape(rows, size, heads * size))
        keys = jnp.minimum(self.start[:, None] + jnp.arange(self.longest), size - 1)[:, None, None]  # [E, 1, 1, L]
        asking = asking.reshape(-1, self.longest, heads, size)
        return jnp.take_along_axis(asking, keys, axis=-1, mode="promise_in_bounds").swapaxes(1, 2)

    def first_tokens(self, x: Array) -> Array:
        return self._taken(x, self._first[:, None])

    def asking_first(self, x: Array) -> tuple[Array, Array]:
        chosen = self._row_places
        tokens = self.first_tokens(x).reshape(self.groups, -1, x.shape[-1])  # [G, E/G, D]
        asking = jnp.matmul(chosen.astype(x.dtype), tokens, precision=jax.lax.Precision.HIGHEST)
        segment = jnp.sum(jnp.where(chosen, jnp.arange(1, chosen.shape[2] + 1), 0), axis=-1)  # 0 where there is none
        segment = segment.reshape(len(self.segment), self.per_row, 1)
        attends = (segment == self.segment[:, None, :]) & (self.segment > 0)[:, None, :]
        return shard_batch(asking.reshape(len(self.segment), self.per_row, x.shape[-1])), attends

    def of_first(self, asked: Array) -> Array:
        by_group = asked.reshape(self.groups, -1, asked.shape[-1])
        chosen = self._row_places.astype(asked.dtype)
        examples = jnp.matmul(chosen.mT, by_group, precision=jax.lax.Precision.HIGHEST)
        return shard_batch(examples.reshape(len(self.row), 1, asked.shape[-1]))

    def means(self, x: Array) -> Array:
        groups = self.groups
        number = jnp.arange(1, len(self.row) // groups + 1)
        chosen = self.segment.reshape(groups, 1, -1) == number[:, None]  # [G, E/G, R S/G]
        tokens = x.reshape(groups, -1, x.shape[-1]).astype(jnp.float32)
        total = jnp.einsum("gen,gnd->ged", chosen.astype(jnp.float32), tokens, precision=jax.lax.Precision.HIGHEST)
        return total.reshape(-1, x.shape[-1]) / jnp.maximum(self.length, 1).astype(jnp.float32)[:, None]

    @property
    def _first(self) -> Array:
        """int32[E], the place of each example's first token among all tokens of its group."""
        return self.row * self.segment.shape[1] + self.start

    @property
    def _row_places(self) -> Array:
        """bool[G, R/G M, E/G]: which example is the m-th of a row."""
        place = jnp.where(self.length > 0, self.row * self.per_row + self.number, -1).reshape(self.groups, 1, -1)
        return jnp.arange(len(self.segment) // self.groups * self.per_row)[:, None] == place

    def _taken(self, x: Array, index: Array) -> Array:
        """Takes rows of x [., ., D] at index [n, m], which counts the group's rows: [n, m, D]."""
        by_group = x.reshape(self.groups, -1, x.shape[-1])
        taken = jnp.take_along_axis(by_group, index.reshape(self.groups, -1, 1), axis=1, mode="promise_in_bounds")
        return shard_batch(taken.reshape(*index.shape, x.shape[-1]))


def read_batch(
    batch: dict[str, Any], longest: int = 0, per_row: int = 0, groups: int = 1
) -> tuple[Array, Array, Layout]:
    """Returns ids, token types and layout of a batch of `data.packed_rows` or `data.batching`."""
    if "segment" not in batch:
        return batch["input_ids"], batch["token_type_ids"], OneInEachRow(batch["attention_mask"].astype(bool))
    places = {name: batch[name] for name in ("segment", "position", "row", "start", "length", "number")}
    return batch["ids"], batch["token_types"], Packed(**places, longest=longest, per_row=per_row, groups=groups)
