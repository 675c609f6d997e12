"""What a text names and what a classifier reads, as evidence of a query."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import numpy as np

from indexing.attributes.fusing import Evidence, Source
from indexing.attributes.sureness import SureFrom
from indexing.attributes.vocabulary import ABSTAINED, OTHER, Attribute, Floats
from indexing.attributes.words import Words
from indexing.match_record import Mode


def told(attribute: Attribute, values: Iterable[str], source: Source) -> Evidence:
    """Evidence whose mass these values, at least one, share evenly."""
    shares = np.zeros(len(attribute.values))
    shares[[attribute.values.index(value) for value in values]] = 1
    return Evidence(shares / shares.sum(), source)


def named(words: Words, attributes: Mapping[str, Attribute], text: str) -> dict[str, Evidence]:
    """The values that a text names, by attribute."""
    found: dict[str, list[str]] = {}
    for mention in words.mentions(text):
        attribute = attributes.get(mention.attribute)
        if attribute is not None and mention.value in attribute.values:
            found.setdefault(mention.attribute, []).append(mention.value)
    return {name: told(attributes[name], values, "named") for name, values in found.items()}


def read(attribute: Attribute, shares: Floats, mode: Mode, sure_from: SureFrom) -> Evidence:
    """What a classifier says of one query; float32 [classes], calibrated.

    It is sure as it would be of a product, but for those attributes that `sure_from` has.
    """
    if attribute.name in sure_from:
        least, likeliest = sure_from[attribute.name], int(shares.argmax())
        sure = least is not None and shares[likeliest] >= least
        return Evidence(shares, "read", sure=bool(sure and attribute.values[likeliest] != OTHER))
    decided = attribute.decide(shares[np.newaxis], mode)[0]
    return Evidence(shares, "read", sure=bool(decided != ABSTAINED))
