"""What index to build, what it will take, and what it will find: known before the work."""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np

from indexing.errors import IndexPlanError
from indexing.faiss_import import import_faiss

# Fewer vectors than this are compared one by one: 8 ms for 512 numbers, and nothing is lost.
SMALL = 50_000
RECALL = 0.99
# What a compressed index can be tuned to; more is for exact search.
MOST_RECALL = 0.999
TRAINING = 32_768  # vectors that compression is learned from
CHUNK = 16_384  # vectors that are added at once
TUNING_QUERIES = 256
TUNING_SECONDS = 60.0

_EXAMPLES = "Flat, SQ8, PQ64x4fs, IVF256,PQ64x4fs, PCAR128,IVF256,PQ64x4fs or HNSW32"
_UNITS = {"": 1, "B": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9, "TB": 10**12}
# Multiplications and additions a second of one core, and bytes it takes in from memory: slow
# ones of today, as a plan that is too dear is the better surprise.
_FLOPS, _BANDWIDTH = 2e10, 5e9


@dataclass(frozen=True)
class Plan:
    """An index of `count` vectors of `dim` numbers. All sizes are bytes, all times CPU seconds."""

    type: Literal["exact", "approximate"]
    count: int
    dim: int
    recall: float  # what the search is tuned to; 1 for exact
    bytes_per_vector: float  # in memory, while it serves
    build_seconds: float
    factory: str | None = None  # FAISS's name of an approximate index
    tuning_seconds: float = TUNING_SECONDS  # at most

    @classmethod
    def exact(cls, count: int, dim: int) -> Plan:
        """Every vector in memory as it is."""
        seconds = count * dim * 4 / _BANDWIDTH
        return cls("exact", count, dim, 1.0, 4.0 * dim, seconds)

    @classmethod
    def approximate(cls, factory: str, count: int, dim: int, recall: float = RECALL) -> Plan:
        """Codes of FAISS's index `factory` in memory.

        Raises IndexPlanError for one that is unknown or that cannot search by inner product.
        """
        index = new_index(factory, dim)
        train = min(count, TRAINING)
        flops = _work(index, dim) * count + 25 * _work(index, dim) * train / 4
        flops += 2 * min(TUNING_QUERIES, count) * count * dim  # their exact answers
        seconds = flops / _FLOPS + 2
        return cls("approximate", count, dim, recall, _bytes(index), seconds, factory)

    @property
    def memory(self) -> int:
        """Bytes while it serves; the full vectors beside an approximate one stay on disk."""
        return round(self.count * self.bytes_per_vector)

    @property
    def build_memory(self) -> int:
        """Bytes at most while it is built."""
        learned = 2 * min(self.count, TRAINING) if self.type == "approximate" else 0
        return self.memory + 4 * self.dim * (learned + min(self.count, CHUNK))

    @property
    def disk(self) -> int:
        """Bytes of the vectors and the index."""
        return self.count * 4 * self.dim + self.memory

    def for_count(self, count: int) -> Plan:
        """The same choice for another number of vectors, such as is left of a catalog."""
        return replace(self, count=count)

    def __str__(self) -> str:
        name = self.type if self.factory is None else f"{self.type}, {self.factory}"
        kept = "exact" if self.type == "exact" else f"recall@10 ≥ {self.recall:g} aimed at"
        return (
            f"{self.count:,} vectors of {self.dim} numbers: {name}; {kept}; "
            f"{self.bytes_per_vector:,.0f} bytes a vector, {size_text(self.memory)} in memory "
            f"({size_text(self.build_memory)} to build), {size_text(self.disk)} on disk; "
            f"about {self.build_seconds:,.0f} CPU-s to build"
        )


def plan_index(
    count: int,
    dim: int,
    *,
    recall: float | None = None,
    memory: int | None = None,
    factory: str | None = None,
) -> Plan:
    """The index for `count` vectors of `dim` numbers.

    Without wishes small catalogs get an exact index and large ones a compressed one that
    is tuned to RECALL. `memory` is in bytes and bounds serving and building, beside what
    the encoder and Python take; `recall` is recall@10; `factory` names the index.

    Raises IndexPlanError for wishes that cannot be had together, naming what can.
    """
    if recall is not None and not 0 < recall <= 1:
        raise IndexPlanError(f"recall {recall:g}: give a share above 0 and at most 1, such as .99")
    if factory is not None:
        return _fitting([Plan.approximate(factory, count, dim, recall or RECALL)], memory)
    exact = Plan.exact(count, dim)
    packed = Plan.approximate(default_factory(count, dim), count, dim, min(recall or RECALL, 1.0))
    if recall is not None and recall > MOST_RECALL:
        return _fitting([exact], memory, packed)
    if count < max(SMALL, 1000) and (memory is None or exact.build_memory <= memory):
        return exact
    if count < 1000:  # too few to learn codes from
        return _fitting([exact], memory)
    return _fitting([packed], memory)


def default_factory(count: int, dim: int) -> str:
    """The factory string of a compressed index: four bits for each two principal directions.

    A random rotation spreads the variance evenly over the codes (PCAR); half of the
    directions, at least 256, are kept, as full vectors make up for the rest. Few lists, most
    of which are looked at: queries of another kind than the vectors need them.
    """
    pairs = min(dim, max(256, dim // 2)) // 2
    lists = int(2 ** np.clip(np.round(np.log2(max(1, count) ** 0.5 / 4)), 2, 12))
    return f"PCAR{2 * pairs},IVF{lists},PQ{pairs}x4fs"


def new_index(factory: str, dim: int) -> Any:
    """An empty FAISS index for inner products. Raises IndexPlanError for any that is none."""
    faiss = import_faiss()
    try:
        index = faiss.index_factory(dim, factory, faiss.METRIC_INNER_PRODUCT)
    except RuntimeError as error:
        reason = str(error).rpartition("Error: ")[2] or str(error)
        raise IndexPlanError(
            f"index {factory!r} is none for {dim} numbers and inner products ({reason[:120]}): "
            f"try {_EXAMPLES}"
        ) from None
    inner = index
    while isinstance(inner, faiss.IndexPreTransform):
        inner = faiss.downcast_index(inner.index)
    refused = (faiss.IndexIDMap, faiss.IndexIDMap2, faiss.IndexBinary)
    if isinstance(inner, refused) or inner.metric_type != faiss.METRIC_INNER_PRODUCT:
        raise IndexPlanError(
            f"index {factory!r} ({type(inner).__name__}) does not number its vectors by itself or "
            f"does not search by inner product: try {_EXAMPLES}"
        )
    return index


def parse_size(text: str) -> int:
    """Bytes of a size such as 4GB or 512MB (powers of 1,000). Raises IndexPlanError."""
    match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([KMGT]?B?)\s*", text, re.IGNORECASE)
    unit = match[2].upper() if match else ""
    if unit and not unit.endswith("B"):
        unit += "B"
    size = round(float(match[1]) * _UNITS[unit]) if match else 0
    if size < 1:
        raise IndexPlanError(f"memory {text!r}: write a size such as 4GB or 512MB")
    return size


def size_text(size: float) -> str:
    """A size for people: 1.3 GB, 74 MB."""
    for unit in ("GB", "MB", "KB"):
        if size >= _UNITS[unit]:
            value = size / _UNITS[unit]
            return f"{value:,.1f} {unit}" if value < 10 else f"{value:,.0f} {unit}"
    return f"{size:,.0f} B"


def _fitting(plans: list[Plan], memory: int | None, smaller: Plan | None = None) -> Plan:
    """The first plan that fits, or IndexPlanError that names the nearest that would."""
    for plan in plans:
        if memory is None or plan.build_memory <= memory:
            return plan
    plan = plans[0]
    ways = [f"--memory {-(-plan.build_memory // 10**6)}MB"]
    if smaller is not None and memory is not None and smaller.build_memory <= memory:
        ways.insert(0, f"--recall {MOST_RECALL:g}")
    kind = plan.factory or plan.type
    raise IndexPlanError(
        f"{plan.count:,} vectors of {plan.dim} numbers need {size_text(plan.build_memory)} for "
        f"recall {plan.recall:g} ({kind}), and {size_text(memory or 0)} is allowed: "
        f"give {' or '.join(ways)}"
    )


def _bytes(index: Any) -> float:
    """Bytes a vector in memory."""
    faiss = import_faiss()
    index = faiss.downcast_index(index)
    if isinstance(index, faiss.IndexPreTransform):
        return _bytes(index.index)
    if isinstance(index, faiss.IndexRefine):
        return _bytes(index.base_index) + _bytes(index.refine_index)
    if isinstance(index, faiss.IndexIVF):
        return float(index.code_size + 8)  # and its number
    if isinstance(index, faiss.IndexHNSW):
        links = 4.0 * index.hnsw.cum_nb_neighbors(1)
        return float(_bytes(index.storage) + links + 16)
    code_size: float = index.sa_code_size()
    return float(code_size)


def _work(index: Any, dim: int) -> float:
    """Floating-point operations to encode one vector, roughly."""
    faiss = import_faiss()
    index = faiss.downcast_index(index)
    if isinstance(index, faiss.IndexPreTransform):
        kept = int(index.index.d)
        return 2.0 * dim * kept + _work(index.index, kept)
    if isinstance(index, faiss.IndexRefine):
        return _work(index.base_index, dim) + _work(index.refine_index, dim)
    if isinstance(index, faiss.IndexHNSW):
        return 64_000.0 * dim  # distances to neighbours while it is inserted
    lists = int(index.nlist) if isinstance(index, faiss.IndexIVF) else 0
    codes = 16 if "FastScan" in type(index).__name__ else 256
    return 2.0 * dim * (lists + codes)
