from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks.faults import flip, make_shop, two_segments
from indexing.errors import IndexFolderError
from indexing.store import open_index


def test_each_flip_and_cut_is_refused_and_undone(tmp_path: Path) -> None:
    folder = two_segments(tmp_path)
    before = open_index(folder).manifest
    found = list(flip(folder, 3))
    assert [name for name, _, _ in found] == [
        "manifest.json",
        *(f"{part.name}/{name}" for part in before.segments for name in part.files),
    ]
    assert all(refused == tried for _, refused, tried in found)
    # All but the empty lists of rejects were tried.
    assert sorted({tried for _, _, tried in found}) == [0, 6]
    assert open_index(folder).manifest == before


def test_the_shop_changes_some_products_and_brings_new_ones(tmp_path: Path) -> None:
    make_shop(tmp_path)
    old, changes = (
        (tmp_path / name).read_text().splitlines() for name in ("old.csv", "changes.csv")
    )
    assert len(set(old) & set(changes)) == 1  # the header
    ids = [{line.split(",")[0] for line in lines[1:]} for lines in (old, changes)]
    assert len(ids[0] & ids[1]) == 4
    assert len(ids[1] - ids[0]) == 2
    with pytest.raises(IndexFolderError):
        open_index(tmp_path / "index")


@pytest.mark.skipif(shutil.which("strace") is None, reason="needs strace")
def test_a_rollback_broken_anywhere_leaves_the_old_version_or_the_new_one() -> None:
    """In a process of its own: it forks, which a process with threads must not."""
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.faults", "--jobs", "rollback", "--every", "2"],
        capture_output=True,
        text=True,
        check=False,
    )
    if "strace cannot watch" in done.stderr + done.stdout:
        pytest.skip("strace may not watch processes here")
    assert done.returncode == 0, done.stdout + done.stderr
    lines = [line.split() for line in done.stdout.splitlines() if "rollback" in line]
    assert [line[1] for line in lines] == ["KILL", "ENOSPC", "EIO"]
    for _, _, points, old, new, neither in lines:
        assert int(points) == int(old) + int(new) > 10
        assert int(old) > 0 < int(new)
        assert neither == "0"
