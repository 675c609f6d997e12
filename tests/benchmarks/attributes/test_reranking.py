"""Reranking measured: a shop whose colours the cosine cannot see."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from benchmarks.attributes.rerank_gaps import without_words
from benchmarks.attributes.rerank_report import write_rerank_report
from benchmarks.attributes.reranking import agreement, measure_tasks, said_of
from indexing.attributes.columns import Column
from indexing.attributes.evidence import told
from indexing.attributes.fusing import Evidence
from indexing.attributes.gallery import make_gallery
from indexing.attributes.rerank_queries import Maker, RerankQueries
from indexing.attributes.vocabulary import TrainedOn
from indexing.attributes.words import Words
from indexing.build import build_index
from indexing.catalog import read_catalog
from indexing.errors import BenchmarkError
from indexing.store import open_index
from tests.conftest import (
    TinyCategorizer,
    TinyClassifier,
    TinyEncoder,
    pictures_of,
    tiny_shelves,
)

SHADES = {"Red": (200, 40, 40), "Blue": (40, 40, 200), "Green": (40, 200, 40)}


class ColourBlind(TinyEncoder):
    """Sees how bright a picture is and no colour; reads every text alike."""

    def embed_pixels(self, pixels: Any) -> NDArray[np.float32]:
        grey = pixels.mean(axis=1, keepdims=True)
        return super().embed_pixels(np.repeat(grey, 3, axis=1))

    def embed_texts(self, texts: Any) -> NDArray[np.float32]:
        return super().embed_texts(["" for _ in texts])


@pytest.fixture
def shop(tmp_path: Path) -> Any:
    """1400 products of three colours, mugs and socks, each with a title of its own."""
    rng = np.random.default_rng(0)
    with (tmp_path / "catalog.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["id", "title", "image", "color", "kind"])
        for number in range(1400):
            color, kind = list(SHADES)[int(rng.integers(3))], ("mug", "sock")[number % 2]
            noise = int(rng.integers(-30, 30))
            rgb = tuple(int(np.clip(x + noise, 0, 255)) for x in SHADES[color])
            Image.new("RGB", (4, 4), rgb).save(tmp_path / f"{number}.png")
            writer.writerow([number, f"{kind} number {number}", f"{number}.png", color, kind])
    return read_catalog(tmp_path / "catalog.csv")


def test_attributes_help_where_the_cosine_is_blind_and_only_the_right_ones(
    shop: Any, tmp_path: Path
) -> None:
    encoder, classifier = ColourBlind(), TinyClassifier()
    build_index(shop, encoder, tmp_path / "index", classifiers=[classifier])
    said: list[str] = []
    found = measure_tasks(
        open_index(tmp_path / "index"), encoder, [classifier], said.append, lambda done, total: None
    )
    assert "to fit on" in said[0]
    assert set(found) == {"titles", "unnamed", "like this but", "photos"}
    assert "values: not measured" in said[1]  # three colours and two kinds make too few
    changed = found["like this but"]
    assert changed.record.active
    assert changed.shipped.ndcg.low > 0.1
    assert changed.shipped.agreement.low > 0.1
    assert changed.oracle.ndcg.mean >= changed.shipped.ndcg.mean
    assert changed.shuffled.ndcg.mean < changed.shipped.ndcg.mean / 2
    assert changed.lost == 0  # the tiny classifier never errs on plain pictures
    # Colours are read off pictures, kinds off titles alone.
    assert changed.shipped.ndcg.mean > changed.unsaid.ndcg.mean > 0
    for result in found.values():
        for effect in (
            result.shipped,
            result.fitted,
            result.unsaid,
            result.shuffled,
            result.oracle,
        ):
            assert effect.wins + effect.losses + effect.ties == result.queries
    write_rerank_report(found, tmp_path / "out", "the command")
    figures = json.loads((tmp_path / "out" / "figures.json").read_text())
    assert figures["like this but"]["shipped"]["ndcg"]["mean"] == changed.shipped.ndcg.mean
    page = (tmp_path / "out" / "report.md").read_text()
    assert "Gate of attributes: open" in page
    assert "the same, attributes of other products" in page


def test_products_whose_titles_do_not_say_it(tmp_path: Path) -> None:
    titles = ["Red mug one", "red sock", "mug", "thing four", "Blue sock five"] * 40
    images = pictures_of(range(200), files=[tmp_path / f"{row}.png" for row in range(200)])
    for row in range(200):
        colour = (40, 200, 40) if row % 5 == 4 else (200, 40, 40)
        if row != 5:  # gone since it was indexed
            Image.new("RGB", (4, 4), colour).save(tmp_path / f"{row}.png")
    classifier = TinyClassifier()
    nothing = np.full(200, -1, np.int16)
    columns = {
        attribute.name: Column(
            attribute, np.zeros((200, 1), np.uint16), np.ones((200, 1), np.float16),
            nothing, nothing,
        )
        for attribute in classifier.attributes
    }  # fmt: skip
    vectors = np.zeros((200, 2), np.float32)
    gallery = make_gallery(
        titles, list(map(str, range(200))), images, vectors, columns,
        [TrainedOn(held_out=1.0, seed=0)],
    )  # fmt: skip
    done: list[tuple[int, int]] = []
    words = Words(classifier.ways_of_writing())
    maker = Maker(
        gallery, images, TinyEncoder(), classifier, words, {}, lambda *shown: done.append(shown)
    )
    found = without_words(maker)
    color, kind = found["color"], found["kind"]
    assert done[-1] == (200, 200)
    # The picture is all that is left: Red as a class is 0, Blue 1, Green 2.
    seen = color.predicted(np.array([0, 1, 2, 3, 4]))
    assert seen.argmax(axis=1).tolist() == [0, 0, 0, 0, 2]
    assert color.filled[:5].tolist() == [0, 0, 0, 0, 2]
    assert seen.max(axis=1) == pytest.approx([0.8] * 5, abs=1e-3)
    assert color.predicted(np.array([5]))[0].tolist() == [0.25] * 4  # neither picture nor word
    assert color.filled[5] == -1
    assert kind.predicted(np.arange(200)).tolist() == [[0.5, 0.5]] * 200
    assert (kind.filled == -1).all()


def test_an_index_without_attributes(shop: Any, tmp_path: Path) -> None:
    encoder = ColourBlind()
    build_index(shop, encoder, tmp_path / "index")
    with pytest.raises(BenchmarkError, match="knows no attributes"):
        measure_tasks(
            open_index(tmp_path / "index"), encoder, [TinyClassifier()], print, lambda *_: None
        )


def test_categories_alone_are_measured_on_texts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for module in ("attributes.rerank_queries", "match_queries"):  # fewer are as good here
        monkeypatch.setattr(f"indexing.{module}.MAX_QUERIES", 120)
    rng = np.random.default_rng(0)
    shelves = TinyCategorizer.categories
    for number in range(8):  # how bright a picture is says nothing of its shelf
        Image.new("RGB", (4, 4), (40 + 20 * number,) * 3).save(tmp_path / f"{number}.png")
    with (tmp_path / "catalog.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["id", "title", "image", "shelf", "maker"])
        for number in range(660):
            shelf = shelves[int(rng.integers(4))]
            own = [f"{shelf} number {number}", f"{rng.integers(8)}.png", shelf, f"m{number % 20}"]
            writer.writerow([number, *own])
    categorizer, encoder = TinyCategorizer(), ColourBlind()
    categorizer.config = SimpleNamespace(trained_on=TrainedOn(held_out=1.0, seed=0))
    classifiers = [tiny_shelves(categorizer)]
    catalog = read_catalog(tmp_path / "catalog.csv")
    build_index(catalog, encoder, tmp_path / "index", classifiers=classifiers)
    index, said = open_index(tmp_path / "index"), list[str]()

    def measured(fields: list[str]) -> Any:
        return measure_tasks(index, encoder, classifiers, said.append, lambda *_: None, fields)

    found = measured(["maker"])
    assert "photos: not measured: titles alone are read, and no pictures" in said
    assert set(found) == {"titles", "values", "unnamed", "like this but"}
    titles, values, unnamed = found["titles"], found["values"], found["unnamed"]
    assert titles.said == {"shelf": (1.0, 1.0)}
    assert unnamed.said == {"shelf": (0.0, 0.0)}  # `number 7` is of no shelf
    assert 0 < values.said["shelf"][0] < 1  # others name a maker alone
    assert values.said["shelf"][1] == 1
    assert titles.record.counts(["shelf"])
    assert titles.record.gates["categories"].open
    for result in (titles, values):
        assert result.shipped.ndcg.low > 0
        assert result.named == result.fitted  # nothing is read of them but their words
        assert result.oracle.ndcg.mean >= result.fitted.ndcg.mean
        assert result.shuffled.ndcg.mean < result.fitted.ndcg.mean / 2
    assert unnamed.fitted.ties == unnamed.queries
    with pytest.raises(BenchmarkError, match=r"no product has the field 'makr': there are id,"):
        measured(["makr"])
    write_rerank_report(found, tmp_path / "out", "the command")
    page = (tmp_path / "out" / "report.md").read_text()
    assert "Gate of categories: open" in page
    assert "Queries surely say shelf in 100.0% of the cases, and rightly in 100.0%" in page


def test_what_queries_say_by_hand() -> None:
    [attribute] = tiny_shelves().attributes
    sure, unsure = told(attribute, ["Toys"], "named"), Evidence(np.full(4, 0.25), "read", False)
    nothing = np.zeros(5, np.int64)
    queries = RerankQueries(
        sorts=np.full(5, "planted"), vectors=np.zeros((5, 2), np.float32), clusters=nothing,
        hidden=nothing, relevant=[nothing] * 5,
        evidence=[{"shelf": sure}, {"shelf": sure}, {"shelf": sure}, {"shelf": unsure}, {}],
        wanted=[{"shelf": 2}, {"shelf": 1}, {"color": 0}, {"shelf": 2}, {"shelf": 2}],
    )  # fmt: skip
    assert said_of(queries, "shelf") == (3 / 5, 1 / 2)
    assert said_of(queries, "color") == (0.0, 0.0)


def test_agreement_counts_what_is_given() -> None:
    given = {"color": np.array([1, 1, 2, -1]), "kind": np.array([0, -1, -1, 1])}
    assert agreement({"color": 1, "kind": 0}, given) == 3 / 5
    assert agreement({"color": 2}, given) == 1 / 3
    assert agreement({}, given) == 0
