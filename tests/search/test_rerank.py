"""Reranking, with a matcher that can be worked out by hand: how green a picture is."""

from __future__ import annotations

import math
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image

from indexing.build import build_index
from indexing.catalog import read_catalog
from indexing.errors import QueryError
from indexing.models.albef.config import AlbefConfig
from indexing.models.albef.encoder import new_encoder
from indexing.store import OpenIndex, open_index
from indexing.table import Images
from search import rerank
from search.engine import SearchEngine
from search.hits import Hit
from search.rerank import MAX_RERANK, RerankCost

# Green from little to much, against the order of the cosine with "red".
GREENS = {"a": 0, "b": 51, "c": 102, "d": 153, "e": 204, "f": 255}


def green(level: int) -> float:
    return level / 255


@pytest.fixture
def encoder(tiny_encoder: Any) -> Any:
    class Matching(type(tiny_encoder)):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__()
            self.asked: list[tuple[str, int]] = []

        def match_text(self, text: str, pixels: NDArray[np.float32]) -> np.ndarray[Any, Any]:
            self.asked.append((text, len(pixels)))
            return ((pixels[:, 1].mean((1, 2)) + 1) / 2).astype(np.float32)

    return Matching()


Build = Callable[..., OpenIndex]


@pytest.fixture
def build(tmp_path: Path, encoder: Any) -> Build:
    def made(greens: dict[str, int] = GREENS, rows: str | None = None) -> OpenIndex:
        for name, level in greens.items():
            Image.new("RGB", (12, 12), (255, level, 0)).save(tmp_path / f"{name}.png")
        lines = rows or "".join(f"{name},{n},{name}.png\n" for n, name in enumerate(greens))
        (tmp_path / "catalog.csv").write_text(f"id,price,image\n{lines}")
        build_index(read_catalog(tmp_path / "catalog.csv"), encoder, tmp_path / "index")
        return open_index(tmp_path / "index", encoder=encoder)

    return made


@pytest.fixture
def engine(build: Build, encoder: Any) -> SearchEngine:
    return SearchEngine(build(), encoder)


def ids(hits: list[Hit]) -> str:
    return "".join(hit.product_id for hit in hits)


def test_without_it_the_order_is_that_of_the_cosine(engine: SearchEngine, encoder: Any) -> None:
    hits = engine.search(text="red")
    assert ids(hits) == "abcdef"
    assert [hit.match for hit in hits] == [None] * 6
    assert encoder.asked == []


@pytest.mark.parametrize(
    ("first", "expected"),
    [(1, "abcdef"), (2, "bacdef"), (4, "dcbaef"), (6, "fedcba"), (MAX_RERANK, "fedcba")],
)
def test_the_first_come_by_match_and_the_rest_by_cosine(
    engine: SearchEngine, encoder: Any, first: int, expected: str
) -> None:
    plain = {hit.product_id: hit for hit in engine.search(text="red")}
    hits = engine.search(text="red", itm_rerank=first)
    assert ids(hits) == expected
    assert [hit.rank for hit in hits] == [1, 2, 3, 4, 5, 6]
    for hit in hits[:first]:
        assert hit.match == pytest.approx(green(GREENS[hit.product_id]), abs=1e-6)
        assert hit.to_json()["match"] == hit.match
    for hit in hits[first:]:
        assert hit.match is hit.to_json()["match"] is None
    assert all(hit.score == plain[hit.product_id].score for hit in hits)  # stays the cosine
    assert encoder.asked == [("red", min(first, 6))]


@pytest.mark.parametrize("k", [1, 2, 3, 4, 5, 6, 10_000])
def test_k_cuts_what_was_reranked_whole(engine: SearchEngine, k: int) -> None:
    assert ids(engine.search(text="red", k=k, itm_rerank=4)) == "dcbaef"[:k]


def test_filters_hold(engine: SearchEngine, encoder: Any) -> None:
    hits = engine.search(text="red", where="price != 1 and price < 5", itm_rerank=3)
    assert ids(hits) == "dcae"
    assert [hit.match is None for hit in hits] == [False, False, False, True]
    assert engine.search(text="red", where="price > 99", itm_rerank=3) == []
    assert encoder.asked == [("red", 3)]


def test_minus_counts_for_the_cosine_only(engine: SearchEngine, encoder: Any) -> None:
    plain = engine.search(text="red", minus="lime")
    assert ids(plain) == "abcdef"
    hits = engine.search(text="red", minus="lime", itm_rerank=6)
    assert ids(hits) == "fedcba"
    assert sorted(hit.score for hit in hits) == sorted(hit.score for hit in plain)
    assert encoder.asked == [("red", 6)]


def test_ties_keep_the_order_of_the_cosine(engine: SearchEngine, encoder: Any) -> None:
    encoder.match_text = lambda _, pixels: (pixels[:, 1, 0, 0] > 0).astype(np.float32)
    # Green below a half is one tie, the rest the other.
    assert ids(engine.search(text="red", itm_rerank=6)) == "defabc"


def test_what_cannot_be_read_comes_behind_and_is_counted(
    build: Build, encoder: Any, tmp_path: Path
) -> None:
    index = build()
    paths = [None, *index.images.column("path")[1:]]  # as of a URL
    place = index.images.table.schema.get_field_index("path")
    index = replace(index, images=Images(index.images.table.set_column(place, "path", [paths])))
    (tmp_path / "c.png").unlink()
    (tmp_path / "e.png").write_bytes(b"no picture")
    costs: list[RerankCost] = []
    engine = SearchEngine(index, encoder)
    hits = engine.search(text="red", itm_rerank=5, on_rerank=costs.append)
    assert ids(hits) == "dbacef"
    assert [hit.match is None for hit in hits] == [False, False, True, True, True, True]
    last = costs[-1]
    assert (last.pictures, last.matched, last.failed) == (5, 2, 3)
    assert last.reading > 0
    assert last.matching > 0


def test_nothing_that_can_be_read(build: Build, encoder: Any, tmp_path: Path) -> None:
    index = build()
    for name in GREENS:
        (tmp_path / f"{name}.png").unlink()
    costs: list[RerankCost] = []
    engine = SearchEngine(index, encoder)
    assert ids(engine.search(text="red", itm_rerank=6, on_rerank=costs.append)) == "abcdef"
    assert (costs[-1].pictures, costs[-1].matched, costs[-1].failed) == (6, 0, 6)
    assert encoder.asked == []


def test_a_picture_that_the_encoder_cannot_prepare_or_match(
    engine: SearchEngine, encoder: Any
) -> None:
    prepare, match = encoder.preprocess, encoder.match_text

    def preprocess(picture: Image.Image) -> NDArray[np.float32]:
        if picture.getpixel((0, 0)) == (255, 204, 0):
            raise ValueError("height and width must be > 0")
        found: NDArray[np.float32] = prepare(picture)
        return found

    encoder.preprocess = preprocess
    encoder.match_text = lambda text, pixels: np.where(
        (matched := match(text, pixels)) == 1, math.nan, matched
    )
    costs: list[RerankCost] = []
    hits = engine.search(text="red", itm_rerank=6, on_rerank=costs.append)
    assert ids(hits) == "dcbaef"
    assert [hit.match is None for hit in hits[-2:]] == [True, True]
    assert (costs[-1].matched, costs[-1].failed) == (4, 2)


def test_the_best_picture_of_a_product_is_matched(build: Build, encoder: Any) -> None:
    many = build(rows='p,1,"f.png,b.png"\nq,2,c.png\n')
    assert many.manifest.images == 3
    hits = SearchEngine(many, encoder).search(text="red", itm_rerank=2)
    assert ids(hits) == "qp"
    assert [hit.match for hit in hits] == pytest.approx([green(102), green(51)], abs=1e-6)


def test_a_shared_picture_is_matched_once_and_counts_once(build: Build, encoder: Any) -> None:
    index = build(rows="p,1,b.png\nq,2,c.png\nr,3,b.png\n")
    costs: list[RerankCost] = []
    hits = SearchEngine(index, encoder).search(text="red", itm_rerank=3, on_rerank=costs.append)
    assert ids(hits) == "qpr"
    assert hits[1].match == hits[2].match
    assert encoder.asked == [("red", 2)]
    assert (costs[-1].pictures, costs[-1].matched) == (2, 2)


def test_batches_change_nothing_and_the_cost_grows_with_them(
    engine: SearchEngine, encoder: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = engine.search(text="red", itm_rerank=5)
    encoder.asked.clear()
    monkeypatch.setattr(rerank, "_TOGETHER", 2)
    costs: list[RerankCost] = []
    assert engine.search(text="red", itm_rerank=5, on_rerank=costs.append) == expected
    assert [count for _, count in encoder.asked] == [2, 2, 1]
    assert costs[0] == RerankCost(pictures=5)
    assert [cost.matched for cost in costs] == [0, 2, 4, 5]
    assert [cost.reading for cost in costs] == sorted(cost.reading for cost in costs)
    assert [cost.matching for cost in costs] == sorted(cost.matching for cost in costs)


def test_pictures_are_decoded_as_the_index_decodes_them(
    build: Build, encoder: Any, tmp_path: Path
) -> None:
    Image.effect_noise((640, 640), 90).convert("RGB").save(tmp_path / "noise.jpg")
    index = build(rows="p,1,noise.jpg\n")
    seen: list[NDArray[np.float32]] = []
    encoder.match_text = lambda _, pixels: seen.append(pixels) or np.ones(1, np.float32)
    SearchEngine(index, encoder).search(text="red", itm_rerank=1)
    assert encoder.embed_pixels(seen[0]) @ index.vectors[0] == pytest.approx(1, abs=1e-6)


def test_threads_get_the_same_answers(engine: SearchEngine) -> None:
    numbers = [1, 2, 3, 4, 5, 6] * 5
    expected = [ids(engine.search(text="red", itm_rerank=number)) for number in numbers]
    with ThreadPoolExecutor(6) as pool:
        found = pool.map(lambda number: ids(engine.search(text="red", itm_rerank=number)), numbers)
        assert list(found) == expected


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"text": "red", "itm_rerank": 0}, "itm_rerank is 0: must be between 1 and 1,000"),
        ({"text": "red", "itm_rerank": 1001}, "itm_rerank is 1001: must be"),
        ({"itm_rerank": 5}, "itm_rerank is for a text alone: give a text and no image"),
        ({"image": "a.png", "itm_rerank": 5}, "itm_rerank is for a text alone"),
        ({"text": "red", "image": "a.png", "itm_rerank": 5}, "itm_rerank is for a text alone"),
        ({"text": " ", "itm_rerank": 5}, "text is blank"),
    ],
)
def test_queries_that_cannot_be_reranked(
    engine: SearchEngine, arguments: dict[str, Any], message: str
) -> None:
    with pytest.raises(QueryError, match=message):
        engine.search(**arguments)


def test_another_encoder_is_refused_with_the_way_out(build: Build, tiny_encoder: Any) -> None:
    engine = SearchEngine(build(), tiny_encoder)
    with pytest.raises(QueryError, match=r"needs an ALBEF index and tiny has no .*albef:PATH"):
        engine.search(text="red", itm_rerank=5)


def test_with_albef_the_order_is_that_of_match(tmp_path: Path) -> None:
    pieces = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "red", "mug", "with", "lid"]
    (tmp_path / "vocab.txt").write_text("\n".join(pieces) + "\n")
    config = AlbefConfig(
        image_size=12, patch_size=4, vision_width=8, vision_layers=1, vision_heads=2,
        vocab_size=len(pieces), text_width=8, text_layers=3, text_heads=2, text_intermediate=16,
        fusion_layer=1, embed_dim=4, max_positions=16, max_text_length=8,
    )  # fmt: skip
    encoder = new_encoder(config, tmp_path / "vocab.txt", seed=0)
    with torch.no_grad():
        for weight in encoder.model.parameters():
            if weight.dim() > 1:
                weight.normal_(std=0.5, generator=torch.Generator().manual_seed(weight.numel()))
    draws = np.random.default_rng(0).integers(0, 256, (12, 20, 20, 3), np.uint8)
    for number, values in enumerate(draws):
        Image.fromarray(values).save(tmp_path / f"{number}.png")
    rows = "".join(f"{number},{number}.png\n" for number in range(len(draws)))
    (tmp_path / "catalog.csv").write_text(f"id,image\n{rows}")
    build_index(read_catalog(tmp_path / "catalog.csv"), encoder, tmp_path / "index")
    engine = SearchEngine(open_index(tmp_path / "index", encoder=encoder), encoder)

    text = "red mug with lid"
    by_cosine = [hit.product_id for hit in engine.search(text=text, k=12)]
    ids_of_text = encoder.tokenizer([text] * 8)
    pixels = [encoder.preprocess(Image.open(tmp_path / f"{name}.png")) for name in by_cosine[:8]]
    seen = torch.from_numpy(np.stack(pixels))
    logits = encoder.match(seen, ids_of_text, encoder.tokenizer.mask(ids_of_text))
    matches = dict(zip(by_cosine, logits.double().softmax(-1)[:, 1].tolist(), strict=False))
    expected = sorted(by_cosine[:8], key=lambda name: -matches[name])
    assert expected != by_cosine[:8]

    hits = engine.search(text=text, k=10, itm_rerank=8)
    assert [hit.product_id for hit in hits] == [*expected, *by_cosine[8:10]]
    found = [hit.match for hit in hits[:8]]
    assert found == pytest.approx([matches[name] for name in expected], abs=1e-6)
