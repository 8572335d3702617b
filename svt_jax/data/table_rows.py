"""Rows of a text file in blocks of about a megabyte, so that a file may be larger than the memory.

Each block tells its place, and can be read again from there. `tables` makes columns of the rows.
"""

from __future__ import annotations

import csv
import dataclasses
import io
import json
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import IO, Any

from svt_jax.stores import readable_file

ENDINGS = (".tsv", ".csv", ".jsonl")
"""Endings of tables. A .txt is read as a .tsv only where its reader says so, as MRPC's msr_paraphrase_train.txt."""
BLOCK_BYTES = 2**20
"""A block ends with the row that reaches this size."""

Row = tuple[int, Any]
"""The number of the line on which a row begins, and its cells; for JSON its object, or what is wrong with the line."""


@dataclasses.dataclass(frozen=True)
class Place:
    """Where a block begins: the byte of the file, and the number of the line."""

    offset: int = 0
    line: int = 1


def kind_of(path: Path) -> str:
    """The ending that decides the format. Raises ValueError if it is not a table's."""
    kind = path.suffix.lower()
    if kind not in (*ENDINGS, ".txt"):
        raise ValueError(
            f"{path} ends in {path.suffix!r}; allowed are {', '.join(ENDINGS)} and .txt. Convert it, or correct its name."
        )
    return kind


def row_blocks(path: Path, begin: Place = Place()) -> Iterator[tuple[Place, list[Row]]]:
    """The file's blocks from this place on, each with its place.

    Raises:
      ValueError: if the file cannot be read, is not UTF-8, has another ending, or is not CSV where it should be.
    """
    kind = kind_of(path)
    try:
        with readable_file(path).open("rb") as file:
            if kind == ".csv":
                yield from _csv_blocks(path, file, begin)
                return
            for place, lines in _line_blocks(file, begin):
                numbered = enumerate(lines, start=place.line)
                if kind == ".jsonl":
                    yield place, list(_json_rows(numbered))
                else:
                    yield place, [(number, line.removesuffix("\r").split("\t")) for number, line in numbered]
    except (UnicodeDecodeError, OSError) as error:
        raise cannot_be_read(path, error) from error


def cannot_be_read(path: Path, error: Exception) -> ValueError:
    """The error for a file that the system or the decoder refuses."""
    if isinstance(error, FileNotFoundError):
        return ValueError(f"{path} cannot be read: there is no such file. Check the path.")
    if isinstance(error, OSError):
        return ValueError(f"{path} cannot be read ({error.strerror or error}); allowed is a file. Check the path.")
    return ValueError(f"{path} cannot be read ({error}); allowed is UTF-8 text. Correct the file.")


def _line_blocks(file: IO[bytes], begin: Place) -> Iterator[tuple[Place, list[str]]]:
    # bytes: text mode would end a line at a lone carriage return
    place = begin
    file.seek(begin.offset)
    while content := file.read(BLOCK_BYTES) + file.readline():
        lines = content.decode("utf-8" if place.offset else "utf-8-sig").split("\n")
        if lines[-1] == "":
            lines.pop()  # the empty text after the last newline
        yield place, lines
        place = Place(place.offset + len(content), place.line + len(lines))


class _CountedLines:
    """Lines of text, and the bytes of those that were taken."""

    def __init__(self, lines: Iterable[str], read: int):
        self._lines, self.read = iter(lines), read

    def __iter__(self) -> Iterator[str]:
        for line in self._lines:
            self.read += len(line.encode())
            yield line


def _csv_blocks(path: Path, file: IO[bytes], begin: Place) -> Iterator[tuple[Place, list[Row]]]:
    marked = file.read(3) == b"\xef\xbb\xbf"  # a byte-order mark
    first = begin.offset or 3 * marked
    file.seek(first)
    place = begin
    with io.TextIOWrapper(file, "utf-8", newline="") as text:
        lines = _CountedLines(text, first)
        reader = csv.reader(lines, strict=True)
        while rows := list(_csv_rows(path, reader, begin.line, lines, place.offset + BLOCK_BYTES)):
            yield place, rows
            place = Place(lines.read, begin.line + reader.line_num)


def _csv_rows(path: Path, reader: Any, first: int, lines: _CountedLines, end: int) -> Iterator[Row]:
    line = first + reader.line_num
    limit = csv.field_size_limit(2**31 - 1)  # applies to all readers; by default csv rejects a long cell
    try:
        for row in reader:
            if row:  # csv yields an empty row for an empty line
                yield line, row
                if lines.read >= end:
                    return
            line = first + reader.line_num
    except csv.Error as error:
        raise ValueError(
            f"{path}, line {line}: {error}; allowed is CSV with double quotes. Correct the file."
        ) from error
    finally:
        csv.field_size_limit(limit)


def _json_rows(lines: Iterator[tuple[int, str]]) -> Iterator[Row]:
    """Numbers stay as written."""
    for number, line in lines:
        if not line.strip():
            continue
        try:
            row = json.loads(line, parse_int=str, parse_float=str, object_pairs_hook=_distinct)
        except (ValueError, RecursionError) as error:
            yield number, f"this is not JSON ({error})"
        else:
            yield number, row if isinstance(row, dict) else "allowed is an object with named values"


def _distinct(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        names = [name for name, _ in pairs]
        raise ValueError(f"{next(name for name in names if names.count(name) > 1)!r} stands more than once")
    return found
