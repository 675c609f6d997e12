"""`builtin` without torch: its graphs belong to its weights and give its vectors."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from safetensors.numpy import load_file, save_file

import indexing.models
from indexing.build import build_index
from indexing.catalog import read_catalog
from indexing.models import BUILTIN, load_asker, load_encoder
from indexing.models.builtin_graphs import load_builtin_graphs, write_graphs
from indexing.models.clip import ClipEncoder
from indexing.models.config_file import WEIGHTS
from indexing.models.protocol import parent_of

onnx = pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")

TITLES = ("red mug", "Nike Men Air Zoom Pegasus Black Running Shoes, size 42 " * 3, "x", "")


def pictures(count: int = 5) -> list[Image.Image]:
    rng = np.random.default_rng(0)
    sizes = [(40, 90), (300, 200), (224, 224), (7, 9), (640, 480)]
    return [Image.fromarray(rng.integers(0, 256, (*size, 3), np.uint8)) for size in sizes[:count]]


def test_it_is_the_same_encoder() -> None:
    plain, quick = load_encoder("builtin", device="cpu"), load_builtin_graphs()
    assert (quick.name, quick.fingerprint) == (plain.name, plain.fingerprint)
    assert (quick.dim, quick.image_size) == (plain.dim, plain.image_size)
    assert parent_of(quick) is None
    shown = pictures()
    np.testing.assert_array_equal(quick.preprocess(shown[0]), plain.preprocess(shown[0]))
    np.testing.assert_allclose(quick.embed_images(shown), plain.embed_images(shown), atol=5e-6)
    np.testing.assert_allclose(quick.embed_texts(TITLES), plain.embed_texts(TITLES), atol=5e-6)
    assert quick.embed_texts([]).shape == quick.embed_images([]).shape == (0, quick.dim)


def test_its_weights_are_those_of_the_file(tmp_path: Path) -> None:
    """Whoever changes a weight where it lies changes the graph's answers as torch's."""
    folder = tmp_path / "model"
    shutil.copytree(BUILTIN, folder)
    arrays = load_file(folder / WEIGHTS)
    for name in ("visual.head.proj.weight", "text_projection", "ln_final.bias"):
        assert name in arrays
        arrays[name] = -2 * arrays[name]
    save_file(arrays, folder / WEIGHTS)
    quick, found = load_builtin_graphs(folder), load_encoder(str(folder), device="cpu")
    assert quick.fingerprint == found.fingerprint != load_builtin_graphs().fingerprint
    np.testing.assert_allclose(quick.embed_texts(TITLES), found.embed_texts(TITLES), atol=5e-6)
    shown = pictures(2)
    np.testing.assert_allclose(quick.embed_images(shown), found.embed_images(shown), atol=5e-6)
    assert (quick.embed_images(shown) * load_builtin_graphs().embed_images(shown)).sum() < 0


def test_the_graphs_hold_no_weights_and_name_every_one(tmp_path: Path) -> None:
    """A graph is a copy of nothing: every parameter of the file is looked up, once, as float16."""
    stored = {
        name: value
        for name, value in load_file(BUILTIN / WEIGHTS).items()
        if value.dtype == np.float16
    }
    seen: dict[str, Any] = {}
    for side in ("picture", "text"):
        graph = onnx.load(BUILTIN / f"{side}.onnx", load_external_data=False).graph
        for tensor in graph.initializer:
            if not tensor.external_data:
                assert np.prod(tensor.dims) <= 64 * 64
                continue
            place = {entry.key: entry.value for entry in tensor.external_data}
            assert place["location"] == WEIGHTS
            name = tensor.name.removeprefix("model.").removesuffix(".half")
            assert name not in seen
            seen[name] = place
            value = stored[name]
            assert (tuple(tensor.dims), int(place["length"])) == (value.shape, value.nbytes)
            with (BUILTIN / WEIGHTS).open("rb") as file:
                file.seek(int(place["offset"]))
                assert file.read(value.nbytes) == value.tobytes()
    assert set(stored) - set(seen) == {"logit_scale"}
    assert sum((BUILTIN / f"{side}.onnx").stat().st_size for side in ("picture", "text")) < 400_000


def test_the_graphs_can_be_written_anew(tmp_path: Path) -> None:
    folder = tmp_path / "model"
    shutil.copytree(BUILTIN, folder)
    for side in ("picture", "text"):
        (folder / f"{side}.onnx").unlink()
    write_graphs(folder)
    anew, shipped = load_builtin_graphs(folder), load_builtin_graphs()
    assert anew.fingerprint == shipped.fingerprint
    np.testing.assert_allclose(anew.embed_texts(TITLES), shipped.embed_texts(TITLES), atol=1e-6)
    np.testing.assert_allclose(
        anew.embed_images(pictures()), shipped.embed_images(pictures()), atol=1e-6
    )


def test_without_onnxruntime_torch_answers(monkeypatch: pytest.MonkeyPatch) -> None:
    assert not isinstance(load_asker("builtin"), ClipEncoder)
    monkeypatch.setattr(indexing.models, "find_spec", lambda name: None)
    assert isinstance(load_asker("builtin"), ClipEncoder)
    assert isinstance(load_asker(str(BUILTIN)), ClipEncoder)  # any other name


_ASK = """
import sys
from typer.testing import CliRunner
from shoplens import app
index, image = sys.argv[1:]
for query in (["--text", "red"], ["--image", image]):
    found = CliRunner().invoke(app, ["search", index, *query, "--json", "-k", "1"])
    print(found.stdout.strip(), file=sys.stdout)
print("torch" in sys.modules)
"""


def test_a_search_imports_no_torch(tmp_path: Path) -> None:
    colours = ("red", "green", "blue")
    for colour in colours:
        Image.new("RGB", (32, 32), colour).save(tmp_path / f"{colour}.png")
    rows = "".join(f"{colour},{colour},{colour}.png\n" for colour in colours)
    (tmp_path / "shop.csv").write_text(f"id,title,image\n{rows}")
    encoder = load_encoder("builtin", device="cpu")
    build_index(read_catalog(tmp_path / "shop.csv"), encoder, tmp_path / "index")
    asked = [str(tmp_path / "index"), str(tmp_path / "blue.png")]
    done = subprocess.run(
        [sys.executable, "-c", _ASK, *asked], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    *answers, imported = done.stdout.splitlines()
    assert [json.loads(answer)["product_id"] for answer in answers] == ["red", "blue"]
    assert imported == "False"
