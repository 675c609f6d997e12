"""Why a product matched: words by leaving them out, regions, and the overlay by its pixels."""

from __future__ import annotations

import copy
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from indexing.cleaning import clean
from indexing.errors import ModelError, QueryError
from indexing.explaining import explain
from indexing.models import load_encoder
from indexing.models.albef.config import AlbefConfig
from indexing.models.albef.encoder import AlbefEncoder, new_encoder
from indexing.models.calibration import calibrate
from indexing.models.clip import ClipEncoder
from indexing.models.token_pruning import Pruning, TokenPruning
from indexing.saliency import framed, saliency
from search.explain import MAX_WEIGHED, MatchExplanation, MatchWord, explain_match, overlay
from search.explain_sheet import match_sheet

TITLE = "Nike red T-shirt, 350ml"


@pytest.fixture(scope="module")
def builtin() -> ClipEncoder:
    found = load_encoder("builtin", device="cpu")
    assert isinstance(found, ClipEncoder)
    return found


@pytest.fixture
def albef(tmp_path: Path) -> AlbefEncoder:
    pieces = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "red", "mug", "with", "lid"]
    (tmp_path / "vocab.txt").write_text("\n".join(pieces) + "\n")
    config = AlbefConfig(
        image_size=12, patch_size=4, vision_width=8, vision_layers=1, vision_heads=2,
        vocab_size=len(pieces), text_width=8, text_layers=5, text_heads=2, text_intermediate=16,
        fusion_layer=1, embed_dim=4, max_positions=16, max_text_length=5,
    )  # fmt: skip
    return new_encoder(config, tmp_path / "vocab.txt", seed=0)


def noise(seed: int, size: tuple[int, int] = (40, 30)) -> Image.Image:
    rng = np.random.default_rng(seed)
    values = rng.integers(0, 256, (5, 7, 3), np.uint8)
    return Image.fromarray(values).resize(size, Image.Resampling.BICUBIC)


def cosine(encoder: Any, text: str | None, picture: Image.Image | None, of: Image.Image) -> float:
    total = np.zeros(encoder.dim)
    if text is not None:
        total = total + encoder.embed_texts([text])[0]
    if picture is not None:
        total = total + encoder.embed_images([picture])[0]
    return float(total @ encoder.embed_images([of])[0] / np.linalg.norm(total))


@pytest.mark.parametrize("picture", [None, noise(1)], ids=["text", "both"])
def test_a_words_weight_is_what_the_cosine_loses_without_it(
    builtin: ClipEncoder, picture: Image.Image | None
) -> None:
    product = noise(2)
    found = explain_match(builtin, picture, TITLE, product)
    whole = cosine(builtin, TITLE, picture, product)
    assert found.score == pytest.approx(whole, abs=1e-5)
    without = {
        "Nike": "red T-shirt, 350ml", "red": "Nike T-shirt, 350ml", "T-shirt,": "Nike red 350ml",
        "350ml": "Nike red T-shirt,",
    }  # fmt: skip
    assert [word.text for word in found.words] == list(without)
    assert [word.kept for word in found.words] == [None] * 4
    for word in found.words:
        fall = whole - cosine(builtin, without[word.text], picture, product)
        assert word.weight == pytest.approx(fall, abs=1e-5)
    assert max(abs(word.weight or 0) for word in found.words) > 0.01


def test_regions_are_those_of_the_querys_vector(builtin: ClipEncoder) -> None:
    query, product = noise(1), noise(2)
    found = explain_match(builtin, query, None, product)
    expected = saliency(builtin, product, builtin.embed_images([query])[0])
    assert found.words == []
    assert found.score == pytest.approx(expected.score, abs=1e-5)
    np.testing.assert_allclose(found.heat, expected.heat, atol=1e-4)
    other = explain_match(builtin, query, "red", product)
    assert np.abs(other.heat - found.heat).max() > 0.01


def test_unwanted_texts_count(builtin: ClipEncoder) -> None:
    product = noise(2)
    found = explain_match(builtin, None, "red mug", product, ["blue"])
    vectors = builtin.embed_texts(["red mug", "mug", "blue"])

    def score(wanted: int) -> float:
        total = vectors[wanted] - 0.5 * vectors[2]
        return float(total @ builtin.embed_images([product])[0] / np.linalg.norm(total))

    assert found.score == pytest.approx(score(0), abs=1e-5)
    assert found.words[0].weight == pytest.approx(score(0) - score(1), abs=1e-5)
    total = (vectors[0] - 0.5 * vectors[2]).astype(np.float32)
    expected = saliency(builtin, product, total / np.linalg.norm(total))
    np.testing.assert_allclose(found.heat, expected.heat, atol=1e-4)


def test_the_last_word_of_a_query_has_no_weight(builtin: ClipEncoder) -> None:
    product, picture = noise(2), noise(1)
    assert explain_match(builtin, None, "red", product).words == [MatchWord("red", None, None)]
    (word,) = explain_match(builtin, picture, " red ", product).words
    fall = cosine(builtin, "red", picture, product) - cosine(builtin, None, picture, product)
    assert word.weight == pytest.approx(fall, abs=1e-5)


def test_only_so_many_words_are_weighed(builtin: ClipEncoder) -> None:
    words = explain_match(builtin, None, " ".join(["red"] * (MAX_WEIGHED + 2)), noise(2)).words
    assert [word.weight is None for word in words] == [False] * MAX_WEIGHED + [True, True]


def test_pruning_tells_which_words_are_kept(builtin: ClipEncoder) -> None:
    pruned = copy.copy(builtin)
    titles = [TITLE, "MOTHER Earth Women Aug Bagru Red Kurtas", "mug", "Dr. Scholl's insoles"]
    pruned.pruning = TokenPruning(calibrate(builtin, titles, share=0.45))
    product = noise(2)
    found = explain_match(pruned, None, TITLE, product).words
    expected = clean(pruned, [TITLE])[0]
    assert [(word.text, word.kept) for word in found] == [(w.text, w.kept) for w in expected]
    assert {word.kept for word in found} == {True, False}
    (place,) = [i for i, word in enumerate(found) if word.text.lower() == "red"]
    fall = cosine(pruned, TITLE, None, product)
    fall -= cosine(pruned, "Nike T-shirt, 350ml", None, product)
    assert found[place].weight == pytest.approx(fall, abs=1e-5)


def test_albef_adds_the_maps_of_its_words(albef: AlbefEncoder) -> None:
    product, text = noise(2), "red mug with lid"
    found = explain_match(albef, None, text, product)
    maps = explain(albef, product, text).words
    summed = np.sum([word.map for word in maps], axis=0)
    np.testing.assert_allclose(found.heat, framed(albef, product, summed), atol=1e-6)
    assert found.score == pytest.approx(cosine(albef, text, None, product), abs=1e-5)
    assert [(word.text, word.kept) for word in found.words] == [
        ("red", None), ("mug", None), ("with", None), ("lid", None),
    ]  # fmt: skip
    fall = cosine(albef, text, None, product) - cosine(albef, "mug with lid", None, product)
    assert found.words[0].weight == pytest.approx(fall, abs=1e-5)
    query = np.asarray(albef.embed_images([noise(1)])[0])
    plain = explain_match(albef, noise(1), None, product)
    np.testing.assert_allclose(plain.heat, saliency(albef, product, query).heat, atol=1e-5)


def test_albef_tells_what_fusion_drops(albef: AlbefEncoder) -> None:
    recipe: dict[str, Any] = {
        "score": "pre", "key": "first", "base": (-math.inf, 0.0, *[-math.inf] * 7),
        "trained": (False,) * 9, "temperature": (1.0,) * 9, "straight_through": False,
        "cumulative": True, "multiply": False, "keys": "same", "weight": 0.0,
    }  # fmt: skip
    albef.pruning = TokenPruning(Pruning(**recipe))
    product, text = noise(2), "red mug with lid"
    maps = explain(albef, product, text).words
    found = explain_match(albef, None, text, product).words
    assert [word.kept for word in found] == [word.kept for word in maps]
    assert {word.kept for word in found[:3]} == {True, False}
    assert found[3].kept is False  # beyond the longest text
    albef.has_match = False  # then none of its masks can be told without a picture
    assert [word.kept for word in explain_match(albef, None, text, product).words] == [None] * 4


def test_albef_without_a_matching_head_is_explained_by_its_cosine(albef: AlbefEncoder) -> None:
    albef.has_match = False
    product = noise(2)
    found = explain_match(albef, None, "red mug", product)
    expected = saliency(albef, product, albef.embed_texts(["red mug"])[0])
    np.testing.assert_allclose(found.heat, expected.heat, atol=1e-5)
    assert [word.text for word in found.words] == ["red", "mug"]


def test_what_cannot_be_explained(builtin: ClipEncoder, tiny_encoder: Any) -> None:
    with pytest.raises(QueryError, match="the query is empty"):
        explain_match(builtin, None, None, noise(1))
    with pytest.raises(QueryError, match="text is blank"):
        explain_match(builtin, None, " ", noise(1))
    with pytest.raises(ModelError, match="tiny is no model of torch, CLIP or ALBEF"):
        explain_match(tiny_encoder, None, "red", noise(1))


def test_an_overlay_is_clear_where_it_is_cold() -> None:
    picture = Image.new("RGB", (80, 40), "blue")
    heat = np.zeros((20, 40), np.float32)
    heat[:, 20:] = 1
    pixels = np.asarray(overlay(picture, heat)).astype(int)
    assert pixels.shape == (40, 80, 4)
    assert (pixels[:, :30, 3] == 0).all()
    assert (pixels[:, 50:] == [215, 25, 28, 178]).all()  # the hottest colour, 0.7 of 255
    warm = np.asarray(overlay(picture, np.full((2, 2), 0.5, np.float32)))
    assert warm[0, 0].tolist() == pytest.approx([228, 110, 38, 90], abs=2)


def test_a_sheet_shows_query_picture_and_heat() -> None:
    heat = np.zeros((10, 10), np.float32)
    heat[:, 5:] = 1
    found = MatchExplanation(0.5, heat, [MatchWord("red", None, 0.1)])
    plain, query = Image.new("RGB", (100, 100), (0, 0, 250)), Image.new("RGB", (9, 9), "green")
    sheet = match_sheet(query, "red", plain, found)
    middle = 20 + 200
    assert sheet.getpixel((20 + 200, middle)) == (0, 128, 0)
    assert sheet.getpixel((440 + 200, middle)) == (0, 0, 250)
    assert sheet.getpixel((860 + 50, middle)) == (0, 0, 250)
    blended = 0.302 * np.array([0, 0, 250]) + 0.698 * np.array([215, 25, 28])
    assert sheet.getpixel((860 + 350, middle)) == pytest.approx(blended, abs=2)
    assert match_sheet(None, "red", plain, found).width == sheet.width - 420
