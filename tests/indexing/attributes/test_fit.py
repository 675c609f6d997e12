"""Fitting and the gate on planted data: right attributes pass, shuffled ones do not."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pyarrow as pa
import pytest
from PIL import Image

from indexing.attributes.columns import Column
from indexing.attributes.evidence import told
from indexing.attributes.fit import (
    CANDIDATES,
    after,
    first_candidates,
    fit_reranking,
    fit_weights,
    fitted,
    halves,
    interval,
    ndcg,
)
from indexing.attributes.fusing import Evidence
from indexing.attributes.gallery import MIN_HELD_OUT, make_gallery
from indexing.attributes.record import MARGIN, Gate, RerankRecord
from indexing.attributes.rerank_queries import Maker, RerankQueries
from indexing.attributes.vocabulary import ABSTAINED, Attribute, Calibration, Kind, TrainedOn
from indexing.attributes.words import Words
from indexing.match_queries import NoQueriesError
from indexing.match_record import MODES
from indexing.table import IMAGE_SCHEMA, Images
from indexing.titles import position

COLORS = ("Red", "Blue", "Lime", "Black")
COLOR = Attribute(
    name="color",
    values=COLORS,
    prior=(0.25,) * 4,
    calibration={mode: Calibration(classes=(0.6,) * 4) for mode in MODES},
)


ONE: dict[Kind, tuple[str, ...]] = {"attributes": ("color",)}


def gate_of(record: RerankRecord) -> Gate:
    [gate] = record.gates.values()
    return gate


def column(classes: np.ndarray[Any, Any], confidence: float = 0.85) -> Column:
    """Predictions of these classes, all of them sure, with nothing given."""
    count = len(classes)
    others = np.array([[c for c in range(4) if c != own] for own in classes])
    rest = np.full((count, 3), (1 - confidence) / 3)
    return Column(
        COLOR,
        np.column_stack([classes, others]).astype(np.uint16),
        np.column_stack([np.full(count, confidence), rest]).astype(np.float16),
        np.full(count, ABSTAINED, np.int16),
        classes.astype(np.int16),
    )


def planted(seed: int = 0, queries: int = 300, products: int = 400) -> Any:
    """Queries for a product that the cosine finds only roughly, and that name its colour."""
    rng = np.random.default_rng(seed)
    colors = rng.integers(0, 4, products)
    wanted = rng.integers(0, products, queries)
    cosines = rng.normal(0.3, 0.05, (queries, products))
    cosines[np.arange(queries), wanted] += 0.12
    evidence = [{"color": told(COLOR, [COLORS[colors[own]]], "named")} for own in wanted]
    relevant = [np.array([own]) for own in wanted]
    nothing = [{} for _ in range(queries)]
    blank = np.zeros((queries, 2), np.float32)
    sorts = np.full(queries, "planted")
    none = np.full(queries, -1)
    made = RerankQueries(sorts, blank, wanted, none, relevant, evidence, nothing)
    return made, first_candidates(cosines.astype(np.float32), relevant), colors


def test_right_attributes_pass_and_help() -> None:
    queries, lists, colors = planted()
    found = fitted(queries, lists, {"color": column(colors)}, ONE)
    assert found.active
    assert found.weights["color"] > 0
    mean, low, high = gate_of(found).gain
    assert 0.05 < low <= mean <= high
    assert (found.queries, found.asked) == ("planted", 300)
    assert gate_of(found).gains == {"planted": gate_of(found).gain}


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_shuffled_attributes_do_not(seed: int) -> None:
    queries, lists, colors = planted(seed)
    mixed = np.random.default_rng(10 + seed).permutation(colors)
    found = fitted(queries, lists, {"color": column(mixed)}, ONE)
    assert not found.active
    assert found.weights == {"color": 0.0}
    assert found.demote == ()
    assert gate_of(found).gain[1] < 0 or gate_of(found).gain[0] <= 0


@pytest.mark.parametrize("wrong", [False, True])
def test_one_sort_of_query_that_loses_shuts_the_gate(wrong: bool) -> None:
    queries, lists, colors = planted()
    sorts = np.where(np.arange(300) % 5 == 0, "titles", "values")
    for own, sort, wanted in zip(queries.evidence, sorts, queries.clusters, strict=True):
        if wrong and sort == "titles":
            own["color"] = told(COLOR, [COLORS[(colors[wanted] + 1) % 4]], "named")
    found = fitted(replace(queries, sorts=sorts), lists, {"color": column(colors)}, ONE)
    assert found.queries == "titles and values"
    assert gate_of(found).gain[1] > 0  # all of them together gain, whatever becomes of the titles
    assert gate_of(found).gains["values"][1] > 0.05
    assert (gate_of(found).gains["titles"][1] < -MARGIN) == wrong
    assert found.active != wrong


def test_unsure_queries_leave_no_weight() -> None:
    queries, lists, colors = planted()
    for own in queries.evidence:
        own.clear()
    found = fitted(queries, lists, {"color": column(colors)}, ONE)
    assert not found.active
    assert gate_of(found).gain == (0.0, 0.0, 0.0)  # no weights is no reranking, exactly


def test_weights_of_a_known_model_are_found() -> None:
    rng = np.random.default_rng(0)
    cosines = rng.normal(0.3, 0.1, (4000, 20))
    logs = rng.normal(-2, 1, (4000, 20, 3))
    scores = cosines / 0.05 + logs @ np.array([1.5, 0.5, -1.0])
    chosen = (scores + rng.gumbel(size=scores.shape)).argmax(axis=1)
    relevant = np.arange(20) == chosen[:, np.newaxis]
    temperature, weights = fit_weights(cosines, logs, relevant)
    # What would count against a product has no weight; without it the rest is a bit smaller.
    assert weights[2] == 0
    assert weights[0] / weights[1] == pytest.approx(3, rel=0.15)
    assert weights[0] * temperature == pytest.approx(1.5 * 0.05, rel=0.1)
    assert 0.045 < temperature < 0.09


def test_nothing_to_learn_from_is_no_weight() -> None:
    cosines = np.random.default_rng(0).normal(size=(5, 4))
    relevant = np.zeros((5, 4), np.bool_)
    logs = np.random.default_rng(1).normal(size=(5, 4, 2))
    temperature, weights = fit_weights(cosines, logs, relevant)
    within = cosines - cosines.mean(axis=1, keepdims=True)
    assert temperature == pytest.approx(within.std())
    assert weights.tolist() == [0, 0]


def test_ndcg_by_hand() -> None:
    relevant = np.zeros((3, 12), np.bool_)
    relevant[0, 0] = relevant[1, 2] = relevant[1, 11] = True
    found = ndcg(relevant, np.array([1, 2, 30]))
    assert found == pytest.approx([1, 0.5 / (1 + 1 / math.log2(3)), 0])
    assert ndcg(np.ones((1, 12), np.bool_), np.array([30])) == pytest.approx([1])


def test_halves_keep_clusters_together() -> None:
    clusters = np.random.default_rng(0).integers(0, 61, 500)
    first = halves(clusters)
    assert not set(clusters[first]) & set(clusters[~first])
    assert len(np.unique(clusters[first])) == 31


def test_intervals() -> None:
    assert interval(np.full(40, 0.25), np.arange(40)) == (0.25, 0.25, 0.25)
    deltas = np.random.default_rng(0).normal(0.1, 1, 900)
    mean, low, high = interval(deltas, np.arange(900))
    assert mean == pytest.approx(deltas.mean())
    assert (high - low) / 2 == pytest.approx(1.96 * deltas.std() / 30, rel=0.1)
    # Copies of a query say nothing new.
    _, low_copied, high_copied = interval(np.tile(deltas, 4), np.tile(np.arange(900), 4))
    assert (low_copied, high_copied) == pytest.approx((low, high))


def test_first_candidates_by_sorting() -> None:
    cosines = np.random.default_rng(0).normal(size=(3, 250)).astype(np.float32)
    lists = first_candidates(cosines, [np.array([4]), np.array([5, 6]), np.array([7])])
    for query in range(3):
        expected = sorted(range(250), key=lambda place: -cosines[query, place])[:CANDIDATES]
        assert lists.places[query].tolist() == expected
        assert lists.cosines[query].tolist() == cosines[query, expected].tolist()
    assert lists.places[1][lists.relevant[1]].tolist() == [
        p for p in lists.places[1] if p in (5, 6)
    ]
    assert lists.answers.tolist() == [1, 2, 1]


class Reader:
    """Tells the colour of a picture by its mean, and of a text not at all."""

    name = "reader"
    fingerprint = "f"
    image_size = 4
    kind: Kind = "attributes"
    attributes = (COLOR,)

    def __init__(self, encoder: Any, held_out: float = 1.0) -> None:
        self.preprocess = encoder.preprocess
        self.trained_on = TrainedOn(held_out=held_out, seed=0)
        self.seen: list[int] = []

    def value_of(self, name: str, raw: str) -> str | None:
        raise NotImplementedError

    def ways_of_writing(self) -> dict[str, list[tuple[str, str]]]:
        return {"color": [(value, value) for value in COLORS]}

    def predict(self, pixels: Any, titles: Any) -> Any:
        count = len(pixels) if titles is None else len(titles)
        self.seen.append(count)
        if pixels is None:
            return {"color": np.full((count, 4), 0.25, np.float32)}
        mean = np.asarray(pixels).mean(axis=(2, 3))
        means = np.array([[1, -1, -1], [-1, -1, 1], [-1, 1, -1], [-1, -1, -1]])
        far = ((mean[:, np.newaxis] - means) ** 2).sum(axis=2)
        shares = np.exp(-4 * far)
        return {"color": (shares / shares.sum(axis=1, keepdims=True)).astype(np.float32)}


def shop(folder: Path, encoder: Any, count: int) -> dict[str, Any]:
    """Plain pictures with noise of four colours, each with a title that does not say so."""
    rng = np.random.default_rng(0)
    classes = np.arange(count) % 4
    rows, pictures = [], []
    rgb = np.array([[255, 0, 0], [0, 0, 255], [0, 255, 0], [0, 0, 0]])
    for place, own in enumerate(classes.tolist()):
        cells = np.clip(rgb[own] + rng.normal(0, 60, (4, 4, 3)), 0, 255).astype(np.uint8)
        picture = Image.fromarray(cells).resize((32, 32), Image.Resampling.NEAREST)
        path = folder / f"{place}.png"
        picture.save(path)
        pictures.append(picture)
        rows.append(
            {"product": place, "location": path.name, "path": str(path), "role": "main",
             "sha256": f"{place:064x}", "phash": 0}
        )  # fmt: skip
    own_column = column(classes)
    given = np.where(np.arange(count) % 10 == 0, ABSTAINED, classes).astype(np.int16)
    return {
        "titles": [f"thing {place}" for place in range(count)],
        "ids": [f"p{place}" for place in range(count)],
        "images": Images(pa.Table.from_pylist(rows, schema=IMAGE_SCHEMA)),
        "vectors": encoder.embed_images(pictures),
        "columns": {"color": Column(COLOR, own_column.top, own_column.probabilities, given,
                                    np.full(count, ABSTAINED, np.int16))},
    }  # fmt: skip


def test_a_shop_from_end_to_end(tmp_path: Path, tiny_encoder: Any) -> None:
    own = shop(tmp_path, tiny_encoder, 240)
    reader, seen = Reader(tiny_encoder), []
    record = fit_reranking(
        **own, encoder=tiny_encoder, classifiers=[reader],
        progress=lambda done, total: seen.append((done, total)),
    )  # fmt: skip
    found = record.rerank
    assert record.skipped == {}
    # Titles say nothing; four short queries name a colour, and no more are different.
    assert found["text"].queries == "titles and values"
    assert found["text"].asked == 240 + 4
    # "Like this but red": 9 of 10 products have a colour to be changed.
    changed = found["image+text"]
    assert changed.queries == "pictures with another value"
    assert changed.asked == 216
    assert changed.weights["color"] > 0
    assert gate_of(changed).gain[1] > 0.05
    assert found["image"].queries == "phone photos"
    assert found["image"].asked == 240
    assert (240, 240) in seen
    assert (216, 216) in seen
    # Pictures with a value need no classifier, as the value names the only attribute.
    assert sum(reader.seen) == 240 + 240
    again = fit_reranking(**own, encoder=tiny_encoder, classifiers=[Reader(tiny_encoder)])
    assert again == record


def test_what_answers_a_query_against_plain_loops(tmp_path: Path, tiny_encoder: Any) -> None:
    own = shop(tmp_path, tiny_encoder, 240)
    kinds = np.random.default_rng(3).integers(-1, 3, 240)
    kind = COLOR.model_copy(update={"name": "kind", "values": ("Mug", "Shoe", "other", "Hat")})
    own["columns"]["kind"] = replace(
        column(kinds % 3), attribute=kind, given=kinds.astype(np.int16)
    )
    own["titles"] = [f"thing {place // 2}" for place in range(240)]
    gallery = make_gallery(
        own["titles"], own["ids"], own["images"], own["vectors"], own["columns"],
        [TrainedOn(held_out=1.0, seed=0)],
    )  # fmt: skip
    words = {"color": [(value, value) for value in COLORS],
             "kind": [(value, value) for value in kind.values]}  # fmt: skip
    reader = Reader(tiny_encoder)
    reader_of_both = SimpleNamespace(
        preprocess=reader.preprocess,
        image_size=4,
        predict=lambda pixels, titles: {
            "color": reader.predict(pixels, titles)["color"],
            "kind": np.full((len(titles), 4), 0.25, np.float32),
        },
    )
    maker = Maker(
        gallery, own["images"], tiny_encoder, cast("Any", reader_of_both), Words(words),
        {}, lambda _done, _total: None,
    )  # fmt: skip
    colors = own["columns"]["color"].given
    said = [
        {"color": None if colors[row] < 0 else COLORS[colors[row]],
         "kind": kind.values[kinds[row]] if kinds[row] in (0, 1) else None}
        for row in range(240)
    ]  # fmt: skip

    def named_in(evidence: dict[str, Evidence]) -> dict[str, str]:
        values = {"color": COLORS, "kind": kind.values}
        return {
            name: values[name][int(np.argmax(found.distribution))]
            for name, found in evidence.items()
            if found.explicit
        }

    text = maker.text()
    titled = 120  # different titles
    for query in range(titled):
        expected = [row for row in range(240) if row // 2 == text.relevant[query][0] // 2]
        assert text.relevant[query].tolist() == expected
        assert named_in(text.evidence[query]) == {}
    wanted = [named_in(found) for found in text.evidence[titled:]]
    assert len(wanted) == len({tuple(found.items()) for found in wanted}) > 8
    for found, relevant in zip(wanted, text.relevant[titled:], strict=True):
        assert relevant.tolist() == [
            row for row in range(240) if all(said[row][name] == found[name] for name in found)
        ]

    changed = maker.image_text()
    both = 0
    for query, relevant in enumerate(changed.relevant):
        [(name, value)] = named_in(changed.evidence[query]).items()
        other = "kind" if name == "color" else "color"
        assert len(relevant)
        assert {said[row][name] for row in relevant} == {value}
        # The product itself: it has another value, and the others are the same.
        of_title = np.flatnonzero(gallery.same == changed.clusters[query])
        fits = []
        for source in of_title:
            same = [
                row for row in range(240)
                if said[row][name] == value and said[source][other] in (None, said[row][other])
            ]  # fmt: skip
            fits.append(same == relevant.tolist() and said[source][name] not in (None, value))
        assert any(fits)
        both += any(said[source][other] is not None for source in of_title)
        # Its vector lies between the picture's and the word's.
        word = tiny_encoder.embed_texts([value])[0]
        sums = [own["vectors"][source].astype(float) + word for source in of_title]
        right = [np.allclose(s / np.linalg.norm(s), changed.vectors[query]) for s in sums]
        assert of_title[right].tolist() == [changed.hidden[query]]
        assert changed.hidden[query] not in relevant
    assert (text.hidden == -1).all()
    assert both > 100


def test_too_few_held_out_products_are_skipped(tmp_path: Path, tiny_encoder: Any) -> None:
    own = shop(tmp_path, tiny_encoder, 220)
    held_out = sum(position(title) < 0.5 for title in own["titles"])
    record = fit_reranking(**own, encoder=tiny_encoder, classifiers=[Reader(tiny_encoder, 0.5)])
    assert record.rerank == {}
    assert record.skipped == dict.fromkeys(
        MODES,
        f"{held_out} products that no classifier was trained on; at least {MIN_HELD_OUT} "
        "are needed",
    )


def test_a_gallery_knows_no_given_value(tmp_path: Path, tiny_encoder: Any) -> None:
    own = shop(tmp_path, tiny_encoder, 240)
    gallery = make_gallery(
        own["titles"], own["ids"], own["images"], own["vectors"], own["columns"],
        [TrainedOn(held_out=0.9, seed=0)],
    )  # fmt: skip
    assert gallery.rows.tolist() == [
        row for row, title in enumerate(own["titles"]) if position(title) < 0.9
    ]
    blind = gallery.columns["color"]
    assert (blind.given == ABSTAINED).all()
    assert blind.filled.tolist() == (gallery.rows % 4).tolist()
    assert gallery.given["color"].tolist() == own["columns"]["color"].given[gallery.rows].tolist()
    assert blind.of(np.arange(3)).tolist() == blind.predicted(np.arange(3)).tolist()
    some = own["vectors"][:5]
    expected = some @ own["vectors"][gallery.rows].T
    assert np.allclose(gallery.cosines(some, np.full(5, -1)), expected, atol=1e-6)
    expected[1, 7], expected[4, 0] = -1, -1
    hidden = np.array([-1, 7, -1, -1, 0])
    assert np.allclose(gallery.cosines(some, hidden), expected, atol=1e-6)
    with pytest.raises(NoQueriesError, match="at least 200"):
        make_gallery(
            own["titles"], own["ids"], own["images"], own["vectors"], own["columns"],
            [TrainedOn(held_out=0.1, seed=0)],
        )  # fmt: skip


def two_sources(color: Any, shelf: Any) -> Any:
    """Planted queries that name the color and another attribute beside it, with columns of what
    products have of both."""
    queries, lists, colors = planted(products=800)
    other = COLOR.model_copy(update={"name": "shelf"})
    shelves = np.random.default_rng(5).integers(0, 4, 800)
    for own, wanted in zip(queries.evidence, queries.clusters, strict=True):
        own["shelf"] = told(other, [COLORS[shelves[wanted]]], "named")
    columns = {
        "color": column(color(colors)),
        "shelf": replace(column(shelf(shelves)), attribute=other),
    }
    return queries, lists, columns


def same(classes: Any) -> Any:
    return classes


def mixed(classes: Any) -> Any:
    return np.random.default_rng(11).permutation(classes)


BOTH: dict[Kind, tuple[str, ...]] = {"attributes": ("color",), "categories": ("shelf",)}


def test_each_kind_of_classifier_has_a_gate_and_one_that_is_shut_leaves_no_trace() -> None:
    queries, lists, columns = two_sources(same, mixed)
    found = fitted(queries, lists, columns, BOTH)
    assert found.gates["attributes"].open
    assert not found.gates["categories"].open
    assert (found.counts(["color"]), found.counts(["shelf"])) == (True, False)
    alone = fitted(queries, lists, {"color": columns["color"]}, ONE)
    for name in ("temperature", "gamma", "demote"):
        assert getattr(found, name) == getattr(alone, name)
    assert found.weights == {**alone.weights, "shelf": 0.0}
    assert found.gates["attributes"] == alone.gates["attributes"]
    # The other way round.
    queries, lists, columns = two_sources(mixed, same)
    found = fitted(queries, lists, columns, BOTH)
    assert (found.counts(["color"]), found.counts(["shelf"])) == (False, True)
    assert "color" not in found.demote


def test_the_second_gate_is_about_what_comes_to_the_first() -> None:
    queries, lists, columns = two_sources(same, same)
    found = fitted(queries, lists, columns, BOTH)
    first = halves(queries.clusters)
    alone = fitted(queries, lists, {"color": columns["color"]}, ONE)
    gains = after(found, queries, lists, columns, ~first) - after(
        alone.model_copy(update={"weights": {**alone.weights, "shelf": 0.0}}),
        queries, lists, columns, ~first,
    )  # fmt: skip
    assert found.gates["categories"].gain[0] == pytest.approx(gains.mean(), rel=1e-5)
    assert found.gates["categories"].open
    assert found.weights["color"] > 0
    assert found.weights["shelf"] > 0
    total = after(found, queries, lists, columns, ~first) - ndcg(
        lists.relevant[~first], lists.answers[~first]
    )
    sums = [gate.gain[0] for gate in found.gates.values()]
    assert total.mean() == pytest.approx(sum(sums), rel=1e-4)


def test_what_says_nothing_new_is_not_used() -> None:
    queries, lists, columns = two_sources(same, same)
    for own in queries.evidence:
        own["shelf"] = replace(own["shelf"], source="read", sure=False)
    found = fitted(queries, lists, columns, BOTH)
    assert found.gates["categories"].gain == (0.0, 0.0, 0.0)
    assert not found.counts(["shelf"])


def test_products_must_be_held_out_from_all(tmp_path: Path, tiny_encoder: Any) -> None:
    own = shop(tmp_path, tiny_encoder, 400)
    splits = [TrainedOn(held_out=0.9, seed=0), TrainedOn(held_out=0.8, seed=1)]
    arguments = [own[name] for name in ("titles", "ids", "images", "vectors", "columns")]
    gallery = make_gallery(*arguments, splits)
    assert gallery.rows.tolist() == [
        row
        for row, title in enumerate(own["titles"])
        if position(title, 0) < 0.9 and position(title, 1) < 0.8
    ]
    # Part of that by the split that holds out less.
    most = make_gallery(*arguments, splits, (0.1, 1.0))
    left = [row for row in gallery.rows.tolist() if position(own["titles"][row], 1) >= 0.08]
    assert most.rows.tolist() == left
    with pytest.raises(NoQueriesError, match="train them with one --seed, to hold out the same"):
        make_gallery(*arguments, [splits[0], TrainedOn(held_out=0.3, seed=1)])
