"""A pool of threads that refuses what would have to wait too long."""

from __future__ import annotations

import asyncio
import contextvars
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from threading import Lock
from typing import Any, TypeVar

from indexing.errors import OverloadedError

T = TypeVar("T")


class BoundedPool:
    """Runs functions in threads; at most `threads` run and `waiting` more wait."""

    def __init__(self, name: str, threads: int, waiting: int) -> None:
        self._executor = ThreadPoolExecutor(threads, thread_name_prefix=name)
        self._most = threads + waiting
        self._inside = 0
        self._lock = Lock()

    @property
    def inside(self) -> int:
        """How many run or wait."""
        return self._inside

    async def run(self, work: Callable[[], T]) -> T:
        """What `work` returns. Raises OverloadedError at once where the pool is full."""
        with self._lock:
            if self._inside >= self._most:
                raise OverloadedError(f"{self._most} requests are in work: try again in a moment")
            self._inside += 1
        context = contextvars.copy_context()
        try:
            future: Future[T] = self._executor.submit(context.run, work)
        except RuntimeError as error:  # shut down
            self._leave()
            raise OverloadedError("the server is stopping: try again in a moment") from error
        # Not when the waiting ends: a client that went away leaves its work behind.
        future.add_done_callback(self._leave)
        return await asyncio.wrap_future(future)

    def close(self) -> None:
        """Let what runs come to its end, and drop what waits."""
        self._executor.shutdown(wait=True, cancel_futures=True)

    def _leave(self, _: Future[Any] | None = None) -> None:
        with self._lock:
            self._inside -= 1
