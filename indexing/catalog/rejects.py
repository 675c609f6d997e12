"""What a catalog reader could not use, and why."""

from __future__ import annotations

import json
import reprlib
from dataclasses import asdict, dataclass
from typing import Literal

MAX_SHOWN = 200


@dataclass(frozen=True)
class Reject:
    """A row, or one picture of a row that is otherwise used.

    `row` counts from 1 and leaves the header out. `id`, `field` and `value` are
    printable and at most 200 characters; `id` is None where the row has none.
    """

    row: int
    id: str | None
    field: str
    value: str
    reason: str
    scope: Literal["row", "image"] = "row"

    def to_json(self) -> str:
        """One line of JSON."""
        return json.dumps(asdict(self), ensure_ascii=False)


class RowError(Exception):
    """A row that gives no product; never leaves this package."""

    def __init__(self, field: str, value: object, reason: str) -> None:
        super().__init__(reason)
        self.field = field
        self.value = value
        self.reason = reason


def printable(value: object) -> str:
    """`value` on one line of at most 200 characters that are safe on a terminal."""
    if value is None:
        return ""
    text = value if isinstance(value, str) else reprlib.repr(value)
    if len(text) > MAX_SHOWN:
        text = text[: MAX_SHOWN - 1] + "…"
    if not text.isprintable():
        text = "".join(c if c.isprintable() else _escaped(c) for c in text)
    return text if len(text) <= MAX_SHOWN else text[: MAX_SHOWN - 1] + "…"


def _escaped(character: str) -> str:
    return character.encode("unicode_escape").decode("ascii")
