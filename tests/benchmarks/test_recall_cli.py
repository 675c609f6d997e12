"""The commands `bench recall` and `bench score`, end to end on a few squares."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import typer
from PIL import Image
from typer.testing import CliRunner, Result

import shoplens
from benchmarks import cli
from benchmarks.retrieval.scored import Scores
from indexing.build import build_index
from indexing.catalog import read_catalog
from indexing.errors import BenchmarkError, CatalogError, ShoplensError

app = typer.Typer()
app.command()(cli.recall)
app.command()(cli.score)

COLOURS = {"r": ("red", "tomato"), "b": ("blue", "navy"), "g": ("green", "lime")}


@pytest.fixture(autouse=True)
def encoder(monkeypatch: pytest.MonkeyPatch, tiny_encoder: Any) -> Any:
    monkeypatch.setattr("indexing.models.load_encoder", {"tiny": tiny_encoder}.__getitem__)
    return tiny_encoder


@pytest.fixture
def catalog(tmp_path: Path) -> Path:
    """Three products with two pictures, and a row without any."""
    lines: list[dict[str, Any]] = [{"id": "x", "title": "nothing to see"}]
    for number, colours in COLOURS.items():
        for place, colour in enumerate(colours):
            Image.new("RGB", (8, 8), colour).save(tmp_path / f"{number}{place}.png")
        images = [{"path": f"{number}{place}.png"} for place in range(2)]
        fields = {"title": f"{colours[0]} mug", "category": f"{colours[1]} things"}
        lines.append({"id": number, **fields, "images": images})
    (tmp_path / "catalog.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return tmp_path / "catalog.jsonl"


@pytest.fixture
def run(tmp_path: Path) -> Callable[..., Result]:
    def invoke(*arguments: object) -> Result:
        return CliRunner().invoke(app, [str(argument) for argument in arguments])

    return invoke


def report(folder: Path) -> Scores:
    return Scores.model_validate_json((folder / "report.json").read_text())


def without_seconds(folder: Path) -> dict[str, Any]:
    content: dict[str, Any] = json.loads((folder / "report.json").read_text())
    for task in content["tasks"]:
        for system in task["systems"]:
            assert system.pop("seconds")
    return content


def test_a_catalog_of_ones_own(
    run: Callable[..., Result], catalog: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "argv", ["shoplens", "bench", "recall", "a b"])
    out = tmp_path / "out"
    arguments = ["recall", "tiny", "--catalog", catalog, "--views", "--titles", "--out", out]
    arguments += ["--against", "pixels", "--against", "bm25"]
    result = run(*arguments)
    assert result.exit_code == 0, result.exception
    assert f"report: {out / 'report.md'}" in result.stdout
    assert "title → main picture (3 queries)" in result.stdout
    assert "1 rows and 0 pictures were left out" in result.stderr
    scores = report(out)
    assert scores.command == "shoplens bench recall 'a b'"
    assert (scores.resamples, scores.seed) == (1000, 0)
    assert {task.name: [system.system for system in task.systems] for task in scores.tasks} == {
        "titles": ["tiny", "bm25"],
        "views-all-pairs": ["tiny", "pixels"],
        "views-aux-main": ["tiny", "pixels"],
    }
    figures = scores.tasks[0].systems[0].figures
    assert figures["R@1"].micro.mean == 1  # a tiny encoder reads colours
    assert scores.tasks[0].title in (out / "report.md").read_text()

    # Scored again, without searching, it is the same report, to the byte.
    first = {name: (out / name).read_bytes() for name in ("report.json", "report.md")}
    for name in first:
        (out / name).write_text("something else")
    monkeypatch.setattr(sys, "argv", ["shoplens", "bench", "score", "out"])
    result = run("score", out)
    assert result.exit_code == 0, result.exception
    assert {name: (out / name).read_bytes() for name in first} == first

    # Searched again, only the seconds differ.
    before = without_seconds(out)
    monkeypatch.setattr(sys, "argv", ["shoplens", "bench", "recall", "a b"])
    assert run(*arguments).exit_code == 0
    assert without_seconds(out) == before


def test_an_index_is_measured_with_the_encoder_that_made_it(
    run: Callable[..., Result], catalog: Path, encoder: Any, tmp_path: Path
) -> None:
    build_index(read_catalog(catalog), encoder, tmp_path / "index")
    encoder.encoded = 0
    result = run(
        "recall", tmp_path / "index", "--catalog", catalog, "--views", "--out", tmp_path / "o"
    )
    assert result.exit_code == 0, result.exception
    assert encoder.encoded == 0
    for task in report(tmp_path / "o").tasks:
        exact, by_index = task.systems
        assert [exact.route, by_index.route] == ["exact", "index"]
        assert exact.figures == by_index.figures
        assert exact.curve == by_index.curve
    assert "tiny (index)" in result.stdout


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ([], BenchmarkError, "give either a SPLIT or --catalog with --views or --titles"),
        (["fashion", "--catalog", "CATALOG"], BenchmarkError, "give either a SPLIT or --catalog"),
        (["--catalog", "CATALOG"], BenchmarkError, "add --views, --titles or both"),
        (["grocery", "--views"], BenchmarkError, "--views and --titles are for a --catalog"),
        (["fashoin"], BenchmarkError, "split 'fashoin' is neither one of fashion, grocery nor a"),
        (["FOLDER"], BenchmarkError, "a split of ESCI needs --images-root"),
        (["FOLDER", "--images-root", "FOLDER"], BenchmarkError, "make the split with"),
        (["fashion", "--data", "nowhere"], CatalogError, "nowhere/fashion/catalog.csv: cannot be"),
        (["grocery"], CatalogError, "grocery/catalog.jsonl: cannot be read"),
        (["--catalog", "no.csv", "--views"], CatalogError, "no.csv: cannot be read"),
        (
            ["--catalog", "CATALOG", "--views", "--against", "bm25"],
            BenchmarkError,
            "bm25 cannot answer any of: views-aux-main, views-all-pairs",
        ),
        (
            ["--catalog", "CATALOG", "--titles", "--against", "pixels"],
            BenchmarkError,
            "pixels cannot answer any of: titles",
        ),
        (
            ["--catalog", "CATALOG", "--views", "--baselines"],
            BenchmarkError,
            "untrained needs an open_clip model, and tiny is none",
        ),
        (["--catalog", "CATALOG", "--views", "--map", "title"], CatalogError, "--map 'title'"),
    ],
)
def test_errors_say_in_a_line_what_is_wrong(
    arguments: list[str], error: type[ShoplensError], message: str,
    run: Callable[..., Result], catalog: Path, tmp_path: Path, encoder: Any,
) -> None:  # fmt: skip
    paths = {"CATALOG": str(catalog), "FOLDER": str(tmp_path)}
    out = tmp_path / "out"
    result = run("recall", "tiny", *[paths.get(a, a) for a in arguments], "--out", out)
    assert type(result.exception) is error
    assert message in str(result.exception)
    assert "\n" not in str(result.exception)
    assert encoder.encoded == 0
    assert not out.exists()


def test_a_folder_without_answers_cannot_be_scored(
    run: Callable[..., Result], tmp_path: Path
) -> None:
    result = run("score", tmp_path / "nowhere")
    assert type(result.exception) is BenchmarkError
    assert "nowhere holds no stored answers" in str(result.exception)


def test_a_stop_says_how_to_go_on(
    run: Callable[..., Result], catalog: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stop(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("benchmarks.retrieval.run.run_tasks", stop)
    result = run("recall", "tiny", "--catalog", catalog, "--views", "--out", tmp_path / "out")
    assert result.exit_code == 130
    assert "stopped; run the same command to go on" in result.stderr


def test_the_door_shows_errors_as_one_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["shoplens", "bench", "recall", "tiny", "no-split"])
    with pytest.raises(SystemExit) as caught:
        shoplens.main()
    assert caught.value.code == 2
    [line] = capsys.readouterr().err.splitlines()
    assert line.startswith("error: split 'no-split' is neither one of fashion, grocery")
