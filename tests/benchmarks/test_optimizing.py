"""What an optimised model may lose, and what becomes of one that loses too much."""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import typer
from numpy.typing import NDArray
from typer.testing import CliRunner, Result

from benchmarks import optimize_cli, optimizing
from benchmarks.optimized_folder import card, result_table
from benchmarks.optimizing import Judge, compare, first_places, promising, queries_needed
from benchmarks.optimizing_tasks import gather
from benchmarks.retrieval.run import TaskVectors
from benchmarks.retrieval.task import Links, Side, Task
from benchmarks.statistics import cluster_bootstrap
from indexing.build import build_index
from indexing.catalog import read_catalog
from indexing.demo import write_demo_catalog
from indexing.errors import BenchmarkError, IndexMismatchError, ModelError
from indexing.models import load_encoder
from indexing.models.optimized.exporting import Exported, export_towers
from indexing.models.optimized.folder import Change, Gate, Recall, read_config
from indexing.models.optimized.making import Examples
from indexing.models.optimized.runtimes import (
    Floats,
    Precision,
    RuntimeName,
    check_precision,
)
from indexing.store import open_index
from indexing.update import update_index
from search.engine import SearchEngine
from tests.benchmarks.test_upgrade import Blind
from tests.indexing.test_models import PLAIN, write_folder

NOTHING = np.empty(0, np.int64)


def silent(stage: str) -> Callable[[int, int], None]:
    return lambda done, total: None


def task_of(count: int) -> Task:
    """Query i looks for gallery row i; queries come in pairs, of one product each."""
    rows = np.arange(count)
    asked = Side([f"q{row}" for row in rows], rows // 2, texts=["x"] * count)
    gallery = Side([f"g{row}" for row in rows], rows)
    return Task("task", "in words", asked, gallery, Links(rows, rows), np.ones(count, np.int64))


def vectors(queries: NDArray[Any], gallery: NDArray[Any]) -> TaskVectors:
    return TaskVectors(queries.astype(np.float32), gallery.astype(np.float32), NOTHING, NOTHING)


def test_hits_are_paired_against_both_galleries() -> None:
    count, lost = 40, 6
    parent = vectors(np.eye(count), np.eye(count))
    # Six queries of the optimised model look like the next one's product, and their own second.
    queries = np.eye(count)
    queries[:lost] = 0.8 * np.roll(np.eye(count), 1, axis=1)[:lost] + 0.6 * np.eye(count)[:lost]
    # In its own gallery the vectors of the first two have moved along.
    gallery = np.eye(count)
    gallery[[0, 1]] = queries[[0, 1]]
    found = {
        (one.against, one.cutoff): one
        for one in compare(task_of(count), parent, vectors(queries, gallery))
    }
    assert {one.before for one in found.values()} == {1.0}
    assert found["parent", 1].after == 1 - lost / count
    assert found["parent", 5].after == found["parent", 10].after == 1
    hits = np.arange(count) >= lost
    expected = cluster_bootstrap(hits - 1.0, np.arange(count) // 2)
    change = found["parent", 1].change
    assert (change.mean, change.low, change.high) == pytest.approx(
        (-lost / count, expected.low, expected.high)
    )
    assert -0.4 < change.low < -lost / count < change.high <= 0
    # By hand: query 0 finds itself (1.0 against .8), and so does 1.
    assert found["own", 1].after == 1 - (lost - 2) / count


def test_equal_hits_leave_no_doubt() -> None:
    same = vectors(np.eye(12), np.eye(12))
    for one in compare(task_of(12), same, vectors(np.eye(12), np.eye(12))):
        assert one.change == Change(mean=0, low=0, high=0)
        assert queries_needed(one, 0.002) == 0


def gate_of(mean: float, low: float, high: float, *, queries: int = 100) -> Gate:
    change = Change(mean=mean, low=low, high=high)
    recalls = tuple(
        Recall(task="t", against="own", queries=queries, cutoff=cutoff, before=0.5,
               after=0.5 + mean, change=change)
        for cutoff in (1, 5, 10)
    )  # fmt: skip
    return Gate(
        passed=low >= -0.002, margin=0.002, catalog="c", cosines={"titles": (0.99, 0.9)},
        recalls=recalls,
    )  # fmt: skip


def test_more_queries_are_asked_where_they_can_tell() -> None:
    assert [one.cutoff for one in first_places(gate_of(0, 0, 0).recalls)] == [1]
    # Half an interval of .01 from 100 queries is .002 from 25 times as many.
    even = gate_of(0, -0.01, 0.01)
    assert queries_needed(even.recalls[0], 0.002) == pytest.approx(2500)
    assert promising(even, times=13)
    assert not promising(even, times=12)
    assert not promising(gate_of(-0.01, -0.012, -0.008), times=1000)  # it surely loses
    assert promising(gate_of(0, 0, 0), times=1)
    assert queries_needed(even.recalls[0], 0) == math.inf


def test_the_table_says_where_few_queries_decide() -> None:
    few = "\n".join(result_table(gate_of(0, 0, 0)))
    assert "| t (100) | itself | Recall@1 | 0.5000 | 0.5000 | +0.0000 [+0.0000, +0.0000] |" in few
    assert "100 in which nothing is lost leave a loss of 0.0300 possible" in few
    assert "to rule out 0.002 takes 1,500" in few
    assert "Few" not in "\n".join(result_table(gate_of(0, 0, 0, queries=1500)))


@pytest.fixture(scope="module")
def catalog(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_demo_catalog(tmp_path_factory.mktemp("shop"), 60)


def test_a_judge_tells_the_same_vectors_from_others(
    catalog: Path, tmp_path: Path, tiny_encoder: Any, other_encoder: Any
) -> None:
    products = list(read_catalog(catalog))
    material = gather(products, 120, tmp_path)
    assert (len(material.asked), material.each, len(material.first)) == (60, 2, 50)
    assert len(material.shown) == len(material.titles) == 60  # too few for others
    judge = Judge(tiny_encoder, "shop.csv", tmp_path / "vectors", 0.002, silent)
    tasks = material.tasks(material.asked)
    assert [task.name for task in tasks] == ["views-aux-main", "titles"]
    same = judge.gate(other_encoder, tasks)
    assert same.passed
    assert same.cosines["pictures"] == pytest.approx((1, 1), abs=1e-6)
    assert {one.against for one in same.recalls} == {"own", "parent"}
    assert first_places(same.recalls)[0].before > 0.1
    blind = judge.gate(Blind("blind"), tasks)
    assert not blind.passed
    assert first_places(blind.recalls)[0].change.high < 0


def test_one_picture_a_product_is_asked_for_by_photos_made_of_it(
    catalog: Path, tmp_path: Path, tiny_encoder: Any
) -> None:
    products = [
        product.model_copy(update={"images": product.images[:1]})
        for product in read_catalog(catalog)
    ]
    material = gather(products, 60, tmp_path)
    photos = material.tasks(material.asked)[0]
    assert (photos.name, len(photos.queries), len(photos.gallery)) == ("photos", 60, 60)
    files = [str(picture.path) for picture in photos.queries.pictures or []]
    made = [Path(file).read_bytes() for file in files]
    assert len(set(made)) == 60
    # A part of the products is asked for by the same photos, and a second run as well.
    assert [
        picture.path for picture in material.tasks(material.first)[0].queries.pictures or []
    ] == [Path(file) for file in files[:50]]
    shutil.rmtree(material.photos)
    gather(products, 60, tmp_path).tasks(material.asked)
    assert [Path(file).read_bytes() for file in files] == made
    with pytest.raises(BenchmarkError, match="has 49 products with a picture file: at least 50"):
        gather(products[:49], 60, tmp_path)


@pytest.mark.parametrize("short", [True, False])
def test_layers_go_back_to_floats_until_none_is_left(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, short: bool
) -> None:
    errors = {"a": 64.0, "b": 8.0, "c": 1.0}
    for module in ("benchmarks.optimizing", "indexing.models.optimized.runtimes"):
        monkeypatch.setattr(f"{module}.has_bfloat16", lambda: short)
    monkeypatch.setattr(optimizing, "layer_errors", lambda *_: errors)
    exported = Exported(tmp_path / "picture.onnx", tmp_path / "text.onnx", "argmax")

    def recipes(name: RuntimeName, precision: Precision) -> list[tuple[str, Floats, int]]:
        found = optimizing._recipes(name, precision, exported, Examples(), tmp_path, silent)
        return [(one.precision, one.floats, sum(map(len, one.kept.values()))) for one in found]

    kept = [2, 4, 4, 6]
    plain = [("int8", "float32", 0), *(("int8", "float32", count) for count in kept)]
    assert recipes("onnx", "int8") == plain
    assert recipes("onnx", "fp32") == [("fp32", "float32", 0)]
    if not short:
        assert recipes("openvino", "int8") == plain
        with pytest.raises(ModelError, match="this processor has no bfloat16"):
            check_precision("openvino", "bf16")
        return
    check_precision("openvino", "bf16")
    assert recipes("openvino", "bf16") == [("bf16", "bfloat16", 0)]
    assert recipes("openvino", "int8") == [
        ("int8", "bfloat16", 0),
        ("int8", "float32", 0),
        *(("int8", "bfloat16", count) for count in kept),
        ("bf16", "bfloat16", 0),
    ]


app = typer.Typer()
app.command()(optimize_cli.optimize)


def command(*arguments: object) -> Result:
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


@pytest.fixture(scope="module")
def parent(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("model") / "parent"
    write_folder(folder, PLAIN)
    return folder


@pytest.fixture(scope="module")
def graphs(parent: Path) -> Exported:
    folder = parent.parent / "graphs"
    folder.mkdir()
    return export_towers(load_encoder(str(parent)), folder)


@pytest.fixture
def exported_once(graphs: Exported, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("benchmarks.optimizing.export_towers", lambda encoder, folder: graphs)


@pytest.fixture
def losing(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every model loses a point for sure."""
    found = gate_of(-0.01, -0.012, -0.008)
    monkeypatch.setattr(Judge, "gate", lambda self, child, tasks: found)


@pytest.fixture
def arguments(parent: Path, catalog: Path, tmp_path: Path) -> tuple[object, ...]:
    out = ("--catalog", catalog, "--out", tmp_path / "fast", "--queries", 60)
    return (parent, *out, "--runtime", "onnx")


@pytest.mark.usefixtures("exported_once")
def test_a_model_that_finds_as_much_asks_the_parents_index(
    arguments: tuple[object, ...], parent: Path, catalog: Path, tmp_path: Path
) -> None:
    done = command(*arguments, "--precision", "fp32")
    assert done.exit_code == 0, done.output
    assert "passed" in done.stderr
    assert "| itself | Recall@1 |" in done.stdout
    assert "Few queries: 60 in which nothing is lost" in done.stdout
    fast = tmp_path / "fast"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["fast"]  # no scratch is left
    config = read_config(fast)
    assert config.gate is not None
    assert config.gate.passed
    assert config.parent.fingerprint == load_encoder(str(parent)).fingerprint
    assert (fast / "README.md").read_text() == card(config)
    index = tmp_path / "index"
    build_index(read_catalog(catalog), load_encoder(str(parent)), index)
    slow, quick = SearchEngine.open(index), SearchEngine.open(index, model=str(fast))
    assert quick.current().encoder.fingerprint == config.fingerprint
    answers = quick.search(text="red mug", k=3)
    assert [hit.product_id for hit in answers] == [
        hit.product_id for hit in slow.search(text="red mug", k=3)
    ]
    child = load_encoder(str(fast))
    with pytest.raises(IndexMismatchError, match="may ask this index and not write to it"):
        update_index(read_catalog(catalog), child, index)
    # An index of its own holds its own vectors alone.
    report = build_index(read_catalog(catalog), child, index)
    assert report.reused == 0
    assert open_index(index, encoder=child).manifest.encoder.fingerprint == config.fingerprint


@pytest.mark.usefixtures("exported_once", "losing")
def test_a_model_that_loses_is_not_written_unless_forced(
    arguments: tuple[object, ...], parent: Path, catalog: Path, tmp_path: Path
) -> None:
    refused = command(*arguments)
    assert refused.exit_code == 1
    assert "a loss of more than 0.002 in Recall@1 is not ruled out" in refused.stderr
    # All in int8, and then with ever more layers in floats.
    tried = [line for line in refused.stderr.splitlines() if "onnx in int8" in line]
    kept = [int(line.split(", ")[1].split()[0]) for line in tried]
    assert len(kept) == 5
    assert kept[0] == 0
    assert kept == sorted(kept)
    assert kept[-1] > 0
    assert list(tmp_path.iterdir()) == []
    forced = command(*arguments, "--force")
    assert forced.exit_code == 0, forced.output
    assert "for indexes of its own" in forced.stdout
    fast = tmp_path / "fast"
    assert "did not pass and was forced" in (fast / "README.md").read_text()
    index = tmp_path / "index"
    build_index(read_catalog(catalog), load_encoder(str(parent)), index)
    with pytest.raises(IndexMismatchError, match=r"made with --force .* an index of its own"):
        SearchEngine.open(index, model=str(fast))
    build_index(read_catalog(catalog), load_encoder(str(fast)), tmp_path / "own")
    assert len(SearchEngine.open(tmp_path / "own").search(text="red", k=2)) == 2
    # A word in its record does not make it pass.
    config = json.loads((fast / "config.json").read_text())
    config["gate"]["passed"] = True
    (fast / "config.json").write_text(json.dumps(config))
    with pytest.raises(ModelError, match="was changed since it was written"):
        SearchEngine.open(index, model=str(fast))


@pytest.mark.usefixtures("exported_once", "losing")
def test_what_cannot_be_is_refused_before_the_work(
    arguments: tuple[object, ...], parent: Path, tmp_path: Path
) -> None:
    def error_of(*given: object) -> str:
        return str(command(*given).exception)

    assert "--runtime tensorrt: give openvino or onnx" in error_of(
        *arguments, "--runtime", "tensorrt"
    )
    assert "--precision int4: give fp32, bf16 or int8" in error_of(
        *arguments, "--precision", "int4"
    )
    (tmp_path / "fast").mkdir()
    (tmp_path / "fast" / "mine.txt").write_text("keep")
    assert "is there and no optimised model" in error_of(*arguments)
    assert "is there and no optimised model" in error_of(*arguments, "--out", parent)
    assert (tmp_path / "fast" / "mine.txt").read_text() == "keep"
    shutil.rmtree(tmp_path / "fast")
    assert command(*arguments, "--precision", "fp32", "--force").exit_code == 0
    again = error_of(tmp_path / "fast", *arguments[1:], "--out", tmp_path / "faster")
    assert "is no model of torch" in again
