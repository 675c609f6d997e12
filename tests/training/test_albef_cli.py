"""`shoplens train albef`: from a catalog to an index, stops, and what it refuses."""

from __future__ import annotations

import json
import signal
from pathlib import Path
from typing import Any

import pytest
from click.testing import Result
from PIL import Image
from typer.testing import CliRunner

import shoplens
from indexing.errors import TrainingError
from indexing.models import load_encoder
from indexing.models.albef.encoder import AlbefEncoder
from training.log import TrainingLog

COLOURS = ["red", "green", "blue", "yellow"]


@pytest.fixture
def catalog(tmp_path: Path) -> Path:
    lines = ["id,title,image"]
    for number in range(16):
        colour = COLOURS[number % 4]
        Image.new("RGB", (20, 20 + number), colour).save(tmp_path / f"{number}.png")
        lines.append(f"{number},{colour} mug no. {number} & lid,{number}.png")
    lines.append("16,gone,gone.png")
    path = tmp_path / "catalog.csv"
    path.write_text("\n".join(lines))
    return path


QUICK = ["--size", "tiny", "--epochs", "2", "--batch-size", "4", "--validation-share", "0.3"]


def train(catalog: Path, out: str, *options: str, kind: str = "albef") -> Result:
    arguments = ["train", kind, str(catalog), "--out", str(catalog.parent / out), *options]
    return CliRunner().invoke(shoplens.app, arguments)


def opened(folder: Path) -> AlbefEncoder:
    encoder = load_encoder(str(folder), device="cpu")
    assert isinstance(encoder, AlbefEncoder)
    return encoder


def test_from_a_catalog_to_a_search(catalog: Path, caplog: pytest.LogCaptureFixture) -> None:
    folder = catalog.parent
    result = train(catalog, "model", *QUICK, "--preset", "calibrated")
    assert result.exit_code == 0, result.output
    assert "pairs to train on" in result.output
    assert "Title tokens kept" in result.output
    assert "an untrained model may drop nearly every word" in caplog.text
    encoder = opened(folder / "model")
    assert encoder.has_match
    assert encoder.pruning is not None
    assert [encoder.pruning.prunes(n) for n in range(6)] == [True, *[False] * 3, True, False]
    ids = encoder.tokenizer(["red mug & lid"])
    assert not (ids == encoder.tokenizer.unknown_id).any()
    lines = (folder / "model" / "log" / "metrics.jsonl").read_text().splitlines()
    assert [json.loads(line)["number"] for line in lines] == [0, 1]

    index = ["index", str(catalog), "--out", str(folder / "shop"), "--model", str(folder / "model")]
    assert CliRunner().invoke(shoplens.app, index).exit_code == 0
    search = ["search", str(folder / "shop"), "--text", "red mug", "--json", "-k", "3"]
    for rerank in ([], ["--itm-rerank", "3"]):
        found = CliRunner().invoke(shoplens.app, [*search, *rerank])
        assert found.exit_code == 0, found.output
        hits = [json.loads(line) for line in found.stdout.splitlines()]
        assert [hit["rank"] for hit in hits] == [1, 2, 3]
        assert all((hit["match"] is not None) == bool(rerank) for hit in hits)

    # A second stage goes on from it; with other masks it would be told what it cannot be.
    stage = ["--second-stage", "--from", str(folder / "model"), "--batch-size", "4"]
    stage += ["--validation-share", "0.3", "--epochs", "1"]
    assert train(catalog, "second", *stage).exit_code == 0
    second = opened(folder / "second")
    assert second.pruning is not None
    assert second.pruning.config == encoder.pruning.config
    assert second.fingerprint != encoder.fingerprint
    assert train(catalog, "whole", *stage, "--preset", "standard").exit_code == 0
    assert opened(folder / "whole").pruning is None
    refused = train(catalog, "paper", *stage, "--preset", "paper")
    assert isinstance(refused.exception, TrainingError)
    assert "prunes tokens already" in str(refused.exception)

    # And `train clip` knows that it is none of its own.
    for start in (str(folder / "model"), f"albef:{folder / 'model'}"):
        refused = train(catalog, "clip", "--from", start, kind="clip")
        assert isinstance(refused.exception, TrainingError)
        message = f"{start} is no CLIP model: see `shoplens train albef`"
        assert str(refused.exception) == message
    assert not (folder / "clip").exists()


def test_an_untrained_model_reads_whole_titles_and_a_trained_one_learns_to_prune(
    catalog: Path, caplog: pytest.LogCaptureFixture
) -> None:
    assert train(catalog, "first", *QUICK).exit_code == 0
    assert opened(catalog.parent / "first").pruning is None
    start = ["--from", str(catalog.parent / "first")]
    assert train(catalog, "second", *QUICK, *start).exit_code == 0
    assert opened(catalog.parent / "second").pruning is not None
    assert "may drop nearly every word" not in caplog.text


def test_a_run_that_was_stopped_goes_on(catalog: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An untrained model is made anew, and is the same one."""
    assert train(catalog, "whole", *QUICK).exit_code == 0
    real, steps = TrainingLog.step, list[int]()

    def noting(self: TrainingLog, step: Any) -> None:
        real(self, step)
        steps.append(step.number)
        if len(steps) == 3:
            signal.raise_signal(signal.SIGINT)

    monkeypatch.setattr(TrainingLog, "step", noting)
    stopped = train(catalog, "stopped", *QUICK)
    assert stopped.exit_code == 130
    assert "stopped; run the same command to go on" in stopped.output
    for changed in (["--chunk", "2"], ["--queue-size", "3"], ["--hardening", "0.2"]):
        refused = train(catalog, "stopped", *QUICK, *changed)
        assert isinstance(refused.exception, TrainingError)
        assert "holds a run with other settings" in str(refused.exception)
    assert steps == [1, 2, 3]
    assert train(catalog, "stopped", *QUICK).exit_code == 0
    assert steps[3] == 4
    assert steps == list(range(1, len(steps) + 1))
    weights = [
        (catalog.parent / name / "last" / "model.safetensors").read_bytes()
        for name in ("whole", "stopped")
    ]
    assert weights[0] == weights[1]


def test_a_clip_model_is_for_train_clip(catalog: Path) -> None:
    refused = train(catalog, "model", "--from", "builtin")
    assert isinstance(refused.exception, TrainingError)
    assert str(refused.exception) == "builtin is no ALBEF model: see `shoplens train clip`"
    assert not (catalog.parent / "model").exists()


@pytest.mark.parametrize("start", [[], ["--from", "builtin"], ["--from", "albef:nowhere.pth"]])
def test_a_second_stage_needs_a_folder(catalog: Path, start: list[str]) -> None:
    refused = train(catalog, "model", "--second-stage", *start)
    assert isinstance(refused.exception, TrainingError)
    named = start[1] if start else "an untrained model"
    assert f"--second-stage goes on from a fine-tuned model, and --from {named} is no folder" in (
        str(refused.exception)
    )
    assert "`shoplens train albef` wrote" in str(refused.exception)


@pytest.mark.parametrize(
    ("option", "value"),
    [
        *(("--momentum", "1"), ("--distillation", "-0.1"), ("--masked-share", "1")),
        *(("--hardening", "2"), ("--learning-rate", "0"), ("--weight-decay", "-1")),
        *(("--seed", "-1"), ("--threshold-learning-rate", "inf"), ("--validation-share", "2")),
        *(("--prune", "self"), ("--preset", "best"), ("--precision", "fp16")),
    ],
)
def test_what_makes_no_sense_is_named(catalog: Path, option: str, value: str) -> None:
    refused = train(catalog, "model", option, value)
    assert isinstance(refused.exception, TrainingError)
    assert beginning(str(refused.exception)) == (option, value)
    assert not (catalog.parent / "model").exists()


def beginning(message: str) -> tuple[str, str]:
    """The option that a message begins with, and its value."""
    option, value = message.split(": ")[0].split(" ")
    return option, value.removesuffix(".0")


@pytest.mark.parametrize(
    ("option", "value"),
    [("--queue-size", "-1"), ("--chunk", "0"), ("--batch-size", "1"), ("--epochs", "0")],
)
def test_counts_that_make_no_sense_are_a_usage_error(
    catalog: Path, option: str, value: str
) -> None:
    refused = train(catalog, "model", option, value)
    assert refused.exit_code == 2
    assert option in refused.output


def test_a_size_that_there_is_not_is_named(catalog: Path) -> None:
    refused = train(catalog, "model", *QUICK, "--size", "huge")
    assert isinstance(refused.exception, TrainingError)
    assert str(refused.exception) == "--size huge: give one of tiny, small, base"
    assert not (catalog.parent / "model").exists()
