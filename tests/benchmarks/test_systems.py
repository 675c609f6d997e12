"""The baselines, each against its formula."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from math import log, sqrt
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from benchmarks import systems
from benchmarks.retrieval import exact
from benchmarks.retrieval.exact import count_answers
from benchmarks.retrieval.order import Floats
from benchmarks.retrieval.task import Links, Side, Task
from benchmarks.systems import (
    BASELINES,
    PixelEncoder,
    RowScorer,
    applies,
    baseline_encoder,
    bm25_scorer,
    fusion_scorer,
    standardised,
    untrained,
)
from indexing.catalog.product import ProductImage
from indexing.errors import BenchmarkError, MissingDependencyError, ShoplensError
from indexing.models import load_encoder
from indexing.models.clip import ClipEncoder

TEXTS = [
    "Red mug, large. A mug for red tea!",
    "blue mug",
    "",
    "RED dress with a red belt and red shoes: very red, very long, for parties and weddings",
    "x",
    "Tee für Größe 42, große Tasse",
]
ASKED = ["red mug", "red red dress", "zebra", "", "größe TEE", "a x mug"]


def text_task(asked: Sequence[str], texts: Sequence[str]) -> Task:
    none = np.empty(0, np.int64)
    return Task(
        "words", "T", Side([f"q{n}" for n in range(len(asked))], np.arange(len(asked)),
                           texts=list(asked)),
        Side([f"g{n}" for n in range(len(texts))], np.arange(len(texts)), texts=list(texts)),
        Links(none, none), none,
    )  # fmt: skip


def words(text: str) -> list[str]:
    """Stretches of two or more letters and digits, in lower case."""
    kept = "".join(c if c.isalnum() else " " for c in text.lower())
    return [word for word in kept.split() if len(word) > 1]


def plain_bm25(query: str, texts: Sequence[str], k1: float = 1.5, b: float = 0.75) -> list[float]:
    """Robertson's BM25 as Lucene has it: its idf is never negative, and there is no (k1 + 1)."""
    documents = [words(text) for text in texts]
    mean = sum(map(len, documents)) / len(documents)
    scores = []
    for document in documents:
        counts, score = Counter(document), 0.0
        for word in words(query):
            holding = sum(word in other for other in documents)
            idf = log(1 + (len(documents) - holding + 0.5) / (holding + 0.5))
            weight = k1 * (1 - b + b * len(document) / mean)
            score += idf * counts[word] / (counts[word] + weight) if holding else 0
        scores.append(score)
    return scores


def all_scores(scorer: RowScorer) -> Floats:
    """Every pair's score, asked for at once and in a strange order."""
    query, row = np.divmod(np.arange(scorer.queries * scorer.gallery)[::-1], scorer.gallery)
    return scorer.exact(query, row)[::-1].reshape(scorer.queries, scorer.gallery)


def block(scorer: RowScorer, first: int, last: int, start: int, width: int) -> Floats:
    out = torch.empty((last - first, width))
    scorer.blocks(first, last, np.zeros(last - first, np.float32))(start, out)
    shown: Floats = out.numpy()
    return shown


def test_bm25_is_its_formula() -> None:
    scorer = bm25_scorer(text_task(ASKED, TEXTS))
    expected = np.array([plain_bm25(query, TEXTS) for query in ASKED])
    np.testing.assert_allclose(all_scores(scorer), expected, rtol=1e-5, atol=1e-6)
    assert expected[0, 0] > expected[0, 1] > 0
    assert not expected[2:4].any()  # words that nobody wrote, and none at all
    assert expected[1, 3] > plain_bm25("red dress", TEXTS)[3]  # a word said twice counts twice


def test_bm25_without_words_to_find_says_so() -> None:
    with pytest.raises(BenchmarkError, match="words: the gallery's texts hold no word"):
        bm25_scorer(text_task(["red mug"], ["", "x", "!"]))


def test_bm25_without_its_library_says_how_to_get_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "bm25s", None)
    with pytest.raises(MissingDependencyError, match=r"pip install 'shoplens\[bench\]'"):
        bm25_scorer(text_task(ASKED, TEXTS))


def test_blocks_hold_the_scores_with_their_signs_turned() -> None:
    rng = np.random.default_rng(0)
    table = rng.normal(size=(5, 70)).astype(np.float32)
    scorer = RowScorer(5, 70, table.__getitem__)
    np.testing.assert_array_equal(block(scorer, 1, 4, 0, 64), -table[1:4, :64])
    last = block(scorer, 0, 5, 64, 64)
    np.testing.assert_array_equal(last[:, :6], -table[:, 64:])
    assert np.isposinf(last[:, 6:]).all()
    assert (scorer.error, scorer.slope) == (0, 0)


def test_each_query_is_scored_once_however_many_threads_there_are(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for module in (systems, exact):
        monkeypatch.setattr(module, "QUERY_BLOCK", 4)
    monkeypatch.setattr(exact, "GALLERY_BLOCK", 64)
    monkeypatch.setattr("os.cpu_count", lambda: 5)
    table = np.random.default_rng(0).normal(size=(40, 300)).astype(np.float32)
    asked: list[int] = []

    def row(query: int) -> Floats:
        asked.append(query)
        scores: Floats = table[query]
        return scores

    before = torch.get_num_threads()
    try:
        torch.set_num_threads(5)
        judged = Links(np.arange(40), np.arange(40))
        count_answers(RowScorer(40, 300, row), judged, Links(), 10)
    finally:
        torch.set_num_threads(before)
    assert sorted(asked) == list(range(40))


def test_fusion_adds_what_each_finds_out_of_the_ordinary() -> None:
    rng = np.random.default_rng(1)
    queries, gallery = (
        (v / np.linalg.norm(v, axis=1, keepdims=True)).astype(np.float32)
        for v in (rng.normal(size=(len(ASKED), 5)), rng.normal(size=(len(TEXTS), 5)))
    )
    found = all_scores(fusion_scorer(text_task(ASKED, TEXTS), queries, gallery))
    for number, query in enumerate(ASKED):
        picture = gallery.astype(np.float64) @ queries[number]
        text = np.array(plain_bm25(query, TEXTS))
        expected = (picture - picture.mean()) / picture.std()
        if text.any():
            expected += (text - text.mean()) / text.std()
        np.testing.assert_allclose(found[number], expected, rtol=1e-4, atol=1e-5)


def test_equal_products_tie_in_fusion() -> None:
    """A fast product would tell equal vectors apart by their places in the gallery."""
    rng = np.random.default_rng(2)
    half = rng.normal(size=(501, 49))
    half = (half / np.linalg.norm(half, axis=1, keepdims=True)).astype(np.float32)
    texts = [f"mug number {n % 7}7" for n in range(501)]
    task = text_task(["mug 37", "number"] * 40, texts * 2)
    scores = all_scores(fusion_scorer(task, half[:80], np.concatenate([half, half])))
    np.testing.assert_array_equal(scores[:, :501], scores[:, 501:])


def test_standardised() -> None:
    found = standardised(np.array([1, 2, 3, 6], np.float32))
    np.testing.assert_allclose(found, np.array([-2, -1, 0, 3]) / sqrt(3.5), rtol=1e-6)
    assert found.dtype == np.float32
    for value in (0.0, 0.1, 1 / 3):
        assert not standardised(np.full(777, value, np.float32)).any()


def shades(*rows: Sequence[tuple[int, int, int]]) -> Image.Image:
    """A picture of 32 x 32 pixels made of equal rectangles."""
    small = np.array(rows, np.uint8)
    high, wide = 32 // small.shape[0], 32 // small.shape[1]
    return Image.fromarray(small.repeat(high, axis=0).repeat(wide, axis=1))


def test_pixels_are_compared_by_the_angle_between_what_differs_from_the_mean() -> None:
    red, blue, black = (255, 0, 0), (0, 0, 255), (0, 0, 0)
    shown = [shades([red, blue]), shades([blue, red]), shades([red]), shades([black, red])]
    vectors = PixelEncoder().embed_images(shown)
    assert vectors.shape == (4, 16 * 16 * 3)
    # Per half and channel, less the mean: a third of all values are 255 in the first three.
    plain = np.array(
        [[1, 0, 0, 0, 0, 1], [0, 0, 1, 1, 0, 0], [1, 0, 0, 1, 0, 0], [0, 0, 0, 1, 0, 0]], float
    )
    plain -= plain.mean(axis=1, keepdims=True)
    plain /= np.linalg.norm(plain, axis=1, keepdims=True)
    np.testing.assert_allclose(vectors @ vectors.T, plain @ plain.T, atol=1e-5)
    brighter = PixelEncoder().embed_images([shades([(100, 50, 50)]), shades([(150, 100, 100)])])
    assert brighter[0] @ brighter[1] == pytest.approx(1)


@pytest.mark.parametrize("value", range(0, 256, 5))
def test_one_shade_of_grey_is_like_no_picture(value: int) -> None:
    """Not like another grey, either, whatever rounding leaves of it."""
    grey = Image.new("RGB", (20, 30), (value, value, value))
    assert not PixelEncoder().embed_images([grey]).any()


def test_a_picture_alone_has_the_vector_it_has_among_others() -> None:
    rng = np.random.default_rng(0)
    shown = [Image.fromarray(rng.integers(0, 256, (40, 30, 3), np.uint8)) for _ in range(5)]
    encoder = PixelEncoder()
    np.testing.assert_array_equal(
        encoder.embed_images(shown), np.concatenate([encoder.embed_images([p]) for p in shown])
    )


@pytest.fixture(scope="module")
def builtin() -> ClipEncoder:
    encoder = load_encoder("builtin")
    assert isinstance(encoder, ClipEncoder)
    return encoder


def test_untrained_is_the_same_twice_and_not_the_trained_one(builtin: ClipEncoder) -> None:
    state = torch.random.get_rng_state()
    first, second = untrained(builtin), untrained(builtin)
    assert torch.equal(torch.random.get_rng_state(), state)
    assert (first.name, first.dim, first.image_size) == (
        "untrained",
        builtin.dim,
        builtin.image_size,
    )
    assert first.fingerprint == second.fingerprint != builtin.fingerprint
    rng = np.random.default_rng(0)
    shown = [Image.fromarray(rng.integers(0, 256, (64, 48, 3), np.uint8)) for _ in range(3)]
    np.testing.assert_array_equal(first.embed_images(shown), second.embed_images(shown))
    asked = ["red mug", "blue dress"]
    np.testing.assert_array_equal(first.embed_texts(asked), second.embed_texts(asked))
    assert np.abs(first.embed_images(shown) - builtin.embed_images(shown)).max() > 0.01
    assert np.abs(first.embed_texts(asked) - builtin.embed_texts(asked)).max() > 0.01
    # The same eyes: only the weights differ.
    np.testing.assert_array_equal(first.preprocess(shown[0]), builtin.preprocess(shown[0]))


def test_the_baselines_of_a_model(builtin: ClipEncoder, tiny_encoder: Any) -> None:
    assert baseline_encoder("pixels", tiny_encoder).name == "pixels"
    assert baseline_encoder("untrained", builtin).fingerprint == untrained(builtin).fingerprint
    frozen = baseline_encoder("frozen", builtin)
    assert frozen.dim > builtin.dim
    assert frozen.fingerprint not in (builtin.fingerprint, untrained(builtin).fingerprint)
    for name in ("untrained", "frozen"):
        with pytest.raises(BenchmarkError, match=f"{name} needs an open_clip model, and tiny is"):
            baseline_encoder(name, tiny_encoder)
    with pytest.raises(ShoplensError, match="no-such-model"):
        baseline_encoder("no-such-model", builtin)


def test_who_can_answer_what() -> None:
    none, two = np.empty(0, np.int64), np.arange(2)
    shown = [ProductImage(location="a.png"), ProductImage(location="b.png")]
    pictures = Side(["a", "b"], two, shown)
    texts = Side(["a", "b"], two, texts=["x", "y"])
    described = Side(["a", "b"], two, shown, ["x", "y"])

    def able(queries: Side, gallery: Side) -> set[str]:
        task = Task("t", "T", queries, gallery, Links(none, none), none)
        return {name for name in (*BASELINES, "ViT-B-32/openai") if applies(name, task)}

    anyone = {"untrained", "ViT-B-32/openai"}
    assert able(pictures, pictures) == anyone | {"frozen", "pixels"}
    assert able(pictures, described) == anyone | {"frozen", "pixels"}
    assert able(texts, pictures) == anyone
    assert able(texts, described) == anyone | {"bm25", "fusion"}
