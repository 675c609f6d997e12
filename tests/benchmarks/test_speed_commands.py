"""Whole commands in turns: what they take, and that an index that lacks pictures is an error."""

from __future__ import annotations

import csv
import json
import sys
from pathlib import Path
from typing import Any

import faiss
import numpy as np
import pytest
import torch
from PIL import Image

import benchmarks.speed_commands
from benchmarks.speed_commands import (
    COLUMNS,
    Indexed,
    Peers,
    System,
    command_cells,
    measure_commands,
    write_commands,
)
from benchmarks.speed_loops.open_clip_loop import index as open_clip_loop
from benchmarks.speed_shop import Shop
from indexing.errors import BenchmarkError
from indexing.models import load_encoder
from indexing.models.clip import ClipEncoder, create_model
from indexing.models.torchvision_repair import import_torchvision


@pytest.fixture
def shop(tmp_path: Path) -> Shop:
    folder = tmp_path / "shop"
    (folder / "images").mkdir(parents=True)
    with (folder / "catalog.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["id", "title", "image"])
        for number, colour in enumerate(("red", "green", "blue")):
            name = f"images/{number}.png"
            Image.new("RGB", (40, 30), colour).save(folder / name)
            writer.writerow([f"p{number}", colour, name])
    return Shop(folder)


def one_by_one(out: Path) -> list[list[str]]:
    """Two steps, of which the second adds to what the first has left."""
    lines = "open(r'{0}', 'a').write('x' * {1})"
    return [[sys.executable, "-c", lines.format(out / "found", count)] for count in (1, 2)]


def counted(out: Path) -> int:
    return len((out / "found").read_text())


def test_commands_take_turns_in_folders_of_their_own(
    shop: Shop, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    systems = [System(name, one_by_one, counted) for name in ("ours", "theirs")]
    monkeypatch.setattr(benchmarks.speed_commands, "_systems", lambda *_: systems)
    notes: list[str] = []
    found = measure_commands(shop, "any", Peers(), tmp_path, rounds=2, note=notes.append)
    assert [own.system for own in found] == ["ours", "theirs"]
    assert [len(own.seconds) for own in found] == [len(own.cpu_seconds) for own in found] == [2, 2]
    assert [note.partition(":")[0] for note in notes] == ["ours", "theirs"] * 3
    # An interpreter that starts takes some of everything.
    assert all(seconds > 0.005 for own in found for seconds in own.cpu_seconds)


def test_an_index_without_a_picture_is_an_error(
    shop: Shop, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    short = System("short", lambda out: one_by_one(out)[1:], counted)
    monkeypatch.setattr(benchmarks.speed_commands, "_systems", lambda *_: [short])
    with pytest.raises(BenchmarkError, match="short: 2 of 3 are indexed"):
        measure_commands(shop, "any", Peers(), tmp_path, rounds=1, note=lambda _: None)


def test_what_a_failed_command_said_is_told(
    shop: Shop, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(_: Path) -> list[list[str]]:
        return [[sys.executable, "-c", "raise SystemExit('out of cake')"]]

    monkeypatch.setattr(
        benchmarks.speed_commands, "_systems", lambda *_: [System("bad", fails, counted)]
    )
    with pytest.raises(BenchmarkError, match="failed: out of cake"):
        measure_commands(shop, "any", Peers(), tmp_path, rounds=1, note=lambda _: None)
    monkeypatch.setattr(
        benchmarks.speed_commands,
        "_systems",
        lambda *_: [System("none", lambda _: [["no-such-program"]], counted)],
    )
    with pytest.raises(BenchmarkError, match="no-such-program cannot be started"):
        measure_commands(shop, "any", Peers(), tmp_path, rounds=1, note=lambda _: None)


def test_the_table_compares_round_by_round(tmp_path: Path) -> None:
    ours = Indexed("ours", [1.0, 2.0, 4.0], [1.0, 1.0, 1.0])
    theirs = Indexed("theirs", [3.0, 12.0, 8.0], [5.0, 6.0, 7.0])
    cells = ["theirs", "8.0 [3.0–12.0]", "6.0 [5.0–7.0]"]
    cells += ["3.00× [2.00–6.00]", "6.00× [5.00–7.00]"]
    assert command_cells(theirs, ours) == cells
    write_commands([ours, theirs], 500, "the command", tmp_path / "out")
    page = (tmp_path / "out" / "commands.md").read_text()
    assert f"| {' | '.join(COLUMNS)} |\n| --- |{' ---: |' * 4}\n| ours | 2.0 [1.0–4.0] |" in page
    assert f"| {' | '.join(cells)} |" in page
    assert "500 pictures; medians of 3 rounds" in page
    stored = json.loads((tmp_path / "out" / "commands.json").read_text())
    assert stored["systems"][1]["seconds"] == theirs.seconds


def test_every_system_that_is_there_gets_a_turn(shop: Shop, tmp_path: Path, folder: Path) -> None:
    peers = Peers(tmp_path / "fast", None, Path("cr/bin/python"))
    systems = benchmarks.speed_commands._systems(shop, str(folder), peers, tmp_path)
    ours, matched, loop, retrieval = (one.steps(tmp_path / "out") for one in systems)
    assert [one.name for one in systems][2:] == ["open_clip loop", "clip-retrieval"]
    assert [ours[0][6], matched[0][6]] == [str(tmp_path / "fast")] * 2
    plain = benchmarks.speed_commands._systems(shop, str(folder), Peers(), tmp_path)
    assert [one.steps(tmp_path / "out")[0][6] for one in plain[:2]] == [str(folder)] * 2
    assert len(plain) == 3
    assert ("--no-match" in ours[0], "--no-match" in matched[0]) == (True, False)
    weights = str(folder / "model.safetensors")
    assert loop[0][-3:-1] == ["ViT-B-32", weights]
    assert f"open_clip:ViT-B-32/{weights}" in retrieval[0]
    assert retrieval[0][0] == "cr/bin/clip-retrieval"


@pytest.mark.parametrize("model", ["builtin", "hf-hub:some/model"])
def test_models_that_others_do_not_know_are_refused(shop: Shop, tmp_path: Path, model: str) -> None:
    with pytest.raises(BenchmarkError, match="none of open_clip's architectures"):
        benchmarks.speed_commands._systems(shop, model, Peers(), tmp_path)


def test_sizes_are_those_of_the_architecture() -> None:
    sizes = benchmarks.speed_commands._sizes("ViT-L-14")
    assert sizes["projection_dim"] == 768
    eye, text = sizes["vision_config"], sizes["text_config"]
    assert (eye["hidden_size"], eye["num_attention_heads"], eye["intermediate_size"]) == (
        1024, 16, 4096,
    )  # fmt: skip
    assert (eye["patch_size"], eye["num_hidden_layers"], text["hidden_size"]) == (14, 24, 768)
    with pytest.raises(BenchmarkError, match="RN50 is no ViT"):
        benchmarks.speed_commands._sizes("RN50")


def test_the_loop_finds_what_the_encoder_gives(
    shop: Shop, tmp_path: Path, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With the model that open_clip would make of the same configuration."""
    import_torchvision()
    import open_clip

    made = load_encoder(str(folder))
    assert isinstance(made, ClipEncoder)

    def create(architecture: str, *, pretrained: str) -> Any:
        assert (architecture, pretrained) == ("ViT-B-32", "weights.pt")

        def preprocess(picture: Image.Image) -> torch.Tensor:
            return torch.from_numpy(made.preprocess(picture))

        return made.model, None, preprocess

    monkeypatch.setattr(open_clip, "create_model_and_transforms", create)
    open_clip_loop(str(shop.catalog), "ViT-B-32", "weights.pt", str(tmp_path / "faiss"))
    found = faiss.read_index(str(tmp_path / "faiss"))
    pictures = [Image.open(path) for path in shop.pictures]
    np.testing.assert_allclose(
        found.reconstruct_n(0, found.ntotal), made.embed_images(pictures), atol=1e-6
    )


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small model that says it is one of open_clip's."""
    import_torchvision()
    import open_clip

    torch.manual_seed(0)
    config = {
        "embed_dim": 8,
        "vision_cfg": {"image_size": 32, "layers": 1, "width": 64, "patch_size": 16},
        "text_cfg": {
            "context_length": 77, "vocab_size": 49408, "width": 8, "heads": 1, "layers": 1,
        },
    }  # fmt: skip
    eye = {"size": 32, "mode": "RGB", "mean": [0.5] * 3, "std": [0.5] * 3}
    whole = {"model_cfg": config, "preprocess_cfg": eye, "tokenizer": "ViT-B-32"}
    model = ClipEncoder("small", create_model(config), open_clip.get_tokenizer("ViT-B-32"), whole)
    path = tmp_path_factory.mktemp("model")
    model.save(path, card="")
    return path
