"""How many threads compute."""

from __future__ import annotations

import pytest

from indexing import processor
from indexing.processor import usable_threads


@pytest.mark.parametrize(
    ("asked", "expected"),
    [(None, 6), ("3", 3), (" 2 ", 2), ("4,2", 4), ("0", 6), ("many", 6), ("", 6), ("-1", 6)],
)
def test_threads_are_as_many_as_asked_for_or_cores(
    monkeypatch: pytest.MonkeyPatch, asked: str | None, expected: int
) -> None:
    monkeypatch.setattr(processor, "usable_cores", lambda: 6)
    if asked is None:
        monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    else:
        monkeypatch.setenv("OMP_NUM_THREADS", asked)
    assert usable_threads() == expected
