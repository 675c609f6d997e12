"""The builtin encoder holds the figures of its card on real catalogs."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest

from benchmarks.builtin import fashion_titles, grocery_photos
from indexing.models import load_encoder

DATA = Path(os.environ.get("SHOPLENS_DATA", "no folder"))


@pytest.mark.data
@pytest.mark.skipif(not DATA.is_dir(), reason="SHOPLENS_DATA names no folder of real catalogs")
def test_recall_on_real_catalogs_is_above_the_bars() -> None:
    encoder = load_encoder("builtin")
    ranks, _ = fashion_titles(encoder, DATA)
    assert [bool(np.mean(ranks <= k) >= bar) for k, bar in ((1, 0.20), (5, 0.45), (10, 0.58))] == [
        True
    ] * 3
    ranks, _ = grocery_photos(encoder, DATA)
    assert np.mean(ranks <= 1) >= 0.34
