"""What the recipes of ALBEF set, and where their thresholds come from."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from pydantic import ValidationError

from indexing.errors import TrainingError
from indexing.models.albef.recipes import observe, paper_albef_pruning
from training.albef.config import AlbefTraining
from training.albef.presets import make_albef_config, prepare_albef_pruning
from training.optimizer import rate_factor


def test_the_paper_is_taken_at_its_word() -> None:
    config = make_albef_config("paper")
    assert (config.epochs, config.batch_size, config.weight_decay) == (30, 320, 0.02)
    assert (config.queue_size, config.momentum, config.distillation) == (65_536, 0.995, 0.4)
    assert (config.masked_share, config.hardening) == (0.15, 0)
    # 858,000 pairs are 2,681 steps an epoch; ALBEF's warm-up is 20 times 100 steps.
    total, rising = 30 * 2681, 2000
    rates = [
        config.learning_rate * rate_factor(step, total, config.warm_up, config.floor)
        for step in range(total)
    ]
    assert rates[0] == pytest.approx(1e-5, rel=0.01)
    assert rates.index(max(rates)) == pytest.approx(rising, rel=0.01)
    assert max(rates) == pytest.approx(1e-4)
    assert rates[rising // 2] == pytest.approx(5.5e-5, rel=0.01)
    assert rates[rising + (total - rising) // 2] == pytest.approx(5.5e-5, rel=0.01)
    assert rates[-1] == pytest.approx(1e-5, rel=0.01)
    assert config.threshold_learning_rate == config.learning_rate


def test_what_is_given_overrides_a_recipe_and_what_is_not_does_not() -> None:
    config = make_albef_config("paper", epochs=3, learning_rate=None, queue_size=0)
    assert (config.epochs, config.batch_size, config.queue_size) == (3, 320, 0)
    assert make_albef_config("calibrated") == AlbefTraining(preset="calibrated")
    assert make_albef_config("standard") == AlbefTraining(preset="standard")
    with pytest.raises(ValidationError, match="preset"):
        make_albef_config("best")
    with pytest.raises(ValidationError, match="word_dropout"):
        make_albef_config("standard", word_dropout=0.1)


def test_a_second_stage_is_the_same_over_a_few_epochs() -> None:
    for preset in ("standard", "calibrated", "paper"):
        first = make_albef_config(preset)
        second = make_albef_config(preset, second_stage=True)
        assert second == first.model_copy(update={"epochs": 5})
        assert make_albef_config(preset, second_stage=True, epochs=7).epochs == 7


def test_an_untrained_model_takes_larger_steps_but_where_a_recipe_says_which() -> None:
    plain, start = make_albef_config("calibrated"), make_albef_config("calibrated", untrained=True)
    assert start.learning_rate > 5 * plain.learning_rate
    assert start.momentum < plain.momentum
    assert start.hardening > plain.hardening == 0
    printed = make_albef_config("paper", untrained=True)
    assert (printed.learning_rate, printed.warm_up) == (1e-4, 0.025)
    assert make_albef_config("standard", untrained=True, momentum=0.5).momentum == 0.5


@pytest.mark.parametrize(
    "wrong",
    [
        *({"momentum": 1.0}, {"momentum": -0.1}, {"distillation": 1.0}, {"masked_share": 1.0}),
        *({"queue_size": -1}, {"hardening": 1.5}, {"prune": "self"}, {"key": "eot"}),
        *({"batch_size": 1}, {"chunk": 0}),
    ],
)
def test_settings_that_make_no_sense_are_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValidationError, match=next(iter(wrong))):
        make_albef_config("calibrated", **wrong)


def prepared(tiny: Any, unreadable: tuple[int, ...] = (), **settings: Any) -> Any:
    encoder = tiny.encoder()
    config = AlbefTraining(**{"preset": "calibrated", **settings})
    prepare_albef_pruning(encoder, config, tiny.pairs, tiny.images(encoder, unreadable))
    return encoder


@pytest.mark.parametrize("prune", ["all", "cross"])
@pytest.mark.parametrize("key", ["first", "mean"])
def test_thresholds_are_a_twentieth_of_the_scores_of_the_titles(
    tiny_albef: Any, prune: str, key: Any
) -> None:
    rows = [row for row in range(24) if row not in (3, 7)]
    encoder = prepared(tiny_albef, (3, 7), prune=prune, key=key)
    model, tokenizer = encoder.model, encoder.tokenizer
    ids = tokenizer([tiny_albef.pairs.titles[row] for row in rows])
    pixels = tiny_albef.pixels[rows]
    scores, prunable = observe(model, ids, tokenizer.mask(ids), pixels, "pre", key)
    pruning = encoder.pruning.config
    assert (pruning.score, pruning.key) == ("pre", key)
    for number in range(6):
        values = scores[number][prunable].numpy().astype(np.float64)
        if number in ((0, 4) if prune == "all" else (4,)):
            assert pruning.base[number] == pytest.approx(np.quantile(values, 0.05), abs=1e-5)
            assert pruning.temperature[number] == pytest.approx(0.4 * values.std(ddof=1), rel=1e-4)
            assert (values < pruning.base[number]).mean() == pytest.approx(0.05, abs=0.03)
            assert pruning.trained[number]
        else:
            assert pruning.base[number] == -math.inf
            assert not pruning.trained[number]


def test_a_large_catalog_is_seen_mixed_and_in_part(
    tiny_albef: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Catalogs are often sorted."""
    seen = list[int]()
    real = type(tiny_albef.images(None)).batches

    def noting(self: Any, batches: Any, epoch: int) -> Any:
        for rows, pixels in real(self, batches, epoch):
            seen.extend(rows.tolist())
            yield rows, pixels

    monkeypatch.setattr(type(tiny_albef.images(None)), "batches", noting)
    monkeypatch.setattr("training.albef.presets.TITLES", 10)
    monkeypatch.setattr("training.albef.presets._BATCH", 4)
    found = prepared(tiny_albef).pruning.config
    assert len(seen) == len(set(seen)) == 10
    assert seen != sorted(seen)
    assert max(seen) > 15
    # Whatever the batches: the scores of all of them.
    monkeypatch.setattr("training.albef.presets._BATCH", 64)
    again = prepared(tiny_albef).pruning.config
    assert found.base == pytest.approx(again.base, abs=1e-5)


def test_it_is_read_without_dropout_and_training_goes_on_as_it_was(tiny_albef: Any) -> None:
    tiny_albef.dropout = 0.5
    encoder = tiny_albef.encoder()
    found = []
    for mode in (True, False):
        encoder.pruning = None
        encoder.model.train(mode)
        config = AlbefTraining(preset="calibrated")
        prepare_albef_pruning(encoder, config, tiny_albef.pairs, tiny_albef.images(encoder))
        assert encoder.model.training == mode
        found.append(encoder.pruning.config)
    assert found[0] == found[1]


def test_paper_and_standard_and_none(tiny_albef: Any) -> None:
    for prune in ("all", "cross"):
        encoder = prepared(tiny_albef, preset="paper", prune=prune)
        assert encoder.pruning.config == paper_albef_pruning(encoder.config, prune)
    kept = encoder.pruning

    def prepare(preset: Any) -> None:
        config, images = AlbefTraining(preset=preset), tiny_albef.images(encoder)
        prepare_albef_pruning(encoder, config, tiny_albef.pairs, images)

    prepare(None)
    assert encoder.pruning is kept
    prepare("calibrated")  # goes on with its own
    assert encoder.pruning is kept
    with pytest.raises(TrainingError, match="untrained prunes tokens already, and --preset paper"):
        prepare("paper")
    assert encoder.pruning is kept
    prepare("standard")
    assert encoder.pruning is None


def test_pictures_none_of_which_can_be_read_are_an_error(tiny_albef: Any) -> None:
    with pytest.raises(TrainingError, match="none of the pictures can be read"):
        prepared(tiny_albef, tuple(range(24)))
