"""CSV and TSV to rows; a broken record costs itself and no other."""

from __future__ import annotations

import csv
from collections import deque
from collections.abc import Generator, Iterator
from contextlib import closing
from itertools import chain
from pathlib import Path
from typing import Any

from indexing.catalog.files import (
    MAX_FIELD,
    MAX_ROW,
    lines,
    open_text,
    reading,
    text_problem,
)
from indexing.catalog.rows import Row, RowError, Table, broken
from indexing.errors import CatalogError
from indexing.messages import printable, shown

_DELIMITERS = ",;\t|"
_TAB_SUFFIXES = frozenset({".tsv", ".tab"})


def delimited_table(path: Path, suffix: str) -> Table:
    """The table of a CSV or TSV file. The header tells the delimiter unless `suffix` does.

    A column that comes twice holds the list of its values. Raises CatalogError.
    """
    with reading(path), closing(open_text(path)) as stream:
        line = next((line for line in lines(stream) if line.strip()), "")
    if not line:
        raise CatalogError(f"{shown(path)}: the file is empty")
    if problem := text_problem(line):
        raise CatalogError(f"{shown(path)}: not a text file: the header {problem}")
    delimiter = "\t" if suffix in _TAB_SUFFIXES else max(_DELIMITERS, key=line.count)
    with reading(path), closing(_records(path, delimiter)) as records:
        header, problem = next(records)
    if problem or sum(map(len, header)) > MAX_FIELD:
        reason = printable(problem or "too long")
        raise CatalogError(f"{shown(path)}: the header cannot be read: {reason}")
    names = tuple(name.strip() for name in header)
    columns = tuple(dict.fromkeys(name for name in names if name))
    return Table(columns, lambda: _rows(path, delimiter, names))


def _rows(path: Path, delimiter: str, names: tuple[str, ...]) -> Iterator[Row]:
    with reading(path), closing(_records(path, delimiter)) as records:
        next(records)
        plain = len(set(names)) == len(names) and all(names)
        for number, (fields, problem) in enumerate(records, 1):
            if problem:
                yield broken(number, "row", delimiter.join(fields), problem)
            elif any(fields[len(names) :]):
                reason = f"{len(fields)} fields where the header has {len(names)}"
                yield broken(number, "row", delimiter.join(fields), reason)
            else:
                # A short row: what is missing is empty.
                cells = dict(zip(names, fields)) if plain else _repeated(names, fields)  # noqa: B905
                yield Row(number, cells, _too_long(names, fields))


def _repeated(names: tuple[str, ...], fields: list[str]) -> dict[str, Any]:
    values: dict[str, list[str]] = {name: [] for name in names if name}
    for name, field in zip(names, fields):  # noqa: B905
        if name and field:
            values[name].append(field)
    return {name: found if len(found) > 1 else "".join(found) for name, found in values.items()}


def _too_long(names: tuple[str, ...], fields: list[str]) -> RowError | None:
    for name, field in zip(names, fields):  # noqa: B905
        if len(field) > MAX_FIELD:
            return RowError(name, field, f"longer than {MAX_FIELD:,} characters")
    return None


class _RecordTooLongError(Exception):
    pass


class _Lines:
    """Feeds csv.reader, and can go back to the second line of a record.

    A quote that is opened and never closed would swallow the rest of the file.
    """

    def __init__(self, source: Iterator[str]) -> None:
        self._source = source
        self._again: deque[str] = deque()
        self._size = 0
        self.record: list[str] = []

    def __iter__(self) -> Iterator[str]:
        return self

    def __next__(self) -> str:
        line = self._again.popleft() if self._again else next(self._source)
        self.record.append(line)
        self._size += len(line)
        if self._size > MAX_ROW:
            raise _RecordTooLongError
        return line

    def start(self) -> None:
        self.record.clear()
        self._size = 0

    def go_back(self) -> None:
        self._again.extendleft(reversed(self.record[1:]))


def _records(path: Path, delimiter: str) -> Generator[tuple[list[str], str | None], None, None]:
    """Yields the header and each record that is not blank, with its problem if it has one."""
    # The limit is one for the whole process; ours is checked on the finished cell.
    csv.field_size_limit(max(csv.field_size_limit(), MAX_ROW + 1))
    with closing(open_text(path)) as stream:
        feed, width = _Lines(lines(stream)), 0
        reader = csv.reader(feed, delimiter=delimiter, strict=True)
        while True:
            feed.start()
            try:
                fields = next(reader)
            except StopIteration:
                return
            except csv.Error as error:
                problem = f"not a {'TSV' if delimiter == chr(9) else 'CSV'} record ({error})"
            except _RecordTooLongError:
                problem = f"longer than {MAX_ROW:,} characters, or a quote that is not closed"
            else:
                if not fields or (len(fields) == 1 and not fields[0].strip()):
                    continue
                if not _swallowed(feed.record, delimiter, width):
                    width = width or len(fields)
                    text = feed.record[0] if len(feed.record) == 1 else "".join(feed.record)
                    yield fields, text_problem(text)
                    continue
                problem = "a quote that is not closed; each line after it is a row"
            feed.go_back()
            yield [feed.record[0][:MAX_FIELD].rstrip("\r\n")], problem


def _swallowed(record: list[str], delimiter: str, width: int) -> bool:
    """Whether a record of many lines is rows of `width` fields that a stray quote joined.

    All its lines, the first without its open quote, are then whole rows. Prose in quotes
    can be cut by commas into as many pieces, but has spaces behind them.
    """
    if len(record) == 1 or width < 2:
        return False
    *closed, open_field = next(csv.reader(record[:1], delimiter=delimiter))
    first = closed + open_field.rstrip("\r\n").split(delimiter)
    others = (next(csv.reader([line], delimiter=delimiter), []) for line in record[1:])
    return all(
        len(fields) == width and not any(field[:1].isspace() for field in fields)
        for fields in chain([first], others)
    )
