"""The experiment: each arm trained on the same products, and asked about the same others.

What an arm says of validation and of each version of the test set is written to disk first, and
scored later (report.py), so that scoring anew costs no training.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray

from benchmarks.attributes.arms import ARMS, ZERO_SHOT, make_arm, zero_shot
from indexing.attributes.labels import Labels, suggest
from indexing.attributes.words import Words
from indexing.catalog import read_catalog
from indexing.catalog.product import Product
from indexing.durable import write_atomically
from indexing.match_record import Mode
from indexing.models import load_encoder
from indexing.models.clip import ClipEncoder
from indexing.models.cma_clip.network import CmaConfig, CmaNetwork, Inputs, Sizes
from indexing.models.cma_clip.towers import text_tokens
from training.attributes.config import AttributesConfig
from training.attributes.data import Examples, make_examples, raw_value, read_products
from training.attributes.pictures import FrozenPatches
from training.attributes.stage import class_weights
from training.attributes.train import train_attributes
from training.builtin import TEST_SEED, TEST_SHARE
from training.split import position

ATTRIBUTES = ("color", "article_type", "usage")
SIDE = 128  # pixels that the towers see of a picture: those of the catalog have 60 x 80
VALIDATION_SHARE = 0.05  # of the titles; the rest of `builtin`'s test titles is for testing
CONFIG = AttributesConfig(
    network=CmaConfig(layers=2, heads=4),
    warm_up_epochs=5,
    epochs=4,
    tuning_epochs=2,
    warm_up_rate=5e-4,
    learning_rate=1e-4,
    tuning_rate=2e-4,
    rising_steps=50,
    batch_size=128,
    lock_image=True,
)
_LEAST = 40  # products of a value; fewer make it OTHER
_BATCH = 256

Kind = Literal["own", "stripped", "added", "swapped", "none"]
Ints = NDArray[np.int64]
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


@dataclass(frozen=True)
class Condition:
    """A version of the test set.

    Attributes:
        titles: "own"; "stripped" of attribute words; "added": stripped, and the right values
            put behind; "swapped" with those of other products; "none".
        pictures: "own", "swapped" with those of other products, or "none".
    """

    titles: Kind
    pictures: Literal["own", "swapped", "none"] = "own"

    @property
    def mode(self) -> Mode:
        if self.titles == "none":
            return "image"
        return "text" if self.pictures == "none" else "image+text"


CONDITIONS = {
    "clean": Condition("own"),
    "words removed": Condition("stripped"),
    "words added": Condition("added"),
    "title of another": Condition("swapped"),
    "picture of another": Condition("own", "swapped"),
    "stripped, picture of another": Condition("stripped", "swapped"),
    "no title": Condition("none"),
    "no picture": Condition("own", "none"),
    "no picture, words removed": Condition("stripped", "none"),
}


class Study:
    """One model, one split, the arms."""

    def __init__(self, data: Data, folder: Path, config: AttributesConfig = CONFIG) -> None:
        self.data, self.folder, self.config = data, folder, config
        self._encoder = small_builtin()

    def run(self, arm: str, seed: int, say: Callable[[str], None]) -> None:
        """Trains an arm and writes what it says of validation and test; does nothing where that
        is done."""
        out = self.folder / f"{arm.replace(' ', '_')}-{seed}.npz"
        if out.exists():
            return
        answers = self._zero_shot() if arm == ZERO_SHOT else self._trained(arm, seed, say)

        def write(path: Path) -> None:
            with path.open("wb") as file:
                np.savez_compressed(file, allow_pickle=False, **answers)

        out.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(out, write)

    def _trained(self, arm: str, seed: int, say: Callable[[str], None]) -> dict[str, Floats]:
        data, encoder = self.data, small_builtin()
        config = self.config.model_copy(update={"seed": seed})
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
            patches=self.folder / "patches",
            on_epoch=lambda epoch: say(
                f"{arm} {seed} {epoch.stage} {epoch.number + 1} loss {epoch.loss:.3f} "
                + " ".join(f"{share:.3f}" for share in epoch.accuracy)
            ),
        )
        weights = class_weights(data.train.labels, data.sizes, config.balance)
        tilts = [weight.log().numpy() for weight in weights]
        answers = self._answers(encoder, network, tilts)
        shutil.rmtree(run)
        return answers

    def _answers(
        self, encoder: ClipEncoder, network: CmaNetwork, tilts: Sequence[Floats]
    ) -> dict[str, Floats]:
        found: dict[str, Floats] = {}
        modes = {
            "image+text": Condition("own"),
            "image": Condition("none"),
            "text": Condition("own", "none"),
        }
        # Thresholds for stripped titles are chosen on stripped titles, too.
        modes["image+text stripped"] = Condition("stripped")
        for name, condition in modes.items():
            own = ask(
                encoder, network, self.data.validation, self._validation, condition, self.data
            )
            _note(found, f"validation/{name}", own, tilts)
        for name, condition in CONDITIONS.items():
            own = ask(encoder, network, self.data.test, self._test, condition, self.data)
            _note(found, f"test/{name}", own, tilts)
        return found

    def _zero_shot(self) -> dict[str, Floats]:
        found: dict[str, Floats] = {}
        sides = {
            "validation/image+text": (self.data.validation, self._validation),
            "test/clean": (self.data.test, self._test),
        }
        for name, (examples, patches) in sides.items():
            rows = np.arange(len(examples))
            pictures = np.concatenate(
                [part[:, 0].numpy() for _, part in patches.batches(_batches(rows))]
            )
            own = zero_shot(self._encoder, pictures, self.data.values)
            for attribute, logits in zip(ATTRIBUTES, own, strict=True):
                found[f"{name}/{attribute}"] = logits
        return found

    @cached_property
    def _validation(self) -> FrozenPatches:
        pictures = self.data.validation.pictures
        return FrozenPatches(self._encoder, pictures, self.folder / "patches")

    @cached_property
    def _test(self) -> FrozenPatches:
        return FrozenPatches(self._encoder, self.data.test.pictures, self.folder / "patches")


def small_builtin() -> ClipEncoder:
    """`builtin`, shown pictures of SIDE pixels."""
    made = load_encoder("builtin", device="cpu")
    if not isinstance(made, ClipEncoder):
        raise TypeError("builtin is a CLIP model")
    config = {**made.config, "preprocess_cfg": {**made.config["preprocess_cfg"], "size": SIDE}}
    return ClipEncoder(
        "builtin", made.model, made.tokenizer, config, device="cpu",
        tokenizer_file=made.tokenizer_file,
    )  # fmt: skip


def others(labels: Ints, seed: int) -> Ints:
    """For each product another one, int64 [n]: nobody's own, each one's once, and of another
    value of the first attribute wherever that is possible by a few trials."""
    rng = np.random.default_rng(seed)
    order = rng.permutation(len(labels))
    partner = np.empty(len(labels), np.int64)
    partner[order] = np.roll(order, 1)
    for _ in range(20):
        alike = np.flatnonzero(labels[partner, 0] == labels[:, 0])
        if not len(alike):
            break
        with_whom = rng.integers(len(labels), size=len(alike))
        for row, other in zip(alike.tolist(), with_whom.tolist(), strict=True):
            a, b = partner[row], partner[other]
            if other not in (row, a) and b != row:
                partner[row], partner[other] = b, a
    return partner


def ask(
    encoder: ClipEncoder,
    network: CmaNetwork,
    examples: Examples,
    pictures: FrozenPatches,
    condition: Condition,
    data: Data,
) -> tuple[list[Floats], Floats]:
    """The logits of each attribute, float32 [n, classes], and lambda, float32 [n, attributes],
    of a version of some examples. Every picture must be readable."""
    partner = others(examples.labels, 0)
    titles = _titles(examples, condition.titles, partner, data)
    rows = partner if condition.pictures == "swapped" else np.arange(len(examples))
    has_picture, has_text = condition.pictures != "none", condition.titles != "none"
    encoder.model.eval()
    network.eval()
    logits: list[list[Floats]] = [[] for _ in data.values]
    weights: list[Floats] = []
    with torch.inference_mode():
        for start, (_, patches) in zip(
            range(0, len(rows), _BATCH), pictures.batches(_batches(rows)), strict=True
        ):
            own = titles[start : start + _BATCH]
            tokens, ends = text_tokens(encoder.model, encoder.tokenizer(own))
            text = torch.tensor([has_text and bool(title.strip()) for title in own])
            outputs = network(
                Inputs(patches, tokens, ends, torch.full_like(text, has_picture), text)
            )
            weights.append(outputs.picture_weight.numpy())
            for place, found in enumerate(outputs.logits):
                logits[place].append(found.numpy())
    return [np.concatenate(found) for found in logits], np.concatenate(weights)


def _titles(examples: Examples, kind: Kind, partner: Ints, data: Data) -> list[str]:
    if kind == "own":
        return examples.titles
    if kind == "stripped":
        return examples.stripped
    if kind == "swapped":
        return [examples.titles[row] for row in partner]
    if kind == "none":
        return [""] * len(examples)
    words = Words(data.labels.ways_of_writing())
    return [
        " ".join([examples.stripped[row], *_named(data, examples.labels[row], words)])
        for row in range(len(examples))
    ]


def _named(data: Data, labels: Ints, words: Words) -> list[str]:
    named = [
        own[label] for own, label in zip(data.values, labels.tolist(), strict=True) if label >= 0
    ]
    return [value for value in named if words.mentions(value)]


def _batches(rows: Ints) -> list[Ints]:
    return [rows[start : start + _BATCH] for start in range(0, len(rows), _BATCH)]


def _note(
    found: dict[str, Floats],
    name: str,
    answers: tuple[list[Floats], Floats],
    tilts: Sequence[Floats],
) -> None:
    logits, weights = answers
    for attribute, own, tilt in zip(ATTRIBUTES, logits, tilts, strict=True):
        found[f"{name}/{attribute}"] = (own - tilt).astype(np.float32)
    found[f"{name}/picture weight"] = weights.astype(np.float32)


def write_settings(folder: Path, study: Mapping[str, object]) -> None:
    """What a run was asked for, beside its answers."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "settings.json").write_text(json.dumps(study, indent=2) + "\n", encoding="utf-8")


def arm_names() -> tuple[str, ...]:
    """In the order of the report."""
    return (*ARMS, ZERO_SHOT)
