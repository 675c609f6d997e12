"""Catalogs as tasks, on small catalogs with planted cases; ids in answers are plain to read."""

from __future__ import annotations

import json
import logging
import os
from collections import defaultdict
from collections.abc import Callable
from itertools import count
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest

from benchmarks import datasets
from benchmarks.datasets import (
    as_word,
    between_products,
    fashion,
    grocery,
    main_picture,
    matching,
    title_task,
    views_tasks,
)
from benchmarks.esci.build import build_split
from benchmarks.esci.generator import EXAMPLES, IMAGES, MANIFEST, PLACEHOLDERS, PRODUCTS, generate
from benchmarks.esci.manifest import Options, Split
from benchmarks.esci.sources import parse_source
from benchmarks.esci.tasks import esci_tasks
from benchmarks.retrieval.task import Links, Task
from indexing.catalog.product import Product, ProductImage
from indexing.errors import BenchmarkError, CatalogError
from training.builtin import is_test_title

Named = set[tuple[str, str]]
Make = Callable[..., Product]


def named(task: Task, links: Links) -> Named:
    """Links by ids; fails where they are not sorted, each once, as `Links` promises."""
    numbers = list(zip(links.query.tolist(), links.row.tolist(), strict=True))
    assert numbers == sorted(set(numbers))
    return {(task.queries.ids[query], task.gallery.ids[row]) for query, row in numbers}


def shown(task: Task) -> list[str]:
    assert task.gallery.pictures is not None
    return [picture.location for picture in task.gallery.pictures]


@pytest.fixture
def make(tmp_path: Path) -> Make:
    """make(id, title, *pictures): a picture is a file of these letters, missing with a "?"
    before them, and "*" before them makes it the main one. The same letters are the same bytes."""

    files = count()

    def product(number: str, title: str, *pictures: str, **fields: Any) -> Product:
        images = []
        for letters in pictures:
            name = f"{next(files)}.png"
            if not letters.startswith("?"):
                (tmp_path / name).write_text(letters.removeprefix("*"))
            images.append(
                ProductImage(
                    location=letters,
                    path=tmp_path / name,
                    role="main" if letters.startswith("*") else "additional",
                )
            )
        return Product(id=number, title=title, images=tuple(images), **fields)

    return product


def test_views_ask_for_the_main_picture_and_for_each_other(make: Make) -> None:
    products = [
        make("a", "Mug", "front a", "back a", category="mugs"),
        make("b", "Cup", "one b", "*main b", "two b", category="cups"),
        make("c", "Pot", "lone c"),
    ]
    aux, pairs = views_tasks(products)
    assert (aux.name, pairs.name) == ("views-aux-main", "views-all-pairs")
    assert aux.queries.ids == ["a/1", "b/1", "b/2"]
    assert aux.gallery.ids == ["a/0", "b/0", "c/0"]
    assert shown(aux) == ["front a", "*main b", "lone c"]
    assert aux.queries.categories == ["mugs", "cups", "cups"]
    assert named(aux, aux.judged) == {("a/1", "a/0"), ("b/1", "b/0"), ("b/2", "b/0")}
    assert (named(aux, aux.removed), named(aux, aux.duplicates)) == (set(), set())
    assert aux.queries.products.tolist() == [0, 1, 1]
    assert not aux.trials

    assert pairs.trials
    assert pairs.queries.ids == ["a/0", "a/1", "b/0", "b/1", "b/2"]
    assert pairs.gallery.ids == [*pairs.queries.ids, "c/0"]
    assert named(pairs, pairs.judged) == {
        *{("a/0", "a/1"), ("a/1", "a/0"), ("b/0", "b/1"), ("b/0", "b/2"), ("b/1", "b/0")},
        *{("b/1", "b/2"), ("b/2", "b/0"), ("b/2", "b/1")},
    }
    assert named(pairs, pairs.removed) == {(name, name) for name in pairs.queries.ids}
    assert named(pairs, pairs.duplicates) == set()
    for task in (aux, pairs):
        assert task.grades.tolist() == [1] * len(task.judged)
        assert task.right().all()


def test_pictures_of_the_same_bytes_count_once(make: Make) -> None:
    """A main picture that is there again asks nothing: it would find itself."""
    products = [make("a", "Mug", "x", "y", "x", "y"), make("b", "Cup", "z", "z")]
    aux, pairs = views_tasks(products)
    assert (aux.queries.ids, aux.gallery.ids) == (["a/1"], ["a/0", "b/0"])
    assert (pairs.queries.ids, pairs.gallery.ids) == (["a/0", "a/1"], ["a/0", "a/1", "b/0"])


def test_products_of_one_title_or_picture_are_neither_right_nor_wrong(make: Make) -> None:
    products = [
        make("a", "Red mug", "a0", "a1"),
        make("b", " RED  Mug! ", "b0", "b1"),  # the title of a
        make("c", "Blue mug", "c0", "b1"),  # a picture of b, so that a, b and c are one group
        make("d", "", "d0", "d1"),  # no titles are not one title
        make("e", "!", "e0"),
        make("f", "Pot", "f0"),
    ]
    aux, pairs = views_tasks(products)
    assert named(aux, aux.duplicates) == {
        (f"{one}/1", f"{other}/0") for one in "abc" for other in "abc" if one != other
    }
    assert named(aux, aux.judged) == {(f"{one}/1", f"{one}/0") for one in "abcd"}
    assert named(pairs, pairs.duplicates) == {
        (f"{one}/{m}", f"{other}/{n}")
        for one in "abc" for other in "abc" for m in range(2) for n in range(2) if one != other
    }  # fmt: skip
    assert named(pairs, pairs.judged) == {
        (f"{one}/{n}", f"{one}/{1 - n}") for one in "abcd" for n in range(2)
    }
    for task in (aux, pairs):
        assert not named(task, task.duplicates) & named(task, task.judged)
        assert not named(task, task.duplicates) & named(task, task.removed)


def test_pictures_that_are_no_files_are_left_out_and_counted(
    make: Make, caplog: pytest.LogCaptureFixture
) -> None:
    web = ProductImage(location="https://example.com/a.png")
    a = make("a", "Mug", "?gone", "a0", "a1")
    products = [
        a.model_copy(update={"images": (*a.images, web)}),
        make("b", "Cup", "?gone"),
        make("c", "Pot", "c0", "?gone"),
    ]
    with caplog.at_level(logging.WARNING):
        aux, _ = views_tasks(products)
    assert (aux.queries.ids, aux.gallery.ids) == (["a/1"], ["a/0", "c/0"])
    assert shown(aux) == ["a0", "c0"]
    assert [record.getMessage() for record in caplog.records] == [
        "4 pictures are left out: they are no files that can be read"
    ]


@pytest.mark.parametrize("titles", [[], ["Mug", "Cup"]])
def test_views_of_products_with_one_picture_say_what_is_needed(
    make: Make, titles: list[str]
) -> None:
    products = [make(title, title, f"{title} 0", f"{title} 0") for title in titles]
    with pytest.raises(BenchmarkError, match="no product has two different pictures"):
        views_tasks(products)


HARD = ["a b", "a%20b", "a\tb", "50%", "ä/ß", "x\u00a0y", "a/1", "a", "#?&[]", "日本"]


def test_ids_are_words_and_stay_apart(make: Make) -> None:
    products = [make(name, f"title {name}", f"{name} 0", f"{name} 1") for name in HARD]
    tasks = [*views_tasks(products), title_task(products, name="titles", title="T")]
    for task in tasks:
        for ids in (task.queries.ids, task.gallery.ids):
            assert len(set(ids)) == len(ids)
            assert all(name == "".join(name.split()) and name.isascii() and name for name in ids)
    assert [as_word(name) for name in HARD[:5]] == [
        "a%20b",
        "a%2520b",
        "a%09b",
        "50%25",
        "%C3%A4/%C3%9F",
    ]
    assert len({as_word(name) for name in HARD}) == len(HARD)


def test_a_title_asks_for_all_products_that_carry_it(make: Make) -> None:
    products = [
        make("a", "Red mug", "a0", "*a1", category="mugs", brand="Acme", description="Big."),
        make("b", "", "b0"),
        make("c", "Blue cup", "c0", category="cups", attributes={"size": "9", "form": "round"}),
        make("d", "red  MUG!", "d0", category="other"),
        make("e", "...", "e0"),
    ]
    task = title_task(products, name="titles", title="by title", note="a note")
    assert (task.name, task.title, task.note) == ("titles", "by title", "a note")
    assert task.queries.ids == ["title-a", "title-c"]
    assert task.queries.texts == ["Red mug", "Blue cup"]
    assert task.queries.categories == ["mugs", "cups"]
    assert task.queries.pictures is None
    assert task.gallery.ids == ["a", "c", "d"]
    assert shown(task) == ["*a1", "c0", "d0"]
    assert named(task, task.judged) == {("title-a", "a"), ("title-a", "d"), ("title-c", "c")}
    # The title is the query, so the texts are all else that the shop wrote.
    assert task.gallery.texts == ["mugs Acme Big.", "cups 9 round", "other"]
    # Products of a title are resampled together, on both sides.
    assert (task.queries.products.tolist(), task.gallery.products.tolist()) == ([0, 1], [0, 1, 0])


def test_shops_that_write_titles_alone_have_no_texts_to_search(make: Make) -> None:
    assert title_task([make("a", "Mug", "a0")], name="t", title="T").gallery.texts is None


def test_no_titles_no_questions(make: Make) -> None:
    with pytest.raises(BenchmarkError, match="no product has a title"):
        title_task([make("a", "", "a0"), make("b", "-", "b0")], name="t", title="T")


def test_the_main_picture_is_the_one_that_says_so_or_the_first(make: Make) -> None:
    assert main_picture(make("a", "", "a0", "*a1")).location == "*a1"
    assert main_picture(make("b", "", "b0", "b1")).location == "b0"


def test_matching_and_between_products_against_plain_loops() -> None:
    rng = np.random.default_rng(0)
    for size in (0, 1, 30):
        asked, offered = rng.integers(0, 6, size), rng.integers(2, 8, 20)
        found = matching(asked, offered)
        pairs = [(q, r) for q in range(size) for r in range(20) if asked[q] == offered[r]]
        assert list(zip(found.query.tolist(), found.row.tolist(), strict=True)) == pairs
        owner, row_owner = rng.integers(0, 3, size), rng.integers(0, 3, 20)
        apart = between_products(found, owner, row_owner)
        assert list(zip(apart.query.tolist(), apart.row.tolist(), strict=True)) == [
            (q, r) for q, r in pairs if owner[q] != row_owner[r]
        ]
        apart = between_products(found, owner, None)
        assert list(zip(apart.query.tolist(), apart.row.tolist(), strict=True)) == [
            (q, r) for q, r in pairs if owner[q] != r
        ]


def write_grocery(folder: Path, products: list[list[str]]) -> Path:
    (folder / "grocery").mkdir(parents=True)
    lines = [
        {
            **{"id": f"g{n}", "title": f"fruit {n}", "category": f"kind {n % 2}"},
            "images": [{"path": path} for path in paths],
        }
        for n, paths in enumerate(products)
    ]
    catalog = folder / "grocery" / "catalog.jsonl"
    catalog.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return folder


def test_grocery_asks_by_phone_photos_of_the_test_part(tmp_path: Path) -> None:
    data = write_grocery(
        tmp_path,
        [
            ["images/iconic-images/a.jpg", "images/train/a1.jpg", "images/test/a 2.jpg"],
            ["images/test/b1.jpg", "images/iconic-images/b.jpg", "images/test/b2.jpg"],
            ["images/iconic-images/c.jpg", "images/val/c1.jpg"],
        ],
    )
    icon, photo = grocery(data)
    asked = ["images/test/a%202.jpg", "images/test/b1.jpg", "images/test/b2.jpg"]
    assert (icon.name, photo.name) == ("grocery-photo-icon", "grocery-photo-photo")
    assert icon.queries.ids == photo.queries.ids == photo.gallery.ids == asked
    assert icon.queries.products.tolist() == [0, 1, 1]
    assert icon.queries.categories == ["kind 0", "kind 1", "kind 1"]
    assert icon.gallery.ids == ["g0", "g1", "g2"]
    assert shown(icon) == [f"images/iconic-images/{letter}.jpg" for letter in "abc"]
    assert named(icon, icon.judged) == {(asked[0], "g0"), (asked[1], "g1"), (asked[2], "g1")}
    assert named(photo, photo.judged) == {(asked[1], asked[2]), (asked[2], asked[1])}
    assert named(photo, photo.removed) == {(name, name) for name in asked}
    assert not photo.trials


@pytest.mark.parametrize(
    "products",
    [
        [["images/iconic/a.jpg", "images/test/a1.jpg"], ["images/test/b1.jpg"]],
        [["images/iconic/a.jpg", "images/iconic/b.jpg", "images/test/a1.jpg"]],
        [["images/iconic/a.jpg", "images/train/a1.jpg"]],
    ],
)
def test_another_catalog_is_not_taken_for_grocery(
    products: list[list[str]], tmp_path: Path
) -> None:
    with pytest.raises(BenchmarkError, match="is not the grocery data set: each product has"):
        grocery(write_grocery(tmp_path, products))


def test_fashion_asks_by_titles_that_no_model_was_trained_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "fashion").mkdir()
    titles = [f"Shirt number {n}" for n in range(80)]
    rows = [f"{n},{title},Tops,Red,{n}.png" for n, title in enumerate(titles)]
    header = "id,title,category,color,image"
    (tmp_path / "fashion" / "catalog.csv").write_text("\n".join([header, *rows]) + "\n")
    [task] = fashion(tmp_path)
    held_out = [title for title in titles if is_test_title(title)]
    assert 0 < len(held_out) < 40
    assert sorted(task.queries.texts or []) == sorted(held_out)
    assert set(task.gallery.texts or []) == {"Tops Red"}
    # A smaller gallery is a part of the larger one, whatever the file's order.
    monkeypatch.setattr(datasets, "FASHION_GALLERY", 5)
    text = "\n".join([header, *reversed(rows)]) + "\n"
    (tmp_path / "fashion" / "catalog.csv").write_text(text)
    [small] = fashion(tmp_path)
    assert small.gallery.ids == task.gallery.ids[:5]


@pytest.mark.parametrize("read", [fashion, grocery])
def test_data_that_is_not_there(read: Callable[[Path], list[Task]], tmp_path: Path) -> None:
    with pytest.raises(CatalogError, match=rf"{tmp_path}.*catalog.*cannot be read"):
        read(tmp_path)


@pytest.mark.data
def test_the_real_data_sets_have_their_known_sizes() -> None:
    folder = os.environ.get("SHOPLENS_DATA")
    if not folder:
        pytest.skip("SHOPLENS_DATA does not name the folder of real data")
    icon, photo = grocery(Path(folder))
    assert (len(icon.queries), len(icon.gallery), len(photo.judged)) == (2485, 81, 85200)
    [titles] = fashion(Path(folder))
    assert (len(titles.queries), len(titles.gallery)) == (3472, 5000)


@pytest.fixture(scope="module")
def drawn(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("drawn") / "esci"
    generate(folder, 48, seed=1, pictures="drawn")
    return folder


def make_split(drawn: Path, out: Path, examples: Path | None = None) -> Split:
    return build_split(
        examples or drawn / EXAMPLES, drawn / PRODUCTS, [parse_source(str(drawn / MANIFEST))],
        drawn / IMAGES, out, Options(max_shared=2, test_products=24, validation_products=0),
        placeholders=drawn / PLACEHOLDERS,
    )  # fmt: skip


def test_a_split_of_esci_becomes_three_tasks(drawn: Path, tmp_path: Path) -> None:
    split = make_split(drawn, tmp_path / "split")
    products = {
        row["product_id"]: row
        for row in split.table("products.parquet").to_pylist()
        if row["part"] == "test"
    }
    pictures = {
        f"{row['product_id']}/{row['rank']}": row
        for row in split.table("images.parquet").to_pylist()
        if row["part"] == "test"
    }
    assert len(products) >= 24
    aux, pairs, asked = esci_tasks(split.folder, drawn / IMAGES)

    def owner(name: str) -> str:
        return str(pictures[name]["product_id"])

    def group(name: str) -> str:
        return str(products[owner(name)]["group"])

    main = [name for name in pictures if name.endswith("/0")]
    further = [name for name in pictures if not name.endswith("/0")]
    for task, queries, gallery in ((aux, further, main), (pairs, [*pictures], [*pictures])):
        assert sorted(task.queries.ids) == sorted(queries)
        assert sorted(task.gallery.ids) == sorted(gallery)
        every = {(q, g) for q in queries for g in gallery}
        same = {(q, g) for q, g in every if owner(q) == owner(g)}
        own = {(q, g) for q, g in every if q == g}
        assert named(task, task.judged) == same - own
        assert named(task, task.removed) == own
        duplicates = {(q, g) for q, g in every if group(q) == group(g)} - same
        assert named(task, task.duplicates) == duplicates
        assert duplicates
        assert task.gallery.pictures is not None
        for name, picture in zip(task.gallery.ids, task.gallery.pictures, strict=True):
            assert picture.path == (drawn / IMAGES).resolve() / pictures[name]["path"]
        of_product = defaultdict(set)
        for name, product in zip(task.queries.ids, task.queries.products.tolist(), strict=True):
            of_product[product].add(owner(name))
        assert all(len(names) == 1 for names in of_product.values())
    assert (aux.trials, pairs.trials) == (False, True)

    judgments = split.table("queries.parquet").to_pylist()
    grades = {"E": 100, "S": 10, "C": 1, "I": 0}
    expected = {
        (f"q{row['query_id']}", f"{row['product_id']}/0"): grades[row["label"]] for row in judgments
    }
    assert named(asked, asked.judged) == set(expected)
    pairs_of = zip(asked.judged.query, asked.judged.row, strict=True)
    found = [expected[asked.queries.ids[q], asked.gallery.ids[row]] for q, row in pairs_of]
    assert asked.grades.tolist() == found
    assert (asked.relevant, asked.lenient) == (100, 10)
    assert asked.queries.texts == [
        next(row["query"] for row in judgments if f"q{row['query_id']}" == name)
        for name in asked.queries.ids
    ]
    assert asked.gallery.texts == [products[owner(name)]["title"] for name in asked.gallery.ids]
    assert asked.gallery.ids == aux.gallery.ids
    # Each query has a right answer.
    assert set(asked.judged.query[asked.right()].tolist()) == set(range(len(asked.queries)))


def test_a_split_without_queries_still_asks_by_pictures(drawn: Path, tmp_path: Path) -> None:
    examples = pq.read_table(drawn / EXAMPLES)
    trained = examples.filter(pc.equal(examples["split"], "train"))
    pq.write_table(trained, tmp_path / "examples.parquet")
    split = make_split(drawn, tmp_path / "split", tmp_path / "examples.parquet")
    assert split.manifest.counts.queries.queries == 0
    tasks = esci_tasks(split.folder, drawn / IMAGES)
    assert [task.name for task in tasks] == ["esci-aux-main", "esci-all-pairs"]


def test_a_folder_that_is_no_split(tmp_path: Path) -> None:
    with pytest.raises(BenchmarkError, match="make the split with"):
        esci_tasks(tmp_path, tmp_path)
