"""What several tests of token pruning use."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch

# Every score with every key that it is defined on.
LEGAL = [
    ("pre", "first"),
    ("pre", "eot"),
    ("pre", "eot_query"),
    ("pre", "mean"),
    ("post", "first"),
    ("post", "eot_query"),
    ("recv", "mean"),
]


@pytest.fixture(params=LEGAL, ids="-".join)
def pair(request: pytest.FixtureRequest) -> tuple[str, str]:
    found: tuple[str, str] = request.param
    return found


@pytest.fixture
def score(pair: tuple[str, str]) -> str:
    return pair[0]


@pytest.fixture
def key(pair: tuple[str, str]) -> str:
    return pair[1]


@pytest.fixture(scope="module")
def one_thread() -> Iterator[None]:
    """On tensors this small, threads that wait for each other take many times as long."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)
