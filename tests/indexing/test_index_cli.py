from __future__ import annotations

import inspect
import json
from pathlib import Path
from typing import Any

import pytest
import typer
from PIL import Image
from typer.testing import CliRunner, Result

from indexing import cli, info_cli
from indexing.embed import BATCH_SIZE
from indexing.errors import CatalogError, IndexCorruptError, IndexFolderError, IndexPlanError
from indexing.store import open_index

app = typer.Typer()
app.command()(cli.index)
app.command()(info_cli.info)


@pytest.fixture(autouse=True)
def encoder(monkeypatch: pytest.MonkeyPatch, tiny_encoder: Any) -> Any:
    monkeypatch.setattr("indexing.models.load_encoder", {"builtin": tiny_encoder}.__getitem__)
    return tiny_encoder


@pytest.fixture
def catalog(tmp_path: Path) -> Path:
    """Two good rows, and four that are not."""
    for colour in ("red", "blue"):
        Image.new("RGB", (8, 8), colour).save(tmp_path / f"{colour}.png")
    (tmp_path / "broken.png").write_bytes(b"")
    (tmp_path / "catalog.csv").write_text(
        "id,name,image\n"
        "A,red thing,red.png\n"
        "B,blue thing,blue.png\n"
        "C,broken thing,broken.png\n"
        "D,no picture,\n"
        ",no id,red.png\n"
        "F,elsewhere,https://example.com/a.png\n"
    )
    return tmp_path / "catalog.csv"


def run(*arguments: object) -> Result:
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


def test_index_says_what_it_did_in_counts_that_add_up(catalog: Path, tmp_path: Path) -> None:
    out = tmp_path / "shop"
    result = run("index", catalog, "--out", out, "--map", "title=name")
    assert result.exception is None
    lines = result.stdout.splitlines()
    assert lines[0].startswith(f"{out} is ready (")
    assert lines[1] == "  rows:     6 = 2 products + 4 rejected"
    assert lines[2].startswith("  pictures: 2 in the index, 1 rejected; 2 encoded at ")
    assert lines[2].endswith(", 0 known before")
    assert lines[3] == f"  rejects:  {out / 's000001' / 'rejects.jsonl'}, which begins"
    rejects = [json.loads(line) for line in (out / "s000001" / "rejects.jsonl").open()]
    assert len(rejects) == 5
    assert len(lines) == 8
    for line, reject in zip(lines[4:7], rejects, strict=False):
        assert line.startswith(f"    row {reject['row']}")
        assert line.endswith(reject["reason"])
    assert lines[7] == f'next: shoplens search {out} --text "red shoes"'
    assert open_index(out).products.fields(0)["title"] == "red thing"


def test_index_again_is_up_to_date(catalog: Path, tmp_path: Path, encoder: Any) -> None:
    run("index", catalog, "--out", tmp_path / "shop")
    encoder.encoded = 0
    result = run("index", catalog, "--out", tmp_path / "shop")
    lines = result.stdout.splitlines()
    assert lines[0].startswith(f"{tmp_path / 'shop'} is up to date (")
    assert lines[2] == "  pictures: 2 in the index, 1 rejected; 0 encoded, 2 known before"
    assert encoder.encoded == 0


def test_nothing_rejected_is_not_mentioned(catalog: Path, tmp_path: Path) -> None:
    catalog.write_text("id,title,image\nA,red,red.png\n")
    result = run("index", catalog, "--out", tmp_path / "shop")
    assert len(result.stdout.splitlines()) == 4
    assert "rejects.jsonl" not in result.stdout


def test_fields_that_were_left_empty_are_mentioned(catalog: Path, tmp_path: Path) -> None:
    catalog.write_text("id,price,image\nA,from 5,red.png\nB,N/A,blue.png\n")
    lines = run("index", catalog, "--out", tmp_path / "shop").stdout.splitlines()
    assert lines[1] == "  rows:     2 = 2 products + 0 rejected"
    assert lines[3] == "  fields:   2 rejected and left empty, their products kept"
    assert lines[5].startswith("    row 1, id A: price 'from 5': not a price")
    assert run("info", tmp_path / "shop").stdout.splitlines()[3] == lines[3]


def test_ctrl_c_says_how_to_go_on(
    catalog: Path, tmp_path: Path, encoder: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupt(pixels: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(encoder, "embed_pixels", interrupt, raising=False)
        result = run("index", catalog, "--out", tmp_path / "shop")
    assert result.exit_code == 130
    assert result.stderr.splitlines()[-1] == "stopped; run the same command to go on"
    assert not (tmp_path / "shop").exists()  # not even a shard was finished
    assert run("index", catalog, "--out", tmp_path / "shop").exit_code == 0


@pytest.mark.parametrize("pair", ["title", "=name", "title=", ""])
def test_a_mapping_that_is_none_is_refused(catalog: Path, tmp_path: Path, pair: str) -> None:
    result = run("index", catalog, "--out", tmp_path / "shop", "--map", pair)
    assert isinstance(result.exception, CatalogError)
    assert f"--map {pair!r}: write FIELD=COLUMN" in str(result.exception)
    assert not (tmp_path / "shop").exists()


def test_a_field_mapped_twice_is_refused(catalog: Path, tmp_path: Path) -> None:
    result = run(
        "index", catalog, "--out", tmp_path / "shop", "--map", "title=name", "--map", "title=id"
    )
    assert isinstance(result.exception, CatalogError)
    assert "title is mapped to 'name' already" in str(result.exception)


def test_options_reach_the_catalog(catalog: Path, tmp_path: Path) -> None:
    pictures = tmp_path / "pictures"
    pictures.mkdir()
    for name in ("red.png", "blue.png"):
        (tmp_path / name).rename(pictures / name)
    catalog.write_text("id,title,image\nA,one,red.png\nA,two,blue.png\n")
    arguments = ("index", catalog, "--out", tmp_path / "shop", "--images-root", pictures)
    assert isinstance(run(*arguments).exception, CatalogError)  # two rows of one id
    assert run(*arguments, "--on-duplicate", "last", "--batch-size", 1).exception is None
    index = open_index(tmp_path / "shop")
    assert index.products.fields(0) == {"title": "two"}
    assert [index.images.path(0)] == [pictures / "blue.png"]
    assert isinstance(run(*arguments, "--on-duplicate", "maybe").exception, CatalogError)
    assert isinstance(run(*arguments, "--profile", "odd").exception, CatalogError)
    assert run(*arguments, "--batch-size", 0).exit_code == 2


def test_missing_pictures_must_be_accepted(catalog: Path, tmp_path: Path) -> None:
    arguments = ("index", catalog, "--out", tmp_path / "shop")
    run(*arguments)
    (tmp_path / "blue.png").unlink()
    refused = run(*arguments)
    assert isinstance(refused.exception, IndexFolderError)
    assert "1 of 2 pictures" in str(refused.exception)
    assert run("index", "--accept-missing", *arguments[1:]).exception is None
    assert open_index(tmp_path / "shop").products.ids == ["A"]


def test_plain_progress_gives_rate_and_time_left(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    clock = iter([0.0, 0.0, 4.0, 10.0, 11.0, 25.0])
    monkeypatch.setattr("indexing.cli.time.monotonic", lambda: next(clock))
    report = cli._plain_progress()
    for done in (0, 400, 1000, 1100, 5000):
        report(done, 7000)
    assert capsys.readouterr().err.splitlines() == [
        "1,000 of 7,000 pictures, 100/s, 60.0 s left",
        "5,000 of 7,000 pictures, 200/s, 10.0 s left",
    ]


def test_the_bar_draws_rate_and_total(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("indexing.cli.sys.stderr.isatty", lambda: True)
    with cli.show_progress() as progress:
        progress(0, 50)
        progress(50, 50)
    assert "50/50" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("seconds", "text"), [(3.25, "3.2 s"), (155, "3 min"), (5900, "98 min"), (9000, "2.5 h")]
)
def test_durations_are_short(seconds: float, text: str) -> None:
    assert cli._duration(seconds) == text


def test_info_checks_and_describes_the_index(catalog: Path, tmp_path: Path) -> None:
    out = tmp_path / "shop"
    run("index", catalog, "--out", out)
    result = run("info", out)
    assert result.exception is None
    lines = result.stdout.splitlines()
    assert lines[0].startswith(f"{out}: version 1, made 2")
    assert lines[1] == "  rows:     6 = 2 products + 4 rejected"
    assert lines[2] == "  pictures: 2 in the index, 1 rejected"
    assert lines[3].startswith("  encoder:  tiny, 49 numbers a picture, ")
    assert lines[4] == "  index:    exact"
    assert lines[5] == (
        "  match:    image: not calibrated: 2 products with a picture file; at least 50 are needed"
    )
    assert lines[6] == (
        "  match:    text: not calibrated: 2 different titles; at least 50 are needed"
    )
    assert lines[-1].endswith("MB, all as the manifest says")

    manifest = json.loads(run("info", out, "--json").stdout)
    assert manifest["segments"][0]["counts"]["rows"] == 6
    assert manifest["encoder"]["name"] == "tiny"

    vectors = out / "s000001" / "vectors.npy"
    vectors.write_bytes(vectors.read_bytes()[:-1] + b"?")
    assert isinstance(run("info", out).exception, IndexCorruptError)
    assert isinstance(run("info", tmp_path / "nowhere").exception, IndexFolderError)


def test_the_batch_size_is_that_of_the_library() -> None:
    assert inspect.signature(cli.index).parameters["batch_size"].default == BATCH_SIZE


def test_help_shows_an_example() -> None:
    assert "shoplens index catalog.csv --out shop-index" in run("index", "--help").stdout
    assert "shoplens info shop-index" in run("info", "--help").stdout


def test_the_plan_is_shown_and_an_index_of_ones_choice_is_measured(
    catalog: Path, tmp_path: Path
) -> None:
    arguments = ("index", catalog, "--out", tmp_path / "shop")
    shown = run(*arguments).stderr
    assert shown.count("plan: ") == 1
    assert "vectors of 49 numbers: exact; exact; 196 bytes a vector" in shown
    result = run(*arguments, "--index", "Flat", "--recall", "0.9")
    assert "is ready" in result.stdout  # another index of the same catalog is no up-to-date one
    assert "is up to date" in run(*arguments, "--index", "Flat", "--recall", "0.9").stdout
    line = run("info", tmp_path / "shop").stdout.splitlines()[4]
    assert "approximate, Flat, " in line
    assert "recall@10 1.000 with pictures, 1.000 with stand-ins" in line
    assert open_index(tmp_path / "shop").index.ntotal == 2
    assert "is ready" in run(*arguments).stdout
    assert open_index(tmp_path / "shop").manifest.segments[0].index.type == "exact"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--memory", "100B"), "100 B is allowed: give --memory 1MB"),
        (("--memory", "much"), "memory 'much': write a size such as 4GB"),
        (("--recall", "1.5"), "recall 1.5: give a share"),
        (("--index", "Trees"), "index 'Trees' is none for 49 numbers"),
    ],
)
def test_what_cannot_be_planned_is_refused_before_a_picture_is_encoded(
    options: tuple[str, str], message: str, catalog: Path, tmp_path: Path, tiny_encoder: Any
) -> None:
    out = tmp_path / "shop"
    error = run("index", catalog, "--out", out, *options).exception
    assert isinstance(error, IndexPlanError)
    assert message in str(error)
    assert not out.exists()
