"""From which confidence on a query's category is sure, against plain loops."""

from __future__ import annotations

import math
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest

from indexing.attributes.categories import CategoryReader
from indexing.attributes.evidence import read
from indexing.attributes.gallery import Gallery
from indexing.attributes.labels import Label, Labels
from indexing.attributes.record import AttributesRecord
from indexing.attributes.sureness import sure_confidences
from indexing.attributes.vocabulary import ABSTAINED, OTHER, TrainedOn
from tests.conftest import TinyClassifier, tiny_shelves

VALUES = ("Mugs", "Socks", OTHER)


class Numbers:
    """Takes the last word of a text for its confidence, and the word before for the category."""

    name, label, categories, threshold = "numbers", "kind", VALUES, 0.0
    fingerprint = "f"
    config = SimpleNamespace(trained_on=TrainedOn(held_out=1, seed=0))

    def probabilities(self, texts: Any) -> Any:
        found = []
        for text in texts:
            *_, place, confidence = text.split()
            shares = np.full(3, (1 - float(confidence)) / 2)
            shares[int(place)] = float(confidence)
            found.append(shares)
        return np.array(found, np.float32)


def reader() -> CategoryReader:
    labels = Labels([Label("kind", value, 1, value) for value in VALUES])
    return CategoryReader(cast("Any", Numbers()), labels)


def gallery(titles: list[str], given: list[int]) -> Gallery:
    made = SimpleNamespace(titles=titles, given={"kind": np.array(given)})
    return cast("Gallery", made)


def wilson(right: int, count: int) -> float:
    """The lower end of the 95% interval."""
    share, z = right / count, 1.959964
    middle = share + z * z / (2 * count)
    spread = z * math.sqrt(share * (1 - share) / count + z * z / (4 * count * count))
    return (middle - spread) / (1 + z * z / count)


@pytest.mark.parametrize("seed", range(5))
def test_the_lowest_confidence_at_which_nine_in_ten_are_right(seed: int) -> None:
    rng = np.random.default_rng(seed)
    titles, given = [], []
    for number in range(600):
        confidence = round(float(rng.uniform(0.4, 1)), 3)
        right = rng.random() < confidence**0.3
        gold = int(rng.integers(2))
        said = gold if right else 2 - int(rng.integers(3))
        titles.append(f"sock mugs {number} {said} {confidence}")
        given.append(gold if number % 7 else ABSTAINED)
    rows = []
    for title, gold in zip(titles, given, strict=True):
        *_, said, confidence = title.split()
        if gold != ABSTAINED:
            rows.append((0.0 if said == "2" else float(confidence), int(said) == gold))
    limits = [
        limit
        for limit in {own for own, _ in rows}
        if wilson(
            sum(right for own, right in rows if own >= limit),
            sum(own >= limit for own, _ in rows),
        )
        >= 0.9
    ]
    record = AttributesRecord.of([reader()])
    found = sure_confidences(record, [reader()], gallery(titles, given))
    assert found == {"kind": pytest.approx(min(limits))} if limits else {"kind": None}


def test_words_of_categories_are_taken_out_and_each_text_counts_once() -> None:
    texts: list[str] = []

    class Listening(Numbers):
        def probabilities(self, given: Any) -> Any:
            texts.extend(given)
            return super().probabilities(given)

    listening = CategoryReader(cast("Any", Listening()), reader()._labels)
    record = AttributesRecord.of([listening])
    titles = ["Mugs 0 0.9", "a sock 1 0.8", *["socks 0 0.9"] * 80, "mugs", *["Mug 0 0.9"] * 80]
    given = [0, 1, *[0] * 80, 0, *[1] * 80]
    found = sure_confidences(record, [listening], gallery(titles, given))
    assert set(texts) == {"0 0.9", "a 1 0.8"}
    # Twice .9, one of them right, and once .8: too few for any certainty.
    assert found == {"kind": None}
    # As many different ones would do, were they right.
    many = [f"thing {number} 0 0.9" for number in range(80)]
    assert sure_confidences(record, [listening], gallery(many, [0] * 80)) == {
        "kind": pytest.approx(0.9)
    }


def test_what_looks_at_pictures_has_none() -> None:
    record = AttributesRecord.of([TinyClassifier()])
    assert sure_confidences(record, [TinyClassifier()], gallery([], [])) == {}


def test_evidence_is_sure_by_it_alone() -> None:
    [attribute] = tiny_shelves().attributes  # a title is sure from .7 on
    shares = np.array([0.1, 0.8, 0.05, 0.05], np.float32)
    for limit, sure in ((None, False), (0.85, False), (0.8, True), (0.1, True)):
        assert read(attribute, shares, "text", {"shelf": limit}).sure == sure
    assert read(attribute, shares, "text", {}).sure
    assert not read(attribute, shares, "image", {}).sure
    other = attribute.model_copy(update={"values": ("Kitchen", OTHER, "Toys", "Garden")})
    assert not read(other, shares, "text", {"shelf": 0.1}).sure
