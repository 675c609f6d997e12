from __future__ import annotations

import json
from pathlib import Path

import pytest
import typer
from typer.testing import CliRunner

from benchmarks.ann_cli import filters
from benchmarks.ann_data import IN, OUT, mapped, synthetic
from benchmarks.ann_filters import FILE, SHARES, Band, measure_filters


@pytest.fixture(scope="module")
def bands(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[Band]]:
    folder = tmp_path_factory.mktemp("filters")
    data = mapped(synthetic(2000, 16, 10), folder)
    return folder, measure_filters(data, folder)


def test_every_share_kind_and_filter_is_measured(bands: tuple[Path, list[Band]]) -> None:
    measured = [(band.filter, band.share, band.queries) for band in bands[1]]
    expected = [(f, s, q) for f in ("scattered", "gathered") for s in SHARES for q in (IN, OUT)]
    assert measured == expected
    stored = json.loads((bands[0] / FILE).read_text(encoding="utf-8"))
    assert [Band(**band) for band in stored["bands"]] == bands[1]


def test_ours_finds_what_post_filtering_misses(bands: tuple[Path, list[Band]]) -> None:
    for band in bands[1]:
        assert band.ours_recall >= 0.99
        if band.share <= 0.01:
            assert band.post_recall < 0.9
        assert min(band.ours_ms, band.post_ms, band.exact_ms) > 0


def test_the_command_prints_a_row_for_each(tmp_path: Path) -> None:
    app = typer.Typer()
    app.command()(filters)
    arguments = ["--synthetic", "1000,8", "--queries", "10", "--out", str(tmp_path)]
    result = CliRunner().invoke(app, arguments)
    assert result.exception is None
    assert result.stdout.count("scattered") == result.stdout.count("gathered") == 8
