"""Columns of a text file, every row as it stands: tab-separated without quoting, CSV with quoting, or JSON lines.

Rows are counted exactly. Only a newline ends a line (other control characters, U+2028 and a lone carriage return are
text), quotes and backslashes in a TSV are text, blanks are kept, a byte-order mark at the start of the file is not text.
"""

from __future__ import annotations

import csv
import dataclasses
import io
import json
from collections.abc import Iterator, Sequence
from pathlib import Path


@dataclasses.dataclass(frozen=True)
class Columns:
    """Named columns of a file.

    Attributes:
      values: texts by column; one that is not required and not there is missing.
      lines: number of the line that each row begins on, for messages.
      left_out: rows that were too short.
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
) -> Columns:
    """Columns of a .tsv, .csv or .jsonl file.

    Args:
      path: the file; its ending says which kind.
      required: columns that must be there.
      optional: columns that may be there, in all rows or in none.
      header: names of a TSV's columns when the file has no header line.
      skip_short: leave out a TSV's rows that have too few columns.
    Raises:
      ValueError: if the file is missing, is not UTF-8, has no rows, lacks a column or names it twice, or a row is
        malformed (its line is named).
    """
    text = _read_text(path)
    if path.suffix == ".jsonl":
        return _from_json(path, text, required, optional)
    rows = _csv_rows(path, text) if path.suffix == ".csv" else _tsv_rows(text)
    if header is None:
        header = next(rows, (0, []))[1]
    table = list(rows)
    while len(table) > 1 and len(header) > 1 and table[-1][1] == [""]:
        table.pop()  # empty lines at the end
    if not table:
        raise ValueError(f"{path} has no rows. Correct the file.")
    missing = [column for column in required if column not in header]
    if missing:
        raise ValueError(f"{path} lacks the columns {missing}; it has {list(header)}. Correct the file or the names.")
    wanted = [column for column in (*required, *optional) if column in header]
    twice = [column for column in wanted if list(header).count(column) > 1]
    if twice:
        raise ValueError(f"{path} names the columns {twice} more than once; a name stands for one. Rename one of them.")
    short = [row for row in table if len(row[1]) < len(header)] if skip_short else []
    if short:
        table = [row for row in table if len(row[1]) >= len(header)]
    if not table:
        raise ValueError(f"{path} has no row of {len(header)} columns ({', '.join(header)}). Correct the file.")
    for line, row in table:
        if len(row) != len(header):
            raise ValueError(
                f"{path}, line {line}: {len(row)} columns where {len(header)} are expected ({', '.join(header)}). "
                "Correct the file."
            )
    places = {column: list(header).index(column) for column in wanted}
    values = {column: [row[n] for _, row in table] for column, n in places.items()}
    return Columns(values, [line for line, _ in table], len(short))


def read_lines(path: Path) -> list[str]:
    """The lines of a text file, without their ends.

    Raises:
      ValueError: if the file is missing or is not UTF-8.
    """
    return _split_lines(_read_text(path))


def _read_text(path: Path) -> str:
    try:
        # the bytes: text mode would take a lone carriage return for the end of a line
        return path.read_bytes().decode("utf-8-sig")
    except (UnicodeDecodeError, OSError) as error:
        raise ValueError(f"{path} cannot be read ({error}); allowed is UTF-8 text. Correct the file.") from error


def _split_lines(text: str) -> list[str]:
    lines = text.split("\n")
    if lines[-1] == "":
        lines.pop()  # after the newline at the end
    return [line.removesuffix("\r") for line in lines]


def _tsv_rows(text: str) -> Iterator[tuple[int, list[str]]]:
    for number, line in enumerate(_split_lines(text), start=1):
        yield number, line.split("\t")


def _csv_rows(path: Path, text: str) -> Iterator[tuple[int, list[str]]]:
    reader = csv.reader(io.StringIO(text, newline=""), strict=True)
    line = 1
    limit = csv.field_size_limit(2**31 - 1)  # of all readers; by default it takes a long document for a lost quote
    try:
        for row in reader:
            if row:  # csv's empty line
                yield line, row
            line = reader.line_num + 1
    except csv.Error as error:
        raise ValueError(
            f"{path}, line {line}: {error}; allowed is CSV with double quotes. Correct the file."
        ) from error
    finally:
        csv.field_size_limit(limit)


def _is_unicode(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _from_json(path: Path, text: str, required: Sequence[str], optional: Sequence[str]) -> Columns:
    values: dict[str, list[str]] = {}
    lines: list[int] = []
    for number, line in enumerate(text.split("\n"), start=1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except ValueError as error:
            raise ValueError(f"{path}, line {number} is not JSON ({error}). Correct the file.") from error
        if not isinstance(row, dict):
            raise ValueError(f"{path}, line {number}: allowed is an object with named values. Correct the file.")
        if not lines:
            values = {column: [] for column in (*required, *(c for c in optional if c in row))}
        missing = [column for column in values if column not in row]
        if missing:
            raise ValueError(
                f"{path}, line {number} lacks {missing}; it has {list(row)}. Correct the file or the names."
            )
        for column, texts in values.items():
            if isinstance(row[column], bool) or not isinstance(row[column], str | int | float):
                raise ValueError(
                    f"{path}, line {number}: {column} is {json.dumps(row[column])}; allowed is text or a number. "
                    "Correct the file."
                )
            text = str(row[column])
            if not _is_unicode(text):
                raise ValueError(
                    f"{path}, line {number}: {column} holds half of a surrogate pair, {ascii(text)[:60]}; allowed is Unicode "
                    "text. Correct the file."
                )
            texts.append(text)
        lines.append(number)
    if not lines:
        raise ValueError(f"{path} has no rows. Correct the file.")
    return Columns(values, lines)
