"""What is checked of a text that somebody typed before an encoder reads it."""

from __future__ import annotations

from indexing.errors import QueryError

MAX_TEXT_LENGTH = 10_000  # characters


def check_text(name: str, text: str) -> None:
    """Raises QueryError, by this name, for a text that is blank, overlong or not UTF-8."""
    if not text.strip():
        raise QueryError(f"{name} is blank: give at least one word")
    if len(text) > MAX_TEXT_LENGTH:
        raise QueryError(
            f"{name} has {len(text):,} characters: at most {MAX_TEXT_LENGTH:,} are read"
        )
    try:
        text.encode()
    except UnicodeEncodeError:
        raise QueryError(f"{name} {text[:40]!a} is not UTF-8: type it again") from None
