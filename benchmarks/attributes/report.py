"""What the answers of a study say: tables, and how far they can be told apart."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks.attributes.arms import ARMS, ZERO_SHOT
from benchmarks.attributes.measures import COLUMNS, AttributeMeasures, Predictions, measure
from benchmarks.attributes.noise import separation
from benchmarks.attributes.paired import Run, mean_recall, paired_difference
from benchmarks.attributes.study import ATTRIBUTES, WEIGHT, Data, arm_names
from benchmarks.statistics import Interval
from indexing.durable import replace_bytes
from indexing.titles import normalise_title
from training.attributes.calibrating import calibrate, probabilities

PAGE, FIGURES = "report.md", "figures.json"
_NOISE = ("clean", "words deleted", "words inserted", "other title", "other picture",
          "no title", "no picture")  # fmt: skip
_ABLATIONS = ("full", "no modality-wise", "no sequence-wise", "neither", "linear head")
# On which titles thresholds and temperatures are chosen: on validation spoilt in the same way.
_MODE_OF = {
    "other title": "clean",
    "other picture": "clean",
    "words inserted": "clean",
}

Answers = Mapping[str, NDArray[np.float32]]
Ints = NDArray[np.int64]


@dataclass(frozen=True)
class Results:
    """The answers of the arms that were run, by arm and seed."""

    data: Data
    answers: dict[str, dict[int, Answers]]

    @classmethod
    def read(cls, data: Data, folder: Path) -> Results:
        found: dict[str, dict[int, Answers]] = {}
        for arm in arm_names():
            for path in sorted(folder.glob(f"{arm.replace(' ', '_')}-*.npz")):
                with np.load(path, allow_pickle=False) as arrays:
                    own = {name: arrays[name] for name in arrays.files}
                found.setdefault(arm, {})[int(path.stem.rsplit("-", 1)[1])] = own
        return cls(data, found)

    @property
    def clusters(self) -> Ints:
        """The title of each test product, by number."""
        numbers: dict[str, int] = {}
        titles = (normalise_title(title) for title in self.data.test.titles)
        return np.array([numbers.setdefault(title, len(numbers)) for title in titles], np.int64)

    def runs(self, arm: str, condition: str) -> dict[int, Run]:
        """The calibrated predictions of each seed on a version of the test set."""
        return {
            seed: {name: self._predictions(own, condition, name) for name in ATTRIBUTES}
            for seed, own in self.answers[arm].items()
        }

    def measures(self, arm: str, condition: str, name: str) -> AttributeMeasures:
        """All measures of one attribute, of the first seed."""
        own = next(iter(self.answers[arm].values()))
        calibration = calibrate(*self._held_out(own, condition, name))
        predictions = self._predictions(own, condition, name)
        return measure(name, predictions, self.clusters, calibration)

    def weight(self, arm: str, condition: str) -> NDArray[np.float64]:
        """lambda of each attribute on a version of the test set, float64 [seeds, n, attributes]."""
        parts = [own[f"test/{condition}/{WEIGHT}"] for own in self.answers[arm].values()]
        return np.stack(parts).astype(np.float64)

    def _held_out(
        self, own: Answers, condition: str, name: str
    ) -> tuple[NDArray[np.float32], Ints, tuple[str, ...]]:
        place = ATTRIBUTES.index(name)
        logits = own[f"validation/{_MODE_OF.get(condition, condition)}/{name}"]
        return logits, self.data.validation.labels[:, place], self.data.values[place]

    def _predictions(self, own: Answers, condition: str, name: str) -> Predictions:
        temperature = calibrate(*self._held_out(own, condition, name)).temperature
        chances = probabilities(own[f"test/{condition}/{name}"], temperature)
        return Predictions.of(chances, self.data.test.labels[:, ATTRIBUTES.index(name)])


def write_report(results: Results, out: Path, command: str) -> None:
    """Writes report.md, and its figures as JSON."""
    figures: dict[str, Any] = {}
    data = results.data
    lines = [
        "# Attribute classifiers on fashion",
        "",
        f"Trained on {len(data.train):,} products; thresholds on {len(data.validation):,}, figures "
        f"on {len(data.test):,} others, no title on two sides and none of the latter two seen by "
        "`builtin`. Intervals are 95% over titles; seeds are averaged, not drawn.",
        "",
        f"    {command}",
        "",
    ]
    for condition, heading in (
        ("clean", "Titles as they are"),
        ("words deleted", "Titles without attribute words"),
    ):
        lines += [f"## {heading}: mean recall at 90% precision", ""]
        lines += [*_recalls(results, condition, figures), ""]
        lines += [*_differences(results, condition, figures), ""]
    lines += ["## Every measure, full CMA-CLIP and linear head, first seed", ""]
    lines += [*_measures(results, figures), ""]
    lines += ["## One side spoilt: mean recall at 90% precision, and the weight of the picture", ""]
    lines += [*_noise(results, figures), ""]
    replace_bytes(out / PAGE, "\n".join(lines).encode())
    replace_bytes(out / FIGURES, (json.dumps(figures, indent=2) + "\n").encode())


def _recalls(results: Results, condition: str, figures: dict[str, Any]) -> list[str]:
    lines = [
        f"| arm | what it is | seeds | mean | {' | '.join(ATTRIBUTES)} | by seed |",
        "|---" * (5 + len(ATTRIBUTES)) + "|",
    ]
    for arm in results.answers:
        if arm == ZERO_SHOT and condition != "clean":
            continue  # it reads no title
        found = mean_recall(list(results.runs(arm, condition).values()), results.clusters)
        figures[f"R@P90/{condition}/{arm}"] = found.to_json()
        what = ARMS.get(arm, "CLIP as it comes, by prompts, picture alone")
        seeds = " ".join(f"{value:.3f}" for value in found.runs)
        cells = " | ".join(found.row())
        lines.append(f"| {arm} | {what} | {len(found.runs)} | {cells} | {seeds} |")
    return lines


def _differences(results: Results, condition: str, figures: dict[str, Any]) -> list[str]:
    lines = [f"| full - | mean | {' | '.join(ATTRIBUTES)} |", "|---" * (2 + len(ATTRIBUTES)) + "|"]
    for arm in results.answers:
        if arm in ("full", ZERO_SHOT) or "full" not in results.answers:
            continue
        ours, theirs = results.runs("full", condition), results.runs(arm, condition)
        shared = sorted(ours.keys() & theirs.keys())
        if not shared:
            continue
        found = paired_difference(
            [ours[seed] for seed in shared], [theirs[seed] for seed in shared], results.clusters
        )
        figures[f"full - {arm}/{condition}"] = found.to_json()
        cells = [_signed(each) for each in (found.mean, *found.attributes.values())]
        lines.append(f"| {arm} | {' | '.join(cells)} |")
    return lines


def _measures(results: Results, figures: dict[str, Any]) -> list[str]:
    lines = [f"| arm | titles | {' | '.join(COLUMNS)} |", "|---" * (2 + len(COLUMNS)) + "|"]
    for arm in ("full", "linear head"):
        for condition in ("clean", "words deleted", "no title", "no picture"):
            for name in ATTRIBUTES if arm in results.answers else ():
                found = results.measures(arm, condition, name)
                figures[f"measures/{arm}/{condition}/{name}"] = found.to_json()
                lines.append(f"| {arm} | {condition} | {' | '.join(found.row())} |")
    return lines


def _noise(results: Results, figures: dict[str, Any]) -> list[str]:
    lines = [f"| arm | {' | '.join(_NOISE)} |", "|---" * (1 + len(_NOISE)) + "|"]
    for arm in (name for name in _ABLATIONS if name in results.answers):
        cells = []
        for condition in _NOISE:
            found = mean_recall(list(results.runs(arm, condition).values()), results.clusters)
            figures[f"R@P90/{condition}/{arm}"] = found.to_json()
            cells.append(f"{found.mean.mean:.3f}")
        lines.append(f"| {arm} | {' | '.join(cells)} |")
    weighing = [arm for arm in ("full", "no sequence-wise") if arm in results.answers]
    for arm in weighing:
        for place, name in enumerate(ATTRIBUTES):
            means = [float(results.weight(arm, c)[:, :, place].mean()) for c in _NOISE]
            figures[f"lambda/{arm}/{name}"] = dict(zip(_NOISE, means, strict=True))
            cells = [f"{mean:.3f}" for mean in means]
            lines.append(f"| lambda, {arm}, {name} | {' | '.join(cells)} |")
    lines += ["", "How well lambda tells the spoilt side (AUC; .5 is chance):", ""]
    lines += [f"| arm, tells | {' | '.join(ATTRIBUTES)} |", "|---" * (1 + len(ATTRIBUTES)) + "|"]
    tells = {
        "another's title from another's picture": ("other title", "other picture"),
        "another's title from clean": ("other title", "clean"),
        "words deleted from clean": ("words deleted", "clean"),
        "clean from another's picture": ("clean", "other picture"),
    }
    for arm in weighing:
        for told, (higher, lower) in tells.items():
            both = results.weight(arm, higher), results.weight(arm, lower)
            own = [_auc(*both, place) for place in range(len(ATTRIBUTES))]
            figures[f"lambda AUC/{arm}/{told}"] = dict(zip(ATTRIBUTES, own, strict=True))
            lines.append(f"| {arm}, {told} | {' | '.join(f'{auc:.3f}' for auc in own)} |")
    return lines


def _auc(higher: NDArray[np.float64], lower: NDArray[np.float64], place: int) -> float:
    """Mean over seeds, each of float64 [seeds, n, attributes]."""
    return float(
        np.mean(
            [
                separation(one[:, place], other[:, place])
                for one, other in zip(higher, lower, strict=True)
            ]
        )
    )


def _signed(interval: Interval) -> str:
    return f"{interval.mean:+.3f} [{interval.low:+.3f}, {interval.high:+.3f}]"
