"""What queries say of attributes, with a classifier that answers from a table."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from indexing.attributes.record import AttributesRecord, RerankRecord, SourceRecord
from indexing.attributes.vocabulary import Attribute, Calibration, Kind, TrainedOn
from indexing.errors import ModelError, QueryError
from indexing.match_record import MODES
from search.attributes import QueryAttributes

COLOR = Attribute(
    name="color",
    values=("Red", "Navy Blue", "other"),
    prior=(0.5, 0.3, 0.2),
    calibration={mode: Calibration(classes=(0.7, 0.7, 0.1)) for mode in MODES},
)
KIND = Attribute(
    name="kind",
    values=("Mug", "Shoe"),
    prior=(0.5, 0.5),
    # Pictures alone never tell a mug.
    calibration={
        "image": Calibration(classes=(None, 0.6)),
        "text": Calibration(classes=(0.6, 0.6)),
        "image+text": Calibration(classes=(0.9, 0.6)),
    },
)
WORDS = {
    "color": (("red", "Red"), ("crimson", "Red"), ("navy", "Navy Blue"), ("Navy Blue", "Navy Blue"),
              ("teal", "Teal"), ("odd", "other")),
    "kind": (("Mug", "Mug"), ("cup", "Mug"), ("Shoe", "Shoe")),
    "size": (("big", "Big"),),
}  # fmt: skip
PICTURE = Image.new("RGB", (4, 4), "red")


class Fake:
    kind: Kind = "attributes"
    name = "fake"
    fingerprint = "f"
    image_size = 4
    attributes = (COLOR, KIND)
    trained_on = TrainedOn(held_out=0.1, seed=0)

    def __init__(self) -> None:
        self.asked: list[tuple[Any, ...]] = []
        self.shares = {"color": [0.8, 0.1, 0.1], "kind": [0.8, 0.2]}

    def value_of(self, name: str, raw: str) -> str | None:
        raise NotImplementedError

    def ways_of_writing(self) -> Any:
        return WORDS

    def preprocess(self, picture: Image.Image) -> NDArray[np.float32]:
        return np.full((3, 4, 4), np.asarray(picture)[0, 0, 0], np.float32)

    def predict(self, pixels: NDArray[np.float32] | None, titles: Sequence[str] | None) -> Any:
        shown = None if pixels is None else (tuple(pixels.shape), float(pixels[0, 0, 0, 0]))
        self.asked.append((shown, titles))
        return {name: np.array([own], np.float32) for name, own in self.shares.items()}


def rerank(color: float = 1.0, kind: float = 1.0, demote: tuple[str, ...] = ()) -> RerankRecord:
    return RerankRecord(
        weights={"color": color, "kind": kind}, temperature=0.1, gamma=0.5, demote=demote,
        queries="titles", asked=10,
    )  # fmt: skip


def record(**by_mode: RerankRecord) -> AttributesRecord:
    return AttributesRecord(
        sources=(SourceRecord.of(Fake()),),
        rerank={mode: by_mode[mode.replace("+", "_")] for mode in MODES
                if mode.replace("+", "_") in by_mode},
    )  # fmt: skip


def reader(fake: Fake, **by_mode: RerankRecord) -> QueryAttributes:
    modes = by_mode or {"text": rerank(), "image": rerank(), "image_text": rerank()}
    return QueryAttributes(record(**modes), lambda _kind, _name: fake)


@pytest.fixture
def fake() -> Fake:
    return Fake()


def test_words_are_explicit_and_share_the_mass(fake: Fake) -> None:
    found = reader(fake).wishes(None, "navy or crimson red cups", {}).evidence
    assert {name: own.distribution.tolist() for name, own in found.items()} == {
        "color": [0.5, 0.5, 0],
        "kind": [1, 0],
    }
    assert all(own.source == "named" and own.explicit and own.sure for own in found.values())
    assert fake.asked == []  # no attribute is left to read


def test_words_of_other_attributes_and_values_say_nothing(fake: Fake) -> None:
    found = (
        reader(fake, text=rerank(0, 0, ("color", "kind")))
        .wishes(None, "big odd teal thing", {})
        .evidence
    )
    assert found == {}
    assert fake.asked == []


def test_the_classifier_reads_what_no_word_names(fake: Fake) -> None:
    found = reader(fake).wishes(PICTURE, "a navy thing", {}).evidence
    assert fake.asked == [(((1, 3, 4, 4), 255.0), ["a navy thing"])]
    assert found["color"].distribution.tolist() == [0, 1, 0]  # the words win over the picture
    assert found["kind"].distribution.tolist() == pytest.approx([0.8, 0.2])
    assert found["kind"].source == "read"
    assert not found["kind"].sure  # 0.8 is less than the 0.9 that mugs need with both


def test_it_abstains_by_the_thresholds_of_the_mode(fake: Fake) -> None:
    own = reader(fake)
    assert own.wishes(None, "thing", {}).evidence["kind"].sure
    assert not own.wishes(PICTURE, None, {}).evidence["kind"].sure
    assert fake.asked == [(None, ["thing"]), (((1, 3, 4, 4), 255.0), None)]
    fake.shares = {"color": [0.1, 0.1, 0.8], "kind": [0.3, 0.7]}
    found = own.wishes(PICTURE, None, {}).evidence
    assert found["kind"].sure
    assert not found["color"].sure  # other is no value


def test_it_runs_only_for_weights(fake: Fake) -> None:
    assert reader(fake, text=rerank(1, 0)).wishes(None, "red thing", {}).evidence.keys() == {
        "color"
    }
    assert reader(fake, image=rerank()).wishes(None, "thing", {}).evidence == {}
    assert reader(fake, text=rerank(0, 0)).wishes(None, "red thing", {}).evidence == {}
    assert reader(fake).wishes(PICTURE, "red thing", {}, rerank=False).evidence == {}
    assert fake.asked == []


def test_what_is_chosen_wins_and_counts_always(fake: Fake) -> None:
    chosen = {"COLOR": "navy", "kind": "cup"}
    for own in (reader(fake), reader(fake, image=rerank())):
        for wanted in (True, False):
            found = own.wishes(None, "red shoes", chosen, rerank=wanted).evidence
            assert found["color"].distribution.tolist() == [0, 1, 0]
            assert found["kind"].distribution.tolist() == [1, 0]
            assert {evidence.source for evidence in found.values()} == {"chosen"}
    assert fake.asked == []


@pytest.mark.parametrize(
    ("chosen", "message"),
    [
        ({"colour": "red"}, "'colour' is no attribute of this index: did you mean color?"),
        ({"xyz": "red"}, "'xyz' is no attribute of this index: there are color, kind"),
        (
            {"color": "navy bleu"},
            "'navy bleu' is no value of color of this index: did you mean Navy Blue?",
        ),
        (
            {"color": "other"},
            "'other' is no value of color of this index: there are Red, Navy Blue",
        ),
        ({"color": "teal"}, "'teal' is no value of color of this index: there are Red, Navy Blue"),
        ({"color": "red", "Color": "navy"}, "'Color' is color, which is chosen already"),
    ],
)
def test_what_is_unknown_is_refused(fake: Fake, chosen: dict[str, str], message: str) -> None:
    with pytest.raises(QueryError) as error:
        reader(fake).wishes(None, "thing", chosen)
    assert str(error.value) == message


def test_a_classifier_that_is_gone_leaves_the_words(
    fake: Fake, caplog: pytest.LogCaptureFixture
) -> None:
    tried = []

    def gone(_kind: Kind, name: str) -> Any:
        tried.append(name)
        raise ModelError(f"{name} is gone")

    own = QueryAttributes(record(text=rerank()), gone)
    assert tried == []
    with caplog.at_level(logging.WARNING):
        for _ in range(3):
            assert own.wishes(None, "red thing", {}).evidence.keys() == {"color"}
    assert tried == ["fake"]
    assert [entry.getMessage() for entry in caplog.records] == [
        "attributes of queries are read by words alone: fake is gone"
    ]


def test_another_classifier_is_not_asked(fake: Fake, caplog: pytest.LogCaptureFixture) -> None:
    fake.fingerprint = "g"
    assert reader(fake).wishes(None, "thing", {}).evidence == {}
    assert fake.asked == []
    assert "fake has changed since it read the index" in caplog.text
