"""The demo catalog: a sound catalog, the same every time, in which pictures tell products apart."""

from __future__ import annotations

import csv
import dataclasses
import random
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from indexing.demo import QUERIES, noisy_title, write_demo_catalog
from indexing.errors import CatalogError
from indexing.images import read_image
from indexing.rendering import COLOURS, KINDS, PATTERNS, Thing, draw_thing, render, words


@pytest.fixture(scope="module")
def catalog(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_demo_catalog(tmp_path_factory.mktemp("demo"), products=40, seed=3)


def rows(catalog: Path) -> list[dict[str, str]]:
    with catalog.open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def contents(folder: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file()
    }


def test_rows_and_files_belong_together(catalog: Path) -> None:
    folder, table = catalog.parent, rows(catalog)
    assert [row["id"] for row in table] == [f"DEMO-{n:04d}" for n in range(1, 41)]
    named = {"catalog.csv"}
    for row in table:
        pictures = [row["image"], *row["additional_image"].split(",")]
        assert 2 <= len(pictures) <= 3
        named.update(pictures)
        assert row["color"] in COLOURS
        assert row["pattern"] in PATTERNS
        assert row["category"].count(" > ") == 1
        assert float(row["price"]) > 0
        assert row["availability"] in ("in stock", "out of stock")
        assert {row["color"]} <= set(row["title"].split())
    queries = {name for name in contents(folder) if name.startswith("queries/")}
    assert len(queries) == QUERIES
    assert {name[8:17] for name in queries} <= {row["id"] for row in table}
    assert set(contents(folder)) == named | queries
    for name in (named | queries) - {"catalog.csv"}:
        assert read_image(folder / name).size == (160, 160)


def test_same_seed_same_bytes_and_a_second_run_leaves_nothing_behind(tmp_path: Path) -> None:
    first = contents(write_demo_catalog(tmp_path / "a", products=6, seed=1).parent)
    write_demo_catalog(tmp_path / "b", products=9, seed=2)
    keep = tmp_path / "b" / "images" / "mine.jpg"
    keep.write_bytes(b"not ours")
    second = contents(write_demo_catalog(tmp_path / "b", products=6, seed=1).parent)
    assert second.pop("images/mine.jpg") == b"not ours"
    assert second == first
    other = contents(write_demo_catalog(tmp_path / "c", products=6, seed=2).parent)
    assert other["images/DEMO-0001.jpg"] != first["images/DEMO-0001.jpg"]


@pytest.mark.parametrize("products", [0, -1, 10_001])
def test_a_bad_number_of_products(tmp_path: Path, products: int) -> None:
    with pytest.raises(CatalogError, match=rf"^{products} demo products: give a number from 1"):
        write_demo_catalog(tmp_path, products=products)
    assert not list(tmp_path.iterdir())


def test_main_pictures_are_on_white_and_views_are_not(catalog: Path) -> None:
    for row in rows(catalog):
        folder = catalog.parent
        main = np.asarray(read_image(folder / row["image"]))
        assert (main[0] > 245).mean() > 0.9
        for name in row["additional_image"].split(","):
            view = np.asarray(read_image(folder / name))
            assert (view[0] > 245).mean() < 0.9


def test_titles_hold_the_visual_words_and_others() -> None:
    rng = random.Random(0)
    visual = {*KINDS, *COLOURS, *PATTERNS} - {"plain"}
    for _ in range(300):
        thing = draw_thing(rng)
        shown = noisy_title(thing, rng).split()
        # No noise word can be taken for a visual one.
        assert tuple(word for word in shown if word in visual) == words(thing)
        assert len(shown) >= len(words(thing)) + 2


def test_words_of_plain_and_patterned_things() -> None:
    plain = Thing("mug", "red", "red", "plain", "gold", 1.0, 0.1)
    assert words(plain) == ("red", "mug")
    striped = dataclasses.replace(plain, pattern="striped", second="white")
    assert words(striped) == ("striped", "red", "white", "mug")


def test_drawn_things_cover_all_kinds_evenly() -> None:
    rng = random.Random(1)
    things = [draw_thing(rng) for _ in range(3600)]
    for field, names in (("kind", KINDS), ("colour", COLOURS), ("pattern", PATTERNS)):
        counts = Counter(getattr(thing, field) for thing in things)
        expected = 3600 / len(names)
        assert set(counts) == set(names)
        # Five standard deviations of a binomial count.
        assert max(abs(n - expected) for n in counts.values()) < 5 * expected**0.5
    assert all((thing.second == thing.colour) == (thing.pattern == "plain") for thing in things)


def centre(picture: Image.Image) -> NDArray[np.float64]:
    return np.asarray(picture, dtype=np.float64)[60:100, 60:100].reshape(-1, 3)


@pytest.mark.parametrize("colour", COLOURS)
def test_a_plain_thing_shows_its_colour(colour: str) -> None:
    """The middle of a plain ball is nearer to its own colour than to any other."""
    thing = Thing("ball", colour, colour, "plain", "dark", 1.0, 0.1)
    seen = np.median(centre(render(thing, random.Random(0), main=True)), axis=0)
    # Shading dims all channels alike: compare up to brightness, then brightness itself.
    bright = {name: np.array(value) * 0.8 for name, value in COLOURS.items()}
    assert min(bright, key=lambda name: float(np.abs(bright[name] - seen).sum())) == colour


@pytest.mark.parametrize("pattern", [name for name in PATTERNS if name != "plain"])
def test_a_pattern_shows_both_colours(pattern: str) -> None:
    thing = Thing("box", "red", "blue", pattern, "gold", 1.0, 0.1)
    pixels = np.asarray(render(thing, random.Random(0), main=True), dtype=np.int64)
    red, green, blue = pixels[..., 0], pixels[..., 1], pixels[..., 2]
    reds = ((red > 2 * blue) & (red > 2 * green)).mean()
    blues = ((blue > 2 * red) & (blue > green)).mean()
    assert reds > 0.05
    assert blues > 0.05


def test_each_parameter_changes_the_picture() -> None:
    thing = Thing("mug", "red", "white", "striped", "gold", 1.0, 0.1)

    def drawn(other: Thing) -> NDArray[np.float64]:
        return np.asarray(render(other, random.Random(0), main=True), dtype=np.float64)

    base = drawn(thing)
    others = [
        dataclasses.replace(thing, kind="bottle"),
        dataclasses.replace(thing, colour="blue"),
        dataclasses.replace(thing, second="black"),
        dataclasses.replace(thing, pattern="dotted"),
        dataclasses.replace(thing, accent="dark"),
        dataclasses.replace(thing, width=0.9),
        dataclasses.replace(thing, period=0.08),
    ]
    for other in others:
        assert np.abs(drawn(other) - base).mean() > 0.5, other
    assert np.array_equal(drawn(thing), base)


@pytest.mark.parametrize("kind", KINDS)
def test_views_show_the_same_thing_elsewhere(kind: str) -> None:
    rng = random.Random(5)
    thing = dataclasses.replace(draw_thing(rng), kind=kind)
    main = render(thing, rng, main=True, size=96)
    views = [render(thing, rng, main=False, size=96) for _ in range(2)]
    assert [view.size for view in (main, *views)] == [(96, 96)] * 3
    a, b = (np.asarray(view, dtype=np.float64) for view in views)
    assert np.abs(a - b).mean() > 5
