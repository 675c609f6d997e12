"""The one door to FAISS, which is an optional library."""

from __future__ import annotations

import os
from functools import cache
from types import ModuleType

from indexing.errors import MissingDependencyError
from indexing.processor import processor_flags

_KERNEL_VARIABLE = "OPENBLAS_CORETYPE"


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
    # The OpenBLAS inside faiss-cpu takes new Intel processors for a very old one and is
    # four times slower than need be. It reads this variable once, while it is loaded.
    needed = {"avx512f", "avx512cd", "avx512bw", "avx512dq", "avx512vl"}
    if _KERNEL_VARIABLE not in os.environ and needed <= processor_flags():
        os.environ[_KERNEL_VARIABLE] = "SKYLAKEX"
