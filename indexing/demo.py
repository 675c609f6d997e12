"""The demo catalog: a small drawn shop that is the same on every machine."""

from __future__ import annotations

import csv
import random
from pathlib import Path

from indexing.errors import CatalogError
from indexing.rendering import Thing, draw_thing, render, words

SIZE = 160  # pixels, of a picture's side
QUERIES = 24
MAX_PRODUCTS = 10_000  # a third of those that can be told apart

_BRANDS = ("Acme", "Norvik", "Halden", "Lumo", "Pacora", "Tessel", "Brightway", "Marlow & Son")
_SERIES = ("Velora", "Kanto", "Mirel", "Sorano", "Tindra", "Juno", "Calder", "Ostia", "Perle")
_PRAISE = ("Premium", "New", "Classic", "Everyday", "Handmade", "Bestseller")
_PACKS = ("pack of 2", "set of 4", "gift boxed", "free shipping", "limited edition")
_CATEGORIES = {  # kind: category, what a title may add, usual price
    "mug": ("Kitchen > Mugs", ("350 ml", "11 oz", "dishwasher safe"), 12),
    "bottle": ("Kitchen > Bottles", ("750 ml", "1 l", "BPA free"), 18),
    "t-shirt": ("Clothing > T-Shirts", ("size M", "size XL", "unisex"), 20),
    "dress": ("Clothing > Dresses", ("size 38", "size S", "sleeveless"), 55),
    "chair": ("Furniture > Chairs", ("46 x 50 cm", "self-assembly"), 90),
    "lamp": ("Furniture > Lamps", ("E27", "45 cm", "LED ready"), 48),
    "shoe": ("Clothing > Shoes", ("EU 42", "UK 6", "wide fit"), 75),
    "bag": ("Accessories > Bags", ("14 l", "with zip"), 42),
    "box": ("Home > Boxes", ("30 cm", "with lid"), 15),
    "ball": ("Toys > Balls", ("20 cm", "age 3+"), 9),
    "hat": ("Accessories > Hats", ("58 cm", "one size"), 25),
    "clock": ("Home > Clocks", ("silent", "30 cm", "battery included"), 30),
}
_COLUMNS = (
    *("id", "title", "category", "color", "pattern", "price", "availability"),
    *("image", "additional_image"),
)


def write_demo_catalog(folder: Path, products: int = 240, seed: int = 0) -> Path:
    """Writes catalog.csv, images/ and queries/ into `folder`; returns the catalog's path.

    Each product has a main picture on white and one or two further views. `queries/` holds
    views that are in no row, of up to QUERIES products; a file's name starts with the id of
    its product. Equal arguments give equal bytes, and pictures of an earlier demo in
    `folder` are replaced. Raises CatalogError for a bad number of products and OSError where
    it cannot write.
    """
    if not 1 <= products <= MAX_PRODUCTS:
        raise CatalogError(f"{products} demo products: give a number from 1 to {MAX_PRODUCTS:,}")
    rng = random.Random(seed)
    for name in ("images", "queries"):
        (folder / name).mkdir(parents=True, exist_ok=True)
        for earlier in (folder / name).glob("DEMO-*.jpg"):
            earlier.unlink()
    things = _distinct_things(products, rng)
    catalog = folder / "catalog.csv"
    with catalog.open("w", encoding="utf-8", newline="") as file:
        rows = csv.DictWriter(file, _COLUMNS)
        rows.writeheader()
        for number, thing in enumerate(things, start=1):
            product_id = f"DEMO-{number:04d}"
            names = [f"images/{product_id}.jpg"]
            names += [f"images/{product_id}-{view}.jpg" for view in range(2, rng.choice((3, 4)))]
            for name in names:
                _save(thing, rng, folder / name, main=name == names[0])
            category, _, price = _CATEGORIES[thing.kind]
            rows.writerow(
                {
                    "id": product_id,
                    "title": noisy_title(thing, rng),
                    "category": category,
                    "color": thing.colour,
                    "pattern": thing.pattern,
                    "price": f"{price * rng.uniform(0.6, 1.8):.2f}",
                    "availability": rng.choice(("in stock", "in stock", "out of stock")),
                    "image": names[0],
                    "additional_image": ",".join(names[1:]),
                }
            )
    for index in sorted(rng.sample(range(products), min(QUERIES, products))):
        path = folder / "queries" / f"DEMO-{index + 1:04d}-photo.jpg"
        _save(things[index], rng, path, main=False)
    return catalog


def noisy_title(thing: Thing, rng: random.Random) -> str:
    """A title like a shop's: what the picture shows among words that it does not."""
    _, extras, _ = _CATEGORIES[thing.kind]
    parts = [rng.choice(_BRANDS), rng.choice(_SERIES)]
    if rng.random() < 0.4:
        parts.insert(rng.randrange(3), rng.choice(_PRAISE))
    parts += words(thing)
    if rng.random() < 0.8:
        parts.append(rng.choice(extras))
    if rng.random() < 0.4:
        parts.append(rng.choice(_PACKS))
    return " ".join(parts)


def _distinct_things(count: int, rng: random.Random) -> list[Thing]:
    """Things of which no two agree in words and accent."""
    seen: set[tuple[str, ...]] = set()
    things: list[Thing] = []
    while len(things) < count:
        thing = draw_thing(rng)
        key = (*words(thing), thing.accent)
        if key not in seen:
            seen.add(key)
            things.append(thing)
    return things


def _save(thing: Thing, rng: random.Random, path: Path, *, main: bool) -> None:
    render(thing, rng, main=main, size=SIZE).save(path, "JPEG", quality=88)
