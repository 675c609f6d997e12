"""Google Merchant feeds in RSS or Atom to rows, streamed."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any
from xml.parsers import expat

from indexing.catalog.files import MAX_FIELD, MAX_ROW, open_bytes, reading
from indexing.catalog.rows import Row, RowError, Table
from indexing.errors import CatalogError
from indexing.messages import printable, shown

_ITEMS = frozenset({"item", "entry"})
_CHUNK = 2**16


def xml_table(path: Path) -> Table:
    """The table of a feed: its `item` or `entry` elements, the `g:` prefix dropped.

    An element that comes twice holds the list of its texts. Elements inside an item's
    elements (shipping, tax) are left out. A DOCTYPE is refused, and with it entities.
    """
    return Table.without_header(lambda: _rows(path))


def _rows(path: Path) -> Iterator[Row]:
    feed = _Feed(path)
    # Without namespace processing, feeds that forget to declare `g:` are read too.
    parser = expat.ParserCreate()
    parser.buffer_text = True
    parser.StartDoctypeDeclHandler = feed.doctype
    parser.StartElementHandler = feed.start
    parser.EndElementHandler = feed.end
    parser.CharacterDataHandler = feed.text
    number = fed = 0
    with reading(path), closing(open_bytes(path)) as stream:
        while True:
            chunk = stream.read(_CHUNK)
            fed += len(chunk)
            try:
                parser.Parse(chunk, not chunk)
            except expat.ExpatError as error:
                failure: str | None = str(error)
            except (LookupError, ValueError) as error:
                failure = f"its encoding cannot be read: {error}"
            else:
                failure = None
            for cells, problem in feed.taken():
                number += 1
                yield Row(number, cells, problem)
            if failure:
                raise CatalogError(f"{shown(path)}: not well-formed XML ({printable(failure)})")
            if not chunk:
                return
            if fed - parser.CurrentByteIndex > MAX_ROW:
                raise CatalogError(f"{shown(path)}: one XML tag is longer than {MAX_ROW:,} bytes")


class _Feed:
    """Gathers the items that the parser passes through."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._done: list[tuple[dict[str, Any], RowError | None]] = []
        self._depth = 0  # below the item; 0 is outside of one
        self._cells: dict[str, Any] = {}
        self._problem: RowError | None = None
        self._parts: list[str] = []
        self._size = 0

    def taken(self) -> list[tuple[dict[str, Any], RowError | None]]:
        done, self._done = self._done, []
        return done

    def doctype(self, name: str, *_: object) -> None:
        raise CatalogError(
            f"{shown(self._path)}: a DOCTYPE ({printable(name)}) is refused, "
            "as it can define entities; remove it from the feed"
        )

    def start(self, name: str, attributes: dict[str, str]) -> None:
        if self._depth:
            self._depth += 1
            if self._depth == 2:
                # Atom writes a link as an attribute.
                self._parts, self._size = [attributes.get("href", "")], 0
        elif _local(name) in _ITEMS:
            self._depth = 1
            self._cells, self._problem = {}, None

    def text(self, text: str) -> None:
        if self._depth != 2:
            return
        self._size += len(text)
        if self._size <= MAX_FIELD:
            self._parts.append(text)

    def end(self, name: str) -> None:
        if self._depth == 2:
            self._add(_local(name), "".join(self._parts).strip())
        elif self._depth == 1:
            self._done.append((self._cells, self._problem))
        self._depth = max(0, self._depth - 1)

    def _add(self, name: str, value: str) -> None:
        if self._size > MAX_FIELD:
            reason = f"longer than {MAX_FIELD:,} characters"
            self._problem = self._problem or RowError(name, value, reason)
        elif name not in self._cells:
            self._cells[name] = value
        elif isinstance(self._cells[name], list):
            self._cells[name].append(value)
        else:
            self._cells[name] = [self._cells[name], value]


def _local(name: str) -> str:
    return name.rpartition(":")[2]
