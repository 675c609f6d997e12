"""The loss experiment: its measures in closed form, its intervals, its page and a small run."""

from __future__ import annotations

import json
import math
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from typer.testing import CliRunner

import shoplens
from benchmarks.losses import study
from benchmarks.losses.cost import Cost, measure_costs
from benchmarks.losses.report import findings, gain, losses_of, write_report
from benchmarks.pruning import toy
from benchmarks.statistics import cluster_bootstrap
from indexing.errors import BenchmarkError
from training.config import TrainConfig
from training.losses import LOSSES


def test_the_shape_of_a_space_in_closed_form() -> None:
    """Pictures east and north, titles west and north: means (.5, .5) and (-.5, .5)."""
    pictures = np.array([[1, 0], [0, 1]], np.float32)
    titles = np.array([[-1, 0], [0, 1]], np.float32)
    found = study.shape_of(pictures, titles)
    assert found["gap"] == pytest.approx(1)
    assert found["alignment"] == pytest.approx((4 + 0) / 2)
    assert found["uniformity"] == pytest.approx(-2 * 2)  # one pair, at a squared distance of 2


def test_pictures_and_titles_can_be_told_apart_where_a_plane_lies_between() -> None:
    rows = np.random.default_rng(0).standard_normal((200, 3)).astype(np.float32)
    aside = np.array([9, 0, 0], np.float32)
    for titles, expected in ((rows + aside, 1.0), (rows, 0.5)):
        found = study.shape_of(rows - aside * (expected == 1), titles)
        assert found["separability"] == expected
    # A quarter of the titles lie among the pictures.
    mixed = np.where(np.arange(200)[:, None] % 8 < 2, rows - aside, rows + aside)
    assert study.shape_of(rows - aside, mixed)["separability"] == pytest.approx(7 / 8)


def result(arm: str, seed: int, pictures: list[float], titles: list[float]) -> dict[str, Any]:
    shape = {"gap": 0.5, "separability": 0.9, "alignment": 1, "uniformity": -2}
    found: dict[str, Any] = {"arm": arm, "seed": seed, **shape}
    for name, ranks in (("picture", pictures), ("title", titles)):
        found[f"{name} ranks"] = ranks
        found |= {f"{name} R@{k}": float(np.mean(np.array(ranks) <= k)) for k in (1, 5, 10)}
    return found


@pytest.fixture
def results() -> list[dict[str, Any]]:
    """Three products, two further views each; seed 1 has no InfoNCE."""
    return [
        result("infonce / one", 0, [1, 7, 9, 2, 30, 3], [1, 2, 3]),
        result("siglip / one", 0, [1, 2, 9, 2, 5, 30], [1, 1, 1]),
        result("infonce / one", 2, [9, 9, 9, 9, 9, 9], [1, 2, 3]),
        result("siglip / one", 2, [9, 9, 1, 9, 9, 9], [4, 2, 3]),
        result("siglip / one", 1, [1, 1, 1, 1, 1, 1], [1, 1, 1]),
    ]


def test_a_gain_is_over_products_with_seeds_averaged_and_over_seeds(
    results: list[dict[str, Any]],
) -> None:
    found = gain(results, "one", "siglip", "picture", 5)
    assert found is not None
    changes = np.array([[0, 1, 0, 0, 1, -1], [0, 0, 1, 0, 0, 0]], float)
    expected = cluster_bootstrap(changes.mean(0), np.array([0, 0, 1, 1, 2, 2]))
    assert found[0] == expected
    assert found[1].mean == pytest.approx(1 / 6)
    # Both seeds gain a sixth: Student's interval has no width.
    assert found[1].low == pytest.approx(found[1].high)
    assert gain(results, "one", "cua", "picture", 5) is None


def test_the_page_says_what_was_measured(tmp_path: Path, results: list[dict[str, Any]]) -> None:
    assert losses_of(results, "one") == ["infonce", "siglip"]
    assert losses_of(results, "several") == []
    costs = [Cost("siglip", 256, (1.5, 2.5, 2.0), 3_000_000)]
    start = result("start", 0, [1, 3, 7, 20, 20, 20], [9, 9, 9])
    del results[1]["separability"]  # as an older version wrote its lines
    write_report(results, start, costs, tmp_path, "shoplens bench losses")
    page = (tmp_path / "report.md").read_text()
    assert "| start |  | 0.167 | 0.333 | 0.500 |  |  |  |" in page
    assert "| siglip | 0.50 | 0.90 | 1.00 | -2.00 |" in page
    assert "| siglip | 3 | 0.444 | 0.611 | 0.944 |" in page
    assert "| infonce | 2 | 0.083 | 0.250 | 0.917 |  |  |  |" in page
    assert "+0.167 [" in page
    assert "| siglip | 256 | 2.00 [1.50, 2.50] | 3 |" in page
    assert "several" not in page
    assert (tmp_path / "losses.png").read_bytes().startswith(b"\x89PNG")


def test_findings_name_what_both_intervals_rule_on(results: list[dict[str, Any]]) -> None:
    """Of 80 pictures InfoNCE finds 20 in either seed, CUA 70, AUC none; SigLIP more in one seed
    and fewer in the other."""
    found, far = [], [9.0] * 80
    for seed in (0, 1):
        ranks = {"infonce": [1.0] * 20 + [9.0] * 60, "cua": [1.0] * 70 + [9.0] * 10, "auc": far}
        ranks["siglip"] = [1.0] * (40 if seed else 10) + [9.0] * (40 if seed else 70)
        for loss, pictures in ranks.items():
            found.append(result(f"{loss} / several", seed, pictures, [1.0] * 40))
    [line, idle, titles] = findings(found, result("start", 0, far, [1.0] * 20 + far[:20]))[2:5]
    assert line.startswith("- several; another view → picture on white: better than InfoNCE: cua +")
    assert "cua +0.625 [" in line
    assert "; worse than InfoNCE: auc -0.250 [" in line
    assert "siglip" not in line
    assert line.endswith("(of 3).")
    assert idle == "  No better than the start (0.000): auc."
    assert "better than InfoNCE: none; worse than InfoNCE: none (of 3)." in titles


def test_costs_are_beside_infonce_and_know_of_the_matrices_that_a_loss_holds() -> None:
    infonce, gap = measure_costs(["infonce", "cua"], 64, rounds=3)
    assert (infonce.batch, len(infonce.ratios)) == (64, 3)
    assert all(ratio > 0 for ratio in infonce.ratios)
    # Two gradients of 64 x 512 and scores of 64 x 64, all float32, at the least.
    assert infonce.memory > 4 * (2 * 64 * study_dim() + 64 * 64)
    assert gap.memory > infonce.memory  # cosines between pictures and between titles, too


def study_dim() -> int:
    from benchmarks.losses.cost import DIM

    return DIM


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """An experiment of seconds; gives the folder of its start."""
    monkeypatch.setattr(study, "TRAIN", 24)
    monkeypatch.setattr(study, "TEST", 10)
    monkeypatch.setattr(study, "MASK_STEPS", 2)
    monkeypatch.setattr(study, "EPOCHS", 6)
    monkeypatch.setattr(study, "CONFIG", TrainConfig(batch_size=12, learning_rate=1e-3))
    monkeypatch.setattr(toy, "PUBLIC", 250)
    monkeypatch.setattr(toy, "START", TrainConfig(epochs=1, batch_size=250))
    toy.make_start(tmp_path / "start")
    return tmp_path / "start"


@pytest.mark.parametrize("condition", study.CONDITIONS)
def test_a_run_sees_as_many_pairs_whatever_the_pictures_and_can_be_repeated(
    small: Path, condition: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[Any] = []
    real = study.train_clip

    def noting(encoder: Any, pairs: Any, images: Any, *rest: Any) -> Any:
        seen.append((len(pairs), rest[-1], len(set(pairs.products))))
        return real(encoder, pairs, images, *rest)

    monkeypatch.setattr(study, "train_clip", noting)
    threads = torch.get_num_threads()
    try:
        first, again = (study.run_arm(f"mv-infonce / {condition}", 4, 1.0, small) for _ in range(2))
    finally:
        torch.set_num_threads(threads)
    assert first == again
    [(pairs, config, products), _] = seen
    assert pairs * config.epochs == 24 * study.EPOCHS
    assert products == 24
    assert config.views == (2 if condition.startswith("several") else 1)
    assert config.mask_steps == (2 if condition.endswith("MML-TP") else 0)
    assert len(first["picture ranks"]) == 20
    assert first["picture R@5"] == np.mean(np.array(first["picture ranks"]) <= 5)
    assert math.isfinite(first["uniformity"])
    json.dumps(first)


def test_every_loss_is_tried_under_every_condition() -> None:
    assert len(study.ARMS) == (len(LOSSES) + 1) * len(study.CONDITIONS)
    assert study.ARMS["sogclr / several, MML-TP"] == ("sogclr", "several, MML-TP")


def test_the_control_is_infonce_with_its_scale_held(small: Path) -> None:
    held = study.train(study.HELD, study.CONDITIONS["one"], 0, small)
    free = study.train("infonce", study.CONDITIONS["one"], 0, small)
    assert held.model.logit_scale.exp().item() == pytest.approx(10)
    assert free.model.logit_scale.exp().item() != pytest.approx(10, abs=0.1)


def test_products_are_drawn_once(small: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    drawn = partial(study.drawn, 5, 9, small.parent)
    first = drawn()
    monkeypatch.setattr(study, "draw_products", None)
    np.testing.assert_array_equal(drawn().pictures, first.pictures)
    assert drawn().titles == first.titles


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--losses", "infonce;clip"], "unknown loss 'clip': give some of infonce;siglip"),
        (["--conditions", "two"], "unknown condition 'two': give some of one;several;one, MML-TP"),
    ],
)
def test_names_that_are_none_are_named(options: list[str], message: str, tmp_path: Path) -> None:
    out = str(tmp_path / "out")
    run = CliRunner().invoke(shoplens.app, ["bench", "losses", "--out", out, *options])
    assert isinstance(run.exception, BenchmarkError)
    assert message in str(run.exception)
    assert not Path(out).exists()
