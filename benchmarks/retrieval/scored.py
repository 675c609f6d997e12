"""The scores of a benchmark, as `report.json` holds them and the page shows them."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict

# Which pictures of the catalog a list shows: at most this many answers a query.
SHOWN = 5
CURVE = 100  # recall curves go to this cut-off


class _Strict(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Range(_Strict):
    """A mean and its 95% interval, by resampling products."""

    mean: float
    low: float
    high: float


class Figure(_Strict):
    """One measure: over queries (micro), and over products with equal weight (macro)."""

    micro: Range
    macro: Range
    queries: int
    products: int


class CategoryScores(_Strict):
    """The first measures for the queries of one category."""

    category: str
    figures: dict[str, Figure]


class SystemScores(_Strict):
    """One system on one task."""

    system: str
    route: Literal["exact", "index"]  # exact search, or through the index under test
    figures: dict[str, Figure]  # by measure, such as R@1, R_frac@10, AP, RR, nDCG@10
    categories: list[CategoryScores]
    curve: list[float]  # R@K for K = 1 ... CURVE, micro
    seconds: dict[str, float]  # embed, rank
    note: str = ""


class Comparison(_Strict):
    """Two systems on the same queries: `system` minus `against`."""

    system: str
    route: Literal["exact", "index"]
    against: str
    against_route: Literal["exact", "index"]
    measure: str
    difference: Range
    wins: int  # queries that only `system` answers right; for measures that are hits
    losses: int
    mcnemar_p: float | None  # exact, two-sided; None for measures that are no hits


class WorstQuery(_Strict):
    """A query of the first system whose right answer came late."""

    query: str  # id
    rank: int  # of its best right answer; 0: not found
    right: str  # id of that answer
    answers: list[str]  # ids of the first SHOWN answers


class TaskScores(_Strict):
    """A task and all its systems."""

    name: str
    title: str
    note: str
    queries: int
    query_products: int
    gallery: int
    gallery_products: int
    right_answers: int
    removed: int  # pairs taken out of the rankings, such as the query itself
    duplicates: int  # pairs that count only in the strict figures
    left_out: dict[str, int]  # reason -> queries or gallery pictures that could not be used
    systems: list[SystemScores]
    comparisons: list[Comparison]
    worst: list[WorstQuery]


class Scores(_Strict):
    """The whole of `report.json`. It holds no time of day: the same run gives the same bytes,
    but for the seconds."""

    command: str
    shoplens_version: str
    resamples: int
    seed: int
    tasks: list[TaskScores]
