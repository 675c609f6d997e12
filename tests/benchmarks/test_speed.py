"""Speed beside a plain loop: the arithmetic, the pictures, and that both sides do the same."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import typer
from numpy.typing import NDArray
from PIL import Image
from typer.testing import CliRunner, Result

import benchmarks.speed
import benchmarks.speed_stages
from benchmarks.speed import OURS, PLAIN, STAGES, Measured, Speed, cells, measure, write_report
from benchmarks.speed_cli import speed
from benchmarks.speed_shop import Shop, copy_shop, draw_shop
from benchmarks.speed_stages import Ours, Plain
from benchmarks.timing import Spread, speed_up, spread
from indexing.errors import BenchmarkError, ModelError

Vectors = NDArray[np.float32]


class TestArithmetic:
    def test_a_spread_is_the_median_and_the_range(self) -> None:
        assert spread([3.0, 1.0, 10.0]) == Spread(3.0, 1.0, 10.0)
        assert spread([1.0, 2.0]) == Spread(1.5, 1.0, 2.0)

    def test_speed_up_is_taken_pair_by_pair(self) -> None:
        """A slow spell that hits both sides of a pair leaves their ratio alone."""
        assert speed_up([1.0, 10.0, 2.0], [2.0, 20.0, 8.0]) == Spread(2.0, 2.0, 4.0)

    def test_pairs_without_a_partner_are_an_error(self) -> None:
        with pytest.raises(ValueError, match="zip"):
            speed_up([1.0], [1.0, 2.0])

    def test_a_row_tells_the_time_of_one_and_how_many_times_faster(self) -> None:
        seconds = {OURS: [0.1, 0.2, 0.3], PLAIN: [0.4, 0.6, 0.6]}
        measured = Measured("decode a picture", 100, seconds)
        assert cells(measured) == [
            "decode a picture",
            "2.00 ms [1.00–3.00]",
            "6.00 ms [4.00–6.00]",
            "3.00× [2.00–4.00]",
        ]
        assert cells(Measured("end to end", 1, {OURS: [2.5], PLAIN: [5.0]}))[1:3] == [
            "2.50 s [2.50–2.50]",
            "5.00 s [5.00–5.00]",
        ]


class TestShop:
    def test_drawn_shops_are_the_same_each_time(self, tmp_path: Path) -> None:
        shops = []
        for name in ("a", "b"):
            (tmp_path / name).mkdir()
            shops.append(draw_shop(tmp_path / name, 3))
        files = [[path.read_bytes() for path in shop.pictures] for shop in shops]
        assert files[0] == files[1]
        assert len(set(files[0])) == 3
        assert shops[0].rows == shops[1].rows
        assert all(shops[0].titles)
        for path in shops[0].pictures:
            with Image.open(path) as picture:
                assert (picture.format, picture.size) == ("JPEG", (800, 800))

    def test_of_a_catalog_the_first_distinct_sound_pictures_are_taken(self, tmp_path: Path) -> None:
        source = tmp_path / "source"
        source.mkdir()
        for name, colour in (("red", "red"), ("again", "red"), ("blue", "blue"), ("tan", "tan")):
            Image.new("RGB", (9, 9), colour).save(source / f"{name}.png")
        (source / "broken.png").write_bytes((source / "red.png").read_bytes()[:40])
        lines = ["id,title,image", "1,Red,red.png", "2,Again,again.png", "3,Broken,broken.png"]
        lines += ["4,Away,https://example.com/x.png", "5,,blue.png", "6,Tan,tan.png"]
        (source / "catalog.csv").write_text("\n".join(lines))
        for count, ids in ((9, ["1", "5", "6"]), (2, ["1", "5"])):
            folder = tmp_path / str(count)
            folder.mkdir()
            shop = copy_shop(folder, source / "catalog.csv", count)
            assert [row["id"] for row in shop.rows] == ids
        assert shop.titles == ["Red", "5"]
        assert shop.pictures[1].read_bytes() == (source / "blue.png").read_bytes()

    def test_a_catalog_without_a_usable_picture_is_refused(self, tmp_path: Path) -> None:
        (tmp_path / "x.png").write_bytes(b"nothing")
        (tmp_path / "catalog.csv").write_text("id,title,image\n1,Red,x.png\n")
        (tmp_path / "shop").mkdir()
        with pytest.raises(BenchmarkError, match="no product has a picture"):
            copy_shop(tmp_path / "shop", tmp_path / "catalog.csv", 5)


@pytest.fixture(scope="module")
def shop(tmp_path_factory: pytest.TempPathFactory) -> Shop:
    # Too small to be decoded at a fraction, so that both sides see the same pixels.
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("benchmarks.speed_shop.SIDE", 600)
        return draw_shop(tmp_path_factory.mktemp("shop"), 6)


@pytest.fixture(scope="module")
def sides(shop: Shop, tmp_path_factory: pytest.TempPathFactory) -> tuple[Ours, Plain]:
    work = tmp_path_factory.mktemp("work")
    both = Ours(shop, "builtin", work), Plain(shop, "builtin", work)
    for side in both:
        side.index()
    return both


def least_cosine(left: Vectors, right: Vectors) -> float:
    assert np.linalg.norm(left, axis=1) == pytest.approx(1, abs=1e-5)
    assert np.linalg.norm(right, axis=1) == pytest.approx(1, abs=1e-5)
    return float((left.astype(np.float64) * right).sum(axis=1).min())


class TestSides:
    def test_encoding_gives_the_same_vectors(self, sides: tuple[Ours, Plain]) -> None:
        ours, plain = sides
        assert least_cosine(ours.encode_pictures(), plain.encode_pictures()) > 1 - 1e-4
        assert least_cosine(ours.encode_texts(), plain.encode_texts()) > 1 - 1e-4

    def test_so_does_indexing_and_in_the_order_of_the_catalog(
        self, sides: tuple[Ours, Plain]
    ) -> None:
        ours, plain = sides
        indexed = plain.indexed()
        assert len(indexed) == 6
        assert least_cosine(ours.indexed(), indexed) > 1 - 1e-3
        assert least_cosine(indexed, plain.encode_pictures()) > 1 - 1e-6

    def test_queries_have_the_same_answers(self, sides: tuple[Ours, Plain]) -> None:
        ours, plain = sides
        found = ours.query_pictures()
        assert found == plain.query_pictures()
        assert [ids[0] for ids in found] == [f"DRAWN-{number:06d}" for number in range(6)]
        assert ours.query_texts() == plain.query_texts()

    def test_batches_may_end_anywhere(
        self, shop: Shop, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(benchmarks.speed_stages, "PLAIN_BATCH", 4)
        monkeypatch.setattr(benchmarks.speed_stages, "BATCH_SIZE", 5)
        ours, plain = Ours(shop, "builtin", tmp_path), Plain(shop, "builtin", tmp_path)
        plain.index()
        assert len(ours.encode_pictures()) == len(plain.indexed()) == 6
        assert least_cosine(ours.encode_pictures(), plain.indexed()) > 1 - 1e-3
        assert len(plain.encode_texts()) == 6

    def test_the_plain_loop_has_the_layout_that_open_clip_gives(
        self, sides: tuple[Ours, Plain]
    ) -> None:
        weights = [value for value in sides[1]._model.parameters() if value.ndim == 4]
        assert weights
        assert all(value.is_contiguous() for value in weights)


class TestMeasure:
    def test_the_sides_take_turns_and_every_round_is_reported(
        self,
        shop: Shop,
        sides: tuple[Ours, Plain],
        tmp_path: Path,
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        turns: list[tuple[str, str]] = []

        class Worker:
            """Does its work here and at once."""

            def __init__(self, name: str) -> None:
                self._name = name

            def submit(self, work: Callable[..., Any], *arguments: str) -> Future[Any]:
                turns.append((self._name, arguments[0] if arguments else work.__name__))
                benchmarks.speed._side = sides[0] if self._name == OURS else sides[1]
                future: Future[Any] = Future()
                future.set_result(work(*arguments))
                return future

        @contextmanager
        def worker(name: str, *_: object) -> Iterator[Worker]:
            yield Worker(name)

        monkeypatch.setattr(benchmarks.speed, "_worker", worker)
        monkeypatch.setattr(benchmarks.speed, "_side", None)
        result = measure(shop, "builtin", tmp_path, rounds=2, command="the command")
        assert [side for side, method in turns if method == "decode"] == [OURS, PLAIN] * 3
        assert [side for side, method in turns if method == "_everything"] == [OURS, PLAIN] * 3
        assert [stage.stage for stage in result.stages] == [
            *(stage.name for stage in STAGES),
            "end to end",
        ]
        for stage in result.stages:
            assert {name: len(seconds) for name, seconds in stage.seconds.items()} == {
                OURS: 2,
                PLAIN: 2,
            }
        by_name = {stage.stage: stage for stage in result.stages}
        assert by_name["index a picture"].count == 6
        assert (by_name["encode a text"].least_cosine or 0) > 1 - 1e-4
        assert by_name["decode a picture"].least_cosine is None
        assert set(by_name["end to end"].peak_bytes) == {OURS, PLAIN}

        write_report(result, tmp_path / "out")
        stored = json.loads((tmp_path / "out" / "speed.json").read_text())
        assert stored["command"] == "the command"
        decode = stored["stages"][0]
        ratios = np.array(decode["seconds"][PLAIN]) / decode["seconds"][OURS]
        assert decode["speed_up"]["median"] == pytest.approx(np.median(ratios))
        page = (tmp_path / "out" / "speed.md").read_text()
        assert "`the command`" in page
        assert f"| {' | '.join(cells(result.stages[0]))} |" in page

    def test_a_side_works_in_a_process_of_its_own(self, shop: Shop, tmp_path: Path) -> None:
        here = Plain(shop, "builtin", tmp_path).encode_texts()
        with benchmarks.speed._worker(PLAIN, shop, "builtin", tmp_path) as side:
            there = side.submit(benchmarks.speed._call, "encode_texts").result()
        assert benchmarks.speed._side is None
        assert least_cosine(here, there) > 1 - 1e-6

    def test_a_side_that_dies_is_an_error_of_one_line(self, shop: Shop, tmp_path: Path) -> None:
        with pytest.raises(BenchmarkError, match="the process of the plain side died"):  # noqa: SIM117
            with benchmarks.speed._worker(PLAIN, shop, "builtin", tmp_path):
                raise BrokenProcessPool


class TestCommand:
    def test_a_model_that_is_unknown_is_refused(self) -> None:
        error = _invoke(["--model", "nothing"]).exception
        assert isinstance(error, ModelError)

    def test_so_is_one_that_open_clip_does_not_know(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(benchmarks.speed_stages, "load_encoder", lambda name: object())
        error = _invoke(["--model", "other"]).exception
        assert isinstance(error, BenchmarkError)
        assert str(error).startswith("model 'other' is not an open_clip model")

    def test_what_was_measured_is_printed_and_written(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def measured(shop: Shop, model: str, work: Path, **options: Any) -> Speed:
            assert len(shop.rows) == 2
            stage = Measured("decode a picture", 2, {OURS: [0.1], PLAIN: [0.2]})
            kernels: dict[str, str | None] = {OURS: "Haswell", PLAIN: None}
            return Speed(options["command"], model, 2, 1, "a machine", {}, kernels, [stage])

        monkeypatch.setattr(benchmarks.speed, "measure", measured)
        out = tmp_path / "out"
        result = _invoke(["--pictures", "2", "--rounds", "1", "--out", str(out)])
        assert result.exit_code == 0, result.output
        assert "2.00× [2.00–2.00]" in result.stdout
        page = (out / "speed.md").read_text()
        assert "`shoplens bench speed --model builtin --pictures 2 --rounds 1`" in page
        assert "shoplens: Haswell, plain: not known" in page


def _invoke(arguments: list[str]) -> Result:
    app = typer.Typer()
    app.command()(speed)
    return CliRunner().invoke(app, arguments)
