"""Where a picture named by a catalog lies, and which names are refused.

No network and no decoding here: whether a file exists is seen when it is read.
"""

from __future__ import annotations

import os
import re
from functools import lru_cache
from pathlib import Path, PurePosixPath
from urllib.parse import urlsplit

PICTURE_SUFFIXES = frozenset(
    {".jpg", ".jpeg", ".png", ".webp", ".gif", ".bmp", ".tif", ".tiff", ".avif"}
)
MAX_LOCATION_LENGTH = 4096
_SUFFIXES_BY_ID = (".jpg", ".jpeg", ".png", ".webp")
_SCHEME = re.compile(r"([a-zA-Z][a-zA-Z0-9+.-]*):")
_WEB = frozenset({"http", "https"})
# Schemes that need no "//" to be one; "red:front.jpg" is a file name.
_BARE_SCHEMES = frozenset({"file", "data", "javascript", "about", "blob"})


class LocationError(Exception):
    """A picture location that is refused; the text is the reason."""


def is_picture_name(name: str) -> bool:
    return PurePosixPath(name).suffix.lower() in PICTURE_SUFFIXES


def is_web_url(location: str) -> bool:
    return location[:8].lower().startswith(("http://", "https://"))


class ImageRoot:
    """Resolves picture locations below one folder."""

    def __init__(self, folder: Path, allow_urls: bool = False) -> None:
        self._top = os.path.realpath(folder)
        self.folder = Path(self._top)
        self.allow_urls = allow_urls
        # Catalogs name few folders and many files: resolve each folder once.
        self._real_folder = lru_cache(maxsize=4096)(
            lambda name: self._followed(os.path.join(self._top, name))  # noqa: PTH118
        )

    def locate(self, location: str) -> Path | None:
        """The file that `location` names; None for a URL that may be fetched.

        Raises LocationError for what is not a plain relative path inside the folder
        (links followed) or an allowed http(s) URL.
        """
        if len(location) > MAX_LOCATION_LENGTH:
            raise LocationError(f"longer than {MAX_LOCATION_LENGTH} characters")
        if not location.isprintable() and any(
            c < " " or "\x7f" <= c <= "\x9f" or "\ud800" <= c <= "\udfff" for c in location
        ):
            raise LocationError("holds a control character or text that is not UTF-8")
        scheme = _SCHEME.match(location)
        if scheme and self._is_url(location, scheme[1].lower()):
            return None
        return self._inside(location)

    def find(self, product_id: str) -> list[str]:
        """Pictures named by an id: `ID.jpg` (or .jpeg, .png, .webp), or all in folder `ID`.

        Raises LocationError where the id is no plain name or nothing is there.
        """
        for suffix in _SUFFIXES_BY_ID:
            path = self.locate(product_id + suffix)
            if path and path.is_file():
                return [product_id + suffix]
        folder = self.locate(product_id)
        if folder and folder.is_dir():
            names = sorted(entry.name for entry in folder.iterdir() if is_picture_name(entry.name))
            if names := [name for name in names if not name.startswith(".")]:
                return [f"{product_id}/{name}" for name in names]
        raise LocationError(
            "the images root holds no picture named by the id "
            f"({', '.join(_SUFFIXES_BY_ID)}) and no such folder of pictures"
        )

    def _is_url(self, location: str, scheme: str) -> bool:
        if scheme in _WEB:
            if not self.allow_urls:
                raise LocationError("URLs are not fetched unless --allow-urls")
            try:
                host = urlsplit(location).hostname
            except ValueError as error:
                raise LocationError(f"not a valid URL ({error})") from error
            if not host:
                raise LocationError("a URL without a host")
            return True
        if len(scheme) == 1:
            raise LocationError("a Windows path; write it relative to the images root")
        if scheme in _BARE_SCHEMES or location[len(scheme) :].startswith("://"):
            raise LocationError(f"{scheme}: locations are refused; give a relative path")
        return False

    def _inside(self, location: str) -> Path:
        if "\\" in location:
            raise LocationError("holds a backslash; write / between folders")
        if location.startswith("//"):
            raise LocationError("a URL without http: or https:")
        if location.startswith("/"):
            raise LocationError("an absolute path; write it relative to the images root")
        parts = [part for part in location.split("/") if part not in ("", ".")]
        if not parts:
            raise LocationError("names no file")
        if ".." in parts:
            raise LocationError("'..' may not stand in a picture path")
        # Strings here, as pathlib costs more than the check itself.
        path = os.path.join(self._real_folder("/".join(parts[:-1])), parts[-1])  # noqa: PTH118
        if os.path.islink(path):  # noqa: PTH114
            path = self._followed(path)
        if path != self._top and not path.startswith(self._top.rstrip("/") + "/"):
            raise LocationError("a link that leads out of the images root")
        return Path(path)

    def _followed(self, path: str) -> str:
        real = os.path.realpath(path)
        if os.path.islink(real):  # noqa: PTH114
            raise LocationError("a link that leads back to itself")
        return real
