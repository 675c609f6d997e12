"""When two titles are one."""

from __future__ import annotations

import re
import unicodedata

_SPACE = re.compile(r"[\W_]+")


def normalise_title(title: str) -> str:
    """Case, accents' form, punctuation and spacing taken away: what makes two titles one."""
    return _SPACE.sub(" ", unicodedata.normalize("NFKC", title).casefold()).strip()
