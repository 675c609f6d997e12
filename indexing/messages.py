"""Foreign text made fit for a message: on one line, and safe on a terminal."""

from __future__ import annotations

import reprlib
from pathlib import Path

MAX_SHOWN = 200
MAX_REASON = 300


def shown(path: Path) -> str:
    """A path as it is; control characters and bytes that are not UTF-8 are escaped."""
    return _escaped(str(path))


def one_line(text: str) -> str:
    """A text with each stretch of white space one space, the rest as in `shown`."""
    return _escaped(" ".join(text.split()))


def reason(error: BaseException) -> str:
    """What an error says, on one line of at most 300 characters; its kind where it is silent."""
    return one_line(str(error))[:MAX_REASON] or type(error).__name__


def printable(value: object) -> str:
    """A value of any kind, escaped as in `shown` and cut to 200 characters; None is nothing."""
    if value is None:
        return ""
    text = value if isinstance(value, str) else reprlib.repr(value)
    # Cut before, as a text may be huge, and after, as escapes are longer.
    return _cut(_escaped(_cut(text)))


def _cut(text: str) -> str:
    return text if len(text) <= MAX_SHOWN else text[: MAX_SHOWN - 1] + "…"


def _escaped(text: str) -> str:
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() else _escape(c) for c in text)


def _escape(character: str) -> str:
    # Python reads a byte that is not UTF-8 as a lone surrogate above 0xDC00.
    if "\udc80" <= character <= "\udcff":
        return f"\\x{ord(character) - 0xDC00:02x}"
    return character.encode("unicode_escape").decode("ascii")
