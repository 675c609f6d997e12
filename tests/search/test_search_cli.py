"""The command `search`, end to end on a small index."""

from __future__ import annotations

import io
import json
import math
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import typer
from click.testing import Result
from PIL import Image
from typer.testing import CliRunner

from indexing.build import build_index
from indexing.catalog import read_catalog
from indexing.errors import ImageError, IndexFolderError, IndexMismatchError, QueryError, WhereError
from indexing.manifest import MANIFEST, read_manifest, render_manifest
from indexing.match_record import MatchRecord, ModeRecord
from search.answers import answer_sheet
from search.cli import search
from search.engine import SearchEngine

CATALOG = """id,title,price,image
r,Red [bold]mug[/bold],5.5,red.png
b,Blue\x1b[31m mug,50,blue.png
m,,,magenta.png
"""


@pytest.fixture(autouse=True)
def encoder(tiny_encoder: Any, monkeypatch: pytest.MonkeyPatch) -> Any:
    for loader in ("indexing.models.load_asker", "search.engine.load_encoder"):
        monkeypatch.setattr(loader, lambda _name: tiny_encoder)
    return tiny_encoder


@pytest.fixture
def folder(tmp_path: Path, encoder: Any) -> Path:
    for colour in ("red", "blue", "magenta"):
        Image.new("RGB", (40, 40), colour).save(tmp_path / f"{colour}.png")
    (tmp_path / "catalog.csv").write_text(CATALOG)
    build_index(read_catalog(tmp_path / "catalog.csv"), encoder, tmp_path / "index")
    return tmp_path / "index"


def run(*arguments: str | Path, stdin: bytes | None = None) -> Result:
    app = typer.Typer()
    app.command()(search)
    return CliRunner().invoke(app, [str(argument) for argument in arguments], input=stdin)


def answers(*arguments: str | Path, stdin: bytes | None = None) -> str:
    """Ids, in order, of the JSON lines; fails if there is anything else on stdout."""
    result = run(*arguments, "--json", stdin=stdin)
    assert result.exit_code == 0, result.exception
    return " ".join(json.loads(line)["product_id"] for line in result.stdout.splitlines())


def test_json_lines(folder: Path) -> None:
    result = run(folder, "--text", "red", "--k", "2", "--json")
    hits = SearchEngine.open(folder).search(text="red", k=2)
    assert [json.loads(line) for line in result.stdout.splitlines()] == [
        {
            "rank": 1,
            "product_id": "r",
            "score": hits[0].score,
            "match": None,
            "image": "red.png",
            "duplicates": [],
            "fields": {"title": "Red [bold]mug[/bold]", "price": 5.5},
            "filled": {},
            "match_probability": None,
            "good_match": None,
        },
        {
            "rank": 2,
            "product_id": "m",
            "score": hits[1].score,
            "match": None,
            "image": "magenta.png",
            "duplicates": [],
            "fields": {},
            "filled": {},
            "match_probability": None,
            "good_match": None,
        },
    ]
    assert hits[1].score == pytest.approx(16.25 / 48.25, abs=1e-6)


def test_table(folder: Path) -> None:
    result = run(folder, "--text", "red")
    assert result.exit_code == 0
    assert [line.split() for line in result.stdout.splitlines()] == [
        ["#", "score", "id", "title", "price", "picture"],
        ["1", "1.000", "r", "Red", "[bold]mug[/bold]", "5.50", "red.png"],
        ["2", "0.337", "m", "magenta.png"],
        ["3", "-0.326", "b", "Blue", "[31m", "mug", "50.00", "blue.png"],
    ]


@pytest.fixture
def redness(encoder: Any) -> None:
    """A matcher: how red the upper left corner is, from 0 to 1."""
    encoder.match_text = lambda _, pixels: (1 + pixels[:, 0, 0, 0]) / 2


@pytest.mark.usefixtures("redness")
def test_reranking_shows_the_match_and_its_cost(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "magenta.png").unlink()
    result = run(folder, "--text", "blue", "--itm-rerank", "3")
    assert result.exit_code == 0, result.exception
    assert [line.split() for line in result.stdout.splitlines()] == [
        ["#", "match", "score", "id", "title", "price", "picture"],
        ["1", "1.000", "-0.326", "r", "Red", "[bold]mug[/bold]", "5.50", "red.png"],
        ["2", "0.000", "1.000", "b", "Blue", "[31m", "mug", "50.00", "blue.png"],
        ["3", "0.337", "m", "magenta.png"],
    ]
    cost = (
        r"reranked 2 pictures in (.*) s \(reading (.*) s, matching (.*) s\), 1 could not be read\n"
    )
    found = re.search(cost, result.stderr)
    assert found is not None
    whole, reading, matching = map(float, found.groups())
    assert whole == pytest.approx(reading + matching, abs=0.11)
    lines = run(folder, "--text", "blue", "--itm-rerank", "1", "--json").stdout.splitlines()
    assert [json.loads(line)["match"] for line in lines] == [0.0, None, None]


@pytest.mark.usefixtures("redness")
def test_a_reranking_without_failures_says_nothing_of_them(folder: Path) -> None:
    shown = run(folder, "--text", "blue", "--itm-rerank", "3").stderr.splitlines()
    assert re.fullmatch(r"reranked 3 pictures in .* \(reading .*, matching .* s\)", shown[-1])
    none = run(folder, "--text", "blue", "--itm-rerank", "3", "--where", "price > 1000")
    assert "reranked 0 pictures in 0.0 s" in none.stderr


@pytest.mark.usefixtures("redness")
def test_the_sheet_says_what_ranked_an_answer(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hits = SearchEngine.open(folder).search(text="blue", itm_rerank=2)
    notes: list[str] = []
    monkeypatch.setattr(
        "search.answers.contact_sheet", lambda *a: notes.extend(cell.note for cell in a[2])
    )
    answer_sheet(None, "blue", hits)
    assert notes == ["1.  match 1.000", "2.  match 0.000  50.00", "3.  -0.326  5.50"]


def test_photo_from_a_file_and_from_standard_input(folder: Path, tmp_path: Path) -> None:
    photo = Image.new("RGB", (20, 20), "red")
    photo.paste("blue", (10, 0, 20, 20))
    photo.save(tmp_path / "photo.png")
    data = (tmp_path / "photo.png").read_bytes()
    right = ("--crop", "0.5,0,0.5,1", "-k", "1")
    assert answers(folder, "--image", tmp_path / "photo.png", *right) == "b"
    assert answers(folder, "--image", "-", *right, stdin=data) == "b"
    assert answers(folder, "--image", "-", "--crop", "0,0,.5,1", "-k", "1", stdin=data) == "r"


def test_weights_and_minus(folder: Path, tmp_path: Path) -> None:
    both = (folder, "--image", tmp_path / "blue.png", "--text", "red")
    assert answers(*both, "--text-weight", "0").startswith("b m")
    assert answers(*both, "--image-weight", "0").startswith("r m")
    assert answers(folder, "--text", "magenta", "--minus", "blue") == "m r b"
    # Products with magenta - n * red / 2, times 48.25. n = 1: m 40, b 24, r -8; n = 3: m 24,
    # b 40, r -56. Products with red - 2 * magenta: r 16, b -48, m -80.
    minus_red = ("--minus", "red")
    assert answers(folder, "--text", "magenta", *minus_red) == "m b r"
    assert answers(folder, "--text", "magenta", *minus_red * 3) == "b m r"
    assert answers(folder, "--text", "red", "--minus", "magenta", "--minus-weight", "2") == "r b m"


def test_where(folder: Path) -> None:
    assert answers(folder, "--text", "red", "--where", "price < 50 or price is null") == "r m"
    assert answers(folder, "--text", "red", "--where", "title contains 'BLUE'") == "b"


def test_no_match_is_said_and_is_no_error(folder: Path) -> None:
    result = run(folder, "--text", "red", "--where", "price > 1000")
    assert (result.exit_code, result.stdout) == (0, "no product matches the filter\n")
    result = run(folder, "--text", "red", "--where", "price > 1000", "--json")
    assert (result.exit_code, result.stdout) == (0, "")
    assert result.stderr == "no product matches the filter\n"


def test_sheet(folder: Path, tmp_path: Path) -> None:
    sheet = tmp_path / "sheet.png"
    (tmp_path / "magenta.png").unlink()  # an answer whose picture is gone
    query = (folder, "--image", tmp_path / "red.png", "--text", "red", "--minus", "blue")
    result = run(*query, "--json", "--sheet", sheet)
    assert result.exit_code == 0, result.exception
    assert result.stderr == f"contact sheet: {sheet}\n"
    assert len(result.stdout.splitlines()) == 3
    with Image.open(sheet) as picture:
        assert picture.format == "PNG"
        colours = {colour for _, colour in picture.convert("RGB").getcolors(1 << 24) or ()}
    assert {(255, 0, 0), (0, 0, 255)} <= colours
    assert (255, 0, 255) not in colours


def test_sheet_without_any_answer(folder: Path, tmp_path: Path) -> None:
    result = run(folder, "--text", "red", "--where", "id == 'x'", "--sheet", tmp_path / "s.jpg")
    assert result.exit_code == 0, result.exception
    with Image.open(tmp_path / "s.jpg") as picture:
        assert picture.format == "JPEG"


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("sheet.gif", r"sheet\.gif: the name must end in \.png, \.jpg, \.jpeg, \.webp"),
        ("sheet", "the name must end in"),
        ("none/sheet.png", "none does not exist; make it first"),
        ("folder.png", "this is a folder"),
    ],
)
def test_a_sheet_that_cannot_be_written_stops_before_the_work(
    tmp_path: Path, name: str, message: str
) -> None:
    (tmp_path / "folder.png").mkdir()
    result = run(tmp_path / "no-index", "--text", "red", "--sheet", tmp_path / name)
    assert isinstance(result.exception, QueryError)
    with pytest.raises(QueryError, match=message):
        raise result.exception


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ([], QueryError, "the query is empty"),
        (["--minus", "red"], QueryError, "minus alone is no query"),
        (["--text", ""], QueryError, "text is blank"),
        (["--text", "red", "--k", "0"], QueryError, "k is 0"),
        (["--text", "red", "--itm-rerank", "0"], QueryError, "itm_rerank is 0"),
        (["--text", "red", "--itm-rerank", "5"], QueryError, "itm_rerank needs an ALBEF index"),
        (["--text", "red", "--where", "price <"], WhereError, "expected a field or a value"),
        (["--text", "red", "--crop", "0,0,1,1"], QueryError, "crop without an image"),
        (["--image", "x.png", "--crop", "0,0,1"], QueryError, "crop '0,0,1': give four fractions"),
        (["--image", "x.png", "--crop", "a,0,1,1"], QueryError, "crop 'a,0,1,1': give four"),
        (["--image", ""], QueryError, "--image is empty"),
        (["--text", "red", "--sheet", "n" * 300 + ".png"], QueryError, "File name too long"),
        (["--image", "no-such.png"], ImageError, r"no-such\.png"),
        (["--image", "-"], ImageError, "query picture: .*empty file"),
    ],
)
def test_bad_input(
    folder: Path, arguments: list[str], error: type[Exception], message: str
) -> None:
    result = run(folder, *arguments)
    assert isinstance(result.exception, error)
    assert result.stdout == ""
    with pytest.raises(error, match=message):
        raise result.exception


def test_an_index_that_is_not_there_or_of_another_model(
    folder: Path, tmp_path: Path, other_encoder: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert isinstance(run(tmp_path / "none", "--text", "red").exception, IndexFolderError)
    asked = []
    monkeypatch.setattr(
        "indexing.models.load_asker", lambda name: asked.append(name) or other_encoder
    )
    result = run(folder, "--text", "red", "--model", "other-name")
    assert asked == ["other-name"]
    assert isinstance(result.exception, IndexMismatchError)


def test_help_shows_an_example_and_imports_nothing_heavy() -> None:
    result = run("--help")
    assert "shoplens search shop-index --text" in result.stdout
    code = (
        "import sys, search.cli; "
        "print(sorted({'numpy', 'torch', 'PIL', 'pyarrow', 'faiss'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"


def test_a_picture_through_standard_input_is_read_up_to_the_limit(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("indexing.images.MAX_BYTES", 1000)
    buffer = io.BytesIO()
    Image.effect_noise((100, 100), 50).save(buffer, "PNG")
    result = run(folder, "--image", "-", stdin=buffer.getvalue())
    assert isinstance(result.exception, ImageError)
    assert "1,001 bytes, the limit is 1,000" in str(result.exception)


@pytest.mark.usefixtures("redness")
def test_reranked_answers_can_be_diverse_too(folder: Path) -> None:
    rerank = (folder, "--text", "blue", "--itm-rerank")
    # By match: magenta 1, red 1, blue 0; what was not looked at stays behind all that was.
    assert answers(*rerank, "3", "--diversity", "0.9") == "m r b"
    assert answers(*rerank, "2", "--diversity", "0.9") == "m b r"
    assert answers(*rerank, "2", "--diversity", "1", "--collapse", "--fuse", "top2") == "m b r"


def calibrated(folder: Path, threshold: float | None) -> None:
    """Makes every text's product there with a probability of 3 in 4."""
    record = ModeRecord(
        queries="titles", asked=1, products=1, weights=(0.0, 0.0, 0.0), bias=math.log(3),
        auroc=0.9, auroc_cosine=0.8, right=0.5, threshold=threshold, precision=0.95, found=0.5,
    )  # fmt: skip

    match = MatchRecord(modes={"text": record}, skipped={})
    manifest = read_manifest(folder).model_copy(update={"match": match})
    (folder / MANIFEST).write_bytes(render_manifest(manifest))


@pytest.mark.parametrize(
    ("threshold", "good", "first"),
    [
        (0.8, False, "no good match: the shop has this with a probability of 75%"),
        (0.7, True, None),
        (None, None, None),
    ],
)
def test_no_good_match(folder: Path, threshold: float | None, good: Any, first: Any) -> None:
    calibrated(folder, threshold)
    shown = run(folder, "--text", "red")
    lines = shown.stdout.splitlines()
    assert shown.exit_code == 0
    assert lines[0] == first if first else lines[0].split()[0] == "#"
    assert lines[-1].split()[:3] == ["3", "-0.326", "b"]  # the answers are there all the same
    found = [json.loads(x) for x in run(folder, "--text", "red", "--json").stdout.splitlines()]
    assert [line["good_match"] for line in found] == [good] * 3
    assert [line["match_probability"] for line in found] == pytest.approx([0.75] * 3)
    # The model knows plain texts only.
    minus = run(folder, "--text", "red", "--minus", "blue", "--json").stdout.splitlines()
    assert [json.loads(line)["match_probability"] for line in minus] == [None] * 3


def test_the_order_can_be_changed(folder: Path, tmp_path: Path, encoder: Any) -> None:
    (tmp_path / "catalog.csv").write_text(CATALOG + "r2,Red cup,6,red.png\n")
    build_index(read_catalog(tmp_path / "catalog.csv"), encoder, folder)
    assert answers(folder, "--text", "red") == "r r2 m b"
    assert answers(folder, "--text", "red", "--collapse") == "r m b"
    assert answers(folder, "--text", "red", "--diversity", "0.9") == "r b m r2"
    assert answers(folder, "--text", "red", "--fuse", "top2") == "r r2 m b"
    assert "(+1 alike)" in run(folder, "--text", "red", "--collapse").stdout
    for option, value in (("--fuse", "mean"), ("--diversity", "2")):
        result = run(folder, "--text", "red", option, value)
        assert isinstance(result.exception, QueryError)
