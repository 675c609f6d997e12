"""Grad-CAM: against differences of a fusion encoder written out, and on constructed models."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor
from torch.nn import functional

from indexing.errors import ModelError, QueryError
from indexing.explaining import explain, map_entropy
from indexing.models.albef.config import AlbefConfig
from indexing.models.albef.encoder import AlbefEncoder
from indexing.models.albef.network import AlbefModel
from indexing.models.albef.reading import Reader
from indexing.models.albef.tokenizer import AlbefTokenizer
from indexing.models.token_pruning import Pruning, TokenPruning

pytestmark = pytest.mark.usefixtures("one_thread")
SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
VOCABULARY = [*SPECIAL, "red", "mug", "with", "a", "lid", "un", "##ded"]
TEXT = "A red un-lidded mug"  # to the tokenizer: a, red, un, lid ##ded, mug
SIZES = {
    "image_size": 12, "patch_size": 4, "vision_width": 8, "vision_layers": 1, "vision_heads": 2,
    "vocab_size": len(VOCABULARY), "text_width": 8, "text_layers": 5, "text_heads": 2,
    "text_intermediate": 16, "fusion_layer": 1, "embed_dim": 4, "max_positions": 16,
    "max_text_length": 10,
}  # fmt: skip

Make = Callable[..., AlbefEncoder]


@pytest.fixture
def make(tmp_path: Path) -> Make:
    def made(pruning: TokenPruning | None = None, **sizes: int) -> AlbefEncoder:
        (tmp_path / "vocab.txt").write_text("\n".join(VOCABULARY) + "\n")
        config = AlbefConfig(**{**SIZES, **sizes})
        torch.manual_seed(0)
        model = AlbefModel(config)
        with torch.no_grad():
            for weight in model.parameters():
                if weight.dim() > 1:
                    weight.normal_(std=0.5)
        tokenizer = AlbefTokenizer(tmp_path / "vocab.txt", config)
        return AlbefEncoder("small", model, tokenizer, pruning=pruning)

    return made


def noise(seed: int = 0, size: tuple[int, int] = (40, 30)) -> Image.Image:
    values = np.random.default_rng(seed).integers(0, 256, (size[1], size[0], 3), np.uint8)
    return Image.fromarray(values)


def written_out(
    encoder: AlbefEncoder, picture: Image.Image, text: str, layer: int, given: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """The logit of a match and the attention to the picture in one fusion layer, float64; with
    `given` in place of that attention. BERT as its paper has it, on the weights' public names."""
    weights = {key: value.double() for key, value in encoder.model.state_dict().items()}
    pixels = torch.from_numpy(encoder.preprocess(picture))[None]
    with torch.no_grad():
        image = encoder.model.visual_encoder(pixels)[0].double()
    ids = encoder.tokenizer([text])[0]
    ids = ids[ids != 0]
    config, bert = encoder.config, "text_encoder.bert."

    def linear(x: Tensor, name: str) -> Tensor:
        return x @ weights[f"{name}.weight"].T + weights[f"{name}.bias"]

    def normed(x: Tensor, name: str) -> Tensor:
        centred = x - x.mean(-1, keepdim=True)
        scale = (centred.square().mean(-1, keepdim=True) + 1e-12).sqrt()
        return centred / scale * weights[f"{name}.weight"] + weights[f"{name}.bias"]

    def heads(x: Tensor, name: str) -> Tensor:
        return torch.stack(linear(x, name).chunk(config.text_heads, dim=-1))

    def attended(
        x: Tensor, memory: Tensor, name: str, probabilities: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        query, key = heads(x, f"{name}.self.query"), heads(memory, f"{name}.self.key")
        if probabilities is None:
            raw = torch.einsum("hnd,hkd->hnk", query, key) / query.shape[-1] ** 0.5
            probabilities = raw.exp() / raw.exp().sum(-1, keepdim=True)
        value = heads(memory, f"{name}.self.value")
        merged = torch.cat(list(torch.einsum("hnk,hkd->hnd", probabilities, value)), dim=-1)
        after = normed(x + linear(merged, f"{name}.output.dense"), f"{name}.output.LayerNorm")
        return after, probabilities

    x = weights[f"{bert}embeddings.word_embeddings.weight"][ids]
    x = x + weights[f"{bert}embeddings.position_embeddings.weight"][: len(ids)]
    x = normed(x, f"{bert}embeddings.LayerNorm")
    attention = torch.zeros(0)
    for number in range(config.text_layers):
        name = f"{bert}encoder.layer.{number}"
        x, _ = attended(x, x, f"{name}.attention")
        fusion = number - config.fusion_layer + 1  # from 1
        if fusion > 0:
            exchanged = given if fusion == layer else None
            x, found = attended(x, image, f"{name}.crossattention", exchanged)
            attention = found if fusion == layer else attention
        inner = functional.gelu(linear(x, f"{name}.intermediate.dense"))
        x = normed(x + linear(inner, f"{name}.output.dense"), f"{name}.output.LayerNorm")
    return linear(x[0], "itm_head")[1], attention


@pytest.mark.parametrize("layer", [1, 2, 3])
def test_against_differences_of_a_network_written_out(make: Make, layer: int) -> None:
    encoder, picture = make(), noise()
    _, attention = written_out(encoder, picture, TEXT, layer)
    slope = torch.zeros_like(attention)
    for place in np.ndindex(*attention.shape):
        step = torch.zeros_like(attention)
        step[place] = 1e-5
        above, _ = written_out(encoder, picture, TEXT, layer, attention + step)
        below, _ = written_out(encoder, picture, TEXT, layer, attention - step)
        slope[place] = (above - below) / 2e-5
    # [heads, tokens, 1 + patches]: the first is the picture's [CLS].
    cam = (attention * slope.clamp(min=0))[:, :, 1:].mean(0).reshape(-1, 3, 3).numpy()

    explanation = explain(encoder, picture, TEXT, layer=layer)
    assert [word.text for word in explanation.words] == ["A", "red", "un", "lidded", "mug"]
    # Tokens: [CLS] a red un lid ##ded mug [SEP]; a word of two pieces has the sum of their maps.
    expected = [cam[1], cam[2], cam[3], cam[4] + cam[5], cam[6]]
    scale = max(part.max() for part in expected)
    for word, part in zip(explanation.words, expected, strict=True):
        np.testing.assert_allclose(word.map / scale, part / scale, atol=2e-5)
        assert word.map.dtype == np.float32
        assert (word.kept, word.read) == (True, True)
        shares = part.ravel() / part.sum()
        assert word.entropy == pytest.approx(
            -sum(share * math.log(share) for share in shares if share > 0) / math.log(9), abs=1e-4
        )
    assert min(part.max() for part in expected) > 0
    assert explanation.layer == layer


@pytest.mark.parametrize("pruned", [False, True])
def test_the_score_is_that_of_match(make: Make, pruned: bool) -> None:
    encoder, picture = make(), noise(3)
    if pruned:
        encoder.pruning = dropping(encoder, "red mug")
    ids = encoder.tokenizer(["red mug"])
    logits = encoder.match(
        torch.from_numpy(encoder.preprocess(picture))[None], ids, encoder.tokenizer.mask(ids)
    )[0]
    expected = 1 / (1 + math.exp(float(logits[0] - logits[1])))
    assert explain(encoder, picture, "red mug").score == pytest.approx(expected, abs=1e-6)


def test_the_third_layer_is_the_default_and_clipped_to_the_last_but_one(make: Make) -> None:
    for layers, expected in ((6, 3), (5, 3), (4, 2), (3, 1)):
        encoder = make(text_layers=layers)
        found = explain(encoder, noise(), TEXT)
        again = explain(encoder, noise(), TEXT, layer=expected)
        assert found.layer == expected
        for one, other in zip(found.words, again.words, strict=True):
            np.testing.assert_array_equal(one.map, other.map)


def test_frozen_weights_change_nothing_and_none_gets_a_gradient(make: Make) -> None:
    encoder = make()
    expected = explain(encoder, noise(), TEXT)
    encoder.model.requires_grad_(False)
    with torch.no_grad():
        found = explain(encoder, noise(), TEXT)
    for one, other in zip(found.words, expected.words, strict=True):
        np.testing.assert_array_equal(one.map, other.map)
    assert all(weight.grad is None for weight in encoder.model.parameters())


def bright_at(row: int, column: int) -> Image.Image:
    picture = Image.new("RGB", (12, 12), "black")
    picture.paste("white", (4 * column, 4 * row, 4 * column + 4, 4 * row + 4))
    return picture


def seeing_only_bright(encoder: AlbefEncoder, layer: int, strength: float) -> None:
    """The values of a layer are 0 on [CLS] and dark patches, and one direction on bright ones."""
    vision = encoder.model.visual_encoder
    with torch.no_grad():
        vision.pos_embed.zero_()
        vision.cls_token.zero_()
        for name, weight in vision.blocks.named_parameters():
            if ".proj." in name or ".fc2." in name:
                weight.zero_()  # patches do not see one another
        states = vision(torch.from_numpy(encoder.preprocess(bright_at(1, 1)))[None])[0]
        bright, others = states[1 + 4], states[[0, 1]]
        # What of the bright state neither [CLS] nor a dark patch has.
        basis = torch.linalg.qr(others.T).Q
        own = bright - basis @ (basis.T @ bright)
        assert torch.equal(states[1].expand(8, -1), states[[1, 2, 3, 4, 6, 7, 8, 9]])
        number = encoder.config.fusion_layer + layer - 1
        value = encoder.model.text_encoder.bert.encoder.layer[number].crossattention.self.value
        direction = torch.linspace(-1, 1, encoder.config.text_width)
        value.weight.copy_(strength * torch.outer(direction, own) / (own @ bright))
        value.bias.zero_()


@pytest.mark.parametrize("row", [0, 1, 2])
@pytest.mark.parametrize("column", [0, 1, 2])
def test_the_peak_is_the_one_patch_that_speaks_for_a_match(
    make: Make, row: int, column: int
) -> None:
    """Of two models with opposite values, for one the bright patch raises the logit."""
    text, peaked = "mug", []
    for strength in (1e-2, -1e-2):
        encoder = make(text_heads=1)
        seeing_only_bright(encoder, 2, strength)
        word = explain(encoder, bright_at(row, column), text, layer=2).words[0]
        logit, attention = written_out(encoder, bright_at(row, column), text, 2)
        unseen = attention.clone()
        unseen[:, 1, 1:] = 0  # the word looks away from all patches
        raised = logit - written_out(encoder, bright_at(row, column), text, 2, unseen)[0]
        peaked.append(bool(raised > 0))
        elsewhere = word.map.copy()
        elsewhere[row, column] = 0
        assert elsewhere.max() <= 0.01 * abs(float(raised))  # rounding, in float32
        if raised > 0:
            # As little as this the logit is linear: the map is what the patch has added.
            assert word.map[row, column] == pytest.approx(float(raised), rel=0.05)
            assert word.entropy < 0.05
        else:
            assert word.map[row, column] == 0
    assert sorted(peaked) == [False, True]


def test_alike_patches_have_alike_values(make: Make) -> None:
    encoder = make()
    with torch.no_grad():
        encoder.model.visual_encoder.pos_embed.zero_()
    words = explain(encoder, Image.new("RGB", (20, 20), "red"), TEXT).words
    found = [word.entropy for word in words if not math.isnan(word.entropy)]
    assert len(found) >= 2
    assert found == pytest.approx([1] * len(found), abs=1e-6)


def dropping(encoder: AlbefEncoder, text: str, **changes: Any) -> TokenPruning:
    """Pruning in the text layer by a threshold between the scores of the text's tokens."""
    config = encoder.config
    recipe: dict[str, Any] = {
        "score": "post", "key": "first", "base": (0.0,) + (-math.inf,) * (config.attentions - 1),
        "trained": (True,) * config.attentions, "temperature": (1.0,) * config.attentions,
        "straight_through": True, "cumulative": True, "multiply": False, "keys": "same",
        "weight": 0.1,
    }  # fmt: skip
    ids = encoder.tokenizer([text])
    reader = Reader(encoder.model, TokenPruning(Pruning(**recipe)))
    with torch.no_grad():
        (_, scores), *_ = reader.read(ids, encoder.tokenizer.mask(ids), hard=True).scores
    ordered = sorted(scores[0, 1 : int((ids != 0).sum()) - 1].tolist())
    middle = (ordered[len(ordered) // 2 - 1] + ordered[len(ordered) // 2]) / 2
    base = (middle, *recipe["base"][1:])
    return TokenPruning(Pruning(**{**recipe, "base": base, **changes}))


@pytest.mark.parametrize(
    "changes",
    [{}, {"multiply": True}, {"keys": "next"}],
    ids=["keys", "keys and features", "later keys"],
)
def test_a_word_that_pruning_drops_has_no_map(make: Make, changes: dict[str, Any]) -> None:
    encoder = make()
    text = "a red mug with lid"
    encoder.pruning = dropping(encoder, text, **changes)
    ids = encoder.tokenizer([text])
    reader = Reader(encoder.model, encoder.pruning)
    with torch.no_grad():
        read = reader.read(ids, encoder.tokenizer.mask(ids), hard=True)
    expected = (read.alive[0, 1:-1] > 0).tolist()
    assert 0 < sum(expected) < 5
    words = explain(encoder, noise(), text).words
    assert [word.kept for word in words] == expected
    for word in words:
        assert math.isnan(word.entropy) is (not word.kept)
        assert bool(word.map.any()) is word.kept
        assert word.read


def test_a_word_lives_as_long_as_one_of_its_pieces(make: Make) -> None:
    encoder = make()
    encoder.pruning = dropping(encoder, "lidded")  # its two pieces: one lives, one is dropped
    assert [word.kept for word in explain(encoder, noise(), "lidded").words] == [True]


def test_words_beyond_the_longest_text_are_not_read(make: Make) -> None:
    encoder = make(max_text_length=5)  # three pieces between [CLS] and [SEP]
    words = explain(encoder, noise(), "red un lidded mug").words
    assert [word.text for word in words] == ["red", "un", "lidded", "mug"]
    assert [word.read for word in words] == [True, True, True, False]
    assert [word.kept for word in words] == [True, True, True, False]
    assert not words[3].map.any()
    assert math.isnan(words[3].entropy)
    short = explain(encoder, noise(), "red un lid").words  # of lidded the piece that is read
    np.testing.assert_array_equal(words[2].map, short[2].map)


@pytest.mark.parametrize(
    ("cam", "expected"),
    [
        (np.ones((4, 4)), 1.0),
        (np.full((3, 3), 1e-30), 1.0),
        (np.eye(4)[:1].repeat(4, 0) * 0 + np.diag([7.0, 0, 0, 0]), 0.0),
        (np.array([[1.0, 1.0], [0.0, 0.0]]), 0.5),
        (np.diag([2.0, 2.0, 2.0, 2.0]), 0.5),
        (np.ones((1, 1)), 0.0),
    ],
)
def test_entropy_in_closed_form(cam: NDArray[np.float64], expected: float) -> None:
    assert map_entropy(cam.astype(np.float32)) == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize("value", [0.0, math.nan, math.inf])
def test_a_map_without_a_sum_has_no_entropy(value: float) -> None:
    assert math.isnan(map_entropy(np.full((3, 3), value, np.float32)))


@given(
    st.lists(st.floats(0, 1e6, width=32), min_size=9, max_size=9).filter(any),
    st.sampled_from([0.25, 8.0]),
    st.permutations(range(9)),
)
def test_entropy_is_a_share_that_scale_and_order_do_not_change(
    values: list[float], scale: float, order: list[int]
) -> None:
    cam = np.array(values, np.float32).reshape(3, 3) + np.float32(0)
    found = map_entropy(cam)
    assert 0 <= found <= 1 + 1e-9
    assert map_entropy(cam.ravel()[order].reshape(3, 3)) == pytest.approx(found, abs=1e-9)
    if cam[cam > 0].min() > 1e-30:  # else the product is not exact
        assert map_entropy(cam * np.float32(scale)) == pytest.approx(found, abs=1e-9)


def test_models_that_cannot_be_explained_say_what_is_needed(make: Make, tiny_encoder: Any) -> None:
    with pytest.raises(ModelError, match="tiny has no fusion encoder: give an ALBEF model, albef:"):
        explain(tiny_encoder, noise(), TEXT)
    headless = make()
    headless.has_match = False
    with pytest.raises(ModelError, match=r"small has no matching head \(itm_head\): give an ALBEF"):
        explain(headless, noise(), TEXT)
    with pytest.raises(ModelError, match="small has one fusion layer"):
        explain(make(text_layers=2), noise(), TEXT)


@pytest.mark.parametrize("layer", [0, -1, 4, 5])
def test_a_layer_that_is_not_there_or_is_the_last(make: Make, layer: int) -> None:
    with pytest.raises(QueryError, match=f"layer {layer}: must be between 1 and 3; .* has 4, and"):
        explain(make(), noise(), TEXT, layer=layer)


def test_behind_the_last_layer_no_word_has_a_gradient(make: Make) -> None:
    """Why the last layer is refused."""
    encoder = make()
    _, attention = written_out(encoder, noise(), TEXT, 4)
    moved = attention.clone()
    moved[:, 1:] = attention[:, 1:].flip(-1)  # words look elsewhere, [CLS] where it did
    expected, _ = written_out(encoder, noise(), TEXT, 4)
    assert written_out(encoder, noise(), TEXT, 4, moved)[0] == expected


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (" ", "text is blank"),
        ("?!", "text '\\?!' has no word that the model reads"),
        ("mug\udcff", "is not UTF-8"),
        ("m" * 10_001, "text has 10,001 characters"),
    ],
)
def test_texts_that_cannot_be_explained(make: Make, text: str, message: str) -> None:
    with pytest.raises(QueryError, match=message):
        explain(make(), noise(), text)
