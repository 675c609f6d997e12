"""Categories that a text lets expect, as something to narrow its answers by."""

from __future__ import annotations

import logging
from dataclasses import replace
from functools import partial
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest
from PIL import Image

from indexing.attributes.categories import CategoryReader
from indexing.attributes.columns import Column
from indexing.attributes.fusing import EPSILON
from indexing.attributes.labels import Label, Labels
from indexing.attributes.record import AttributesRecord, RerankRecord, SourceRecord
from indexing.attributes.vocabulary import ABSTAINED, OTHER, TrainedOn
from indexing.errors import MissingDependencyError, ModelError
from indexing.match_record import MODES
from search import version
from search.attributes import QueryAttributes
from search.cli import _proposal_lines
from search.engine import SearchEngine
from search.facets import Proposal, proposals, values_of
from tests.search.test_attributes import Fake
from tests.search.test_attributes import rerank as rerank_by
from tests.search.test_engine import ids, opened, product

SHELVES = ("Kitchen", "Clothes", "Toys", "Garden", OTHER)
# By the cosine with red: r m y w b c.
COLOURS = ("red", "magenta", "yellow", "white", "blue", "cyan")
SHOP = [product(name, colour) for name, colour in zip("rmywbc", COLOURS, strict=True)]
GIVEN = [0, ABSTAINED, 1, ABSTAINED, ABSTAINED, 4]
FILLED = [ABSTAINED, 1, ABSTAINED, 2, ABSTAINED, ABSTAINED]
SHARES = [[0.5, 0.5, 0, 0, 0], [0.1, 0.9, 0, 0, 0], [0, 1, 0, 0, 0], [0, 0.1, 0.9, 0, 0],
          [0.2, 0.2, 0.2, 0.2, 0.2], [0, 0, 0, 0, 1]]  # fmt: skip


class Table:
    """What each text is, for all others nothing in particular."""

    name, label, categories, threshold = "table", "shelf", SHELVES, 0.5
    fingerprint = "t"
    config = SimpleNamespace(trained_on=TrainedOn(held_out=0.1, seed=0))

    def __init__(self) -> None:
        self.texts: dict[str, list[float]] = {}
        self.asked: list[str] = []

    def probabilities(self, texts: Any) -> Any:
        self.asked += texts
        return np.array([self.texts.get(text, [0.2] * 5) for text in texts], np.float32)


@pytest.fixture
def table() -> Table:
    return Table()


def reader(table: Table) -> CategoryReader:
    labels = Labels([Label("shelf", value, 1, value) for value in SHELVES])
    return CategoryReader(cast("Any", table), labels)


def weighed(weight: float) -> RerankRecord:
    return RerankRecord(
        weights={"shelf": weight}, temperature=0.5, gamma=0.0, demote=(), queries="titles", asked=10
    )


def record(
    table: Table, own: RerankRecord | None = None, sure_from: float | None = 0.7
) -> AttributesRecord:
    return AttributesRecord.of([reader(table)]).model_copy(
        update={
            "sure_from": {"shelf": sure_from},
            "rerank": {} if own is None else dict.fromkeys(MODES, own),
        }
    )


def column(table: Table) -> Column:
    [attribute] = reader(table).attributes
    top = np.argsort(-np.array(SHARES), axis=1, kind="stable")
    return Column(
        attribute, top.astype(np.uint16),
        np.take_along_axis(np.array(SHARES), top, axis=1).astype(np.float16),
        np.array(GIVEN, np.int16), np.array(FILLED, np.int16),
    )  # fmt: skip


@pytest.fixture
def made(table: Table, tiny_encoder: Any, monkeypatch: pytest.MonkeyPatch) -> Any:
    """An engine of that shop with a record."""

    def load(kind: str, name: str) -> Any:
        assert (kind, name) == ("categories", "table")
        return reader(table)

    monkeypatch.setattr(version, "QueryAttributes", partial(QueryAttributes, load=load))

    def make(known: AttributesRecord) -> SearchEngine:
        pictures = [Image.new("RGB", (8, 8), item.images[0].location) for item in SHOP]
        index = opened(SHOP, tiny_encoder.embed_images(pictures))
        manifest = index.manifest.model_copy(update={"attributes": known})
        index = replace(index, manifest=manifest, attributes={"shelf": column(table)})
        return SearchEngine(index, tiny_encoder)

    return make


def test_the_likeliest_that_products_have(made: Any, table: Table) -> None:
    engine = made(record(table))
    table.texts["red thing"] = [0.14, 0.02, 0.73, 0.08, 0.03]
    found = engine.search(text="red thing").proposals
    # No product has the garden, clothes are too unlikely, and OTHER is no category.
    assert [(own.attribute, own.value) for own in found] == [
        ("shelf", "Toys"), ("shelf", "Kitchen"),
    ]  # fmt: skip
    assert [own.confidence for own in found] == pytest.approx([0.73, 0.14])
    assert table.asked == ["red thing"]


def test_nothing_is_proposed_where_that_is_not_sure(made: Any, table: Table) -> None:
    table.texts["red thing"] = [0, 0.31, 0.69, 0, 0]
    table.texts["red other"] = [0.1, 0, 0, 0, 0.9]
    table.texts["red plant"] = [0, 0.03, 0, 0.97, 0]
    engine = made(record(table))
    for text in ("red thing", "red other", "red plant", "red"):
        assert engine.search(text=text).proposals == []
    never = made(record(table, sure_from=None))
    table.asked.clear()
    assert never.search(text="red plant").proposals == []
    assert table.asked == []  # what is never sure is not read


def test_what_the_text_names_is_certain_and_not_read(made: Any, table: Table) -> None:
    engine = made(record(table, sure_from=None))
    assert engine.search(text="toys in red").proposals == [Proposal("shelf", "Toys", 1.0)]
    assert engine.search(text="toy clothes").proposals == [
        Proposal("shelf", "Clothes", 0.5), Proposal("shelf", "Toys", 0.5),
    ]  # fmt: skip
    assert engine.search(text="garden").proposals == []  # there is none
    assert table.asked == []


def test_what_is_chosen_already_a_picture_and_no_text_get_none(made: Any, table: Table) -> None:
    engine = made(record(table))
    table.texts["red thing"] = [0, 0, 1, 0, 0]
    chosen = engine.search(text="red thing", attributes={"shelf": "clothes"})
    assert chosen.proposals == []
    picture = Image.new("RGB", (8, 8), "red")
    assert engine.search(picture).proposals == []
    assert engine.search(picture, text="red thing", text_weight=0).proposals == []
    assert engine.similar("r").proposals == []
    assert table.asked == []
    both = engine.search(picture, text="red thing").proposals
    assert both == [Proposal("shelf", "Toys", 1.0)]
    assert engine.search(text="red thing", rerank=False).proposals == both
    assert engine.search(text="red thing", minus="blue").proposals == both


def test_proposals_alone_leave_the_order(made: Any, table: Table) -> None:
    table.texts["red thing"] = [0, 0, 1, 0, 0]
    engine = made(record(table))
    assert ids(engine.search(text="red thing")) == "r m y w b c"
    assert ids(made(record(table, weighed(0))).search(text="red thing")) == "r m y w b c"


def test_a_weight_puts_answers_into_order_by_the_posterior(made: Any, table: Table) -> None:
    wanted = [0.05, 0.1, 0.8, 0.05, 0]
    table.texts["red thing"] = wanted
    engine = made(record(table, weighed(2)))
    plain = engine.search(text="red thing", rerank=False)
    found = engine.search(text="red thing")
    cosine = {hit.product_id: hit.score for hit in plain}
    shares = {name: np.array(own) for name, own in zip("rmywbc", SHARES, strict=True)}
    shares["r"], shares["y"] = np.eye(5)[0], np.eye(5)[1]  # by the merchant
    agreement = {name: float(np.dot(wanted, own)) for name, own in shares.items()}
    score = {name: cosine[name] / 0.5 + 2 * np.log(agreement[name] + EPSILON) for name in agreement}
    assert ids(found) == " ".join(sorted(score, key=lambda name: -score[name]))
    assert ids(found).startswith("w")
    assert found.proposals[0] == Proposal("shelf", "Toys", pytest.approx(0.8))
    table.asked.clear()
    engine.search(text="red thing")
    assert table.asked == ["red thing"]  # once for both
    # Not sure enough, it counts for nothing.
    table.texts["red thing"] = [0, 0.4, 0.6, 0, 0]
    assert ids(engine.search(text="red thing")) == "r m y w b c"


def test_what_is_read_to_be_proposed_demotes_nothing_without_a_weight(
    made: Any, table: Table
) -> None:
    table.texts["red thing"] = [0, 0, 1, 0, 0]
    own = weighed(0).model_copy(update={"demote": ("shelf",)})
    engine = made(record(table, own))
    assert ids(engine.search(text="red thing")) == "r m y w b c"
    named = engine.search(text="red toys")
    assert ids(named) == "w b r m y c"


def test_only_what_a_query_needs_is_opened(table: Table) -> None:
    """The classifier is not opened to propose a category, nor the categoriser for an attribute."""
    fake, kinds = Fake(), []

    def load(kind: str, _name: str) -> Any:
        kinds.append(kind)
        return fake if kind == "attributes" else reader(table)

    known = record(table)
    both = known.model_copy(update={"sources": (SourceRecord.of(fake), *known.sources)})
    table.texts["thing"] = [0, 0, 1, 0, 0]
    wishes = QueryAttributes(both, load).wishes(None, "thing", {})
    assert kinds == ["categories"]
    assert wishes.evidence == {}
    assert wishes.likely["shelf"].distribution.tolist() == [0, 0, 1, 0, 0]
    weighing = both.model_copy(
        update={"rerank": {"text": rerank_by()}, "sure_from": {"shelf": None}}
    )
    kinds.clear()
    wishes = QueryAttributes(weighing, load).wishes(None, "thing", {})
    assert kinds == ["attributes"]
    assert set(wishes.evidence) == {"color", "kind"}
    assert wishes.likely == {}


@pytest.mark.parametrize("error", [ModelError, MissingDependencyError])
def test_a_categoriser_that_is_gone_leaves_the_words(
    table: Table, caplog: pytest.LogCaptureFixture, error: type[Exception]
) -> None:
    def gone(_kind: str, name: str) -> Any:
        raise error(f"{name} is gone")

    own = QueryAttributes(record(table), gone)
    with caplog.at_level(logging.WARNING):
        assert own.wishes(None, "thing", {}).likely == {}
        assert own.wishes(None, "thing", {}).likely == {}
        assert set(own.wishes(None, "toys", {}).likely) == {"shelf"}
    assert [entry.getMessage() for entry in caplog.records] == [
        "categories of queries are read by words alone: table is gone"
    ]


def test_values_that_products_have_by_hand(table: Table) -> None:
    assert values_of(column(table)) == {0, 1, 2}
    [attribute] = reader(table).attributes
    evidence = SimpleNamespace(distribution=np.array([0.3, 0.3, 0.25, 0.1, 0.05]))
    found = proposals(attribute, cast("Any", evidence), {0, 1, 2, 3})
    assert [own.value for own in found] == ["Kitchen", "Clothes", "Toys"]  # three at most


def test_lines_of_the_command(made: Any, table: Table) -> None:
    engine = made(record(table))
    table.texts["red thing"] = [0.06, 0, 0.94, 0, 0]
    answers = engine.search(text="red thing")
    assert list(_proposal_lines(answers)) == [
        "category: Toys 94%: --attribute shelf=Toys",
        "category: Kitchen 6%: --attribute shelf=Kitchen",
    ]
    answers.proposals = [Proposal("kind of", "Casual Shoes", 0.9)]
    assert list(_proposal_lines(answers)) == [
        "category: Casual Shoes 90%: --attribute 'kind of=Casual Shoes'"
    ]
