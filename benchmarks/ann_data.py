"""What nearest-neighbour indexes are compared on: vectors, and queries of two kinds.

*In-distribution* queries are of the same kind as the vectors (pictures against pictures),
*out-of-distribution* ones are not (texts against pictures). Graphs and inverted lists are
laid out by the vectors alone, so the second kind costs them much more recall.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from indexing.errors import BenchmarkError, IndexMismatchError, ModelError
from indexing.manifest import check_encoder
from indexing.models import load_encoder
from indexing.store import OpenIndex, open_index

Floats = NDArray[np.float32]

IN, OUT = "in-distribution", "out-of-distribution"
MIN_VECTORS = 1000
VECTORS = "vectors.npy"
_CHUNK = 1 << 16

# Chosen so that recall is lost about where it is on the pictures of a real shop (12,000, 256-d).
CLUSTER_SIZE = 50  # vectors a cluster, on average
SPREAD = 1.0  # length of the noise around a centre, which has length 1
DECAY = 0.75  # how fast the variance of the principal directions falls
KEPT = 0.25  # share of the directions that an out-of-distribution query knows of
GAP = 1.0  # length of the modality gap, where the rest of the query has length 1


@dataclass(frozen=True)
class Dataset:
    """Unit vectors, float32 [n, dim], and sets of queries, float32 [q, dim], by their kind."""

    description: str
    vectors: Floats
    queries: dict[str, Floats]
    notes: list[str] = field(default_factory=list)  # what could not be had, and why


def synthetic(n: int, dim: int, queries: int, seed: int = 0) -> Dataset:
    """A Gaussian mixture on the unit sphere; equal arguments give equal vectors.

    With unit(v) = v / |v|, noise g ~ N(0, A A') where A A' has random principal directions
    whose variances fall as 1/i**DECAY (i = 1..dim) and add up to 1, and n / CLUSTER_SIZE
    centres unit(g), the r-th drawn with a probability proportional to 1/r:

        vectors and in-distribution queries    x = unit(centre + SPREAD * g)
        out-of-distribution queries            unit(unit(P x) + GAP * u)

    P projects on a random subspace of KEPT * dim dimensions: a text tells a part of what a
    picture shows. u is one random unit vector, the same for all: the modality gap between
    texts and pictures of CLIP-like encoders (Liang et al. 2022, arXiv 2203.02053). x is
    drawn anew for each query.

    Raises BenchmarkError for fewer than MIN_VECTORS vectors or 8 dimensions.
    """
    if n < MIN_VECTORS or dim < 8 or queries < 1:
        raise BenchmarkError(
            f"{queries} queries on {n} synthetic vectors of {dim} numbers: give at least 1, "
            f"{MIN_VECTORS:,} and 8"
        )
    # A stream each, so that the vectors do not depend on the number of queries.
    shape, base, inside, outside = np.random.default_rng(seed).spawn(4)
    axes = np.linalg.qr(shape.standard_normal((dim, dim)))[0]
    variances = np.arange(1.0, dim + 1) ** -DECAY
    mixing = (axes * np.sqrt(variances / variances.sum())).T.astype(np.float32)
    known = np.linalg.qr(shape.standard_normal((dim, max(1, round(KEPT * dim)))))[0]
    known = known.astype(np.float32)
    gap = _unit(shape.standard_normal((1, dim), np.float32))
    centres = _unit(shape.standard_normal((max(2, n // CLUSTER_SIZE), dim), np.float32) @ mixing)
    shares = 1 / np.arange(1.0, len(centres) + 1)
    shares /= shares.sum()

    def draw(rng: np.random.Generator, count: int) -> Floats:
        drawn = np.empty((count, dim), np.float32)
        for start in range(0, count, _CHUNK):
            size = min(_CHUNK, count - start)
            noise = rng.standard_normal((size, dim), np.float32) @ mixing
            noise *= SPREAD
            noise += centres[rng.choice(len(centres), size, p=shares)]
            drawn[start : start + size] = _unit(noise)
        return drawn

    partial = _unit(draw(outside, queries) @ known @ known.T)
    return Dataset(
        f"{n:,} synthetic vectors of {dim} numbers, seed {seed}",
        draw(base, n),
        {IN: draw(inside, queries), OUT: _unit(partial + GAP * gap)},
    )


def mapped(data: Dataset, folder: Path) -> Dataset:
    """The same with its vectors in `folder`/vectors.npy, mapped from there: systems that keep
    a copy then hold the only one. Raises OSError."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / VECTORS
    with path.open("wb") as file:
        np.save(file, data.vectors, allow_pickle=False)
    return replace(data, vectors=np.load(path, mmap_mode="r", allow_pickle=False))


def from_index(folder: Path, queries: int, seed: int = 0) -> Dataset:
    """The vectors of an index folder, a random part of them held out as queries.

    In-distribution queries are up to `queries` rows, at most a tenth, which are taken out
    of the vectors. Out-of-distribution ones are the distinct titles of their products, as
    the index's own encoder embeds them; where it cannot be loaded, a note says why.

    Raises IndexFolderError as `open_index` does, and BenchmarkError for fewer than
    MIN_VECTORS vectors.
    """
    index = open_index(folder)
    n, dim = index.vectors.shape
    if n < MIN_VECTORS or queries < 1:
        raise BenchmarkError(
            f"{queries} queries on {folder}, which has {n:,} vectors: give at least one query and "
            f"an index of {MIN_VECTORS:,} vectors, or --synthetic N,DIM"
        )
    drawn = np.random.default_rng(seed).choice(n, min(queries, n // 10), replace=False)
    held_out = np.zeros(n, np.bool_)
    held_out[drawn] = True
    found = {IN: np.ascontiguousarray(index.vectors[held_out])}
    notes = []
    try:
        titles = _title_vectors(folder, index, held_out)
    except (ModelError, IndexMismatchError) as error:
        notes.append(f"no {OUT} queries: {error}")
    else:
        if len(titles):
            found[OUT] = titles
        else:
            notes.append(f"no {OUT} queries: the products have no titles")
    return Dataset(
        f"{n - len(drawn):,} pictures of {folder.name}, {dim} numbers each, {len(drawn):,} more "
        f"held out as queries, seed {seed}",
        np.ascontiguousarray(index.vectors[~held_out]),
        found,
        notes,
    )


def _title_vectors(folder: Path, index: OpenIndex, held_out: NDArray[np.bool_]) -> Floats:
    titles = index.products.column("title")[index.images.product[held_out]]
    distinct = list(dict.fromkeys(title for title in titles if title and title.strip()))
    if not distinct:
        return np.empty((0, index.vectors.shape[1]), np.float32)
    encoder = load_encoder(index.manifest.encoder.name)
    check_encoder(folder, index.manifest, encoder)  # it may have changed since
    return encoder.embed_texts(distinct)


def _unit(vectors: Floats) -> Floats:
    unit: Floats = (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32)
    return unit
