"""What several tests of encoders and token pruning use."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from indexing.models.albef.config import AlbefConfig

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

PIECES = [
    *("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "red", "mug", "shoe", "##s", "blue"),
    *("don", "##t", "t", "shirt", "creme", "5", "##0", "[", "]", "sep", "a", "<", ">", "person"),
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


@pytest.fixture
def albef_config() -> AlbefConfig:
    """Sizes of a tiny ALBEF model, for the pieces of `albef_vocab`."""
    return AlbefConfig(
        image_size=24, patch_size=8, vision_width=16, vision_layers=1, vision_heads=2,
        vocab_size=len(PIECES), text_width=12, text_layers=3, text_heads=2,
        text_intermediate=20, fusion_layer=2, max_positions=14, embed_dim=6, max_text_length=10,
    )  # fmt: skip


@pytest.fixture
def albef_vocab(tmp_path: Path) -> Path:
    """A vocab.txt as BERT's, small."""
    path = tmp_path / "vocabulary" / "vocab.txt"
    path.parent.mkdir()
    path.write_text("\n".join(PIECES) + "\n", encoding="utf-8")
    return path
