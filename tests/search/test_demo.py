"""The demo finds what its photos show and writes a picture of it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from PIL import Image

from indexing.models.protocol import Encoder
from search import demo, engine


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, tiny_encoder: Encoder) -> Callable[[Path], demo.Demo]:
    for module in (demo, engine):
        monkeypatch.setattr(module, "load_encoder", lambda name: tiny_encoder)
    return lambda out: demo.run_demo(out, products=20)


def test_it_answers_every_query_and_draws_the_answers(
    tmp_path: Path, run: Callable[[Path], demo.Demo]
) -> None:
    made = run(tmp_path / "out")
    assert len(made.answers) == demo.PHOTOS + len(demo.TEXTS)
    assert all(len(answer.hits) == 5 for answer in made.answers)
    assert made.report.counts.products == 20
    with Image.open(made.sheet) as sheet:
        assert sheet.height > 5 * 200  # five sheets below one another


def test_a_second_run_encodes_nothing(tmp_path: Path, run: Callable[[Path], demo.Demo]) -> None:
    first, second = run(tmp_path / "out"), run(tmp_path / "out")
    assert first.report.encoded > 20
    assert second.report.encoded == 0
    assert [a.hits for a in second.answers] == [a.hits for a in first.answers]
