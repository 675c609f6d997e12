"""A run of `shoplens train categories`: catalogs in, a categoriser folder out."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console

from indexing.attributes.labels import Labels, write_labels
from indexing.attributes.vocabulary import TrainedOn
from indexing.catalog.product import Product
from indexing.cleaning import clean, cleaned
from indexing.errors import TrainingError
from indexing.models.categorizer.categorizer import Categorizer
from indexing.models.categorizer.network import TitleEncoder
from indexing.models.cma_clip.classifier import LABELS
from indexing.models.protocol import Encoder
from training.attributes.data import make_labels, read_products
from training.categories.adapt import Seen, adapt
from training.categories.calibrating import calibrated_categorizer
from training.categories.card import categorizer_card
from training.categories.checkpoint import Round
from training.categories.config import CategoriesConfig
from training.categories.data import Examples, make_examples, split_examples, with_titles
from training.categories.finetune import finetune
from training.categories.stage import StepDone
from training.data import Pairs
from training.encoders import TrainedEncoder
from training.images import FrozenVectors
from training.run import claim, training_bars

LAST = "last"  # in --out: what a stopped run goes on from
_FEATURES = "features"


@dataclass(frozen=True)
class Sources:
    """What a run is made of.

    Attributes:
        start: Makes the title encoder out of the titles to train on, and a folder to write to.
        pictures: The encoder whose vectors stand for pictures, for ConVIRT.
        cleaner: A model with token pruning that cleans titles for the adaptation; None leaves
            them.
    """

    start: Callable[[Sequence[str], Path], TitleEncoder]
    start_name: str
    pictures: Encoder | None = None
    cleaner: TrainedEncoder | None = None


def run_categories(
    sources: Sources,
    catalogs: Sequence[Iterable[Product]],
    label: str,
    out: Path,
    config: CategoriesConfig,
    *,
    table: Path | None = None,
    least: int = 5,
) -> Categorizer:
    """Reads the catalogs, adapts, fine-tunes, calibrates, and writes the categoriser to `out`.

    Products without a category take part in the adaptation only.

    Args:
        label: Of the catalogs: a field or a further column.
        table: A label table that people have edited; None makes one, in which categories of
            fewer than `least` products become OTHER. It is written to `out` first.

    Raises:
        CatalogError, ModelError, TrainingError: As the stages do.
        KeyboardInterrupt: The run was asked to stop; the same command goes on.
    """
    console = Console(stderr=True)
    claim(out)
    products = read_products(catalogs, [label], unlabelled=config.adapt is not None)
    labels = make_labels(products, [label], table, least)
    write_labels(labels, out / LABELS)
    categories = labels.values(label)
    examples = make_examples(products, labels, label, categories)
    train, validation = split_examples(examples, config.validation_share, config.seed)
    known = len(train.labelled())
    console.print(
        f"{len(train):,} titles to train on, {known:,} of them of known category, "
        f"{len(validation):,} held out; {len(categories)} categories, see {out / LABELS}",
        soft_wrap=True,
    )
    last = out / LAST
    encoder = sources.start(train.pairs.titles, last)
    identity = _identity(sources, encoder, config, labels, train, validation)
    history: list[Round] = []

    def on_round(done: Round) -> None:
        console.print(round_line(done), soft_wrap=True)

    with training_bars(console) as bars:

        def on_step(step: StepDone) -> None:
            bars.move(step.stage, step.number, step.total, f"loss {step.loss:.3f}")

        if config.adapt is not None:
            sides = [_cleaned(side.pairs, sources.cleaner) for side in (train, validation)]
            seen: list[Seen] = []
            if config.adapt.method == "convirt":
                if sources.pictures is None:
                    raise TrainingError("ConVIRT needs an encoder for pictures: give --pictures")
                seen = [
                    Seen.of(
                        pairs,
                        FrozenVectors(
                            sources.pictures, pairs.pictures, last / _FEATURES, bars.pictures(name)
                        ),
                    )
                    for pairs, name in zip(sides, ("train", "validate"), strict=True)
                ]
            history += adapt(
                encoder,
                seen[0] if seen else sides[0],
                seen[1] if seen else None,
                config.adapt,
                seed=config.seed,
                precision=config.precision,
                folder=last,
                identity=identity,
                on_step=on_step,
                on_round=on_round,
            )
        network, tuned = finetune(
            encoder,
            train.labelled(),
            validation.labelled(),
            len(categories),
            config.tune,
            seed=config.seed,
            precision=config.precision,
            folder=last,
            identity=identity,
            on_step=on_step,
            on_round=on_round,
        )
    made = calibrated_categorizer(
        network,
        validation.labelled(),
        label,
        categories,
        TrainedOn(held_out=config.validation_share, seed=config.seed),
    )
    card = categorizer_card(made.config, [*history, *tuned], config, sources.start_name)
    made.save(out, card=card)
    shutil.rmtree(last)
    console.print(
        f'categoriser written to {out}: try `shoplens categorize {out} "a title"`', soft_wrap=True
    )
    return made


def round_line(done: Round) -> str:
    """What a user wants to see of a round."""
    measured = "  ".join(f"{name} {value:.3f}" for name, value in done.measures.items())
    return f"{done.stage:11s} {done.number + 1:3d}  loss {done.loss:.4f}  {measured}".rstrip()


def _cleaned(pairs: Pairs, cleaner: TrainedEncoder | None) -> Pairs:
    if cleaner is None:
        return pairs
    return with_titles(pairs, [cleaned(words) for words in clean(cleaner, pairs.titles)])


def _identity(
    sources: Sources,
    encoder: TitleEncoder,
    config: CategoriesConfig,
    labels: Labels,
    *sides: Examples,
) -> str:
    digest = hashlib.sha256(json.dumps([config.decisive(), encoder.settings]).encode())
    digest.update(encoder.tokenizer.file.read_bytes())
    for key, value in encoder.state_dict().items():
        digest.update(key.encode() + value.cpu().numpy().tobytes())
    for other in (sources.pictures, sources.cleaner):
        digest.update(b"-" if other is None else other.fingerprint.encode())
    digest.update(repr(labels.rows).encode("utf-8", "surrogatepass"))
    for side in sides:
        pairs = side.pairs
        for picture, title, product in zip(
            pairs.pictures, pairs.titles, pairs.products, strict=True
        ):
            line = f"{product}\0{title}\0{picture.location}\0"
            digest.update(line.encode("utf-8", "surrogatepass"))
        digest.update(side.labels.tobytes())
    return digest.hexdigest()
