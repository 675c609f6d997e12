"""`shoplens train clip`: what it reads, and numbers that make no sense."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import typer
from click.testing import Result
from PIL import Image
from typer.testing import CliRunner

from indexing.errors import TrainingError
from indexing.models import load_encoder
from indexing.models.clip import ClipEncoder
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


QUICK = ["--epochs", "1", "--batch-size", "4", "--lock-image", "--validation-share", "0.3"]
COLUMNS = ["--map", "id=number", "--map", "title=name", "--map", "image=photo"]


def train(catalog: Path, out: str, *options: str) -> Result:
    photos = str(catalog.parent / "photos")
    arguments = [str(catalog), "--out", str(catalog.parent / out), "--images-root", photos]
    return CliRunner().invoke(app, [*arguments, *QUICK, *COLUMNS, *options])


def test_it_reads_a_catalog_as_index_does_and_writes_a_model(catalog: Path) -> None:
    result = train(catalog, "model", "--preset", "standard")
    assert result.exit_code == 0, result.output
    assert "1 rows and 0 pictures were left out" in result.output
    assert "Title tokens kept" not in result.output
    out = catalog.parent / "model"
    builtin, trained = load_encoder("builtin", device="cpu"), load_encoder(str(out), device="cpu")
    assert trained.fingerprint != builtin.fingerprint
    assert trained.dim == builtin.dim
    assert isinstance(trained, ClipEncoder)
    assert trained.pruning is None


def test_by_default_it_learns_which_title_tokens_to_leave_out(catalog: Path) -> None:
    few = ["--mask-steps", "8"]
    result = train(catalog, "model", *few)
    assert result.exit_code == 0, result.output
    kept = re.search(r"Title tokens kept (\d+\.\d)%", result.output)
    assert kept is not None, result.output
    assert 50 <= float(kept[1]) <= 100
    trained = load_encoder(str(catalog.parent / "model"), device="cpu")
    assert isinstance(trained, ClipEncoder)
    assert trained.pruning is not None
    assert trained.pruning.delta.abs().max() > 0
    # A second stage goes on with its thresholds; --preset standard reads whole titles again.
    stage = ["--second-stage", "--from", str(catalog.parent / "model")]
    assert train(catalog, "second", *stage, *few).exit_code == 0
    second = load_encoder(str(catalog.parent / "second"), device="cpu")
    assert isinstance(second, ClipEncoder)
    assert second.pruning is not None
    assert second.pruning.config == trained.pruning.config
    assert train(catalog, "whole", *stage, "--preset", "standard").exit_code == 0
    whole = load_encoder(str(catalog.parent / "whole"), device="cpu")
    assert isinstance(whole, ClipEncoder)
    assert whole.pruning is None
    refused = train(catalog, "paper", *stage, "--preset", "paper")
    assert isinstance(refused.exception, TrainingError)
    assert "prunes tokens already" in str(refused.exception)


def test_masks_are_learned_in_as_many_steps_as_are_asked_for(
    catalog: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = []

    def noting(encoder: object, catalogs: object, out: object, config: Any) -> None:
        asked.append((config.preset, config.mask_steps))

    monkeypatch.setattr("training.run.run_clip", noting)
    train(catalog, "default")
    for preset, *options in (
        ("calibrated", "--mask-steps", "3"),
        ("calibrated", "--mask-steps", "0"),
        ("standard",),
        ("paper",),
    ):
        train(catalog, "given", "--preset", preset, *options)
    assert asked == [
        *(("calibrated", 120), ("calibrated", 3), ("calibrated", 0)),
        *(("standard", 0), ("paper", 0)),
    ]
    refused = train(catalog, "refused", "--preset", "paper", "--mask-steps", "10")
    assert isinstance(refused.exception, TrainingError)
    assert str(refused.exception) == (
        "--mask-steps 10: the preset paper learns its masks along with the weights: give 0"
    )
    assert not (catalog.parent / "refused").exists()
    assert train(catalog, "refused", "--mask-steps", "-1").exit_code == 2


@pytest.mark.parametrize("start", [[], ["--from", "builtin"], ["--from", "ViT-B-32/openai"]])
def test_a_second_stage_needs_a_folder(catalog: Path, start: list[str]) -> None:
    result = train(catalog, "model", "--second-stage", *start)
    assert isinstance(result.exception, TrainingError)
    assert "--second-stage goes on from a fine-tuned model" in str(result.exception)


@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("--learning-rate", "-1"),
        ("--learning-rate", "inf"),
        ("--validation-share", "2"),
        ("--word-dropout", "1"),
        ("--seed", "-1"),
        ("--checkpoint-minutes", "-1"),
        ("--threshold-learning-rate", "-1"),
    ],
)
def test_numbers_that_make_no_sense_are_named(catalog: Path, option: str, value: str) -> None:
    result = CliRunner().invoke(app, [str(catalog), "--out", "unused", option, value])
    assert isinstance(result.exception, TrainingError)
    assert str(result.exception).startswith(f"{option} {float(value):g}".replace(".0", ""))
    assert not Path("unused").exists()


@pytest.mark.parametrize("option", ["--preset", "--loss", "--precision"])
def test_names_that_are_none_are_named(catalog: Path, option: str) -> None:
    result = CliRunner().invoke(app, [str(catalog), "--out", "unused", option, "best"])
    assert isinstance(result.exception, TrainingError)
    expected = "no loss has this name: choose" if option == "--loss" else "Input should be "
    assert str(result.exception).startswith(f"{option} best: {expected}")
    assert not Path("unused").exists()
