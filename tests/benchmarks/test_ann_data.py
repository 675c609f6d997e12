"""The vectors that indexes are compared on: synthetic ones, and those of an index folder."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

import benchmarks.ann_data
from benchmarks.ann_data import IN, OUT, from_index, synthetic
from indexing.build import build_index
from indexing.catalog import read_catalog
from indexing.errors import BenchmarkError, IndexFolderError
from indexing.models.protocol import Encoder
from indexing.store import open_index

Floats = NDArray[np.float32]


class TestSynthetic:
    def test_equal_arguments_give_equal_vectors_and_another_seed_others(self) -> None:
        first, again = synthetic(2000, 16, 30), synthetic(2000, 16, 30)
        assert np.array_equal(first.vectors, again.vectors)
        assert all(np.array_equal(first.queries[kind], again.queries[kind]) for kind in (IN, OUT))
        assert not np.array_equal(first.vectors, synthetic(2000, 16, 30, seed=1).vectors)

    def test_the_vectors_do_not_depend_on_the_number_of_queries(self) -> None:
        assert np.array_equal(synthetic(2000, 16, 3).vectors, synthetic(2000, 16, 30).vectors)

    def test_all_vectors_have_unit_length_and_only_the_outside_queries_a_gap(self) -> None:
        data = synthetic(3000, 64, 400)
        for vectors in (data.vectors, *data.queries.values()):
            assert np.linalg.norm(vectors, axis=1) == pytest.approx(1, abs=1e-5)
        # A common part of length 1 beside the rest of length 1 leaves a mean of 1/sqrt(2).
        assert np.linalg.norm(data.queries[OUT].mean(0)) == pytest.approx(0.5**0.5, abs=0.1)
        assert np.linalg.norm(data.queries[IN].mean(0)) < 0.4

    @pytest.mark.parametrize(("n", "dim", "queries"), [(999, 16, 1), (1000, 7, 1), (1000, 8, 0)])
    def test_too_little_is_refused(self, n: int, dim: int, queries: int) -> None:
        with pytest.raises(BenchmarkError, match=f"{queries} queries on {n} synthetic vectors"):
            synthetic(n, dim, queries)


@pytest.fixture
def shop_index(
    tmp_path: Path, tiny_encoder: Encoder, monkeypatch: pytest.MonkeyPatch
) -> tuple[Path, Floats]:
    """An index of 60 plain pictures, whose products have 20 titles between them."""
    monkeypatch.setattr(benchmarks.ann_data, "MIN_VECTORS", 60)
    rng = np.random.default_rng(0)
    lines = ["id,title,image"]
    for number in range(60):
        colour = tuple(int(value) for value in rng.integers(0, 256, 3))
        Image.new("RGB", (4, 4), colour).save(tmp_path / f"{number}.png")
        lines.append(f"p{number},title {number % 20},{number}.png")
    (tmp_path / "catalog.csv").write_text("\n".join(lines))
    folder = tmp_path / "index"
    build_index(read_catalog(tmp_path / "catalog.csv"), tiny_encoder, folder)
    return folder, np.array(open_index(folder).vectors)


class TestFromIndex:
    def test_queries_are_taken_out_of_the_vectors(self, shop_index: tuple[Path, Floats]) -> None:
        folder, vectors = shop_index
        data = from_index(folder, 100)
        assert len(data.queries[IN]) == 6  # a tenth
        both = np.concatenate([data.vectors, data.queries[IN]])
        assert sorted(map(bytes, both)) == sorted(map(bytes, vectors))
        assert np.array_equal(from_index(folder, 100).queries[IN], data.queries[IN])
        assert len(from_index(folder, 4).queries[IN]) == 4

    def test_titles_of_the_held_out_products_are_the_other_queries(
        self,
        shop_index: tuple[Path, Floats],
        tiny_encoder: Encoder,
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        monkeypatch.setattr(benchmarks.ann_data, "load_encoder", lambda name: tiny_encoder)
        folder, vectors = shop_index
        data = from_index(folder, 100)
        held_out = [int(np.flatnonzero((vectors == q).all(axis=1))[0]) for q in data.queries[IN]]
        titles = list(dict.fromkeys(f"title {number % 20}" for number in held_out))
        assert np.array_equal(data.queries[OUT], tiny_encoder.embed_texts(titles))
        assert data.notes == []

    def test_an_encoder_that_is_gone_or_has_changed_costs_the_titles_only(
        self,
        shop_index: tuple[Path, Floats],
        other_encoder: Encoder,
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        data = from_index(shop_index[0], 5)
        assert list(data.queries) == [IN]
        assert data.notes[0].startswith("no out-of-distribution queries: unknown model 'tiny'")
        monkeypatch.setattr(benchmarks.ann_data, "load_encoder", lambda name: other_encoder)
        assert "fingerprint" in from_index(shop_index[0], 5).notes[0]

    def test_a_small_index_or_none_is_refused(
        self, shop_index: tuple[Path, Floats], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(benchmarks.ann_data, "MIN_VECTORS", 61)
        with pytest.raises(BenchmarkError, match="which has 60 vectors"):
            from_index(shop_index[0], 5)
        with pytest.raises(IndexFolderError, match="does not exist"):
            from_index(shop_index[0] / "nothing", 5)
