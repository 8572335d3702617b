"""The tokens of a split: one array of all tokens, one example after another, in memory or mapped from a file."""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import mmap
from collections.abc import Iterator

import numpy as np

_BLOCK = 2**21
"""Tokens that a pass over all of them holds at a time."""


@dataclasses.dataclass(frozen=True)
class Tokens:
    """Token arrays of one split.

    Attributes:
      flat_ids: int[number of all tokens], the tokens of all examples one after another.
      flat_types: int[number of all tokens], 1 in the second sentence of a pair.
      lengths: int32[N], number of tokens of each example.
      labels: as in `Examples`.
      pad_id: the token that fills up shorter rows.

    Example:
      >>> tokens = Tokens(np.array([5, 6, 7, 8]), np.zeros(4, int), np.array([3, 1]), None, pad_id=0)
      >>> tokens.ids.tolist()
      [[5, 6, 7], [8, 0, 0]]
    """

    flat_ids: np.ndarray
    flat_types: np.ndarray
    lengths: np.ndarray
    labels: np.ndarray | None
    pad_id: int

    def __len__(self) -> int:
        return len(self.lengths)

    @classmethod
    def of_padded(
        cls, ids: np.ndarray, types: np.ndarray, lengths: np.ndarray, labels: np.ndarray | None, pad_id: int
    ) -> Tokens:
        """Builds from rows [N, L], of which the first `lengths` are tokens."""
        real = np.arange(ids.shape[1]) < lengths[:, None]
        return cls(ids[real], types[real], lengths, labels, pad_id)

    @functools.cached_property
    def starts(self) -> np.ndarray:
        """int[N], the place of each example's first token."""
        starts = np.zeros(len(self.lengths), np.uint32 if len(self.flat_ids) < 2**32 else np.int64)
        np.cumsum(self.lengths[:-1], out=starts[1:])
        return starts

    @functools.cached_property
    def longest(self) -> int:
        """Number of tokens of the longest example."""
        return int(self.lengths.max())

    def padded(self, examples: np.ndarray | slice, length: int) -> tuple[np.ndarray, np.ndarray]:
        """The tokens and types of some examples, each int32[n, length]; longer examples are cut."""
        lengths = np.minimum(self.lengths[examples], length)
        real = np.arange(length) < lengths[:, None]
        places = (self.starts[examples][:, None] + np.arange(length))[real]
        ids, types = np.full(real.shape, self.pad_id, np.int32), np.zeros(real.shape, np.int32)
        ids[real], types[real] = self.flat_ids[places], self.flat_types[places]
        return ids, types

    def take(self, examples: np.ndarray) -> Tokens:
        """These examples, in this order, in memory.

        Example:
          >>> tokens = Tokens(np.array([5, 6, 7, 8]), np.zeros(4, int), np.array([3, 1]), None, pad_id=0)
          >>> tokens.take(np.array([1, 0])).flat_ids.tolist()
          [8, 5, 6, 7]
        """
        lengths = self.lengths[examples]
        first = self.starts[examples].astype(np.int64) - (np.cumsum(lengths, dtype=np.int64) - lengths)
        places = np.repeat(first, lengths) + np.arange(lengths.sum(dtype=np.int64))
        labels = None if self.labels is None else self.labels[examples]
        return Tokens(self.flat_ids[places], self.flat_types[places], lengths, labels, self.pad_id)

    @property
    def ids(self) -> np.ndarray:
        """int32[N, L], padded to the longest example. For small splits."""
        return self.padded(slice(None), self.longest)[0]

    @property
    def types(self) -> np.ndarray:
        """As `ids`, for `flat_types`."""
        return self.padded(slice(None), self.longest)[1]

    @property
    def real(self) -> np.ndarray:
        """bool[N, L], true for a real token, false for padding."""
        return np.arange(self.longest) < self.lengths[:, None]

    def used_ids(self) -> np.ndarray:
        """All different tokens, ascending."""
        blocks = range(0, len(self.flat_ids), _BLOCK)
        used = np.unique(np.concatenate([np.unique(self.flat_ids[start : start + _BLOCK]) for start in blocks]))
        _let_go(self.flat_ids)
        return used

    def padded_blocks(self) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """`ids` and `types` in blocks of rows, for splits of any size."""
        rows = max(1, _BLOCK // self.longest)
        for start in range(0, len(self), rows):
            yield self.padded(slice(start, start + rows), self.longest)
        _let_go(self.flat_ids)
        _let_go(self.flat_types)


def _let_go(array: np.ndarray) -> None:
    """Takes a mapped file's pages out of the process's memory. The system keeps them as long as it has room."""
    if isinstance(array, np.memmap) and hasattr(mmap, "MADV_DONTNEED"):
        array._mmap.madvise(mmap.MADV_DONTNEED)  # type: ignore[attr-defined]


def hash_tokens(tokens: Tokens) -> str:
    """SHA-256 of every example's tokens and label, in order, as `ids`, `types`, `lengths` and `labels`."""
    digest = hashlib.sha256()
    for part in (0, 1):
        digest.update(f"{np.dtype(np.int32).str}{(len(tokens), tokens.longest)}".encode())
        for block in tokens.padded_blocks():
            digest.update(block[part].data)
    for array in (tokens.lengths, tokens.labels):
        if array is not None:
            digest.update(f"{array.dtype.str}{array.shape}".encode())
            digest.update(np.ascontiguousarray(array).data)
    return digest.hexdigest()
