"""The one door to FAISS, which is an optional library."""

from __future__ import annotations

import os
from functools import cache
from pathlib import Path
from types import ModuleType

from indexing.errors import MissingDependencyError
from indexing.processor import processor_flags, processor_info

KERNEL_VARIABLE = "OPENBLAS_CORETYPE"


@cache
def import_faiss() -> ModuleType:
    """The `faiss` module.

    Raises MissingDependencyError where neither build of it is installed.
    """
    _choose_blas_kernel()
    try:
        import faiss
    except ImportError as error:
        raise MissingDependencyError(
            "FAISS is not installed: run `pip install 'shoplens[cpu]'`, "
            "or `pip install 'shoplens[gpu]'` on a machine with CUDA"
        ) from error
    module: ModuleType = faiss
    return module


def _choose_blas_kernel() -> None:
    # The OpenBLAS inside faiss-cpu takes processors newer than itself for very old ones and is
    # four times slower than need be. It reads this variable once, while it is loaded.
    fitting = fitting_kernel(processor_flags(), processor_info("vendor_id"))
    if KERNEL_VARIABLE not in os.environ and fitting is not None:
        os.environ[KERNEL_VARIABLE] = fitting


def fitting_kernel(flags: set[str], vendor: str) -> str | None:
    """OpenBLAS's name of the kernel for such a processor; None where it knows best.

    AMD's processors without AVX-512 it takes for what they are.
    """
    if flags >= {"avx512f", "avx512cd", "avx512bw", "avx512dq", "avx512vl"}:
        return "SKYLAKEX"
    if vendor == "GenuineIntel" and flags >= {"avx2", "fma"}:
        return "HASWELL"
    return None


def blas_kernel(faiss: ModuleType) -> str | None:
    """The kernel that FAISS's own OpenBLAS runs, such as `SkylakeX`; None without one."""
    from threadpoolctl import threadpool_info

    beside = str(Path(str(faiss.__file__)).parent)  # site-packages/faiss, libraries: faiss_cpu.libs
    for library in threadpool_info():
        if library["internal_api"] == "openblas" and library["filepath"].startswith(beside):
            return str(library["architecture"])
    return None
