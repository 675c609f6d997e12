"""A catalog file's bytes and text: gzip, encodings, and the errors of both."""

from __future__ import annotations

import codecs
import gzip
import io
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from indexing.errors import CatalogError
from indexing.messages import printable, shown

MAX_ROW = 16 * 2**20  # characters of one row, so that no row can fill the memory
MAX_FIELD = 1_000_000  # characters of one cell

# The longer marks first: UTF-32's begins with UTF-16's.
_BYTE_ORDER_MARKS = (
    (codecs.BOM_UTF32_LE, "utf-32"),
    (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
)


@contextmanager
def reading(path: Path) -> Iterator[None]:
    """Turns what can go wrong with the file itself into CatalogError."""
    try:
        yield
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise CatalogError(
            f"{shown(path)}: the gzip data is cut short or damaged ({printable(str(error))}); "
            "get a whole copy"
        ) from error
    except UnicodeError as error:
        raise CatalogError(
            f"{shown(path)}: the text is damaged ({printable(str(error))}); save the file as UTF-8"
        ) from error
    except OSError as error:
        raise CatalogError(f"{shown(path)}: cannot be read ({error.strerror or error})") from error


def open_bytes(path: Path) -> io.BufferedReader:
    """The file's bytes, unpacked if they begin as gzip does."""
    stream = path.open("rb")
    if stream.peek(2)[:2] != b"\x1f\x8b":
        return stream
    stream.close()
    return io.BufferedReader(gzip.open(path))


def open_text(path: Path) -> io.TextIOWrapper:
    """The file's text, line ends kept.

    The encoding is UTF-8 unless a byte order mark says otherwise. Bytes that are not
    UTF-8 come as lone surrogates, so that a row and not the file is lost to them.
    """
    stream = open_bytes(path)
    head = stream.peek(4)[:4]
    for mark, encoding in _BYTE_ORDER_MARKS:
        if head.startswith(mark):
            return io.TextIOWrapper(stream, encoding, errors="surrogatepass", newline="")
    return io.TextIOWrapper(stream, "utf-8-sig", errors="surrogateescape", newline="")


def lines(stream: io.TextIOWrapper) -> Iterator[str]:
    """Yields lines; of one longer than MAX_ROW only its first MAX_ROW + 1 characters."""
    while line := stream.readline(MAX_ROW + 1):
        yield line
        while len(line) > MAX_ROW and not line.endswith(("\n", "\r")):
            line = stream.readline(MAX_ROW + 1)


def text_problem(text: str) -> str | None:
    """Why `text` is no text, if so."""
    if "\0" in text:
        return "holds a NUL character"
    if text.isascii():
        return None
    try:
        text.encode()
    except UnicodeEncodeError as error:
        byte = ord(text[error.start])
        if 0xDC80 <= byte <= 0xDCFF:
            return f"byte 0x{byte - 0xDC00:02X} is not UTF-8; save the file as UTF-8"
        return "holds broken text (a lone surrogate)"
    return None
