"""`shoplens train clip`: what it reads, and numbers that make no sense."""

from __future__ import annotations

from pathlib import Path

import pytest
import typer
from PIL import Image
from typer.testing import CliRunner

from indexing.errors import TrainingError
from indexing.models import load_encoder
from training import cli

app = typer.Typer()
app.command()(cli.clip)


@pytest.fixture
def catalog(tmp_path: Path) -> Path:
    (tmp_path / "photos").mkdir()
    lines = ["number\tname\tphoto"]
    for number in range(12):
        Image.new("RGB", (20, 20), (20 * number, 99, 150)).save(tmp_path / f"photos/{number}.png")
        lines.append(f"{number}\tproduct called {number}\t{number}.png")
    lines.append("12\tout of the folder\t../../etc/passwd")
    path = tmp_path / "catalog.tsv"
    path.write_text("\n".join(lines))
    return path


def test_it_reads_a_catalog_as_index_does_and_writes_a_model(catalog: Path) -> None:
    out = catalog.parent / "model"
    columns = ["--map", "id=number", "--map", "title=name", "--map", "image=photo"]
    result = CliRunner().invoke(
        app,
        [
            *(str(catalog), "--out", str(out), "--images-root", str(catalog.parent / "photos")),
            *("--epochs", "1", "--batch-size", "4", "--lock-image", "--validation-share", "0.3"),
            *columns,
        ],
    )
    assert result.exit_code == 0, result.output
    assert "1 rows and 0 pictures were left out" in result.output
    builtin, trained = load_encoder("builtin", device="cpu"), load_encoder(str(out), device="cpu")
    assert trained.fingerprint != builtin.fingerprint
    assert trained.dim == builtin.dim


@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("--learning-rate", "-1"),
        ("--learning-rate", "inf"),
        ("--validation-share", "2"),
        ("--word-dropout", "1"),
        ("--seed", "-1"),
    ],
)
def test_numbers_that_make_no_sense_are_named(catalog: Path, option: str, value: str) -> None:
    result = CliRunner().invoke(app, [str(catalog), "--out", "unused", option, value])
    assert isinstance(result.exception, TrainingError)
    assert str(result.exception).startswith(f"{option} {float(value):g}".replace(".0", ""))
    assert not Path("unused").exists()
