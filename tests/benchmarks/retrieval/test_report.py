"""The report: its page is read back with a Markdown parser and compared with the scores."""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st
from markdown_it import MarkdownIt
from PIL import Image

from benchmarks.retrieval.report import _escaped, _number, write_report
from benchmarks.retrieval.scored import Figure, Range, Scores, SystemScores
from indexing.errors import BenchmarkError, MissingDependencyError

PARSER = MarkdownIt("commonmark").enable("table")
HARD = "Mugs | [cups](x) *new* <b> `a` \\ _b_ $c$ & &amp; #1 ~~x~~ ![y]\nand more"
HARD_LINE = HARD.replace("\n", " ")


def spread(mean: float) -> Range:
    return Range(mean=mean, low=mean - 0.0612345678, high=mean + 0.0412345678)


def figure(mean: float, queries: int = 200, products: int = 40) -> Figure:
    return Figure(micro=spread(mean), macro=spread(mean / 2), queries=queries, products=products)


def system(name: str, route: str, base: float, **more: Any) -> SystemScores:
    names = ("R@1", "R@5", "R@10", "AP", "RR", "R_frac@10", "strict R@1")
    figures = {key: figure(base + 0.0123456789 * n) for n, key in enumerate(names)}
    return SystemScores.model_validate(
        {
            **{"system": name, "route": route, "figures": {**figures, **more.pop("figures", {})}},
            **{"curve": [min(1, base + k / 200) for k in range(100)], "categories": []},
            **{"seconds": {"embed": 1.23456789, "rank": 0.5}, **more},
        }
    )


def category(name: str, mean: float, queries: int, products: int) -> dict[str, Any]:
    return {"category": name, "figures": {"R@10": figure(mean, queries, products)}}


def example() -> Scores:
    """Two tasks. Photos: three systems, one of them by both routes, with categories. Texts: two
    systems, without categories, comparisons and duplicates."""
    categories = [category(HARD, 0.4, 30, 12), category("one product", 0.7, 50, 1)]
    counts = {"queries": 2485, "query_products": 81, "gallery": 1200, "gallery_products": 810}
    counts |= {"right_answers": 3000, "removed": 7, "duplicates": 12}
    comparison = {
        **{"system": "a", "route": "exact", "against": "b|b", "against_route": "index"},
        **{"measure": "R@1", "difference": {"mean": 0.0671, "low": -0.0119, "high": 0.1214}},
        **{"wins": 1499, "losses": 0, "mcnemar_p": 1.23456789e-12},
    }
    photos: dict[str, Any] = {
        **{"name": "photo-icon", "title": HARD, "note": HARD, **counts},
        **{"left_out": {"a | b": 2, "too dark": 1234}, "comparisons": [comparison]},
        "systems": [
            system("b|b", "exact", 0.3, categories=categories, note="with [notes]"),
            system("a", "exact", 0.5, figures={"nDCG@10": figure(0.61)}, categories=categories[:1]),
            system("_c_", "exact", 0.1),
            system("b|b", "index", 0.29, categories=categories),
        ],
        "worst": [
            {"query": "q0", "rank": 87, "right": "g1", "answers": ["g0", "g2"]},
            {"query": "q1", "rank": 2, "right": "g1", "answers": ["g0", "g1"]},
        ],
    }
    comparison = {
        **comparison,
        **{"measure": "AP", "mcnemar_p": None, "wins": 3, "losses": 4, "against_route": "exact"},
    }
    photos["comparisons"].append(comparison)
    texts = {
        **{"name": "text-product", "title": "Texts", "note": "", **counts, "duplicates": 0},
        **{"left_out": {}, "comparisons": [], "worst": photos["worst"]},
        "systems": [system("a", "exact", 0.2), system("bm25", "index", 0.4)],
    }
    return Scores.model_validate(
        {
            **{"command": "shoplens bench\n  --data *", "shoplens_version": "0.1.0"},
            **{"resamples": 1000, "seed": 3, "tasks": [photos, texts]},
        }
    )


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return prepared(tmp_path / "run")


def prepared(folder: Path) -> Path:
    """A run's folder with the tables that the sheets need; half of the pictures are there."""
    for name, texts in (("photo-icon", None), ("text-product", "a red mug")):
        (folder / name).mkdir(parents=True)
        Image.new("RGB", (30, 30), "red").save(folder / name / "red.png")
        pictures = [str(folder / name / file) for file in ("red.png", "gone.png", "red.png")]
        for side, ids in (("queries", ["q0", "q1"]), ("gallery", ["g0", "g1", "g2"])):
            columns = {
                "id": ids,
                "product": pa.array(range(len(ids)), pa.int64()),
                "category": pa.array([None for _ in ids], pa.string()),
                "text": pa.array([texts for _ in ids], pa.string()),
                "picture": pa.array(
                    [None if texts else p for p in pictures[: len(ids)]], pa.string()
                ),
            }
            pq.write_table(pa.table(columns), folder / name / f"{side}.parquet")
    return folder


Table = list[list[str]]


def read(page: str) -> list[tuple[str, str]]:
    """The page as a parser sees it: (kind, text) of headings, paragraphs, code, list items and
    table cells ("th" and "td"), with images as ("image", target)."""
    found: list[tuple[str, str]] = []
    tokens = PARSER.parse(page)
    for before, token in zip([None, *tokens], tokens, strict=False):
        if token.type in ("code_block", "html_block"):
            found.append((token.type, token.content))
        if token.type != "inline" or before is None:
            continue
        children = token.children or []
        kinds = {child.type for child in children}
        assert "html_inline" not in kinds
        found += [("image", str(c.attrs["src"])) for c in children if c.type == "image"]
        text = "".join("\n" if c.type == "softbreak" else c.content for c in children)
        found.append((before.tag, text))
    return found


def section(page: str, title: str) -> list[tuple[str, str]]:
    """What stands under the second-level heading `title`."""
    items = read(page)
    start = items.index(("h2", title))
    later = [n for n, (kind, _) in enumerate(items) if kind == "h2" and n > start]
    return items[start : later[0] if later else None]


def tables(items: list[tuple[str, str]]) -> list[Table]:
    """The tables among these items, the first row the heads."""
    found: list[Table] = []
    cells: list[tuple[str, str]] = [item for item in items if item[0] in ("th", "td")]
    for number, (kind, text) in enumerate(cells):
        if kind == "th" and (number == 0 or cells[number - 1][0] == "td"):
            found.append([[]])
        table = found[-1]
        if kind == "td" and len(table[-1]) == len(table[0]):
            table.append([])
        table[-1].append(text)
    assert all(len(row) == len(table[0]) for table in found for row in table)
    return found


def numbers(cell: str) -> list[float]:
    """`.368 [.290, .451]` as three numbers."""
    assert re.fullmatch(r"[+-]?\d?\.\d{3} \[[+-]?\d?\.\d{3}, [+-]?\d?\.\d{3}\]", cell), cell
    return [float(part) for part in re.split(r"[ ,\[\]]+", cell) if part]


def values(value: Range) -> Any:
    return pytest.approx([value.mean, value.low, value.high], abs=0.0005001)


def test_each_number_of_the_page_is_that_of_the_scores(folder: Path) -> None:
    scores = example()
    page = write_report(scores, folder).read_text(encoding="utf-8")
    photos, texts = scores.tasks
    ordered = [photos.systems[n] for n in (0, 3, 1, 2)]  # the index route below its exact one
    counts, main, macro, others, compared, categories = tables(section(page, HARD_LINE))
    assert counts[1] == ["2,485", "81", "1,200", "810", "3,000", "7", "12"]
    names = ["R@1", "R@5", "R@10", "AP", "RR", "nDCG@10"]
    assert main[0] == ["system", "route", "R@1", "R@5", "R@10", "mAP (AP)", "MRR (RR)", "nDCG@10"]
    assert [row[:2] for row in main[1:]] == [
        *(["b|b", "exact"], ["b|b", "index"], ["a", "exact"], ["_c_", "exact"])
    ]
    for line, row, macro_row in zip(ordered, main[1:], macro[1:], strict=True):
        assert macro_row[:2] == row[:2]
        for name, cell in zip(names, row[2:], strict=True):
            if name in line.figures:
                assert numbers(cell) == values(line.figures[name].micro)
            else:
                assert (cell, line.system == "a") == ("–", False)
        for name, cell in zip(names[:3], macro_row[2:], strict=True):
            assert numbers(cell) == values(line.figures[name].macro)
    assert others[0] == ["measure", "queries", "b|b", "b|b (index)", "a", "_c_"]
    assert [row[:2] for row in others[1:]] == [["R_frac@10", "200"], ["strict R@1", "200"]]
    for row in others[1:]:
        for line, cell in zip(ordered, row[2:], strict=True):
            assert numbers(cell) == values(line.figures[row[0]].micro)
    assert compared[1:] == [
        ["a", "b|b (index)", "R@1", "+.067 [-.012, +.121]", "1,499", "0", "< .001"],
        ["a", "b|b", "AP", "+.067 [-.012, +.121]", "–", "–", "–"],
    ]
    assert categories == [
        ["category", "queries", "products", "b|b", "a"],
        ["one product", "50", "1", ".700", "–"],  # one product has no interval
        [HARD_LINE, "30", "12", ".400 [.339, .441]", ".400 [.339, .441]"],
    ]
    counts, main, macro = tables(section(page, "Texts"))[:3]
    assert main[0] == ["system", "route", "R@1", "R@5", "R@10", "mAP (AP)", "MRR (RR)"]
    assert [row[:2] for row in main[1:]] == [["a", "exact"], ["bm25", "index"]]
    assert numbers(main[2][3]) == values(texts.systems[1].figures["R@5"].micro)


def test_words_of_the_page(folder: Path) -> None:
    page = write_report(example(), folder).read_text(encoding="utf-8")
    items = read(page)
    assert items[0] == ("h1", "Retrieval benchmark")
    assert ("code_block", "shoplens bench\n  --data *\n") in items
    text = " ".join(text for _, text in items)
    for words in ("1,000 resamples", "seed 3", "rounded up, stand before a right one", "strict"):
        assert words in text
    photos = section(page, HARD_LINE)
    assert ("p", f"photo-icon. {HARD_LINE}") in photos
    assert ("p", "left out, a | b: 2") in photos
    assert ("p", "left out, too dark: 1,234") in photos
    assert ("p", "b|b: with [notes]") in photos
    assert items[-1][1].endswith("report.json.")
    kinds = [text for kind, text in section(page, "Texts") if kind == "h3"]
    assert kinds == ["Results", "Other measures", "Recall curves", "Worst queries of a"]


def test_the_page_shows_all_pictures_that_were_made(folder: Path) -> None:
    before = set(folder.rglob("*.png"))
    page = write_report(example(), folder).read_text(encoding="utf-8")
    shown = [target for kind, target in read(page) if kind == "image"]
    assert shown == [
        *(f"photo-icon/{name}.png" for name in ("recall-curves", "categories", "worst")),
        *(f"text-product/{name}.png" for name in ("recall-curves", "worst")),
    ]
    assert {folder / target for target in shown} == set(folder.rglob("*.png")) - before
    for target in shown:
        with Image.open(folder / target) as picture:
            assert picture.width <= 1400


def test_the_json_holds_the_scores_to_six_decimals(folder: Path) -> None:
    scores = example()
    write_report(scores, folder)
    text = (folder / "report.json").read_text(encoding="utf-8")
    assert text.startswith('{\n  "command"')
    back = Scores.model_validate_json(text)

    def compare(one: Any, other: Any, key: str = "") -> None:
        if isinstance(one, dict):
            assert list(one) == list(other)
            for name in one:
                compare(one[name], other[name], name)
        elif isinstance(one, list):
            assert len(one) == len(other)
            for left, right in zip(one, other, strict=True):
                compare(left, right)
        elif isinstance(one, float) and key != "mcnemar_p":
            assert other == pytest.approx(one, abs=5.1e-7)
            assert round(other, 6) == other
        elif key == "mcnemar_p" and one is not None:
            assert other == 1.23457e-12  # rounded to 0 it would say more than was measured
        else:
            assert one == other

    compare(scores.model_dump(), back.model_dump())


def test_noise_in_the_last_bits_changes_no_byte(folder: Path, tmp_path: Path) -> None:
    def nudged(value: Any) -> Any:
        if isinstance(value, float):
            return value * (1 - 1e-13) if value else -1e-17
        if isinstance(value, dict):
            return {key: nudged(one) for key, one in value.items()}
        return [nudged(one) for one in value] if isinstance(value, list) else value

    content = json.loads(example().model_dump_json())
    content["tasks"][0]["comparisons"][1]["difference"] = {"mean": 0.0, "low": 0.0, "high": 0.0}
    write_report(Scores.model_validate(content), folder)
    other = prepared(tmp_path / "other")
    write_report(Scores.model_validate(nudged(content)), other)
    names = sorted(path.relative_to(folder) for path in folder.rglob("*") if path.is_file())
    assert names == sorted(path.relative_to(other) for path in other.rglob("*") if path.is_file())
    for name in names:
        if name.suffix != ".parquet":
            assert (folder / name).read_bytes() == (other / name).read_bytes(), name


def test_a_report_of_its_own_json_is_the_same_page(folder: Path) -> None:
    page = write_report(example(), folder)
    first = page.read_bytes()
    json_bytes = (folder / "report.json").read_bytes()
    assert write_report(Scores.model_validate_json(json_bytes), folder) == page
    assert (page.read_bytes(), (folder / "report.json").read_bytes()) == (first, json_bytes)


def test_a_task_without_systems_and_a_run_without_tasks(tmp_path: Path) -> None:
    scores = example()
    empty = scores.tasks[1].model_copy(update={"systems": [], "worst": []})
    page = write_report(scores.model_copy(update={"tasks": [empty]}), tmp_path).read_text()
    assert [text for kind, text in section(page, "Texts") if kind == "h3"] == ["Results"]
    page = write_report(scores.model_copy(update={"tasks": []}), tmp_path).read_text()
    assert [kind for kind, _ in read(page) if kind.startswith("h")] == ["h1"]


def test_what_is_missing_stops_the_page_and_not_the_json(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (folder / "text-product" / "gallery.parquet").unlink()
    with pytest.raises(BenchmarkError, match=r"gallery\.parquet cannot be read"):
        write_report(example(), folder)
    (folder / "report.json").unlink()
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(MissingDependencyError, match=r"pip install 'shoplens\[bench\]'"):
        write_report(example(), folder)
    assert Scores.model_validate_json((folder / "report.json").read_bytes()).tasks
    assert not (folder / "report.md").exists()


@given(st.floats(-20, 20), st.sampled_from(["", "+"]))
def test_numbers(value: float, sign: str) -> None:
    text = _number(value, sign)
    assert float(text) == pytest.approx(value, abs=0.0005001)
    assert not text.lstrip("+-").startswith("0")
    assert re.fullmatch(r"[+-]?\d*\.\d{3}", text)
    assert (text == ".000") == (abs(value) < 0.0005) or abs(abs(value) - 0.0005) < 1e-9
    assert not (sign == "" and text.startswith("+"))


@pytest.mark.parametrize(
    ("value", "sign", "text"),
    [
        *((1.0, "", "1.000"), (0.9996, "", "1.000"), (0.36849, "", ".368"), (0.0, "", ".000")),
        *((-0.0001, "", ".000"), (0.0, "+", ".000"), (-1.5, "", "-1.500"), (10.25, "", "10.250")),
        *((0.25, "+", "+.250"), (-0.25, "+", "-.250")),
    ],
)
def test_some_numbers(value: float, sign: str, text: str) -> None:
    assert _number(value, sign) == text


@given(st.text(max_size=40))
def test_any_text_is_shown_as_it_is(text: str) -> None:
    """In a table, where it must not break the row either."""
    escaped = _escaped(text)
    page = f"| head | x |\n| --- | --- |\n| - {escaped} | 1 |"
    (table,) = tables(read(page))
    shown = " ".join(text.split())
    if shown.isprintable():
        assert table[1] == [f"- {shown}".strip(), "1"]
