"""The plots, checked by what is drawn in them and where their words stand."""

from __future__ import annotations

import sys
from itertools import combinations, pairwise
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import to_hex
from matplotlib.figure import Figure as Plot
from matplotlib.text import Annotation, Text
from PIL import Image

from benchmarks.retrieval.plots import (
    CATEGORIES,
    SYSTEMS,
    _spread,
    by_category,
    category_plot,
    in_order,
    recall_plot,
    save,
)
from benchmarks.retrieval.scored import CategoryScores, Figure, Range, SystemScores, TaskScores
from indexing.errors import MissingDependencyError


def figure(mean: float, queries: int = 20, products: int = 10) -> Figure:
    value = Range(mean=mean, low=max(0, mean - 0.1), high=min(1, mean + 0.05))
    return Figure(micro=value, macro=value, queries=queries, products=products)


def system(
    name: str,
    route: str = "exact",
    end: float = 0.9,
    categories: dict[str, dict[str, Figure]] | None = None,
) -> SystemScores:
    curve = [end * k / 100 for k in range(1, 101)]
    return SystemScores.model_validate(
        {
            **{"system": name, "route": route, "figures": {}, "curve": curve, "seconds": {}},
            "categories": [
                CategoryScores(category=category, figures=figures)
                for category, figures in (categories or {}).items()
            ],
        }
    )


def task(*systems: SystemScores, title: str = "a task") -> TaskScores:
    counts = ("queries", "query_products", "gallery", "gallery_products", "right_answers")
    return TaskScores.model_validate(
        {
            **{"name": "task", "title": title, "note": "", "removed": 0, "duplicates": 0},
            **dict.fromkeys(counts, 1),
            **{"left_out": {}, "systems": systems, "comparisons": [], "worst": []},
        }
    )


def routes(scores: TaskScores) -> list[tuple[str, str]]:
    return [(line.system, line.route) for line in in_order(scores.systems)]


def boxes(plot: Plot, texts: list[Text]) -> list[tuple[float, float, float, float]]:
    """Where texts stand in the drawn picture, as fractions of it: left, bottom, right, top."""
    canvas = FigureCanvasAgg(plot)
    canvas.draw()
    width, height = canvas.get_width_height()
    found = [Text.get_window_extent(text, canvas.get_renderer()) for text in texts]
    return [(box.x0 / width, box.y0 / height, box.x1 / width, box.y1 / height) for box in found]


def test_an_index_route_comes_right_after_its_exact_one() -> None:
    scores = task(
        *(system("b"), system("c", "index"), system("a", "index"), system("b", "index")),
        *(system("a"), system("d")),
    )
    assert routes(scores) == [
        *(("b", "exact"), ("b", "index"), ("c", "index")),
        *(("a", "exact"), ("a", "index"), ("d", "exact")),
    ]


def test_recall_curves_are_drawn_as_they_are() -> None:
    scores = task(system("a", end=0.8), system("b", end=0.5), system("a", "index", end=0.7))
    axes = recall_plot(scores).axes[0]
    assert axes.get_xscale() == "log"
    assert [tick.get_text() for tick in axes.get_xticklabels()] == (
        ["1", "2", "5", "10", "20", "50", "100"]
    )
    drawn = axes.get_lines()
    assert [line.get_linestyle() for line in drawn] == ["-", "--", "-"]
    for line, end in zip(drawn, (0.8, 0.7, 0.5), strict=True):
        np.testing.assert_array_equal(line.get_xdata(), range(1, 101))
        np.testing.assert_allclose(line.get_ydata(), [end * k / 100 for k in range(1, 101)])
    colours = [to_hex(line.get_color()) for line in drawn]
    assert colours[0] == colours[1] != colours[2]
    names = [text for text in axes.texts if isinstance(text, Annotation)]
    assert [(text.get_text(), to_hex(text.get_color())) for text in names] == (
        list(zip(["a", "a (index)", "b"], colours, strict=True))
    )
    assert [text.xy[1] for text in names] == pytest.approx([0.8, 0.7, 0.5])


@pytest.mark.parametrize("count", [1, 4, 14])
@pytest.mark.parametrize("end", [0.0, 0.02, 1.0])
def test_names_stay_inside_and_apart_where_all_curves_end_together(count: int, end: float) -> None:
    long = "a/very-long-name-of-an-encoder-with-weights-of-its-own"
    systems = [
        system(f"{number}{long}", route, end)
        for number in range(count)
        for route in ("exact", "index")
    ]
    plot = recall_plot(task(*systems, title="x" * 300))
    names: list[Text] = [text for text in plot.axes[0].texts if isinstance(text, Annotation)]
    assert len(names) == 2 * count
    found = boxes(plot, [*names, *plot.axes[0].get_xticklabels(), *plot.texts])
    assert all(min(box) >= 0 and max(box) <= 1 for box in found)
    for one, other in combinations(found[: 2 * count], 2):
        assert one[3] <= other[1] or other[3] <= one[1]


@given(st.lists(st.floats(0, 1), min_size=1, max_size=20))
def test_spread_places(values: list[float]) -> None:
    places = _spread(values, 0.05, 1.0)
    ranked = sorted(places)
    assert -1e-9 <= ranked[0] <= ranked[-1] <= 1 + 1e-9
    assert all(b - a >= 0.05 - 1e-9 for a, b in pairwise(ranked))
    by_value = sorted(range(len(values)), key=lambda n: values[n])
    for low, high in pairwise(by_value):
        assert values[low] == values[high] or places[low] < places[high]
    if all(b - a >= 0.05 for a, b in pairwise(sorted(values))):
        assert places == pytest.approx(values)


def test_the_largest_categories_of_the_exact_routes() -> None:
    sizes = {f"c{n:02}": {"R@1": figure(0.1), "R@10": figure(0.3, queries=n)} for n in range(1, 31)}
    scores = task(
        system("plain"),
        system("a", "index", categories={"c30": {"R@10": figure(0.9)}}),
        system("a", categories=sizes),
        system("b", "index", categories={"c29": {"R@10": figure(0.2)}, "new": {"R@1": figure(1)}}),
    )
    shown = by_category(scores)
    assert shown is not None
    assert shown.measure == "R@10"
    assert [(line.system, line.route) for line in shown.systems] == [
        ("a", "exact"),
        ("b", "index"),
    ]
    assert shown.categories == 30
    # c29 has more queries in `a` than in `b`; that is its size.
    assert [category for category, _ in shown.rows] == [f"c{n}" for n in range(30, 10, -1)]
    assert len(shown.rows) == CATEGORIES
    assert {name: one.micro.mean for name, one in shown.rows[1][1].items()} == {"a": 0.3, "b": 0.2}
    assert set(shown.rows[0][1]) == {"a"}


def test_categories_without_recall_at_10_and_without_anything() -> None:
    assert by_category(task()) is None
    assert by_category(task(system("a"))) is None
    assert by_category(task(system("a", categories={"x": {}}))) is None
    shown = by_category(task(system("a", categories={"x": {"AP": figure(0.5), "RR": figure(1)}})))
    assert shown is not None
    assert shown.measure == "AP"


def test_no_more_systems_than_can_be_read() -> None:
    systems = [system(f"s{n}", categories={"x": {"R@10": figure(0.5)}}) for n in range(9)]
    shown = by_category(task(*systems))
    assert shown is not None
    assert [line.system for line in shown.systems] == [f"s{n}" for n in range(SYSTEMS)]


def test_intervals_by_category() -> None:
    """Bars go from low to high; a category of one product has a hollow dot and no bar."""
    first = {"big": {"R@10": figure(0.5, 90)}, "small": {"R@10": figure(0.7, 8, products=1)}}
    second = {"big": {"R@10": figure(0.4, 90)}}
    scores = task(system("a", categories=first), system("b", categories=second))
    shown = by_category(scores)
    assert shown is not None
    axes = category_plot(scores, shown).axes[0]
    assert [tick.get_text() for tick in axes.get_yticklabels()] == [
        "big   n = 90",
        "small   n = 8",
    ]
    bars, dots = [], []
    for line in axes.get_lines():
        x, y = list(line.get_xdata()), list(line.get_ydata())
        row = round(float(y[0])) if y else -1
        if len(x) == 2 and x[0] != 0:  # not a rule between two categories
            bars.append((row, pytest.approx(x)))
        elif len(x) == 1:
            dots.append((row, x[0], to_hex(line.get_markerfacecolor()) == "#ffffff"))
    assert bars == [(0, [0.4, 0.55]), (0, [0.3, 0.45])]
    assert dots == [(0, 0.5, False), (1, 0.7, True), (0, 0.4, False)]


def test_hard_names_are_drawn_as_they_are_and_inside() -> None:
    names = ["_hidden", "$x_1$ and $y", "a | b", "Home > Kitchen & Dining > Mugs > " * 3]
    categories = {name: {"R@10": figure(0.5)} for name in [*names, "", "two\nlines"]}
    systems = [system(name, categories=categories) for name in names]
    scores = task(*systems, title="$tit_le$")
    shown = by_category(scores)
    assert shown is not None
    plot = category_plot(scores, shown)
    legend = plot.legends[0]
    assert legend.get_title().get_text() == "$tit_le$"
    texts = [text.get_text() for text in legend.get_texts()]
    assert texts[:3] == names[:3]
    assert texts[3].startswith("Home > Kitchen")
    assert "…" in texts[3]
    labels = list(plot.axes[0].get_yticklabels())
    assert "two lines   n = 20" in [label.get_text() for label in labels]
    found = boxes(plot, [*legend.get_texts(), *labels, legend.get_title()])
    assert all(min(box) >= -1e-9 and max(box) <= 1 for box in found)
    assert found[-1][1] >= max(top for _, _, _, top in found[:-1])  # the title is above all
    boxes(recall_plot(scores), [])  # drawing it must not fail over "$"


def test_a_saved_plot_is_the_same_to_the_byte(tmp_path: Path) -> None:
    scores = task(system("a", categories={"x": {"R@10": figure(0.5)}}), system("b"))
    shown = by_category(scores)
    assert shown is not None
    for name in ("one", "two"):
        save(recall_plot(scores), tmp_path / f"recall-{name}.png")
        save(category_plot(scores, shown), tmp_path / f"categories-{name}.png")
    for plot in ("recall", "categories"):
        one, two = (tmp_path / f"{plot}-{name}.png" for name in ("one", "two"))
        assert one.read_bytes() == two.read_bytes()
        with Image.open(one) as picture:
            assert set(picture.info) <= {"dpi"}
            assert 800 <= picture.width <= 1400
    assert len(list(tmp_path.iterdir())) == 4


def test_without_matplotlib(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(MissingDependencyError, match=r"pip install 'shoplens\[bench\]'"):
        recall_plot(task(system("a")))
