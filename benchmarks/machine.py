"""The machine that a figure was measured on."""

from __future__ import annotations

import ctypes
import os
import platform
from collections.abc import Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from indexing.faiss_import import import_faiss
from indexing.processor import processor_info, usable_cores


def describe_machine() -> str:
    """Processor, cores, memory and Python, in one line."""
    named = processor_info("model name") or platform.processor() or platform.machine()
    parts = [named, f"{usable_cores()} cores"]
    try:
        memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
        parts.append(f"{memory / 2**30:.0f} GiB")
    except (ValueError, OSError):  # a system that does not tell
        pass
    python = f"Python {platform.python_version()} on {platform.system()} {platform.machine()}"
    return ", ".join([*parts, python])


def installed_versions(packages: Sequence[str]) -> dict[str, str]:
    """The version of each package that is installed."""
    found = {}
    for package in packages:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found


def faiss_kernel() -> str | None:
    """What FAISS's OpenBLAS takes this processor for, such as SkylakeX; None where FAISS
    has another BLAS or the system does not tell.

    As shoplens loads FAISS: see `OPENBLAS_CORETYPE` in indexing/faiss_import.py.
    """
    import_faiss()
    try:
        mapped = Path("/proc/self/maps").read_text(encoding="utf-8", errors="replace")
    except OSError:  # not Linux
        return None
    paths = {line.split(maxsplit=5)[-1] for line in mapped.splitlines() if "openblas" in line}
    # numpy and scipy bring an OpenBLAS of their own, under other names.
    for path in sorted(path for path in paths if "faiss" in path):
        try:
            corename = ctypes.CDLL(path).openblas_get_corename
        except (OSError, AttributeError):
            continue
        corename.restype = ctypes.c_char_p
        name: bytes = corename()
        return name.decode()
    return None
