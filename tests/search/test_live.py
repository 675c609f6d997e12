from __future__ import annotations

import logging
import threading
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from indexing.build import build_index
from indexing.catalog import read_catalog
from indexing.committing import roll_back
from indexing.compact import compact
from indexing.store import open_index
from indexing.update import delete_products, update_index
from search import live
from search.engine import SearchEngine
from tests.conftest import TinyEncoder


def write(folder: Path, rows: dict[str, str]) -> Path:
    """A catalog of products of one plain colour each."""
    lines = ["id,title,image"]
    for product_id, colour in rows.items():
        Image.new("RGB", (8, 8), colour).save(folder / f"{colour}.png")
        lines.append(f"{product_id},{colour} thing,{colour}.png")
    (folder / "catalog.csv").write_text("\n".join(lines) + "\n")
    return folder / "catalog.csv"


@pytest.fixture
def engine(tmp_path: Path, tiny_encoder: Any) -> SearchEngine:
    catalog = write(tmp_path, {"a": "red", "b": "blue"})
    build_index(read_catalog(catalog), tiny_encoder, tmp_path / "index")
    return SearchEngine(open_index(tmp_path / "index"), tiny_encoder)


def ids(engine: SearchEngine, text: str = "red") -> str:
    return " ".join(hit.product_id for hit in engine.search(text=text, k=10))


def update(tmp_path: Path, encoder: Any, rows: dict[str, str]) -> None:
    update_index(read_catalog(write(tmp_path, rows)), encoder, tmp_path / "index")


def test_changes_are_seen_by_the_next_query(
    engine: SearchEngine, tmp_path: Path, tiny_encoder: Any
) -> None:
    assert ids(engine) == "a b"
    update(tmp_path, tiny_encoder, {"c": "tomato", "a": "navy"})
    assert ids(engine) == "c a b"
    delete_products(tmp_path / "index", ["b"])
    assert ids(engine) == "c a"
    assert [hit.product_id for hit in engine.similar("c")] == ["a"]
    compact(tmp_path / "index")
    assert ids(engine) == "c a"
    roll_back(tmp_path / "index", 1)
    assert ids(engine) == "a b"
    assert [hit.product_id for hit in engine.search(text="red", where="title == 'blue thing'")] == [
        "b"
    ]


def test_a_change_before_the_first_query_is_seen(tmp_path: Path, tiny_encoder: Any) -> None:
    catalog = write(tmp_path, {"a": "red", "b": "blue"})
    build_index(read_catalog(catalog), tiny_encoder, tmp_path / "index")
    opened = open_index(tmp_path / "index")
    update(tmp_path, tiny_encoder, {"c": "tomato"})
    assert ids(SearchEngine(opened, tiny_encoder)) == "a c b"


def test_segments_that_are_open_are_not_opened_again(
    engine: SearchEngine, tmp_path: Path, tiny_encoder: Any
) -> None:
    before, _ = engine._live.current()
    update(tmp_path, tiny_encoder, {"c": "tomato"})
    after, _ = engine._live.current()
    assert after.segments[0] is before.segments[0]
    assert len(after.segments) == 2


def test_a_large_version_is_opened_beside_the_queries(
    engine: SearchEngine, tmp_path: Path, tiny_encoder: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(live, "LARGE", 0)
    may_open = threading.Event()
    opening = live.open_index

    def patiently(*arguments: Any, **options: Any) -> Any:
        may_open.wait()
        return opening(*arguments, **options)

    monkeypatch.setattr(live, "open_index", patiently)
    update(tmp_path, tiny_encoder, {"c": "tomato"})
    assert ids(engine) == "a b"  # answered meanwhile
    may_open.set()
    engine._live.wait()
    assert ids(engine) == "a c b"


def test_an_index_of_another_model_is_taken_up_with_its_encoder(
    engine: SearchEngine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = TinyEncoder("other")
    monkeypatch.setattr(live, "load_encoder", {"tiny": other}.__getitem__)
    build_index(read_catalog(write(tmp_path, {"z": "gold"})), other, tmp_path / "index")
    engine.search(text="red")
    engine._live.wait()
    index, encoder = engine._live.current()
    assert encoder is other
    assert index.products.ids == ["z"]
    assert ids(engine) == "z"


def test_a_version_that_cannot_be_opened_is_reported_once_and_the_old_one_answers(
    engine: SearchEngine, tmp_path: Path, tiny_encoder: Any, caplog: pytest.LogCaptureFixture
) -> None:
    update(tmp_path, tiny_encoder, {"c": "tomato"})
    vectors = tmp_path / "index" / "s000002" / "vectors.npy"
    whole = vectors.read_bytes()
    vectors.write_bytes(b"x")
    with caplog.at_level(logging.WARNING, logger="search.live"):
        assert [ids(engine), ids(engine)] == ["a b", "a b"]
    assert len(caplog.records) == 1
    assert "stays at version 1" in caplog.text
    vectors.write_bytes(whole)
    delete_products(tmp_path / "index", ["b"])
    assert ids(engine) == "a c"


@pytest.mark.parametrize("content", [None, b"x"])
def test_without_a_manifest_that_can_be_read_the_old_version_answers(
    engine: SearchEngine, tmp_path: Path, content: bytes | None
) -> None:
    manifest = tmp_path / "index" / "manifest.json"
    manifest.unlink()
    if content is not None:
        manifest.write_bytes(content)
    assert ids(engine) == "a b"


def test_readers_never_fail_nor_see_half_a_version(
    engine: SearchEngine, tmp_path: Path, tiny_encoder: Any
) -> None:
    """Each version renames both products at once; no answer may mix two versions."""
    stop, problems = threading.Event(), []
    answers = [0] * 4

    def read(number: int) -> None:
        while not stop.is_set():
            try:
                titles = {
                    hit.fields["round"]
                    for hit in engine.search(text="red")
                    if "round" in hit.fields
                }
                if len(titles) > 1:
                    problems.append(f"two versions in one answer: {titles}")
            except Exception as error:  # noqa: BLE001
                problems.append(repr(error))
            answers[number] += 1
            stop.wait(0.01)  # the writer is to have its turn

    readers = [threading.Thread(target=read, args=(number,)) for number in range(4)]
    for reader in readers:
        reader.start()
    for number in range(5):
        catalog = tmp_path / "catalog.csv"
        catalog.write_text(f"id,title,image,round\na,x,red.png,{number}\nb,y,blue.png,{number}\n")
        update_index(read_catalog(catalog), tiny_encoder, tmp_path / "index")
        if number == 3:
            compact(tmp_path / "index")
    stop.set()
    for reader in readers:
        reader.join()
    assert problems == []
    assert min(answers) > 0
    assert {hit.fields["round"] for hit in engine.search(text="red")} == {"4"}
