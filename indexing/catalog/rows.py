"""A file's rows as every reader gives them, and what could not be used of them."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from itertools import islice
from typing import Any, Literal, NamedTuple

COLUMNS_FROM = 100  # readable rows that tell the columns of a format without a header
LOOKED_AT = 10_000  # rows, readable or not, among which columns are looked for


Scope = Literal["row", "image", "field"]


@dataclass(frozen=True)
class Reject:
    """A row, or one picture or field of a row that is otherwise used.

    `row` counts from 1 and leaves the header out. `id`, `field` and `value` are
    printable and at most 200 characters; `id` is None where the row has none.
    """

    row: int
    id: str | None
    field: str
    value: str
    reason: str
    scope: Scope = "row"

    def to_json(self) -> str:
        """One line of JSON."""
        return json.dumps(asdict(self), ensure_ascii=False)


class RowError(Exception):
    """A row, or a part of one, that cannot be used; never leaves this package."""

    def __init__(self, field: str, value: object, reason: str) -> None:
        super().__init__(reason)
        self.field = field
        self.value = value
        self.reason = reason


class Row(NamedTuple):
    """One row; `number` counts from 1 without the header. `problem` set: cells unusable."""

    number: int
    cells: dict[str, Any]
    problem: RowError | None = None


def broken(number: int, field: str, value: object, reason: str) -> Row:
    return Row(number, {}, RowError(field, value, reason))


@dataclass(frozen=True)
class Table:
    """A file's rows. `columns` are those of the header, or of the first rows.

    `whole` says that there are no others; without a header, later rows may bring more.
    """

    columns: tuple[str, ...]
    rows: Callable[[], Iterator[Row]]
    whole: bool = True

    @classmethod
    def without_header(cls, rows: Callable[[], Iterator[Row]]) -> Table:
        """A table whose columns are all keys of its first 100 readable rows."""
        found: dict[str, None] = {}
        readable, source = 0, rows()
        for row in islice(source, LOOKED_AT):
            if not row.problem:
                found.update(dict.fromkeys(row.cells))
                readable += 1
            if readable == COLUMNS_FROM:
                break
        whole = readable < COLUMNS_FROM and next(source, None) is None
        return cls(tuple(found), rows, whole)
