"""A run of `shoplens train attributes`: catalogs in, a classifier folder out."""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
from rich.console import Console

from indexing.attributes.labels import Labels, write_labels
from indexing.attributes.vocabulary import Attribute, Calibration, TrainedOn
from indexing.catalog.product import Product
from indexing.errors import TrainingError
from indexing.match_record import MODES, Mode
from indexing.models.clip import ClipEncoder
from indexing.models.cma_clip.classifier import LABELS, CmaClassifier, uncalibrated
from indexing.models.cma_clip.network import CmaNetwork, Sizes, initial
from training.attributes.calibrating import calibrate
from training.attributes.card import classifier_card
from training.attributes.checkpoint import StageEpoch
from training.attributes.config import AttributesConfig
from training.attributes.data import (
    UNKNOWN,
    Examples,
    make_examples,
    make_labels,
    read_products,
    split_examples,
)
from training.attributes.stage import Side, StageRun, class_weights
from training.attributes.train import train_attributes
from training.run import claim, training_bars

_LAST = "last"


def run_attributes(
    encoder: ClipEncoder,
    catalogs: Sequence[Iterable[Product]],
    attributes: Sequence[str],
    out: Path,
    config: AttributesConfig,
    *,
    table: Path | None = None,
    least: int = 20,
) -> CmaClassifier:
    """Reads the catalogs, trains, calibrates, and writes the classifier to `out`.

    Args:
        attributes: Names of attributes in the catalogs.
        table: A label table that people have edited; None makes one, in which values of fewer
            than `least` products become OTHER. It is written to `out` before anything else.

    Raises:
        CatalogError, ModelError, TrainingError: as the stages do.
        KeyboardInterrupt: The run was asked to stop, and has been saved.
    """
    console = Console(stderr=True)
    claim(out)
    products = read_products(catalogs, attributes)
    labels = make_labels(products, attributes, table, least)
    write_labels(labels, out / LABELS)
    named = [(name, labels.values(name)) for name in attributes]
    train, validation = split_examples(
        make_examples(products, labels, named), config.validation_share, config.seed
    )
    console.print(f"{len(train):,} products to train on, {len(validation):,} held out")
    for name, values in named:
        console.print(f"{name}: {len(values)} values, see {out / LABELS}")
    sizes = Sizes(dim=encoder.dim, classes=tuple(len(values) for _, values in named))
    try:
        network = initial(sizes, config.network, config.seed)
    except ValueError as error:
        raise TrainingError(f"{error}: give other --heads") from error
    identity = _identity(encoder, labels, train, validation)
    with training_bars(console) as bars:
        history = train_attributes(
            encoder,
            network,
            train,
            validation,
            out / _LAST,
            config,
            identity,
            on_pictures=bars.pictures,
            on_step=lambda step: bars.move(
                "steps", step.number, step.total, f"loss {step.loss:.3f}"
            ),
            on_epoch=lambda epoch: console.print(epoch_line(epoch, attributes), soft_wrap=True),
        )
        classifier = calibrated_classifier(
            encoder, network, labels, named, train, validation, out / _LAST, config,
            TrainedOn(held_out=config.validation_share, seed=config.seed),
        )  # fmt: skip
    classifier.save(out, card=classifier_card(classifier, history, config))
    shutil.rmtree(out / _LAST)
    console.print(
        f"classifier written to {out}: try `shoplens index CATALOG --out DIR --attributes {out}`",
        soft_wrap=True,
    )
    return classifier


def calibrated_classifier(
    encoder: ClipEncoder,
    network: CmaNetwork,
    labels: Labels,
    named: Sequence[tuple[str, Sequence[str]]],
    train: Examples,
    validation: Examples,
    folder: Path,
    config: AttributesConfig,
    trained_on: TrainedOn,
) -> CmaClassifier:
    """The trained network with temperatures and thresholds from validation, for each attribute
    and kind of input (90% precision by Wilson's lower bound)."""
    weights = class_weights(train.labels, [len(values) for _, values in named], config.balance)
    stage = config.model_copy(update={"lock_image": True}).stages(2)[0]
    sides = Side.of(validation, encoder), Side.of(validation, encoder)
    reader = StageRun(
        encoder, network, stage, config, sides, weights, folder / "patches", lambda name: None
    )
    found: list[dict[Mode, Calibration]] = [uncalibrated(len(values)) for _, values in named]
    for mode in MODES:
        logits, known = reader.validated(mode)
        for place, (_, values) in enumerate(named):
            found[place][mode] = calibrate(logits[place], known[:, place], values)
    return CmaClassifier(
        "trained",
        encoder,
        network,
        tuple(
            Attribute(
                name=name,
                values=tuple(values),
                prior=_prior(train, place, len(values)),
                calibration=found[place],
            )
            for place, (name, values) in enumerate(named)
        ),
        labels,
        [tuple(weight.double().log().tolist()) for weight in weights],
        trained_on,
    )


def epoch_line(epoch: StageEpoch, attributes: Sequence[str]) -> str:
    """What a user wants to see of an epoch."""
    accuracies = "  ".join(
        f"{name} {share:.3f}" for name, share in zip(attributes, epoch.accuracy, strict=True)
    )
    return f"{epoch.stage:10s} {epoch.number + 1:3d}  loss {epoch.loss:.4f}  accuracy {accuracies}"


def _prior(train: Examples, place: int, classes: int) -> tuple[float, ...]:
    """Shares of the classes in training, one product added to each so that none has 0."""
    known = train.labels[:, place]
    counts = np.bincount(known[known != UNKNOWN], minlength=classes) + 1.0
    return tuple(float(share) for share in counts / counts.sum())


def _identity(encoder: ClipEncoder, labels: Labels, *sides: Examples) -> str:
    digest = hashlib.sha256(encoder.fingerprint.encode())
    digest.update(repr(labels.rows).encode("utf-8", "surrogatepass"))
    for side in sides:
        for product, title, picture in zip(side.products, side.titles, side.pictures, strict=True):
            line = f"{product}\0{title}\0{picture.location}\0"
            digest.update(line.encode("utf-8", "surrogatepass"))
        digest.update(side.labels.tobytes())
    return digest.hexdigest()
