"""Reranking measured: a shop whose colours the cosine cannot see."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from benchmarks.attributes.rerank_report import write_rerank_report
from benchmarks.attributes.reranking import agreement, measure_tasks
from indexing.build import build_index
from indexing.catalog import read_catalog
from indexing.errors import BenchmarkError
from indexing.store import open_index
from tests.conftest import TinyClassifier, TinyEncoder

SHADES = {"Red": (200, 40, 40), "Blue": (40, 40, 200), "Green": (40, 200, 40)}


class ColourBlind(TinyEncoder):
    """Sees how bright a picture is and no colour; reads every text alike."""

    def embed_pixels(self, pixels: Any) -> NDArray[np.float32]:
        grey = pixels.mean(dim=1, keepdim=True).expand(-1, 3, -1, -1)
        return super().embed_pixels(grey)

    def embed_texts(self, texts: Any) -> NDArray[np.float32]:
        return super().embed_texts(["" for _ in texts])


@pytest.fixture
def shop(tmp_path: Path) -> Any:
    """1400 products of three colours, mugs and socks, each with a title of its own."""
    rng = np.random.default_rng(0)
    with (tmp_path / "catalog.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["id", "title", "image", "color", "kind"])
        for number in range(1400):
            color, kind = list(SHADES)[int(rng.integers(3))], ("mug", "sock")[number % 2]
            noise = int(rng.integers(-30, 30))
            rgb = tuple(int(np.clip(x + noise, 0, 255)) for x in SHADES[color])
            Image.new("RGB", (4, 4), rgb).save(tmp_path / f"{number}.png")
            writer.writerow([number, f"{kind} number {number}", f"{number}.png", color, kind])
    return read_catalog(tmp_path / "catalog.csv")


def test_attributes_help_where_the_cosine_is_blind_and_only_the_right_ones(
    shop: Any, tmp_path: Path
) -> None:
    encoder, classifier = ColourBlind(), TinyClassifier()
    build_index(shop, encoder, tmp_path / "index", classifier=classifier)
    said: list[str] = []
    found = measure_tasks(
        open_index(tmp_path / "index"), encoder, classifier, said.append, lambda done, total: None
    )
    assert "to fit on" in said[0]
    assert set(found) == {"titles", "like this but", "photos"}
    assert "values: not measured" in said[1]  # three colours and two kinds make too few
    changed = found["like this but"]
    assert changed.record.active
    assert changed.shipped.ndcg.low > 0.1
    assert changed.shipped.agreement.low > 0.1
    assert changed.oracle.ndcg.mean >= changed.shipped.ndcg.mean
    assert changed.shuffled.ndcg.mean < changed.shipped.ndcg.mean / 2
    assert changed.lost == 0  # the tiny classifier never errs on plain pictures
    for result in found.values():
        for effect in (result.shipped, result.fitted, result.shuffled, result.oracle):
            assert effect.wins + effect.losses + effect.ties == result.queries
    write_rerank_report(found, tmp_path / "out", "the command")
    figures = json.loads((tmp_path / "out" / "figures.json").read_text())
    assert figures["like this but"]["shipped"]["ndcg"]["mean"] == changed.shipped.ndcg.mean
    page = (tmp_path / "out" / "report.md").read_text()
    assert "Gate open" in page
    assert "the same, attributes of other products" in page


def test_an_index_without_attributes(shop: Any, tmp_path: Path) -> None:
    encoder = ColourBlind()
    build_index(shop, encoder, tmp_path / "index")
    with pytest.raises(BenchmarkError, match="knows no attributes"):
        measure_tasks(
            open_index(tmp_path / "index"), encoder, TinyClassifier(), print, lambda *_: None
        )


def test_agreement_counts_what_is_given() -> None:
    given = {"color": np.array([1, 1, 2, -1]), "kind": np.array([0, -1, -1, 1])}
    assert agreement({"color": 1, "kind": 0}, given) == 3 / 5
    assert agreement({"color": 2}, given) == 1 / 3
    assert agreement({}, given) == 0
