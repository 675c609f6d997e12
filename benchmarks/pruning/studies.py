"""What `shoplens bench pruning` can measure: two kinds of models, drawn and real titles."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from benchmarks.pruning import albef_arms, albef_fashion, albef_toy, arms, fashion, toy
from benchmarks.pruning.report import Experiment
from benchmarks.pruning.toy_data import NOISE, VISUAL
from indexing.errors import BenchmarkError

_DRAWN_NOTE = (
    "Of each word it is known whether the picture shows it. Means over seeds (other "
    "training catalogs and orders; one start, one test set) with Student's 95% intervals. "
    "Titles are asked as the model reads them: the oracle's without their noise."
)
_DRAWN_TASKS = {
    "picture": "another view → picture on white",
    "title": "noisy title → picture",
    "clean": "clean title → picture",
}
_REAL_KINDS = ["colour", "type", "shared", "audience", "brand", "rare"]
_ALBEF_PAIRS = [
    *((arm, "standard") for arm in albef_arms.ARMS if arm != "standard"),
    ("all", "cross"),
    ("all", "random drop"),
    ("cross", "cross mean key"),
    ("all", "all mean key"),
    ("second standard", "standard"),
    ("second cross", "second standard"),
    ("second all", "second standard"),
]
_ALBEF_SECOND = {
    f"second {arm}": f"{arm}, from the model of standard" for arm in ("standard", "cross", "all")
}


@dataclass(frozen=True)
class Study:
    """What is measured, how, and where it goes.

    Attributes:
        folder: its own within the folder of all.
        reference: the arm whose share of kept tokens the controls keep.
        prepare: writes the start of all arms to the folder.
        runner: for a folder, what runs an arm; can be sent to other processes.
    """

    folder: str
    experiment: Experiment
    reference: str
    prepare: Callable[[Path], None]
    runner: Callable[[Path], Callable[[str, int, float], dict[str, Any]]]


def study_of(model: str, data: Path | None) -> Study:
    """The study of this model, on drawn titles or on the real ones in `data`.

    Raises:
        BenchmarkError: There is none.
    """
    if model not in ("clip", "albef"):
        raise BenchmarkError(f"--model {model}: give clip or albef")
    if model == "clip":
        return _clip_drawn() if data is None else _clip_real(data)
    return _albef_drawn() if data is None else _albef_real(data)


def _clip_drawn() -> Study:
    experiment = Experiment(
        title="Token pruning on drawn products",
        note=_DRAWN_NOTE,
        tasks=_DRAWN_TASKS,
        arms=arms.ARMS,
        pairs=[
            *((arm, "standard") for arm in arms.ARMS if arm != "standard"),
            *(("calibrated", arm) for arm in (*arms.CONTROLS, "online")),
        ],
        kinds=[*VISUAL, *NOISE],
    )
    return Study(
        "drawn",
        experiment,
        "calibrated",
        lambda out: toy.make_start(out / "start"),
        lambda out: partial(toy.run_arm, start=out / "start"),
    )


def _clip_real(data: Path) -> Study:
    second = {
        f"second {arm}": f"{arm}, from the model of standard" for arm in ("standard", "calibrated")
    }
    experiment = Experiment(
        title="Token pruning on real titles",
        note="Myntra titles begin with the brand, the noise. Means over seeds (other orders; one "
        "start) with Student's 95% intervals; they do not cover other catalogs. Of `picture` "
        "the training set holds nothing: phone photos of groceries.",
        tasks={
            "title": "unseen title → picture (5,000 products)",
            "picture": "grocery, phone photo → iconic picture",
        },
        arms={**arms.ARMS, **second},
        pairs=[
            *((arm, "standard") for arm in arms.ARMS if arm != "standard"),
            ("calibrated", "random drop"),
            ("calibrated", "truncated"),
            ("second calibrated", "second standard"),
        ],
        kinds=_REAL_KINDS,
    )
    return Study(
        "real",
        experiment,
        "calibrated",
        partial(fashion.prepare, data),
        lambda out: partial(fashion.run_arm, data=data, work=out),
    )


def _albef_drawn() -> Study:
    experiment = Experiment(
        title="Token pruning with ALBEF on drawn products",
        note=_DRAWN_NOTE,
        tasks=_DRAWN_TASKS,
        arms={**albef_arms.ARMS, **_ALBEF_SECOND},
        pairs=_ALBEF_PAIRS,
        kinds=[*VISUAL, *NOISE],
        ours=("all", "cross"),
    )
    return Study(
        "drawn-albef",
        experiment,
        "all",
        lambda out: albef_toy.make_start(out / "start"),
        lambda out: partial(albef_toy.run_arm, start=out / "start"),
    )


def _albef_real(data: Path) -> Study:
    experiment = Experiment(
        title="Token pruning with ALBEF on real titles",
        note="Myntra titles begin with the brand, the noise. Means over seeds (other 6,000 "
        "training pairs; one start, one test set) with Student's 95% intervals.",
        tasks={"title": "unseen title → picture (5,000 products)"},
        arms={**albef_arms.ARMS, **_ALBEF_SECOND},
        pairs=_ALBEF_PAIRS,
        kinds=_REAL_KINDS,
        ours=("all", "cross"),
    )
    return Study(
        "real-albef",
        experiment,
        "all",
        partial(albef_fashion.prepare, data),
        lambda out: partial(albef_fashion.run_arm, data=data, work=out),
    )
