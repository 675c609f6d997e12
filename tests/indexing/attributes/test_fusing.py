"""The fused score against plain loops, and who comes behind whom."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from indexing.attributes.columns import Column
from indexing.attributes.fusing import (
    EPSILON,
    Evidence,
    disagrees,
    fused_scores,
    log_agreement,
    reranked,
)
from indexing.attributes.record import RerankRecord
from indexing.attributes.vocabulary import ABSTAINED, Attribute

COLOR = Attribute(
    name="color", values=("red", "blue", "green"), prior=(0.5, 0.3, 0.2), calibration={}
)
KIND = Attribute(name="kind", values=("mug", "shoe"), prior=(0.9, 0.1), calibration={})


def column(
    attribute: Attribute, shares: list[list[float]], given: list[int], filled: list[int]
) -> Column:
    """All classes are kept, best first."""
    own = np.array(shares)
    top = np.argsort(-own, axis=1, kind="stable")
    return Column(
        attribute,
        top.astype(np.uint16),
        np.take_along_axis(own, top, axis=1).astype(np.float16),
        np.array(given, np.int16),
        np.array(filled, np.int16),
    )


COLUMNS = {
    "color": column(
        COLOR,
        [[0.5, 0.25, 0.25], [0.25, 0.5, 0.25], [0, 0.125, 0.875], [0.5, 0.375, 0.125]],
        [ABSTAINED, ABSTAINED, ABSTAINED, 1],
        [ABSTAINED, ABSTAINED, 2, ABSTAINED],
    ),
    "kind": column(
        KIND,
        [[0.5, 0.5], [0.25, 0.75], [0.125, 0.875], [0.75, 0.25]],
        [0, ABSTAINED, ABSTAINED, ABSTAINED],
        [ABSTAINED, 1, ABSTAINED, ABSTAINED],
    ),
}


def record(
    color: float, kind: float, *, gamma: float = 0.0, demote: tuple[str, ...] = ()
) -> RerankRecord:
    return RerankRecord(
        weights={"color": color, "kind": kind},
        temperature=0.05,
        gamma=gamma,
        demote=demote,
        queries="titles",
        asked=10,
    )


def told(*shares: float, source: str = "named", sure: bool = True) -> Evidence:
    return Evidence(np.array(shares), source, sure)  # type: ignore[arg-type]


ROWS = np.array([3, 0, 2, 1])
COSINES = np.array([0.9, 0.8, 0.7, 0.6])


@pytest.mark.parametrize("gamma", [0.0, 0.5, 1.0])
def test_the_score_against_plain_loops(gamma: float) -> None:
    evidence = {"color": told(0.5, 0.25, 0.25, source="read"), "kind": told(0, 1)}
    scores = fused_scores(COSINES, ROWS, COLUMNS, evidence, record(2.0, 0.5, gamma=gamma))
    # Of product 3 the merchant says that it is blue, of product 0 that it is a mug.
    colors = {0: (0.5, 0.25, 0.25), 1: (0.25, 0.5, 0.25), 2: (0, 0.125, 0.875), 3: (0, 1, 0)}
    kinds = {0: (1, 0), 1: (0.25, 0.75), 2: (0.125, 0.875), 3: (0.75, 0.25)}
    for place, row in enumerate(ROWS.tolist()):
        expected = COSINES[place] / 0.05
        for weight, shares, own, prior in (
            (2.0, (0.5, 0.25, 0.25), colors[row], COLOR.prior),
            (0.5, (0, 1), kinds[row], KIND.prior),
        ):
            total = sum(q * i / p**gamma for q, i, p in zip(shares, own, prior, strict=True))
            expected += weight * math.log(total + 1e-3)
        assert scores[place] == pytest.approx(expected, abs=1e-9)


def test_of_one_value_the_prior_is_a_factor_and_epsilon_is_not() -> None:
    found = np.array([[1.0, 0.0, 0.0], [0.0, 1.0, 0.0]])
    plain = log_agreement(np.array([0, 0, 1.0]), found[:, ::-1], np.array(COLOR.prior), 0.0)
    weighed = log_agreement(np.array([0, 0, 1.0]), found[:, ::-1], np.array(COLOR.prior), 1.0)
    assert plain == pytest.approx([math.log(1 + EPSILON), math.log(EPSILON)])
    assert weighed == pytest.approx([math.log(5 + EPSILON), math.log(EPSILON)])


def test_a_value_without_a_prior_gives_finite_scores() -> None:
    found = np.array([[0.0, 1.0], [1.0, 0.0]])
    assert np.isfinite(log_agreement(np.array([0.0, 1.0]), found, np.array([1.0, 0.0]), 1.0)).all()


def test_what_is_not_sure_or_has_no_weight_counts_for_nothing() -> None:
    evidence = {"color": told(0, 0, 1, source="read", sure=False), "kind": told(0, 1)}
    scores = fused_scores(COSINES, ROWS, COLUMNS, evidence, record(5.0, 0.0))
    assert scores.tolist() == (COSINES / 0.05).tolist()
    evidence = {"size": told(0, 1)}
    assert (
        fused_scores(COSINES, ROWS, COLUMNS, evidence, record(5.0, 5.0)).tolist()
        == (COSINES / 0.05).tolist()
    )


def test_who_disagrees() -> None:
    rows = np.arange(4)
    # 0 and 1 are unknown, 2 was filled in as green, 3 was given as blue.
    assert disagrees(rows, COLUMNS["color"], told(1, 0, 0)).tolist() == [False, False, True, True]
    assert disagrees(rows, COLUMNS["color"], told(0, 0.5, 0.5)).tolist() == [False] * 4
    assert disagrees(rows, COLUMNS["color"], told(0, 1, 0)).tolist() == [False, False, True, False]
    # A classifier asks for its likeliest value only.
    read = told(0.1, 0.1, 0.8, source="read")
    assert disagrees(rows, COLUMNS["color"], read).tolist() == [False, False, False, True]
    unsure = told(0.1, 0.1, 0.8, source="read", sure=False)
    assert not disagrees(rows, COLUMNS["color"], unsure).any()


def test_those_that_disagree_come_last_and_keep_their_order() -> None:
    evidence = {"color": told(1, 0, 0)}
    found = reranked(COSINES, ROWS, COLUMNS, evidence, record(0, 0, demote=tuple(COLUMNS)))
    assert ROWS[found.order].tolist() == [0, 1, 3, 2]
    assert found.values.tolist() == [0.8, 0.6, 0.9, 0.7]
    assert found.first == 2


@pytest.mark.parametrize("own", [None, record(0, 0)])
def test_only_what_was_chosen_counts_without_an_active_record(own: RerankRecord | None) -> None:
    named = reranked(COSINES, ROWS, COLUMNS, {"color": told(1, 0, 0)}, own)
    assert named.order.tolist() == [0, 1, 2, 3]
    assert named.first == 4
    chosen = {"color": told(1, 0, 0, source="chosen"), "kind": told(1, 0)}
    assert ROWS[reranked(COSINES, ROWS, COLUMNS, chosen, own).order].tolist() == [0, 1, 3, 2]


def test_weights_order_anew_and_values_stay_on_the_scale_of_cosines() -> None:
    evidence = {"color": told(0, 0, 1)}
    found = reranked(COSINES, ROWS, COLUMNS, evidence, record(3.0, 0))
    scores = fused_scores(COSINES, ROWS, COLUMNS, evidence, record(3.0, 0))
    assert ROWS[found.order].tolist() == [2, 0, 1, 3]
    assert found.values == pytest.approx(np.sort(scores)[::-1] * 0.05)
    assert found.first == 4


def test_without_weights_nothing_moves_not_even_ties() -> None:
    values = np.array([0.5, 0.5, 0.5, 0.1])
    evidence = {"color": told(0, 0, 1), "kind": told(0, 1)}
    found = reranked(values, ROWS, COLUMNS, evidence, record(0, 0, gamma=1))
    assert found.order.tolist() == [0, 1, 2, 3]
    assert found.values.tolist() == values.tolist()


@given(st.integers(0, 2**32 - 1))
def test_the_order_against_plain_loops(seed: int) -> None:
    rng = np.random.default_rng(seed)
    count = int(rng.integers(1, 30))
    rows = rng.integers(0, 4, count)  # products of COLUMNS, many times over: many ties
    cosines = np.sort(rng.integers(0, 4, count) / 4)[::-1]
    weights, demote = rng.choice([0.0, 0.5, 3.0], 2), bool(rng.integers(2))
    own = record(*weights.tolist(), demote=tuple(COLUMNS) if demote else ())
    evidence = {}
    for name, column in COLUMNS.items():
        source = ["chosen", "named", "read", None][rng.integers(4)]
        classes = len(column.attribute.values)
        shares = rng.multinomial(4, [1 / classes] * classes) / 4
        if source is not None:
            sure = source != "read" or bool(rng.integers(2))
            evidence[name] = told(*shares, source=source, sure=sure)

    def sinks(row: int) -> bool:
        for name, said in evidence.items():
            known = COLUMNS[name].known(row)
            place = None if known is None else COLUMNS[name].attribute.values.index(known.value)
            if place is None or not said.sure or not (demote or said.source == "chosen"):
                continue
            if said.source == "read":
                right = place == int(np.argmax(said.distribution))
            else:
                right = said.distribution[place] > 0
            if not right:
                return True
        return False

    scores = fused_scores(cosines, rows, COLUMNS, evidence, own)
    expected = sorted(range(count), key=lambda place: (sinks(rows[place]), -scores[place], place))
    found = reranked(cosines, rows, COLUMNS, evidence, own)
    assert found.order.tolist() == expected
    assert found.first == sum(not sinks(row) for row in rows)


def test_no_candidates() -> None:
    none = np.empty(0, np.int64)
    found = reranked(np.empty(0), none, COLUMNS, {"color": told(0, 0, 1)}, record(1, 1))
    assert found.order.tolist() == []
    assert found.first == 0
