"""Reranking: the first products by cosine, ordered anew by how well their pictures match the text.

A fusion encoder reads text and picture together (ALBEF, Li et al., NeurIPS 2021, section 5). That
is too slow for a whole index and tells apart what one vector each cannot.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Protocol, runtime_checkable

import numpy as np

from indexing.errors import ImageError, QueryError
from indexing.images import decoding, read_bytes
from indexing.models.protocol import Encoder, Pixels
from indexing.processor import usable_cores

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from PIL.Image import Image

    from search.hits import Hit

MAX_RERANK = 1_000
_TOGETHER = 32  # pictures that are read, then matched

OnRerank = Callable[["RerankCost"], None]


@runtime_checkable
class Matcher(Protocol):
    """An encoder that tells whether a text fits a picture, such as `AlbefEncoder`."""

    @property
    def image_size(self) -> int: ...

    def preprocess(self, picture: Image) -> Pixels: ...

    def match_text(self, text: str, pixels: Pixels) -> NDArray[np.float32]:
        """The probability that each picture, float32 [n, 3, h, w], fits the text: [n]."""


@dataclass(frozen=True)
class RerankCost:
    """What a reranking has cost so far.

    Attributes:
        pictures: All that are to be matched; one that several products share counts once.
        matched: Those that were.
        failed: Those that cannot be: URLs, and files that are no sound picture any more.
        reading, matching: Seconds, one after the other.
    """

    pictures: int
    matched: int = 0
    failed: int = 0
    reading: float = 0.0
    matching: float = 0.0


class Reranker:
    """Reranks the answers to one text."""

    def __init__(self, encoder: Encoder, text: str | None, first: int, *, image: bool) -> None:
        """Makes ready to rerank the `first` hits of a query; `image`: whether it has one.

        Raises QueryError where such a query cannot be reranked, or not by this encoder.
        """
        if not 1 <= first <= MAX_RERANK:
            raise QueryError(f"itm_rerank is {first}: must be between 1 and {MAX_RERANK:,}")
        if image or text is None:
            raise QueryError(
                "itm_rerank is for a text alone: give a text and no image, or search without it"
            )
        if not isinstance(encoder, Matcher):
            raise QueryError(
                f"itm_rerank needs an ALBEF index and {encoder.name} has no fusion encoder: make "
                "one with `shoplens index CATALOG --model albef:PATH`, or search without it"
            )
        self.first = first
        self._encoder: Matcher = encoder
        self._text = text

    def reranked(self, hits: Sequence[Hit], on_rerank: OnRerank | None = None) -> list[Hit]:
        """The hits with the `first` of them by falling probability of a match, ranked anew.

        Equal ones keep their order, and so do those that could not be matched, behind all others
        of the `first`. `on_rerank` is called at the start and after each batch of pictures.
        """
        head = hits[: self.first]
        found = self._matches(head, on_rerank or (lambda _: None))
        marked = [
            hit if hit.image_path is None else replace(hit, match=found.get(hit.image_path))
            for hit in head
        ]
        marked.sort(key=lambda hit: math.inf if hit.match is None else -hit.match)
        ordered = [*marked, *hits[self.first :]]
        return [replace(hit, rank=rank) for rank, hit in enumerate(ordered, start=1)]

    def _matches(self, hits: Sequence[Hit], report: OnRerank) -> dict[Path, float]:
        """The probability of a match for each picture that can be read."""
        paths = list(dict.fromkeys(hit.image_path for hit in hits if hit.image_path is not None))
        urls = {hit.image for hit in hits if hit.image_path is None}
        cost = RerankCost(pictures=len(paths) + len(urls), failed=len(urls))
        report(cost)
        found: dict[Path, float] = {}
        with ThreadPoolExecutor(max(2, usable_cores()), thread_name_prefix="rerank") as pool:
            for start in range(0, len(paths), _TOGETHER):
                part = paths[start : start + _TOGETHER]
                began = time.perf_counter()
                loaded = zip(part, pool.map(self._load, part), strict=True)
                pixels = {path: picture for path, picture in loaded if picture is not None}
                read = time.perf_counter()
                new = self._scores(pixels)
                found.update(new)
                cost = replace(
                    cost,
                    matched=cost.matched + len(new),
                    failed=cost.failed + len(part) - len(new),
                    reading=cost.reading + read - began,
                    matching=cost.matching + time.perf_counter() - read,
                )
                report(cost)
        return found

    def _scores(self, pixels: dict[Path, Pixels]) -> dict[Path, float]:
        if not pixels:
            return {}

        scores = self._encoder.match_text(self._text, np.stack(list(pixels.values()))).tolist()
        return {p: score for p, score in zip(pixels, scores, strict=True) if math.isfinite(score)}

    def _load(self, path: Path) -> Pixels | None:
        """The picture as the index saw it; None where it cannot be had."""
        try:
            with decoding(read_bytes(path), at_least=self._encoder.image_size) as picture:
                return self._encoder.preprocess(picture)
        # All but the first: a picture that the encoder cannot prepare, as in indexing/embed.py.
        except (ImageError, ValueError, RuntimeError, MemoryError):
            return None
