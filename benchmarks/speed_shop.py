"""The pictures and titles that speed is measured on: drawn, or the first of a catalog."""

from __future__ import annotations

import csv
import hashlib
import random
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from PIL import Image

from indexing.catalog import read_catalog
from indexing.demo import noisy_title
from indexing.errors import BenchmarkError, ImageError
from indexing.images import decode_image, read_bytes
from indexing.messages import shown
from indexing.rendering import draw_thing, render

SIDE = 800  # pixels, as shops have their pictures
_COLUMNS = ("id", "title", "image")


@dataclass(frozen=True)
class Shop:
    """A folder with catalog.csv (id, title, image) of one picture a product, all distinct."""

    folder: Path

    @property
    def catalog(self) -> Path:
        return self.folder / "catalog.csv"

    @cached_property
    def rows(self) -> list[dict[str, str]]:
        """The rows of the catalog."""
        with self.catalog.open(encoding="utf-8", newline="") as file:
            return list(csv.DictReader(file))

    @property
    def pictures(self) -> list[Path]:
        return [self.folder / row["image"] for row in self.rows]

    @property
    def titles(self) -> list[str]:
        return [row["title"] for row in self.rows]


def draw_shop(folder: Path, pictures: int, seed: int = 0) -> Shop:
    """Draws a shop of JPEGs of SIDE pixels into an empty folder; the same each time."""
    (folder / "images").mkdir()

    def draw(number: int) -> tuple[str, str, str]:
        rng = random.Random(f"{seed}/{number}")
        thing = draw_thing(rng)
        name = f"images/{number:06d}.jpg"
        # Half of the pictures on white, as shops have them, half in a scene.
        picture = render(thing, rng, main=number % 2 == 0, size=SIDE)
        picture.save(folder / name, "JPEG", quality=88)
        return f"DRAWN-{number:06d}", noisy_title(thing, rng), name

    with ThreadPoolExecutor() as pool:
        return _shop(folder, pool.map(draw, range(pictures)))


def copy_shop(folder: Path, catalog: Path, pictures: int) -> Shop:
    """Copies the first `pictures` products of a catalog into an empty folder.

    Of each product the first picture counts that lies in a file, that both sides can decode,
    and whose bytes have not come before: shoplens would not encode them again. Raises
    CatalogError, and BenchmarkError where no picture can be used.
    """
    (folder / "images").mkdir()
    rows: list[tuple[str, str, str]] = []
    seen: set[bytes] = set()
    for product in read_catalog(catalog):
        if len(rows) == pictures:
            break
        paths = (image.path for image in product.images if image.path is not None)
        for path in paths:
            data = _usable(path)
            if data is None or (key := hashlib.sha256(data).digest()) in seen:
                continue
            seen.add(key)
            name = f"images/{len(rows):06d}{path.suffix}"
            (folder / name).write_bytes(data)
            rows.append((product.id, product.title or product.id, name))
            break
    if not rows:
        raise BenchmarkError(
            f"{shown(catalog)}: no product has a picture in a file that can be decoded: give "
            "another catalog, or none for drawn pictures"
        )
    return _shop(folder, rows)


def _usable(path: Path) -> bytes | None:
    try:
        data = read_bytes(path)
        decode_image(data)
        with Image.open(path) as picture:
            picture.convert("RGB")
    except (ImageError, OSError, ValueError, SyntaxError, Image.DecompressionBombError):
        return None
    return data


def _shop(folder: Path, rows: Iterable[tuple[str, str, str]]) -> Shop:
    shop = Shop(folder)
    with shop.catalog.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(_COLUMNS)
        writer.writerows(rows)
    return shop
