"""ALBEF's training steps beside CLIP's: that arms are what they are called, and the arithmetic."""

from __future__ import annotations

import importlib
import json
import sys
from collections.abc import Iterator
from concurrent.futures.process import BrokenProcessPool
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
import typer
from torch import Tensor
from typer.testing import CliRunner, Result

import benchmarks.albef_speed as speed
import benchmarks.training_work as work_module
from benchmarks.albef_speed import (
    ALBEF,
    ARMS,
    BASE,
    CLIP,
    TOY,
    AlbefSpeed,
    Size,
    measure,
    notes,
    peak_alone,
    peak_growth,
    rows,
    take_turns,
    train_arm,
)
from benchmarks.timing import Spread
from benchmarks.training_clock import STANDARD, Arm, Clock
from benchmarks.training_work import STEPS, AlbefWorkload, Pixels, WholePixels
from indexing.errors import BenchmarkError
from indexing.models.albef.config import AlbefConfig
from indexing.models.albef.encoder import AlbefEncoder
from training.albef.config import AlbefTraining

VISION = {"layers": 1, "width": 32, "head_width": 16, "patch_size": 16, "image_size": 32}
TEXT = {"context_length": 77, "vocab_size": 50, "width": 16, "heads": 2, "layers": 2}
TINY: dict[str, Any] = {"embed_dim": 8, "vision_cfg": VISION, "text_cfg": TEXT}
SMALL = Size(None, batch=6, queue=30)


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(autouse=True)
def tiny(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(work_module, "TOY", TINY)
    monkeypatch.setattr(speed, "TOY", SMALL)


@pytest.fixture
def work() -> AlbefWorkload:
    return SMALL.workload("cpu", 20)


class TestWorkload:
    def test_titles_take_as_many_tokens_as_clip_s(self, work: AlbefWorkload) -> None:
        """Start and end included, and one for each of their numbers."""
        albef, clip = work.encoder().tokenizer, work.clip.encoder().tokenizer
        titles = work.clip.pairs.titles
        assert len(titles) == 30
        lengths = (clip(titles) > 0).sum(1)
        assert torch.equal(albef.mask(albef(titles)).sum(1), lengths)
        assert len(set(lengths.tolist())) > 5

    def test_sizes_are_like_those_of_the_toy(self, work: AlbefWorkload) -> None:
        model, clip = work.encoder().model, work.clip.encoder().model
        assert (work.config.text_layers, work.config.fusion_layer) == (6, 3)

        def count(part: Any) -> int:
            return sum(value.numel() for value in part.parameters())

        # CLIP's block has the same matrices, and its tower a norm before and a projection behind.
        blocks = [model.visual_encoder.blocks, clip.visual.transformer.resblocks]
        assert count(blocks[0]) == count(blocks[1]) > 0
        assert work.config.image_size == work.clip.pixels.shape[-1] == VISION["image_size"]
        assert work.config.patch_size == VISION["patch_size"]
        heads = VISION["width"] // VISION["head_width"]
        assert work.config.vision_heads == clip.visual.transformer.resblocks[0].attn.num_heads
        assert work.config.vision_heads == heads
        bert = model.text_encoder.bert
        assert count(bert.encoder.layer[0]) == count(clip.transformer.resblocks[0])
        words = bert.embeddings.word_embeddings.weight
        assert words.shape == clip.token_embedding.weight.shape
        assert work.config.text_heads == TEXT["heads"]

    def test_the_base_size_is_the_public_model_s(self) -> None:
        """But for the length of titles, which is CLIP's."""
        assert (BASE.clip, BASE.batch, BASE.side) == ("ViT-B-16", 320, AlbefConfig().image_size)
        assert BASE.queue == AlbefTraining().queue_size == 65_536
        clip: Any = SimpleNamespace(pixels=torch.zeros(1, 3, 256, 256), cfg={"text_cfg": {}})
        assert work_module._like(clip, base=True) == AlbefConfig(max_text_length=77)

    def test_pictures_are_handed_out_themselves(self, work: AlbefWorkload) -> None:
        encoder = work.encoder()
        asked = [np.array([5, 0, 9]), np.array([2])]
        whole, places = (
            list(kind(encoder, work.clip.pixels).batches(asked, 0))
            for kind in (WholePixels, Pixels)
        )
        for (rows_seen, shown), (also, place), expected in zip(whole, places, asked, strict=True):
            assert rows_seen.tolist() == also.tolist() == expected.tolist()
            assert torch.equal(shown, work.clip.pixels[place])
        embedded = WholePixels(encoder, work.clip.pixels).embed(whole[0][1])
        torch.testing.assert_close(embedded, encoder.model.encode_image(whole[0][1]))

    def test_each_encoder_starts_from_the_same_weights(self, work: AlbefWorkload) -> None:
        first = work.encoder()
        before = {name: value.clone() for name, value in first.model.state_dict().items()}
        with torch.no_grad():
            first.model.temp.zero_()
        again = work.encoder().model.state_dict()
        assert all(torch.equal(value, again[name]) for name, value in before.items())

    def test_titles_that_are_too_long_are_refused(self) -> None:
        with pytest.raises(BenchmarkError, match="titles of 78 tokens: toy reads 3 to 77"):
            SMALL.workload("cpu", 78)


class Watch(Clock):
    """Keeps the thresholds and a weight of ALBEF as they are after each step."""

    def __init__(self, work: AlbefWorkload, monkeypatch: pytest.MonkeyPatch) -> None:
        super().__init__("cpu")
        self.seen: list[str] = []
        self.deltas: list[Tensor] = []
        self.weights: list[Tensor] = []
        self.encoder: AlbefEncoder | None = None
        made = work.encoder

        def encoder() -> AlbefEncoder:
            self.encoder = made()
            return self.encoder

        monkeypatch.setattr(work, "encoder", encoder)

    def mark(self, what: str) -> None:
        super().mark(what)
        self.seen.append(what)
        if self.encoder is not None:
            self.weights.append(self.encoder.model.vision_proj.weight.detach().clone())
            if self.encoder.pruning is not None:
                self.deltas.append(self.encoder.pruning.delta.detach().clone())


class TestArms:
    def run(
        self, name: str, work: AlbefWorkload, monkeypatch: pytest.MonkeyPatch
    ) -> tuple[Watch, float | None]:
        watch = Watch(work, monkeypatch)
        kept = train_arm(name, work, watch, chunk=None, precision="fp32")
        # Though the epoch of 30 pairs has five steps.
        assert watch.seen == [STANDARD] * (1 + STEPS)
        return watch, kept

    def test_clip_is_clip(self, work: AlbefWorkload, monkeypatch: pytest.MonkeyPatch) -> None:
        watch, kept = self.run(CLIP, work, monkeypatch)
        assert kept is None
        assert watch.encoder is None

    def test_standard_prunes_nothing(
        self, work: AlbefWorkload, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        watch, kept = self.run(ALBEF, work, monkeypatch)
        assert kept is None
        assert watch.encoder is not None
        assert watch.encoder.pruning is None
        assert not torch.equal(watch.weights[0], watch.weights[-1])

    @pytest.mark.parametrize(("name", "pruning"), [("ALBEF cross", [6]), ("ALBEF all", [0, 6])])
    def test_masks_are_learned_along_with_the_weights(
        self,
        name: str,
        pruning: list[int],
        work: AlbefWorkload,
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        """Attentions 0 to 5 are those of the text itself, 6 to 8 those over the picture."""
        watch, kept = self.run(name, work, monkeypatch)
        assert watch.encoder is not None
        found = watch.encoder.pruning
        assert found is not None
        assert [number for number in range(9) if found.prunes(number)] == pruning
        assert found.config.straight_through
        changed = watch.deltas[0] != watch.deltas[-1]
        assert changed.nonzero().flatten().tolist() == pruning
        assert not torch.equal(watch.weights[0], watch.weights[-1])
        assert kept is not None
        assert 0 < kept < 1

    def test_all_learn_from_the_same_batches(
        self, work: AlbefWorkload, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        seen: list[list[list[int]]] = []

        def noted(self: Pixels, batches: Any, epoch: int) -> Iterator[tuple[Any, Tensor]]:
            if max(map(len, batches)) == 6 and len(batches) == 5:  # and no calibration
                seen.append([rows.tolist() for rows in batches])
            yield from given(self, batches, epoch)

        given = Pixels.batches
        monkeypatch.setattr(Pixels, "batches", noted)
        for name in ARMS:
            train_arm(name, work, Clock("cpu"), chunk=None, precision="fp32")
        assert len(seen) == len(ARMS)
        assert all(batches == seen[0] for batches in seen)

    def test_settings_reach_both_loops(
        self, work: AlbefWorkload, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        configs: list[Any] = []
        monkeypatch.setattr(speed, "train", lambda *given: configs.append(given[2]))
        monkeypatch.setattr(speed, "train_albef", lambda *given, **_: configs.append(given[6]))
        for name in ARMS:
            train_arm(name, work, Clock("cpu"), chunk=4, precision="bf16")
        assert {(c.batch_size, c.chunk, c.precision, c.epochs) for c in configs} == {
            (6, 4, "bf16", 1)
        }
        assert [config.queue_size for config in configs[1:]] == [30] * 3
        assert [config.preset for config in configs] == [STANDARD] * 2 + ["calibrated"] * 2
        assert [config.prune for config in configs[2:]] == ["cross", "all"]


def test_arms_take_turns_and_seconds_are_those_of_the_clock(
    work: AlbefWorkload, monkeypatch: pytest.MonkeyPatch
) -> None:
    now, took = [0.0], []
    cost = {CLIP: 2.0, ALBEF: 8.0, "ALBEF cross": 9.0, "ALBEF all": 12.0}

    def fake(name: str, work: AlbefWorkload, clock: Clock, **how: object) -> float:
        assert how == {"chunk": 3, "precision": "fp32"}
        took.append(name)
        now[0] += 100  # the making of a model is no part of a step
        for step in range(1 + STEPS):
            now[0] += cost[name] if step else 50
            clock.mark(STANDARD)
        return cost[name] / 100

    monkeypatch.setattr(speed, "train_arm", fake)
    monkeypatch.setattr("time.process_time", lambda: now[0])
    said: list[str] = []
    arms = take_turns(work, 3, chunk=3, precision="fp32", note=said.append)
    names = list(ARMS)
    assert took == [*names, *names[1:], *names[:1], *names[2:], *names[:2]]
    assert {name: arm.seconds for name, arm in arms.items()} == {n: [cost[n]] * 3 for n in names}
    assert {name: arm.kept for name, arm in arms.items()} == {n: cost[n] / 100 for n in names}
    assert {arm.pairs for arm in arms.values()} == {6}
    assert arms["ALBEF all"].times(arms[ALBEF]) == Spread(1.5, 1.5, 1.5)
    assert len(said) == 3


class TestMemory:
    def test_a_peak_is_what_is_held_at_once(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """In a process whose peak so far is known not to be far above what it holds."""
        (tmp_path / "holding_work.py").write_text(
            "import numpy as np\n"
            "from benchmarks.albef_speed import peak_growth\n"
            "def hold():\n"
            "    for _ in range(3):\n"
            "        held = np.ones(64 << 20, np.uint8)\n"
            "        more = np.ones(32 << 20, np.uint8)\n"
            "        del held, more\n"
            "def measured(name, size, title_tokens, chunk, precision):\n"
            "    return peak_growth(hold), name, size.batch, title_tokens, chunk, precision\n"
        )
        monkeypatch.syspath_prepend(tmp_path)
        monkeypatch.delitem(sys.modules, "holding_work", raising=False)
        module = importlib.import_module("holding_work")
        monkeypatch.setattr(speed, "_peak_of", module.measured)
        # What this process holds is not counted; ru_maxrss would begin with it.
        mine = np.ones(600 << 20, np.uint8)
        found: Any = peak_alone("an arm", SMALL, 20.0, chunk=3, precision="fp32")
        assert mine.sum() == 600 << 20
        if found[0] is not None:
            assert found[0] / 2**20 == pytest.approx(96, abs=8)
        assert found[1:] == ("an arm", 6, 20.0, 3, "fp32")

    def test_a_process_that_dies_is_named(self, monkeypatch: pytest.MonkeyPatch) -> None:
        def broken(*_: object, **__: object) -> None:
            raise BrokenProcessPool

        monkeypatch.setattr(speed, "ProcessPoolExecutor", broken)
        with pytest.raises(BenchmarkError, match="process of ALBEF all died; if memory is short"):
            peak_alone("ALBEF all", SMALL, 20.0, chunk=None, precision="fp32")

    def test_the_run_is_that_of_the_arm(self, monkeypatch: pytest.MonkeyPatch) -> None:
        ran: list[object] = []

        def fake(name: str, work: AlbefWorkload, clock: Clock, **how: object) -> None:
            ran.append((name, work.clip.batch, work.clip.device, how))

        monkeypatch.setattr(speed, "train_arm", fake)
        monkeypatch.setattr(speed, "peak_growth", lambda run: run() or 7)
        assert speed._peak_of(ALBEF, SMALL, 20.0, 3, "fp32") == 7
        assert ran == [(ALBEF, 6, "cpu", {"chunk": 3, "precision": "fp32"})]

    def test_a_system_that_does_not_tell_is_no_number(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        ran: list[int] = []
        monkeypatch.setattr(speed, "_peak_resident", lambda: None)
        assert peak_growth(lambda: ran.append(1)) is None
        assert ran == [1]


def result(**changes: object) -> AlbefSpeed:
    arms = {
        CLIP: Arm(100, [0.5, 0.4, 1.0], peak_bytes=1_000_000_000),
        ALBEF: Arm(100, [2.0, 2.0, 4.0], peak_bytes=3_000_000_000),
        "ALBEF cross": Arm(100, [2.0, 2.2, 4.4], kept=0.875, peak_bytes=3_250_000_000),
        "ALBEF all": Arm(100, [2.4, 2.2, 4.8], kept=0.5),
    }
    found = AlbefSpeed(
        command="python -m benchmarks.albef_speed",
        model="toy",
        device="one thread, CPU seconds",
        machine="a machine",
        versions={},
        precision="fp32",
        batch=100,
        chunk=None,
        mean_title_tokens=25.04,
        most_title_tokens=70,
        arms=arms,
        queue=1024,
    )
    return replace(found, **changes)  # type: ignore[arg-type]


def test_a_line_for_each_arm_with_its_times_of_both() -> None:
    assert [*rows(result())] == [
        [
            *(CLIP, "500.0 [400.0–1,000.0]", "200"),
            *("1.000 [1.000–1.000]", "0.250 [0.200–0.250]", "", "", "1.00"),
        ],
        [
            *(ALBEF, "2,000.0 [2,000.0–4,000.0]", "50"),
            *("4.000 [4.000–5.000]", "1.000 [1.000–1.000]", "", "", "3.00"),
        ],
        [
            *("ALBEF cross", "2,200.0 [2,000.0–4,400.0]", "45"),
            *("4.400 [4.000–5.500]", "1.100 [1.000–1.100]", "PASS", "87.5%", "3.25"),
        ],
        [
            *("ALBEF all", "2,400.0 [2,200.0–4,800.0]", "42"),
            *("4.800 [4.800–5.500]", "1.200 [1.100–1.200]", "MISS", "50.0%", ""),
        ],
    ]
    first, place, queue, _ = notes(result())
    assert first.startswith("toy, 100 pairs a step, chunks of 100, fp32, titles of 25.0 tokens")
    assert place == "on one thread, CPU seconds; a machine"
    assert queue == "ALBEF has a queue of 1,024 pairs"


def run(*arguments: str) -> Result:
    app = typer.Typer()
    app.command()(measure)
    return CliRunner(env={"COLUMNS": "200"}).invoke(app, arguments)


class TestCommand:
    def test_all_figures_are_in_the_file(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def peak(name: str, size: Size, title_tokens: float, **how: object) -> int:
            assert (size.batch, title_tokens, how) == (4, 12, {"chunk": 3, "precision": "fp32"})
            return list(ARMS).index(name) * 10**9

        monkeypatch.setattr(speed, "peak_alone", peak)
        file = tmp_path / "speed.json"
        options = {"batch": 4, "chunk": 3, "title-tokens": 12, "precision": "fp32", "json": file}
        given = [f"--{name}={value}" for name, value in options.items()]
        found = run("--device", "cpu", *given)
        assert found.exit_code == 0, found.output
        assert found.stdout.count("PASS") + found.stdout.count("MISS") == 2
        assert "toy, 4 pairs a step, chunks of 3, fp32, titles of" in found.stdout
        content = json.loads(file.read_text())
        assert list(content["arms"]) == list(ARMS)
        for number, arm in enumerate(content["arms"].values()):
            assert len(arm["seconds"]) == 5
            assert min(arm["seconds"]) > 0
            assert arm["peak_bytes"] == number * 10**9
        assert (content["queue"], content["batch"], content["chunk"]) == (30, 4, 3)
        assert content["command"].startswith("python -m benchmarks.albef_speed")

    def test_the_toy_is_that_of_training_speed(self) -> None:
        help_text = run("--help").output
        assert "Example: python -m benchmarks.albef_speed" in help_text
        assert (TOY.clip, TOY.side) == (None, None)

    @pytest.mark.parametrize(
        ("arguments", "message"),
        [
            (["--base"], "--base takes hours on a CPU: give a cuda device, or leave it out"),
            (["--device", "nonsense"], "device 'nonsense' cannot be used here"),
            (["--precision", "fp8"], "'fp8' is not auto, fp32, bf16"),
            (["--title-tokens", "100"], "titles of 100 tokens: toy reads 3 to 77"),
            (["--rounds", "4"], "--rounds"),
        ],
    )
    def test_bad_input_is_one_message(self, arguments: list[str], message: str) -> None:
        found = run(*["--device", "cpu", *arguments])
        assert found.exit_code == 2
        assert message in " ".join(found.output.replace("│", " ").split())


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
class TestGpu:
    def test_each_arm_has_its_own_peak_of_memory(self) -> None:
        work = replace(SMALL, batch=64, queue=256).workload("cuda", 20)
        arms = take_turns(work, 1, chunk=None, precision="auto")
        again = take_turns(work, 1, chunk=None, precision="auto")
        weights = sum(p.numel() * p.element_size() for p in work.encoder().model.parameters())
        for name in (name for name in ARMS if name != CLIP):
            first, second = arms[name].peak_bytes, again[name].peak_bytes
            assert first is not None
            assert 2 * weights < first < 2e9
            assert second == pytest.approx(first, rel=0.1)  # nothing of one turn is left

    def test_the_base_size(self, tmp_path: Path) -> None:
        file = tmp_path / "speed.json"
        found = run("--base", "--chunk", "80", "--json", str(file))
        assert found.exit_code == 0, found.output
        content = json.loads(file.read_text())
        assert (content["batch"], content["queue"]) == (320, 65_536)
        assert content["device"] == torch.cuda.get_device_name()
        peaks = [arm["peak_bytes"] for arm in content["arms"].values()]
        assert 1e9 < peaks[0] < min(peaks[1:])  # CLIP has one encoder of text, and no slow copy
