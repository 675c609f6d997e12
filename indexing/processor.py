"""The processor that this process runs on."""

from __future__ import annotations

import os
from pathlib import Path


def usable_cores() -> int:
    """Cores that this process may run on."""
    # sched_getaffinity knows of them; macOS does not have it.
    usable = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return usable or 1


def usable_threads() -> int:
    """Threads to compute by: as many as OMP_NUM_THREADS says, or one a core."""
    asked = os.environ.get("OMP_NUM_THREADS", "").split(",")[0].strip()
    return int(asked) if asked.isdecimal() and int(asked) else usable_cores()


def processor_flags() -> set[str]:
    """Instruction sets by their Linux names, such as avx512f; empty on other systems."""
    return set(processor_info("flags").split())


def has_bfloat16() -> bool:
    """Whether the processor multiplies bfloat16 by itself."""
    return bool({"avx512_bf16", "amx_bf16"} & processor_flags())


def processor_info(name: str) -> str:
    """What Linux says of the first core, such as its `model name`; empty where nothing."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:  # not Linux
        return ""
    found = (line.partition(":")[2].strip() for line in lines if line.startswith(name))
    return next(found, "")
