"""What the recipes set, where their thresholds come from, and schedules in closed form."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from pydantic import ValidationError

from indexing.errors import TrainingError
from indexing.models.calibration import calibrate
from indexing.models.pruned_text import PrunedText
from indexing.models.token_pruning import TokenPruning, paper_pruning
from training.clip import train_clip
from training.config import TrainConfig
from training.loop import epoch_batches
from training.optimizer import (
    THRESHOLD_RANGE,
    make_optimizer,
    rate_factor,
    set_rates,
    threshold_rate,
)
from training.presets import make_config, prepare_pruning
from training.worth import learn_masks


def test_the_paper_is_taken_at_its_word() -> None:
    config = make_config("paper")
    assert (config.epochs, config.batch_size, config.weight_decay) == (100, 1360, 0.02)
    # 858,000 pairs are 630 steps an epoch; 10 epochs of warm-up.
    total, rising = 63_000, 6_300
    rates = [config.learning_rate * rate_factor(n, total, config.warm_up, config.floor)
             for n in range(total)]  # fmt: skip
    assert rates[0] == pytest.approx(5e-6, rel=1e-3)
    assert rates[rising // 2 - 1] == pytest.approx(12.5e-6)
    assert rates[rising - 1] == max(rates) == pytest.approx(2e-5)
    assert rates[rising + (total - rising) // 2] == pytest.approx(12.5e-6)
    assert rates[-1] == pytest.approx(5e-6, rel=1e-3)
    assert config.threshold_learning_rate == config.learning_rate


def test_what_is_given_overrides_a_recipe_and_what_is_not_does_not() -> None:
    config = make_config("paper", epochs=3, learning_rate=None, seed=0, lock_image=False)
    assert (config.epochs, config.batch_size, config.learning_rate) == (3, 1360, 2e-5)
    assert make_config("calibrated") == TrainConfig(preset="calibrated", mask_steps=120)
    assert make_config("calibrated", mask_steps=0) == TrainConfig(preset="calibrated")
    assert make_config("standard") == TrainConfig(preset="standard")
    with pytest.raises(ValidationError, match="preset"):
        make_config("best")


@pytest.mark.parametrize("preset", ["standard", "calibrated", "paper"])
def test_a_second_stage_is_the_same_curve_over_a_few_epochs(preset: str) -> None:
    first, second = make_config(preset), make_config(preset, second_stage=True)
    assert second == first.model_copy(update={"epochs": 5})
    assert make_config(preset, second_stage=True, epochs=7).epochs == 7
    for at in (0.05, 0.3, 0.99):
        factors = [
            rate_factor(int(at * total), total, first.warm_up, first.floor)
            for total in (10_000, 500)
        ]
        assert factors[0] == pytest.approx(factors[1], abs=0.02)


@pytest.mark.parametrize("floor", [0.0, 0.25])
def test_rates_rise_on_a_line_and_fall_on_a_cosine(floor: float) -> None:
    total, rising = 200, 40
    for step in range(total):
        if step < rising:
            height = (step + 1) / rising
        else:
            height = math.cos(math.pi / 2 * (step - rising) / (total - rising)) ** 2
        found = rate_factor(step, total, 0.2, floor)
        assert found == pytest.approx(floor + (1 - floor) * height, abs=1e-12)
    assert rate_factor(0, 1, 0.05, floor) == 1
    assert rate_factor(0, 10, 0.0, floor) == 1


def test_groups_have_their_decay_and_their_rates(tiny: Any) -> None:
    encoder = tiny.encoder()
    pruning = TokenPruning(calibrate(encoder, tiny.pairs.titles))
    config = TrainConfig(learning_rate=0.5, weight_decay=0.1, warm_up=0.5, floor=0.2)
    optimizer = make_optimizer(encoder.model, pruning, config, total=8)
    groups = {group["name"]: group for group in optimizer.param_groups}
    assert {name: group["weight_decay"] for name, group in groups.items()} == {
        **{"matrices": 0.1, "vectors": 0.0, "thresholds": 0.0}
    }
    assert all(p.ndim >= 2 for p in groups["matrices"]["params"])
    assert all(p.ndim < 2 for p in groups["vectors"]["params"])
    assert any(p is encoder.model.logit_scale for p in groups["vectors"]["params"])
    assert [p is pruning.delta for p in groups["thresholds"]["params"]] == [True]
    trained = sum(len(group["params"]) for group in groups.values())
    assert trained == len(list(encoder.model.parameters())) + 1
    set_rates(optimizer, config, step=0, total=8)
    expected = threshold_rate(pruning.config, 8)
    assert groups["matrices"]["lr"] == groups["vectors"]["lr"] == pytest.approx(0.5 * 0.4)
    assert groups["thresholds"]["lr"] == pytest.approx(expected * 0.4)
    frozen = config.model_copy(update={"threshold_learning_rate": 0.0})
    assert make_optimizer(encoder.model, pruning, frozen, 8).param_groups[2]["peak"] == 0


def test_thresholds_cross_their_range_in_a_fifth_of_the_steps() -> None:
    """The layers that are trained count; the others have no spread."""
    pruning = paper_pruning(3).model_copy(
        update={"temperature": (0.4, 0.8, 99.0), "trained": (True, True, False)}
    )
    rate = threshold_rate(pruning, total=1000)
    assert rate * 200 == pytest.approx(THRESHOLD_RANGE * 0.6)
    none = pruning.model_copy(update={"trained": (False,) * 3})
    assert threshold_rate(none, 1000) == 0


def test_calibrated_takes_its_thresholds_out_of_the_titles(tiny: Any) -> None:
    encoder = tiny.encoder()
    prepare_pruning(encoder, "calibrated", tiny.pairs.titles)
    expected = calibrate(encoder, tiny.pairs.titles)
    assert encoder.pruning is not None
    assert encoder.pruning.config.base == pytest.approx(expected.base, abs=1e-5)
    assert encoder.pruning.config.temperature == pytest.approx(expected.temperature, abs=1e-5)


def test_calibration_sees_a_sorted_catalog_mixed(
    tiny: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It looks at the first titles only, which must not all be of one category."""
    seen = list[str]()

    def noting(encoder: Any, titles: list[str]) -> Any:
        seen.extend(titles)
        return calibrate(encoder, titles)

    monkeypatch.setattr("training.presets.calibrate", noting)
    titles = [f"red {n}" for n in range(500)] + [f"blue {n}" for n in range(500)]
    prepare_pruning(tiny.encoder(), "calibrated", titles)
    assert sorted(seen) == sorted(titles)
    assert 150 < sum(title.startswith("red") for title in seen[:500]) < 350  # 250, sd 8


def test_paper_and_standard_and_none(tiny: Any) -> None:
    encoder = tiny.encoder()
    prepare_pruning(encoder, "paper", tiny.pairs.titles)
    assert encoder.pruning is not None
    assert encoder.pruning.config == paper_pruning(2)
    kept = encoder.pruning
    prepare_pruning(encoder, None, tiny.pairs.titles)
    assert encoder.pruning is kept
    prepare_pruning(encoder, "standard", tiny.pairs.titles)
    assert encoder.pruning is None


def test_a_model_that_prunes_goes_on_with_its_thresholds_or_refuses(tiny: Any) -> None:
    encoder = tiny.encoder()
    encoder.pruning = kept = TokenPruning(paper_pruning(2))
    prepare_pruning(encoder, "calibrated", tiny.pairs.titles)
    assert encoder.pruning is kept
    with pytest.raises(TrainingError, match="tiny prunes tokens already, and --preset paper"):
        prepare_pruning(encoder, "paper", tiny.pairs.titles)


@pytest.mark.parametrize("preset", ["calibrated", "paper"])
def test_a_tower_that_cannot_prune_is_told_of_the_way_out(tiny: Any, preset: Any) -> None:
    encoder = tiny.encoder()
    encoder.model.text_pool_type = "last"
    with pytest.raises(TrainingError, match=r"token pruning needs .*: use --preset standard"):
        prepare_pruning(encoder, preset, tiny.pairs.titles)


def test_the_literal_recipe_starts_as_standard_training_does(tiny: Any) -> None:
    """Its thresholds lie far below every score, and its price is the same for all titles."""
    found = []
    for preset in ("standard", "paper"):
        encoder = tiny.encoder()
        config = make_config(preset, epochs=1, batch_size=24)
        [epoch] = train_clip(encoder, tiny.pairs, tiny.images(encoder), None, None, None, config)
        found.append((epoch, encoder.model.state_dict()))
    (standard, _), (paper, _) = found
    assert paper.loss - paper.penalty == pytest.approx(standard.loss, abs=1e-5)
    assert paper.penalty == pytest.approx(0.1)  # one layer of two is penalised
    assert paper.kept == 1


@pytest.mark.parametrize("preset", ["calibrated", None])
def test_masks_are_learned_before_the_first_step_and_held_from_then_on(
    tiny: Any, preset: Any
) -> None:
    """Also in a model that prunes already."""

    def start() -> Any:
        encoder = tiny.encoder()
        encoder.pruning = TokenPruning(calibrate(encoder, tiny.pairs.titles, share=0.3))
        return encoder

    encoder, alone, kept, seen = start(), start(), [], []
    config = TrainConfig(preset=preset, mask_steps=7, epochs=3, batch_size=8, learning_rate=1e-2)
    images = tiny.images(encoder)

    def on_mask_step(step: Any) -> None:
        seen.append(step)
        assert kept == []

    def on_step(step: Any) -> None:
        kept.append(step.kept)
        assert step.penalty == 0

    history = train_clip(
        *(encoder, tiny.pairs, images, None, None, None, config),
        on_mask_step=on_mask_step,
        on_step=on_step,
    )
    expected = []
    learn_masks(alone, tiny.pairs, tiny.images(alone), config, on_step=expected.append)
    assert seen == expected
    assert torch.equal(encoder.pruning.delta, alone.pruning.delta)
    assert encoder.pruning.delta[0] != 0
    thresholds = {epoch.thresholds for epoch in history}
    assert thresholds == {(alone.pruning.thresholds()[0].item(), None)}
    first = epoch_batches(np.arange(24), config, 0)[0]
    ids = alone.tokenizer([tiny.pairs.titles[row] for row in first])
    followed = PrunedText(alone.model, alone.pruning)(ids, hard=True)
    assert kept[0] == pytest.approx(followed.kept().item(), abs=1e-6)
    assert 0 < kept[0] < 1


@pytest.mark.parametrize("loss", ["siglip", "mv-dhel"])
def test_masks_are_learned_at_the_scale_that_the_model_came_with(tiny: Any, loss: str) -> None:
    """Not at that of a loss which starts it anew, where words would be worth less."""
    found = []
    for name in ("infonce", loss):
        encoder = tiny.encoder()
        with torch.no_grad():
            encoder.model.logit_scale.fill_(math.log(60))
        config = TrainConfig(
            preset="calibrated", mask_steps=7, epochs=1, batch_size=8, learning_rate=1e-2, loss=name
        )
        train_clip(encoder, tiny.pairs, tiny.images(encoder), None, None, None, config)
        found.append((encoder.pruning.delta.tolist(), encoder.model.logit_scale.exp().item()))
    assert found[0][0] == found[1][0]
    assert found[1][1] < 20 < found[0][1]


def test_soft_masks_cannot_be_held(tiny: Any) -> None:
    encoder = tiny.encoder()
    encoder.pruning = TokenPruning(paper_pruning(2))
    config = TrainConfig(preset="calibrated", mask_steps=2, epochs=1, batch_size=8)
    with pytest.raises(TrainingError, match="go on learning them with --mask-steps 0"):
        train_clip(encoder, tiny.pairs, tiny.images(encoder), None, None, None, config)


def test_without_pruning_there_are_no_masks_to_learn(tiny: Any) -> None:
    found = []
    for steps in (0, 5):
        encoder = tiny.encoder()
        config = TrainConfig(preset="standard", mask_steps=steps, epochs=1, batch_size=8)
        images = tiny.images(encoder)
        history = train_clip(encoder, tiny.pairs, images, None, None, None, config)
        found.append((history, encoder.model.state_dict()))
    assert found[0][0] == found[1][0]
    for name, value in found[0][1].items():
        assert torch.equal(found[1][1][name], value), name


def test_the_printed_recipe_has_no_mask_steps() -> None:
    """Its masks give no gradient at the start: held from there they would do nothing."""
    assert make_config("paper").mask_steps == make_config("paper", mask_steps=0).mask_steps == 0
    with pytest.raises(ValidationError, match="paper learns its masks along with the weights"):
        make_config("paper", mask_steps=10)
    with pytest.raises(ValidationError, match="greater than or equal to 0"):
        make_config("calibrated", mask_steps=-1)


def test_only_what_decides_the_outcome_makes_another_run() -> None:
    plain = TrainConfig()
    how = TrainConfig(chunk=7, precision="bf16", checkpoint_activations=True, checkpoint_minutes=1)
    assert how.decisive() == plain.decisive()
    for change in ({"seed": 1}, {"augment": False}, {"preset": "paper"}, {"loss": "siglip"},
                   {"mask_steps": 1}):  # fmt: skip
        assert TrainConfig.model_validate(change).decisive() != plain.decisive()


def test_thresholds_stay_float32_and_the_models_own_device(tiny: Any) -> None:
    encoder = tiny.encoder()
    prepare_pruning(encoder, "calibrated", tiny.pairs.titles)
    assert encoder.pruning is not None
    assert encoder.pruning.delta.dtype == torch.float32
    assert encoder.pruning.delta.device == encoder.model.logit_scale.device
