"""Optimised models: the parent's vectors out of other runtimes, and folders that are checked."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from indexing.errors import MissingDependencyError, ModelError
from indexing.models import load_encoder
from indexing.models.albef.config import AlbefConfig
from indexing.models.albef.encoder import AlbefEncoder, new_encoder
from indexing.models.clip import ClipEncoder
from indexing.models.optimized.encoder import load_optimized
from indexing.models.optimized.exporting import Exported, export_towers
from indexing.models.optimized.making import Examples, Recipe, examples_of, make_model
from indexing.models.optimized.runtimes import RuntimeName
from indexing.models.token_pruning import Pruning, TokenPruning
from tests.indexing.conftest import PIECES
from tests.indexing.test_models import CONVOLUTIONAL, PRUNED, pictures, write_folder, write_pruned

pytestmark = pytest.mark.usefixtures("one_thread")

TITLES = ["red mug", "large blue shoe mug red", "", "mug " * 30, "blue", "sofa red shoe"]
RUNTIMES: list[RuntimeName] = ["openvino", "onnx"]


@dataclass
class Made:
    """A parent, its graphs, and inputs to measure on."""

    encoder: ClipEncoder | AlbefEncoder
    exported: Exported
    folder: Path

    def examples(self) -> Examples:
        shown = [self.encoder.preprocess(picture) for picture in pictures(8)]
        return examples_of(self.encoder, self.exported, shown, TITLES)

    def model(self, runtime: RuntimeName, *, int8: bool, **kept: tuple[str, ...]) -> Path:
        folder = self.folder / f"{runtime}-{int8}-{len(kept)}"
        if not folder.exists():
            recipe = Recipe(runtime, int8, kept=kept)
            make_model(self.encoder, self.exported, recipe, self.examples(), folder)
        return folder


def albef(folder: Path) -> AlbefEncoder:
    """Drops some of the tokens of TITLES."""
    config = AlbefConfig(
        image_size=24, patch_size=8, vision_width=16, vision_layers=1, vision_heads=2,
        vocab_size=len(PIECES), text_width=12, text_layers=3, text_heads=2,
        text_intermediate=20, fusion_layer=2, max_positions=14, embed_dim=6, max_text_length=10,
    )  # fmt: skip
    folder.mkdir()
    (folder / "vocab.txt").write_text("\n".join(PIECES) + "\n", encoding="utf-8")
    encoder = new_encoder(config, folder / "vocab.txt", seed=0)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for value in encoder.model.parameters():
            value.add_(0.2 * torch.randn(value.shape, generator=generator))
    never = float("-inf")
    four = {"base": (-0.05, never, never, 0.0), "trained": (True,) * 4, "temperature": (1.0,) * 4}
    encoder.pruning = TokenPruning(Pruning(**{**PRUNED.model_dump(), **four}))
    return encoder


def whole(folder: Path) -> ClipEncoder:
    """Reads its texts with the padding, and sees by convolutions."""
    text = {**CONVOLUTIONAL["text_cfg"], "pool_type": "last"}
    vision = {**CONVOLUTIONAL["vision_cfg"], "timm_model_name": "test_efficientnet"}
    return write_folder(folder, {**CONVOLUTIONAL, "text_cfg": text, "vision_cfg": vision})


PARENTS = {"pruned": write_pruned, "albef": albef, "whole": whole}


@pytest.fixture(scope="module")
def make(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Made]:
    """Exports each parent once."""

    @cache
    def make(name: str) -> Made:
        folder = tmp_path_factory.mktemp(name)
        encoder = PARENTS[name](folder / "parent")
        return Made(encoder, export_towers(encoder, folder), folder)

    return make


@pytest.fixture(scope="module", params=PARENTS)
def made(request: pytest.FixtureRequest, make: Callable[[str], Made]) -> Made:
    return make(request.param)


@pytest.fixture(scope="module")
def one(make: Callable[[str], Made]) -> Made:
    return make("pruned")


def layers(graph: Path) -> list[str]:
    """The names of all that would be computed in int8."""
    import onnx

    quantised = ("Conv", "MatMul", "Gemm")
    return [node.name for node in onnx.load(graph).graph.node if node.op_type in quantised]


def cosines(left: NDArray[np.float32], right: NDArray[np.float32]) -> NDArray[np.float32]:
    found: NDArray[np.float32] = (left * right).sum(1)
    return found


@pytest.mark.parametrize("runtime", RUNTIMES)
def test_in_float32_the_vectors_are_the_parents(made: Made, runtime: RuntimeName) -> None:
    parent, child = made.encoder, load_encoder(str(made.model(runtime, int8=False)))
    assert (child.dim, child.image_size) == (parent.dim, parent.image_size)
    assert child.fingerprint != parent.fingerprint
    np.testing.assert_array_equal(
        child.preprocess(pictures(1)[0]), parent.preprocess(pictures(1)[0])
    )
    seen = child.embed_images(pictures(5))
    assert cosines(seen, parent.embed_images(pictures(5))).min() > 0.99999
    read = child.embed_texts(TITLES)
    assert cosines(read, parent.embed_texts(TITLES)).min() > 0.99999
    # Whatever else is in the batch, and however long it is.
    alone = [child.embed_texts([title])[0] for title in reversed(TITLES)]
    assert cosines(np.stack(alone[::-1]), read).min() > 0.99999
    assert cosines(child.embed_images(pictures(5)[:1]), seen[:1]).min() > 0.99999
    assert child.embed_texts([]).shape == child.embed_images([]).shape == (0, parent.dim)


@pytest.mark.parametrize("runtime", RUNTIMES)
def test_batches_that_go_together_come_back_in_order(made: Made, runtime: RuntimeName) -> None:
    child = load_optimized(made.model(runtime, int8=True))
    pixels = np.stack([child.preprocess(picture) for picture in pictures(23)])
    batches = [pixels[start : start + 2] for start in range(0, 23, 2)]
    found = list(child.embed_batches(batches))
    assert [len(part) for part in found] == [len(part) for part in batches]
    np.testing.assert_allclose(np.concatenate(found), child.embed_pixels(pixels), atol=1e-5)
    assert list(child.embed_batches([])) == []


_BUILD = """
import sys
from pathlib import Path
from indexing.build import build_index
from indexing.catalog import read_catalog
from indexing.models import load_encoder
from search.engine import SearchEngine
model, catalog, out = sys.argv[1:]
build_index(read_catalog(Path(catalog)), load_encoder(model), Path(out))
engine = SearchEngine.open(out)
engine.search(text="red mug")
found = engine.search(image=Path(catalog).with_name("0.png"), k=1)
print(found[0].product_id, "torch" in sys.modules)
"""


@pytest.mark.parametrize("runtime", RUNTIMES)
def test_to_index_and_to_search_with_one_takes_no_torch(
    one: Made, tmp_path: Path, runtime: RuntimeName
) -> None:
    for number, picture in enumerate(pictures(3)):
        picture.save(tmp_path / f"{number}.png")
    rows = "".join(f"p{number},red mug,{number}.png\n" for number in range(3))
    (tmp_path / "shop.csv").write_text(f"id,title,image\n{rows}")
    paths = (one.model(runtime, int8=False), tmp_path / "shop.csv", tmp_path / "index")
    done = subprocess.run(
        [sys.executable, "-c", _BUILD, *map(str, paths)],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.stdout.split() == ["p0", "False"], done.stderr


@pytest.mark.parametrize("runtime", RUNTIMES)
def test_int8_is_close_and_not_the_same(made: Made, runtime: RuntimeName) -> None:
    child = load_encoder(str(made.model(runtime, int8=True)))
    seen = cosines(child.embed_images(pictures(8)), made.encoder.embed_images(pictures(8)))
    read = cosines(child.embed_texts(TITLES), made.encoder.embed_texts(TITLES))
    # Narrow convolutions with weights at random suffer more than any network that was trained.
    assert seen.min() > (0.5 if made.folder.name.startswith("whole") else 0.95)
    assert read.min() > 0.95
    assert max(seen.min(), read.min()) < 0.999999
    assert np.allclose(np.linalg.norm(child.embed_images(pictures(2)), axis=1), 1, atol=1e-6)


@pytest.mark.parametrize("runtime", RUNTIMES)
def test_layers_that_are_kept_are_not_rounded(
    make: Callable[[str], Made], runtime: RuntimeName
) -> None:
    made = make("whole")
    graphs = {"picture": made.exported.picture, "text": made.exported.text}
    every = {side: tuple(layers(graph)) for side, graph in graphs.items()}
    child = load_encoder(str(made.model(runtime, int8=True, **every)))
    seen = cosines(child.embed_images(pictures(8)), made.encoder.embed_images(pictures(8)))
    read = cosines(child.embed_texts(TITLES), made.encoder.embed_texts(TITLES))
    assert min(seen.min(), read.min()) > 0.99999


def test_a_folder_is_checked(one: Made, tmp_path: Path) -> None:
    whole = one.model("onnx", int8=False)
    assert load_encoder(str(whole)).fingerprint == load_encoder(str(whole)).fingerprint

    def copy(name: str) -> Path:
        return Path(shutil.copytree(whole, tmp_path / name))

    assert load_encoder(str(copy("moved"))).fingerprint == load_encoder(str(whole)).fingerprint
    gone = copy("gone")
    (gone / "text.onnx").unlink()
    with pytest.raises(ModelError, match=r"text\.onnx cannot be read"):
        load_encoder(str(gone))
    for name in ("picture.onnx", "tokenizer.json"):
        damaged = copy(f"damaged {name}")
        data = bytearray((damaged / name).read_bytes())
        data[len(data) // 2] ^= 1
        (damaged / name).write_bytes(data)
        with pytest.raises(ModelError, match=f"{name} is damaged: make it again"):
            load_encoder(str(damaged))
    changed = copy("changed")
    config = json.loads((changed / "config.json").read_text())
    config["parent"]["fingerprint"] = "0" * 64
    (changed / "config.json").write_text(json.dumps(config))
    with pytest.raises(ModelError, match=r"config\.json was changed"):
        load_encoder(str(changed))
    config["runtime"] = "tensorrt"
    (changed / "config.json").write_text(json.dumps(config))
    with pytest.raises(ModelError, match=r"config\.json has runtime: Input should be"):
        load_encoder(str(changed))


@pytest.mark.parametrize(
    ("runtime", "library"), [("openvino", "openvino"), ("onnx", "onnxruntime")]
)
def test_without_its_runtime_a_folder_names_what_to_install(
    one: Made, runtime: RuntimeName, library: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = one.model(runtime, int8=False)
    monkeypatch.delitem(sys.modules, f"indexing.models.optimized.{runtime}_runtime")
    monkeypatch.setitem(sys.modules, library, None)
    with pytest.raises(MissingDependencyError, match=rf"{library}: pip .*'shoplens\[{runtime}\]'"):
        load_encoder(str(folder))


def test_other_devices_are_for_the_parent(one: Made) -> None:
    with pytest.raises(ModelError, match="runs on the CPU and not on cuda"):
        load_encoder(str(one.model("onnx", int8=False)), device="cuda")


def test_only_towers_that_are_known_are_exported(tiny_encoder: Any, tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="tiny is no model of torch"):
        export_towers(tiny_encoder, tmp_path)


def test_openvino_does_not_report_on_its_users(one: Made) -> None:
    one.model("openvino", int8=True)
    assert sys.modules["openvino_telemetry"] is None
