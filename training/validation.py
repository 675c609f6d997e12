"""Recall@K while training: title to picture, every product of the same title is right."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch.nn import functional

from indexing.errors import TrainingError
from training.data import Pairs
from training.encoders import TrainedEncoder
from training.images import ImageSide

Floats = NDArray[np.float32]
Keys = NDArray[np.int64]


def first_hit_ranks(
    queries: Floats, gallery: Floats, query_keys: Keys, gallery_keys: Keys, *, block: int = 1024
) -> NDArray[np.float64]:
    """Rank of the best right answer of each query, exactly.

    A right answer is a gallery row with the query's key. Its rank is 1 + the number of wrong
    rows with a higher score + half the number of wrong rows with the same score, so that
    ties neither help nor hurt. Infinite where the gallery holds no right answer.

    Args:
        queries: float32 [q, d]; gallery: float32 [n, d].
        query_keys: int64 [q]; gallery_keys: int64 [n].
        block: queries scored at once; memory is block x n scores.

    Returns:
        float64 [q].
    """
    ranks = np.empty(len(queries), np.float64)
    for start in range(0, len(queries), block):
        rows = slice(start, start + block)
        scores = queries[rows] @ gallery.T
        right = query_keys[rows, None] == gallery_keys[None, :]
        best = np.where(right, scores, -np.inf).max(axis=1, keepdims=True, initial=-np.inf)
        above = ((scores > best) & ~right).sum(axis=1)
        tied = ((scores == best) & ~right).sum(axis=1)
        found = right.any(axis=1)
        ranks[rows] = np.where(found, 1 + above + tied / 2, np.inf)
    return ranks


def recall_at(
    ranks: NDArray[np.float64], cutoffs: tuple[int, ...] = (1, 5, 10)
) -> dict[int, float]:
    """Share of queries whose best right answer is among the first K, for each K."""
    return {k: float((ranks <= k).mean()) if len(ranks) else float("nan") for k in cutoffs}


def validate(encoder: TrainedEncoder, pairs: Pairs, images: ImageSide) -> dict[int, float]:
    """Recall@1/5/10 of title -> picture: each distinct title once, all pictures as gallery.

    Titles are read as they will be served: with hard masks where the encoder prunes tokens.

    Raises:
        TrainingError: No picture can be read.
    """
    batches = np.array_split(np.arange(len(pairs)), 1 + len(pairs) // 256)
    rows, gallery = [], []
    with torch.inference_mode():
        for part, pictures in images.batches(batches, 0):
            if len(part):
                rows.append(part)
                embeddings = functional.normalize(images.embed(pictures).float(), dim=-1)
                gallery.append(embeddings.cpu().numpy())
    if not rows:
        raise TrainingError("none of the validation pictures can be read")
    keys = pairs.keys[np.concatenate(rows)]
    _, first = np.unique(pairs.keys, return_index=True)
    queries = encoder.embed_texts([pairs.titles[row] for row in first])
    return recall_at(first_hit_ranks(queries, np.concatenate(gallery), pairs.keys[first], keys))
