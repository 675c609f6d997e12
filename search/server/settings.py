"""What whoever starts a server decides."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

WEB = Path(__file__).with_name("web")


@dataclass(frozen=True)
class Settings:
    """Limits and places of one server.

    Attributes:
        thumbnails: Folder of small pictures that were made.
        token: What clients must show; None lets everybody in.
        feedback_file: Where feedback is appended; None takes none.
        web: Folder of the page.
        threads: Requests that are in work at once.
        max_queue: Requests that may wait for a thread; one more gets 503.
        max_body: Bytes of a request.
        body_seconds: Within which a request must have arrived.
    """

    thumbnails: Path
    token: str | None = field(default=None, repr=False)
    feedback_file: Path | None = None
    web: Path = WEB
    threads: int = 16
    max_queue: int = 64
    max_body: int = 20_000_000
    body_seconds: float = 30.0
