"""The manifest: what it says, and what `read_split` refuses."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from benchmarks.esci.generator import EXAMPLES, MANIFEST, PRODUCTS
from benchmarks.esci.manifest import FILES, Split, read_split
from indexing.durable import sha256_of
from indexing.errors import BenchmarkError

Builder = Callable[..., Split]


def test_it_names_every_file_option_and_term(described: Path, split: Builder) -> None:
    made = split(described, seed=9, train_images="all")
    manifest = json.loads((made.folder / "manifest.json").read_text())
    assert manifest["options"]["seed"] == 9
    assert manifest["options"]["train_images"] == "all"
    assert manifest["files"].keys() == set(FILES)
    for name, record in manifest["files"].items():
        assert record == {
            "sha256": sha256_of(made.folder / name),
            "bytes": (made.folder / name).stat().st_size,
        }
    inputs = {entry["role"]: entry for entry in manifest["inputs"]}
    assert inputs.keys() == {"examples", "products", "images:manifest", "facts", "placeholders"}
    for role, name in (
        ("examples", EXAMPLES),
        ("products", PRODUCTS),
        ("images:manifest", MANIFEST),
    ):
        assert inputs[role]["sha256"] == sha256_of(described / name)
    assert "Apache-2.0" in manifest["licences"]["esci"]
    assert manifest["licences"].keys() == {"esci", "manifest"}
    assert manifest["paper"]["test products"] == 80_000
    assert (made.folder / manifest["images_root"]).resolve() == (described / "images").resolve()


def test_read_split_gives_what_was_built(described: Path, split: Builder) -> None:
    made = split(described)
    assert read_split(made.folder) == made


@pytest.mark.parametrize("name", FILES)
def test_a_file_that_is_gone_or_changed_is_refused(
    name: str, described: Path, split: Builder
) -> None:
    made = split(described)
    data = bytearray((made.folder / name).read_bytes())
    data[len(data) // 2] ^= 1
    (made.folder / name).write_bytes(data)
    with pytest.raises(BenchmarkError, match=rf"{name} is not the file that the manifest names"):
        read_split(made.folder)
    (made.folder / name).unlink()
    with pytest.raises(BenchmarkError, match=rf"{name} cannot be read"):
        read_split(made.folder)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"format": "other"}, "no manifest of an ESCI split: format"),
        ({"format_version": 99}, "has format version 99, this program reads 1"),
        ({"counts": {}}, r"counts\.products"),
        ({"files": {}}, "does not name products.parquet"),
        ({"more": 1}, "no manifest of an ESCI split: more"),
    ],
)
def test_a_manifest_of_another_form_is_refused(
    change: dict[str, object], message: str, described: Path, split: Builder
) -> None:
    made = split(described)
    path = made.folder / "manifest.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    with pytest.raises(BenchmarkError, match=message):
        read_split(made.folder)


def test_a_folder_without_a_split_says_how_to_make_one(tmp_path: Path) -> None:
    with pytest.raises(BenchmarkError, match="shoplens bench esci-split"):
        read_split(tmp_path)
    (tmp_path / "manifest.json").write_bytes(b"\xff")
    with pytest.raises(BenchmarkError, match="not UTF-8"):
        read_split(tmp_path)
    (tmp_path / "manifest.json").write_text("no JSON")
    with pytest.raises(BenchmarkError, match="no manifest of an ESCI split"):
        read_split(tmp_path)
