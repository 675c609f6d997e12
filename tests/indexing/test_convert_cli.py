"""`shoplens convert`: a checkpoint becomes a folder that is the same model."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
import typer
from typer.testing import CliRunner, Result

from indexing import convert_cli
from indexing.errors import ModelError
from indexing.models import load_encoder
from indexing.models.albef.config import AlbefConfig
from indexing.models.albef.encoder import new_encoder

pytestmark = pytest.mark.usefixtures("one_thread")
app = typer.Typer()
app.command()(convert_cli.convert)


@pytest.fixture
def checkpoint(tmp_path: Path, albef_config: AlbefConfig, albef_vocab: Path) -> Path:
    encoder = new_encoder(albef_config, albef_vocab, seed=0, device="cpu")
    state = encoder.model.state_dict()
    state["image_queue"] = torch.zeros(6, 5000)
    file = tmp_path / "downloads" / "ALBEF.pth"
    file.parent.mkdir()
    torch.save({"model": state}, file)
    (file.parent / "vocab.txt").write_bytes(albef_vocab.read_bytes())
    (file.parent / "config.json").write_text(albef_config.model_dump_json())
    return file


def run(*arguments: object) -> Result:
    return CliRunner().invoke(app, list(map(str, arguments)))


def test_a_checkpoint_becomes_a_folder(checkpoint: Path, tmp_path: Path) -> None:
    out = tmp_path / "models" / "albef"
    result = run(f"albef:{checkpoint}", "--out", out)
    assert result.exception is None
    assert result.stdout == (
        f"model written to {out}: try `shoplens index CATALOG --out DIR --model {out}`\n"
    )
    before, after = (load_encoder(name, device="cpu") for name in (f"albef:{checkpoint}", str(out)))
    assert before.fingerprint == after.fingerprint
    np.testing.assert_array_equal(before.embed_texts(["red mug"]), after.embed_texts(["red mug"]))
    assert (out / "model.safetensors").stat().st_size < 0.7 * checkpoint.stat().st_size
    card = (out / "README.md").read_text()
    assert "# ALBEF, from ALBEF.pth\n" in card
    assert "24 x 24 pixels" in card
    assert "how well a title fits a picture" in card
    assert str(tmp_path) not in card


def test_half_is_half_as_large(checkpoint: Path, tmp_path: Path) -> None:
    for name, more in (("whole", ()), ("half", ("--half",))):
        assert run(f"albef:{checkpoint}", "--out", tmp_path / name, *more).exit_code == 0
    sizes = [(tmp_path / name / "model.safetensors").stat().st_size for name in ("whole", "half")]
    assert sizes[1] < 0.8 * sizes[0]


def test_other_files_are_never_written_among(
    checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("indexing.models.load_encoder", lambda *_, **__: pytest.fail("was loaded"))
    (tmp_path / "file").write_text("")
    for out in (checkpoint.parent, tmp_path / "file"):
        before = sorted(checkpoint.parent.iterdir())
        result = run(f"albef:{checkpoint}", "--out", out)
        assert isinstance(result.exception, ModelError)
        assert str(result.exception) == (
            f"--out {out} is there already: name a new folder, or empty it"
        )
        assert sorted(checkpoint.parent.iterdir()) == before


def test_an_empty_folder_will_do(checkpoint: Path, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    assert run(f"albef:{checkpoint}", "--out", tmp_path / "out").exit_code == 0
    assert (tmp_path / "out" / "model.safetensors").is_file()


def test_what_is_not_albef_is_refused_with_the_way_out(checkpoint: Path, tmp_path: Path) -> None:
    for model, message in (
        ("builtin", "builtin is not an ALBEF model: only these are converted, as albef:PATH"),
        (str(checkpoint), f"{checkpoint} is a file: write albef:{checkpoint}"),
        ("albef:missing.pth", "albef:missing.pth does not exist: give a checkpoint"),
    ):
        result = run(model, "--out", tmp_path / "out")
        assert isinstance(result.exception, ModelError)
        assert message in str(result.exception)
    assert not (tmp_path / "out").exists()
