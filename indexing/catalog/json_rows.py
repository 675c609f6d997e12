"""JSON Lines, a JSON array or one JSON document to rows, one row in memory at a time."""

from __future__ import annotations

import io
import json
from collections.abc import Iterator
from contextlib import closing
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
from indexing.catalog.rows import Row, Table, broken
from indexing.errors import CatalogError
from indexing.messages import shown

MAX_DOCUMENT = 256 * 2**20  # characters of a JSON document that is not an array
_LINE_SUFFIXES = frozenset({".jsonl", ".ndjson"})
_CHUNK = 2**16


def json_table(path: Path, suffix: str) -> Table:
    """The table of a JSON or JSON Lines file; a node of a `@graph` or item list is a row.

    `.jsonl` and `.ndjson` hold one value a line. Any other file that begins with `[`
    is an array, and one whose first line is no whole object is a single document.
    """
    if suffix in _LINE_SUFFIXES:
        return Table.without_header(lambda: _numbered(path, _from_lines(path)))
    with reading(path), closing(open_text(path)) as stream:
        line = next((line for line in lines(stream) if line.strip()), "")
    if line.lstrip().startswith("["):
        return Table.without_header(lambda: _numbered(path, _from_array(path)))
    try:
        json.loads(line)
    except (ValueError, RecursionError):
        return Table.without_header(lambda: _numbered(path, _from_document(path)))
    return Table.without_header(lambda: _numbered(path, _from_lines(path)))


class _BrokenJsonError(Exception):
    def __init__(self, text: str, reason: str) -> None:
        super().__init__(reason)
        self.text = text


def _numbered(path: Path, values: Iterator[Any]) -> Iterator[Row]:
    number = 0
    with reading(path):
        for value in values:
            for node in _nodes(value):
                number += 1
                yield _row(number, node)


def _row(number: int, node: Any) -> Row:
    if isinstance(node, _BrokenJsonError):
        return broken(number, "row", node.text, str(node))
    if not isinstance(node, dict):
        return broken(number, "row", node, "not a JSON object")
    for name, value in node.items():
        if isinstance(value, str) and len(value) > MAX_FIELD:
            return broken(number, name, value, f"longer than {MAX_FIELD:,} characters")
    return Row(number, node)


def _nodes(value: Any) -> Iterator[Any]:
    """The rows of one value: itself, or the products of a JSON-LD graph or item list."""
    if isinstance(value, dict) and isinstance(value.get("@graph"), list):
        # Pages describe themselves in the same graph; those nodes are no rows.
        for node in value["@graph"]:
            if isinstance(node, dict) and "itemListElement" in node:
                yield from _listed(node)
            elif not isinstance(node, dict) or _may_be_product(node.get("@type")):
                yield node
    elif isinstance(value, dict) and isinstance(value.get("itemListElement"), list):
        yield from _listed(value)
    else:
        yield value


def _may_be_product(kind: Any) -> bool:
    kinds = kind if isinstance(kind, list) else [kind]
    return any(not isinstance(kind, str) or "Product" in kind for kind in kinds)


def _listed(items: dict[str, Any]) -> Iterator[Any]:
    elements = items["itemListElement"]
    for element in elements if isinstance(elements, list) else [elements]:
        yield element.get("item", element) if isinstance(element, dict) else element


def _from_lines(path: Path) -> Iterator[Any]:
    with closing(open_text(path)) as stream:
        for line in lines(stream):
            if line.isspace():
                continue
            if len(line) > MAX_ROW:
                yield _BrokenJsonError(line, f"longer than {MAX_ROW:,} characters")
            elif problem := text_problem(line):
                yield _BrokenJsonError(line, problem)
            else:
                yield _loaded(line)


def _loaded(line: str) -> Any:
    try:
        return json.loads(line)
    except (ValueError, RecursionError) as error:
        return _BrokenJsonError(line, f"not JSON ({_reason(error)})")


def _from_document(path: Path) -> Iterator[Any]:
    with closing(open_text(path)) as stream:
        text = stream.read(MAX_DOCUMENT + 1)
    if len(text) > MAX_DOCUMENT:
        raise CatalogError(f"{shown(path)}: one JSON document this large is refused; use .jsonl")
    if problem := text_problem(text):
        raise CatalogError(f"{shown(path)}: the JSON document {problem}")
    try:
        yield json.loads(text)
    except (ValueError, RecursionError) as error:
        raise CatalogError(
            f"{shown(path)}: neither JSON nor JSON Lines ({_reason(error)}); "
            "name the file .jsonl if each line holds an object"
        ) from error


def _from_array(path: Path) -> Iterator[Any]:
    """Decodes the elements one by one, so that the array is never whole in memory."""
    decoder = json.JSONDecoder()
    with closing(open_text(path)) as stream:
        text = _Window(stream)
        text.skip("[")
        count = 0
        while text.peek() != "]":
            try:
                value, source = text.decode(decoder)
            except (ValueError, RecursionError) as error:
                raise _cut_short(path, count, _reason(error)) from error
            count += 1
            problem = text_problem(source)
            yield _BrokenJsonError(source, problem) if problem else value
            if not text.skip(",") and text.peek() != "]":
                raise _cut_short(path, count, "neither a comma nor ] follows")
        text.skip("]")
        if text.peek():
            raise CatalogError(
                f"{shown(path)}: text after the end of the JSON array; "
                "name the file .jsonl if each line holds an object"
            )


def _cut_short(path: Path, count: int, reason: str) -> CatalogError:
    return CatalogError(
        f"{shown(path)}: the JSON array is cut short or broken after element {count} ({reason})"
    )


class _Window:
    """A stretch of a text stream that grows while a value does not end in it."""

    def __init__(self, stream: io.TextIOWrapper) -> None:
        self._stream = stream
        self.buffer = ""
        self.position = 0

    def grow(self) -> bool:
        """Reads on; False at the end of the file or where one value fills MAX_ROW."""
        kept = self.buffer[self.position :]
        # Doubling keeps the work on one long value linear in its length.
        more = self._stream.read(max(_CHUNK, len(kept))) if len(kept) <= MAX_ROW else ""
        self.buffer, self.position = kept + more, 0
        return bool(more)

    def decode(self, decoder: json.JSONDecoder) -> tuple[Any, str]:
        """The value that begins here, and its text. Raises ValueError or RecursionError."""
        while True:
            try:
                value, end = decoder.raw_decode(self.buffer, self.position)
            except ValueError:
                if not self.grow():
                    raise
                continue
            # A number at the end of the window may go on after it.
            if end < len(self.buffer) or not self.grow():
                source = self.buffer[self.position : end]
                self.position = min(end, len(self.buffer))
                return value, source

    def peek(self) -> str:
        """The next character that is no white space, "" at the end of the file."""
        while True:
            while self.position < len(self.buffer):
                if not self.buffer[self.position].isspace():
                    return self.buffer[self.position]
                self.position += 1
            if not self.grow():
                return ""

    def skip(self, character: str) -> bool:
        found = self.peek() == character
        self.position += found
        return found


def _reason(error: Exception) -> str:
    if isinstance(error, json.JSONDecodeError):
        return f"{error.msg} at character {error.pos + 1}"
    return (
        "nested too deeply" if isinstance(error, RecursionError) else "a number of too many digits"
    )
