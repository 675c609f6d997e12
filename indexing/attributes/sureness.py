"""From which confidence on the category of a query is sure.

A categoriser has learned from titles, and is surer of words of another kind than it should be: of
a mug it says what it says of a shoe. So what it reads off a query is held to titles from which the
words that name a category are taken out. Those words count by themselves, see evidence.py; what
is left is the hardest that a query may be.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from indexing.attributes.gallery import Gallery
from indexing.attributes.precision import sure_threshold
from indexing.attributes.record import AttributesRecord
from indexing.attributes.vocabulary import ABSTAINED, OTHER, AttributeClassifier
from indexing.attributes.words import Words

# By attribute; None: it is never sure.
SureFrom = Mapping[str, float | None]


def sure_confidences(
    record: AttributesRecord, classifiers: Sequence[AttributeClassifier], gallery: Gallery
) -> dict[str, float | None]:
    """The lowest confidence from which nine in ten are right, by Wilson's lower bound, on the
    titles of the gallery without the words of categories.

    Args:
        classifiers: In the order of the record's sources.
    """
    found: dict[str, float | None] = dict.fromkeys(record.categories)
    for source, classifier in zip(record.sources, classifiers, strict=True):
        if source.kind == "categories":
            words = Words(source.words)
            texts = [words.without(title) for title in gallery.titles]
            shares = classifier.predict(None, texts)
            for attribute in source.attributes:
                given, own = gallery.given[attribute.name], shares[attribute.name]
                told = np.flatnonzero((given != ABSTAINED) & np.array([bool(t) for t in texts]))
                # Each text once with each category.
                pairs = {(texts[row], int(given[row])): row for row in told.tolist()}
                rows = np.array(list(pairs.values()), np.int64)
                best = own[rows].argmax(axis=1)
                surest = own[rows].max(axis=1)
                if OTHER in attribute.values:  # which is no answer
                    surest[best == attribute.values.index(OTHER)] = 0
                found[attribute.name] = sure_threshold(surest, best == given[rows])
    return found
