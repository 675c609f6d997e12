"""Maps of what makes a match: closed forms, attention written out, planted towers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor, nn

from indexing.attention_relevance import AttentionRecorder, relevance
from indexing.errors import ModelError
from indexing.models import load_encoder
from indexing.models.albef.config import AlbefConfig
from indexing.models.albef.encoder import new_encoder
from indexing.models.clip import ClipEncoder, create_model
from indexing.saliency import LONGEST, Saliency, grad_cam, saliency

pytestmark = pytest.mark.usefixtures("one_thread")
TEXT = {"context_length": 12, "vocab_size": 9, "width": 32, "heads": 2, "layers": 1}
VIT = {"layers": 3, "width": 32, "head_width": 8, "patch_size": 8, "image_size": 32}
TIMM_VIT = {"timm_model_name": "test_vit", "timm_proj": "linear", "image_size": 160}
TOWERS: dict[str, dict[str, Any]] = {
    "resnet": {"layers": [1, 1, 1, 1], "width": 8, "head_width": 8, "image_size": 64},
    "vit": VIT,
    "vit of means": {**VIT, "pool_type": "avg"},
    "vit of attention": {**VIT, "attentional_pool": True, "attn_pooler_heads": 4},
    "vit of blocks": {**VIT, "block_type": "custom", "qk_norm": True},
    "timm convolutions": {
        "timm_model_name": "test_resnet", "timm_proj": "linear", "timm_pool": "avg",
        "image_size": 64,
    },
    "timm vit": {**TIMM_VIT, "timm_pool": "token"},
    "timm vit of means": {**TIMM_VIT, "timm_pool": "avg"},
    "timm vit of attention": {**TIMM_VIT, "timm_pool": "map", "timm_model_name": "test_vit3"},
}  # fmt: skip


def small(vision_cfg: dict[str, Any]) -> ClipEncoder:
    """An untrained encoder whose towers tell pictures apart."""
    torch.manual_seed(0)
    model_cfg = {"embed_dim": 16, "vision_cfg": vision_cfg, "text_cfg": TEXT}
    model = create_model(model_cfg)
    with torch.no_grad():
        for name, weight in model.visual.named_parameters():
            if weight.dim() > 1:
                weight.mul_(3)
            elif name.endswith("bn3.weight"):
                weight.fill_(1)  # zeros leave all but the stem out
    return encoder_of(model, model_cfg, {"size": vision_cfg["image_size"]})


def encoder_of(model: Any, model_cfg: dict[str, Any], preprocess: dict[str, Any]) -> ClipEncoder:
    config = {
        "model_cfg": model_cfg,
        "preprocess_cfg": {"mean": [0.0] * 3, "std": [1.0] * 3, **preprocess},
    }
    tokenizer: Any = None
    return ClipEncoder("small", model, tokenizer, config)


def noise(seed: int, size: tuple[int, int] = (70, 50)) -> Image.Image:
    """Coarse and fine noise."""
    rng = np.random.default_rng(seed)
    values = rng.integers(0, 256, (7, 5, 3), np.uint8)
    return Image.fromarray(values).resize(size, Image.Resampling.BICUBIC)


@pytest.fixture(scope="module")
def builtin() -> ClipEncoder:
    found = load_encoder("builtin", device="cpu")
    assert isinstance(found, ClipEncoder)
    return found


def in_closed_form(
    encoder: ClipEncoder, picture: Image.Image, query: NDArray[np.float32]
) -> tuple[Tensor, Tensor]:
    """Behind a mean over cells and a linear layer: each cell's share in the cosine, and the
    share of the bias; float64."""
    tower = encoder.model.visual
    with torch.no_grad():
        pixels = torch.from_numpy(encoder.preprocess(picture))[None]
        features = tower.trunk.forward_features(pixels)[0].double()
    weight, bias = tower.head.proj.weight.double(), tower.head.proj.bias.double()
    length = (weight @ features.mean((1, 2)) + bias).norm()
    asked = torch.from_numpy(query).double() / length
    cells = torch.einsum("d,dc,chw->hw", asked, weight, features) / features[0].numel()
    return cells.detach(), (asked @ bias).detach()


def test_grad_cam_is_exact_behind_a_mean_and_a_linear_layer(builtin: ClipEncoder) -> None:
    picture = noise(1)
    drawn = np.random.default_rng(0).normal(size=builtin.dim).astype(np.float32)
    for query in (builtin.embed_texts(["red mug"])[0], drawn / np.linalg.norm(drawn)):
        shares, rest = in_closed_form(builtin, picture, query)
        found = saliency(builtin, picture, query)
        assert float(shares.sum() + rest) == pytest.approx(found.score, abs=1e-6)
        assert found.cells.shape == (7, 7)
        np.testing.assert_allclose(found.cells, shares.clamp(min=0).numpy(), atol=1e-7)
    assert float(shares.min()) < 0 < float(shares.max())


def test_a_picture_is_explained_by_itself(builtin: ClipEncoder) -> None:
    """The gradient of the whole cosine is zero there."""
    picture = noise(3)
    found = saliency(builtin, picture, builtin.embed_images([picture])[0])
    shares, _ = in_closed_form(builtin, picture, builtin.embed_images([picture])[0])
    assert found.score == pytest.approx(1, abs=1e-6)
    np.testing.assert_allclose(found.cells, shares.clamp(min=0).numpy(), atol=1e-7)
    assert found.heat.max() > 0.9


@pytest.mark.parametrize("name", TOWERS)
def test_the_score_is_the_cosine_and_nothing_stays_behind(name: str) -> None:
    encoder = small(TOWERS[name])
    encoder.model.requires_grad_(False)
    next(encoder.model.parameters()).requires_grad_(True)
    flags = [weight.requires_grad for weight in encoder.model.parameters()]
    pictures = [noise(1), noise(2)]
    before = encoder.embed_images(pictures)
    hottest = []
    for query in (before[1], -before[1]):
        found = saliency(encoder, pictures[0], query)
        assert found.score == pytest.approx(float(before[0] @ query), abs=1e-5)
        assert (found.cells >= 0).all()
        hottest.append(found.cells.max())
    assert max(hottest) > 0
    np.testing.assert_array_equal(encoder.embed_images(pictures), before)
    assert [weight.requires_grad for weight in encoder.model.parameters()] == flags
    assert all(weight.grad is None for weight in encoder.model.parameters())
    assert not any(module._forward_hooks for module in encoder.model.modules())


def test_grad_cam_of_a_resnet_by_differences() -> None:
    """What the score gains where a channel grows everywhere alike, per cell."""
    encoder = small(TOWERS["resnet"])
    query = torch.from_numpy(encoder.embed_images([noise(2)])[0]).double()
    tower = encoder.model.visual.double()
    pixels = torch.from_numpy(encoder.preprocess(noise(1)))[None].double()
    with torch.no_grad():
        features = tower.layer4(tower.layer3(tower.layer2(tower.layer1(tower.stem(pixels)))))
        embedded = tower.attnpool(features)[0]

        def score(shift: Tensor) -> float:
            return float(tower.attnpool(features + shift)[0] @ query / embedded.norm())

        step = 1e-5
        gains = []
        for channel in range(features.shape[1]):
            shift = torch.zeros(1, features.shape[1], 1, 1, dtype=torch.float64)
            shift[0, channel] = step
            gains.append((score(shift) - score(-shift)) / (2 * step))
    cells = features.shape[2] * features.shape[3]
    expected = (torch.tensor(gains)[:, None, None] / cells * features[0]).sum(0).clamp(min=0)
    encoder.model.visual.float()
    found = saliency(encoder, noise(1), query.float().numpy())
    np.testing.assert_allclose(found.cells, expected.numpy(), rtol=1e-3, atol=1e-6)
    assert (found.cells > 0).any()


def followed(attentions: list[Tensor], slopes: list[Tensor]) -> Tensor:
    """Chefer et al., equations 5 and 6: R, float64 [tokens, tokens]."""
    total = torch.eye(attentions[0].shape[-1], dtype=torch.float64)
    for attention, slope in zip(attentions, slopes, strict=True):
        heads = [(a * g).clamp(min=0) for a, g in zip(attention[0], slope[0], strict=True)]
        total = total + torch.stack(heads).mean(0).double() @ total
    return total.detach()


def attention_written_out(
    encoder: ClipEncoder, pixels: Tensor, query: Tensor
) -> tuple[list[Tensor], list[Tensor]]:
    """Attention of open_clip's plain transformer and its gradients, by the weights' names."""
    tower = encoder.model.visual
    x, found = tower._embeds(pixels), []
    for block in tower.transformer.resblocks:
        seen, heads = block.ln_1(x), block.attn.num_heads
        packed = seen @ block.attn.in_proj_weight.T + block.attn.in_proj_bias
        q, k, v = packed.unflatten(-1, (3, heads, -1)).permute(2, 0, 3, 1, 4)
        raw = torch.einsum("bhnd,bhmd->bhnm", q, k) / q.shape[-1] ** 0.5
        attention = raw.exp() / raw.exp().sum(-1, keepdim=True)
        found.append(attention)
        merged = torch.einsum("bhnm,bhmd->bnhd", attention, v).flatten(2)
        x = x + merged @ block.attn.out_proj.weight.T + block.attn.out_proj.bias
        x = x + block.mlp(block.ln_2(x))
    states = tower.ln_post(x)
    pooled = states[:, 1:].mean(1) if tower.pool_type == "avg" else states[:, 0]
    embedded = (pooled @ tower.proj)[0]
    score = embedded @ query / embedded.detach().norm()
    return found, list(torch.autograd.grad(score, found))


@pytest.mark.parametrize("name", ["vit", "vit of means"])
def test_relevance_in_a_transformer_written_out(name: str) -> None:
    encoder = small(TOWERS[name])
    query = encoder.embed_images([noise(2)])[0]
    pixels = torch.from_numpy(encoder.preprocess(noise(1)))[None]
    total = followed(*attention_written_out(encoder, pixels, torch.from_numpy(query)))
    rows = total[1:] - torch.eye(17)[1:] if name == "vit of means" else total[:1]
    expected = rows.mean(0)[1:].view(4, 4).numpy()
    found = saliency(encoder, noise(1), query).cells
    np.testing.assert_allclose(found, expected, rtol=1e-3, atol=1e-7)
    assert found.max() > 2 * found.mean() > 0


@pytest.mark.parametrize("name", ["timm vit", "timm vit of means", "timm vit of attention"])
def test_relevance_in_a_transformer_of_timm(name: str) -> None:
    """Against its own path without fused attention, which has the weights in its graph."""
    encoder = small(TOWERS[name])
    query = encoder.embed_images([noise(2)])[0]
    found = saliency(encoder, noise(1), query).cells
    tower = encoder.model.visual
    trunk = tower.trunk
    weights: list[Tensor] = []
    for block in trunk.blocks:
        block.attn.fused_attn = False
        block.attn.attn_drop.register_forward_hook(lambda _, __, out: weights.append(out))
    states = trunk.forward_features(torch.from_numpy(encoder.preprocess(noise(1)))[None])
    if trunk.attn_pool is not None:
        pool = trunk.attn_pool
        seen = states if trunk.pool_include_prefix else states[:, trunk.num_prefix_tokens :]
        seen = seen if pool.pos_embed is None else seen + pool.pos_embed
        q = pool.q_norm(pool.q(pool.latent).unflatten(-1, (pool.num_heads, -1)).transpose(1, 2))
        k, v = pool.kv(seen).unflatten(-1, (2, pool.num_heads, -1)).permute(2, 0, 3, 1, 4)
        read = (q @ pool.k_norm(k).mT / q.shape[-1] ** 0.5).softmax(-1)
        x = pool.proj((read @ v).transpose(1, 2).flatten(2))
        x = x + pool.mlp(pool.norm(x))
        embedded = tower.head(trunk.head(trunk.fc_norm(x[:, 0])))[0]
        weights.append(read)
    else:
        embedded = tower.head(trunk.forward_head(states))[0]
    score = embedded @ torch.from_numpy(query) / embedded.detach().norm()
    slopes = list(torch.autograd.grad(score, weights))
    cells, first = found.size, trunk.num_prefix_tokens
    if trunk.attn_pool is not None:
        total = followed(weights[:-1], slopes[:-1])
        pooled = (weights[-1] * slopes[-1]).clamp(min=0)[0].mean(0).double().detach()
        tokens = (pooled @ total[len(total) - pooled.shape[1] :])[0]
    else:
        total = followed(weights, slopes)
        means = name.endswith("means")
        tokens = (total - torch.eye(len(total)))[first:].mean(0) if means else total[0]
    expected = tokens[len(tokens) - cells :].view(found.shape).numpy()
    np.testing.assert_allclose(found, expected, rtol=1e-3, atol=1e-8)
    assert found.max() > 1.2 * found.mean() > 0


class _Reds(nn.Module):
    """Cells of 8 x 8 pixels; the embedding is their mean (red, green, blue)."""

    def forward_features(self, pixels: Tensor) -> Tensor:
        return nn.functional.avg_pool2d(pixels, 8)

    def forward_head(self, features: Tensor) -> Tensor:
        return features.mean((2, 3))


class _Visual(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.trunk, self.head = _Reds(), nn.Identity()


class _Model(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.visual = _Visual()


def patched(size: tuple[int, int], box: tuple[int, int, int, int]) -> Image.Image:
    """Blue with a red box (left, top, right, bottom)."""
    picture = Image.new("RGB", size, (0, 0, 255))
    picture.paste((255, 0, 0), box)
    return picture


@pytest.mark.parametrize("mode", ["longest", "shortest", "squash"])
@pytest.mark.parametrize(
    ("size", "box"),
    [
        ((160, 160), (20, 100, 60, 140)),
        ((320, 160), (130, 40, 180, 90)),
        ((150, 300), (90, 160, 140, 210)),
        ((1500, 900), (700, 200, 900, 400)),
    ],
)
def test_the_region_that_matters_is_hot_in_the_pictures_own_frame(
    mode: str, size: tuple[int, int], box: tuple[int, int, int, int]
) -> None:
    config = {"size": 160, "resize_mode": mode, "fill_color": 0}
    encoder = encoder_of(_Model(), {"embed_dim": 3}, config)
    found = saliency(encoder, patched(size, box), np.array([1, 0, 0], np.float32))
    height, width = found.heat.shape
    scale = min(1, LONGEST / max(size))
    assert (width, height) == (round(size[0] * scale), round(size[1] * scale))
    assert (found.heat.min(), found.heat.max()) == (0, pytest.approx(1, abs=0.02))
    hot = np.argwhere(found.heat > 0.5)
    top, left, bottom, right = *hot.min(0), *(hot.max(0) + 1)
    cell = 8 * max(size) / 160 * scale  # at most, in pixels of the heat
    expected = np.array(box) * scale
    assert np.abs(np.array([left, top, right, bottom]) - expected).max() <= cell


def test_a_query_that_no_cell_speaks_for_has_no_heat() -> None:
    encoder = encoder_of(_Model(), {"embed_dim": 3}, {"size": 160, "resize_mode": "squash"})
    found = saliency(encoder, patched((80, 80), (0, 0, 40, 40)), np.array([-1, 0, 0], np.float32))
    assert found.score == pytest.approx(-(0.25 / np.hypot(0.25, 0.75)), abs=0.02)
    assert found.cells.max() == 0
    assert found.heat.max() == 0


def test_a_planted_transformer_looks_at_its_patch() -> None:
    """One layer whose [CLS] attends to red, and an embedding that reads what it saw."""
    vision = {**VIT, "layers": 1, "width": 8, "no_ln_pre": True}
    model_cfg = {"embed_dim": 2, "vision_cfg": vision, "text_cfg": TEXT}
    model = create_model(model_cfg)
    tower = model.visual
    block = tower.transformer.resblocks[0]
    with torch.no_grad():
        for weight in tower.parameters():
            weight.zero_()
        for norm in (block.ln_1, block.ln_2, tower.ln_post):
            norm.weight.fill_(1)
        tower.conv1.weight[0, 0] = tower.conv1.weight[1, 2] = 1 / 64  # mean red, mean blue
        tower.class_embedding[7] = 1
        block.attn.in_proj_weight[8, 0] = 3  # key: how red
        block.attn.in_proj_bias[0] = 3  # query: red
        block.attn.in_proj_weight[16, 0] = 1  # value: how red
        block.attn.out_proj.weight[2, 0] = 1
        tower.proj[2, 0] = 1
        tower.proj[7, 1] = 1
    encoder = encoder_of(model, model_cfg, {"size": 32})
    picture = patched((32, 32), (16, 8, 24, 16))  # row 1, column 2
    found = saliency(encoder, picture, np.array([1, 0], np.float32))
    assert np.unravel_index(found.cells.argmax(), (4, 4)) == (1, 2)
    assert np.sort(found.cells.ravel())[-2] < 0.05 * found.cells.max()
    # Half a pixel from the patch's middle, whose neighbours are cold.
    assert found.heat[12, 20] == pytest.approx((1 - 0.5 / 8) ** 2, abs=0.01)
    opposite = saliency(encoder, picture, np.array([-1, 0], np.float32))
    assert opposite.cells[1, 2] == 0


def test_albef_has_maps_too(albef_config: AlbefConfig, albef_vocab: Path) -> None:
    encoder = new_encoder(albef_config, albef_vocab, seed=0)
    before = encoder.embed_images([noise(1), noise(2)])
    found = saliency(encoder, noise(1), before[1])
    assert found.score == pytest.approx(float(before[0] @ before[1]), abs=1e-5)
    assert found.cells.shape == (3, 3)
    assert found.heat.shape == (50, 70)
    np.testing.assert_array_equal(encoder.embed_images([noise(1), noise(2)]), before)


class _Bare(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.visual = nn.Identity()


def test_what_cannot_be_explained_says_what_can(tiny_encoder: Any) -> None:
    def refused(encoder: Any) -> str:
        with pytest.raises(ModelError) as error:
            saliency(encoder, noise(1), np.zeros(encoder.dim, np.float32))
        return str(error.value)

    assert refused(tiny_encoder) == (
        "tiny is no model of torch, CLIP or ALBEF, so its matches cannot be explained: give "
        "builtin, a model folder that training wrote, an open_clip name or albef:PATH"
    )
    bare = encoder_of(_Bare(), {"embed_dim": 3}, {"size": 32})
    assert "the picture tower of small, Identity, has neither" in refused(bare)
    flat = encoder_of(_Model(), {"embed_dim": 3}, {"size": 32})
    flat.model.visual.trunk.forward_features = lambda pixels: pixels.flatten(2)
    assert "activations of shape (1, 3, 1024)" in refused(flat)


def test_attention_that_cannot_be_followed() -> None:
    with pytest.raises(ModelError, match="no attention that can be seen"):
        relevance(torch.ones(()), [])
    x = torch.randn(2, 1, 4, 8, requires_grad=True)
    with AttentionRecorder(), pytest.raises(ModelError, match="within windows"):
        nn.functional.scaled_dot_product_attention(x, x, x)
    x = torch.randn(1, 1, 4, 8, requires_grad=True)
    with AttentionRecorder() as recorder:
        first = nn.functional.scaled_dot_product_attention(x, x, x)
        fewer = first[:, :, :2]
        last = nn.functional.scaled_dot_product_attention(fewer, fewer, fewer)
        last = nn.functional.scaled_dot_product_attention(last, last, last)
    with pytest.raises(ModelError, match=r"attention 2 is of \(2, 2\) tokens, its first one of 4"):
        relevance(last.sum(), recorder.found)


def test_attention_that_the_score_does_not_hang_on_is_left_out() -> None:
    torch.manual_seed(0)
    x = torch.randn(1, 1, 4, 8, requires_grad=True)
    with AttentionRecorder() as recorder:
        first = nn.functional.scaled_dot_product_attention(x, x, x)
        nn.functional.scaled_dot_product_attention(first[:, :, :2], first, first)
    tokens = relevance(first[0, 0, 0].sum(), recorder.found)
    # One head, one layer: the row that is read, times what each token's values add up to.
    expected = recorder.found[0].weights[0, 0] * x.detach()[0, 0].sum(1).clamp(min=0)
    torch.testing.assert_close(tokens, expected.double())


@pytest.mark.parametrize("kind", ["bool", "float"])
def test_masked_attention_is_the_models_own(kind: str) -> None:
    """Weights that are computed anew give the output that the model has."""
    torch.manual_seed(0)
    q, k, v = torch.randn(3, 1, 2, 5, 8)
    hidden = torch.rand(5, 5) < 0.6
    hidden[:, 0] = True
    mask = hidden if kind == "bool" else torch.randn(5, 5)
    with AttentionRecorder() as recorder:
        plain = nn.functional.scaled_dot_product_attention(q, k, v, mask, scale=0.7)
    (found,) = recorder.found
    torch.testing.assert_close(found.weights @ v[0], plain[0])
    torch.testing.assert_close(
        plain, nn.functional.scaled_dot_product_attention(q, k, v, mask, scale=0.7), rtol=0, atol=0
    )


def test_grad_cam_of_halves() -> None:
    """Two channels over two cells, read by weights: worked out by hand."""
    activations = torch.tensor([[[[1.0, 2.0]], [[3.0, 0.0]]]])
    score, cells = grad_cam(
        lambda _: activations,
        lambda x: (x * torch.tensor([[[[2.0, 4.0]], [[-1.0, -3.0]]]])).sum((2, 3)),
        torch.zeros(1),
        torch.sum,
    )
    assert score == 2 + 8 - 3
    assert cells.tolist() == [[0, 6]]  # 3 * 1 - 2 * 3 < 0, and 3 * 2


def test_a_saliency_is_not_compared_by_its_arrays() -> None:
    nothing = np.zeros((1, 1), np.float32)
    assert Saliency(0.0, nothing, nothing) != Saliency(0.0, nothing, nothing)
