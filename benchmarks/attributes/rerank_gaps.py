"""Attributes of products as they would be read if their titles did not name them.

Where titles say "red", what is predicted of a product is for the most part read off that word, and
an order by it is little more than a search for words. Products whose merchants leave gaps may leave
them in titles, too.
"""

from __future__ import annotations

import numpy as np

from indexing.attributes.columns import Columns
from indexing.attributes.predicting import columns_of
from indexing.attributes.rerank_queries import Maker
from indexing.attributes.vocabulary import ABSTAINED, mode_of
from indexing.match_record import MODES

_TOGETHER = 32  # products that are read at once


def without_words(maker: Maker) -> Columns:
    """The columns of the gallery, read anew off main pictures and titles without the words of
    attribute values. A picture that cannot be read any more counts as none."""
    gallery, classifier = maker.gallery, maker.classifier
    looks = classifier.image_size > 0
    titles = [maker.words.without(title) for title in gallery.titles]
    classes = [len(attribute.values) for attribute in classifier.attributes]
    chances = np.zeros((len(gallery), sum(classes)), np.float32)
    modes = np.zeros(len(gallery), np.int8)
    for start in range(0, len(gallery), _TOGETHER):
        part = range(start, min(start + _TOGETHER, len(gallery)))
        pictures = {place: maker.picture(place) if looks else None for place in part}
        for seen in (True, False):
            own = [place for place in part if (pictures[place] is not None) == seen]
            if not own:
                continue
            pixels = [classifier.preprocess(p) for p in pictures.values() if p is not None]
            shares = classifier.predict(
                np.stack(pixels) if seen else None, [titles[place] for place in own]
            )
            chances[own] = np.hstack([shares[a.name] for a in classifier.attributes])
            has = seen or not looks  # a picture that nobody looks at is there all the same
            modes[own] = [MODES.index(mode_of(has, titles[place])) for place in own]
        maker.progress(part.stop, len(gallery))
    nothing = np.full(len(gallery), ABSTAINED, np.int16)
    given = {attribute.name: nothing for attribute in classifier.attributes}
    return columns_of(classifier.attributes, chances, modes, given)
