"""How sure an index is that it has what a query asks for, by the calibration in its manifest."""

from __future__ import annotations

from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from indexing.match import DEPTH, background_rows, features, probability
from indexing.match_record import Mode
from indexing.store import OpenIndex
from search.neighbours import Neighbours


class Confidence:
    """Turns the neighbours of a query into a probability; see indexing/match.py."""

    def __init__(self, index: OpenIndex) -> None:
        self._index = index

    @cached_property
    def _background(self) -> NDArray[np.float32]:
        vectors: NDArray[np.float32] = self._index.vectors[background_rows(len(self._index.images))]
        return vectors

    def of(self, near: Neighbours, *, image: bool, text: bool) -> tuple[float | None, bool | None]:
        """The probability that the catalog has what is asked for, and whether it is good enough.

        Both None where the index has no calibration for such a query or fewer than two
        products match; the second also where it has no threshold.
        """
        mode: Mode = "image+text" if image and text else "image" if image else "text"
        match = self._index.manifest.match
        record = None if match is None else match.modes.get(mode)
        if record is None:
            return None, None
        places = near.first_of_each(DEPTH)
        if len(places) < 2:
            return None, None
        chance = probability(record, features(near.scores[places], self._background @ near.query))
        return chance, None if record.threshold is None else chance >= record.threshold
