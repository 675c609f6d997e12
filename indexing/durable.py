"""Files that are whole after a crash: written aside, flushed, renamed, and checked by hash."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable
from pathlib import Path

LOCK = ".shoplens.lock"  # in each index folder, and held by the one process that builds it
_CHUNK = 1 << 20


def write_atomically(path: Path, write: Callable[[Path], None]) -> None:
    """Let `write` fill a temporary file beside `path`, then put it in place.

    After a crash `path` holds either what it held before or all of the new content.
    """
    temporary = path.with_name(f"{path.name}.tmp")
    try:
        write(temporary)
        flush(temporary)
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    flush(path.parent)


def replace_bytes(path: Path, data: bytes) -> None:
    """Make `data` the content of a file, all or nothing."""

    def write(temporary: Path) -> None:
        temporary.write_bytes(data)

    write_atomically(path, write)


def flush(path: Path) -> None:
    """Make the content of a file, or the names in a folder, survive a power cut."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def sha256_of(path: Path) -> str:
    """Hex SHA-256 of a file's content."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(_CHUNK):
            digest.update(chunk)
    return digest.hexdigest()
