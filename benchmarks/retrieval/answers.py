"""What a system answered, as it is stored before anything is scored.

    DIR/TASK/task.json               the task in words, and how its judgments count
    DIR/TASK/queries.parquet         id, product, category, text, picture
    DIR/TASK/gallery.parquet         the same of the gallery
    DIR/TASK/qrels.trec              query, 0, answer, grade
    DIR/TASK/SYSTEM/run.trec.gz      query, Q0, answer, position, score, system
    DIR/TASK/SYSTEM/ranks.parquet    every judged answer with its position in the whole ranking
    DIR/TASK/SYSTEM/system.json      name, route, seconds

The TREC files hold no ties: each place was decided once, by the rule of `order.py`, and a
score that is not below the one before is written as the next smaller float32. So every tool
that sorts by score reads the order that we scored.
"""

from __future__ import annotations

import gzip
import json
import shutil
import zlib
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal
from urllib.parse import quote

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from benchmarks.retrieval.exact import Counts
from benchmarks.retrieval.order import Floats, judged_ranks, placed, strictly_falling
from benchmarks.retrieval.task import Ints, Links, Side, Task, matching
from indexing.durable import replace_bytes, write_atomically
from indexing.errors import BenchmarkError
from indexing.messages import reason, shown

TASK, QUERIES, GALLERY, QRELS = "task.json", "queries.parquet", "gallery.parquet", "qrels.trec"
SYSTEM, RUN, RANKS = "system.json", "run.trec.gz", "ranks.parquet"

Route = Literal["exact", "index"]


@dataclass(frozen=True)
class Answers:
    """A system's answers to a task of q queries with m judged answers."""

    rows: Ints  # [q, depth] gallery rows, best first, -1 where there are no more
    scores: Floats  # [q, depth], -inf where there are no more
    ranks: Ints  # [m] place of each judged answer from 1; 0 where it was not found
    strict_ranks: Ints  # [m] the same where duplicates count as wrong


@dataclass(frozen=True)
class System:
    """Whose answers they are."""

    name: str
    route: Route
    position: int  # in the order of the tables; 0 is the system under test
    seconds: dict[str, float]
    note: str = ""

    @property
    def folder(self) -> str:
        """Its folder's name, another one for each system."""
        return f"{quote(self.name, safe='')}.{self.route}"


def order_answers(task: Task, counts: Counts, duplicate_scores: Floats) -> Answers:
    """The final order, out of what `count_answers` found for the judged answers.

    `duplicate_scores` is float32 [len(task.duplicates)], -inf where one was not found.
    """
    queries = len(task.queries)
    judged, grades, scores = task.judged, task.grades, counts.scores
    ranks = judged_ranks(queries, judged, grades, scores, counts.above, counts.tied)
    rows, shown = placed(
        counts.rows.shape[1], judged, ranks, scores, counts.rows, counts.row_scores
    )
    strict = ranks
    if len(task.duplicates):
        met = matching(judged.query, task.duplicates.query)
        pair, duplicate = met.query, met.row
        above, tied = counts.above.copy(), counts.tied.copy()
        np.add.at(above, pair[duplicate_scores[duplicate] > scores[pair]], 1)
        np.add.at(tied, pair[duplicate_scores[duplicate] == scores[pair]], 1)
        strict = judged_ranks(queries, judged, grades, scores, above, tied)
    return Answers(rows, shown, ranks, strict)


def listed_answers(task: Task, rows: Ints, scores: Floats, depth: int) -> Answers:
    """The answers of a system that gives lists and no scores of the rest, such as an index.

    `rows` is int64 [q, k] and `scores` float32 [q, k], best first, -1 where there are no more.
    """
    links = {  # 0: nothing known of it, 1: judged, 2: taken out, 3: duplicate
        1: task.judged,
        2: task.removed,
        3: task.duplicates,
    }
    width = len(task.gallery)
    flat = np.arange(len(rows))[:, np.newaxis] * width + np.maximum(rows, 0)
    kind = np.zeros(rows.shape, np.int64)
    found = {}
    for number, known in links.items():
        keys = known.query * width + known.row
        position = np.minimum(np.searchsorted(keys, flat), max(0, len(keys) - 1))
        here = (keys[position] == flat) & (rows >= 0) if len(keys) else np.zeros(rows.shape, bool)
        kind[here] = number
        values = np.full(len(keys), -np.inf, np.float32)
        values[position[here]] = scores[here]
        found[number] = values
    wrong = (kind == 0) & (rows >= 0)
    order = np.argsort(~wrong, axis=1, kind="stable")[:, :depth]
    keep = np.take_along_axis(wrong, order, axis=1)
    wrong_rows = np.full((len(rows), depth), -1, np.int64)
    wrong_scores = np.full((len(rows), depth), -np.inf, np.float32)
    shape = slice(0, order.shape[1])
    wrong_rows[:, shape] = np.where(keep, np.take_along_axis(rows, order, axis=1), -1)
    wrong_scores[:, shape] = np.where(keep, np.take_along_axis(scores, order, axis=1), -np.inf)
    judged, own = task.judged, found[1]
    above, tied = np.empty(len(judged), np.int64), np.empty(len(judged), np.int64)
    all_wrong = np.where(wrong, scores, -np.inf)
    for start in range(0, len(judged), 4096):
        part = slice(start, start + 4096)
        others, mine = all_wrong[judged.query[part]], own[part, np.newaxis]
        above[part] = (others > mine).sum(axis=1)
        tied[part] = ((others == mine) & np.isfinite(others)).sum(axis=1)
    return order_answers(task, Counts(own, above, tied, wrong_rows, wrong_scores), found[3])


def store_task(folder: Path, task: Task, left_out: dict[str, int]) -> None:
    """Write what `load_task` and every other tool needs of a task.

    Answers that lie there are taken away: they may be to another task of this name.
    """
    folder.mkdir(parents=True, exist_ok=True)
    for path in folder.glob(f"*/{SYSTEM}"):
        shutil.rmtree(path.parent)
    content = {
        "name": task.name,
        "title": task.title,
        "note": task.note,
        "relevant": task.relevant,
        "lenient": task.lenient,
        "trials": task.trials,
        "removed": len(task.removed),
        "duplicates": len(task.duplicates),
        "left_out": left_out,
    }
    _write_json(folder / TASK, content)
    _write_side(folder / QUERIES, task.queries)
    _write_side(folder / GALLERY, task.gallery)
    with (folder / QRELS).open("w", encoding="utf-8") as file:
        for query, row, grade in zip(
            task.judged.query.tolist(), task.judged.row.tolist(), task.grades.tolist(), strict=True
        ):
            file.write(f"{task.queries.ids[query]} 0 {task.gallery.ids[row]} {grade}\n")


def store_answers(folder: Path, task: Task, system: System, answers: Answers) -> None:
    """Write the answers of one system below the task's folder."""
    place = folder / system.folder
    place.mkdir(parents=True, exist_ok=True)
    ranks = pa.table(
        {
            "query": pa.array(task.judged.query, pa.int32()),
            "answer": pa.array(task.judged.row, pa.int32()),
            "grade": pa.array(task.grades, pa.int32()),
            "rank": pa.array(answers.ranks, pa.int32()),
            "strict_rank": pa.array(answers.strict_ranks, pa.int32()),
        }
    )
    write_atomically(place / RANKS, lambda path: pq.write_table(ranks, path))
    write_atomically(place / RUN, lambda path: _write_run(path, task, system, answers))
    _write_json(place / SYSTEM, asdict(system))


def _write_run(path: Path, task: Task, system: System, answers: Answers) -> None:
    tag = system.folder
    gallery = task.gallery.ids
    scores = strictly_falling(answers.scores)
    # No name and no time in the header: the same answers give the same bytes.
    with path.open("wb") as raw, gzip.GzipFile("", "wb", 6, raw, mtime=0) as file:
        for query, rows, values in zip(task.queries.ids, answers.rows, scores, strict=True):
            lines = [
                f"{query} Q0 {gallery[row]} {place} {value:.9g} {tag}\n"
                for place, (row, value) in enumerate(
                    zip(rows.tolist(), values.tolist(), strict=True), 1
                )
                if row >= 0
            ]
            file.write("".join(lines).encode())


def _write_side(path: Path, side: Side) -> None:
    nothing = [None] * len(side)
    pictures = side.pictures
    table = pa.table(
        {
            "id": pa.array(side.ids, pa.string()),
            "product": pa.array(side.products, pa.int64()),
            "category": pa.array(side.categories or nothing, pa.string()),
            "text": pa.array(side.texts or nothing, pa.string()),
            "picture": pa.array(
                [str(p.path or p.location) for p in pictures] if pictures else nothing, pa.string()
            ),
        }
    )
    write_atomically(path, lambda temporary: pq.write_table(table, temporary))


def _write_json(path: Path, content: dict[str, Any]) -> None:
    text = json.dumps(content, indent=2, ensure_ascii=False) + "\n"
    replace_bytes(path, text.encode())


@dataclass(frozen=True)
class Stored:
    """A task's folder, read back: all that scoring needs."""

    name: str
    title: str
    note: str
    relevant: int
    lenient: int | None
    trials: bool
    removed: int
    duplicates: int
    left_out: dict[str, int]
    query_ids: list[str]
    query_products: Ints
    query_categories: list[str] | None
    gallery_ids: list[str]
    gallery_products: Ints
    judged: Links
    grades: Ints
    systems: list[tuple[System, Ints, Ints]]  # whose, ranks [m], strict ranks [m]


def load_task(folder: Path) -> Stored:
    """Read a task and the ranks of all its systems, in the order they were run.

    Raises:
        BenchmarkError: The folder is not one that `bench recall` wrote, or it is damaged.
    """
    try:
        content = json.loads((folder / TASK).read_text(encoding="utf-8"))
        queries, gallery = pq.read_table(folder / QUERIES), pq.read_table(folder / GALLERY)
        systems: list[tuple[System, Ints, Ints]] = []
        judged, grades = Links(), np.empty(0, np.int64)
        for path in folder.glob(f"*/{SYSTEM}"):
            system = System(**json.loads(path.read_text(encoding="utf-8")))
            table = pq.read_table(path.parent / RANKS)
            ranks = {name: table[name].to_numpy().astype(np.int64) for name in table.column_names}
            own = ranks["query"], ranks["answer"], ranks["grade"]
            if systems and not all(map(np.array_equal, own, (judged.query, judged.row, grades))):
                raise ValueError(f"{path.parent.name} answers another task than the rest")
            judged, grades = Links(*own[:2]), own[2]
            systems.append((system, ranks["rank"], ranks["strict_rank"]))
        for numbers, side in ((judged.query, queries), (judged.row, gallery)):
            if numbers.max(initial=-1) >= len(side):
                raise ValueError("its ranks are those of another task")
        categories = queries["category"].to_pylist()
        return Stored(
            **content,
            query_ids=queries["id"].to_pylist(),
            query_products=queries["product"].to_numpy(),
            query_categories=None if None in categories else categories,
            gallery_ids=gallery["id"].to_pylist(),
            gallery_products=gallery["product"].to_numpy(),
            judged=judged,
            grades=grades,
            systems=sorted(systems, key=lambda entry: (entry[0].position, entry[0].route)),
        )
    except (OSError, ValueError, KeyError, TypeError, pa.ArrowException) as error:
        raise _unreadable(folder, error) from error


def _unreadable(path: Path, error: Exception) -> BenchmarkError:
    return BenchmarkError(
        f"{shown(path)} holds no stored answers that can be read ({reason(error)}): "
        "run `shoplens bench recall` again"
    )


def stored_run(folder: Path, system: System) -> dict[str, list[str]]:
    """The answers of each query in order, as ids.

    Raises:
        BenchmarkError: They cannot be read.
    """
    answers: dict[str, list[str]] = {}
    path = folder / system.folder / RUN
    try:
        with gzip.open(path, "rt", encoding="utf-8") as file:
            for line in file:
                query, _, answer, *_ = line.split(" ")
                answers.setdefault(query, []).append(answer)
    except (OSError, EOFError, ValueError, zlib.error) as error:
        raise _unreadable(path, error) from error
    return answers
