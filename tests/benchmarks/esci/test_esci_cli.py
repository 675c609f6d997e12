"""`shoplens bench esci-split` as a command: what it prints, refuses, and says of a stop."""

from __future__ import annotations

from pathlib import Path

import pytest
import typer
from typer.testing import CliRunner

from benchmarks.esci import build
from benchmarks.esci.cli import esci_split
from benchmarks.esci.generator import EXAMPLES, FACTS, IMAGES, MANIFEST, PLACEHOLDERS, PRODUCTS
from benchmarks.esci.manifest import read_split
from indexing.errors import BenchmarkError

app = typer.Typer()
app.command()(esci_split)


def arguments(folder: Path, out: Path, *more: str) -> list[str]:
    return [
        *(str(folder / EXAMPLES), str(folder / PRODUCTS), "--images", str(folder / MANIFEST)),
        *("--images-root", str(folder / IMAGES), "--out", str(out), "--max-shared", "2"),
        *("--facts", str(folder / FACTS), "--placeholders", str(folder / PLACEHOLDERS), *more),
    ]


def test_it_prints_ours_beside_the_paper_s(described: Path, tmp_path: Path) -> None:
    result = CliRunner().invoke(app, arguments(described, tmp_path / "out"))
    assert result.exit_code == 0, result.output
    parts = read_split(tmp_path / "out").manifest.counts.parts
    lines = {
        line.split("│")[1].strip(): line.split("│")[2:4]
        for line in result.stdout.splitlines()
        if "│" in line
    }
    cells = {name: [cell.strip() for cell in row] for name, row in lines.items()}
    assert cells["test products"] == [f"{parts['test'].products:,}", "80,000"]
    assert cells["picture pairs"] == [f"{parts['test'].pairs:,}", "186,000"]
    assert cells["train products"] == [f"{parts['train'].products:,}", "630,000"]
    assert cells["picture-title pairs"] == [f"{parts['train'].pairs:,}", "858,000"]
    assert cells["the main picture again"] == ["100", ""]
    assert "checksums" in result.stderr


def test_every_option_reaches_the_manifest(described: Path, tmp_path: Path) -> None:
    more = "--seed 4 --min-side 90 --test-products 70 --validation-products 20 --small"
    more += " --train-images main+1 --pair-mode aux_to_main --locale us --allow-urls"
    result = CliRunner().invoke(app, arguments(described, tmp_path / "out", *more.split()))
    assert result.exit_code == 0, result.output
    assert read_split(tmp_path / "out").manifest.options.model_dump() == {
        "locale": "us",
        "seed": 4,
        "min_side": 90,
        "max_shared": 2,
        "test_products": 70,
        "validation_products": 20,
        "train_images": "main+1",
        "pair_mode": "aux_to_main",
        "small": True,
        "allow_urls": True,
    }


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (
            ["--train-images", "some"],
            r"--train-images some: Input should be 'main', 'aux', 'all' or",
        ),
        (["--pair-mode", "any"], r"--pair-mode any: Input should be 'all_pairs' or 'aux_to_main'"),
        (["--images", "gone.csv"], r"--images gone\.csv: no such file"),
    ],
)
def test_a_wrong_option_is_named(
    more: list[str], message: str, described: Path, tmp_path: Path
) -> None:
    result = CliRunner().invoke(app, arguments(described, tmp_path / "out", *more))
    assert isinstance(result.exception, BenchmarkError)
    with pytest.raises(BenchmarkError, match=message):
        raise result.exception


def test_ctrl_c_says_how_to_go_on(
    described: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stop(*args: object, **options: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(build, "scan", stop)
    result = CliRunner().invoke(app, arguments(described, tmp_path / "out"))
    assert result.exit_code == 130
    assert "run the same command to go on" in result.stderr
    assert not (tmp_path / "out").exists()


def test_the_help_has_an_example() -> None:
    text = CliRunner().invoke(app, ["--help"]).stdout
    assert "shoplens bench esci-split examples.parquet products.parquet" in text
