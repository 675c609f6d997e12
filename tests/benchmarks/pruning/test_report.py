"""Intervals by known quantiles, and a report whose every number can be worked out by hand."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from matplotlib.figure import Figure
from PIL import Image

from benchmarks.pruning import report
from benchmarks.pruning.arms import ARMS
from benchmarks.pruning.paired import difference, t_interval, values_of
from benchmarks.pruning.report import PAGE, PLOT, Experiment, arms_of, write_report
from benchmarks.pruning.runs import Result

# --- intervals

# The 97.5% quantiles of Student's t that tables print, by degrees of freedom.
TABLE = {
    **{1: 12.706, 2: 4.303, 3: 3.182, 4: 2.776, 5: 2.571, 6: 2.447, 7: 2.365, 8: 2.306, 9: 2.262},
    **{10: 2.228, 11: 2.201, 12: 2.179, 15: 2.131, 19: 2.093, 24: 2.064, 30: 2.042, 60: 2.000},
    **{120: 1.980, 1000: 1.962},
}


@pytest.mark.parametrize("freedom", TABLE)
def test_the_interval_is_student_s(freedom: int) -> None:
    values = np.random.default_rng(freedom).normal(size=freedom + 1)
    found = t_interval(values.tolist())
    error = math.sqrt(((values - values.mean()) ** 2).sum() / freedom / (freedom + 1))
    assert found.mean == pytest.approx(values.mean())
    assert (found.high - found.mean) / error == pytest.approx(TABLE[freedom], abs=6e-4)
    assert (found.mean - found.low) / error == pytest.approx(TABLE[freedom], abs=6e-4)


def test_closed_forms_of_two_and_three_values() -> None:
    # Of 2 values t is Cauchy's quantile, and their standard error half their distance.
    two = t_interval([0.25, 0.75])
    assert two.high - 0.5 == pytest.approx(0.25 * math.tan(0.475 * math.pi), rel=1e-4)
    three = t_interval([1, 2, 3])
    quantile = 0.95 * math.sqrt(2 / (4 * 0.975 * 0.025))
    assert three.low == pytest.approx(2 - quantile / math.sqrt(3), rel=1e-3)


def test_one_value_has_no_interval() -> None:
    found = t_interval([0.25])
    assert found.mean == 0.25
    assert math.isnan(found.low)
    assert math.isnan(found.high)


def rows(arm: str, measure: str, values: dict[int, float]) -> list[Result]:
    return [{"arm": arm, "seed": seed, measure: value} for seed, value in values.items()]


def test_differences_are_between_runs_of_one_seed() -> None:
    # Seeds differ far more than arms do, they come in another order, and one is missing.
    ours = rows("a", "m", {3: 100.2, 0: 1.1, 1: 10.3, 9: 7.0})
    theirs = rows("b", "m", {0: 1.0, 1: 10.0, 2: -50.0, 3: 100.0})
    found = difference([*theirs, *ours], "a", "b", "m")
    assert found is not None
    expected = t_interval([0.1, 0.3, 0.2])
    assert (found.mean, found.low, found.high) == pytest.approx(
        (expected.mean, expected.low, expected.high)
    )
    other_way = difference([*theirs, *ours], "b", "a", "m")
    assert other_way is not None
    assert other_way.low == pytest.approx(-found.high)


def test_no_seed_in_common_is_no_difference() -> None:
    results = [*rows("a", "m", {0: 1.0}), *rows("b", "m", {1: 1.0}), *rows("b", "n", {0: 1.0})]
    assert difference(results, "a", "b", "m") is None
    assert difference(results, "a", "missing", "m") is None
    assert values_of(results, "b", "n") == {0: 1.0}


# --- the page

EXPERIMENT = Experiment(
    title="A title",
    note="A note.",
    tasks={"picture": "view → picture", "title": "title → picture"},
    arms={**ARMS, "second standard": ""},
    pairs=[("calibrated", "standard"), ("paper", "standard"), ("calibrated", "truncated")],
    kinds=["colour", "brand"],
)


def result(arm: str, seed: int, one: float, **more: Any) -> Result:
    """R@1 as given, R@5 twice that, R@10 three times; half of all that from titles."""
    found: Result = {"arm": arm, "seed": seed, **more}
    for k, factor in ((1, 1), (5, 2), (10, 3)):
        found |= {f"picture R@{k}": factor * one, f"title R@{k}": factor * one / 2}
    return found


RESULTS = [
    result("truncated", 0, 0.1),
    result("calibrated", 1, 0.25, kept={"all": 0.4, "visual": 0.8, "noise": 0.2, "colour": 1.0}),
    *(result("standard", seed, one) for seed, one in enumerate((0.1, 0.2, 0.3))),
    result("calibrated", 0, 0.13, kept={"all": 0.5, "visual": 0.9, "noise": 0.1, "brand": 0.25}),
    result("second standard", 0, 0.15),
]

GOLDEN = """\
# A title

A note.

    shoplens bench pruning --seeds 3

## view → picture

| arm | seeds | R@1 | R@5 | R@10 |
|---|---|---|---|---|
| standard | 3 | 0.200 [-0.048, 0.448] | 0.400 [-0.097, 0.897] | 0.600 [-0.145, 1.345] |
| calibrated | 2 | 0.190 [-0.572, 0.952] | 0.380 [-1.145, 1.905] | 0.570 [-1.717, 2.857] |
| truncated | 1 | 0.100 | 0.200 | 0.300 |
| second standard | 1 | 0.150 | 0.300 | 0.450 |

| difference on the same seeds | R@1 | R@5 | R@10 |
|---|---|---|---|
| calibrated − standard | +0.040 [-0.087, +0.167] | +0.080 [-0.174, +0.334] | +0.120 [-0.261, +0.501] |
| calibrated − truncated | +0.030 | +0.060 | +0.090 |

## title → picture

| arm | seeds | R@1 | R@5 | R@10 |
|---|---|---|---|---|
| standard | 3 | 0.100 [-0.024, 0.224] | 0.200 [-0.048, 0.448] | 0.300 [-0.073, 0.673] |
| calibrated | 2 | 0.095 [-0.286, 0.476] | 0.190 [-0.572, 0.952] | 0.285 [-0.859, 1.429] |
| truncated | 1 | 0.050 | 0.100 | 0.150 |
| second standard | 1 | 0.075 | 0.150 | 0.225 |

| difference on the same seeds | R@1 | R@5 | R@10 |
|---|---|---|---|
| calibrated − standard | +0.020 [-0.044, +0.084] | +0.040 [-0.087, +0.167] | +0.060 [-0.131, +0.251] |
| calibrated − truncated | +0.015 | +0.030 | +0.045 |

## Words kept

| arm | visual | noise | all | colour | brand |
|---|---|---|---|---|---|
| calibrated | 0.85 | 0.15 | 0.45 | 1.00 | 0.25 |

![differences and kept words](pruning.png)
"""  # noqa: E501


def write(results: Sequence[Result], out: Path) -> str:
    write_report(EXPERIMENT, results, out, "shoplens bench pruning --seeds 3")
    return (out / PAGE).read_text()


def test_the_page_is_what_one_works_out_by_hand(tmp_path: Path) -> None:
    assert write(RESULTS, tmp_path) == GOLDEN
    assert {path.name for path in tmp_path.iterdir()} == {PAGE, PLOT}


def test_the_order_of_runs_does_not_show(tmp_path: Path) -> None:
    write(RESULTS, tmp_path)
    plot = (tmp_path / PLOT).read_bytes()
    assert write(RESULTS[::-1], tmp_path) == GOLDEN
    assert (tmp_path / PLOT).read_bytes() == plot


def test_arms_stand_in_their_usual_order() -> None:
    found = [{"arm": arm} for arm in ("second standard", "oracle", "paper", "standard")]
    assert arms_of(EXPERIMENT, found) == ["standard", "paper", "oracle", "second standard"]


def test_a_measure_that_no_run_has_is_left_empty(tmp_path: Path) -> None:
    page = write([{"arm": "paper", "seed": 0, "picture R@1": 0.5}], tmp_path)
    assert "| paper | 1 | 0.500 |  |  |\n" in page
    assert "| paper | 0 |  |  |  |\n" in page
    assert "nan" not in page


@pytest.mark.parametrize("results", [[], [result("oracle", 0, 0.5)]], ids=["none", "one"])
def test_little_is_enough_for_a_page(results: list[Result], tmp_path: Path) -> None:
    page = write(results, tmp_path)
    assert ("| oracle | 1 | 0.500 | 1.000 | 1.500 |" in page) == bool(results)
    assert "nan" not in page
    with Image.open(tmp_path / PLOT) as plot:
        assert plot.format == "PNG"
        assert plot.width == 1200


# --- the plot


@pytest.fixture
def drawn(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Figure:
    found: list[Figure] = []
    monkeypatch.setattr(report, "save", lambda plot, file: found.append(plot))
    write(RESULTS, tmp_path)
    return found[0]


def test_left_of_the_plot_are_the_gains_over_standard(drawn: Figure) -> None:
    gains = drawn.axes[0]
    names = [label.get_text() for label in gains.get_yticklabels()]
    assert names == ["calibrated", "truncated", "second standard"]
    assert gains.get_title(loc="left") == "view → picture"
    dots: dict[str, list[float]] = {}
    bars: dict[str, list[float]] = {}
    for line in gains.get_lines()[:-1]:  # the last one is the axis at 0
        x, y = np.asarray(line.get_xdata()), np.asarray(line.get_ydata())
        (dots if len(x) == 1 else bars)[names[int(y[0])]] = x.tolist()
    assert dots.keys() == set(names)
    assert dots["calibrated"] == pytest.approx([8.0])
    assert dots["truncated"] == pytest.approx([0.0])
    assert dots["second standard"] == pytest.approx([10.0])
    assert bars.keys() == {"calibrated"}
    marked = {names[int(np.asarray(line.get_ydata())[0])] for line in gains.get_lines()[:-1]
              if line.get_color() == "#0b57d0"}  # fmt: skip
    assert marked == {"calibrated"}
    half = 100 * 12.706 * 0.02  # differences in R@5 of 0.06 and 0.10
    assert bars["calibrated"] == pytest.approx([8 - half, 8 + half])


def test_an_experiment_says_which_arms_are_marked(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    found: list[Figure] = []
    monkeypatch.setattr(report, "save", lambda plot, file: found.append(plot))
    write_report(replace(EXPERIMENT, ours=("truncated",)), RESULTS, tmp_path, "")
    colours = [line.get_color() for line in found[0].axes[0].get_lines()]
    assert colours.count("#0b57d0") == 1  # of one seed: a dot and no bar
    assert colours.count("#6b6b6b") == 3


def test_right_of_the_plot_are_the_words_kept(drawn: Figure) -> None:
    kept = drawn.axes[1]
    assert [label.get_text() for label in kept.get_xticklabels()] == ["colour", "brand"]
    legend = kept.get_legend()
    assert legend is not None
    assert [text.get_text() for text in legend.get_texts()] == ["calibrated"]
    bars = [(bar.get_x() + bar.get_width() / 2, bar.get_height()) for bar in kept.patches]  # type: ignore[attr-defined]
    assert bars == [(pytest.approx(0), pytest.approx(100)), (pytest.approx(1), pytest.approx(25))]
