"""Which encoders may ask an index that another one made."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from indexing.build import build_index
from indexing.catalog import read_catalog
from indexing.errors import IndexMismatchError
from indexing.models.protocol import Parent
from indexing.update import update_index
from search.engine import SearchEngine
from search.server.batching import BatchingEncoder
from search.server.opening import open_engines
from tests.conftest import TinyEncoder


def write_catalog(folder: Path, colours: list[str]) -> Path:
    lines = ["id,title,image"]
    for colour in colours:
        Image.new("RGB", (8, 8), colour).save(folder / f"{colour}.png")
        lines.append(f"{colour},{colour} mug,{colour}.png")
    path = folder / "catalog.csv"
    path.write_text("\n".join(lines) + "\n")
    return path


@pytest.fixture
def index(tmp_path: Path, tiny_encoder: Any) -> Path:
    catalog = write_catalog(tmp_path, ["red", "blue"])
    build_index(read_catalog(catalog), tiny_encoder, tmp_path / "index")
    return tmp_path / "index"


def child_of(parent: TinyEncoder, *, passed: bool) -> TinyEncoder:
    child = TinyEncoder("child")
    child.name = "fast"
    child.parent = Parent(parent.fingerprint, passed)  # type: ignore[attr-defined]
    return child


@pytest.mark.parametrize("batching", [False, True])
def test_one_that_passed_asks_and_goes_on_asking(
    index: Path, tmp_path: Path, tiny_encoder: Any, batching: bool
) -> None:
    child: Any = child_of(tiny_encoder, passed=True)
    if batching:
        child = BatchingEncoder(child)
    engine = SearchEngine.open(index, model="fast", load=lambda name: child)
    assert [hit.product_id for hit in engine.search(text="red", k=1)] == ["red"]
    # The parent writes a new version, and the child asks that one, too.
    catalog = write_catalog(tmp_path, ["red", "blue", "lime"])
    update_index(read_catalog(catalog), tiny_encoder, index)
    assert [hit.product_id for hit in engine.search(text="lime", k=1)] == ["lime"]
    assert engine.current().encoder is child
    assert engine.current().index.manifest.version == 2


def test_one_that_was_forced_may_not(index: Path, tiny_encoder: Any) -> None:
    child = child_of(tiny_encoder, passed=False)
    with pytest.raises(IndexMismatchError, match=r"optimised from it.* made with --force"):
        SearchEngine.open(index, model="fast", load=lambda name: child)


def test_one_of_another_parent_may_not(index: Path, other_encoder: Any) -> None:
    child = child_of(other_encoder, passed=True)
    with pytest.raises(IndexMismatchError, match="was made by encoder tiny"):
        SearchEngine.open(index, model="fast", load=lambda name: child)


def test_it_writes_nothing_into_the_parents_index(
    index: Path, tmp_path: Path, tiny_encoder: Any
) -> None:
    before = (index / "manifest.json").read_bytes()
    child = child_of(tiny_encoder, passed=True)
    catalog = write_catalog(tmp_path, ["red", "blue", "lime"])
    with pytest.raises(IndexMismatchError, match="may ask this index and not write to it"):
        update_index(read_catalog(catalog), child, index)
    assert (index / "manifest.json").read_bytes() == before
    # A build makes the index anew, with vectors of the child alone.
    report = build_index(read_catalog(catalog), child, index)
    assert (report.encoded, report.reused) == (3, 0)


def test_a_server_asks_all_its_indexes_by_the_model_given(
    index: Path, tiny_encoder: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    child = child_of(tiny_encoder, passed=True)
    models = {"tiny": tiny_encoder, "fast": child}
    monkeypatch.setattr("search.server.opening.load_encoder", models.__getitem__)
    engines = open_engines({"a": index, "b": index}, model="fast")
    assert [hit.product_id for hit in engines["b"].search(text="blue", k=1)] == ["blue"]
    assert engines["a"].current().encoder.fingerprint == child.fingerprint
    assert engines["a"].current().encoder is engines["b"].current().encoder
