from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import typer
from numpy.typing import NDArray
from PIL import Image
from typer.testing import CliRunner, Result

from benchmarks import upgrade_cli
from benchmarks.upgrade import upgrade
from benchmarks.upgrade_queries import Query, own_queries, read_queries
from indexing.build import build_index
from indexing.catalog import read_catalog
from indexing.committing import earlier_versions, roll_back
from indexing.errors import BenchmarkError, IndexFolderError
from indexing.store import open_index
from search.engine import SearchEngine
from tests.conftest import TinyEncoder

COLOURS = ["red", "lime", "blue", "gold", "navy", "white", "black", "teal", "pink", "olive"]


class Blind(TinyEncoder):
    """Sees the same in every picture."""

    name = "blind"

    def embed_pixels(self, pixels: NDArray[np.float32]) -> NDArray[np.float32]:
        vectors = np.zeros((len(pixels), self.dim), np.float32)
        vectors[:, 0] = 1
        return vectors


@pytest.fixture
def folder(tmp_path: Path, tiny_encoder: Any) -> Path:
    """An index of twenty products, two of each colour: a picture each, and every other a second."""
    lines = ["id,title,image"]
    for number in range(20):
        colour = COLOURS[number % 10]
        picture = Image.new("RGB", (8, 8), colour)
        picture.putpixel((0, 0), (number, 0, 0))
        picture.save(tmp_path / f"{number}.png")
        picture.putpixel((7, 7), (0, number, 0))
        picture.save(tmp_path / f"{number}b.png")
        further = f"|{number}b.png" if number % 2 else ""
        lines.append(f"p{number},{colour} thing {number},{number}.png{further}")
    (tmp_path / "catalog.csv").write_text("\n".join(lines) + "\n")
    build_index(read_catalog(tmp_path / "catalog.csv"), tiny_encoder, tmp_path / "index")
    return tmp_path / "index"


def run(folder: Path, old: Any, new: Any, **options: Any) -> Any:
    before = open_index(folder)
    return upgrade(before, old, new, own_queries(before), **{"margin": 0.02, **options})


def test_a_model_that_finds_as_much_takes_over_and_can_be_rolled_back(
    folder: Path, tiny_encoder: Any, other_encoder: Any
) -> None:
    old = open_index(folder)
    done = run(folder, tiny_encoder, other_encoder)
    assert done.swapped
    assert done.comparison.queries == 10  # the further pictures
    assert (done.comparison.gain.mean, done.comparison.gain.low) == (0, 0)
    index = open_index(folder, encoder=other_encoder)
    assert index.manifest.change == "upgrade from tiny to tiny"
    assert index.products.ids == old.products.ids
    assert np.array_equal(index.vectors[:], old.vectors[:])
    assert index.images.table.equals(old.images.table)
    assert not (folder / ".staging").exists()
    assert [earlier.version for earlier in earlier_versions(folder)] == [1]
    roll_back(folder)
    assert open_index(folder, encoder=tiny_encoder).manifest.encoder == old.manifest.encoder


def test_a_model_that_finds_less_is_refused_and_its_work_is_kept(
    folder: Path, tiny_encoder: Any
) -> None:
    manifest = (folder / "manifest.json").read_bytes()
    blind = Blind("blind")
    done = run(folder, tiny_encoder, blind)
    assert not done.swapped
    # The blind one answers in catalog order: of the ten askers those among the first products.
    assert done.comparison.old.mean == 1
    assert done.comparison.new.mean == 0.5
    assert done.comparison.gain.mean == -0.5
    assert done.comparison.gain.low < done.comparison.gain.high < 0
    assert (folder / "manifest.json").read_bytes() == manifest
    blind.encoded = 0
    assert run(folder, tiny_encoder, blind, force=True).swapped
    assert blind.encoded == 0
    assert open_index(folder).manifest.encoder.name == "blind"


def test_a_wide_margin_lets_it_pass(folder: Path, tiny_encoder: Any) -> None:
    assert run(folder, tiny_encoder, Blind("blind"), margin=1.0).swapped


def test_pictures_that_are_gone_are_rejected_or_stop_it(
    folder: Path, tmp_path: Path, tiny_encoder: Any, other_encoder: Any
) -> None:
    (tmp_path / "4.png").unlink()
    done = run(folder, tiny_encoder, other_encoder)
    index = open_index(folder, encoder=other_encoder)
    assert index.products.ids == [f"p{number}" for number in range(20) if number != 4]
    assert len(index.images) == 29
    counts = done.manifest.segments[0].counts
    assert (counts.rows, counts.products, counts.rejected, counts.images_rejected) == (20, 19, 1, 1)
    assert '"id": "p4"' in (folder / index.manifest.segments[0].name / "rejects.jsonl").read_text()
    (tmp_path / "5.png").unlink()
    (tmp_path / "6.png").unlink()
    with pytest.raises(IndexFolderError, match=r"2 of 29 pictures .* first 5\.png"):
        run(folder, other_encoder, tiny_encoder)


def test_an_index_that_changed_meanwhile_is_left_alone(
    folder: Path, tiny_encoder: Any, other_encoder: Any
) -> None:
    from indexing.update import delete_products

    before = open_index(folder)
    delete_products(folder, ["p3"])
    with pytest.raises(IndexFolderError, match="has changed since it was opened"):
        upgrade(before, tiny_encoder, other_encoder, own_queries(before), margin=0.02)


def test_a_running_engine_goes_over_to_the_new_model(
    folder: Path, tiny_encoder: Any, other_encoder: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = SearchEngine(open_index(folder), tiny_encoder)
    monkeypatch.setattr("search.live.load_encoder", lambda name: other_encoder)
    run(folder, tiny_encoder, other_encoder)
    first = engine.search(text="red", k=3)
    engine._live.wait()
    assert engine._live.current()[1] is other_encoder
    assert [hit.product_id for hit in engine.search(text="red", k=3)] == [
        hit.product_id for hit in first
    ]


def test_queries_of_a_file(tmp_path: Path) -> None:
    file = tmp_path / "queries.csv"
    file.write_text("query,image,product_id\nred mug,,a\nred mug,,b\n,x.png,c\nblue,x.png,c\n")
    assert read_queries(file) == [
        Query("red mug", None, frozenset("ab")),
        Query(None, tmp_path / "x.png", frozenset("c")),
        Query("blue", tmp_path / "x.png", frozenset("c")),
    ]


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("a,b\n1,2\n", "has the columns a, b: give product_id and query"),
        ("product_id\n1\n", "has the columns product_id"),
        ("query,product_id\nred,\n", "line 2 has no query or no product_id"),
        ("query,product_id\n,a\n", "line 2 has no query"),
        ("query,product_id\n", "holds no queries"),
        ("", "has the columns none"),
    ],
)
def test_a_file_of_something_else_is_refused(tmp_path: Path, content: str, said: str) -> None:
    (tmp_path / "queries.csv").write_text(content)
    with pytest.raises(BenchmarkError, match=said):
        read_queries(tmp_path / "queries.csv")
    with pytest.raises(BenchmarkError, match="cannot be read"):
        read_queries(tmp_path / "gone.csv")


def test_titles_are_asked_where_products_have_one_picture(
    tmp_path: Path, tiny_encoder: Any
) -> None:
    for colour in ("red", "blue"):
        Image.new("RGB", (8, 8), colour).save(tmp_path / f"{colour}.png")
    (tmp_path / "catalog.csv").write_text(
        "id,title,image\na,Red  thing,red.png\nb,red thing,blue.png\nc,,blue.png\n"
    )
    build_index(read_catalog(tmp_path / "catalog.csv"), tiny_encoder, tmp_path / "index")
    assert own_queries(open_index(tmp_path / "index")) == [
        Query("red thing", None, frozenset("ab"))
    ]


app = typer.Typer()
app.command()(upgrade_cli.upgrade)


def command(*arguments: object) -> Result:
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


def test_the_command_says_what_it_found(
    folder: Path, tmp_path: Path, tiny_encoder: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    models = {"tiny": tiny_encoder, "blind": Blind("blind")}
    monkeypatch.setattr("indexing.models.load_encoder", models.__getitem__)
    (tmp_path / "queries.csv").write_text("image,product_id\n19.png,p19\n18.png,p18\n")
    refused = command(folder, "--model", "blind", "--qrels", tmp_path / "queries.csv")
    assert refused.exit_code == 1
    assert "Recall@10 of 2 queries" in refused.stdout
    assert "tiny (old): 1.000 [1.000, 1.000]" in refused.stdout
    assert "blind (new): 0.000 [0.000, 0.000]" in refused.stdout
    assert "not swapped" in refused.stderr
    done = command(folder, "--model", "blind", "--force")
    assert done.exit_code == 0
    assert "version 2, by blind" in done.stdout
