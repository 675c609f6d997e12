"""Comparing indexes: the recall rule, what is stored, the report and the command."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
import pytest
import typer
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from typer.testing import CliRunner, Result

from benchmarks.ann import exact_scores, measure
from benchmarks.ann_cli import ann
from benchmarks.ann_data import IN, Dataset, synthetic
from benchmarks.ann_report import PAGE, PLOT, REPORT, Point, fastest, read_points, recalled, score
from benchmarks.ann_systems import SYSTEMS
from benchmarks.statistics import Interval
from benchmarks.timing import Spread
from indexing.errors import BenchmarkError, MissingDependencyError


class TestRecallRule:
    def test_ties_at_the_boundary_count_each_and_worse_answers_do_not(self) -> None:
        # The exact scores are 1, .9, .9, .9, .5: any two of the three tied ones are right.
        scores = np.array([1.0, 0.9, 0.9, 0.9, 0.5], np.float32)
        rows = np.array([[0, 1, 2], [0, 3, 1], [2, 3, 4], [4, -1, -1], [0, 1, 1]])
        found = np.where(rows < 0, -np.inf, scores[rows]).astype(np.float32)
        kth = np.full(5, 0.9, np.float32)
        expected = [1.0, 1.0, 2 / 3, 0.0, 2 / 3]
        assert recalled(rows, found, kth).tolist() == pytest.approx(expected)

    def test_rounding_makes_no_answer_wrong_and_a_millionth_more_does(self) -> None:
        rows = np.array([[0], [0]])
        found = np.array([[0.5 - 4e-7], [0.5 - 4e-6]], np.float32)
        assert recalled(rows, found, np.full(2, 0.5, np.float32)).tolist() == [1.0, 0.0]

    @given(st.integers(0, 2**32 - 1), st.integers(1, 12))
    def test_without_ties_it_is_the_overlap_of_the_answers(self, seed: int, k: int) -> None:
        rng = np.random.default_rng(seed)
        scores = rng.permutation(30).astype(np.float32)
        answered = rng.permutation(30)[:k][np.newaxis]
        best = np.argsort(-scores)[:k]
        share = len(set(answered[0]) & set(best)) / k
        assert recalled(answered, scores[answered], scores[best[-1:]])[0] == pytest.approx(share)

    def test_exact_scores_are_inner_products_and_nothing_for_no_row(self) -> None:
        rng = np.random.default_rng(0)
        vectors, queries = (rng.standard_normal((n, 8)).astype(np.float32) for n in (20, 300))
        rows = rng.integers(-1, 20, (300, 4))
        products = queries.astype(np.float64) @ vectors.T.astype(np.float64)
        expected = np.where(rows < 0, -np.inf, np.take_along_axis(products, rows % 20, axis=1))
        assert exact_scores(vectors, queries, rows) == pytest.approx(expected, rel=1e-6)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Dataset]:
    folder = tmp_path_factory.mktemp("ann") / "out"
    data = synthetic(1000, 16, 30)
    measure(data, folder, ["exact", "faiss-ivf"], rounds=2)
    return folder, data


class TestMeasureAndScore:
    def test_stored_answers_score_as_a_search_does(self, run: tuple[Path, Dataset]) -> None:
        """Nothing is tied here, so recall is the overlap with the answers of brute force."""
        folder, data = run
        system = SYSTEMS["faiss-ivf"]()
        system.build(data.vectors, 1)
        _, points = read_points(folder)
        for point in points:
            if point.system == "faiss-ivf":
                queries = data.queries[point.queries]
                best = np.argsort(-(queries @ data.vectors.T), axis=1)[:, :10]
                system.use(point.setting, 1)
                found = system.search(queries, 10)
                shared = [len(set(a) & set(b)) / 10 for a, b in zip(best, found, strict=True)]
                assert point.recall.mean == pytest.approx(np.mean(shared))
            else:
                assert point.recall == Interval(1.0, 1.0, 1.0)
        assert len(points) == 2 * (1 + len(system.settings))

    def test_all_rounds_are_kept_and_the_figures_are_their_medians(
        self, run: tuple[Path, Dataset]
    ) -> None:
        timings, points = read_points(run[0])
        for point, stored in zip(points, timings.runs, strict=True):
            for threads, seconds in stored.batch_seconds.items():
                assert len(seconds) == 2
                assert point.qps[threads].median == pytest.approx(
                    np.mean([30 / value for value in seconds])
                )
            assert point.p99_ms.median == pytest.approx(1000 * np.mean(stored.p99))
            assert np.all(np.array(stored.p50) <= stored.p99)

    def test_the_size_is_that_of_the_saved_index(self, run: tuple[Path, Dataset]) -> None:
        timings, _ = read_points(run[0])
        assert timings.systems["exact"].saved_bytes == pytest.approx(1000 * 16 * 4, abs=100)

    def test_the_report_is_made_again_from_the_files_alone(
        self, run: tuple[Path, Dataset], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        folder, _ = run
        monkeypatch.setattr("benchmarks.ann.SYSTEMS", {})
        points = score(folder)
        first = {name: (folder / name).read_bytes() for name in (REPORT, PAGE, PLOT)}
        score(folder)
        assert first == {name: (folder / name).read_bytes() for name in first}
        with Image.open(folder / PLOT) as plot:
            assert plot.format == "PNG"
        stored = json.loads(first[REPORT])["points"]
        assert [point["recall"]["mean"] for point in stored] == [p.recall.mean for p in points]
        page = first[PAGE].decode()
        assert "| exact | default | 1.000 [1.000, 1.000] |" in page
        assert "1,000 synthetic vectors of 16 numbers, seed 0." in page

    def test_what_is_missing_is_skipped_unless_it_was_asked_for(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setitem(sys.modules, "hnswlib", None)
        chosen = {name: SYSTEMS[name] for name in ("exact", "hnswlib")}
        monkeypatch.setattr("benchmarks.ann.SYSTEMS", chosen)
        data, notes = synthetic(1000, 8, 2), list[str]()
        timings = measure(data, tmp_path, rounds=1, note=notes.append)
        assert list(timings.systems) == ["exact"]
        assert timings.skipped == {"hnswlib": "hnswlib is not installed: run `pip install hnswlib`"}
        assert any(line.startswith("hnswlib: skipped") for line in notes)
        with pytest.raises(MissingDependencyError, match="pip install hnswlib"):
            measure(data, tmp_path, ["hnswlib"], rounds=1)

    def test_an_unknown_name_is_refused_with_those_there_are(self, tmp_path: Path) -> None:
        with pytest.raises(BenchmarkError, match=r"unknown system 'annoy': give some of exact, "):
            measure(synthetic(1000, 8, 2), tmp_path, ["exact", "annoy"])

    def test_a_folder_without_a_whole_run_is_refused(
        self, run: tuple[Path, Dataset], tmp_path: Path
    ) -> None:
        with pytest.raises(BenchmarkError, match="does not hold a whole run"):
            score(tmp_path)
        (tmp_path / "timings.json").write_bytes((run[0] / "timings.json").read_bytes())
        with pytest.raises(BenchmarkError, match="does not hold a whole run"):
            score(tmp_path)


def test_the_fastest_point_is_chosen_among_those_of_the_recall() -> None:
    def point(setting: str, mean: float, qps: float) -> Point:
        spread = Spread(qps, qps, qps)
        return Point("a", setting, IN, Interval(mean, mean, mean), {1: spread}, spread, spread)

    points = [point("low", 0.8, 900.0), point("mid", 0.95, 300.0), point("high", 0.99, 100.0)]
    chosen = [fastest(points, target) for target in (0.5, 0.9, 0.99, 0.999)]
    assert [best and best.setting for best in chosen] == ["low", "mid", "high", None]


class TestCommand:
    def test_it_prints_a_table_and_writes_the_report(self, tmp_path: Path) -> None:
        out = tmp_path / "out"
        arguments = ["--synthetic", "1000,8", "--systems", "exact, faiss-flat", "--out", str(out)]
        result = _invoke([*arguments, "--queries", "10", "--rounds", "1"])
        assert result.exit_code == 0, result.output
        assert f"report: {out / PAGE}" in result.stdout.replace("\n", "")
        assert "10 in-distribution queries" in " ".join(result.stdout.split())
        assert {path.name for path in out.iterdir()} >= {REPORT, PAGE, PLOT, "timings.json"}

    @pytest.mark.parametrize("size", ["1000", "1000,", "a,b", "1000,-8", "1,2,3", ""])
    def test_a_size_that_is_none_is_refused(self, size: str) -> None:
        error = _invoke(["--synthetic", size]).exception
        assert isinstance(error, BenchmarkError)
        assert str(error).startswith(f"--synthetic {size!r}: write N,DIM")

    def test_vectors_from_two_places_are_refused(self, tmp_path: Path) -> None:
        error = _invoke([str(tmp_path), "--synthetic", "1000,8"]).exception
        assert isinstance(error, BenchmarkError)
        assert "give one of them" in str(error)


def _invoke(arguments: list[str]) -> Result:
    app = typer.Typer()
    app.command()(ann)
    return CliRunner().invoke(app, arguments)
