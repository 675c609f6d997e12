from __future__ import annotations

import csv
import io
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from typer.testing import CliRunner, Result

from indexing.errors import IndexMismatchError, ModelError
from indexing.store import open_index
from shoplens import app


@pytest.fixture(autouse=True)
def models(monkeypatch: pytest.MonkeyPatch, tiny_encoder: Any, tiny_classifier: Any) -> Any:
    """`builtin` and `tiny` are an encoder, `cma` a classifier that calls itself that."""

    def load(folder: Path, **_: object) -> Any:
        if str(folder) != "cma":
            raise ModelError(f"{folder} is no attribute classifier")
        return tiny_classifier

    tiny_classifier.name = "cma"
    encoders = {"builtin": tiny_encoder, "tiny": tiny_encoder}
    monkeypatch.setattr("indexing.models.load_encoder", encoders.__getitem__)
    monkeypatch.setattr("indexing.models.cma_clip.load_attributes", load)
    return tiny_classifier


@pytest.fixture
def catalog(tmp_path: Path) -> Path:
    for colour in ("red", "blue", "white"):
        Image.new("RGB", (8, 8), colour).save(tmp_path / f"{colour}.png")
    (tmp_path / "catalog.csv").write_text(
        "id,title,image,color\nA,mug,red.png,\nB,sock,blue.png,Blue\nC,thing,white.png,\n"
    )
    return tmp_path / "catalog.csv"


def run(*arguments: object) -> Result:
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


def test_index_says_what_is_given_filled_in_and_open(catalog: Path, tmp_path: Path) -> None:
    shop = tmp_path / "shop"
    result = run("index", catalog, "--out", shop, "--attributes", "cma")
    assert result.exception is None
    lines = [
        "  color:    1 given (33%), 1 filled in (33%), 1 not sure (33%)",
        "  kind:     0 given (0%), 2 filled in (67%), 1 not sure (33%)",
    ]
    assert result.stdout.splitlines()[-2:] == lines
    assert "will have none" not in result.stderr
    info = run("info", shop).stdout.splitlines()
    place = info.index("  attributes by cma")
    assert info[place + 1 : place + 3] == lines
    again = run("index", catalog, "--out", shop, "--attributes", "cma").stdout.splitlines()
    assert "up to date" in again[0]
    assert again[-2:] == lines


def test_an_index_that_is_built_without_says_that_its_attributes_go(
    catalog: Path, tmp_path: Path
) -> None:
    shop = tmp_path / "shop"
    said = "has attributes, and will have none: --attributes cma keeps them"
    assert said not in run("index", catalog, "--out", shop).stderr
    run("index", catalog, "--out", shop, "--attributes", "cma")
    assert said in run("index", catalog, "--out", shop).stderr
    assert open_index(shop).attributes == {}
    assert said not in run("index", catalog, "--out", shop).stderr


def test_an_update_takes_the_classifier_of_the_index_or_says_how_to_name_it(
    catalog: Path, tmp_path: Path, models: Any
) -> None:
    shop = tmp_path / "shop"
    run("index", catalog, "--out", shop, "--attributes", "cma")
    catalog.write_text("id,title,image,color\nD,red mug,white.png,\n")
    assert run("update", shop, catalog).exception is None
    index = open_index(shop)
    row = index.products.row_of("D")
    assert {name: own.value for name, own in index.known(row).items()} == {
        "color": "Red",
        "kind": "mug",
    }
    version = index.manifest.version
    # It was moved, and what the option names is no classifier, or another one.
    models.name = "elsewhere"
    run("index", catalog, "--out", shop, "--attributes", "cma")
    missing = run("update", shop, catalog)
    assert isinstance(missing.exception, ModelError)
    assert str(missing.exception).startswith("elsewhere is no attribute classifier; it fills in")
    assert str(missing.exception).endswith("say with --attributes where it is")
    assert isinstance(run("update", shop, catalog, "--attributes", "x").exception, ModelError)
    assert run("update", shop, catalog, "--attributes", "cma").exception is None
    models.fingerprint = "f" * 64
    other = run("update", shop, catalog, "--attributes", "cma").exception
    assert isinstance(other, IndexMismatchError)
    assert "which is another: update with that one" in str(other)
    assert open_index(shop).manifest.version == version + 1  # by the one build


def test_an_index_without_attributes_is_not_updated_with_some(
    catalog: Path, tmp_path: Path
) -> None:
    shop = tmp_path / "shop"
    run("index", catalog, "--out", shop)
    refused = run("update", shop, catalog, "--attributes", "cma").exception
    assert isinstance(refused, IndexMismatchError)
    assert str(refused).endswith(
        "has no attributes: fill them in by `shoplens index` with --attributes FOLDER, or update "
        "without --attributes"
    )


def test_a_classifier_that_cannot_be_opened_is_named_before_any_work(
    catalog: Path, tmp_path: Path, tiny_encoder: Any
) -> None:
    refused = run("index", catalog, "--out", tmp_path / "shop", "--attributes", "nowhere")
    assert isinstance(refused.exception, ModelError)
    assert not (tmp_path / "shop").exists()
    assert tiny_encoder.encoded == 0


def test_an_index_without_attributes_is_exported_as_it_is(catalog: Path, tmp_path: Path) -> None:
    run("index", catalog, "--out", tmp_path / "shop")
    rows = list(csv.DictReader(io.StringIO(run("export", tmp_path / "shop").stdout)))
    assert [(row["id"], row["title"], row["color"]) for row in rows] == [
        ("A", "mug", ""), ("B", "sock", "Blue"), ("C", "thing", ""),
    ]  # fmt: skip
    assert "color_source" not in rows[0]
