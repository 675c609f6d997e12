"""`shoplens clean`: what people, programs and files get, and what is refused."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import pytest
import typer
from PIL import Image
from typer.testing import CliRunner, Result

import shoplens
from indexing import cleaning_cli
from indexing.cleaning import clean, cleaned
from indexing.errors import DuplicateIdError, ModelError, QueryError
from indexing.models import load_encoder
from indexing.models.calibration import calibrate
from indexing.models.clip import ClipEncoder
from indexing.models.token_pruning import TokenPruning

app = typer.Typer()
app.command()(cleaning_cli.clean)
TITLES = [
    "Zurn Z6000-WS1 AquaVantage chrome toilet flush valve (Pack of 2)",
    "Acme women cotton T-shirt red",
    "Acme men leather watch black",
]
MODELS: dict[str, Any] = {}


@pytest.fixture(scope="module", autouse=True)
def _models() -> None:
    plain, pruned = load_encoder("builtin", device="cpu"), load_encoder("builtin", device="cpu")
    assert isinstance(pruned, ClipEncoder)
    pruned.pruning = TokenPruning(calibrate(pruned, TITLES, share=0.4))
    MODELS.update(builtin=plain, model=pruned, other=object())


@pytest.fixture(autouse=True)
def encoder(monkeypatch: pytest.MonkeyPatch) -> ClipEncoder:
    monkeypatch.setattr("indexing.models.load_encoder", MODELS.__getitem__)
    found = MODELS["model"]
    assert isinstance(found, ClipEncoder)
    return found


def run(*arguments: object, width: int = 200) -> Result:
    return CliRunner().invoke(app, list(map(str, arguments)), env={"COLUMNS": str(width)})


def test_words_are_shown_with_scores_and_dropped_ones_in_brackets(encoder: ClipEncoder) -> None:
    result = run("model", *TITLES)
    assert result.exception is None
    assert "\x1b" not in result.stdout  # no colours in a pipe
    lines = result.stdout.splitlines()
    dropped = 0
    for number, words in enumerate(clean(encoder, TITLES)):
        shown = lines[2 * number].split()
        assert len(shown) == len(words)
        for text, word in zip(shown, words, strict=True):
            plain = f"{word.text}({word.score:.3g})"
            assert text == (plain if word.kept else f"[{plain}@1]")
            dropped += not word.kept
        kept = sum(word.kept for word in words)
        assert lines[2 * number + 1] == f"  {kept} of {len(words)} words: {cleaned(words)}"
    assert 3 < dropped < 20
    assert encoder.pruning is not None
    threshold = encoder.pruning.thresholds()[0].item()
    assert lines[-1] == f"layer 1 drops what scores below {threshold:.3g}"


def test_on_a_terminal_dropped_words_are_struck_through(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in (("FORCE_COLOR", "1"), ("TERM", "xterm-256color")):
        monkeypatch.setenv(name, value)
    monkeypatch.delenv("NO_COLOR", raising=False)
    shown = run("model", "Acme mug " + "mug " * 70).stdout
    words = clean(MODELS["model"], ["Acme mug"])[0]
    for word in words:
        assert f"\x1b[{'32' if word.kept else '2;9'}m{word.text}" in shown
    assert "\x1b[9;33mmug" in shown  # unread


def test_unread_words_and_control_characters_are_shown_as_such() -> None:
    shown = run("model", "red\x1b[31m \u200b mug " + "mug " * 70, width=2000).stdout
    assert "\x1b" not in shown
    assert "[\\x1b]" in shown
    assert "[\\u200b]" in shown
    assert shown.splitlines()[0].count("[mug]") == 13


@pytest.mark.parametrize("width", [30, 60])
def test_wide_titles_wrap_between_words(width: int) -> None:
    wide = run("model", TITLES[0]).stdout.splitlines()[0].split()
    lines = run("model", TITLES[0], width=width).stdout.splitlines()
    assert max(map(len, lines)) <= width
    wrapped = " ".join(lines).split()
    assert wrapped[: len(wide)] == wide


def test_json_gives_one_object_a_title(encoder: ClipEncoder) -> None:
    titles = [*TITLES, "", "crème\nbrûlée " + "mug " * 70]
    result = run("model", "--json", *titles)
    assert result.exception is None
    lines = result.stdout.splitlines()
    assert len(lines) == len(titles)
    for title, line, words in zip(titles, lines, clean(encoder, titles), strict=True):
        found = json.loads(line)
        assert found["title"] == title
        assert found["cleaned"] == cleaned(words)
        kept = sum(word.kept for word in words)
        assert found["kept"] == (kept / len(words) if words else 1)
        assert [word["text"] for word in found["words"]] == [word.text for word in words]
        assert [word["dies"] for word in found["words"]] == [word.dies for word in words]
        for shown, word in zip(found["words"], words, strict=True):
            read = (word.score, word.threshold) if word.dies != 0 else (None, None)
            assert (shown["score"], shown["threshold"]) == read


@pytest.fixture
def catalog(tmp_path: Path) -> Path:
    Image.new("RGB", (8, 8)).save(tmp_path / "a.png")
    titles = {"p,1": TITLES[0], "2": TITLES[1], "3": "", "": "no id", "5": "mug " * 70, "6": "a\nb"}
    rows = [(number, title, "a.png") for number, title in titles.items()]
    with (tmp_path / "catalog.csv").open("w", encoding="utf-8", newline="") as file:
        csv.writer(file).writerows([["id", "name", "image"], *rows])
    return tmp_path / "catalog.csv"


def test_a_catalog_gives_a_row_a_product(
    catalog: Path, tmp_path: Path, encoder: ClipEncoder, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cleaning_cli, "_TOGETHER", 2)
    out = tmp_path / "cleaned.csv"
    result = run("model", "--catalog", catalog, "--out", out, "--map", "title=name")
    assert result.exception is None
    with out.open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["id"] for row in rows] == ["p,1", "2", "3", "5", "6"]
    words = clean(encoder, [row["title"] for row in rows])
    assert [row["title"] for row in rows[:3]] == [*TITLES[:2], ""]
    assert [row["cleaned"] for row in rows] == list(map(cleaned, words))
    for row, title in zip(rows, words, strict=True):
        share = sum(word.kept for word in title) / len(title) if title else 1
        assert float(row["kept"]) == pytest.approx(share, abs=5e-5)
    kept = sum(word.kept for title in words for word in title)
    total = sum(map(len, words))
    assert result.stdout == f"{out}: 5 titles, {kept / total:.1%} of {total:,} words kept\n"
    assert "1 titles have words that the model does not read" in result.stderr
    assert "1 rows and 0 pictures were left out" in result.stderr


def test_a_catalog_that_cannot_be_read_leaves_the_file_as_it_was(
    catalog: Path, tmp_path: Path
) -> None:
    with catalog.open("a") as file:
        file.write("2,again,a.png\n")
    out = tmp_path / "cleaned.csv"
    out.write_text("before")
    result = run("model", "--catalog", catalog, "--out", out)
    assert isinstance(result.exception, DuplicateIdError)
    assert out.read_text() == "before"
    assert sorted(file.name for file in tmp_path.iterdir()) == [
        "a.png", "catalog.csv", "cleaned.csv",
    ]  # fmt: skip
    assert run("model", "--catalog", catalog, "--out", out, "--on-duplicate", "last").exit_code == 0


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("model",), "give either titles to show, or --catalog with --out"),
        (("model", "red mug", "--catalog", "c", "--out", "o"), "give either titles to show"),
        (("model", "--catalog", "c.csv"), "--catalog and --out go together"),
        (("model", "red mug", "--out", "o.csv"), "--catalog and --out go together"),
        (("model", "--catalog", "c", "--out", "o", "--json"), "--json is for titles"),
        (("model", "--catalog", "c", "--out", "no/o"), "--out no/o: give the name of a file in"),
        (("model", "--catalog", "c", "--out", "."), "--out .: give the name of a file in a folder"),
    ],
)
def test_what_does_not_go_together_is_refused_before_the_work(
    arguments: tuple[str, ...], message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("indexing.models.load_encoder", lambda _: pytest.fail("was loaded"))
    result = run(*arguments)
    assert isinstance(result.exception, QueryError)
    assert message in str(result.exception)


def test_a_model_without_pruning_is_refused_with_the_way_out() -> None:
    for titles in (["red mug"], [""]):
        result = run("builtin", *titles)
        assert isinstance(result.exception, ModelError)
        assert "train one with `shoplens train clip --preset calibrated`" in str(result.exception)
    result = run("other", "red mug")
    assert isinstance(result.exception, ModelError)
    assert str(result.exception) == "other is neither a CLIP nor an ALBEF model"


def test_the_command_is_there_and_its_help_ends_with_an_example() -> None:
    result = CliRunner().invoke(shoplens.app, ["clean", "--help"])
    assert result.exit_code == 0
    text = result.stdout.split("Arguments")[0]
    assert "shoplens clean my-model --catalog" in " ".join(text.split("Example")[1].split())
