from __future__ import annotations

import gc
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from indexing.errors import OverloadedError
from search.server.batching import BatchingEncoder, model_time
from tests.conftest import TinyEncoder

COLOURS = ("red", "blue", "lime", "yellow", "teal", "navy", "gold", "white")


class Held(TinyEncoder):
    """Notes what goes through it together, and waits in its first call until it may go on."""

    def __init__(self) -> None:
        super().__init__()
        self.batches: list[tuple[str, int]] = []
        self.entered, self.go_on = threading.Event(), threading.Event()
        self.inside = 0

    def _enter(self, kind: str, rows: int) -> None:
        self.inside += 1
        assert self.inside == 1, "two threads at once"
        self.batches.append((kind, rows))
        self.entered.set()
        self.go_on.wait()

    def embed_pixels(self, pixels: NDArray[np.float32]) -> Any:
        self._enter("image", len(pixels))
        found = super().embed_pixels(pixels)
        self.inside -= 1
        return found

    def embed_texts(self, texts: Sequence[str]) -> Any:
        self._enter("text", len(texts))
        self.inside -= 1
        if "bad" in texts:
            raise ValueError("a bad text")
        return super().embed_pixels(
            np.stack([self.preprocess(Image.new("RGB", (4, 4), text)) for text in texts])
        )


class Queue:
    """Asks in threads, one after the other, so that all but the first stand in the queue."""

    def __init__(self, **options: Any) -> None:
        self.encoder = Held()
        self.batching = BatchingEncoder(self.encoder, **options)
        self.pool = ThreadPoolExecutor(32)

    def hold(self) -> Any:
        first = self.pool.submit(self.batching.embed_texts, ["red"])
        self.encoder.entered.wait()
        return first

    def ask(self, ask: Callable[[], Any]) -> Any:
        queued = self.batching._jobs.qsize()
        future = self.pool.submit(ask)
        while self.batching._jobs.qsize() == queued and not future.done():
            threading.Event().wait(0.001)
        return future


@pytest.fixture
def queue() -> Queue:
    return Queue(wait=0)


def test_those_that_wait_go_together_and_each_gets_its_own(queue: Queue) -> None:
    queue.hold()
    pictures = [Image.new("RGB", (9, 7), colour) for colour in COLOURS]
    asked = [queue.ask(lambda p=p: queue.batching.embed_images([p, pictures[0]])) for p in pictures]
    texts = [queue.ask(lambda c=c: queue.batching.embed_texts([c])) for c in COLOURS[:3]]
    queue.encoder.go_on.set()
    plain = TinyEncoder()
    for own, future in zip(pictures, asked, strict=True):
        np.testing.assert_array_equal(future.result(), plain.embed_images([own, pictures[0]]))
    for colour, future in zip(COLOURS, texts, strict=False):
        np.testing.assert_array_equal(future.result(), plain.embed_texts([colour]))
    assert queue.encoder.batches == [("text", 1), ("image", 16), ("text", 3)]


def test_a_batch_ends_at_its_number_of_rows() -> None:
    queue = Queue(wait=0, most=3)
    queue.hold()
    asked = [queue.ask(lambda c=c: queue.batching.embed_texts([c])) for c in COLOURS]
    queue.encoder.go_on.set()
    for future in asked:
        future.result()
    assert queue.encoder.batches == [("text", 1), ("text", 3), ("text", 3), ("text", 2)]


def test_an_error_goes_to_the_one_that_made_it(queue: Queue) -> None:
    queue.hold()
    good, bad, other = (
        queue.ask(lambda t=t: queue.batching.embed_texts([t])) for t in ("red", "bad", "blue")
    )
    queue.encoder.go_on.set()
    with pytest.raises(ValueError, match="a bad text"):
        bad.result()
    plain = TinyEncoder()
    np.testing.assert_array_equal(good.result(), plain.embed_texts(["red"]))
    np.testing.assert_array_equal(other.result(), plain.embed_texts(["blue"]))


def test_one_more_than_may_wait_is_refused_at_once() -> None:
    queue = Queue(wait=0, waiting=2)
    queue.hold()
    waiting = [queue.ask(lambda: queue.batching.embed_texts(["red"])) for _ in range(2)]
    with pytest.raises(OverloadedError):
        queue.batching.embed_texts(["red"])
    queue.encoder.go_on.set()
    for future in waiting:
        future.result()
    queue.batching.embed_texts(["red"])  # there is room again


def test_alone_waits_for_others_and_has_the_encoder_itself(queue: Queue) -> None:
    queue.hold()
    alone = queue.ask(lambda: queue.batching.alone(lambda encoder: (encoder, encoder.inside)))
    queue.encoder.go_on.set()
    assert alone.result() == (queue.encoder, 0)
    with pytest.raises(KeyError):
        queue.batching.alone(lambda _: {}["missing"])


def test_model_time_is_that_of_the_own_batches(queue: Queue) -> None:
    queue.encoder.go_on.set()
    told: list[tuple[str, int, float]] = []
    batching = BatchingEncoder(TinyEncoder(), wait=0, on_batch=lambda *batch: told.append(batch))
    batching.embed_texts(["red"])
    with model_time() as spent:
        batching.embed_texts(["red", "blue"])
        batching.embed_images([Image.new("RGB", (4, 4))])
    batching.embed_texts(["red"])
    assert [(kind, rows) for kind, rows, _ in told] == [
        *[("text", 1), ("text", 2), ("image", 1), ("text", 1)],
    ]
    assert spent == [seconds for *_, seconds in told[1:3]]


def test_it_is_the_encoder_that_it_wraps() -> None:
    plain = TinyEncoder()
    batching = BatchingEncoder(plain)
    for member in ("name", "dim", "image_size", "fingerprint"):
        assert getattr(batching, member) == getattr(plain, member)
    assert batching.embed_images([]).shape == (0, plain.dim)


@pytest.mark.parametrize("close", [True, False])
def test_its_thread_ends_with_it(close: bool) -> None:
    before = set(threading.enumerate())
    batching = BatchingEncoder(TinyEncoder(), wait=0)
    (thread,) = set(threading.enumerate()) - before
    batching.embed_texts(["red"])
    if close:
        batching.close()
    del batching
    gc.collect()
    thread.join()
