"""The edge of the command line: one line for an error, a traceback only when asked."""

from __future__ import annotations

import re
import sys
from pathlib import Path

import pytest

import shoplens


def run(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> int:
    monkeypatch.setattr(sys, "argv", ["shoplens", *arguments])
    with pytest.raises(SystemExit) as stop:
        shoplens.main()
    return int(stop.value.code or 0)


def test_an_error_is_one_line_and_exit_code_2(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    assert run(monkeypatch, "info", str(tmp_path / "missing")) == 2
    shown = capsys.readouterr()
    assert shown.out == ""
    assert shown.err.startswith(f"error: {tmp_path / 'missing'} does not exist")
    assert shown.err.count("\n") == 1


def test_debug_shows_the_traceback(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(sys, "argv", ["shoplens", "--debug", "info", str(tmp_path / "missing")])
    with pytest.raises(shoplens.ShoplensError):
        shoplens.main()


def test_a_place_that_cannot_be_written_is_named(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    (tmp_path / "file").write_text("")
    assert run(monkeypatch, "demo", "--out", str(tmp_path / "file" / "below")) == 2
    assert re.fullmatch(r"error: .*file.*: Not a directory\n", capsys.readouterr().err)


def test_an_unforeseen_error_is_one_line_too(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail(*_: object) -> None:
        raise ZeroDivisionError("division\nby zero")

    monkeypatch.setattr("indexing.store.open_index", fail)
    assert run(monkeypatch, "info", "anything") == 1
    assert "error: ZeroDivisionError: division by zero" in capsys.readouterr().err


@pytest.mark.parametrize(
    "command",
    [
        *([], ["categorize"], ["clean"], ["convert"], ["demo"], ["doctor"], ["explain"], ["index"]),
        *(
            ["info"],
            ["search"],
            ["serve"],
            ["train"],
            ["train", "albef"],
            ["train", "categories"],
            ["train", "clip"],
        ),
        *(["bench"], ["bench", "ann"], ["bench", "categories"], ["bench", "esci-split"]),
        *(["bench", "pruning"], ["bench", "recall"], ["bench", "score"], ["bench", "speed"]),
    ],
)
def test_every_help_has_an_example(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], command: list[str]
) -> None:
    assert run(monkeypatch, *command, "--help") == 0
    shown = capsys.readouterr().out
    assert "Example" in shown
    assert "shoplens " in shown.split("Example", 1)[1]


def test_the_version_is_the_packages(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(monkeypatch, "--version") == 0
    assert capsys.readouterr().out.startswith("shoplens 0.")
