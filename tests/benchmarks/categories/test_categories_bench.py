"""The study of categorisers: its parts, its measures by hand, and all of it in small."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image, ImageColor
from safetensors.torch import load_file
from typer.testing import CliRunner

from benchmarks.categories import study
from benchmarks.categories.data import ENDS, LABEL, Data, head_of, read_data
from benchmarks.categories.measures import MEASURES, figures, measured
from benchmarks.categories.report import FIGURES, PAGE, PLOT, Answers, write_report
from benchmarks.categories.study import ARMS, FRACTIONS, RECIPES, Tuning, best
from benchmarks.pruning.paired import t_interval
from indexing.catalog.product import ProductImage
from indexing.errors import BenchmarkError
from indexing.models.categorizer.network import TitleEncoder
from indexing.titles import normalise_title
from shoplens import app
from tests.training.conftest import COLOURS, CONVOLUTIONAL, NOISE, make_encoder
from training.categories.config import TuneConfig
from training.categories.data import Examples
from training.categories.new import new_encoder
from training.data import Pairs

VISION = {**CONVOLUTIONAL, "timm_proj_bias": True}
SIZE = {
    **{"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2},
    **{"intermediate_size": 32, "max_position_embeddings": 64},
}


@pytest.fixture(autouse=True, scope="module")
def one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def shop(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A `fashion` of 320 products whose titles name their colour, which is their kind."""
    folder = tmp_path_factory.mktemp("data") / "fashion"
    folder.mkdir()
    rng = np.random.default_rng(0)
    for colour in COLOURS:
        Image.new("RGB", (32, 32), ImageColor.getrgb(colour)[:3]).save(folder / f"{colour}.png")
    with (folder / "catalog.csv").open("w", newline="") as file:
        rows = csv.writer(file)
        rows.writerow(["id", "title", LABEL, "image"])
        for number in range(320):
            colour = COLOURS[int(len(COLOURS) * rng.random() ** 2)]
            words = [*rng.choice(NOISE, 2), colour, str(number % 150)]
            rows.writerow([number, " ".join(words), f"{colour} things", f"{colour}.png"])
    return folder.parent


def test_parts_share_no_title_and_have_their_sizes(shop: Path) -> None:
    data = read_data(shop)
    sides = [data.unlabelled, data.train.pairs, data.validation.pairs, data.test.pairs]
    titles = [set(map(normalise_title, side.titles)) for side in sides]
    assert sum(map(len, titles)) == len(set.union(*titles))
    assert sum(map(len, sides)) == 320
    for side, low, high in zip(sides, (0, *ENDS), ENDS, strict=False):
        assert len(side) / 320 == pytest.approx(high - low, abs=0.08)
    products = [product for side in sides for product in side.products]
    assert len(set(products)) == 320


def test_parts_of_the_labels_are_nested_and_drawn_by_seed(shop: Path) -> None:
    data = read_data(shop)
    for seed in range(2):
        before: set[str] = set()
        for percent in FRACTIONS:
            own = set(data.part(percent, seed).pairs.products)
            assert before <= own
            assert len(own) == pytest.approx(len(data.train) * percent / 100, abs=12)
            before = own
        assert before == set(data.train.pairs.products)
    assert data.part(50, 0).pairs.products != data.part(50, 1).pairs.products


@pytest.mark.parametrize(
    ("counts", "head"),
    [
        ([50, 30, 20], [True, True, False]),  # exactly 80%
        ([50, 29, 21], [True, True, True]),
        ([1, 99], [False, True]),
        ([5, 0, 5], [True, False, True]),
    ],
)
def test_the_head_holds_most_products(counts: list[int], head: list[bool]) -> None:
    assert head_of(counts).tolist() == head


def made(count: int = 60, seed: int = 0) -> Data:
    """Five categories of which one is not in the test set; titles of two products each."""
    rng = np.random.default_rng(seed)
    titles = [f"title {number // 2}" for number in range(count)]
    pictures = [ProductImage(location=f"{number}.png") for number in range(count)]
    products = [str(number) for number in range(count)]
    pairs = Pairs(pictures, titles, np.arange(count) // 2, products)
    own = Examples(pairs, rng.integers(0, 4, count))
    head = np.array([True, True, False, False, False])
    return Data(tuple("abcde"), pairs, own, own, own, head)


def predictions(data: Data, seed: int, right: float) -> np.ndarray[Any, Any]:
    rng = np.random.default_rng(seed)
    gold = data.test.labels
    return np.where(rng.random(len(gold)) < right, gold, rng.integers(0, 5, len(gold)))


def by_hand(gold: np.ndarray[Any, Any], own: np.ndarray[Any, Any]) -> list[float]:
    """The measures, one category after the other."""
    f1: dict[int, float] = {}
    for each in set(gold.tolist()):
        hits = sum(g == each == o for g, o in zip(gold, own, strict=True))
        precision = hits / max(1, sum(o == each for o in own))
        recall = hits / sum(g == each for g in gold)
        f1[each] = 2 * precision * recall / (precision + recall) if hits else 0.0
    head, tail = [f1[each] for each in f1 if each < 2], [f1[each] for each in f1 if each >= 2]
    means = [float(np.mean(part)) for part in (list(f1.values()), head, tail)]
    return [float(np.mean(gold == own)), *means]


def test_measures_are_those_of_plain_loops() -> None:
    data = made()
    own = predictions(data, 1, 0.6)
    times = np.ones((2, 60))
    times[1, :30] = 0  # a resample that has some products twice, and others not
    times[1, 30:] = 2
    found = measured(own, data, times)
    np.testing.assert_allclose(found[0], by_hand(data.test.labels, own))
    np.testing.assert_allclose(found[1], by_hand(data.test.labels[30:], own[30:]))


def test_gains_are_paired_over_titles_and_over_seeds() -> None:
    data = made()
    ours = [predictions(data, seed, 0.8) for seed in range(3)]
    theirs = [predictions(data, seed + 9, 0.5) for seed in range(3)]
    found = figures(ours, theirs, data, resamples=300)
    gold = data.test.labels
    gains = np.array(
        [
            np.subtract(by_hand(gold, one), by_hand(gold, other))
            for one, other in zip(ours, theirs, strict=True)
        ]
    )
    for place, name in enumerate(MEASURES):
        assert found[name].titles.mean == pytest.approx(gains[:, place].mean())
        expected = t_interval(gains[:, place].tolist())
        assert found[name].seeds.low == pytest.approx(expected.low)
        assert found[name].titles.low < found[name].titles.mean < found[name].titles.high
    # Its own figures lie within their intervals, though resamples lack rare categories.
    for own in figures(ours, None, data, resamples=300).values():
        assert own.titles.low < own.titles.mean < own.titles.high
    # The same answers differ by nothing, whatever titles are drawn.
    same = figures(ours, ours, data, resamples=50)["accuracy"].titles
    assert (same.mean, same.low, same.high) == (0, 0, 0)


def test_recipes_are_chosen_on_validation_by_the_first_seed() -> None:
    def result(name: str, seed: int, validation: float) -> dict[str, Any]:
        return {"arm": name, "seed": seed, "validation": validation, "accuracy": 1 - validation}

    results = [
        result("origin 5% gentle", 0, 0.6), result("origin 5% firm", 0, 0.7),
        result("origin 5% gentle", 1, 0.9), result("convirt 5% gentle", 0, 0.8),
        result("convirt 5% firm", 0, 0.7),
    ]  # fmt: skip
    assert best(results) == ["origin 5% firm", "convirt 5% gentle"]
    for name in best(results):
        assert str(Tuning.of(name)) == name


def test_the_page_says_what_is_gained(tmp_path: Path) -> None:
    data = made()
    tunings = [
        {"arm": f"{arm} {percent}% firm", "seed": seed,
         "predicted": predictions(data, seed, right).tolist()}
        for arm, right in (("origin", 0.4), ("simcse", 0.4), ("convirt", 0.9))
        for percent in (5, 100)
        for seed in range(2)
    ]  # fmt: skip
    adaptations = [
        {"arm": "convirt", "seed": 0, "rounds": [
            {"loss": 2.0, "title -> picture R@1": 0.1, "title -> picture R@10": 0.2}]},
    ]  # fmt: skip
    write_report(tunings, adaptations, data, tmp_path, "shoplens bench categories")
    page = (tmp_path / PAGE).read_text()
    told = json.loads((tmp_path / FIGURES).read_text())
    ours = Answers.read(tunings).gains("convirt", "origin", 5, data)
    assert ours is not None
    gain = ours["accuracy"].titles
    assert gain.low > 0
    name = "convirt \N{MINUS SIGN} origin"
    assert f"| 5% | {name} | {gain.mean:+.3f} [{gain.low:+.3f}, {gain.high:+.3f}]" in page
    found = told["gains"][f"{name} 5%"]["accuracy"]["titles"]["mean"]
    assert found == pytest.approx(gain.mean)
    assert "| Beauty, printed | 5% | 0.526 | 0.525 (-0.001) | 0.599 (+0.073) |" in page
    assert "| convirt | 0 | 2.000 | 0.100 | 0.200 |" in page
    assert "| fashion, here | 5% |" in page
    assert "| 100% | simcse (firm) | 2 |" in page
    with Image.open(tmp_path / PLOT) as plot:
        assert plot.width > 500


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, shop: Path) -> Path:
    """All of the study in small; gives its folder."""
    titles = read_data(shop).unlabelled.titles
    start: Callable[[], TitleEncoder] = lambda: new_encoder(  # noqa: E731
        titles, SIZE, tmp_path / "tokenizer.json", seed=0
    )
    (tmp_path / "tiny").mkdir()
    monkeypatch.setattr(study, "start_encoder", start)
    monkeypatch.setattr(
        study, "_pictures_encoder", lambda work: make_encoder(tmp_path / "tiny", VISION)
    )
    quick = {"epochs": 2, "batch_size": 16}
    monkeypatch.setattr(study, "ADAPT", study.ADAPT.model_copy(update=quick))
    monkeypatch.setattr(study, "SIMCSE", study.SIMCSE.model_copy(update=quick))
    for name in ("CLEANER_START", "CLEANER"):
        quick = {"epochs": 1, "batch_size": 32}
        monkeypatch.setattr(study, name, getattr(study, name).model_copy(update=quick))
    monkeypatch.setattr(study, "MASK_STEPS", 4)
    monkeypatch.setattr(study, "STEPS", dict.fromkeys(FRACTIONS, 40))
    tune = TuneConfig(epochs=2, batch_size=16, learning_rate=3e-3)
    monkeypatch.setattr(study, "RECIPES", dict.fromkeys(RECIPES, tune))
    (tmp_path / "work").mkdir()
    return tmp_path / "work"


def test_the_study_in_small(small: Path, shop: Path) -> None:
    study.prepare(ARMS, shop, small)
    written = (small / "cleaned.json").read_bytes()
    assert len(json.loads(written)) == len(read_data(shop).unlabelled)
    study.prepare(ARMS, shop, small)  # does nothing that is done
    assert (small / "cleaned.json").read_bytes() == written
    for arm in ("simcse", "convirt", "convirt+mmltp"):
        adapted = study.run_adaptation(arm, 1, 1.0, shop, small)
        assert len(adapted["rounds"]) == 2
        assert ("title -> picture R@1" in adapted["rounds"][0]) is (arm != "simcse")
        found = study.run_tuning(f"{arm} 100% firm", 1, 1.0, shop, small)
        assert json.loads(json.dumps(found)) == found
    origin = study.run_tuning("origin 100% firm", 1, 1.0, shop, small)
    assert origin == study.run_tuning("origin 100% firm", 1, 1.0, shop, small)
    assert origin["products"] == len(read_data(shop).train)
    gold = read_data(shop).test.labels
    assert origin["accuracy"] == pytest.approx(np.mean(np.array(origin["predicted"]) == gold))
    start = study.start_encoder().state_dict()
    for arm in ("simcse", "convirt"):
        held = load_file(small / f"{arm}-1.safetensors")
        assert held.keys() == start.keys()
        assert any(not torch.equal(held[key], start[key]) for key in held)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--arms", "origin,moco"], "unknown arm 'moco': give some of origin, simcse"),
        (["--fractions", "7"], "unknown fraction '7': give some of 5, 10"),
        (["--arms", "convirt"], "add it to --arms"),
    ],
)
def test_what_cannot_be_done_is_said(tmp_path: Path, options: list[str], said: str) -> None:
    line = ["bench", "categories", "--data", str(tmp_path), "--out", str(tmp_path / "o"), *options]
    result = CliRunner().invoke(app, line)
    assert isinstance(result.exception, BenchmarkError)
    assert said in str(result.exception)
