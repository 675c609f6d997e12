"""A test set with one side spoilt: does a classifier then read the other side?

Titles and pictures are spoilt by those of other products, which say something else; titles
also by what they leave unsaid. Gold values stay.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from indexing.attributes.vocabulary import OTHER
from indexing.attributes.words import Words
from indexing.errors import BenchmarkError
from indexing.match import auroc

NO_PICTURE = -1

Condition = Literal[
    "clean", "other title", "words deleted", "words inserted", "other picture", "no picture"
]
Floats = NDArray[np.float64]
Bools = NDArray[np.bool_]
Ints = NDArray[np.int64]


@dataclass(frozen=True, eq=False)
class Inputs:
    """What a classifier is given of each sample.

    Attributes:
        titles: n texts; a blank one counts as none.
        pictures: int64 [n], the sample whose picture it is; NO_PICTURE where there is none, so
            that only the title is given (mode "text"). A picture of one colour would be read.
    """

    titles: tuple[str, ...]
    pictures: Ints


def conditions(
    titles: Sequence[str],
    gold: Mapping[str, Sequence[str | None]],
    words: Words,
    *,
    seed: int = 0,
) -> dict[Condition, Inputs]:
    """The test set as it is, and spoilt in each way. Other titles and other pictures are of the
    same other products.

    Args:
        titles: n texts.
        gold: n values for each attribute; None where unknown.
        words: How the values are written.

    Raises:
        BenchmarkError: See `other_rows`.
    """
    clean = Inputs(tuple(titles), np.arange(len(titles)))
    others = other_rows(np.stack([_numbered(values) for values in gold.values()]), seed=seed)
    nothing = np.full(len(titles), NO_PICTURE)
    return {
        "clean": clean,
        "other title": replace(clean, titles=tuple(titles[row] for row in others)),
        "words deleted": replace(clean, titles=without_words(titles, words)),
        "words inserted": replace(clean, titles=with_words(titles, gold, words)),
        "other picture": replace(clean, pictures=others),
        "no picture": replace(clean, pictures=nothing),
    }


def other_rows(gold: Ints, *, seed: int = 0) -> Ints:
    """Another sample for each, of another value of every attribute that is known of it, drawn by
    the seed; int64 [n].

    Of one attribute of which no value has more than half of the samples, each sample stands in
    for one other (a derangement), so that all titles together stay what they were. Elsewhere,
    where that cannot be or is not found, some stand in for several.

    Args:
        gold: int64 [attributes, n], the values by number; negative where unknown. A sample whose
            value is unknown stands in for none whose value is known: it might have that value.

    Raises:
        BenchmarkError: A sample has no such other.
    """
    rng = np.random.default_rng(seed)
    every = np.arange(gold.shape[1])
    others = rng.permutation(every)
    for row in rng.permutation(every):
        if _fits(gold, row, others[row]).all():
            continue
        # Trade with a row that can use what this one has. Of one attribute there always is one:
        # this value has m <= n / 2 rows, and at most m - 1 of the n - m rows of other values
        # have been given a row of it, as this row has one.
        partners = _fits(gold, row, others) & _fits(gold, every, others[row])
        if partners.any():
            partner = rng.choice(np.flatnonzero(partners))
            others[[row, partner]] = others[[partner, row]]
            continue
        able = np.flatnonzero(_fits(gold, row, every))
        if not len(able):
            raise BenchmarkError(
                f"no sample differs from sample {row} in every attribute: give samples of more "
                "values, or one attribute at a time"
            )
        others[row] = rng.choice(able)
    return others


def without_words(titles: Sequence[str], words: Words) -> tuple[str, ...]:
    """The titles without any attribute's words; some may be blank."""
    return tuple(words.without(title) for title in titles)


def with_words(
    titles: Sequence[str], gold: Mapping[str, Sequence[str | None]], words: Words
) -> tuple[str, ...]:
    """The titles, each with those of its gold values appended that it does not name. Unknown
    values and OTHER have no words.

    Args:
        gold: n values for each attribute; None where unknown.
    """
    found = []
    for row, title in enumerate(titles):
        named = {(mention.attribute, mention.value) for mention in words.mentions(title)}
        missing = [
            value
            for attribute, values in gold.items()
            if (value := values[row]) not in (None, OTHER) and (attribute, value) not in named
        ]
        found.append(" ".join([title, *missing]) if missing else title)
    return tuple(found)


def separation(higher: Floats, lower: Floats) -> float:
    """The chance that the weight of the picture is larger for a sample of the first kind than
    for one of the second, ties counting half (AUC). Both must have some.

    With titles spoilt against pictures spoilt it says how well the weight tells which side is;
    with titles spoilt against clean, or clean against pictures spoilt, how well it tells that
    one side is. 0.5 is chance.

    Args:
        higher, lower: float64 [n] and [m], the weights of the picture.
    """
    spoilt = np.arange(len(higher) + len(lower)) < len(higher)
    return auroc(np.concatenate([higher, lower]), spoilt)


def _numbered(values: Sequence[str | None]) -> Ints:
    """The values by number, int64 [n]; -1 for None."""
    numbers = {value: number for number, value in enumerate(dict.fromkeys(values))}
    return np.array([-1 if value is None else numbers[value] for value in values], np.int64)


def _fits(gold: Ints, asking: Ints | int, given: Ints | int) -> Bools:
    """Whether rows can be spoilt by others, bool [m] for m rows on either side or both: those
    have another value in every attribute that is known of these."""
    own, other = gold[:, np.atleast_1d(asking)], gold[:, np.atleast_1d(given)]
    differ: Bools = ((own < 0) | ((other >= 0) & (own != other))).all(axis=0)
    differ &= np.not_equal(asking, given)
    return differ
