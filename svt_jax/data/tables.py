"""Columns of a text file, every row as it stands: tab-separated without quoting, CSV with quoting, or JSON lines.

Rows are counted exactly. Only a newline ends a line; other control characters, U+2028 and a lone carriage return are
text. Quotes and backslashes in a TSV are text, and blanks are kept. A leading byte-order mark is not text.

A value is the text that stands in the file, in every format: JSON's 1, 1.0 and true are the cells 1, 1.0 and true.
A missing value is an error: an empty cell, a short row, an absent key, null, NaN.
"""

from __future__ import annotations

import dataclasses
import functools
import itertools
import json
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, NoReturn

from svt_jax.data.table_rows import ENDINGS, Place, Row, cannot_be_read, kind_of, row_blocks
from svt_jax.text import did_you_mean

__all__ = [
    "ENDINGS", "Block", "Columns", "Problem", "Table", "name_lines", "read_columns", "read_header", "read_lines", "refuse",
    "scan_columns",
]  # fmt: skip

_SHOWN = 5  # an error lists this many problems and counts the others

Problem = tuple[int, str]
"""The number of a line, and what is wrong there."""


@dataclasses.dataclass(frozen=True)
class Columns:
    """Named columns of a file.

    Attributes:
      values: texts by column; an absent optional column has no entry.
      lines: number of the line on which each row begins, for messages.
      left_out: number of rows that were too short.
    """

    values: dict[str, list[str]]
    lines: list[int]
    left_out: int = 0

    def __len__(self) -> int:
        return len(self.lines)


@dataclasses.dataclass(frozen=True)
class Block:
    """Some rows of a table, one after another.

    Attributes:
      place: where the block begins.
      columns: the complete rows.
      problems: what is wrong with the others.
    """

    place: Place
    columns: Columns
    problems: list[Problem]


@dataclasses.dataclass(frozen=True)
class Table:
    """Columns of a .tsv, .csv or .jsonl file, read in blocks. Nothing of the file is kept.

    Attributes:
      path: the file; its ending decides the format. A .txt is read as a .tsv.
      required: columns that must be there.
      optional: columns that may be there, in all rows or in none.
      header: names of a TSV's columns if the file has no header line.
      skip_short: leave out a TSV's rows that have too few columns.
      may_be_empty: columns whose empty cells are text.
    """

    path: Path
    required: Sequence[str]
    optional: Sequence[str] = ()
    header: Sequence[str] | None = None
    skip_short: bool = False
    may_be_empty: Sequence[str] = ()

    def blocks(self) -> Iterator[Block]:
        """All blocks in order.

        Raises:
          ValueError: if the file is missing, is not UTF-8, has another ending or no rows, lacks a column or names it
            twice. Malformed rows and missing values are problems of their block.
        """
        number = left_out = 0
        for place, rows in self._rows():
            if not number:
                self._check_names()
            number += len(rows)
            block = self._block(place, rows)
            left_out += block.columns.left_out
            yield block
        if not number:
            raise ValueError(f"{self.path} has no rows. Correct the file.")
        if left_out == number:
            names = self.names
            raise ValueError(f"{self.path} has no row of {len(names)} columns ({', '.join(names)}). Correct the file.")

    def block_at(self, place: Place) -> Block:
        """The block that begins there."""
        return self._block(*next(row_blocks(self.path, place) if place.offset or self._is_json else self._rows()))

    @functools.cached_property
    def names(self) -> list[str]:
        """All columns of a table of cells."""
        return list(self.header) if self.header is not None else read_header(self.path)

    @functools.cached_property
    def columns(self) -> list[str]:
        """Those of the required and optional columns that are there; in JSON those of the first object."""
        there = self._first[1] if self._is_json else self.names
        return [*self.required, *(column for column in self.optional if column in there)]

    @functools.cached_property
    def _first(self) -> Row:
        """The first object of a JSON file."""
        rows = (row for _, rows in row_blocks(self.path) for row in rows)
        return next((row for row in rows if isinstance(row[1], dict)), (0, {}))

    @property
    def _is_json(self) -> bool:
        return kind_of(self.path) == ".jsonl"

    def _rows(self) -> Iterator[tuple[Place, list[Row]]]:
        """The rows of each block, without header and without empty lines at the end of a table of cells."""
        blocks = row_blocks(self.path)
        if self._is_json:
            for place, rows in blocks:
                if objects := [row for row in rows if isinstance(row[1], dict)]:
                    self.__dict__.setdefault("_first", objects[0])  # not read again
                if rows:
                    yield place, rows
            return
        seen, held, begins = 0, list[Row](), self.header is None
        for place, rows in blocks:
            if begins and rows:
                self.__dict__.setdefault("names", rows[0][1])  # not read again
                rows, begins = rows[1:], False
            end = len(rows)
            while end and len(self.names) > 1 and rows[end - 1][1] == [""]:
                end -= 1
            if end:
                yield place, [*held, *rows[:end]]
                seen, held = seen + end, rows[end:]
            else:
                held += rows
        if held and not seen:
            yield Place(), held[:1]

    def _check_names(self) -> None:
        if self._is_json:
            return
        missing = [column for column in self.required if column not in self.names]
        if missing:
            advice = did_you_mean(missing, self.names, "Correct the file or the names.")
            raise ValueError(f"{self.path} lacks the columns {missing}; it has {self.names}. {advice}")
        twice = [column for column in self.columns if self.names.count(column) > 1]
        if twice:
            raise ValueError(
                f"{self.path} names the columns {twice} more than once; a name stands for one. Rename one of them."
            )

    def _block(self, place: Place, rows: list[Row]) -> Block:
        columns, problems = (self._of_objects if self._is_json else self._of_cells)(rows)
        filled = [column for column in columns.values if column not in self.may_be_empty]
        empty = {
            n: f"{column} is empty"
            for column in reversed(filled)
            for n, value in enumerate(columns.values[column])
            if not value.strip()
        }
        if empty:
            problems = sorted([*problems, *((columns.lines[n], what) for n, what in empty.items())])
            whole = [n for n in range(len(columns)) if n not in empty]
            values = {column: [texts[n] for n in whole] for column, texts in columns.values.items()}
            columns = Columns(values, [columns.lines[n] for n in whole], columns.left_out)
        return Block(place, columns, problems)

    def _of_cells(self, rows: list[Row]) -> tuple[Columns, list[Problem]]:
        names, number = self.names, len(rows)
        if self.skip_short:
            rows = [row for row in rows if len(row[1]) >= len(names)]
        left_out = number - len(rows)
        problems = [
            (line, f"{len(row)} columns where {len(names)} are expected ({', '.join(names)})")
            for line, row in rows
            if len(row) != len(names)
        ]
        if problems:
            rows = [row for row in rows if len(row[1]) == len(names)]
        values = {column: [row[n] for _, row in rows] for column in self.columns for n in [names.index(column)]}
        return Columns(values, [line for line, _ in rows], left_out), problems

    def _of_objects(self, rows: list[Row]) -> tuple[Columns, list[Problem]]:
        values: dict[str, list[str]] = {column: [] for column in self.columns}
        lines: list[int] = []
        problems: list[Problem] = []
        later = [column for column in self.optional if column not in self.columns]
        for line, row in rows:
            if wrong := row if isinstance(row, str) else _wrong_values(row, self.columns):
                problems.append((line, wrong))
                continue
            if late := [column for column in later if column in row]:
                problems.append((self._first[0], f"it lacks {late} and has {list(self._first[1])}"))
                later = []
            lines.append(line)
            for column, texts in values.items():
                value = row[column]
                texts.append(value if isinstance(value, str) else json.dumps(value))
        return Columns(values, lines), problems


def read_columns(path: Path, required: Sequence[str], **options: Any) -> Columns:
    """Columns of a whole file; the arguments are those of `Table`.

    Raises:
      ValueError: as `Table.blocks`, or if a row is malformed or a value is missing. The error names up to five lines.
    """
    columns, problems = scan_columns(path, required, **options)
    if problems:
        refuse(name_lines(path, problems))
    return columns


def scan_columns(path: Path, required: Sequence[str], **options: Any) -> tuple[Columns, list[Problem]]:
    """As `read_columns`: the complete rows, and the problems of the others."""
    blocks = list(Table(path, required, **options).blocks())
    values = {
        column: list(itertools.chain.from_iterable(block.columns.values[column] for block in blocks))
        for column in blocks[0].columns.values
    }
    lines = list(itertools.chain.from_iterable(block.columns.lines for block in blocks))
    left_out = sum(block.columns.left_out for block in blocks)
    return Columns(values, lines, left_out), [problem for block in blocks for problem in block.problems]


def read_header(path: Path) -> list[str]:
    """The cells of a file's first row, or the names in its first JSON object; empty for an empty file.

    Raises:
      ValueError: if the file is missing, is not UTF-8, or has an ending that is not a table's.
    """
    rows = (row for _, rows in row_blocks(path) for _, row in rows)
    if kind_of(path) == ".jsonl":
        return list(next((row for row in rows if isinstance(row, dict)), {}))
    return next(rows, [])


def read_lines(path: Path) -> list[str]:
    """The lines of a text file, without their line endings.

    Raises:
      ValueError: if the file is missing or is not UTF-8.
    """
    lines = _read_text(path).split("\n")
    if lines[-1] == "":
        lines.pop()  # the empty text after the last newline
    return [line.removesuffix("\r") for line in lines]


def name_lines(path: Path, problems: Iterable[Problem]) -> list[str]:
    """The problems as lines of an error, each with its file and line number."""
    return [f"{path}, line {line}: {what}" for line, what in problems]


def refuse(problems: Sequence[str], advice: str = "Correct the file.") -> NoReturn:
    """Raises ValueError with the first problems and the number of the others."""
    more = f"; and {len(problems) - _SHOWN} more" if len(problems) > _SHOWN else ""
    raise ValueError(f"{'; '.join(problems[:_SHOWN])}{more}. {advice}")


def _read_text(path: Path) -> str:
    try:
        # read bytes: text mode would end a line at a lone carriage return
        return path.read_bytes().decode("utf-8-sig")
    except (UnicodeDecodeError, OSError) as error:
        raise cannot_be_read(path, error) from error


def _wrong_values(row: dict[str, Any], wanted: Sequence[str]) -> str:
    """What is wrong with an object; empty if nothing is."""
    if missing := [column for column in wanted if column not in row]:
        return f"it lacks {missing} and has {list(row)}"
    for column in wanted:
        value = row[column]
        if not isinstance(value, str | bool):  # the parser made numbers strings, and NaN a float
            shown = json.dumps(value)
            shown = shown if len(shown) <= 60 else shown[:60] + "..."
            return f"{column} is {shown}; allowed is text, a number, true or false"
        if isinstance(value, str) and not _is_unicode(value):
            return f"{column} holds half of a surrogate pair, {ascii(value)[:60]}; allowed is Unicode text"
    return ""


def _is_unicode(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True
