"""When two titles are one."""

from __future__ import annotations

import hashlib
import re
import unicodedata

_SPACE = re.compile(r"[\W_]+")


def normalise_title(title: str) -> str:
    """Case, accents' form, punctuation and spacing taken away: what makes two titles one."""
    return _SPACE.sub(" ", unicodedata.normalize("NFKC", title).casefold()).strip()


def position(title: str, seed: int = 0) -> float:
    """Where a title falls in [0, 1): by its hash, so that it depends on the seed alone.

    Titles below a share make up that share of the catalog; equal titles fall together.
    """
    digest = hashlib.blake2b(f"{seed}:{normalise_title(title)}".encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") / 2**64
