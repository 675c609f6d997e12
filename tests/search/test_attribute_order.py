"""Searching with attributes: a small shop of plain colours whose order can be worked out."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
import pytest
from PIL import Image

from indexing.attributes.columns import Column
from indexing.attributes.record import AttributesRecord, RerankRecord, SourceRecord
from indexing.attributes.vocabulary import ABSTAINED, Attribute, Calibration, TrainedOn
from indexing.errors import QueryError
from indexing.match_record import MODES
from indexing.store import OpenIndex
from search import version
from search.attributes import QueryAttributes
from search.engine import SearchEngine
from tests.search.test_attributes import Fake
from tests.search.test_engine import ids, opened, product

COLOR = Attribute(
    name="color",
    values=("Red", "Navy Blue", "other"),
    prior=(0.5, 0.3, 0.2),
    calibration={mode: Calibration(classes=(0.7, 0.7, None)) for mode in MODES},
)
# By the cosine with red: r m y w b c.
SHOP = [
    product("r", "red", price=1.0),
    product("m", "magenta", price=2.0),
    product("y", "yellow", price=3.0),
    product("w", "white", price=4.0),
    product("b", "blue", price=5.0),
    product("c", "cyan", price=6.0),
]
GIVEN = [0, ABSTAINED, 1, ABSTAINED, ABSTAINED, 2]
FILLED = [ABSTAINED, 0, ABSTAINED, 1, ABSTAINED, ABSTAINED]
SHARES = [[0.5, 0.25, 0.25], [0.75, 0.25, 0], [0, 1, 0], [0, 1, 0], [0.25, 0.5, 0.25], [0, 0, 1]]


def rerank(weight: float, demote: tuple[str, ...] = ()) -> RerankRecord:
    return RerankRecord(
        weights={"color": weight}, temperature=0.5, gamma=0.0, demote=demote,
        queries="titles", asked=10,
    )  # fmt: skip


def shop_index(encoder: Any, own: RerankRecord | None) -> OpenIndex:
    pictures = [Image.new("RGB", (8, 8), item.images[0].location) for item in SHOP]
    index = opened(SHOP, encoder.embed_images(pictures))
    top = np.argsort(-np.array(SHARES), axis=1, kind="stable")
    column = Column(
        COLOR, top.astype(np.uint16),
        np.take_along_axis(np.array(SHARES), top, axis=1).astype(np.float16),
        np.array(GIVEN, np.int16), np.array(FILLED, np.int16),
    )  # fmt: skip
    source = SourceRecord(
        kind="attributes", name="fake", fingerprint="f", attributes=(COLOR,),
        words={"color": (("Red", "Red"), ("crimson", "Red"), ("Navy Blue", "Navy Blue"))},
        trained_on=TrainedOn(held_out=0.1, seed=0),
    )  # fmt: skip
    record = AttributesRecord(
        sources=(source,),
        rerank={} if own is None else dict.fromkeys(MODES, own),
    )  # fmt: skip
    manifest = index.manifest.model_copy(update={"attributes": record})
    return replace(index, manifest=manifest, attributes={"color": column})


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch) -> Fake:
    found = Fake()
    patched = partial(QueryAttributes, load=lambda _kind, _name: found)
    monkeypatch.setattr(version, "QueryAttributes", patched)
    return found


def made(encoder: Any, own: RerankRecord | None) -> SearchEngine:
    return SearchEngine(shop_index(encoder, own), encoder)


def test_without_weights_the_order_is_that_of_the_cosine(tiny_encoder: Any, fake: Fake) -> None:
    plain = made(tiny_encoder, None).search(text="red")
    assert ids(plain) == "r m y w b c"
    assert made(tiny_encoder, rerank(0)).search(text="red") == plain
    assert made(tiny_encoder, rerank(5, ("color",))).search(text="red", rerank=False) == plain
    assert fake.asked == []


def test_words_of_the_query_count_by_their_weight(tiny_encoder: Any, fake: Fake) -> None:
    engine = made(tiny_encoder, rerank(1))
    plain = engine.search(text="crimson", rerank=False)
    found = engine.search(text="crimson")
    cosine = {hit.product_id: hit.score for hit in plain}
    share = {"r": 1.0, "m": 0.75, "y": 0.0, "w": 0.0, "b": 0.25, "c": 0.0}
    score = {name: cosine[name] / 0.5 + np.log(share[name] + 1e-3) for name in cosine}
    assert ids(found) == " ".join(sorted(score, key=lambda name: -score[name]))
    assert ids(found) != ids(plain)
    assert {hit.product_id: hit.score for hit in found} == cosine  # scores stay cosines
    assert [hit.rank for hit in found] == [1, 2, 3, 4, 5, 6]
    assert fake.asked == []


def test_those_that_disagree_come_last(tiny_encoder: Any, fake: Fake) -> None:
    engine = made(tiny_encoder, rerank(0, ("color",)))
    # y was given as blue, w filled in as blue, c given as other; of b nothing is known.
    assert ids(engine.search(text="red")) == "r m b y w c"
    assert ids(engine.search(text="red", k=4)) == "r m b y"
    assert ids(engine.search(text="red", where="price > 2")) == "b y w c"
    assert ids(engine.search(text="red", fuse="top2")) == "r m b y w c"
    assert ids(engine.search(text="red", collapse=True, k=2)) == "r m"
    # It names no colour that the shop knows, and nothing has a weight.
    assert ids(engine.search(text="blue")) == ids(engine.search(text="blue", rerank=False))
    assert fake.asked == []


def test_diverse_answers_keep_the_blocks(tiny_encoder: Any) -> None:
    engine = made(tiny_encoder, rerank(0, ("color",)))
    found = ids(engine.search(text="red", diversity=0.9)).split()
    assert set(found[:3]) == {"r", "m", "b"}
    assert set(found[3:]) == {"y", "w", "c"}
    assert ids(engine.search(text="red", diversity=1e-9)) == "r m b y w c"


@pytest.mark.parametrize("own", [None, rerank(0)])
@pytest.mark.parametrize("wanted", [True, False])
def test_what_is_chosen_always_counts(
    tiny_encoder: Any, own: RerankRecord | None, wanted: bool
) -> None:
    engine = made(tiny_encoder, own)
    found = engine.search(text="red", attributes={"color": "navy blue"}, rerank=wanted)
    assert ids(found) == "y w b r m c"
    picture = Image.new("RGB", (8, 8), "red")
    both = engine.search(picture, attributes={"color": "crimson"}, rerank=wanted)
    assert ids(both) == "r m b y w c"


def test_texts_to_turn_away_from_name_nothing(tiny_encoder: Any, fake: Fake) -> None:
    engine = made(tiny_encoder, rerank(0, ("color",)))
    found = engine.search(text="yellow", minus="red")
    assert found == engine.search(text="yellow", minus="red", rerank=False)


def test_the_classifier_sees_the_picture(tiny_encoder: Any, fake: Fake) -> None:
    engine = made(tiny_encoder, rerank(5))
    picture = Image.new("RGB", (8, 8), "red")
    fake.shares = {"color": [0.05, 0.9, 0.05]}
    assert ids(engine.search(picture)).startswith("y w b")
    fake.shares = {"color": [0.3, 0.6, 0.1]}  # not sure enough
    assert ids(engine.search(picture)) == "r m y w b c"
    assert fake.asked == [(((1, 3, 4, 4), 255.0), None)] * 2
    # What does not count in the query says nothing of attributes, either.
    engine.search(picture, text="yellow", image_weight=0)
    assert fake.asked[-1] == (None, ["yellow"])


def test_what_cannot_be_chosen(tiny_encoder: Any, fake: Fake) -> None:
    engine = made(tiny_encoder, None)
    with pytest.raises(QueryError, match=r"'colr' is no attribute .* did you mean color\?"):
        engine.search(text="red", attributes={"colr": "red"})
    with pytest.raises(QueryError, match="two orders"):
        engine.search(text="red", attributes={"color": "red"}, itm_rerank=5)
    bare = SearchEngine(opened([], np.empty((0, tiny_encoder.dim), np.float32)), tiny_encoder)
    with pytest.raises(QueryError, match="the index has no attributes"):
        bare.search(text="red", attributes={"color": "red"})
    assert bare.search(text="red") == []


def test_a_new_version_keeps_the_opened_classifier(tiny_encoder: Any) -> None:
    index = shop_index(tiny_encoder, rerank(1))
    first = version.Version(index, tiny_encoder)
    again = version.Version(index, tiny_encoder, first)
    assert again._attributes is first._attributes
    other = version.Version(shop_index(tiny_encoder, rerank(2)), tiny_encoder, first)
    assert other._attributes is not first._attributes


def test_hits_say_what_was_filled_in(tiny_encoder: Any, fake: Fake) -> None:
    hits = made(tiny_encoder, None).search(text="red", k=6)
    filled = {hit.product_id: hit.to_json()["filled"] for hit in hits}
    assert filled["m"] == {"color": {"value": "Red", "confidence": 0.75}}
    assert filled["w"] == {"color": {"value": "Navy Blue", "confidence": 1.0}}
    assert [filled[name] for name in ("r", "y", "b", "c")] == [{}] * 4


def test_what_is_chosen_is_found_however_far_away_it_is(
    tiny_encoder: Any, fake: Fake, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(version, "RERANKED", 2)
    shop = made(tiny_encoder, None)
    # b, of which nothing is known, and w and y, blue by the model and by the merchant, come before
    # what is red; c is other.
    wished = shop.search(text="red", k=3, attributes={"color": "navy blue"})
    assert ids(wished) == "y w b"
    assert ids(shop.search(text="red", k=6, attributes={"color": "navy blue"})) == "y w b r m c"
    within = shop.search(text="red", k=3, attributes={"color": "red"}, where="price > 2.5")
    assert ids(within) == "b y w"
