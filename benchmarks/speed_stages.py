"""The two sides of `shoplens bench speed`: shoplens, and the loop that people write themselves.

Each stage is a method of both sides that does the same work. `Plain` is the loop of
open_clip's README with a FAISS index behind it: every picture decoded in full and put
through the model's own transform, `encode_image` and `encode_text` in inference mode in
batches of 32, texts padded to the context length, `IndexFlatIP`. It runs the same weights, in
the memory layout that open_clip gives them, and FAISS as its wheel comes.
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable
from functools import cached_property
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from benchmarks.speed_shop import Shop
from indexing.build import build_index
from indexing.catalog import read_catalog
from indexing.embed import BATCH_SIZE
from indexing.errors import BenchmarkError
from indexing.images import read_image
from indexing.models import load_encoder
from indexing.models.clip import ClipEncoder
from indexing.models.protocol import Pixels, embed_batches
from indexing.models.torchvision_repair import import_torchvision
from indexing.store import OpenIndex, open_index
from search.engine import SearchEngine
from search.hits import Hit

Vectors = NDArray[np.float32]
Answers = list[list[str]]

HELD = 128  # at most so many preprocessed pictures are kept in memory
QUERIES = 20
K = 10
PLAIN_BATCH = 32


class Side(Protocol):
    """One side, loaded. Vectors are float32 [n, dim], of unit length, in catalog order."""

    def decode(self) -> None:
        """Read and preprocess all pictures, one after the other, on one thread."""

    def encode_pictures(self) -> Vectors:
        """The first HELD pictures, which were preprocessed before."""

    def encode_texts(self) -> Vectors:
        """All titles."""

    def index(self) -> None:
        """The catalog to a new index on disk."""

    def indexed(self) -> Vectors:
        """The vectors of that index."""

    def query_pictures(self) -> Answers:
        """The K nearest ids of the first QUERIES picture files, asked one by one."""

    def query_texts(self) -> Answers:
        """The K nearest ids of the first QUERIES titles, asked one by one."""


def everything(side: Side) -> None:
    """The catalog to an index, and all queries."""
    side.index()
    side.query_pictures()
    side.query_texts()


class Ours:
    """shoplens as its commands run it. `work` is a folder for what it writes."""

    def __init__(self, shop: Shop, model: str, work: Path) -> None:
        self._shop = shop
        self._encoder = load_encoder(model)
        self._folders = (work / f"index-{number}" for number in itertools.count())
        self._opened: OpenIndex | None = None

    def decode(self) -> None:
        for path in self._shop.pictures:
            self._pixels(path)

    def encode_pictures(self) -> Vectors:
        held = self._held
        parts = [np.stack(held[n : n + BATCH_SIZE]) for n in range(0, len(held), BATCH_SIZE)]
        return np.concatenate([*embed_batches(self._encoder, parts)])

    def encode_texts(self) -> Vectors:
        return self._encoder.embed_texts(self._shop.titles)

    def index(self) -> None:
        self._folder = next(self._folders)
        self._opened = None
        # The loop learns nothing of what it has not, either.
        build_index(read_catalog(self._shop.catalog), self._encoder, self._folder, match=False)

    def indexed(self) -> Vectors:
        return np.array(self._open().vectors)

    def query_pictures(self) -> Answers:
        engine = SearchEngine(self._open(), self._encoder)
        return [_ids(engine.search(image=path, k=K)) for path in self._shop.pictures[:QUERIES]]

    def query_texts(self) -> Answers:
        engine = SearchEngine(self._open(), self._encoder)
        return [_ids(engine.search(text=title, k=K)) for title in self._shop.titles[:QUERIES]]

    def _open(self) -> OpenIndex:
        if self._opened is None:
            self._opened = open_index(self._folder, encoder=self._encoder)
        return self._opened

    @cached_property
    def _held(self) -> list[Pixels]:
        return [self._pixels(path) for path in self._shop.pictures[:HELD]]

    def _pixels(self, path: Path) -> Pixels:
        return self._encoder.preprocess(read_image(path, at_least=self._encoder.image_size))


class Plain:
    """The loop around open_clip and FAISS. `work` is a folder for what it writes."""

    def __init__(self, shop: Shop, model: str, work: Path) -> None:
        # Not through import_faiss, which chooses a faster kernel than the wheel does.
        import faiss

        import_torchvision()
        from open_clip.transform import PreprocessCfg, image_transform_v2

        encoder = load_clip(model)
        self._faiss = faiss
        self._shop = shop
        self._work = work
        self._device = encoder.device
        self._model = encoder.model.to(memory_format=torch.contiguous_format)
        self._tokenizer = encoder.tokenizer
        self._transform: Callable[[Image.Image], Tensor] = image_transform_v2(
            PreprocessCfg(**encoder.config["preprocess_cfg"]), is_train=False
        )
        self._index: Any = None

    def decode(self) -> None:
        for path in self._shop.pictures:
            self._pixels(path)

    def encode_pictures(self) -> Vectors:
        parts = torch.stack(self._held).split(PLAIN_BATCH)  # type: ignore[no-untyped-call]
        return np.concatenate([self._image_vectors(part) for part in parts])

    def encode_texts(self) -> Vectors:
        titles = self._shop.titles
        return np.concatenate(
            [
                self._text_vectors(titles[start : start + PLAIN_BATCH])
                for start in range(0, len(titles), PLAIN_BATCH)
            ]
        )

    def index(self) -> None:
        pictures = self._shop.pictures
        self._index = None
        for start in range(0, len(pictures), PLAIN_BATCH):
            batch = [self._pixels(path) for path in pictures[start : start + PLAIN_BATCH]]
            vectors = self._image_vectors(torch.stack(batch))
            if self._index is None:
                self._index = self._faiss.IndexFlatIP(vectors.shape[1])
            self._index.add(vectors)
        self._faiss.write_index(self._index, str(self._work / "plain.faiss"))
        self._ids = [row["id"] for row in self._shop.rows]
        (self._work / "plain.json").write_text(json.dumps(self._ids))

    def indexed(self) -> Vectors:
        vectors: Vectors = self._index.reconstruct_n(0, self._index.ntotal)
        return vectors

    def query_pictures(self) -> Answers:
        paths = self._shop.pictures[:QUERIES]
        return [self._nearest(self._image_vectors(self._pixels(path)[None])) for path in paths]

    def query_texts(self) -> Answers:
        return [self._nearest(self._text_vectors([t])) for t in self._shop.titles[:QUERIES]]

    def _nearest(self, query: Vectors) -> list[str]:
        rows = self._index.search(query, K)[1]
        return [self._ids[row] for row in rows[0] if row >= 0]

    @cached_property
    def _held(self) -> list[Tensor]:
        return [self._pixels(path) for path in self._shop.pictures[:HELD]]

    def _pixels(self, path: Path) -> Tensor:
        with Image.open(path) as picture:
            return self._transform(picture)

    def _image_vectors(self, pixels: Tensor) -> Vectors:
        with torch.inference_mode():
            return _unit(self._model.encode_image(pixels.to(self._device)))

    def _text_vectors(self, texts: list[str]) -> Vectors:
        with torch.inference_mode():
            return _unit(self._model.encode_text(self._tokenizer(texts).to(self._device)))


SIDES: dict[str, Callable[[Shop, str, Path], Side]] = {"shoplens": Ours, "plain": Plain}


def load_clip(model: str) -> ClipEncoder:
    """The encoder. Raises ModelError, and BenchmarkError where it is not an open_clip model."""
    encoder = load_encoder(model)
    if not isinstance(encoder, ClipEncoder):
        raise BenchmarkError(
            f"model {model!r} is not an open_clip model, so there is no plain loop to compare "
            "with: give builtin, a model folder or ARCH/PRETRAINED"
        )
    return encoder


def _unit(features: Tensor) -> Vectors:
    features /= features.norm(dim=-1, keepdim=True)
    vectors: Vectors = features.float().cpu().numpy()
    return vectors


def _ids(hits: list[Hit]) -> list[str]:
    return [hit.product_id for hit in hits]
