from __future__ import annotations

import platform
import subprocess
import sys
from pathlib import Path

import pytest

# Page faults of ten large blocks that are taken and freed one after the other.
FAULTS = """
import resource, sys
from indexing.malloc import keep_freed_memory
if sys.argv[1] == "keep":
    assert keep_freed_memory()
bytearray(50_000_000)
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(10):
    bytearray(50_000_000)
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="only glibc has mallopt")
def test_freed_memory_is_used_again_without_new_pages() -> None:
    faults = {
        mode: int(
            subprocess.run(
                [sys.executable, "-c", FAULTS, mode],
                cwd=Path(__file__).parents[2],
                check=True,
                capture_output=True,
                text=True,
            ).stdout
        )
        for mode in ("give back", "keep")
    }
    assert faults["keep"] < 100
    assert faults["give back"] > 100 * max(1, faults["keep"])
