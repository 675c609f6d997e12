"""What every reader of a file gives: columns, and rows that can be read again."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import islice
from typing import Any, NamedTuple

from indexing.catalog.rejects import RowError

_PEEKED = 100  # rows that tell the columns of a format without a header


class Row(NamedTuple):
    """One row; `number` counts from 1 without the header. `problem` set: cells unusable."""

    number: int
    cells: dict[str, Any]
    problem: RowError | None = None


@dataclass(frozen=True)
class Table:
    """A file's rows. `columns` names those of the header, or of the first rows."""

    columns: tuple[str, ...]
    rows: Callable[[], Iterator[Row]]

    @classmethod
    def without_header(cls, rows: Callable[[], Iterator[Row]]) -> Table:
        """A table whose columns are all keys of its first 100 rows."""
        first = islice(rows(), _PEEKED)
        return cls(tuple(dict.fromkeys(key for row in first for key in row.cells)), rows)


def broken(number: int, field: str, value: object, reason: str) -> Row:
    return Row(number, {}, RowError(field, value, reason))
