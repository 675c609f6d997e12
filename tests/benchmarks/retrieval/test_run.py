"""A benchmark from top to bottom on coloured squares, with answers worked out beside it."""

from __future__ import annotations

import gzip
import json
import logging
from collections.abc import Callable
from dataclasses import replace
from math import ceil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image, ImageColor

from benchmarks.datasets import title_task, views_tasks
from benchmarks.retrieval.answers import RANKS, RUN, Stored, load_task, stored_run
from benchmarks.retrieval.run import Subject, run_tasks
from benchmarks.retrieval.score import score_folder
from benchmarks.retrieval.task import Side, Task
from benchmarks.systems import PixelEncoder
from indexing.build import build_index
from indexing.catalog import Product, read_catalog
from indexing.catalog.product import ProductImage
from indexing.errors import BenchmarkError
from indexing.models import Encoder
from indexing.store import OpenIndex, open_index

# Product: the colours of its pictures, upper half and lower half. The second picture of
# "olive" looks like "teal"; "gold" and "wheat" share a title, "navy" has one picture.
SQUARES = {
    "red": ["red red", "red darkred", "red orange"],
    "olive": ["olive olive", "teal teal"],
    "teal": ["teal darkgreen", "teal blue"],
    "gold": ["gold gold", "gold khaki"],
    "wheat": ["wheat wheat", "wheat gold"],
    "navy": ["navy navy"],
}
TITLES = {"gold": "Yellow thing", "wheat": "yellow thing"}


def square(path: Path, colours: str) -> None:
    picture = Image.new("RGB", (40, 40))
    upper, lower = (ImageColor.getrgb(name) for name in colours.split())
    picture.paste(upper, (0, 0, 40, 20))
    picture.paste(lower, (0, 20, 40, 40))
    picture.save(path)


@pytest.fixture
def shop(tmp_path: Path) -> Path:
    """The catalog of the squares."""
    lines = []
    for name, pictures in SQUARES.items():
        paths = [f"{name}-{place}.png" for place in range(len(pictures))]
        for path, colours in zip(paths, pictures, strict=True):
            square(tmp_path / path, colours)
        images = [{"path": path} for path in paths]
        title = TITLES.get(name, f"A {name} thing")
        lines.append(
            {"id": name, "title": title, "category": f"kind {len(name)}", "images": images}
        )
    catalog = tmp_path / "catalog.jsonl"
    catalog.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return catalog


def products(catalog: Path) -> list[Product]:
    return list(read_catalog(catalog))


def vectors(encoder: Encoder, side: Side) -> NDArray[np.float64]:
    """Unit vectors of a side's pictures or else of its texts, each encoded by itself."""
    if side.pictures is None:
        found = [encoder.embed_texts([text])[0] for text in side.texts or []]
    else:
        found = [encoder.embed_images([Image.open(str(p.path))])[0] for p in side.pictures]
    return np.array(found, np.float64)


def plain_ranks(task: Task, scores: NDArray[Any]) -> dict[tuple[str, str], int]:
    """By the ids of query and right answer: 1 + better + half of the ties, rounded up, among
    what is neither right nor taken out; other right answers stand before those they tie with."""
    out = set(zip(task.removed.query.tolist(), task.removed.row.tolist(), strict=True))
    out |= set(zip(task.duplicates.query.tolist(), task.duplicates.row.tolist(), strict=True))
    judged = list(zip(task.judged.query.tolist(), task.judged.row.tolist(), strict=True))
    ranks = {}
    for query, row in judged:
        rest = [(query, other) for other in range(len(task.gallery))]
        wrong = [scores[pair] for pair in rest if pair not in out and pair not in judged]
        before = [pair for pair in judged if pair[0] == query
                  and (-scores[pair], pair[1]) < (-scores[query, row], row)]  # fmt: skip
        ties = ceil(wrong.count(scores[query, row]) / 2)
        rank = 1 + len(before) + sum(score > scores[query, row] for score in wrong) + ties
        ranks[task.queries.ids[query], task.gallery.ids[row]] = rank
    return ranks


def ranks_of(stored: Stored, number: int) -> dict[tuple[str, str], int]:
    pairs = zip(stored.judged.query, stored.judged.row, strict=True)
    names = [(stored.query_ids[query], stored.gallery_ids[row]) for query, row in pairs]
    return dict(zip(names, stored.systems[number][1].tolist(), strict=True))


def names(stored: Stored) -> list[tuple[str, str]]:
    return [(system.name, system.route) for system, _, _ in stored.systems]


def scored(task: Task, encoder: Encoder) -> NDArray[np.float32]:
    scores = vectors(encoder, task.queries) @ vectors(encoder, task.gallery).T
    return scores.astype(np.float32)


def test_every_system_answers_every_task_it_can(
    shop: Path, tiny_encoder: Any, tmp_path: Path
) -> None:
    tasks = [
        *views_tasks(products(shop)),
        title_task(products(shop), name="titles", title="by title"),
    ]
    seen: dict[str, list[tuple[int, int]]] = {}

    def progress(stage: str) -> Callable[[int, int], None]:
        return lambda done, total: seen.setdefault(stage, []).append((done, total))

    run_tasks(tasks, Subject(tiny_encoder), ["pixels", "bm25"], tmp_path / "out", progress=progress)
    for task in tasks[:2]:
        stored = load_task(tmp_path / "out" / task.name)
        assert stored.query_ids == task.queries.ids
        assert stored.left_out == {}
        assert names(stored) == [("tiny", "exact"), ("pixels", "exact")]
        for number, encoder in enumerate((tiny_encoder, PixelEncoder())):
            expected = plain_ranks(task, scored(task, encoder))
            assert ranks_of(stored, number) == expected
            assert max(expected.values()) > 1
            assert stored.systems[number][0].seconds.keys() == {"embed", "rank"}
        assert seen[f"{task.name}: tiny"][-1] == (len(task.queries),) * 2
    titles = load_task(tmp_path / "out" / "titles")
    assert names(titles) == [("tiny", "exact"), ("bm25", "exact")]
    assert ranks_of(titles, 0) == plain_ranks(tasks[2], scored(tasks[2], tiny_encoder))
    assert ranks_of(titles, 0)["title-red", "red"] == 1
    assert titles.systems[1][0].seconds.keys() == {"rank"}
    assert {"rank tiny", "rank pixels", "rank bm25"} <= seen.keys()


def test_the_first_answers_are_stored_best_first(
    shop: Path, tiny_encoder: Any, tmp_path: Path
) -> None:
    aux, _ = views_tasks(products(shop))
    run_tasks([aux], Subject(tiny_encoder), [], tmp_path / "out", depth=3)
    stored = load_task(tmp_path / "out" / aux.name)
    run = stored_run(tmp_path / "out" / aux.name, stored.systems[0][0])
    assert all(len(answers) == 3 for answers in run.values())
    assert run["red/1"][0] == "red/0"
    assert run["olive/1"][0] == "teal/0"  # what it looks like
    assert ranks_of(stored, 0)["olive/1", "olive/0"] == 3  # after navy, which is as dark
    # "wheat" has the title of "gold", so neither answers the other's questions.
    assert "gold/0" not in run["wheat/1"]
    assert "wheat/0" not in run["gold/1"]
    strict = dict(zip(stored.query_ids, stored.systems[0][2].tolist(), strict=True))
    assert (ranks_of(stored, 0)["wheat/1", "wheat/0"], strict["wheat/1"]) == (1, 2)


def test_broken_pictures_are_left_out_for_all_systems_and_counted(
    shop: Path, tiny_encoder: Any, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    whole, _ = views_tasks(products(shop))
    (tmp_path / "red-1.png").write_bytes(b"no picture")  # a query
    (tmp_path / "teal-0.png").write_bytes(b"neither")  # of the gallery, which one query asks for
    aux, pairs = views_tasks(products(shop))
    with caplog.at_level(logging.WARNING):
        run_tasks([aux, pairs], Subject(tiny_encoder), ["pixels"], tmp_path / "out")
    warnings = {record.getMessage().split(":")[0] for record in caplog.records}
    assert warnings == {f"picture {name}.png is left out" for name in ("red-1", "teal-0")}
    stored = load_task(tmp_path / "out" / aux.name)
    assert stored.query_ids == ["red/2", "olive/1", "gold/1", "wheat/1"]
    assert stored.gallery_ids == ["red/0", "olive/0", "gold/0", "wheat/0", "navy/0"]
    assert stored.left_out == {
        "queries whose picture cannot be read": 1,
        "gallery pictures that cannot be read": 1,
        "queries without a right answer left": 1,
    }
    left = whole.without(np.array([0]), np.flatnonzero(np.array(whole.gallery.ids) == "teal/0"))
    for number, encoder in enumerate((tiny_encoder, PixelEncoder())):
        assert ranks_of(stored, number) == plain_ranks(left, scored(left, encoder))
    assert not ranks_of(stored, 0).keys() - plain_ranks(left, scored(left, tiny_encoder)).keys()
    stored = load_task(tmp_path / "out" / pairs.name)
    assert stored.left_out == {
        "queries whose picture cannot be read": 2,
        "gallery pictures that cannot be read": 2,
        "queries without a right answer left": 1,  # teal/1
    }
    assert "teal/1" in stored.gallery_ids


def test_what_one_system_cannot_use_no_other_is_asked(
    shop: Path, tiny_encoder: Any, tmp_path: Path
) -> None:
    class Picky(PixelEncoder):
        """Gives no finite vector for what is mostly red."""

        name, fingerprint = "picky", "picky"

        def embed_pixels(self, pixels: NDArray[np.float32]) -> NDArray[np.float32]:
            found = super().embed_pixels(pixels)
            found[pixels.mean(axis=(2, 3)) @ np.array([1.0, -1, -1]) > 0.5] = np.nan
            return found

    aux, _ = views_tasks(products(shop))
    run_tasks([aux], Subject(Picky()), ["pixels"], tmp_path / "out")
    stored = load_task(tmp_path / "out" / aux.name)
    assert names(stored) == [("picky", "exact"), ("pixels", "exact")]
    assert "red/0" not in stored.gallery_ids
    assert not any(name.startswith("red") for name in stored.query_ids)
    assert ranks_of(stored, 0) == ranks_of(stored, 1)


@pytest.fixture
def index(shop: Path, tiny_encoder: Any, tmp_path: Path) -> OpenIndex:
    build_index(read_catalog(shop), tiny_encoder, tmp_path / "shop-index")
    return open_index(tmp_path / "shop-index", encoder=tiny_encoder)


def test_an_index_answers_by_itself_as_well(
    shop: Path, index: OpenIndex, tiny_encoder: Any, tmp_path: Path
) -> None:
    tasks = [*views_tasks(products(shop)), title_task(products(shop), name="titles", title="T")]
    tiny_encoder.encoded = 0
    run_tasks(tasks[:2], Subject(tiny_encoder, index), ["pixels"], tmp_path / "out")
    assert tiny_encoder.encoded == 0  # the index holds all vectors
    run_tasks(tasks[2:], Subject(tiny_encoder, index), [], tmp_path / "out")
    for task in tasks:
        folder = tmp_path / "out" / task.name
        stored = load_task(folder)
        own = [("tiny", "exact"), ("tiny", "index")]
        assert names(stored)[:2] == own
        exact, by_index = stored.systems[:2]
        assert exact[1].tolist() == by_index[1].tolist()
        assert exact[2].tolist() == by_index[2].tolist()
        assert stored_run(folder, exact[0]) == stored_run(folder, by_index[0])
        assert ranks_of(stored, 1) == plain_ranks(task, scored(task, tiny_encoder))
        assert by_index[0].note.endswith("shop-index, an index of type exact")
        assert by_index[0].seconds.keys() == {"search"}


def test_an_index_with_more_pictures_answers_with_those_of_the_gallery(
    shop: Path, index: OpenIndex, tiny_encoder: Any, tmp_path: Path
) -> None:
    aux, _ = views_tasks(products(shop)[1:5])
    run_tasks([aux], Subject(tiny_encoder, index), [], tmp_path / "out")
    stored = load_task(tmp_path / "out" / aux.name)
    assert [set(answers) for answers in stored_run(
        tmp_path / "out" / aux.name, stored.systems[1][0]
    ).values()] == [
        {"olive/0", "teal/0", "gold/0", "wheat/0"}, {"olive/0", "teal/0", "gold/0", "wheat/0"},
        {"olive/0", "teal/0", "gold/0"}, {"olive/0", "teal/0", "wheat/0"},
    ]  # fmt: skip
    assert ranks_of(stored, 1) == ranks_of(stored, 0)


def test_products_that_share_a_picture_have_a_vector_each(
    shop: Path, tiny_encoder: Any, tmp_path: Path
) -> None:
    line = {
        "id": "twin",
        "title": "Twin",
        "images": [{"path": "teal-0.png"}, {"path": "navy-0.png"}],
    }
    shop.write_text(shop.read_text() + json.dumps(line) + "\n")
    build_index(read_catalog(shop), tiny_encoder, tmp_path / "index")
    index = open_index(tmp_path / "index", encoder=tiny_encoder)
    tasks = views_tasks(products(shop))
    run_tasks(tasks, Subject(tiny_encoder, index), [], tmp_path / "out")
    for task in tasks:
        stored = load_task(tmp_path / "out" / task.name)
        assert names(stored) == [("tiny", "exact"), ("tiny", "index")]
        assert ranks_of(stored, 0) == plain_ranks(task, scored(task, tiny_encoder))
        assert ranks_of(stored, 1) == ranks_of(stored, 0)
        folder = tmp_path / "out" / task.name
        exact, by_index = (stored_run(folder, system) for system, _, _ in stored.systems)
        assert exact == by_index


def test_a_gallery_that_the_index_lacks_is_answered_exactly_only(
    shop: Path, index: OpenIndex, tiny_encoder: Any, tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:  # fmt: skip
    square(tmp_path / "navy-0.png", "navy blue")  # changed since
    aux, _ = views_tasks(products(shop))
    with caplog.at_level(logging.WARNING):
        run_tasks([aux], Subject(tiny_encoder, index), [], tmp_path / "out")
    assert [record.getMessage() for record in caplog.records] == [
        f"views-aux-main: 1 of 6 gallery pictures are not in {tmp_path / 'shop-index'}, "
        "so its answers are exact ones only"
    ]
    stored = load_task(tmp_path / "out" / aux.name)
    assert names(stored) == [("tiny", "exact")]


def test_an_index_is_asked_for_as_many_answers_as_the_measures_look_at(
    tiny_encoder: Any, tmp_path: Path
) -> None:
    """R@100 and the curve go further than the answers that are stored."""
    rng = np.random.default_rng(0)
    lines = []
    for number in range(150):
        cells = rng.integers(0, 256, (2, 4, 4, 3))
        for view, share in (("a", 0.0), ("b", 0.85)):
            shown = ((1 - share) * cells[0] + share * cells[1]).astype(np.uint8)
            Image.fromarray(shown).resize((8, 8), 0).save(tmp_path / f"{number}{view}.png")
        paths = [{"path": f"{number}{view}.png"} for view in "ab"]
        lines.append(json.dumps({"id": f"p{number}", "title": f"t{number}", "images": paths}))
    (tmp_path / "catalog.jsonl").write_text("\n".join(lines))
    catalog = read_catalog(tmp_path / "catalog.jsonl")
    build_index(catalog, tiny_encoder, tmp_path / "index")
    index = open_index(tmp_path / "index", encoder=tiny_encoder)
    aux, _ = views_tasks(catalog)
    run_tasks([aux], Subject(tiny_encoder, index), [], tmp_path / "out", depth=10)
    stored = load_task(tmp_path / "out" / aux.name)
    exact, by_index = stored.systems[0][1], stored.systems[1][1]
    assert ((exact > 10) & (exact <= 100)).any()
    assert (exact > 100).any()
    assert by_index.tolist() == np.where(exact <= 100, exact, 0).tolist()
    for system, _, _ in stored.systems:
        run = stored_run(tmp_path / "out" / aux.name, system)
        assert {len(answers) for answers in run.values()} == {10}


def test_a_second_run_encodes_nothing_and_writes_the_same_bytes(
    shop: Path, tiny_encoder: Any, tmp_path: Path
) -> None:
    tasks, out = views_tasks(products(shop)), tmp_path / "out"

    def run() -> tuple[dict[str, bytes], list[dict[str, Any]]]:
        run_tasks(tasks, Subject(tiny_encoder), ["pixels"], out)
        files = [path for name in (RUN, RANKS) for path in out.rglob(name)]
        content = {str(path.relative_to(out)): path.read_bytes() for path in files}
        scores = [task.model_dump() for task in score_folder(out, resamples=50)]
        for task in scores:
            for system in task["systems"]:
                system.pop("seconds")
        return content, scores

    first = run()
    assert len(first[0]) == 2 * 2 * 2
    assert tiny_encoder.encoded == 12  # each picture once, though two tasks ask for it
    tiny_encoder.encoded = 0
    assert run() == first
    assert tiny_encoder.encoded == 0
    # Of another task of this name, or of fewer systems, nothing stays behind.
    run_tasks([tasks[0].without(np.array([0]), np.array([2]))], Subject(tiny_encoder), [], out)
    stored = load_task(out / tasks[0].name)
    assert names(stored) == [("tiny", "exact")]
    assert "red/1" not in stored.query_ids


def test_the_run_is_plain_text_inside(shop: Path, tiny_encoder: Any, tmp_path: Path) -> None:
    aux, _ = views_tasks(products(shop))
    run_tasks([aux], Subject(tiny_encoder), [], tmp_path / "out")
    text = gzip.decompress((tmp_path / "out" / aux.name / "tiny.exact" / RUN).read_bytes())
    lines = [line.split() for line in text.decode().splitlines()]
    assert {(len(line), line[1], line[5]) for line in lines} == {(6, "Q0", "tiny.exact")}


@pytest.mark.parametrize("name", ["bm25", "fusion"])
def test_who_can_answer_nothing_is_named_before_anything_is_done(
    name: str, shop: Path, tiny_encoder: Any, tmp_path: Path
) -> None:
    tasks = views_tasks(products(shop))
    with pytest.raises(
        BenchmarkError, match=f"{name} cannot answer any of: views-aux-main, views-all-pairs"
    ):
        run_tasks(tasks, Subject(tiny_encoder), [name], tmp_path / "out")
    assert tiny_encoder.encoded == 0
    assert not (tmp_path / "out").exists()


def test_a_task_of_which_nothing_is_left_is_named(
    shop: Path, tiny_encoder: Any, tmp_path: Path
) -> None:
    aux, _ = views_tasks(products(shop))
    gone = [ProductImage(location="gone.png", path=tmp_path / "gone.png")] * len(aux.queries)
    empty = replace(aux, queries=replace(aux.queries, pictures=gone))
    with pytest.raises(BenchmarkError, match="views-aux-main: no query is left with a right"):
        run_tasks([empty], Subject(tiny_encoder), [], tmp_path / "out")
