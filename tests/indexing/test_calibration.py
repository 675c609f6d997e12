"""Calibrated thresholds: against numpy, closed forms, and what a tower does with them."""

from __future__ import annotations

import inspect
import math
from typing import Any

import numpy as np
import pytest
import torch

from indexing.errors import ModelError, TrainingError
from indexing.models import load_encoder
from indexing.models.calibration import calibrate, calibrated_pruning, observed_scores
from indexing.models.clip import ClipEncoder, create_model
from indexing.models.pruned_text import PrunedText
from indexing.models.token_pruning import Pruning, TokenPruning

pytestmark = pytest.mark.usefixtures("one_thread")
KEEPS_ALL = {"pre": -1e9, "post": 0.0, "recv": 0.0}
COLOURS = ("red", "blue", "green", "black", "white", "pink", "beige")
THINGS = ("mug", "T-shirt", "running shoes", "sofa", "watch")
TITLES = [f"Acme {thing} {colour} (pack of {size})" for thing in THINGS for colour in COLOURS
          for size in range(2, 12)]  # fmt: skip
RECIPE: dict[str, Any] = {
    "score": "pre",
    "key": "first",
    "first_layer": 0,
    "pruning_layers": 1,
    "share": 0.05,
    "spread": 0.4,
    "weight": 0.1,
}


@pytest.fixture(scope="module")
def encoder() -> ClipEncoder:
    found = load_encoder("builtin", device="cpu")
    assert isinstance(found, ClipEncoder)
    return found


def test_observed_scores_are_those_of_a_tower_that_keeps_all(
    encoder: ClipEncoder, score: str, key: str
) -> None:
    scores, prunable = observed_scores(encoder, TITLES[:30], score, key)  # type: ignore[arg-type]
    config = Pruning(
        score=score, key=key, base=(KEEPS_ALL[score],) * 2, trained=(True,) * 2,
        temperature=(1.0,) * 2, straight_through=True, cumulative=True, multiply=False,
        keys="same", weight=0,
    )  # fmt: skip
    ids = encoder.tokenizer(TITLES[:30])
    found = PrunedText(encoder.model, TokenPruning(config))(ids, hard=True)
    assert len(scores) == len(prunable) == 2
    for layer in range(2):
        assert scores[layer].dtype == torch.float32
        assert torch.equal(prunable[layer], found.prunable)
        torch.testing.assert_close(
            scores[layer][prunable[layer]], found.scores[layer][prunable[layer]]
        )


def test_the_first_distinct_titles_are_observed_and_batches_put_together(
    encoder: ClipEncoder,
) -> None:
    titles = [*TITLES[:3], *TITLES[:3], *TITLES[3:], "a title " * 20]
    scores, prunable = observed_scores(encoder, titles, "pre", "first", limit=300)
    assert len(scores[0]) == 300
    counts = [len(encoder.tokenizer([title])[0].nonzero()) - 2 for title in TITLES[:300]]
    assert prunable[0].sum(1).tolist() == counts
    for row in (0, 5, 255, 256, 299):  # a batch holds 256
        alone, one = observed_scores(encoder, [TITLES[row]], "pre", "first")
        for layer in range(2):
            torch.testing.assert_close(
                scores[layer][row][prunable[layer][row]], alone[layer][one[layer]]
            )
    assert len(observed_scores(encoder, map(str, range(2100)), "pre", "first")[0][0]) == 2048


def test_nothing_of_the_encoder_changes(encoder: ClipEncoder) -> None:
    before = encoder.fingerprint
    calibrate(encoder, TITLES)
    assert encoder.fingerprint == before
    assert encoder.pruning is None
    assert all(weight.grad is None for weight in encoder.model.parameters())


@pytest.mark.parametrize(("first_layer", "pruning_layers"), [(0, 1), (1, 1), (0, 2)])
def test_a_calibrated_tower_drops_the_share_of_tokens(
    encoder: ClipEncoder, score: str, key: str, first_layer: int, pruning_layers: int
) -> None:
    config = calibrate(
        encoder, TITLES, score=score, key=key, first_layer=first_layer,  # type: ignore[arg-type]
        pruning_layers=pruning_layers, share=0.25, spread=0.7, weight=0.3,
    )  # fmt: skip
    assert (config.score, config.key, config.weight) == (score, key, 0.3)
    scores, prunable = observed_scores(encoder, TITLES, score, key)  # type: ignore[arg-type]
    for layer in range(2):
        prunes = first_layer <= layer < first_layer + pruning_layers
        assert config.trained[layer] == (config.base[layer] != -math.inf) == prunes
        if prunes:
            values = scores[layer][prunable[layer]].double().numpy()
            assert config.base[layer] == pytest.approx(np.sort(values)[len(values) // 4], rel=0.05)
            assert config.temperature[layer] == pytest.approx(0.7 * values.std(), rel=1e-3)
    # Words that many titles share come together, and later layers drop more.
    alive, _, places = PrunedText(encoder.model, TokenPruning(config)).masks(
        encoder.tokenizer(TITLES)
    )
    share = 1 - float(alive[first_layer][places].mean())
    assert share == pytest.approx(0.25, abs=0.05)


def test_the_recipe_of_calibrate_is_what_it_forwards(encoder: ClipEncoder) -> None:
    defaults = {
        name: parameter.default
        for name, parameter in inspect.signature(calibrate).parameters.items()
        if parameter.kind is inspect.Parameter.KEYWORD_ONLY
    }
    assert defaults == RECIPE
    scores, prunable = observed_scores(encoder, TITLES, "recv", "mean")
    other = {**RECIPE, "score": "recv", "key": "mean", "first_layer": 1, "share": 0.4,
             "spread": 0.9, "weight": 0.2}  # fmt: skip
    assert calibrate(encoder, TITLES, **other) == calibrated_pruning(scores, prunable, **other)


@pytest.mark.parametrize(
    ("titles", "options", "reason"),
    [
        ([], {}, "cannot be calibrated on 0 titles"),
        (["", " "], {}, "cannot be calibrated on 0 tokens: give more titles"),
        (["mug"], {}, "cannot be calibrated on 1 tokens: give more titles"),
        (["red mug"], {"first_layer": 2}, "the text tower has layers 0 to 1"),
        (["red mug"], {"score": "post", "key": "mean"}, "every token scores the same"),
        (["red mug"], {"score": "recv"}, "recv is a mean over all"),
    ],
)
def test_what_cannot_be_calibrated_says_so(
    encoder: ClipEncoder, titles: list[str], options: dict[str, Any], reason: str
) -> None:
    with pytest.raises(TrainingError, match=reason):
        calibrate(encoder, titles, **options)


def test_a_tower_that_cannot_be_pruned_says_so(encoder: ClipEncoder) -> None:
    model_cfg = {
        "embed_dim": 16,
        "vision_cfg": {"image_size": 8, "layers": 1, "width": 16, "head_width": 16,
                       "patch_size": 8},
        "text_cfg": {"context_length": 64, "vocab_size": 27627, "width": 16, "heads": 2,
                     "layers": 2, "embed_cls": True},
        "custom_text": True,
    }  # fmt: skip
    config = {"model_cfg": model_cfg, "preprocess_cfg": {"size": 8}}
    other = ClipEncoder("x", create_model(model_cfg), encoder.tokenizer, config)
    with pytest.raises(ModelError, match="token pruning needs a causal text transformer"):
        calibrate(other, TITLES)


# --- thresholds out of scores


@pytest.mark.parametrize(("first_layer", "pruning_layers"), [(0, 1), (1, 1), (0, 2), (1, 2)])
@pytest.mark.parametrize("share", [0.05, 0.3])
def test_calibrated_thresholds_mask_the_share_at_the_start(
    first_layer: int, pruning_layers: int, share: float
) -> None:
    generator = torch.Generator().manual_seed(5)
    scores = [3 * torch.randn(20, 12, generator=generator) - 2 for _ in range(3)]
    prunable = torch.zeros(20, 12).bool()
    prunable[:, 1:11] = True  # 200 tokens; the scores of the others are far away
    for found in scores:
        found[~prunable] = -1e3
    config = calibrated_pruning(
        scores,
        [prunable] * 3,
        **{
            **RECIPE,
            "first_layer": first_layer,
            "pruning_layers": pruning_layers,
            "share": share,
            "spread": 0.8,
        },
    )
    model = TokenPruning(config)
    for layer, found in enumerate(scores):
        prunes = first_layer <= layer < first_layer + pruning_layers
        assert model.prunes(layer) == config.trained[layer] == prunes
        if prunes:
            mask = model.mask(layer, found, prunable)
            assert int((mask == 0).sum()) == round(200 * share)
            values = found[prunable].double().tolist()
            mean = sum(values) / 200
            spread = math.sqrt(sum((value - mean) ** 2 for value in values) / 199)
            assert config.temperature[layer] == pytest.approx(0.8 * spread)
    assert config.straight_through
    assert (config.cumulative, config.multiply, config.keys) == (True, False, "same")


def test_scores_that_are_all_the_same_prune_nothing() -> None:
    config = calibrated_pruning([torch.full((2, 5), 1.5)], [torch.ones(2, 5).bool()], **RECIPE)
    mask = TokenPruning(config).mask(0, torch.full((2, 5), 1.5), torch.ones(2, 5).bool())
    assert mask.tolist() == [[1] * 5] * 2


def test_more_scores_than_torch_takes_quantiles_of() -> None:
    count = 2**24 + 3
    scores = torch.arange(count).flip(0).float()[None]
    config = calibrated_pruning(
        [scores], [torch.ones(1, 1).bool().expand(1, count)], **{**RECIPE, "share": 0.5}
    )
    assert config.base[0] == (count - 1) / 2


@pytest.mark.parametrize(
    ("options", "shown"),
    [
        ({"first_layer": 2}, "layers 2 to 2 cannot prune: the text tower has layers 0 to 1"),
        ({"first_layer": 1, "pruning_layers": 2}, "layers 1 to 2 cannot prune"),
        ({"first_layer": -1}, "layers -1 to -1 cannot prune"),
        ({"pruning_layers": 0}, "cannot prune"),
    ],
)
def test_layers_that_a_tower_has_not_are_named(options: dict[str, int], shown: str) -> None:
    prunable = torch.ones(1, 5).bool()
    with pytest.raises(TrainingError, match=shown):
        calibrated_pruning([torch.randn(1, 5)] * 2, [prunable] * 2, **{**RECIPE, **options})
