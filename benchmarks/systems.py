"""Whatever answers a task: the encoder under test, and the baselines beside it.

| name        | what |
|-------------|------|
| `untrained` | the architecture of the model under test with random weights |
| `frozen`    | its picture tower without the last projection |
| `pixels`    | the picture itself, 16 x 16 pixels |
| `bm25`      | text search over what the shop wrote, for text queries |
| `fusion`    | the model under test and `bm25`, standardised scores added |
| other       | any model name that `load_encoder` knows |
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from benchmarks.retrieval.exact import QUERY_BLOCK, Fill
from benchmarks.retrieval.order import Floats
from benchmarks.retrieval.task import Ints, Task
from indexing.errors import BenchmarkError, MissingDependencyError, TrainingError
from indexing.models import Encoder, load_encoder
from indexing.models.clip import ClipEncoder, create_model
from indexing.models.protocol import Pixels
from training.images import TrunkEncoder

Row = Callable[[int], Floats]  # number of a query -> float32 [n], its scores
PICTURES_ONLY = ("frozen", "pixels")
TEXT_SEARCH = ("bm25", "fusion")
BASELINES = ("untrained", *PICTURES_ONLY, *TEXT_SEARCH)
_UNTRAINED_SEED = 0


def applies(name: str, task: Task) -> bool:
    """Whether the system `name` can answer the task."""
    if name in PICTURES_ONLY:
        return task.queries.pictures is not None
    if name in TEXT_SEARCH:
        return task.queries.pictures is None and task.gallery.texts is not None
    return True


def baseline_encoder(name: str, model: Encoder) -> Encoder:
    """The encoder called `name`, where `model` is the one under test.

    Raises:
        BenchmarkError: The model is of a kind that has no such baseline.
        ModelError: The name is a model's, and it cannot be loaded.
    """
    if name == "pixels":
        return PixelEncoder()
    if name not in ("untrained", "frozen"):
        return load_encoder(name)
    if not isinstance(model, ClipEncoder):
        raise BenchmarkError(f"{name} needs an open_clip model, and {model.name} is none")
    if name == "untrained":
        return untrained(model)
    try:
        return TrunkEncoder(model)
    except TrainingError:  # it says so in terms of training
        raise BenchmarkError(
            f"frozen needs a timm picture tower with a linear projection, and {model.name} has "
            "none: leave it out"
        ) from None


def untrained(model: ClipEncoder) -> ClipEncoder:
    """The same architecture, preprocessing and tokenizer, with random weights."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(_UNTRAINED_SEED)
        fresh = create_model(model.config["model_cfg"])
    return ClipEncoder("untrained", fresh, model.tokenizer, model.config)


class PixelEncoder:
    """A picture's own pixels, shrunk to 16 x 16, its mean taken away, as a unit vector."""

    name = "pixels"
    dim = 16 * 16 * 3
    image_size = 16
    fingerprint = "pixels-16x16-1"

    def preprocess(self, picture: Image.Image) -> Pixels:
        small = picture.convert("RGB").resize((16, 16), Image.Resampling.BOX)
        return np.moveaxis(np.asarray(small, np.float32) / np.float32(255), 2, 0)

    def embed_pixels(self, pixels: Pixels) -> NDArray[np.float32]:
        # In float64 the mean of equal values is that value, so that one shade leaves zeros.
        flat = pixels.reshape(len(pixels), -1).astype(np.float64)
        flat = flat - flat.mean(axis=1, keepdims=True)
        norms = np.linalg.norm(flat, axis=1, keepdims=True)
        # A picture of one shade has no direction left: it is like no other.
        vectors: NDArray[np.float32] = (flat / np.maximum(norms, 1e-12)).astype(np.float32)
        return vectors

    def embed_images(self, pictures: Sequence[Image.Image]) -> NDArray[np.float32]:
        return self.embed_pixels(np.stack([self.preprocess(picture) for picture in pictures]))

    def embed_texts(self, texts: Sequence[str]) -> NDArray[np.float32]:
        raise NotImplementedError("pixels know no texts")


class RowScorer:
    """A `Scorer` out of a function that scores one query with the whole gallery."""

    device = "cpu"
    dtype = torch.float32
    error = 0.0
    slope = 0.0

    def __init__(self, queries: int, gallery: int, row: Row) -> None:
        self.queries, self.gallery = queries, gallery
        self._score = row
        self._of_thread = threading.local()

    def blocks(self, first: int, last: int, centre: Floats) -> Fill:
        def fill(start: int, out: Tensor) -> None:
            width = min(out.shape[1], self.gallery - start)
            out[:, width:] = torch.inf
            for place, query in enumerate(range(first, last)):
                scores = torch.from_numpy(self._row(query)[start : start + width])
                torch.neg(scores, out=out[place, :width])

        return fill

    def exact(self, query: Ints, row: Ints) -> Floats:
        scores = np.empty(len(query), np.float32)
        order = np.argsort(query, kind="stable")
        numbers, first = np.unique(query[order], return_index=True)
        for number, here in zip(numbers.tolist(), np.split(order, first[1:]), strict=False):
            scores[here] = self._row(number)[row[here]]
        return scores

    def _row(self, query: int) -> Floats:
        # A thread of `count_answers` works on a block of queries: each row is made once.
        if not hasattr(self._of_thread, "row"):
            self._of_thread.row = lru_cache(maxsize=QUERY_BLOCK)(self._score)
        scores: Floats = self._of_thread.row(query)
        return scores


def bm25_scorer(task: Task) -> RowScorer:
    """BM25 (Lucene's variant, k1 1.5, b 0.75) of the queries over the gallery's texts.

    Raises:
        BenchmarkError: The texts hold no word.
    """
    return RowScorer(len(task.queries), len(task.gallery), _bm25_row(task))


def _bm25_row(task: Task) -> Row:
    bm25s = _import_bm25s()
    texts = task.gallery.texts or []
    vocabulary = bm25s.tokenize(texts, stopwords=None, show_progress=False)
    if not vocabulary.vocab:
        raise BenchmarkError(f"{task.name}: the gallery's texts hold no word that bm25 could find")
    index = bm25s.BM25()
    index.index(vocabulary, show_progress=False)
    asked = bm25s.tokenize(
        task.queries.texts, stopwords=None, return_ids=False, show_progress=False
    )

    def row(query: int) -> Floats:
        words = [word for word in asked[query] if word in vocabulary.vocab]
        if not words:
            return np.zeros(len(texts), np.float32)
        return np.asarray(index.get_scores(words), np.float32)

    return row


def fusion_scorer(task: Task, queries: Floats, gallery: Floats) -> RowScorer:
    """Scores of vectors and of BM25, each with mean 0 and deviation 1 over the gallery, added.

    Raises:
        BenchmarkError: The gallery's texts hold no word.
    """
    words = _bm25_row(task)
    wide = gallery.astype(np.float64)  # so that equal vectors have equal scores

    def row(query: int) -> Floats:
        picture = (wide @ queries[query]).astype(np.float32)
        return standardised(picture) + standardised(words(query))

    return RowScorer(len(queries), len(gallery), row)


def standardised(scores: Floats) -> Floats:
    """Scores with mean 0 and standard deviation 1; zeros where they are all the same."""
    centred: Floats = scores - scores.mean()
    deviation = float(centred.std())
    return centred / np.float32(deviation) if deviation > 0 else np.zeros_like(centred)


def _import_bm25s() -> Any:
    try:
        import bm25s
    except ImportError as error:
        raise MissingDependencyError(
            "bm25 and fusion need bm25s: run `pip install 'shoplens[bench]'`"
        ) from error
    return bm25s
