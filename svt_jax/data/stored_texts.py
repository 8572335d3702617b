"""Texts of a large table or data set: read in blocks where they are asked for, so they may be larger than the memory."""

from __future__ import annotations

import bisect
import collections
import dataclasses
import functools
import hashlib
import json
from collections.abc import Iterator, Sequence
from typing import Any, overload

from svt_jax.data.table_rows import Place
from svt_jax.data.tables import Block, Columns, Table
from svt_jax.stores import readable_file

KEPT_BYTES = 2**25
"""The texts of a smaller file are kept in memory, which takes a few times its size."""
KEPT_ROWS = 100_000
"""The same for a data set of the hub, which the library datasets maps from Arrow files."""


class StoredTexts:
    """The columns of a table, by number of the complete row: in memory for a small file, otherwise by block.

    Args:
      table: the table. Its file must stay as it is.
    """

    def __init__(self, table: Table):
        self._table = table
        self._kept: dict[str, list[str]] | None = {} if _size(table) <= KEPT_BYTES else None
        self._places: list[Place] = []
        self._starts = [0]
        self._digests: dict[str, Any] = collections.defaultdict(hashlib.sha256)
        self._block = functools.lru_cache(maxsize=2)(self._read)

    def add(self, block: Block) -> None:
        """Adds the next block of the table, which must have no problems if its texts are asked for."""
        if self._kept is not None:
            for column, texts in block.columns.values.items():
                self._kept.setdefault(column, []).extend(texts)
            return
        for column in self._table.required:
            self._digests[column].update(json.dumps(block.columns.values[column]).encode())
        self._places.append(block.place)
        self._starts.append(self._starts[-1] + len(block.columns))

    def column(self, name: str) -> Sequence[str]:
        """The texts of a column."""
        return self._kept[name] if self._kept is not None else _Column(self, name)

    def __len__(self) -> int:
        return self._starts[-1]

    def digest(self, name: str) -> str:
        """A hash of a column's texts, which needs no second reading."""
        return self._digests[name].hexdigest()

    def rows(self, name: str, start: int, stop: int) -> list[str]:
        """A column's texts of the rows from start to stop."""
        found: list[str] = []
        number = bisect.bisect_right(self._starts, start) - 1
        while start < stop:
            first, last = self._starts[number], self._starts[number + 1]
            found += self._block(number).values[name][start - first : stop - first]
            start, number = max(start, last), number + 1
        return found

    def _read(self, number: int) -> Columns:
        columns = self._table.block_at(self._places[number]).columns
        if len(columns) != self._starts[number + 1] - self._starts[number]:
            raise ValueError(
                f"{self._table.path} has changed while it was read; a run needs it as it is. Start again when it is complete."
            )
        return columns


class _Column(Sequence[str]):
    """One column of `StoredTexts`. A slice is a list."""

    def __init__(self, texts: StoredTexts, name: str):
        self._texts, self._name = texts, name

    def __len__(self) -> int:
        return len(self._texts)

    @property
    def digest(self) -> str:
        return self._texts.digest(self._name)

    @overload
    def __getitem__(self, index: int) -> str: ...
    @overload
    def __getitem__(self, index: slice) -> list[str]: ...
    def __getitem__(self, index: int | slice) -> str | list[str]:
        if isinstance(index, slice):
            start, stop, step = index.indices(len(self))
            assert step == 1, "blocks are read in order"
            return self._texts.rows(self._name, start, stop)
        index = range(len(self))[index]
        return self._texts.rows(self._name, index, index + 1)[0]


@dataclasses.dataclass(frozen=True)
class Part:
    """Some rows of a data set: the number of the first one, and their values by column."""

    first: int
    values: dict[str, list[Any]]


_PART = 10_000


def read_parts(data: Any, columns: Sequence[str]) -> Iterator[Part]:
    """All rows of a `datasets.Dataset`, in parts."""
    for start in range(0, len(data), _PART):
        rows = data[start : start + _PART]
        yield Part(start, {column: list(rows[column]) for column in columns})


def _size(table: Table) -> int:
    try:
        return readable_file(table.path).stat().st_size
    except OSError:  # reading it says what is wrong
        return 0
