"""Reranking by attributes: the cosine and how far query and product agree, in one score.

    score(q, i) = s(q, i) / T  +  sum over attributes a of
                  beta_a * g_a(q) * log( sum over values v of
                                         p_a(v | q) * p_a(v | i) / pi_a(v)^gamma  +  EPSILON )

s is the cosine, p_a(. | i) the merchant's own value or else what was predicted, pi_a the share of
each value in training, and g_a is 1 where the query is sure of the attribute, else 0. With gamma
above 0 agreement on a frequent value counts less. For a query that names one value, 1 / pi^gamma is
one factor inside the logarithm for all products; it still shifts their score, as EPSILON, which
bounds the damage of a wrong attribute to beta * log(EPSILON), is not multiplied by it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from indexing.attributes.columns import Column, Columns
from indexing.attributes.record import RerankRecord
from indexing.attributes.vocabulary import ABSTAINED

EPSILON = 1e-3
_LEAST_PRIOR = 1e-6  # a value that training never saw must not divide by 0

Floats = NDArray[np.float64]
Bools = NDArray[np.bool_]
Ints = NDArray[np.int64]

Source = Literal["chosen", "named", "read"]


@dataclass(frozen=True)
class Evidence:
    """What a query says of one attribute.

    Attributes:
        distribution: float [classes], adding up to 1.
        source: chosen: asked for by itself, such as by a click on a facet; named: by words of
            the text; read: by a classifier.
        sure: Whether it may be used. What is chosen or named is always sure.
    """

    distribution: NDArray[np.floating]
    source: Source
    sure: bool = True

    @property
    def explicit(self) -> bool:
        """Whether somebody said so."""
        return self.source != "read"

    @property
    def asked(self) -> Bools:
        """The values that are asked for, bool [classes]: all that were said, or the likeliest."""
        if self.explicit:
            return np.asarray(self.distribution > 0)
        likeliest = np.zeros(len(self.distribution), np.bool_)
        likeliest[np.argmax(self.distribution)] = True
        return likeliest


def log_agreement(
    wanted: NDArray[np.floating],
    found: NDArray[np.floating],
    prior: NDArray[np.floating],
    gamma: float,
) -> Floats:
    """log( sum_v p(v|q) p(v|i) / pi(v)^gamma + EPSILON ), float64 [m].

    Args:
        wanted: float [classes], the query's distribution.
        found: float [m, classes], the products'.
        prior: float [classes], shares in training.
        gamma: From 0 to 1.
    """
    weighed = wanted / np.maximum(prior, _LEAST_PRIOR) ** gamma
    logs: Floats = np.log(found.astype(np.float64) @ weighed + EPSILON)
    return logs


def fused_scores(
    cosines: NDArray[np.floating],
    rows: Ints,
    columns: Columns,
    evidence: Mapping[str, Evidence],
    record: RerankRecord,
) -> Floats:
    """The score of each candidate, float64 [m].

    Args:
        cosines: float [m].
        rows: int64 [m], of the products in the columns.
        evidence: By attribute; one that is not there, or not sure, counts for nothing.
    """
    scores = cosines / record.temperature
    for name, weight in record.weights.items():
        own, column = evidence.get(name), columns.get(name)
        if not weight or own is None or column is None or not own.sure:
            continue
        prior = np.array(column.attribute.prior)
        scores = scores + weight * log_agreement(
            own.distribution, column.of(rows), prior, record.gamma
        )
    return np.asarray(scores, np.float64)


def disagrees(rows: Ints, column: Column, evidence: Evidence) -> Bools:
    """Which products surely have another value than the query surely asks for, bool [m].

    Products of which no value is given or filled in stay: unknown is no mismatch.
    """
    if not evidence.sure:
        return np.zeros(len(rows), np.bool_)
    decided = column.decided(rows)
    other: Bools = (decided != ABSTAINED) & ~evidence.asked[decided]
    return other


class Reranked(NamedTuple):
    """Candidates in a new order.

    Attributes:
        order: int64 [m], their places, best first.
        values: float64 [m], in the new order, their cosine and what attributes add to it.
        first: How many stand before those that surely disagree.
    """

    order: Ints
    values: Floats
    first: int


def reranked(
    values: NDArray[np.floating],
    rows: Ints,
    columns: Columns,
    evidence: Mapping[str, Evidence],
    record: RerankRecord | None,
) -> Reranked:
    """Candidates by their fused score where the record says so, else as they come.

    Products that surely disagree come behind all others; none is left out, and the order in both
    blocks stays. The record says whether they do, but with what was chosen they always do.

    Args:
        values: float [m], what candidates are ordered by, best first: cosines.
        rows: int64 [m], of the products in the columns.
        record: None for a kind of query that is not reranked.
    """
    found, order = np.asarray(values, np.float64), np.arange(len(rows))
    if record is not None and any(record.weights.values()):
        scores = fused_scores(values, rows, columns, evidence, record)
        found, order = scores * record.temperature, np.argsort(-scores, kind="stable")
    demoted = np.zeros(len(rows), np.bool_)
    for name, own in evidence.items():
        asked = own.source == "chosen" or (record is not None and name in record.demote)
        if asked and name in columns:
            demoted |= disagrees(rows, columns[name], own)
    order = order[np.argsort(demoted[order], kind="stable")]
    return Reranked(order, found[order], int(np.count_nonzero(~demoted)))
