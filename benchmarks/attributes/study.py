"""The experiment: each arm trained on the same products, and asked about the same others.

What an arm says of validation and of each version of the test set is written to disk first, and
scored later (report.py), so that scoring anew costs no training.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from benchmarks.attributes.arms import ARMS, ZERO_SHOT, make_arm, zero_shot
from benchmarks.attributes.noise import NO_PICTURE, Inputs, conditions
from indexing.attributes.labels import Labels, suggest
from indexing.attributes.vocabulary import TrainedOn
from indexing.attributes.words import Words
from indexing.catalog import read_catalog
from indexing.catalog.product import Product
from indexing.durable import write_atomically
from indexing.models import load_encoder
from indexing.models.clip import ClipEncoder
from indexing.models.cma_clip.network import CmaConfig, CmaNetwork, Sizes
from indexing.models.cma_clip.network import Inputs as NetworkInputs
from indexing.models.cma_clip.towers import text_tokens
from indexing.titles import position
from training.attributes.config import AttributesConfig
from training.attributes.data import Examples, make_examples, raw_value, read_products
from training.attributes.pictures import FrozenPatches
from training.attributes.run import calibrated_classifier
from training.attributes.stage import class_weights
from training.attributes.train import train_attributes
from training.builtin import TEST_SEED, TEST_SHARE

ATTRIBUTES = ("color", "article_type", "usage")
SIDE = 96  # pixels that the towers see of a picture: those of the catalog have 60 x 80
VALIDATION_SHARE = 0.05  # of the titles; the rest of `builtin`'s test titles is for testing
CONFIG = AttributesConfig(
    network=CmaConfig(layers=2, heads=4),
    warm_up_epochs=3,
    epochs=4,
    tuning_epochs=1,
    warm_up_rate=5e-4,
    learning_rate=3e-4,
    tuning_rate=2e-4,
    rising_steps=50,
    batch_size=64,
    hide_words=0.5,
)
_LEAST = 40  # products of a value; fewer make it OTHER
_BATCH = 256

WEIGHT = "picture weight"
CLASSIFIER = "classifier"  # the folders of full CMA-CLIP, for those who go on with it

Floats = NDArray[np.float32]


@dataclass(frozen=True)
class Data:
    """Fashion, split by title: none of validation or test was seen by `builtin` in its training."""

    labels: Labels
    values: tuple[tuple[str, ...], ...]  # of each attribute
    train: Examples
    validation: Examples
    test: Examples

    @property
    def sizes(self) -> tuple[int, ...]:
        return tuple(map(len, self.values))


def read_data(folder: Path, train: int, test: int) -> Data:
    """At most `train` and `test` products of `folder`/fashion, drawn by a fixed seed."""
    catalog = read_catalog(folder / "fashion" / "catalog.csv")
    products = read_products([catalog], ATTRIBUTES)
    raw = {name: [raw_value(product, name) for product in products] for name in ATTRIBUTES}
    labels = suggest(raw, least=_LEAST)
    values = tuple(labels.values(name) for name in ATTRIBUTES)
    places = np.array([position(product.title, TEST_SEED) for product in products])
    rng = np.random.default_rng(0)

    def some(mask: NDArray[np.bool_], most: int) -> Examples:
        rows = np.flatnonzero(mask)
        chosen = np.sort(rng.permutation(rows)[:most])
        own: list[Product] = [products[row] for row in chosen]
        return make_examples(own, labels, list(zip(ATTRIBUTES, values, strict=True)))

    return Data(
        labels,
        values,
        some(places >= TEST_SHARE, train),
        some(places < VALIDATION_SHARE, len(products)),
        some((places >= VALIDATION_SHARE) & (places < TEST_SHARE), test),
    )


def versions(examples: Examples, data: Data) -> dict[str, Inputs]:
    """The examples as they are and spoilt, see noise.py, and without titles."""
    words = Words(data.labels.ways_of_writing())
    gold = {
        name: [values[label] if label >= 0 else None for label in examples.labels[:, place]]
        for place, (name, values) in enumerate(zip(ATTRIBUTES, data.values, strict=True))
    }
    spoilt = conditions(examples.titles, gold, words)
    found: dict[str, Inputs] = {str(name): inputs for name, inputs in spoilt.items()}
    nothing = tuple("" for _ in examples.titles)
    found["no title"] = replace(found["clean"], titles=nothing)
    found["no picture, words deleted"] = replace(
        found["no picture"], titles=found["words deleted"].titles
    )
    return found


class Study:
    """One model, one split, the arms."""

    def __init__(
        self,
        data: Data,
        folder: Path,
        config: AttributesConfig = CONFIG,
        start: Callable[[], ClipEncoder] | None = None,
    ) -> None:
        """`start` makes the model that each arm begins with; by default `small_builtin`."""
        self.data, self.folder, self.config = data, folder, config
        self._start = start or small_builtin

    def run(self, arm: str, seed: int, say: Callable[[str], None]) -> None:
        """Trains an arm and writes what it says of validation and test; does nothing where that
        is done."""
        out = self.folder / f"{arm.replace(' ', '_')}-{seed}.npz"
        if out.exists() or (arm == ZERO_SHOT and seed):  # nothing there depends on a seed
            return
        answers = self._zero_shot() if arm == ZERO_SHOT else self._trained(arm, seed, say)

        def write(path: Path) -> None:
            with path.open("wb") as file:
                np.savez_compressed(file, allow_pickle=False, **answers)

        out.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(out, write)

    def _trained(self, arm: str, seed: int, say: Callable[[str], None]) -> dict[str, Floats]:
        data, encoder = self.data, self._start()
        # Who sees no picture needs no tower for them.
        config = self.config.model_copy(update={"seed": seed, "lock_image": arm == "text only"})
        sizes = Sizes(dim=encoder.dim, classes=data.sizes)
        network = make_arm(arm, sizes, config.network, seed)
        run = self.folder / "runs" / f"{arm.replace(' ', '_')}-{seed}"
        train_attributes(
            encoder,
            network,
            data.train,
            data.validation,
            run,
            config,
            arm,
            on_epoch=lambda epoch: say(
                f"{arm} {seed} {epoch.stage} {epoch.number + 1} loss {epoch.loss:.3f} "
                + " ".join(f"{share:.3f}" for share in epoch.accuracy)
            ),
        )
        weights = class_weights(data.train.labels, data.sizes, config.balance)
        tilts = [weight.log().numpy() for weight in weights]
        answers = self._answers(encoder, network, tilts, run / "patches")
        if arm == "full":
            classifier = calibrated_classifier(
                encoder, network, data.labels, list(zip(ATTRIBUTES, data.values, strict=True)),
                data.train, data.validation, run, config,
                TrainedOn(held_out=TEST_SHARE, seed=TEST_SEED),
            )  # fmt: skip
            card = "Made by `shoplens bench attributes`.\n"
            classifier.save(self.folder / f"{CLASSIFIER}-{seed}", card=card)
        shutil.rmtree(run)
        return answers

    def _answers(
        self, encoder: ClipEncoder, network: CmaNetwork, tilts: Sequence[Floats], patches: Path
    ) -> dict[str, Floats]:
        found: dict[str, Floats] = {}
        for side, examples in (("validation", self.data.validation), ("test", self.data.test)):
            pictures = FrozenPatches(encoder, examples.pictures, patches)
            for name, inputs in versions(examples, self.data).items():
                logits, weights = ask(encoder, network, inputs, pictures)
                for attribute, own, tilt in zip(ATTRIBUTES, logits, tilts, strict=True):
                    found[f"{side}/{name}/{attribute}"] = (own - tilt).astype(np.float32)
                found[f"{side}/{name}/{WEIGHT}"] = weights
        return found

    def _zero_shot(self) -> dict[str, Floats]:
        encoder, found = self._start(), dict[str, Floats]()
        sides = {"validation/clean": self.data.validation, "test/clean": self.data.test}
        for name, examples in sides.items():
            patches = FrozenPatches(encoder, examples.pictures, self.folder / "patches")
            rows = np.arange(len(examples))
            pictures = np.concatenate([part[:, 0].numpy() for _, part in patches.batches([rows])])
            own = zero_shot(encoder, pictures, self.data.values)
            for attribute, logits in zip(ATTRIBUTES, own, strict=True):
                found[f"{name}/{attribute}"] = logits
        return found


def small_builtin() -> ClipEncoder:
    """`builtin`, shown pictures of SIDE pixels."""
    made = load_encoder("builtin", device="cpu")
    if not isinstance(made, ClipEncoder):
        raise TypeError("builtin is a CLIP model")
    return shown_small(made)


def shown_small(made: ClipEncoder) -> ClipEncoder:
    """A model, on the CPU, shown pictures of SIDE pixels."""
    config = {**made.config, "preprocess_cfg": {**made.config["preprocess_cfg"], "size": SIDE}}
    return ClipEncoder(
        made.name, made.model, made.tokenizer, config, device="cpu",
        tokenizer_file=made.tokenizer_file,
    )  # fmt: skip


def ask(
    encoder: ClipEncoder, network: CmaNetwork, inputs: Inputs, pictures: FrozenPatches
) -> tuple[list[Floats], Floats]:
    """The logits of each attribute, float32 [n, classes], and lambda, float32 [n, attributes].
    Every picture must be readable."""
    encoder.model.eval()
    network.eval()
    logits: list[list[Floats]] = [[] for _ in network.tasks]
    weights: list[Floats] = []
    shown = np.maximum(inputs.pictures, 0)
    parts = [shown[start : start + _BATCH] for start in range(0, len(shown), _BATCH)]
    with torch.inference_mode():
        for start, (_, patches) in zip(
            range(0, len(shown), _BATCH), pictures.batches(parts), strict=True
        ):
            titles = inputs.titles[start : start + _BATCH]
            tokens, ends = text_tokens(encoder.model, encoder.tokenizer(titles))
            has_picture = torch.from_numpy(inputs.pictures[start : start + _BATCH] != NO_PICTURE)
            has_text = torch.tensor([bool(title.strip()) for title in titles])
            # One with neither counts as a text.
            outputs = network(
                NetworkInputs(patches, tokens, ends, has_picture, has_text | ~has_picture)
            )
            weights.append(outputs.picture_weight.numpy())
            for own, found in zip(logits, outputs.logits, strict=True):
                own.append(found.numpy())
    return [np.concatenate(own) for own in logits], np.concatenate(weights)


def arm_names() -> tuple[str, ...]:
    """In the order of the report."""
    return (*ARMS, ZERO_SHOT)
