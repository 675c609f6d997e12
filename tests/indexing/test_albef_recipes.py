"""Where token pruning of ALBEF starts: printed values, and numpy on scores by plain matrices."""

from __future__ import annotations

import inspect
import math
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from indexing.errors import TrainingError
from indexing.models.albef.config import AlbefConfig
from indexing.models.albef.network import AlbefModel
from indexing.models.albef.reading import Reader
from indexing.models.albef.recipes import calibrated_albef_pruning, observe, paper_albef_pruning
from indexing.models.calibration import calibrate
from indexing.models.token_pruning import Pruning, TokenPruning

pytestmark = pytest.mark.usefixtures("one_thread")
NEVER = -math.inf
CONFIG = AlbefConfig(
    image_size=8, patch_size=4, vision_width=24, vision_layers=1, vision_heads=2,
    vocab_size=50, text_width=16, text_layers=5, text_heads=2, text_intermediate=32,
    fusion_layer=2, max_positions=16, embed_dim=8, max_text_length=12,
)  # fmt: skip
PAIRS = [("pre", "first"), ("pre", "mean"), ("post", "first")]


@pytest.fixture(scope="module")
def model() -> AlbefModel:
    torch.manual_seed(0)
    found = AlbefModel(CONFIG)
    with torch.no_grad():
        for weight in found.parameters():
            if weight.dim() > 1:
                weight.normal_(std=1.5 * weight.shape[-1] ** -0.5)
            else:
                weight.add_(0.2 * torch.randn_like(weight))
    return found.eval()


def pairs(count: int, seed: int = 0) -> tuple[Tensor, Tensor, Tensor]:
    """Titles of 1 to 9 words, none of which fills the width; their mask; their pictures."""
    generator = torch.Generator().manual_seed(seed)
    ids = torch.zeros(count, 12, dtype=torch.int64)
    for row in ids:
        length = int(torch.randint(1, 10, (), generator=generator))
        row[0], row[length + 1] = 2, 3
        row[1 : length + 1] = torch.randint(4, 50, (length,), generator=generator)
    return ids, (ids > 0).long(), torch.randn(count, 3, 8, 8, generator=generator)


# --- the printed recipe


def test_the_printed_recipe_of_the_base_model() -> None:
    found = paper_albef_pruning(AlbefConfig(), "all")
    assert len(found.base) == 18
    own = [0.01 * layer / 12 for layer in range(1, 13)]
    crossing = [0.01 * layer / 6 for layer in range(1, 7)]
    assert found.base == pytest.approx([*own, *crossing])
    assert found.base[11] == found.base[17] == 0.01
    assert found.trained == (True,) * 11 + (False,) + (True,) * 5 + (False,)
    assert found.temperature == (1e-4,) * 18
    assert (found.score, found.key, found.weight, found.norm) == (
        "post", "first", 0.1, "sum_layers",
    )  # fmt: skip
    assert (found.multiply, found.keys) == (True, "none")
    assert (found.cumulative, found.straight_through) == (False, False)


def test_the_printed_recipe_of_the_cross_attentions_alone() -> None:
    found = paper_albef_pruning(AlbefConfig(), "cross")
    whole = paper_albef_pruning(AlbefConfig(), "all")
    assert found.base == (NEVER,) * 12 + whole.base[12:]
    assert found.trained == (False,) * 12 + (True,) * 5 + (False,)
    same = {"base", "trained"}
    assert found.model_dump(exclude=same) == whole.model_dump(exclude=same)
    assert Pruning.model_validate_json(found.model_dump_json()) == found


@pytest.mark.parametrize("prune", ["all", "cross"])
def test_the_printed_recipe_prices_what_it_trains(model: AlbefModel, prune: Any) -> None:
    config = paper_albef_pruning(CONFIG, prune)
    assert config.base[5:] == pytest.approx([0.01 / 3, 0.02 / 3, 0.01])
    pruning, (ids, mask, pixels) = TokenPruning(config), pairs(20)
    reader = Reader(model, pruning)
    fused = reader.fuse(reader.read(ids, mask), model.visual_encoder(pixels))
    words = fused.prunable.sum(1)
    expected = 0.0
    for number in (0, 1, 2, 3, 5, 6) if prune == "all" else (5, 6):  # not 4 and 7
        above = (dict(fused.scores)[number].double() - config.base[number]) / 1e-4
        kept = (1 / (1 + (-above).exp())) * fused.prunable
        expected += 0.1 * (kept.sum(1) / words).mean().item()
    price = reader.penalty(fused)
    assert price.item() == pytest.approx(expected, rel=1e-3)
    assert 0.1 * len(fused.masks) > expected > 0.1  # some of these drop something
    (1e3 * price + fused.x[:, 0].square().sum()).backward()
    assert pruning.delta.grad is not None
    assert pruning.delta.grad[[4, 7]].tolist() == [0, 0]


# --- observed scores


@torch.no_grad()
def by_numpy(
    model: AlbefModel, ids: Tensor, mask: Tensor, image: Tensor, score: str, key: str
) -> list[list[list[float]]]:
    """For each attention and title the scores of its tokens, out of the queries and keys of
    the model without pruning."""
    seen: list[Tensor] = []
    layers = model.text_encoder.bert.encoder.layer
    attentions = [layer.attention for layer in layers]
    attentions += [layer.crossattention for layer in layers[CONFIG.fusion_layer :]]
    hooks = [
        part.register_forward_hook(lambda *args: seen.append(args[2]))
        for attention in attentions
        for part in (attention.self.query, attention.self.key)
    ]
    reader = Reader(model, None)
    reader.fuse(reader.read(ids, mask), image)
    for hook in hooks:
        hook.remove()
    found: list[list[list[float]]] = [[] for _ in attentions]
    order = [0, 1, 2, 5, 3, 6, 4, 7]
    for place, number in enumerate(order):
        queries, keys = (part.double().numpy() for part in seen[2 * place : 2 * place + 2])
        for row, count in enumerate(mask.sum(1).tolist()):
            k = keys[row] if number >= 5 else keys[row, :count]
            scores = np.zeros(count)
            for head in (slice(0, 8), slice(8, 16)):
                raw = queries[row, :count, head] @ k[:, head].T / math.sqrt(8)
                shares = np.exp(raw) / np.exp(raw).sum(1, keepdims=True)
                table = shares if score == "post" else raw
                scores += (table[:, 0] if key == "first" else table.mean(1)) / 2
            found[number].append(scores.tolist())
    return found


@pytest.mark.parametrize(("score", "key"), PAIRS)
def test_observed_scores_are_those_of_the_model_without_pruning(
    model: AlbefModel, score: Any, key: Any
) -> None:
    ids, mask, pixels = pairs(7)
    with torch.no_grad():
        image = model.visual_encoder(pixels)
    scores, prunable = observe(model, ids, mask, pixels, score, key)
    expected = by_numpy(model, ids, mask, image, score, key)
    assert len(scores) == 8
    for number, found in enumerate(scores):
        assert (found.shape, found.dtype) == ((7, 12), torch.float32)
        for row in range(7):
            count = int(mask[row].sum())
            assert found[row, :count].tolist() == pytest.approx(expected[number][row], abs=2e-5)
    words = mask.sum(1, keepdim=True) - 2
    place = torch.arange(12)
    assert torch.equal(prunable, (place >= 1) & (place <= words))
    again, _ = observe(model, ids, mask, image, score, key)
    assert all(map(torch.equal, again, scores))


def test_batches_are_put_together(model: AlbefModel) -> None:
    ids, mask, pixels = pairs(150)
    scores, prunable = observe(model, ids, mask, pixels, "pre", "mean")
    assert prunable.shape == (150, 12)
    assert torch.equal(prunable.sum(1), mask.sum(1) - 2)
    for row in (0, 63, 64, 127, 128, 149):  # a batch holds 64
        one = slice(row, row + 1)
        alone, own = observe(model, ids[one], mask[one], pixels[one], "pre", "mean")
        for number in range(8):
            torch.testing.assert_close(
                scores[number][one][own], alone[number][own], rtol=0, atol=1e-5
            )


def test_nothing_of_the_model_changes(model: AlbefModel) -> None:
    before = {name: value.clone() for name, value in model.state_dict().items()}
    ids, mask, pixels = pairs(5)
    scores, _ = observe(model, ids, mask, pixels, "pre", "first")
    model.train()
    dropped, _ = observe(model, ids, mask, pixels, "pre", "first")
    assert model.training
    assert model.text_encoder.bert.embeddings._dropout.training
    model.eval()
    assert all(map(torch.equal, scores, dropped))  # without dropout all the same
    assert not any(found.requires_grad for found in scores)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


# --- thresholds out of scores


def drawn(count: int = 40) -> tuple[list[Tensor], Tensor]:
    """Scores of 8 attentions; those of what is not prunable are far away."""
    generator = torch.Generator().manual_seed(5)
    prunable = torch.zeros(count, 12).bool()
    prunable[:, 1:11] = True
    scores = [
        (n + 1) * torch.randn(count, 12, generator=generator) + n for n in range(CONFIG.attentions)
    ]
    return [found.where(prunable, torch.tensor(-1e3)) for found in scores], prunable


@pytest.mark.parametrize(
    ("options", "numbers"),
    [
        ({}, (0, 5)),
        ({"prune": "cross"}, (5,)),
        ({"prune": "cross", "self_layers": 3}, (5,)),
        ({"self_layers": 0}, (5,)),
        ({"cross_layers": 0, "self_layers": 5}, (0, 1, 2, 3, 4)),
        ({"self_layers": 2, "cross_layers": 2}, (0, 1, 5, 6)),
        ({"share": 0.3, "spread": 1.4, "weight": 0.5, "key": "mean"}, (0, 5)),
    ],
)
def test_thresholds_are_quantiles_and_temperatures_deviations(
    options: dict[str, Any], numbers: tuple[int, ...]
) -> None:
    scores, prunable = drawn()
    found = calibrated_albef_pruning(CONFIG, scores, prunable, **options)
    for number in range(8):
        assert found.trained[number] == (number in numbers)
        if number not in numbers:
            assert (found.base[number], found.temperature[number]) == (NEVER, 1)
            continue
        values = scores[number][:, 1:11].flatten().double().numpy()
        quantile, spread = options.get("share", 0.05), options.get("spread", 0.4)
        assert found.base[number] == pytest.approx(np.quantile(values, quantile), rel=1e-12)
        deviation = math.sqrt(((values - values.mean()) ** 2).sum() / 399)
        assert found.temperature[number] == pytest.approx(spread * deviation, rel=1e-9)
        mask = TokenPruning(found).mask(number, scores[number], prunable)
        assert int((mask == 0).sum()) == round(400 * quantile)
    assert (found.score, found.key) == (options.get("score", "pre"), options.get("key", "first"))
    assert found.weight == options.get("weight", 0.1)
    assert (found.straight_through, found.cumulative, found.multiply) == (True, True, False)
    assert (found.keys, found.norm) == ("same", "sum_layers")


def test_defaults_are_those_of_clip() -> None:
    own, clip = (inspect.signature(f).parameters for f in (calibrated_albef_pruning, calibrate))
    for name in ("score", "key", "share", "spread", "weight"):
        assert own[name].default == clip[name].default
    assert (own["self_layers"].default, own["cross_layers"].default) == (1, 1)


@pytest.mark.parametrize(("score", "key"), PAIRS)
@pytest.mark.parametrize("prune", ["cross", "all"])
def test_a_calibrated_model_drops_the_share_of_tokens(
    model: AlbefModel, prune: Any, score: Any, key: Any
) -> None:
    ids, mask, pixels = pairs(130)
    with torch.no_grad():
        image = model.visual_encoder(pixels)
    scores, prunable = observe(model, ids, mask, image, score, key)
    config = calibrated_albef_pruning(
        CONFIG, scores, prunable, prune=prune, score=score, key=key, share=0.2
    )
    reader = Reader(model, TokenPruning(config))
    texts = reader.read(ids, mask, hard=True)
    fused = reader.fuse(texts, image, hard=True)
    count = int(prunable.sum())
    dropped = count - int(dict(texts.trail)[1][texts.prunable].sum())
    assert dropped / count == pytest.approx(0.2 if prune == "all" else 0, abs=0.04)
    left = int(dict(fused.trail)[5][fused.prunable].sum())
    if prune == "cross":
        assert 1 - left / count == pytest.approx(0.2, abs=1 / 130)
    else:  # of what the text encoder left, the scores have moved a little
        assert 1 - left / (count - dropped) == pytest.approx(0.2, abs=0.12)
    assert torch.equal(fused.alive, dict(fused.trail)[5])  # later attentions inherit


# --- what cannot be


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"self_layers": 6}, "6 self-attentions cannot prune: the model has 5"),
        ({"self_layers": -1}, "-1 self-attentions cannot prune"),
        ({"cross_layers": 3}, "3 cross-attentions cannot prune: the model has 3, and after the "
         "last of them no key is left to take out; use 0 to 2"),
        ({"cross_layers": -1}, "-1 cross-attentions cannot prune"),
        ({"self_layers": 0, "cross_layers": 0}, "no attention prunes"),
        ({"prune": "cross", "cross_layers": 0}, "no attention prunes"),
    ],
)  # fmt: skip
def test_layers_that_cannot_prune_are_named(options: dict[str, Any], reason: str) -> None:
    with pytest.raises(TrainingError, match=reason):
        calibrated_albef_pruning(CONFIG, *drawn(), **options)


@pytest.mark.parametrize(
    ("score", "key", "reason"),
    [
        ("post", "mean", "every token scores the same"),
        ("recv", "mean", "not defined on cross-attention"),
        ("pre", "eot", "not defined on cross-attention"),
        ("post", "eot_query", "not defined on cross-attention"),
    ],
)
def test_scores_that_are_not_defined_are_refused(
    model: AlbefModel, score: Any, key: Any, reason: str
) -> None:
    with pytest.raises(TrainingError, match=reason):
        observe(model, *pairs(3), score, key)


def test_too_few_titles_are_refused(model: AlbefModel) -> None:
    with pytest.raises(TrainingError, match="cannot be calibrated on 0 titles: give some"):
        observe(model, *pairs(0), "pre", "first")
    scores, prunable = drawn()
    prunable[:] = False
    with pytest.raises(TrainingError, match="cannot be calibrated on 0 tokens: give more titles"):
        calibrated_albef_pruning(CONFIG, scores, prunable)
