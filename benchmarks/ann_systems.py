"""The indexes that are compared, ours and others', behind one small protocol.

What an index is built with is fixed by its entry in SYSTEMS; what a query may choose is a
setting, so one build serves a sweep. FAISS's own types are named by its index factory, and
their settings by its ParameterSpace, in FAISS's words.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from importlib import import_module
from pathlib import Path
from tempfile import TemporaryDirectory
from types import ModuleType
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from indexing.errors import BenchmarkError, MissingDependencyError
from indexing.faiss_import import import_faiss
from indexing.index_types import Plan, read_index, write_index
from indexing.plan import RECALL, default_factory
from indexing.vectors import ExactIndex, Rows, VectorIndex

Floats = NDArray[np.float32]

DEFAULT = "default"  # the setting of a system that has none


class System(Protocol):
    """An index under comparison. It is built once; then `use` and `search` may alternate."""

    label: str  # what is built, in the library's own words
    settings: Sequence[str]

    def build(self, vectors: Floats, threads: int) -> None:
        """Take in unit vectors, float32 [n, dim], for search by inner product.

        Raises MissingDependencyError where the library is not installed, and
        BenchmarkError for vectors that the index cannot hold.
        """

    def save(self, folder: Path) -> None:
        """Write the index into an empty folder; its size is what an index takes."""

    def use(self, setting: str, threads: int) -> None:
        """Choose what the next searches do: one of `settings`, on so many threads."""

    def search(self, queries: Floats, k: int) -> Rows:
        """The k best rows of each query, int64 [q, k], best first, -1 where there are fewer."""


class SavedIndex(VectorIndex, Protocol):
    """An index of ours that can be written to a file."""

    def save(self, path: Path) -> None: ...


class Ours:
    """An index type of shoplens, as the search engine uses it."""

    settings: Sequence[str] = (DEFAULT,)

    def __init__(self, label: str, make: Callable[[Floats], SavedIndex]) -> None:
        self.label = label
        self._make = make

    def build(self, vectors: Floats, threads: int) -> None:
        import_faiss().omp_set_num_threads(threads)
        self._index = self._make(vectors)

    def save(self, folder: Path) -> None:
        self._index.save(folder / "index")

    def use(self, setting: str, threads: int) -> None:
        import_faiss().omp_set_num_threads(threads)

    def search(self, queries: Floats, k: int) -> Rows:
        return self._index.search(queries, k)[1]


class Planned:
    """What `shoplens index` builds and searches where vectors are many: compressed codes in
    memory, tuned on held-out queries, and full vectors where they are."""

    label = "shoplens approximate"
    settings: Sequence[str] = (DEFAULT,)

    def __init__(self, recall: float = RECALL) -> None:
        self._recall = recall

    def build(self, vectors: Floats, threads: int) -> None:
        import_faiss().omp_set_num_threads(threads)
        n, dim = vectors.shape
        plan = Plan.approximate(default_factory(n, dim), n, dim, self._recall)
        with TemporaryDirectory() as folder:
            path = Path(folder) / "index"
            self.record = write_index(vectors, path, plan)
            self._saved = path.read_bytes()
            self.index = read_index(path, vectors, self.record)
        self.label = f"shoplens {self.record}"

    def save(self, folder: Path) -> None:
        (folder / "index").write_bytes(self._saved)

    def use(self, setting: str, threads: int) -> None:
        import_faiss().omp_set_num_threads(threads)

    def search(self, queries: Floats, k: int) -> Rows:
        return self.index.search(queries, k)[1]


class Faiss:
    """An index of FAISS's factory, with {lists} inverted lists and {quarter} = dim / 4."""

    def __init__(self, spec: str, settings: Sequence[str] = (DEFAULT,)) -> None:
        self.label = f"faiss {spec}"
        self.settings = settings
        self._spec = spec

    def build(self, vectors: Floats, threads: int) -> None:
        n, dim = vectors.shape
        if "{quarter}" in self._spec and dim % 4:
            raise BenchmarkError(f"{self._spec} needs vectors of a multiple of 4 numbers")
        # Near 4 sqrt(n), as FAISS's guidelines have it, but with enough vectors to train each.
        lists = max(1, min(2 ** round(np.log2(4 * n**0.5)), n // 39))
        spec = self._spec.format(lists=lists, quarter=dim // 4)
        self.label = f"faiss {spec}"
        faiss = import_faiss()
        faiss.omp_set_num_threads(threads)
        self._index: Any = faiss.index_factory(dim, spec, faiss.METRIC_INNER_PRODUCT)
        self._index.train(vectors)
        self._index.add(vectors)

    def save(self, folder: Path) -> None:
        import_faiss().write_index(self._index, str(folder / "index"))

    def use(self, setting: str, threads: int) -> None:
        faiss = import_faiss()
        faiss.omp_set_num_threads(threads)
        if setting != DEFAULT:
            faiss.ParameterSpace().set_index_parameters(self._index, setting)

    def search(self, queries: Floats, k: int) -> Rows:
        rows: Rows = self._index.search(queries, k)[1]
        return rows


class Hnswlib:
    """github.com/nmslib/hnswlib with as many links as FAISS's HNSW32."""

    label = "hnswlib M=32 ef_construction=200"

    def __init__(self, settings: Sequence[str]) -> None:
        self.settings = settings

    def build(self, vectors: Floats, threads: int) -> None:
        self._index = _installed("hnswlib").Index(space="ip", dim=vectors.shape[1])
        self._index.init_index(max_elements=len(vectors), M=32, ef_construction=200)
        self._index.add_items(vectors, num_threads=threads)

    def save(self, folder: Path) -> None:
        self._index.save_index(str(folder / "index"))

    def use(self, setting: str, threads: int) -> None:
        self._index.set_ef(_number(setting, "ef"))
        self._index.set_num_threads(threads)

    def search(self, queries: Floats, k: int) -> Rows:
        rows: Rows = self._index.knn_query(queries, k)[0].astype(np.int64)
        return rows


class Usearch:
    """github.com/unum-cloud/usearch with half-precision vectors."""

    label = "usearch f16 connectivity=32 expansion_add=128"

    def __init__(self, settings: Sequence[str]) -> None:
        self.settings = settings
        self._threads = 1

    def build(self, vectors: Floats, threads: int) -> None:
        module = _installed("usearch.index")
        self._index = module.Index(
            ndim=vectors.shape[1], metric="ip", dtype="f16", connectivity=32, expansion_add=128
        )
        self._index.add(np.arange(len(vectors)), vectors, threads=threads)

    def save(self, folder: Path) -> None:
        self._index.save(str(folder / "index"))

    def use(self, setting: str, threads: int) -> None:
        self._index.expansion_search = _number(setting, "expansion")
        self._threads = threads

    def search(self, queries: Floats, k: int) -> Rows:
        found = self._index.search(queries, k, threads=self._threads)
        rows = np.atleast_2d(found.keys).astype(np.int64)
        # A single query's answer is one-dimensional and as short as what was found.
        counts: NDArray[Any] = np.asarray(getattr(found, "counts", [rows.shape[1]]))
        full = np.full((len(queries), k), -1, np.int64)
        full[:, : rows.shape[1]] = rows
        full[np.arange(k) >= counts[:, np.newaxis]] = -1
        return full


class Scann:
    """ScaNN: a tree, 4-bit codes and reordering by the vectors, as its documentation advises."""

    label = "scann tree + AH 2 (.2) + reorder"

    def __init__(self, settings: Sequence[str]) -> None:
        self.settings = settings
        self._threads = self._leaves = self._reorder = 1

    def build(self, vectors: Floats, threads: int) -> None:
        module = _installed("scann.scann_ops.py.scann_ops_pybind")
        leaves = max(1, round(len(vectors) ** 0.5))
        self._index = (
            module.builder(vectors, 10, "dot_product")
            .set_n_training_threads(threads)
            .tree(num_leaves=leaves, num_leaves_to_search=max(1, leaves // 10))
            .score_ah(2, anisotropic_quantization_threshold=0.2)
            .reorder(100)
            .build()
        )

    def save(self, folder: Path) -> None:
        self._index.serialize(str(folder))

    def use(self, setting: str, threads: int) -> None:
        leaves, reorder = setting.split(",")
        self._leaves, self._reorder = _number(leaves, "leaves"), _number(reorder, "reorder")
        self._threads = threads
        self._index.set_num_threads(threads)

    def search(self, queries: Floats, k: int) -> Rows:
        parallel = self._threads > 1 and len(queries) > 1
        search = self._index.search_batched_parallel if parallel else self._index.search_batched
        rows: Rows = search(
            queries,
            final_num_neighbors=k,
            pre_reorder_num_neighbors=self._reorder,
            leaves_to_search=self._leaves,
        )[0].astype(np.int64)
        return rows


_EF = (16, 32, 64, 128, 256, 512)
_PROBES = (4, 8, 16, 32, 64, 128)
_REFINED = (5, 10, 10, 20, 40, 80)  # candidates ranked again, in multiples of k


def _each(name: str, values: Sequence[int]) -> list[str]:
    return [f"{name}={value}" for value in values]


def _pairs(probes: str, refined: str, unit: int = 1) -> list[str]:
    """Settings that look at more lists and rank more candidates again at the same time."""
    pairs = zip(_PROBES, _REFINED, strict=True)
    return [f"{probes}={probe},{refined}={unit * factor}" for probe, factor in pairs]


SYSTEMS: dict[str, Callable[[], System]] = {
    "exact": lambda: Ours("shoplens ExactIndex", ExactIndex.from_vectors),
    "shoplens": Planned,
    "faiss-flat": lambda: Faiss("Flat"),
    "faiss-hnsw": lambda: Faiss("HNSW32", _each("efSearch", _EF)),
    "faiss-hnsw-sq8": lambda: Faiss("HNSW32_SQ8", _each("efSearch", _EF)),
    "faiss-ivf": lambda: Faiss("IVF{lists},Flat", _each("nprobe", _PROBES)),
    "faiss-ivf-pq": lambda: Faiss(
        "IVF{lists},PQ{quarter}x4fs,Refine(SQ8)", _pairs("nprobe", "k_factor_rf")
    ),
    "faiss-sq8": lambda: Faiss("SQ8"),
    "faiss-rabitq": lambda: Faiss("RaBitQfs,Refine(SQ8)", _each("k_factor_rf", (3, 10, 30, 100))),
    "hnswlib": lambda: Hnswlib(_each("ef", _EF)),
    "usearch": lambda: Usearch(_each("expansion", _EF)),
    "scann": lambda: Scann(_pairs("leaves", "reorder", 10)),
}


def _number(setting: str, name: str) -> int:
    """The value of `name=value`."""
    return int(setting.removeprefix(f"{name}="))


def _installed(name: str) -> ModuleType:
    package = name.partition(".")[0]
    try:
        return import_module(name)
    except ImportError as error:
        raise MissingDependencyError(
            f"{package} is not installed: run `pip install {package}`"
        ) from error
