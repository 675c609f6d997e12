"""Answers: stored, read back, and read by ir-measures, which must find the figures we find."""

from __future__ import annotations

import gzip
import json
from collections.abc import Callable
from dataclasses import asdict, replace
from itertools import pairwise
from math import ceil
from pathlib import Path

import ir_measures
import numpy as np
import pyarrow.parquet as pq
import pytest
from ir_measures import AP, RR, R, Success, nDCG

from benchmarks.retrieval.answers import (
    GALLERY,
    QRELS,
    QUERIES,
    RANKS,
    RUN,
    SYSTEM,
    TASK,
    Answers,
    System,
    listed_answers,
    load_task,
    order_answers,
    store_answers,
    store_task,
    stored_run,
)
from benchmarks.retrieval.exact import count_answers
from benchmarks.retrieval.measures import measure
from benchmarks.retrieval.order import Floats
from benchmarks.retrieval.task import Ints, Links, Side, Task
from benchmarks.systems import RowScorer
from indexing.catalog.product import ProductImage
from indexing.errors import BenchmarkError

QUERY_COUNT, SIZE = 12, 60
EXACT = System("ours", "exact", 0, {"embed": 1.5, "rank": 0.25}, "a note")


def make_task(seed: int, *, graded: bool = False) -> Task:
    """Right answers, some pairs to take out and some duplicates, at random and apart."""
    rng = np.random.default_rng(seed)
    kind = rng.choice(4, (QUERY_COUNT, SIZE), p=[0.8, 0.12, 0.04, 0.04])
    kind[np.arange(QUERY_COUNT), np.arange(QUERY_COUNT)] = 1
    judged, removed, duplicates = (Links.of(*np.nonzero(kind == number)) for number in (1, 2, 3))
    grades = np.ones(len(judged), np.int64)
    if graded:
        grades = rng.choice([100, 10, 1, 0], len(judged))
        grades[judged.query == judged.row] = 100
    return Task(
        "drawn", "A drawn task",
        Side([f"q{n}" for n in range(QUERY_COUNT)], np.arange(QUERY_COUNT) // 2,
             texts=[f"words {n}" for n in range(QUERY_COUNT)],
             categories=["mugs", "cups"] * (QUERY_COUNT // 2)),
        Side([f"g/{n:02d}" for n in range(SIZE)], np.arange(SIZE),
             [ProductImage(location=f"{n}.png", path=Path(f"/pictures/{n}.png"))
              for n in range(SIZE)]),
        judged, grades,
        relevant=100 if graded else 1, lenient=10 if graded else None,
        removed=removed, duplicates=duplicates, note="drawn at random",
    )  # fmt: skip


def scores(seed: int, levels: int) -> Floats:
    """Scores of all pairs: `levels` different ones, and mostly the lowest, as BM25 gives them;
    0: all are different."""
    rng = np.random.default_rng(seed)
    if not levels:
        return rng.normal(0, 1, (QUERY_COUNT, SIZE)).astype(np.float32)
    found = rng.integers(0, levels, (QUERY_COUNT, SIZE)) * rng.integers(0, 2, (QUERY_COUNT, SIZE))
    return found.astype(np.float32) * np.float32(0.3)


def exact_answers(task: Task, table: Floats, depth: int) -> Answers:
    scorer = RowScorer(*table.shape, table.__getitem__)
    taken_out = Links.of(
        np.append(task.removed.query, task.duplicates.query),
        np.append(task.removed.row, task.duplicates.row),
    )
    counts = count_answers(scorer, task.judged, taken_out, depth)
    return order_answers(task, counts, table[task.duplicates.query, task.duplicates.row])


def best_first(table: Floats) -> tuple[Ints, Floats]:
    """What an index would answer that knows the whole gallery."""
    rows = np.argsort(-table, axis=1, kind="stable")
    return rows, np.take_along_axis(table, rows, axis=1)


def check(one: Answers, other: Answers) -> None:
    for name, value in asdict(one).items():
        np.testing.assert_array_equal(value, asdict(other)[name], name)


@pytest.fixture
def stored(tmp_path: Path) -> Callable[[Task, Answers], Path]:
    def store(task: Task, answers: Answers) -> Path:
        store_task(tmp_path / "task", task, {"broken": 3})
        store_answers(tmp_path / "task", task, EXACT, answers)
        return tmp_path / "task"

    return store


@pytest.fixture
def folder(stored: Callable[[Task, Answers], Path]) -> Path:
    task = make_task(1, graded=True)
    return stored(task, exact_answers(task, scores(2, 3), 10))


@pytest.mark.parametrize("levels", [0, 1, 2, 4])
@pytest.mark.parametrize("graded", [False, True])
def test_ir_measures_finds_the_same_figures(
    levels: int, graded: bool, stored: Callable[[Task, Answers], Path], tmp_path: Path
) -> None:
    task = make_task(levels, graded=graded)
    folder = stored(task, exact_answers(task, scores(levels + 9, levels), SIZE))
    plain = tmp_path / "run.trec"
    plain.write_bytes(gzip.decompress((folder / "ours.exact" / RUN).read_bytes()))
    rel = task.relevant
    theirs = {
        **{f"R@{k}": Success(rel=rel) @ k for k in (1, 5, 10)},
        **{f"R_frac@{k}": R(rel=rel) @ k for k in (1, 5, 10)},
        **{"RR": RR(rel=rel), "AP": AP(rel=rel)},
    }
    if graded:
        theirs |= {"nDCG@10": nDCG @ 10, "judged nDCG@10": nDCG(judged_only=True) @ 10}
        theirs |= {f"lenient R@{k}": Success(rel=10) @ k for k in (1, 5, 10)}
    found = {name: np.full(QUERY_COUNT, np.nan) for name in theirs}
    names = {entry: name for name, entry in theirs.items()}
    for metric in ir_measures.iter_calc(
        list(names),
        list(ir_measures.read_trec_qrels(str(folder / QRELS))),
        list(ir_measures.read_trec_run(str(plain))),
    ):
        found[names[metric.measure]][int(metric.query_id[1:])] = metric.value
    [[_, ranks, strict]] = load_task(folder).systems
    [ours] = measure(load_task(folder), ranks, strict)
    assert ours.query.tolist() == list(range(QUERY_COUNT))
    right = np.bincount(task.judged.query[task.right()])
    for name, values in found.items():
        own = ours.values[name]
        if name.startswith("R_frac"):
            # Theirs is divided by the right answers, also where those are more than K.
            own = own * np.minimum(right, int(name[7:])) / right
        np.testing.assert_allclose(own, values, rtol=0, atol=1e-9, err_msg=name)


@pytest.mark.parametrize("levels", [0, 1, 3])
@pytest.mark.parametrize("graded", [False, True])
def test_strict_ranks_count_duplicates_as_wrong_answers(levels: int, graded: bool) -> None:
    task, table = make_task(levels, graded=graded), scores(levels + 5, levels)
    answers = exact_answers(task, table, 10)
    none = replace(task, duplicates=Links())
    assert answers.strict_ranks.tolist() == exact_answers(none, table, 10).ranks.tolist()
    assert (answers.strict_ranks > answers.ranks).any()
    assert graded or (answers.strict_ranks >= answers.ranks).all()


@pytest.mark.parametrize("levels", [0, 1, 3])
@pytest.mark.parametrize("graded", [False, True])
@pytest.mark.parametrize("depth", [7, SIZE, SIZE + 5])
def test_a_whole_list_gives_the_exact_answers(levels: int, graded: bool, depth: int) -> None:
    task, table = make_task(levels, graded=graded), scores(levels + 7, levels)
    check(listed_answers(task, *best_first(table), depth), exact_answers(task, table, depth))


@pytest.mark.parametrize("levels", [0, 3])
@pytest.mark.parametrize("length", [1, 9, 30])
def test_what_a_short_list_lacks_has_no_rank(levels: int, length: int) -> None:
    task, table = make_task(levels, graded=True), scores(levels + 3, levels)
    rows, listed = best_first(table)
    rows, listed = rows[:, :length].copy(), listed[:, :length].copy()
    rows[0, length // 2 :], listed[0, length // 2 :] = -1, -np.inf  # there may be fewer
    answers = listed_answers(task, rows, listed, 20)
    shown = [set(line.tolist()) - {-1} for line in rows]
    judged = [set(task.judged.row[task.judged.query == q].tolist()) for q in range(QUERY_COUNT)]
    hidden = [set() for _ in range(QUERY_COUNT)]
    for links in (task.removed, task.duplicates):
        for query, row in zip(links.query.tolist(), links.row.tolist(), strict=True):
            hidden[query].add(row)
    for number, query in enumerate(task.judged.query.tolist()):
        row, rank = int(task.judged.row[number]), int(answers.ranks[number])
        assert (rank > 0) == (row in shown[query])
        assert (answers.strict_ranks[number] > 0) == (rank > 0)
        if rank and not (set(judged[query]) - {row}) & shown[query]:  # the only judged one
            others = [float(table[query, r]) for r in shown[query] - hidden[query] - {row}]
            own, grade = float(table[query, row]), task.grades[number]
            ties = others.count(own) if grade else 0
            assert rank == 1 + sum(score > own for score in others) + ceil(ties / 2)
    for query, line in enumerate(answers.rows.tolist()):
        found = [row for row in line if row >= 0]
        assert len(found) == min(20, len(shown[query] - hidden[query]))
        assert set(found) <= shown[query] - hidden[query]
        assert line == found + [-1] * (20 - len(found))
        assert answers.scores[query].tolist() == [
            table[query, r] if r >= 0 else -np.inf for r in line
        ]
    assert length < 30 or any(hidden[query] & shown[query] for query in range(QUERY_COUNT))


def test_a_stored_task_is_read_back_whole(folder: Path) -> None:
    task = make_task(1, graded=True)
    answers = exact_answers(task, scores(2, 3), 10)
    by_index = System("ours", "index", 0, {"search": 0.5}, "exact index shop")
    other = System("hf-hub:ORG/a model", "exact", 1, {})
    wrong = replace(answers, ranks=np.zeros_like(answers.ranks))
    store_answers(folder, task, other, wrong)
    store_answers(folder, task, by_index, answers)
    assert other.folder == "hf-hub%3AORG%2Fa%20model.exact"
    read = load_task(folder)
    assert (read.name, read.title, read.note) == ("drawn", "A drawn task", "drawn at random")
    assert (read.relevant, read.lenient, read.trials) == (100, 10, False)
    assert (read.removed, read.duplicates) == (len(task.removed), len(task.duplicates))
    assert read.left_out == {"broken": 3}
    assert (read.query_ids, read.gallery_ids) == (task.queries.ids, task.gallery.ids)
    assert read.query_products.tolist() == task.queries.products.tolist()
    assert read.gallery_products.tolist() == task.gallery.products.tolist()
    assert read.query_categories == task.queries.categories
    assert read.judged.query.tolist() == task.judged.query.tolist()
    assert read.judged.row.tolist() == task.judged.row.tolist()
    assert read.grades.tolist() == task.grades.tolist()
    assert [system for system, _, _ in read.systems] == [EXACT, by_index, other]
    assert read.systems[1][1].tolist() == answers.ranks.tolist()
    assert read.systems[1][2].tolist() == answers.strict_ranks.tolist()
    assert not read.systems[2][1].any()
    assert stored_run(folder, EXACT) == {
        query: [task.gallery.ids[row] for row in rows if row >= 0]
        for query, rows in zip(task.queries.ids, answers.rows.tolist(), strict=True)
    }
    queries, gallery = (pq.read_table(folder / name).to_pydict() for name in (QUERIES, GALLERY))
    assert queries["text"] == task.queries.texts
    assert queries["picture"] == [None] * QUERY_COUNT
    assert gallery["picture"] == [f"/pictures/{n}.png" for n in range(SIZE)]
    assert gallery["category"] == [None] * SIZE


def test_trec_files_are_as_the_tools_expect_them(folder: Path) -> None:
    task = make_task(1, graded=True)
    answers = exact_answers(task, scores(2, 3), 10)
    qrels = [line.split(" ") for line in (folder / QRELS).read_text().splitlines()]
    assert qrels == [
        [f"q{query}", "0", f"g/{row:02d}", str(grade)]
        for query, row, grade in zip(
            task.judged.query, task.judged.row, task.grades.tolist(), strict=True
        )
    ]
    run = gzip.decompress((folder / EXACT.folder / RUN).read_bytes()).decode()
    lines = [line.split(" ") for line in run.splitlines()]
    assert [line[:4] for line in lines] == [
        [f"q{query}", "Q0", f"g/{row:02d}", str(place)]
        for query, rows in enumerate(answers.rows.tolist())
        for place, row in enumerate(rows, 1)
        if row >= 0
    ]
    assert {line[5] for line in lines} == {"ours.exact"}
    for (query, *_, one, _), (following, *_, other, _) in pairwise(lines):
        if query == following:
            assert float(one) > float(other)
            assert np.float32(one) > np.float32(other)  # for a tool that keeps no more


def test_the_same_answers_are_the_same_bytes(
    folder: Path, tmp_path: Path, stored: Callable[[Task, Answers], Path]
) -> None:
    names = [path.relative_to(folder) for path in folder.rglob("*") if path.is_file()]
    assert len(names) == 7
    first = {name: (folder / name).read_bytes() for name in names}
    folder.rename(tmp_path / "first")
    task = make_task(1, graded=True)
    again = stored(task, exact_answers(task, scores(2, 3), 10))
    assert {name: (again / name).read_bytes() for name in names} == first
    # Flags and time of the gzip header: no name, and no time.
    assert (again / EXACT.folder / RUN).read_bytes()[3:8] == bytes(5)


def test_answers_to_an_earlier_task_of_the_name_are_not_taken_for_answers_to_this_one(
    folder: Path,
) -> None:
    (folder / "own notes").mkdir()
    (folder / "own notes" / "note.txt").write_text("mine")
    store_task(folder, make_task(2), {})
    assert load_task(folder).systems == []
    assert not (folder / EXACT.folder).exists()
    assert (folder / "own notes" / "note.txt").read_text() == "mine"


@pytest.mark.parametrize(
    "name", [TASK, QUERIES, GALLERY, f"ours.exact/{RANKS}", "ours.exact/" + SYSTEM]
)
@pytest.mark.parametrize("damage", ["gone", "empty", "half", "other"])
def test_a_damaged_folder_is_named(folder: Path, name: str, damage: str) -> None:
    path = folder / name
    data = path.read_bytes()
    if damage == "gone":
        path.unlink()
        if path.name == SYSTEM:  # without it there is no system
            assert load_task(folder).systems == []
            return
    else:
        path.write_bytes({"empty": b"", "half": data[: len(data) // 2], "other": b"[1]"}[damage])
    with pytest.raises(BenchmarkError, match=r"holds no stored answers that can be read") as caught:
        load_task(folder)
    assert str(folder) in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("damage", ["gone", "half", "flipped", "other"])
def test_a_damaged_run_is_named(folder: Path, damage: str) -> None:
    path = folder / EXACT.folder / RUN
    data = path.read_bytes()
    middle = len(data) // 2
    flipped = data[:middle] + bytes([data[middle] ^ 0xFF]) + data[middle + 1 :]
    if damage == "gone":
        path.unlink()
    elif damage == "other":
        path.write_bytes(gzip.compress(b"q1\n"))
    else:
        path.write_bytes({"half": data[:middle], "flipped": flipped}[damage])
    with pytest.raises(BenchmarkError, match=r"run\.trec\.gz holds no stored answers") as caught:
        stored_run(folder, EXACT)
    assert "\n" not in str(caught.value)


def test_systems_must_have_answered_the_same_task(folder: Path, tmp_path: Path) -> None:
    other = make_task(3, graded=True)
    second = System("other", "exact", 1, {})
    store_answers(folder, other, second, exact_answers(other, scores(1, 0), 10))
    with pytest.raises(BenchmarkError, match="another task"):
        load_task(folder)
    # Or the only system that of a larger task.
    store_task(tmp_path / "small", other.without(np.arange(9), np.arange(20, 40)), {})
    store_answers(tmp_path / "small", other, second, exact_answers(other, scores(1, 0), 10))
    with pytest.raises(BenchmarkError, match="another task"):
        load_task(tmp_path / "small")


def test_task_json_says_in_words_how_judgments_count(folder: Path) -> None:
    content = json.loads((folder / TASK).read_text(encoding="utf-8"))
    assert content["relevant"] == 100
    assert content["lenient"] == 10
    assert content["left_out"] == {"broken": 3}
