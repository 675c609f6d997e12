"""The training benchmark: that arms are what they are called, and the arithmetic."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import typer
from torch import Tensor
from typer.testing import CliRunner, Result

import benchmarks.training_speed as speed
import benchmarks.training_work as work_module
from benchmarks.timing import Spread
from benchmarks.training_clock import STANDARD, Arm, Clock, turns
from benchmarks.training_speed import (
    ARMS,
    MASKS,
    TrainingSpeed,
    count_flops,
    measure,
    notes,
    rows,
    take_turns,
    train,
)
from benchmarks.training_table import verdict
from benchmarks.training_work import STEPS, Numbers, Pixels, Workload, draw_titles
from indexing.errors import BenchmarkError, ModelError
from indexing.models.clip import ClipEncoder
from indexing.models.token_pruning import paper_pruning
from training.presets import make_config

VISION = {"layers": 1, "width": 32, "head_width": 16, "patch_size": 16, "image_size": 32}
TEXT = {"context_length": 77, "vocab_size": 50, "width": 16, "heads": 2, "layers": 2}
TINY: dict[str, Any] = {"embed_dim": 8, "vision_cfg": VISION, "text_cfg": TEXT}


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(autouse=True)
def tiny(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(work_module, "TOY", TINY)


def workload(batch: int = 6, title_tokens: float = 20, device: str = "cpu") -> Workload:
    return Workload(None, device, batch=batch, title_tokens=title_tokens)


class TestWorkload:
    def test_a_number_is_a_token_between_start_and_end(self) -> None:
        ids = Numbers(50, 6)(["3 7", "", "1 2 3 4 5"])
        assert ids.tolist() == [
            [48, 3, 7, 49, 0, 0],
            [48, 49, 0, 0, 0, 0],
            [48, 1, 2, 3, 4, 49],
        ]

    @pytest.mark.parametrize("mean", [8, 25, 40])
    def test_titles_have_the_mean_length_that_is_asked_for(self, mean: float) -> None:
        tokenizer = Numbers(50, 77)
        ids = tokenizer(draw_titles(3000, mean, tokenizer))
        lengths = (ids > 0).sum(1)
        assert float(lengths.float().mean()) == pytest.approx(mean, rel=0.03)
        assert 3 <= int(lengths.min()) < mean / 2
        assert min(2 * mean, 77) <= int(lengths.max()) <= 77
        words = ids[(ids > 0) & (ids < 48)]
        assert set(words.tolist()) == set(range(1, 48))  # none is a start, an end or padding

    def test_a_picture_is_that_of_its_row_and_rows_share_pictures(self) -> None:
        work = workload(batch=6)
        encoder = work.encoder()
        images = Pixels(encoder, work.pixels[:4])
        [(numbers, shown)] = images.batches([np.array([5, 0, 9])], 0)
        assert numbers.tolist() == [5, 0, 9]
        expected = encoder.model.encode_image(work.pixels[[1, 0, 1]])
        torch.testing.assert_close(images.embed(shown), expected)

    def test_each_encoder_starts_from_the_same_weights(self) -> None:
        work = workload()
        first = work.encoder()
        before = {name: value.clone() for name, value in first.model.state_dict().items()}
        train(work, work.pairs, make_config(STANDARD, epochs=1, batch_size=6), Clock("cpu"))
        with torch.no_grad():
            first.model.logit_scale.zero_()
        again = work.encoder().model.state_dict()
        assert all(torch.equal(value, again[name]) for name, value in before.items())

    def test_pictures_and_pairs_may_be_others_than_the_architecture_s(self) -> None:
        plain = workload()
        work = Workload(None, "cpu", batch=6, title_tokens=20, side=48, pairs=50)
        assert (plain.pixels.shape, len(plain.pairs)) == ((6, 3, 32, 32), 6 * (1 + STEPS))
        assert (work.pixels.shape, len(work.pairs)) == ((6, 3, 48, 48), 50)
        assert work.encoder().image_size == 48
        assert work.encoder().model.encode_image(work.pixels).shape == (6, 8)

    def test_a_longer_epoch_ends_where_no_step_is_timed(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """And its steps are those that they are."""
        work = Workload(None, "cpu", batch=6, title_tokens=20, pairs=50)
        watch = Watch(work, monkeypatch)
        config = make_config("calibrated", epochs=1, batch_size=6, mask_steps=2)
        kept = train(work, work.pairs, config, watch)
        assert watch.seen == [MASKS] * 2 + [STANDARD] * (1 + STEPS)
        assert kept is not None

    @pytest.mark.parametrize("tokens", [2, 78])
    def test_titles_that_the_model_cannot_read_are_refused(self, tokens: float) -> None:
        with pytest.raises(BenchmarkError, match=f"titles of {tokens} tokens: toy reads 3 to 77"):
            workload(title_tokens=tokens)

    def test_a_tower_that_cannot_prune_is_refused(self, monkeypatch: pytest.MonkeyPatch) -> None:
        text = {**TEXT, "no_causal_mask": True}
        monkeypatch.setattr(work_module, "TOY", {**TINY, "text_cfg": text})
        with pytest.raises(ModelError, match="needs a causal text transformer"):
            workload()

    def test_a_model_of_another_kind_is_refused(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(work_module, "TOY", {**TINY, "multimodal_cfg": {}})
        with pytest.raises(BenchmarkError, match=r"toy cannot be built: .*multimodal_cfg"):
            workload()


class Watch(Clock):
    """Keeps the thresholds and a weight as they are after each step."""

    def __init__(self, work: Workload, monkeypatch: pytest.MonkeyPatch) -> None:
        super().__init__("cpu")
        self.seen: list[str] = []
        self.deltas: list[Tensor] = []
        self.weights: list[Tensor] = []
        made = work.encoder
        self.encoder = made()

        def encoder() -> ClipEncoder:
            self.encoder = made()
            return self.encoder

        monkeypatch.setattr(work, "encoder", encoder)

    def mark(self, what: str) -> None:
        super().mark(what)
        self.seen.append(what)
        self.weights.append(self.encoder.model.visual.conv1.weight.detach().clone())
        if self.encoder.pruning is not None:
            self.deltas.append(self.encoder.pruning.delta.detach().clone())


class TestArms:
    def run(self, name: str, monkeypatch: pytest.MonkeyPatch) -> tuple[Watch, float | None]:
        work = workload()
        watch = Watch(work, monkeypatch)
        preset, mask_steps = ARMS[name]
        config = make_config(preset, epochs=1, batch_size=6, mask_steps=mask_steps)
        kept = train(work, work.pairs, config, watch)
        assert watch.seen == [MASKS] * mask_steps + [STANDARD] * (1 + STEPS)
        trained = watch.weights[mask_steps:]
        assert not torch.equal(trained[0], trained[-1])
        return watch, kept

    def test_standard_prunes_nothing(self, monkeypatch: pytest.MonkeyPatch) -> None:
        watch, kept = self.run(STANDARD, monkeypatch)
        assert kept is None
        assert watch.encoder.pruning is None

    def test_paper_has_the_printed_masks(self, monkeypatch: pytest.MonkeyPatch) -> None:
        watch, kept = self.run("paper", monkeypatch)
        assert watch.encoder.pruning is not None
        assert watch.encoder.pruning.config == paper_pruning(TEXT["layers"])
        assert kept is not None

    def test_online_learns_masks_along_with_the_weights(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        watch, kept = self.run("online", monkeypatch)
        assert watch.encoder.pruning is not None
        assert watch.encoder.pruning.config.straight_through
        assert watch.deltas[0][0] != watch.deltas[-1][0]
        assert kept is not None
        assert kept < 1

    def test_calibrated_learns_masks_first_and_holds_them(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        watch, kept = self.run("calibrated", monkeypatch)
        masked = 1 + STEPS
        assert watch.deltas[0][0] != watch.deltas[masked - 1][0]
        assert all(torch.equal(d, watch.deltas[masked]) for d in watch.deltas[masked:])
        assert torch.equal(watch.weights[0], watch.weights[masked - 1])  # pictures rest meanwhile
        assert kept is not None
        assert kept < 1


class TestTurns:
    def test_another_begins_each_round(self) -> None:
        said: list[str] = []
        assert "".join(turns("abc", 4, said.append)) == "abcbcacababc"
        assert said == [f"round {n} of 4" for n in (1, 2, 3, 4)]

    def test_arms_take_turns_and_each_is_first_once(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """Seconds are those of the steps after the first, by a clock that each arm sets."""
        now, turns = [0.0], []
        names = {arm: name for name, arm in ARMS.items()}
        cost = {STANDARD: 2.0, "paper": 6.0, "online": 3.0, "calibrated": 4.0}

        def fake(work: Workload, pairs: object, config: Any, clock: Clock) -> float:
            name = names[config.preset, config.mask_steps]
            turns.append(name)
            now[0] += 100  # the making of a model is no part of a step
            for _ in range(config.mask_steps):
                clock.mark(MASKS)
                now[0] += 1
            for step in range(1 + STEPS):
                now[0] += cost[name] if step else 50
                clock.mark(STANDARD)
            return 0.5

        monkeypatch.setattr(speed, "train", fake)
        monkeypatch.setattr("time.process_time", lambda: now[0])
        said: list[str] = []
        arms = take_turns(workload(), 4, chunk=3, precision="fp32", note=said.append)
        assert turns == [
            *("standard", "paper", "online", "calibrated"),
            *("paper", "online", "calibrated", "standard"),
            *("online", "calibrated", "standard", "paper"),
            *("calibrated", "standard", "paper", "online"),
        ]
        assert {name: arm.seconds for name, arm in arms.items()} == {
            **{name: [cost[name]] * 4 for name in cost},
            MASKS: [1.0] * 4,
        }
        assert said == [f"round {n} of 4" for n in (1, 2, 3, 4)]
        assert arms["paper"].times(arms[STANDARD]) == Spread(3.0, 3.0, 3.0)

    def test_settings_reach_the_loop(self, monkeypatch: pytest.MonkeyPatch) -> None:
        configs = []

        def fake(work: Workload, pairs: object, config: Any, clock: Clock) -> None:
            configs.append(config)
            for what in [MASKS] * 2 + [STANDARD] * 2:
                clock.mark(what)

        monkeypatch.setattr(speed, "train", fake)
        take_turns(workload(batch=6), 1, chunk=4, precision="bf16")
        assert {(c.batch_size, c.chunk, c.precision, c.epochs) for c in configs} == {
            (6, 4, "bf16", 1)
        }

    def test_ratios_are_taken_round_by_round(self) -> None:
        """A slow spell that hits both arms of a round leaves their ratio alone."""
        slow, fast = Arm(1, [2.0, 30.0, 8.0]), Arm(1, [1.0, 10.0, 2.0])
        assert slow.times(fast) == Spread(3.0, 2.0, 4.0)

    def test_the_bar_is_the_median(self) -> None:
        assert verdict(Spread(1.10, 1.0, 2.0)) == "PASS"
        assert verdict(Spread(1.101, 1.0, 2.0)) == "MISS"


def products(layers: int, width: int, tokens: int) -> float:
    """Operations of a transformer's matrix products, forward, for one text or picture:
    4 projections of attention, 2 of 4 times the width, scores and what they weigh."""
    return 2 * layers * (12 * tokens * width**2 + 2 * tokens**2 * width)


class TestFlops:
    def test_they_are_those_of_the_matrix_products(self) -> None:
        batch = 6
        work = workload(batch)
        ids = work.encoder().tokenizer(work.pairs.titles[:batch])
        longest = int((ids > 0).sum(1).max())
        picture = products(1, 32, 5) + 2 * 32 * 8
        title = products(2, 16, longest) + 2 * 16 * 8
        patches = 2 * 4 * (3 * 16 * 16) * 32  # no gradient goes back to the pixels
        scores = 2 * batch * 8  # of a title and all pictures
        expected = 3 * (picture + title + scores) + 2 * patches
        assert count_flops(work, None) == pytest.approx(expected, rel=0.01)

    def test_what_chunks_compute_twice_counts_once(self) -> None:
        """Pictures are all alike; titles are as long as the longest of their chunk."""
        work = workload(8)
        whole, chunked = count_flops(work, None), count_flops(work, 4)
        assert 0.8 * whole < chunked <= whole


def result(**changes: object) -> TrainingSpeed:
    arms = {
        STANDARD: Arm(1000, [0.04, 0.05, 0.1]),
        "paper": Arm(1000, [0.06, 0.06, 0.15], kept=0.875, peak_bytes=2_500_000_000),
        MASKS: Arm(256, [0.01, 0.01, 0.01]),
    }
    found = TrainingSpeed(
        command="python -m benchmarks.training_speed",
        model="ViT-B-16",
        device="NVIDIA L4",
        machine="a machine",
        versions={},
        precision="bf16",
        batch=1000,
        chunk=250,
        mean_title_tokens=25.04,
        most_title_tokens=70,
        arms=arms,
        flops_a_pair=3e9,
        peak_tflops=speed.PEAKS["NVIDIA L4"],
    )
    return replace(found, **changes)  # type: ignore[arg-type]


class TestReport:
    def test_a_line_for_each_arm(self) -> None:
        standard, paper, masks = rows(result())
        assert standard == [
            "standard", "50.0 [40.0–100.0]", "20,000", "1.000 [1.000–1.000]", "", "", "",
        ]  # fmt: skip
        assert paper == [
            "paper", "60.0 [60.0–150.0]", "16,667", "1.500 [1.200–1.500]", "MISS", "87.5%", "2.50",
        ]  # fmt: skip
        assert masks[2:5] == ["25,600", "0.200 [0.100–0.250]", ""]

    def test_the_share_of_a_known_chip(self) -> None:
        """3 GFLOP for each of 20,000 pairs a second are 60 of 121 TFLOP/s."""
        assert result().share_of_peak == pytest.approx(60 / 121)
        *_, masks, flops = notes(result())
        assert masks == (
            "120 steps of mask learning, 256 pairs each, take as long as 24 standard steps"
        )
        assert flops == (
            "a standard step computes 3.00 GFLOP a pair: 49.6% of 121 TFLOP/s dense bfloat16"
        )

    def test_no_share_of_an_unknown_chip(self) -> None:
        unknown = result(peak_tflops=None)
        assert unknown.share_of_peak is None
        *_, flops = notes(unknown)
        assert flops == "a standard step computes 3.00 GFLOP a pair"


def run(*arguments: str) -> Result:
    app = typer.Typer()
    app.command()(measure)
    return CliRunner(env={"COLUMNS": "200"}).invoke(app, arguments)


class TestCommand:
    def test_five_rounds_at_least_and_all_figures_in_the_file(self, tmp_path: Path) -> None:
        file = tmp_path / "speed.json"
        found = run("--device", "cpu", "--batch", "4", "--chunk", "3", "--json", str(file))
        assert found.exit_code == 0, found.output
        assert found.stdout.count("PASS") + found.stdout.count("MISS") == 3
        assert "toy, 4 pairs a step, chunks of 3, fp32, titles of" in found.stdout
        content = json.loads(file.read_text())
        assert list(content["arms"]) == [*ARMS, MASKS]
        for arm in content["arms"].values():
            assert len(arm["seconds"]) == 5
            assert min(arm["seconds"]) > 0
            assert arm["peak_bytes"] is None  # a CPU does not tell
        assert content["share_of_peak"] is None

    def test_the_help_ends_with_an_example(self) -> None:
        assert "Example: python -m benchmarks.training_speed --model" in run("--help").output

    @pytest.mark.parametrize(
        ("arguments", "message"),
        [
            (["--model", "ViTB-32"], "unknown model architecture 'ViTB-32'; did you mean ViT-B-32"),
            (["--model", "roberta-ViT-B-32"], "has no text tower of open_clip"),
            (["--device", "nonsense"], "device 'nonsense' cannot be used here"),
            (["--device", "meta"], "device 'meta' is not timed"),
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
        work = workload(64, device="cuda")
        arms = take_turns(work, 1, chunk=None, precision="auto")
        weights = sum(p.numel() * p.element_size() for p in work.encoder().model.parameters())
        for arm in arms.values():
            assert arm.peak_bytes is not None
            assert 2 * weights < arm.peak_bytes < 1e9
        again = take_turns(work, 1, chunk=None, precision="auto")
        peaks = [(arms[name].peak_bytes, again[name].peak_bytes) for name in arms]
        for first, second in peaks:  # nothing of one turn is left in the next
            assert second == pytest.approx(first, rel=0.1)

    def test_chunks_take_less_memory(self) -> None:
        work = workload(64, device="cuda")
        whole, chunked = (
            take_turns(work, 1, chunk=chunk, precision="auto")[STANDARD].peak_bytes
            for chunk in (None, 8)
        )
        assert whole is not None
        assert chunked is not None
        assert chunked < whole

    def test_as_many_operations_as_on_a_cpu(self) -> None:
        counts = [count_flops(workload(8, device=device), None) for device in ("cpu", "cuda")]
        assert counts[1] == pytest.approx(counts[0], rel=0.1)

    def test_the_default_is_a_gpu_in_bfloat16(self, tmp_path: Path) -> None:
        file = tmp_path / "speed.json"
        found = run("--model", "ViT-S-32", "--batch", "32", "--chunk", "16", "--json", str(file))
        assert found.exit_code == 0, found.output
        content = json.loads(file.read_text())
        assert content["device"] == torch.cuda.get_device_name()
        if torch.cuda.is_bf16_supported(including_emulation=False):
            assert content["precision"] == "bf16"
