"""Studies: whether what each says of itself agrees."""

from __future__ import annotations

from functools import partial
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest

from benchmarks.pruning import albef_arms, albef_fashion, albef_toy, arms, fashion, toy
from benchmarks.pruning.arms import CONTROLS
from benchmarks.pruning.studies import Study, study_of
from benchmarks.pruning.toy_data import NOISE, VISUAL
from indexing.errors import BenchmarkError

DATA = Path("data")
KEYS = [("clip", None), ("clip", DATA), ("albef", None), ("albef", DATA)]
STUDIES = {study.folder: study for study in (study_of(*key) for key in KEYS)}
RUNS: dict[str, tuple[Any, dict[str, Path]]] = {
    "drawn": (toy.run_arm, {"start": Path("out/start")}),
    "real": (fashion.run_arm, {"data": DATA, "work": Path("out")}),
    "drawn-albef": (albef_toy.run_arm, {"start": Path("out/start")}),
    "real-albef": (albef_fashion.run_arm, {"data": DATA, "work": Path("out")}),
}


@pytest.fixture(params=STUDIES)
def study(request: pytest.FixtureRequest) -> Study:
    return STUDIES[request.param]


def test_each_model_and_each_kind_of_titles_has_a_folder_of_its_own() -> None:
    assert STUDIES.keys() == RUNS.keys()


@pytest.mark.parametrize("data", [None, DATA])
@pytest.mark.parametrize("model", ["blip", "", "CLIP"])
def test_an_unknown_model_is_refused(model: str, data: Path | None) -> None:
    with pytest.raises(BenchmarkError, match=f"^--model {model}: give clip or albef$"):
        study_of(model, data)


def test_every_arm_that_is_named_is_there(study: Study) -> None:
    experiment = study.experiment
    assert {arm for pair in experiment.pairs for arm in pair} <= experiment.arms.keys()
    assert {study.reference, "standard"} <= experiment.arms.keys()
    assert experiment.ours[0] in experiment.arms
    assert all(arm != other for arm, other in experiment.pairs)
    assert len(set(experiment.pairs)) == len(experiment.pairs)


def test_every_arm_is_compared_with_standard_or_with_its_own_stage(study: Study) -> None:
    compared = dict(reversed(study.experiment.pairs))
    for arm in study.experiment.arms.keys() - {"standard", "second standard"}:
        stage = "second standard" if arm.startswith("second ") else "standard"
        assert compared[arm] == stage


def test_the_command_can_name_every_arm(study: Study) -> None:
    assert not any("," in arm or arm != arm.strip() for arm in study.experiment.arms)


def test_second_stages_and_controls_are_of_known_arms(study: Study) -> None:
    known = albef_arms.ARMS if study.folder.endswith("albef") else arms.ARMS
    firsts = [arm for arm in study.experiment.arms if not arm.startswith("second ")]
    assert firsts == list(known)
    for arm in study.experiment.arms:
        assert arm.removeprefix("second ") in known
    assert "random drop" in CONTROLS
    assert study.reference not in CONTROLS


def test_drawn_words_have_the_kinds_of_the_toy() -> None:
    for folder in ("drawn", "drawn-albef"):
        assert STUDIES[folder].experiment.kinds == [*VISUAL, *NOISE]


def test_a_runner_can_be_sent_to_another_process(study: Study) -> None:
    runner = study.runner(Path("out"))
    assert isinstance(runner, partial)
    assert (runner.func, runner.args, runner.keywords) == (
        RUNS[study.folder][0],
        (),
        RUNS[study.folder][1],
    )
    found = getattr(import_module(runner.func.__module__), runner.func.__qualname__)
    assert found is runner.func


def test_the_start_is_made_where_the_command_looks_for_it(
    study: Study, monkeypatch: pytest.MonkeyPatch
) -> None:
    made: list[tuple[object, ...]] = []
    for module in (toy, albef_toy):
        monkeypatch.setattr(module, "make_start", lambda *given: made.append(given))
    study = study_of(*KEYS[list(STUDIES).index(study.folder)])
    if study.folder.startswith("drawn"):
        study.prepare(Path("out"))
        assert made == [(Path("out/start"),)]
    else:
        prepare: Any = study.prepare
        module = albef_fashion if study.folder == "real-albef" else fashion
        assert (prepare.func, prepare.args) == (module.prepare, (DATA,))
