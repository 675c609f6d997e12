"""A row's cells as a profile picks them apart, before anything is checked."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any, NamedTuple

from indexing.catalog.locations import is_picture_name, is_web_url
from indexing.catalog.values import is_empty

_MAIN_ROLES = frozenset({"main", "primary", "first"})
_LOCATION_KEYS = ("path", "url", "src", "href", "link", "location", "contentUrl", "file", "@id")
_ROLE_KEYS = ("role", "variant", "type")


class Picture(NamedTuple):
    """A picture as the row names it: any JSON value, and whether it says it is the main one."""

    location: Any
    main: bool = False


@dataclass
class Draft:
    """A product with cells in place of values; `pictures` None: look them up by id."""

    id: Any
    pictures: list[Picture] | None
    title: Any = None
    description: Any = None
    brand: Any = None
    category: Any = None
    price: Any = None
    currency: Any = None
    availability: Any = None
    attributes: dict[str, Any] = field(default_factory=dict)


class Cells:
    """One row's cells, found by the plain form of their column's name (`column_key`).

    `mapping` says which column holds a field, whatever the profile looks for.
    """

    def __init__(self, cells: Mapping[str, Any], mapping: Mapping[str, str]) -> None:
        self._cells = cells
        self._mapping = mapping
        self._names = {column_key(name): name for name in reversed(list(cells))}
        self._used: set[str] = set()

    def id(self, *keys: str) -> Any:
        """The first of the columns that is there, even if empty: ids of two kinds never mix."""
        name = self._mapping.get("id") or next(filter(None, map(self._names.get, keys)), None)
        return None if name is None else self._use(name)

    def take(self, field: str, *keys: str) -> Any:
        """The first cell that is not empty among the columns for `field`; None without one."""
        if mapped := self._mapping.get(field):
            return self._use(mapped)
        for key in keys:
            name = self._names.get(key)
            if name is not None and not is_empty(self._cells[name]):
                return self._use(name)
        return None

    def pictures(self, *keys: str) -> list[Picture]:
        """The pictures of all columns for them, in the order of `keys`."""
        mapped = self._mapping.get("image")
        names = [mapped] if mapped else list(filter(None, map(self._names.get, keys)))
        return [picture for name in names for picture in pictures_of(self._use(name))]

    def rest(self, *dropped: str) -> dict[str, Any]:
        """The cells that nothing has taken and that are not empty, by column."""
        self._used.update(filter(None, map(self._names.get, dropped)))
        return {
            name: value
            for name, value in self._cells.items()
            if name not in self._used and not is_empty(value)
        }

    def _use(self, name: str) -> Any:
        self._used.add(name)
        return self._cells.get(name)


@lru_cache(maxsize=4096)
def column_key(name: str) -> str:
    """A column's name in one spelling: "g:Image Link", "image-link", "imageLink" -> image_link."""
    name = re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "_", name.strip()).lower()
    return re.sub(r"[\s_-]+", "_", name.removeprefix("g:"))


def pictures_of(value: Any) -> Iterator[Picture]:
    """The pictures that one cell names.

    A cell is a location, a list, or a mapping with a path or URL and perhaps a role. A
    text can be a JSON list, or several locations between `|`, `;` or `,`: it is split
    only where all pieces are http(s) URLs or all have the suffix of a picture, so that
    commas inside file names and URLs stay.
    """
    if is_empty(value):
        return
    if isinstance(value, str):
        yield from _pictures_of_text(value.strip())
    elif isinstance(value, (list, tuple)):
        for part in value:
            # What is nested deeper is left as it is, to be refused with its value.
            yield from [Picture(part)] if isinstance(part, (list, tuple)) else pictures_of(part)
    elif isinstance(value, dict):
        location = next((value[key] for key in _LOCATION_KEYS if value.get(key)), value)
        role = next((value[key] for key in _ROLE_KEYS if value.get(key)), None)
        main = isinstance(role, str) and role.lower() in _MAIN_ROLES
        yield Picture(location.strip() if isinstance(location, str) else location, main)
    elif value == value:  # NaN stands for a missing cell
        yield Picture(value)


def _pictures_of_text(text: str) -> Iterator[Picture]:
    if text.startswith("["):
        try:
            value = json.loads(text)
        except (ValueError, RecursionError):
            value = None
        if isinstance(value, list):
            yield from pictures_of(value)
            return
    yield from map(Picture, _split(text))


def _split(text: str) -> list[str]:
    for separator in "|;,":
        if separator in text:
            pieces = [piece.strip() for piece in text.split(separator)]
            pieces = [piece for piece in pieces if piece]
            urls = sum(map(is_web_url, pieces))
            if urls == len(pieces) or (not urls and all(map(is_picture_name, pieces))):
                return pieces
    return [text]
