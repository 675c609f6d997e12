"""The measures of `benchmarks.answers`, against counting; and the whole on a tiny shop."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from benchmarks.answers import (
    bootstrap_aurocs,
    measure_fusion,
    measure_lists,
    measure_lone,
    measure_match,
    weighted_auroc,
)
from benchmarks.answers_shops import grocery_shops


@given(st.lists(st.tuples(st.integers(0, 4), st.booleans(), st.integers(0, 3)), min_size=2))
def test_weights_count_like_copies(rows: list[tuple[int, bool, int]]) -> None:
    high = [value for value, positive, times in rows if positive for _ in range(times)]
    low = [value for value, positive, times in rows if not positive for _ in range(times)]
    if not high or not low:
        return
    wins = sum((a > b) + (a == b) / 2 for a in high for b in low) / (len(high) * len(low))
    values, positive, weights = (np.array(column) for column in zip(*rows, strict=True))
    found = weighted_auroc(values.astype(float), positive.astype(bool), weights.astype(float))
    assert found == pytest.approx(wins)


def test_intervals_hold_the_mean_and_pairs_share_their_draws() -> None:
    rng = np.random.default_rng(0)
    positive = np.arange(400) % 2 == 0
    column = rng.standard_normal(400) + positive
    better, same, gain = bootstrap_aurocs(
        np.column_stack([column, column]), positive, np.arange(400) // 4
    )
    assert better == same
    assert better.low < better.mean < better.high
    assert better.mean == pytest.approx(0.76, abs=0.05)
    assert (gain.mean, gain.low, gain.high) == (0, 0, 0)


def write_grocery(folder: Path, products: int) -> None:
    """The layout of the grocery data set, with coloured cells for pictures."""
    rng = np.random.default_rng(0)
    lines = []
    for number in range(products):
        cells = rng.integers(30, 226, (4, 4, 3))
        names = [f"images/iconic/{number}.png"]
        names += [f"images/{part}/{number}-{view}.png" for part in ("train", "test")
                  for view in range(2)]  # fmt: skip
        for place, name in enumerate(names):
            path = folder / "grocery" / name
            path.parent.mkdir(parents=True, exist_ok=True)
            spread = 12 if place else 0
            seen = (cells + rng.integers(-spread, spread + 1, cells.shape)).astype(np.uint8)
            Image.fromarray(seen).resize((48, 48), Image.Resampling.NEAREST).save(path)
        images = [
            {"path": name, "role": "iconic" if "iconic" in name else "photo"} for name in names
        ]
        lines.append({"id": f"g{number}", "title": f"thing {number}", "images": images})
    text = "".join(json.dumps(line) + "\n" for line in lines)
    (folder / "grocery" / "catalog.jsonl").write_text(text)


def test_the_measures_of_an_easy_shop(tmp_path: Path, tiny_encoder: Any) -> None:
    write_grocery(tmp_path, 60)
    (tmp_path / "work").mkdir()
    icons, photos = grocery_shops(tmp_path, tmp_path / "work", tiny_encoder, lambda _a, _b: None)
    assert (len(icons.index.images), len(photos.index.images)) == (60, 180)
    assert len(icons.queries.products) == 120
    found = measure_match(photos, "image")
    assert (found["queries"], found["products"]) == (120, 60)
    assert found["right"] == "1.000 [1.000, 1.000]"
    assert float(found["auroc"].split()[0]) > 0.99
    assert float(found["product_is_there"].split()[0]) > 0.95
    assert measure_match(photos, "text")["threshold"] is None
    fusion = measure_fusion(photos)
    assert fusion["top2 R@1"] == fusion["max R@1"] == "1.000 [1.000, 1.000]"
    assert fusion["top2 - max R@10"] == "0.000 [0.000, 0.000]"
    lone = measure_lone(photos)
    assert lone["asked for a lone photo"] == lone["max lone first answers"] == "0.500"
    lists = measure_lists(photos)
    assert lists["collapse: lists with a fold"] == "0.000 [0.000, 0.000]"
    assert lists["diversity 0.0"]["R@10"] == "1.000 [1.000, 1.000]"
    near, far = (float(lists[f"diversity {d}"]["similarity"].split()[0]) for d in ("0.0", "0.7"))
    assert far < near
