"""`shoplens bench pruning`: what it refuses before any work, and where its results go."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import typer
from typer.testing import CliRunner, Result

from benchmarks.pruning import albef_fashion, albef_toy, cli, fashion, runs, toy
from benchmarks.pruning.albef_arms import ARMS as ALBEF_ARMS
from benchmarks.pruning.arms import ARMS
from indexing.errors import BenchmarkError

app = typer.Typer()
app.command()(cli.pruning)
SECOND = ["second standard", "second calibrated"]


def run(*arguments: object) -> Result:
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


@pytest.fixture
def made(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Names of the starts that were made, each of no weights."""
    names: list[str] = []

    def make(name: str, start: Path) -> None:
        names.append(name)
        start.mkdir()
        (start / "model.safetensors").touch()

    monkeypatch.setattr(toy, "make_start", partial(make, "toy"))
    monkeypatch.setattr(fashion, "prepare", lambda data, work: make(str(data), work / "start"))
    monkeypatch.setattr(albef_toy, "make_start", partial(make, "albef toy"))
    monkeypatch.setattr(
        albef_fashion, "prepare", lambda data, work: make(f"albef {data}", work / "start")
    )
    return names


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """What runs were asked for; one in ten points better than that before it."""
    calls: list[dict[str, Any]] = []

    def run_all(
        run_arm: Any,
        arms: Sequence[str],
        seeds: int,
        file: Path,
        workers: int,
        note: Any,
        *,
        reference: str,
    ) -> list[dict[str, Any]]:
        note("[an arm], seed 0")
        calls.append(
            {
                **{"run": run_arm.func, "with": run_arm.keywords, "arms": list(arms)},
                **{"seeds": seeds, "file": file, "workers": workers, "reference": reference},
            }
        )
        measures = [f"{t} R@{k}" for t in ("picture", "title", "clean") for k in (1, 5, 10)]
        return [
            {"arm": arm, "seed": seed, **dict.fromkeys(measures, number / 10)}
            for number, arm in enumerate(arms)
            for seed in range(seeds)
        ]

    monkeypatch.setattr(runs, "run_all", run_all)
    return calls


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["--arms", "standard,papre"], "unknown arm 'papre': give some of standard, paper, "),
        (["--arms", "second standard"], "unknown arm 'second standard': give some of"),
        (["--arms", "standard,truncated"], "keep as much as the arm calibrated: add it"),
        (["--model", "blip"], "--model blip: give clip or albef"),
        (["--model", "albef", "--arms", "online"], "unknown arm 'online': give some of standard, "),
        (["--model", "albef", "--arms", "random drop,cross"], "keep as much as the arm all: add"),
    ],
)
def test_what_cannot_be_is_refused_before_any_work(
    arguments: list[str], expected: str, made: list[str], tmp_path: Path
) -> None:
    result = run("--out", tmp_path / "out", *arguments)
    assert isinstance(result.exception, BenchmarkError)
    assert expected in str(result.exception)
    assert made == []
    assert list(tmp_path.iterdir()) == []


def test_drawn_products_are_the_default(
    made: list[str],
    asked: list[dict[str, Any]],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(sys, "argv", ["shoplens", "bench", "pruning", "--out", "a b"])
    out = tmp_path / "out"
    result = run("--out", out, "--workers", 3)
    assert result.exit_code == 0, result.exception
    assert result.stdout == f"{out / 'drawn' / 'report.md'} and pruning.png written\n"
    assert "[an arm], seed 0" in result.stderr
    assert made == ["toy"]
    assert asked == [
        {
            **{"run": toy.run_arm, "with": {"start": out / "drawn" / "start"}},
            **{"arms": list(ARMS), "seeds": 3, "workers": 3},
            **{"file": out / "drawn" / "results.jsonl", "reference": "calibrated"},
        }
    ]
    page = (out / "drawn" / "report.md").read_text()
    assert page.startswith("# Token pruning on drawn products\n")
    assert "    shoplens bench pruning --out 'a b'\n" in page
    for task in ("another view → picture on white", "noisy title → picture", "clean title"):
        assert f"## {task}" in page
    place = list(ARMS).index("oracle")
    assert f"| oracle − standard | {place / 10:+.3f} " in page
    assert (out / "drawn" / "pruning.png").stat().st_size
    assert run("--out", out, "--arms", " standard , oracle", "--seeds", 1).exit_code == 0
    assert made == ["toy"]  # the start is there
    assert (asked[1]["arms"], asked[1]["seeds"]) == (["standard", "oracle"], 1)


def test_real_titles_have_a_folder_and_second_stages_of_their_own(
    made: list[str], asked: list[dict[str, Any]], tmp_path: Path
) -> None:
    out, data = tmp_path / "out", tmp_path / "data"
    for arguments in ([], ["--data", data]):
        result = run("--out", out, "--seeds", 2, *arguments)
        assert result.exit_code == 0, result.exception
    assert made == ["toy", str(data)]
    assert asked[1]["run"] is fashion.run_arm
    assert asked[1]["with"] == {"data": data, "work": out / "real"}
    assert asked[1]["arms"] == [*ARMS, *SECOND]
    assert asked[1]["file"] == out / "real" / "results.jsonl"
    page = (out / "real" / "report.md").read_text()
    assert page.startswith("# Token pruning on real titles\n")
    assert "| second calibrated − second standard | +0.100 " in page


def test_albef_has_folders_arms_and_starts_of_its_own(
    made: list[str], asked: list[dict[str, Any]], tmp_path: Path
) -> None:
    out, data = tmp_path / "out", tmp_path / "data"
    for arguments in ([], ["--data", data], ["--arms", "all, cross mean key"]):
        result = run("--out", out, "--seeds", 2, "--model", "albef", *arguments)
        assert result.exit_code == 0, result.exception
    assert made == ["albef toy", f"albef {data}"]
    seconds = ["second standard", "second cross", "second all"]
    drawn, real, some = asked
    assert drawn["run"] is some["run"] is albef_toy.run_arm
    assert drawn["with"] == {"start": out / "drawn-albef" / "start"}
    assert real["run"] is albef_fashion.run_arm
    assert real["with"] == {"data": data, "work": out / "real-albef"}
    assert drawn["arms"] == real["arms"] == [*ALBEF_ARMS, *seconds]
    assert some["arms"] == ["all", "cross mean key"]
    assert {call["reference"] for call in asked} == {"all"}
    assert real["file"] == out / "real-albef" / "results.jsonl"
    page = (out / "real-albef" / "report.md").read_text()
    assert page.startswith("# Token pruning with ALBEF on real titles\n")
    assert "| second all − second standard | +0.200 " in page


def test_ctrl_c_says_that_it_can_go_on(
    made: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stop(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(runs, "run_all", stop)
    result = run("--out", tmp_path)
    assert result.exit_code == 130
    assert "stopped; run the same command to go on" in result.stderr


def test_results_that_are_there_are_reported_without_a_run(made: list[str], tmp_path: Path) -> None:
    (tmp_path / "drawn").mkdir()
    lines = [{"arm": "standard", "seed": seed, "picture R@1": seed / 2} for seed in range(2)]
    text = "".join(json.dumps(line) + "\n" for line in lines)
    (tmp_path / "drawn" / "results.jsonl").write_text(text)
    result = run("--out", tmp_path, "--arms", "standard", "--seeds", 2)
    assert result.exit_code == 0, result.exception
    half = 12.706 * 0.25
    page = (tmp_path / "drawn" / "report.md").read_text()
    assert f"| standard | 2 | 0.250 [{0.25 - half:.3f}, {0.25 + half:.3f}] |" in page
