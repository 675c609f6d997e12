"""Small pictures of products: made once, then read from a folder."""

from __future__ import annotations

import hashlib
import logging
from io import BytesIO
from pathlib import Path
from threading import Lock
from typing import Literal, NamedTuple

from PIL import Image

from indexing.durable import replace_bytes
from indexing.images import decoding, read_bytes

logger = logging.getLogger(__name__)

# Pixels of the longer side; few, or anybody could fill the folder.
Size = Literal[160, 320, 640, 1280]
MEDIA_TYPE = "image/jpeg"
_QUALITY = 85
_LOCKS = 64


class Thumbnail(NamedTuple):
    """A JPEG file's bytes.

    Attributes:
        current: Whether it shows the picture that was indexed; the file may have changed since.
        cached: Whether it was there already.
    """

    data: bytes
    current: bool
    cached: bool


class Thumbnails:
    """Thumbnails in a folder, named by the SHA-256 of the picture: what is there never changes.

    Any number of threads, and several servers, may use one folder. Nothing is removed from it.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        # Two requests for one thumbnail wait for each other, most others do not.
        self._locks = [Lock() for _ in range(_LOCKS)]

    def get(self, picture: Path, sha256: str, size: Size) -> Thumbnail:
        """The thumbnail of a picture file that was indexed with this hash.

        Raises ImageError where the file is gone or no sound picture any more.
        """
        target = self._folder / sha256[:2] / f"{sha256}-{size}.jpg"
        with self._locks[int(sha256[:8], 16) % _LOCKS]:
            try:
                return Thumbnail(target.read_bytes(), current=True, cached=True)
            except OSError:
                pass
            data = read_bytes(picture)
            small = _small(data, size)
            current = hashlib.sha256(data).hexdigest() == sha256
            if current:
                try:
                    target.parent.mkdir(parents=True, exist_ok=True)
                    replace_bytes(target, small)
                except OSError as error:  # it is sent all the same
                    logger.warning("thumbnails cannot be kept in %s: %s", self._folder, error)
        return Thumbnail(small, current=current, cached=False)


def _small(data: bytes, size: int) -> bytes:
    with decoding(data, at_least=size) as picture:
        # A copy, and never larger than the picture.
        picture.thumbnail((size, size), Image.Resampling.LANCZOS, reducing_gap=2.0)
        out = BytesIO()
        picture.save(out, "JPEG", quality=_QUALITY, optimize=True, progressive=True)
    return out.getvalue()
