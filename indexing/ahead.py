"""Work that threads do ahead of whoever takes it up, in order."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

_A = TypeVar("_A")
_B = TypeVar("_B")


def ahead(
    pool: ThreadPoolExecutor, work: Callable[[_A], _B], items: Iterable[_A], lookahead: int
) -> Iterator[_B]:
    """What the threads make of items, in order, at most `lookahead` of them at a time."""
    queue: deque[Future[_B]] = deque()
    for item in items:
        queue.append(pool.submit(work, item))
        if len(queue) == lookahead:
            yield queue.popleft().result()
    while queue:
        yield queue.popleft().result()
