"""Columns of a text file, every row as it stands: tab-separated without quoting, CSV with quoting, or JSON lines.

Rows are counted exactly. Only a newline ends a line; other control characters, U+2028 and a lone carriage return are
text. Quotes and backslashes in a TSV are text, and blanks are kept. A leading byte-order mark is not text.

A value is the text that stands in the file, in every format: JSON's 1, 1.0 and true are the cells 1, 1.0 and true.
A missing value is an error: an empty cell, a short row, an absent key, null, NaN.
"""

from __future__ import annotations

import csv
import dataclasses
import io
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NoReturn

ENDINGS = (".tsv", ".csv", ".jsonl")
"""Endings of tables. A .txt is read as a .tsv only where its reader says so, as MRPC's msr_paraphrase_train.txt."""
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


def read_columns(
    path: Path,
    required: Sequence[str],
    *,
    optional: Sequence[str] = (),
    header: Sequence[str] | None = None,
    skip_short: bool = False,
    may_be_empty: Sequence[str] = (),
) -> Columns:
    """Columns of a .tsv, .csv or .jsonl file.

    Args:
      path: the file; its ending decides the format. A .txt is read as a .tsv.
      required: columns that must be there.
      optional: columns that may be there, in all rows or in none.
      header: names of a TSV's columns if the file has no header line.
      skip_short: leave out a TSV's rows that have too few columns.
      may_be_empty: columns whose empty cells are text.
    Raises:
      ValueError: if the file is missing, is not UTF-8, has another ending or no rows, lacks a column or names it twice,
        a row is malformed, or a value is missing. The error names up to five lines.
    """
    columns, problems = scan_columns(
        path, required, optional=optional, header=header, skip_short=skip_short, may_be_empty=may_be_empty
    )
    if problems:
        refuse(name_lines(path, problems))
    return columns


def scan_columns(
    path: Path,
    required: Sequence[str],
    *,
    optional: Sequence[str] = (),
    header: Sequence[str] | None = None,
    skip_short: bool = False,
    may_be_empty: Sequence[str] = (),
) -> tuple[Columns, list[Problem]]:
    """As `read_columns`: the complete rows, and the problems of the others."""
    text = _read_text(path)
    if _kind(path) == ".jsonl":
        columns, problems = _from_json(path, text, required, optional)
    else:
        columns, problems = _from_cells(path, text, required, optional, header, skip_short)
    filled = [column for column in columns.values if column not in may_be_empty]
    empty = {
        n: f"{column} is empty"
        for column in reversed(filled)
        for n, value in enumerate(columns.values[column])
        if not value.strip()
    }
    if not empty:
        return columns, problems
    problems = sorted([*problems, *((columns.lines[n], what) for n, what in empty.items())])
    whole = [n for n in range(len(columns)) if n not in empty]
    values = {column: [texts[n] for n in whole] for column, texts in columns.values.items()}
    return Columns(values, [columns.lines[n] for n in whole], columns.left_out), problems


def read_header(path: Path) -> list[str]:
    """The cells of a file's first row, or the names in its first JSON object; empty for an empty file.

    Raises:
      ValueError: if the file is missing, is not UTF-8, or has an ending that is not a table's.
    """
    text = _read_text(path)
    if _kind(path) == ".jsonl":
        return list(next((row for _, row in _json_rows(text) if isinstance(row, dict)), {}))
    return next(_cell_rows(path, text), (0, []))[1]


def read_lines(path: Path) -> list[str]:
    """The lines of a text file, without their line endings.

    Raises:
      ValueError: if the file is missing or is not UTF-8.
    """
    return _split_lines(_read_text(path))


def name_lines(path: Path, problems: Sequence[Problem]) -> list[str]:
    """The problems as lines of an error, each with its file and line number."""
    return [f"{path}, line {line}: {what}" for line, what in problems]


def refuse(problems: Sequence[str], advice: str = "Correct the file.") -> NoReturn:
    """Raises ValueError with the first problems and the number of the others."""
    more = f"; and {len(problems) - _SHOWN} more" if len(problems) > _SHOWN else ""
    raise ValueError(f"{'; '.join(problems[:_SHOWN])}{more}. {advice}")


def _kind(path: Path) -> str:
    kind = path.suffix.lower()
    if kind not in (*ENDINGS, ".txt"):
        raise ValueError(
            f"{path} ends in {path.suffix!r}; allowed are {', '.join(ENDINGS)} and .txt. Convert it, or correct its name."
        )
    return kind


def _read_text(path: Path) -> str:
    try:
        # read bytes: text mode would end a line at a lone carriage return
        return path.read_bytes().decode("utf-8-sig")
    except (UnicodeDecodeError, OSError) as error:
        raise ValueError(f"{path} cannot be read ({error}); allowed is UTF-8 text. Correct the file.") from error


def _split_lines(text: str) -> list[str]:
    lines = text.split("\n")
    if lines[-1] == "":
        lines.pop()  # the empty text after the last newline
    return [line.removesuffix("\r") for line in lines]


def _cell_rows(path: Path, text: str) -> Iterator[tuple[int, list[str]]]:
    if _kind(path) == ".csv":
        yield from _csv_rows(path, text)
    else:
        for number, line in enumerate(_split_lines(text), start=1):
            yield number, line.split("\t")


def _csv_rows(path: Path, text: str) -> Iterator[tuple[int, list[str]]]:
    reader = csv.reader(io.StringIO(text, newline=""), strict=True)
    line = 1
    limit = csv.field_size_limit(2**31 - 1)  # applies to all readers; by default csv rejects a long cell
    try:
        for row in reader:
            if row:  # csv yields an empty row for an empty line
                yield line, row
            line = reader.line_num + 1
    except csv.Error as error:
        raise ValueError(
            f"{path}, line {line}: {error}; allowed is CSV with double quotes. Correct the file."
        ) from error
    finally:
        csv.field_size_limit(limit)


def _from_cells(
    path: Path,
    text: str,
    required: Sequence[str],
    optional: Sequence[str],
    header: Sequence[str] | None,
    skip_short: bool,
) -> tuple[Columns, list[Problem]]:
    rows = _cell_rows(path, text)
    names = list(header) if header is not None else next(rows, (0, []))[1]
    table = list(rows)
    while len(table) > 1 and len(names) > 1 and table[-1][1] == [""]:
        table.pop()  # empty lines at the end
    if not table:
        raise ValueError(f"{path} has no rows. Correct the file.")
    missing = [column for column in required if column not in names]
    if missing:
        raise ValueError(f"{path} lacks the columns {missing}; it has {names}. Correct the file or the names.")
    wanted = [column for column in (*required, *optional) if column in names]
    twice = [column for column in wanted if names.count(column) > 1]
    if twice:
        raise ValueError(f"{path} names the columns {twice} more than once; a name stands for one. Rename one of them.")
    number = len(table)
    if skip_short:
        table = [row for row in table if len(row[1]) >= len(names)]
    if not table:
        raise ValueError(f"{path} has no row of {len(names)} columns ({', '.join(names)}). Correct the file.")
    left_out = number - len(table)
    problems = [
        (line, f"{len(row)} columns where {len(names)} are expected ({', '.join(names)})")
        for line, row in table
        if len(row) != len(names)
    ]
    if problems:
        table = [row for row in table if len(row[1]) == len(names)]
    values = {column: [row[n] for _, row in table] for column in wanted for n in [names.index(column)]}
    return Columns(values, [line for line, _ in table], left_out), problems


def _from_json(
    path: Path, text: str, required: Sequence[str], optional: Sequence[str]
) -> tuple[Columns, list[Problem]]:
    rows = list(_json_rows(text))
    if not rows:
        raise ValueError(f"{path} has no rows. Correct the file.")
    objects = [row for _, row in rows if isinstance(row, dict)]
    wanted = [*required, *(column for column in optional if any(column in row for row in objects))]
    values: dict[str, list[str]] = {column: [] for column in wanted}
    lines: list[int] = []
    problems: list[Problem] = []
    for line, row in rows:
        if wrong := row if isinstance(row, str) else _wrong_values(row, wanted):
            problems.append((line, wrong))
            continue
        lines.append(line)
        for column in wanted:
            value = row[column]
            values[column].append(value if isinstance(value, str) else json.dumps(value))
    return Columns(values, lines), problems


def _json_rows(text: str) -> Iterator[tuple[int, Any]]:
    """Line number and object of each row, numbers as written; for a line that is not an object, what is wrong."""
    for number, line in enumerate(text.split("\n"), start=1):
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
