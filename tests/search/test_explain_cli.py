"""`shoplens explain`: numbers, words, and a picture checked by its pixels."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import typer
from PIL import Image
from typer.testing import CliRunner, Result

from indexing.errors import ImageError, ModelError, QueryError
from indexing.explaining import Explanation, WordMap, explain
from indexing.explaining_sheet import explanation_sheet
from indexing.models import load_encoder
from indexing.models.albef.config import AlbefConfig
from indexing.models.albef.encoder import AlbefEncoder, new_encoder
from indexing.sheet import GAP, TILE
from search import explain_cli
from search.explain import explain_match
from search.explain_sheet import match_sheet

app = typer.Typer()
app.command()(explain_cli.explain)
TEXT = "red mug with lid"
STEP = TILE + GAP


@pytest.fixture
def encoder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AlbefEncoder:
    pieces = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "red", "mug", "with", "lid"]
    (tmp_path / "vocab.txt").write_text("\n".join(pieces) + "\n")
    config = AlbefConfig(
        image_size=12, patch_size=4, vision_width=8, vision_layers=1, vision_heads=2,
        vocab_size=len(pieces), text_width=8, text_layers=5, text_heads=2, text_intermediate=16,
        fusion_layer=1, embed_dim=4, max_positions=16, max_text_length=5,
    )  # fmt: skip
    made = new_encoder(config, tmp_path / "vocab.txt", seed=0)
    models: dict[str, Any] = {"albef:model": made}
    monkeypatch.setattr("indexing.models.load_encoder", models.__getitem__)
    return made


@pytest.fixture
def photo(tmp_path: Path) -> Path:
    values = np.random.default_rng(0).integers(0, 256, (30, 40, 3), np.uint8)
    Image.fromarray(values).save(tmp_path / "photo.png")
    return tmp_path / "photo.png"


def run(*arguments: object, text: str = TEXT) -> Result:
    given = ["--model", "albef:model", "--text", text, *map(str, arguments)]
    return CliRunner().invoke(app, given, env={"COLUMNS": "200"})


@pytest.mark.parametrize("layer", [None, 1, 3])
def test_json_is_a_line_a_word(encoder: AlbefEncoder, photo: Path, layer: int | None) -> None:
    result = run("--image", photo, "--json", *([] if layer is None else ["--layer", layer]))
    assert result.exception is None
    expected = explain(encoder, Image.open(photo), TEXT, layer=layer)
    found = [json.loads(line) for line in result.stdout.splitlines()]
    assert [line["word"] for line in found] == ["red", "mug", "with", "lid"]
    assert [line["read"] for line in found] == [True, True, True, False]  # room for three
    for line, word in zip(found, expected.words, strict=True):
        assert np.array_equal(np.array(line["map"], np.float32), word.map)
        assert line["entropy"] == (None if math.isnan(word.entropy) else word.entropy)
        assert (line["kept"], line["match"], line["layer"]) == (
            word.kept, expected.score, expected.layer,
        )  # fmt: skip


def test_words_and_a_picture(encoder: AlbefEncoder, photo: Path, tmp_path: Path) -> None:
    out = tmp_path / "maps.png"
    result = run("--image", photo, "--out", out)
    assert result.exception is None
    explanation = explain(encoder, Image.open(photo), TEXT)
    lines = result.stdout.splitlines()
    assert lines[0] == f"match {explanation.score:.3f}, fusion layer 3"
    assert [line.strip().split(maxsplit=1) for line in lines[1:]] == [
        ["word", "map"],
        *([word.text, f"entropy {word.entropy:.2f}"] for word in explanation.words[:3]),
        ["lid", "beyond the longest text"],
    ]
    assert result.stderr == f"picture: {out}\n"
    expected = explanation_sheet(Image.open(photo), TEXT, explanation)
    assert np.array_equal(np.asarray(Image.open(out)), np.asarray(expected))
    out.unlink()
    assert run("--image", photo, "--out", out, "--json").stdout.count("\n") == 4
    assert out.exists()


def tile(sheet: Image.Image, number: int) -> Image.Image:
    left, top = GAP + number % 5 * STEP, GAP + number // 5 * (TILE + 8 + 3 * 20 + GAP)
    return sheet.crop((left, top, left + TILE, top + TILE))


def word_map(row: int, column: int, **changes: Any) -> WordMap:
    cam = np.zeros((4, 4), np.float32)
    cam[row, column] = 3.0
    return WordMap("mug", cam, 0.0, **changes)


def test_the_heat_is_where_the_map_is_high() -> None:
    colour, hottest, coldest = np.array([[100, 120, 140], [215, 25, 28], [35, 48, 124]])
    plain = Image.new("RGB", (100, 100), tuple(colour.tolist()))
    places = [(0, 0), (1, 3), (3, 1)]
    words = [word_map(row, column) for row, column in places]
    sheet = explanation_sheet(plain, "a mug", Explanation(0.5, 3, words))
    assert tile(sheet, 0).getcolors() == [(TILE * TILE, tuple(colour.tolist()))]
    for number, (row, column) in enumerate(places, 1):
        pixels = np.asarray(tile(sheet, number)).astype(int)
        centre = (TILE * (2 * row + 1) // 8, TILE * (2 * column + 1) // 8)
        opposite = (TILE - 1 - centre[0], TILE - 1 - centre[1])
        # 0.45 of the picture, and 0.55 of the hottest or the coldest colour.
        assert pixels[centre] == pytest.approx(0.45 * colour + 0.55 * hottest, abs=6)
        assert pixels[opposite] == pytest.approx(0.45 * colour + 0.55 * coldest, abs=2)
        warm = np.argwhere(pixels[..., 0] > 160)  # about half as hot, or more
        middle = (warm.min(0) + warm.max(0) + 1) / 2 * 4 / TILE
        assert np.floor(middle).tolist() == [row, column]
        assert (np.ptp(warm, axis=0) < 1.5 * TILE / 4).all()


def test_dropped_words_are_grey_and_an_empty_map_leaves_the_picture() -> None:
    plain = Image.new("RGB", (50, 50), (200, 30, 30))
    empty = WordMap("mug", np.zeros((4, 4), np.float32), math.nan)
    gone = WordMap("mug", np.zeros((4, 4), np.float32), math.nan, kept=False)
    sheet = explanation_sheet(
        plain, "mug", Explanation(0.5, 3, [empty, word_map(0, 0, kept=False), gone, *[empty] * 3])
    )
    assert tile(sheet, 1).getcolors() == [(TILE * TILE, (200, 30, 30))]
    for number in (2, 3):
        pixels = np.asarray(tile(sheet, number)).astype(int)
        assert np.ptp(pixels, axis=2).max() == 0
    assert len(tile(sheet, 2).getcolors() or []) > 1
    assert len(tile(sheet, 3).getcolors() or []) == 1
    assert tile(sheet, 6).getcolors() == [(TILE * TILE, (200, 30, 30))]  # the second row


def test_a_sliver_is_shown_as_the_model_sees_it() -> None:
    """It lies on white in the middle: the heat of the first row is above it."""
    sliver = Image.new("RGB", (640, 20), "black")
    sheet = explanation_sheet(sliver, "mug", Explanation(0.5, 3, [word_map(0, 0)]))
    (left, top, right, bottom) = (0, TILE // 2 - 6, TILE, TILE // 2 + 6)
    shown = tile(sheet, 1).crop((left, top, right, bottom)).convert("L")
    assert shown.getextrema()[1] > 100  # white above and below the black of a few pixels
    alone = tile(sheet, 0).convert("L")
    assert alone.getpixel((TILE // 2, TILE // 2)) == 0


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ((), QueryError, "give --out for a picture with the maps, --json for numbers, or both"),
        (("--out", "maps.gif"), QueryError, "--out maps.gif: the name must end in .png"),
        (("--out", "no/maps.png"), QueryError, "the folder no does not exist; make it first"),
        (("--json", "--layer", 4), QueryError, "layer 4: must be between 1 and 3"),
        (("--json", "--layer", 0), QueryError, "layer 0: must be between 1 and 3"),
    ],
)
def test_bad_input(
    encoder: AlbefEncoder, photo: Path, arguments: tuple[Any, ...],
    error: type[Exception], message: str,
) -> None:  # fmt: skip
    result = run("--image", photo, *arguments)
    assert isinstance(result.exception, error)
    assert message in str(result.exception)
    assert result.stdout == ""


def test_what_is_no_picture_or_no_albef_model(
    encoder: AlbefEncoder, photo: Path, tiny_encoder: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    result = run("--image", photo.with_name("none.png"), "--json")
    assert isinstance(result.exception, ImageError)
    assert "none.png: cannot be read" in str(result.exception)
    assert isinstance(run("--image", photo, "--json", text=" ").exception, QueryError)
    monkeypatch.setattr("indexing.models.load_encoder", lambda _: tiny_encoder)
    result = run("--image", photo, "--json")
    assert isinstance(result.exception, ModelError)
    assert "tiny is no model of torch, CLIP or ALBEF" in str(result.exception)


def ask(*arguments: object) -> Result:
    given = ["--model", "builtin", *map(str, arguments)]
    return CliRunner().invoke(app, given, env={"COLUMNS": "200"})


def test_a_match_with_text_and_picture(photo: Path, tmp_path: Path) -> None:
    query, out = tmp_path / "query.png", tmp_path / "match.png"
    Image.new("RGB", (30, 30), "red").save(query)
    given = ("--image", photo, "--text", "red mug", "--query", query)
    picture = Image.open(photo)
    expected = explain_match(load_encoder("builtin"), Image.open(query), "red mug", picture)
    result = ask(*given, "--out", out)
    assert result.exception is None
    red, mug = (word.weight or 0.0 for word in expected.words)
    assert [line.split() for line in result.stdout.splitlines()] == [
        ["cosine", f"{expected.score:.3f}"], ["word", "weight"], ["red", f"{red:+.3f}"],
        ["mug", f"{mug:+.3f}"],
    ]  # fmt: skip
    assert result.stderr == f"picture: {out}\n"
    sheet = match_sheet(Image.open(query), "red mug", picture, expected)
    assert np.array_equal(np.asarray(Image.open(out)), np.asarray(sheet))
    line = json.loads(ask(*given, "--json").stdout)
    assert line["score"] == expected.score
    assert line["words"] == [
        {"word": "red", "kept": None, "weight": red}, {"word": "mug", "kept": None, "weight": mug},
    ]  # fmt: skip
    assert np.array(line["heat"]).shape == (24, 32)
    assert np.mean(line["heat"]) == pytest.approx(float(expected.heat.mean()), abs=0.01)


def test_a_match_with_a_picture_alone(photo: Path, encoder: AlbefEncoder) -> None:
    given = ["--model", "albef:model", "--image", str(photo), "--query", str(photo), "--json"]
    line = json.loads(CliRunner().invoke(app, given).stdout)
    assert line["score"] == pytest.approx(1, abs=1e-5)
    assert line["words"] == []


def test_what_a_match_needs(photo: Path) -> None:
    nothing = ask("--image", photo, "--json").exception
    assert isinstance(nothing, QueryError)
    assert str(nothing) == "the query is empty: give --text, --query or both"
    layer = ask("--image", photo, "--text", "mug", "--layer", 2, "--json").exception
    assert isinstance(layer, QueryError)
    assert "--layer 2 is for a text alone on an ALBEF model" in str(layer)
