"""The attributes of the products of an index: given by the merchant, filled in, or unknown."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from indexing.attributes.vocabulary import ABSTAINED, Attribute

TOP = 8  # classes whose probabilities are kept

Ints = NDArray[np.int64]
Floats = NDArray[np.float32]


class Known(NamedTuple):
    """What is known of an attribute of a product."""

    value: str
    confidence: float  # 1 where it is given
    source: Literal["given", "filled"]


@dataclass(frozen=True)
class Column:
    """One attribute of all products, row by row.

    Attributes:
        top: uint16 [n, w <= TOP], the most probable classes, best first.
        probabilities: float16 [n, w], theirs; what is missing to 1 belongs to all other classes.
        given: int16 [n], the class of the merchant's own value; ABSTAINED where there is none.
        filled: int16 [n], the class that was sure enough to stand in for a missing value;
            ABSTAINED where none was, and where a value is given, be it one that is no class.
    """

    attribute: Attribute
    top: NDArray[np.uint16]
    probabilities: NDArray[np.float16]
    given: NDArray[np.int16]
    filled: NDArray[np.int16]

    def __len__(self) -> int:
        return len(self.given)

    def take(self, rows: Ints | NDArray[np.bool_]) -> Column:
        """The column of some products, by their numbers or by a mask."""
        return Column(
            self.attribute,
            self.top[rows],
            self.probabilities[rows],
            self.given[rows],
            self.filled[rows],
        )

    @classmethod
    def concatenated(cls, parts: Sequence[Column]) -> Column:
        """Several, at least one, one below the other."""
        return cls(
            parts[0].attribute,
            np.concatenate([part.top for part in parts]),
            np.concatenate([part.probabilities for part in parts]),
            np.concatenate([part.given for part in parts]),
            np.concatenate([part.filled for part in parts]),
        )

    def predicted(self, rows: Ints) -> Floats:
        """The distributions that were predicted for these products, float32 [m, classes].

        Classes beyond the first TOP share evenly what those leave of 1, but each has less than
        any of them, so that these stay the first.
        """
        top = self.top[rows].astype(np.int64)
        kept = self.probabilities[rows].astype(np.float32)
        classes = len(self.attribute.values)
        others = classes - top.shape[1]
        tail = np.clip(1 - kept.sum(axis=1, keepdims=True), 0, 1) / max(1, others)
        below = np.nextafter(self.probabilities[rows][:, -1:], np.float16(0))
        tail = np.minimum(tail, below.astype(np.float32))
        spread = np.repeat(tail.astype(np.float32), classes, axis=1)
        np.put_along_axis(spread, top, kept, axis=1)
        return spread

    def of(self, rows: Ints) -> Floats:
        """The same, but all on the merchant's own value where that is given."""
        found = self.predicted(rows)
        given = self.given[rows].astype(np.int64)
        own = given != ABSTAINED
        found[own] = 0
        found[own, given[own]] = 1
        return found

    def decided(self, rows: Ints) -> Ints:
        """The class that is given or filled in, int64 [m]; ABSTAINED where neither is."""
        given, filled = self.given[rows], self.filled[rows]
        return np.where(given != ABSTAINED, given, filled).astype(np.int64)

    def known(self, row: int) -> Known | None:
        """What is given or filled in for one product."""
        if self.given[row] != ABSTAINED:
            return Known(self.attribute.values[self.given[row]], 1.0, "given")
        if self.filled[row] != ABSTAINED:
            place = self.top[row].tolist().index(self.filled[row])
            confidence = float(self.probabilities[row, place])
            return Known(self.attribute.values[self.filled[row]], confidence, "filled")
        return None


# The columns of an index by attribute, all of one length.
Columns = Mapping[str, Column]
