"""Feedback on answers, as JSON lines that `shoplens upgrade --qrels` reads."""

from __future__ import annotations

import json
from collections import OrderedDict
from dataclasses import asdict, dataclass
from datetime import datetime, timezone
from pathlib import Path
from threading import Lock

from indexing.errors import ServerError

REMEMBERED = 20_000  # queries


@dataclass(frozen=True)
class Asked:
    """What a query was. Of a picture only the hash is kept."""

    index: str
    version: int
    query: str | None = None
    image_sha256: str | None = None
    like: str | None = None
    minus: tuple[str, ...] = ()
    where: str | None = None


class RecentQueries:
    """The latest queries by the id of their request."""

    def __init__(self, most: int = REMEMBERED) -> None:
        self._most = most
        self._asked: OrderedDict[str, Asked] = OrderedDict()
        self._lock = Lock()

    def remember(self, request_id: str, asked: Asked) -> None:
        with self._lock:
            self._asked[request_id] = asked
            while len(self._asked) > self._most:
                self._asked.popitem(last=False)

    def get(self, request_id: str) -> Asked | None:
        with self._lock:
            return self._asked.get(request_id)


class FeedbackFile:
    """Appends one line an event; several servers may append to one file."""

    def __init__(self, path: Path) -> None:
        """Raises ServerError where it cannot be written."""
        self._path = path
        self._lock = Lock()
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.open("a").close()
        except OSError as error:
            raise ServerError(f"{path} cannot be written: {error.strerror}") from error

    def append(
        self, request_id: str, asked: Asked, product_id: str, rank: int, action: str
    ) -> None:
        """Writes what somebody did with an answer."""
        event = {
            "time": datetime.now(timezone.utc).isoformat(timespec="milliseconds"),
            "request_id": request_id,
            **asdict(asked),
            "product_id": product_id,
            "rank": rank,
            "action": action,
        }
        line = (json.dumps(event) + "\n").encode()
        # Unbuffered: one write a line, which O_APPEND puts behind all others.
        with self._lock, self._path.open("ab", buffering=0) as file:
            file.write(line)
