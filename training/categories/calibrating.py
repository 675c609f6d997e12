"""A trained network as a categoriser: its confidence on titles not trained on."""

from __future__ import annotations

from collections.abc import Sequence

from indexing.attributes.vocabulary import TrainedOn
from indexing.models.categorizer.categorizer import Categorizer, CategorizerConfig
from indexing.models.categorizer.network import TitleClassifier
from training.attributes.calibrating import calibrate
from training.categories.data import Examples


def calibrated_categorizer(
    network: TitleClassifier,
    validation: Examples,
    label: str,
    categories: Sequence[str],
    trained_on: TrainedOn,
) -> Categorizer:
    """The network with the temperature at which the categories of validation are likeliest, and
    the confidence from which nine in ten are right by Wilson's lower bound.

    Args:
        validation: Of known category.

    Raises:
        TrainingError: The logits are not finite.
    """
    logits = network.read(network.encoder.tokenizer(validation.pairs.titles)).numpy()
    found = calibrate(logits, validation.labels, categories)
    config = CategorizerConfig(
        encoder=network.encoder.settings,
        label=label,
        categories=tuple(categories),
        temperature=found.temperature,
        threshold=found.threshold,
        trained_on=trained_on,
    )
    return Categorizer("trained", network, config)
