"""What is shared by all cards is tested with a module that only pretends to have some."""

from __future__ import annotations

import struct
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pytest

from indexing import index_types
from indexing.approximate import ApproximateIndex
from indexing.faiss_import import import_faiss
from indexing.gpu import MOST_CANDIDATES, gpu_count, kernels, runs_on_gpu, suits, to_cpu, to_gpu
from indexing.index_types import Plan, read_index, write_index

VECTORS = np.random.default_rng(0).standard_normal((500, 16)).astype(np.float32)


class GpuCopy:
    """What a GPU index is to its callers; its name says that it is one."""

    def __init__(self, index: Any) -> None:
        self.held = index
        self.asked: list[int] = []

    def __getattr__(self, name: str) -> Any:
        return getattr(self.held, name)

    def search(self, queries: Any, k: int) -> Any:
        self.asked.append(k)
        return self.held.search(queries, k)


class Pretended(ModuleType):
    """FAISS with cards that hold copies."""

    StandardGpuResources = object

    def __init__(self, cards: int, *, full: bool = False) -> None:
        super().__init__("faiss")
        self.cards, self.full = cards, full
        self.options: list[tuple[bool, bool, int]] = []

    def __getattr__(self, name: str) -> Any:
        return getattr(import_faiss(), name)

    def get_num_gpus(self) -> int:
        return self.cards

    def GpuMultipleClonerOptions(self) -> SimpleNamespace:  # noqa: N802 - FAISS's name
        return SimpleNamespace(shard=False, useFloat16=False)

    def index_cpu_to_all_gpus(self, index: Any, co: Any, ngpu: int) -> GpuCopy:
        self.options.append((co.shard, co.useFloat16, ngpu))
        if self.full:
            raise RuntimeError("Error in alloc: Error: 'err == cudaSuccess' failed: out of memory")
        return GpuCopy(index)

    def index_gpu_to_cpu(self, index: GpuCopy) -> Any:
        return index.held


def flat() -> Any:
    index = import_faiss().IndexFlatIP(16)
    index.add(VECTORS)
    return index


def test_a_build_without_cuda_has_no_cards_and_says_so() -> None:
    faiss = ModuleType("faiss")
    assert gpu_count(faiss) == 0
    index = flat()
    same, why = to_gpu(faiss, index)
    assert same is index
    assert "finds no GPU" in why


@pytest.mark.parametrize(
    ("factory", "there"),
    [
        ("Flat", True),
        ("IVF4,Flat", True),
        ("IVF4,PQ4", True),
        ("PCA8,IVF4,SQ8", True),
        ("IVF4,PQ4x4fs", False),
        ("PQ4x4fs", False),
        ("HNSW8", False),
    ],
)
def test_types_without_kernels_stay_on_the_cpu(factory: str, there: bool) -> None:
    faiss = import_faiss()
    index = faiss.index_factory(16, factory, faiss.METRIC_INNER_PRODUCT)
    assert runs_on_gpu(faiss, index) == there
    moved, why = to_gpu(Pretended(1), index)
    assert (moved is not index) == there
    assert ("no GPU kernels for" in why) == (not there)


def test_vectors_are_divided_among_several_cards() -> None:
    faiss = Pretended(3)
    to_gpu(faiss, flat(), float16=True)
    to_gpu(faiss, flat(), most=1)
    assert faiss.options == [(True, True, 3), (False, False, 1)]


def test_a_card_that_is_full_is_no_end() -> None:
    index = flat()
    same, why = to_gpu(Pretended(1, full=True), index)
    assert same is index
    assert "the GPU refused ('err == cudaSuccess' failed: out of memory)" in why


def test_what_comes_from_a_card_is_saved_as_a_cpu_index() -> None:
    index = flat()
    moved, _ = to_gpu(Pretended(1), index)
    assert to_cpu(Pretended(1), moved) is index
    assert to_cpu(import_faiss(), index) is index


def test_building_and_searching_there_gives_the_answers_of_the_cpu(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plan = Plan.approximate("IVF8,Flat", 500, 16)
    record = write_index(VECTORS, tmp_path / "cpu", plan)
    here = read_index(tmp_path / "cpu", VECTORS, record)
    monkeypatch.setattr(index_types, "import_faiss", lambda: Pretended(2))
    write_index(VECTORS, tmp_path / "gpu", plan)
    assert (tmp_path / "gpu").read_bytes() == (tmp_path / "cpu").read_bytes()
    there = read_index(tmp_path / "gpu", VECTORS, record, float16=True)
    mine, other = here.search(VECTORS[:9], 5), there.search(VECTORS[:9], 5)
    assert mine[0].tolist() == other[0].tolist()
    assert mine[1].tolist() == other[1].tolist()


def test_filters_and_more_candidates_than_kernels_select_go_to_the_cpu() -> None:
    card = GpuCopy(flat())
    index = ApproximateIndex(flat(), VECTORS, candidates=100, scan_seconds=1e-12, on_gpu=card)
    everything = index.search(VECTORS[:3], 5)[1]
    assert card.asked == [100]
    allowed = np.ones(500, np.bool_)
    assert index.search(VECTORS[:3], 5, allowed)[1].tolist() == everything.tolist()
    index.propose(VECTORS[:1], MOST_CANDIDATES + 1)
    assert card.asked == [100]


def fatbin(*entries: tuple[int, int]) -> bytes:
    """A fat binary of (kind, capability) entries, each with 24 bytes of code."""
    parts = b""
    for kind, capability in entries:
        head = struct.pack("<HHIQIIHHI", kind, 0x101, 64, 24, 0, 0, 0, 0, capability)
        parts += head.ljust(64, b"\0") + b"code" * 6
    return struct.pack("<IHHQ", 0xBA55ED50, 1, 16, len(parts)) + parts


def test_the_kernels_of_a_library_are_read_from_its_fat_binaries(tmp_path: Path) -> None:
    library = tmp_path / "libfaiss.so"
    library.write_bytes(
        b"ELF.." + fatbin((2, 70), (2, 80)) + b"\0" * 7 + fatbin((2, 90), (1, 90)) + b"rest"
    )
    assert kernels(library) == ({70, 80, 90}, {90})
    library.write_bytes(b"nothing of the kind")
    assert kernels(library) == (set(), set())
    library.write_bytes(fatbin((2, 70))[:20])  # cut short
    assert kernels(library) == (set(), set())


@pytest.mark.parametrize(
    ("card", "code", "ptx", "runs"),
    [
        ((9, 0), {70, 80, 90}, set(), True),
        ((9, 0), {70, 80}, set(), False),  # machine code of one generation is none for another
        ((8, 9), {80}, set(), True),
        ((8, 0), {86}, set(), False),
        ((12, 0), {90}, {90}, True),
        ((7, 5), {80}, {80}, False),
    ],
)
def test_a_card_runs_code_of_its_generation_or_older_ptx(
    card: tuple[int, int], code: set[int], ptx: set[int], runs: bool
) -> None:
    assert suits(card, code, ptx) == runs


@pytest.mark.gpu
@pytest.mark.parametrize("float16", [False, True])
@pytest.mark.parametrize("factory", ["Flat", "IVF16,Flat", "IVF16,PQ8"])
def test_a_real_card_gives_the_answers_of_the_cpu(
    factory: str, float16: bool, tmp_path: Path
) -> None:
    faiss = import_faiss()
    if not gpu_count(faiss):
        pytest.skip("this FAISS has no GPU")
    vectors = np.random.default_rng(1).standard_normal((20_000, 64)).astype(np.float32)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    record = write_index(vectors, tmp_path / "x", Plan.approximate(factory, 20_000, 64))
    assert record.search is not None
    candidates = min(record.search.candidates, MOST_CANDIDATES)
    there = read_index(tmp_path / "x", vectors, record, float16=float16)
    loaded = faiss.read_index(str(tmp_path / "x"))
    here = ApproximateIndex(
        loaded, vectors, candidates=candidates, probes=record.search.probes, scan_seconds=1e-12
    )
    mine, other = (index.search(vectors[:50], 10)[1] for index in (here, there))
    hits = [len({*a} & {*b}) for a, b in zip(mine.tolist(), other.tolist(), strict=True)]
    assert sum(hits) >= 0.99 * 500
