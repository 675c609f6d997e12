"""FAISS on graphics cards: learned and searched there, always saved as a CPU index."""

from __future__ import annotations

import mmap
import struct
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
from numpy.typing import NDArray

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


def to_gpu(faiss: ModuleType, index: Any, *, float16: bool = False) -> tuple[Any, str]:
    """A copy of a CPU index on all cards, the vectors divided among them.

    Returns it and an empty text, or the CPU index itself and why it stays there: no card,
    no kernels for its type, or not enough memory.

    Args:
        float16: keep vectors and tables in half precision, with half the memory; scores
            then differ by about 1e-3 until full vectors rank the candidates.
    """
    count = gpu_count(faiss)
    if not count:
        return index, "this FAISS finds no GPU: searching on the CPU"
    if not runs_on_gpu(faiss, index):
        name = type(faiss.downcast_index(index)).__name__
        return index, f"FAISS has no GPU kernels for {name}: searching on the CPU"
    options = faiss.GpuMultipleClonerOptions()
    options.shard = count > 1
    options.useFloat16 = float16
    options.useFloat16CoarseQuantizer = False
    try:
        return faiss.index_cpu_to_all_gpus(index, co=options, ngpu=count), ""
    except RuntimeError as error:
        reason = str(error).rpartition("Error: ")[2] or str(error)
        return index, f"the GPU refused ({reason[:120]}): searching on the CPU"


def train_on_gpu(faiss: ModuleType, index: Any, sample: NDArray[np.float32]) -> Any:
    """Train an empty CPU index, on a card where there is one; returns a CPU index.

    What is trained on a card comes back before anything is saved: a GPU index cannot be.
    Raises RuntimeError as FAISS does, for samples that are too small.
    """
    there, _ = to_gpu(faiss, index) if gpu_count(faiss) == 1 else (index, "")
    there.train(sample)
    if there is index:
        return index
    return faiss.downcast_index(faiss.index_gpu_to_cpu(there))


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
