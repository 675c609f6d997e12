"""ALBEF's parts against timm, transformers and plain attention, with the same weights."""

from __future__ import annotations

import math
from collections.abc import Iterator
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from indexing.models.albef.bert import Attention, Layer
from indexing.models.albef.config import AlbefConfig
from indexing.models.albef.network import AlbefModel
from indexing.models.albef.reading import Reader
from indexing.models.albef.vision import VisionTransformer, resized_positions
from indexing.models.torchvision_repair import import_torchvision

SMALL = AlbefConfig(
    image_size=24,
    patch_size=8,
    vision_width=32,
    vision_layers=3,
    vision_heads=4,
    vocab_size=50,
    text_width=32,
    text_layers=5,
    text_heads=4,
    text_intermediate=40,
    fusion_layer=2,
    max_positions=20,
    embed_dim=12,
    max_text_length=10,
)
UNEQUAL = SMALL.model_copy(update={"vision_width": 20, "vision_heads": 2})
CLOSE = {"rtol": 0.0, "atol": 1e-5}
MASKS = {"infinite": -math.inf, "ten thousand": -10000.0}

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module", autouse=True)
def _no_gradients() -> Iterator[None]:
    with torch.inference_mode():
        yield


def spread(module: nn.Module, seed: int = 0) -> Any:
    """The module with weights large enough for every one of them to matter."""
    drawn = torch.Generator().manual_seed(seed)
    for name, value in module.named_parameters():
        value.copy_(0.3 * torch.randn(value.shape, generator=drawn) / max(1, value.dim() - 1))
        if "norm" in name.lower() and name.endswith("weight"):
            value.add_(1)
    return module.eval()


def model(config: AlbefConfig = SMALL) -> AlbefModel:
    made: AlbefModel = spread(AlbefModel(config))
    return made


def pixels(config: AlbefConfig, count: int = 3) -> Tensor:
    size = config.image_size
    return torch.randn(count, 3, size, size, generator=torch.Generator().manual_seed(1))


def texts(config: AlbefConfig = SMALL) -> tuple[Tensor, Tensor]:
    """Ids and mask of texts of 7, 2 and 10 tokens; what pads is not all of one id."""
    drawn = torch.Generator().manual_seed(2)
    length = config.max_text_length
    ids = torch.randint(0, config.vocab_size, (3, length), generator=drawn)
    mask = (torch.arange(length) < torch.tensor([[7], [2], [10]])).long()
    return ids, mask


def picture_tower(config: AlbefConfig, weights: VisionTransformer) -> Any:
    """timm's tower with our weights: the names are the same."""
    import_torchvision()
    from timm.models.vision_transformer import VisionTransformer as Timm

    tower = Timm(
        img_size=config.image_size,
        patch_size=config.patch_size,
        embed_dim=config.vision_width,
        depth=config.vision_layers,
        num_heads=config.vision_heads,
        num_classes=0,
        global_pool="",
        qkv_bias=True,
        norm_layer=partial(nn.LayerNorm, eps=1e-6),
    )
    tower.load_state_dict(weights.state_dict())
    return tower.eval()


def bert_config(config: AlbefConfig, **more: Any) -> Any:
    import_torchvision()
    from transformers import BertConfig

    return BertConfig(
        vocab_size=config.vocab_size,
        hidden_size=config.text_width,
        num_hidden_layers=config.fusion_layer,
        num_attention_heads=config.text_heads,
        intermediate_size=config.text_intermediate,
        max_position_embeddings=config.max_positions,
        attn_implementation="eager",
        **more,
    )


def text_tower(config: AlbefConfig, weights: nn.Module, token_types: Tensor | None = None) -> Any:
    """transformers' BERT with the layers that read the text alone."""
    from transformers import BertModel

    bert = BertModel(bert_config(config), add_pooling_layer=False)
    state = {
        key: value
        for key, value in weights.state_dict().items()
        if not key.startswith("encoder.layer.") or int(key.split(".")[2]) < config.fusion_layer
    }
    types = torch.zeros(2, config.text_width) if token_types is None else token_types
    bert.load_state_dict({**state, "embeddings.token_type_embeddings.weight": types})
    return bert.eval()


def fusion_layers(config: AlbefConfig, weights: nn.Module) -> list[Any]:
    """transformers' layers with cross-attention, with the weights of ours."""
    from transformers.models.bert.modeling_bert import BertLayer

    settings = bert_config(config, is_decoder=True, add_cross_attention=True)
    layers = []
    for number in range(config.fusion_layer, config.text_layers):
        layer = BertLayer(settings)
        prefix = f"encoder.layer.{number}."
        layer.load_state_dict(
            {
                key.removeprefix(prefix): value
                for key, value in weights.state_dict().items()
                if key.startswith(prefix)
            }
        )
        layers.append(layer.eval())
    return layers


def fused_by_transformers(layers: list[Any], x: Tensor, mask: Tensor, image: Tensor) -> Tensor:
    bias = torch.zeros(mask.shape).masked_fill(mask == 0, -math.inf)[:, None, None]
    for layer in layers:
        after = layer(x, bias, encoder_hidden_states=image)
        x = after[0] if isinstance(after, tuple) else after
    return x


def plain_attention(
    attention: Attention, x: Tensor, memory: Tensor, bias: Tensor, heads: int
) -> Tensor:
    """Post-norm attention in double precision, head by head."""
    weights = {key: value.double() for key, value in attention.state_dict().items()}
    query, key, value = (
        part @ weights[f"self.{name}.weight"].T + weights[f"self.{name}.bias"]
        for part, name in ((x, "query"), (memory, "key"), (memory, "value"))
    )
    size = x.shape[-1] // heads
    parts = []
    for head in range(heads):
        own = slice(head * size, (head + 1) * size)
        scores = query[..., own] @ key[..., own].transpose(1, 2) / math.sqrt(size) + bias
        parts.append(scores.softmax(-1) @ value[..., own])
    return plain_norm(weights, torch.cat(parts, -1), x)


def plain_norm(weights: dict[str, Tensor], inner: Tensor, x: Tensor) -> Tensor:
    summed = x + inner @ weights["output.dense.weight"].T + weights["output.dense.bias"]
    apart = summed - summed.mean(-1, keepdim=True)
    spread_out = apart / (apart.square().mean(-1, keepdim=True) + 1e-12).sqrt()
    return spread_out * weights["output.LayerNorm.weight"] + weights["output.LayerNorm.bias"]


def plain_layer(
    layer: Layer, x: Tensor, image: Tensor | None, bias: Tensor, config: AlbefConfig
) -> Tensor:
    x = plain_attention(layer.attention, x, x, bias, config.text_heads)
    if image is not None:
        no_bias = torch.zeros((), dtype=x.dtype)
        x = plain_attention(layer.crossattention, x, image, no_bias, config.text_heads)
    weights = {key: value.double() for key, value in layer.state_dict().items()}
    inner = x @ weights["intermediate.dense.weight"].T + weights["intermediate.dense.bias"]
    inner = inner * (1 + torch.erf(inner / math.sqrt(2))) / 2
    return plain_norm(weights, inner, x)


@pytest.mark.parametrize("config", [SMALL, UNEQUAL], ids=["small", "unequal"])
def test_the_picture_encoder_is_timms_vision_transformer(config: AlbefConfig) -> None:
    ours = model(config).visual_encoder
    theirs = picture_tower(config, ours)
    seen = pixels(config)
    torch.testing.assert_close(ours(seen), theirs.forward_features(seen), **CLOSE)
    assert not torch.allclose(ours(seen)[0], ours(seen)[1], atol=1e-2)


def test_a_block_of_the_base_model_is_timms() -> None:
    base = AlbefConfig(image_size=48, vision_layers=1)
    ours = VisionTransformer(base)
    for start in (ours.cls_token, ours.pos_embed):  # small, so that the norms' epsilon counts
        nn.init.trunc_normal_(start, std=0.02)
    theirs = picture_tower(base, ours.eval())
    seen = pixels(base, 2)
    torch.testing.assert_close(ours(seen), theirs.forward_features(seen), **CLOSE)


@pytest.mark.parametrize("trained", [True, False])
def test_the_text_encoder_is_transformers_bert(trained: bool) -> None:
    ours = model() if trained else AlbefModel(SMALL).eval()
    theirs = text_tower(SMALL, ours.text_encoder.bert)
    ids, mask = texts()
    expected = theirs(input_ids=ids, attention_mask=mask).last_hidden_state
    found = Reader(ours, None).read(ids, mask).x
    torch.testing.assert_close(found[mask.bool()], expected[mask.bool()], **CLOSE)


def test_the_fusion_layers_are_transformers_layers_with_cross_attention() -> None:
    ours = model()
    ids, mask = texts()
    reader = Reader(ours, None)
    read, image = reader.read(ids, mask), ours.visual_encoder(pixels(SMALL))
    found = reader.fuse(read, image).x
    layers = fusion_layers(SMALL, ours.text_encoder.bert)
    assert len(layers) == 3
    expected = fused_by_transformers(layers, read.x, mask, image)
    torch.testing.assert_close(found[mask.bool()], expected[mask.bool()], **CLOSE)
    other = reader.fuse(read, image.roll(1, 0)).x
    assert not torch.allclose(other, found, atol=1e-2)  # the picture is looked at


@pytest.mark.parametrize("style", MASKS)
@pytest.mark.parametrize("config", [SMALL, UNEQUAL], ids=["small", "unequal"])
def test_both_encoders_of_text_are_plain_attention(config: AlbefConfig, style: str) -> None:
    """BERT adds -10000 to the scores of padding; here padding is out of the keys."""
    ours = model(config)
    bert = ours.text_encoder.bert
    ids, mask = texts(config)
    bias = torch.zeros(mask.shape).double().masked_fill(mask == 0, MASKS[style])[:, None, :]
    image = torch.randn(3, 10, config.vision_width, generator=torch.Generator().manual_seed(3))
    x = bert.embeddings(ids).double()
    for layer in bert.encoder.layer[: config.fusion_layer]:
        x = plain_layer(layer, x, None, bias, config)
    reader = Reader(ours, None)
    read = reader.read(ids, mask)
    valid = mask.bool()
    torch.testing.assert_close(read.x[valid].double(), x[valid], **CLOSE)
    for layer in bert.encoder.layer[config.fusion_layer :]:
        x = plain_layer(layer, x, image.double(), bias, config)
    torch.testing.assert_close(reader.fuse(read, image).x[valid].double(), x[valid], **CLOSE)


def test_what_pads_has_no_effect() -> None:
    ours = model()
    ids, mask = texts()
    other = torch.where(mask.bool(), ids, (ids + 1) % SMALL.vocab_size)
    assert not torch.equal(ids, other)
    torch.testing.assert_close(ours.encode_text(other, mask), ours.encode_text(ids, mask), **CLOSE)
    seen = pixels(SMALL)
    torch.testing.assert_close(ours.match(seen, other, mask), ours.match(seen, ids, mask), **CLOSE)


def test_the_words_are_those_of_transformers_head() -> None:
    from transformers.models.bert.modeling_bert import BertLMPredictionHead

    ours = model().text_encoder
    assert ours.cls.predictions.decoder.weight is ours.bert.embeddings.word_embeddings.weight
    theirs = BertLMPredictionHead(bert_config(SMALL)).eval()
    state = ours.cls.predictions.state_dict()
    theirs.load_state_dict({**state, "decoder.bias": state["bias"]})
    states = torch.randn(4, 7, SMALL.text_width, generator=torch.Generator().manual_seed(4))
    torch.testing.assert_close(ours.words(states), theirs(states), **CLOSE)


@pytest.mark.parametrize("grid", [2, 5, 16])
def test_positions_are_resized_as_timm_resizes_them(grid: int) -> None:
    import_torchvision()
    from timm.layers import resample_abs_pos_embed

    positions = torch.randn(1, 1 + 9, 8, generator=torch.Generator().manual_seed(5))
    found = resized_positions(positions, grid)
    expected = resample_abs_pos_embed(positions, [grid, grid], antialias=False)
    torch.testing.assert_close(found, expected, **CLOSE)
    assert resized_positions(positions, 3) is positions


def test_the_whole_model_is_its_parts() -> None:
    """Pictures, texts and pairs through timm and transformers alone."""
    ours = model()
    seen, (ids, mask) = pixels(SMALL), texts()
    weights = ours.state_dict()
    bert = ours.text_encoder.bert

    def projected(states: Tensor, kind: str) -> Tensor:
        out = functional.linear(
            states[:, 0], weights[f"{kind}_proj.weight"], weights[f"{kind}_proj.bias"]
        )
        return out / out.square().sum(1, keepdim=True).sqrt()

    image = picture_tower(SMALL, ours.visual_encoder).forward_features(seen)
    torch.testing.assert_close(ours.encode_image(seen), projected(image, "vision"), **CLOSE)
    text = text_tower(SMALL, bert)(input_ids=ids, attention_mask=mask).last_hidden_state
    torch.testing.assert_close(ours.encode_text(ids, mask), projected(text, "text"), **CLOSE)
    fused = fused_by_transformers(fusion_layers(SMALL, bert), text, mask, image)
    expected = functional.linear(fused[:, 0], weights["itm_head.weight"], weights["itm_head.bias"])
    torch.testing.assert_close(ours.match(seen, ids, mask), expected, **CLOSE)
    assert float(expected.std(0).min()) > 1e-2


def test_an_untrained_model_has_no_biases_and_gives_unit_vectors() -> None:
    torch.manual_seed(0)
    made = AlbefModel(SMALL).eval()
    assert float(made.temp) == pytest.approx(0.07)
    assert float(made.visual_encoder.pos_embed.std()) == pytest.approx(0.02, rel=0.2)
    for name, value in made.named_parameters():
        if name.endswith("bias") and "patch_embed" not in name:
            assert not value.any(), name
    for vectors in (made.encode_image(pixels(SMALL)), made.encode_text(*texts())):
        torch.testing.assert_close(vectors.norm(dim=1), torch.ones(3), **CLOSE)
