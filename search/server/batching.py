"""Micro-batching: what several requests ask of an encoder goes through it together.

One thread owns the encoder. It takes what is waiting, up to a number of rows, after a short time
in which more may come, and hands each request its own rows. So the encoder is never used by two
threads at once, and its arithmetic libraries keep one set of workers.
"""

from __future__ import annotations

import queue
import threading
import time
import weakref
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future
from contextlib import contextmanager, suppress
from contextvars import ContextVar
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np

from indexing.errors import OverloadedError
from indexing.models.protocol import Encoder, Parent, Pixels, parent_of

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from PIL.Image import Image

    Vectors = NDArray[np.float32]

T = TypeVar("T")
OnBatch = Callable[[str, int, float], None]  # told the kind, the rows and the seconds of each

_spent: ContextVar[list[float] | None] = ContextVar("spent", default=None)


@contextmanager
def model_time() -> Iterator[list[float]]:
    """A list of the seconds of each batch that encodes something for this block."""
    found: list[float] = []
    token = _spent.set(found)
    try:
        yield found
    finally:
        _spent.reset(token)


@dataclass
class _Job:
    """Rows to encode: a tensor [n, 3, h, w], a list of texts, or something to call alone."""

    content: Any
    rows: int
    kind: str  # "image", "text" or "alone"
    done: Future[tuple[Any, float]] = field(default_factory=Future)


class BatchingEncoder:
    """An `Encoder` around another; any number of threads may use it."""

    def __init__(
        self,
        encoder: Encoder,
        *,
        most: int = 16,
        wait: float = 0.002,
        waiting: int = 256,
        on_batch: OnBatch | None = None,
    ) -> None:
        """Starts the thread; it ends when this object is gone.

        Args:
            most: Rows that go through the encoder together.
            wait: Seconds that the first of a batch waits for others.
            waiting: Requests that may wait; one more raises OverloadedError.
        """
        self._encoder = encoder
        self._waiting = waiting
        self._jobs: queue.SimpleQueue[_Job | None] = queue.SimpleQueue()
        worker = _Worker(encoder, self._jobs, most, wait, on_batch)
        threading.Thread(target=worker.run, name="encoder", daemon=True).start()
        # The thread knows the jobs and not this object, or neither would ever be let go.
        self._stop = weakref.finalize(self, self._jobs.put, None)

    @property
    def name(self) -> str:
        return self._encoder.name

    @property
    def dim(self) -> int:
        return self._encoder.dim

    @property
    def image_size(self) -> int:
        return self._encoder.image_size

    @property
    def fingerprint(self) -> str:
        return self._encoder.fingerprint

    @property
    def parent(self) -> Parent | None:
        return parent_of(self._encoder)

    def preprocess(self, picture: Image) -> Pixels:
        return self._encoder.preprocess(picture)

    def embed_pixels(self, pixels: Pixels) -> Vectors:
        vectors: Vectors = self._ask(_Job(pixels, len(pixels), "image"))
        return vectors

    def embed_images(self, pictures: Sequence[Image]) -> Vectors:
        if not pictures:
            return np.zeros((0, self.dim), np.float32)
        # Preprocessed by the thread that asks: only the network is shared.
        return self.embed_pixels(np.stack([self.preprocess(picture) for picture in pictures]))

    def embed_texts(self, texts: Sequence[str]) -> Vectors:
        vectors: Vectors = self._ask(_Job(list(texts), len(texts), "text"))
        return vectors

    def alone(self, task: Callable[[Encoder], T]) -> T:
        """What `task` makes of the encoder while nothing else uses it."""
        found: T = self._ask(_Job(task, 1, "alone"))
        return found

    def close(self) -> None:
        """End the thread after what is waiting; nothing may be asked any more."""
        self._stop()

    def _ask(self, job: _Job) -> Any:
        if self._jobs.qsize() >= self._waiting:
            raise OverloadedError(f"{self._waiting} queries are waiting: try again in a moment")
        self._jobs.put(job)
        result, seconds = job.done.result()
        if (spent := _spent.get()) is not None:
            spent.append(seconds)
        return result


class _Worker:
    """The thread's side."""

    def __init__(
        self,
        encoder: Encoder,
        jobs: queue.SimpleQueue[_Job | None],
        most: int,
        wait: float,
        on_batch: OnBatch | None,
    ) -> None:
        self._encoder = encoder
        self._jobs = jobs
        self._most = most
        self._wait = wait
        self._on_batch = on_batch

    def run(self) -> None:
        while (first := self._jobs.get()) is not None:
            batch, last = self._collect(first)
            for kind in ("image", "text"):
                self._encode(kind, [job for job in batch if job.kind == kind])
            for job in batch:
                if job.kind == "alone":
                    self._finish([job], partial(self._call, job))
            # Else the last requests' tensors would live until the next one comes.
            del first, batch
            if last:
                return

    def _collect(self, first: _Job) -> tuple[list[_Job], bool]:
        """A batch, and whether it is the last."""
        batch, until = [first], time.monotonic() + self._wait
        while sum(job.rows for job in batch) < self._most:
            left = until - time.monotonic()
            try:
                job = self._jobs.get(timeout=left) if left > 0 else self._jobs.get_nowait()
            except queue.Empty:
                break
            if job is None:
                return batch, True
            batch.append(job)
        return batch, False

    def _encode(self, kind: str, jobs: list[_Job]) -> None:
        if not jobs:
            return
        embed = self._embed_images if kind == "image" else self._embed_texts
        if len(jobs) > 1:
            with suppress(Exception):  # one of them is at fault, and alone it will say so
                self._finish(jobs, partial(embed, jobs), fail=False)
                return
        for job in jobs:
            self._finish([job], partial(embed, [job]))

    def _embed_images(self, jobs: list[_Job]) -> list[Vectors]:
        pixels = (
            jobs[0].content if len(jobs) == 1 else np.concatenate([job.content for job in jobs])
        )
        return _parts(self._encoder.embed_pixels(pixels), jobs)

    def _embed_texts(self, jobs: list[_Job]) -> list[Vectors]:
        texts = [text for job in jobs for text in job.content]
        return _parts(self._encoder.embed_texts(texts), jobs)

    def _call(self, job: _Job) -> list[Any]:
        return [job.content(self._encoder)]

    def _finish(
        self, jobs: list[_Job], work: Callable[[], list[Any]], *, fail: bool = True
    ) -> None:
        """Hands each job its part of what `work` gives, or, unless it may be tried again, its
        error."""
        start = time.perf_counter()
        try:
            parts = work()
        except BaseException as error:
            if not fail:
                raise
            for job in jobs:
                job.done.set_exception(error)
            return
        seconds = time.perf_counter() - start
        if self._on_batch is not None:
            self._on_batch(jobs[0].kind, sum(job.rows for job in jobs), seconds)
        for job, part in zip(jobs, parts, strict=True):
            job.done.set_result((part, seconds))


def _parts(vectors: Vectors, jobs: list[_Job]) -> list[Vectors]:
    ends = np.cumsum([job.rows for job in jobs])[:-1]
    return [np.asarray(part) for part in np.split(vectors, ends)]
