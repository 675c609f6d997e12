"""FAISS on graphics cards: indexes are built and searched there, and saved as CPU indexes."""

from __future__ import annotations

import mmap
import struct
from pathlib import Path
from types import ModuleType
from typing import Any

# FAISS's kernels select no more than so many.
MOST_CANDIDATES = 2048
# Index types that FAISS has kernels for; the rest stays on the processor.
_ON_GPU = ("IndexFlatIP", "IndexFlat", "IndexIVFFlat", "IndexIVFPQ", "IndexIVFScalarQuantizer")
_FATBIN = struct.pack("<I", 0xBA55ED50)
_CUBIN, _PTX = 2, 1


def gpu_count(faiss: ModuleType) -> int:
    """How many cards this build of FAISS can use; 0 for a build without CUDA."""
    if not hasattr(faiss, "StandardGpuResources"):
        return 0
    return int(faiss.get_num_gpus())


def runs_on_gpu(faiss: ModuleType, index: Any) -> bool:
    """Whether FAISS has kernels for an index of this type and its parameters."""
    index = faiss.downcast_index(index)
    if type(index).__name__ == "IndexPreTransform":
        return runs_on_gpu(faiss, index.index)
    if type(index).__name__ == "IndexIVFPQ" and index.pq.nbits != 8:
        return False
    return type(index).__name__ in _ON_GPU


def to_gpu(
    faiss: ModuleType, index: Any, *, float16: bool = False, most: int | None = None
) -> tuple[Any, str]:
    """A copy of a CPU index on all cards, or on the first `most`, vectors divided among them.

    Returns it and an empty text, or the CPU index itself and why it stays there: no card,
    no kernels for its type, or not enough memory.

    Args:
        float16: keep vectors and tables in half precision, with half the memory; scores
            then differ by about 1e-3 until full vectors rank the candidates.
    """
    count = gpu_count(faiss) if most is None else min(most, gpu_count(faiss))
    if not count:
        return index, "this FAISS finds no GPU: the CPU is used"
    if not runs_on_gpu(faiss, index):
        name = type(faiss.downcast_index(index)).__name__
        return index, f"FAISS has no GPU kernels for {name}: the CPU is used"
    options = faiss.GpuMultipleClonerOptions()
    options.shard = count > 1
    options.useFloat16 = float16
    try:
        return faiss.index_cpu_to_all_gpus(index, co=options, ngpu=count), ""
    except RuntimeError as error:
        reason = str(error).rpartition("Error: ")[2] or str(error)
        return index, f"the GPU refused ({reason[:120]}): the CPU is used"


def to_cpu(faiss: ModuleType, index: Any) -> Any:
    """The same index on the CPU, which alone can be saved; a CPU index as it is."""
    if "gpu" not in type(index).__name__.lower():
        return index
    return faiss.index_gpu_to_cpu(index)


def kernels(library: Path) -> tuple[set[int], set[int]]:
    """Which cards a CUDA library has machine code for, and which PTX: sets of compute
    capabilities such as 90 for 9.0.

    Read from the fat binary headers (magic 0xBA55ED50) inside the file; each holds entries
    of a kind (1 PTX, 2 machine code), sizes and the capability.
    """
    code: set[int] = set()
    ptx: set[int] = set()
    with library.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
        start = data.find(_FATBIN)
        while start >= 0:
            version, header, size = struct.unpack_from("<HHQ", data, start + 4)
            place, end = start + header, min(start + header + size, len(data))
            while version == 1 and header == 16 and place + 32 <= end:
                kind, _, head, payload = struct.unpack_from("<HHIQ", data, place)
                capability = struct.unpack_from("<I", data, place + 28)[0]
                if kind in (_CUBIN, _PTX) and 20 <= capability < 1000:
                    (code if kind == _CUBIN else ptx).add(capability)
                if head < 32:
                    break
                place += head + payload
            start = data.find(_FATBIN, start + 4)
    return code, ptx


def suits(capability: tuple[int, int], code: set[int], ptx: set[int]) -> bool:
    """Whether a card can run a library: machine code of its own major version that is not
    newer, or PTX that is not newer (which the driver compiles, slowly, at first use)."""
    mine = 10 * capability[0] + capability[1]
    native = any(have // 10 == capability[0] and have <= mine for have in code)
    return native or any(have <= mine for have in ptx)
