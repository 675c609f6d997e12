"""The arms by hand, and a study in small from training to report."""

from __future__ import annotations

import csv
import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image, ImageColor

from benchmarks.attributes.arms import ARMS, LinearHead, make_arm, zero_shot
from benchmarks.attributes.measures import Predictions
from benchmarks.attributes.report import Results, write_report
from benchmarks.attributes.study import ATTRIBUTES, Study, read_data, versions
from indexing.errors import BenchmarkError
from indexing.models.clip import ClipEncoder
from indexing.models.cma_clip import load_attributes
from indexing.models.cma_clip.network import CmaConfig, Inputs, Sizes
from tests.training.conftest import COLOURS, TRANSFORMER, make_encoder
from training.attributes.config import AttributesConfig

SIZES = Sizes(dim=8, classes=(3, 2))
NETWORK = CmaConfig(layers=1, heads=2, dropout=0.0)


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def inputs(seed: int = 0) -> Inputs:
    rng = torch.Generator().manual_seed(seed)
    yes = torch.ones(4, dtype=torch.bool)
    return Inputs(
        torch.randn(4, 5, 8, generator=rng), torch.randn(4, 3, 8, generator=rng),
        torch.tensor([2, 1, 2, 0]), yes, yes,
    )  # fmt: skip


def test_a_linear_head_reads_both_vectors_side_by_side() -> None:
    network = make_arm("linear head", SIZES, NETWORK, 0).eval()
    batch = inputs()._replace(has_picture=torch.tensor([True, True, False, True]))
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.normal_(generator=torch.Generator().manual_seed(1))
        found = network(batch).logits
    weights = {key: value.numpy() for key, value in network.state_dict().items()}
    for place in range(2):
        for row in range(4):
            picture = batch.picture[row, 0].numpy()
            if row == 2:
                picture = weights[f"_tasks.{place}.missing"][0]
            both = np.concatenate([picture, batch.text[row, batch.ends[row]].numpy()])
            wanted = weights[f"_tasks.{place}.head.0.weight"] @ both
            wanted += weights[f"_tasks.{place}.head.0.bias"]
            np.testing.assert_allclose(found[place][row].numpy(), wanted, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(("arm", "read"), [("picture only", "picture"), ("text only", "text")])
def test_one_modality_never_sees_the_other(arm: str, read: str) -> None:
    network = make_arm(arm, SIZES, NETWORK, 0).eval()
    with torch.no_grad():
        before = network(inputs())
        other = {"picture": "text", "text": "picture"}[read]
        blind = network(inputs()._replace(**{other: getattr(inputs(9), other)}))
        moved = network(inputs()._replace(**{read: getattr(inputs(9), read)}))
    assert torch.equal(before.logits[0], blind.logits[0])
    assert not torch.allclose(before.logits[0], moved.logits[0])
    assert (before.picture_weight == float(read == "picture")).all()


def test_arms_start_the_same_for_a_seed_and_differ_between_seeds() -> None:
    for arm in ARMS:
        one, two, other = (make_arm(arm, SIZES, NETWORK, seed).state_dict() for seed in (1, 1, 2))
        assert all(torch.equal(one[key], two[key]) for key in one)
        assert not all(torch.equal(one[key], other[key]) for key in one)
    assert isinstance(make_arm("linear head", SIZES, NETWORK, 0), LinearHead)
    with pytest.raises(BenchmarkError, match="unknown arm 'x'"):
        make_arm("x", SIZES, NETWORK, 0)


def test_zero_shot_is_the_scaled_cosine_of_prompts(tmp_path: Path) -> None:
    encoder = make_encoder(tmp_path, TRANSFORMER)
    pictures = np.random.default_rng(0).normal(size=(3, 8)).astype(np.float32)
    [logits] = zero_shot(encoder, pictures, [("Red", "BLUE")])
    prompts = encoder.embed_texts(["a photo of red product", "a photo of blue product"])
    scale = float(encoder.model.logit_scale.detach().exp())
    for row in range(3):
        unit = pictures[row] / np.linalg.norm(pictures[row])
        np.testing.assert_allclose(logits[row], scale * prompts @ unit, rtol=1e-4)


@pytest.fixture
def shop(tmp_path: Path) -> Path:
    """Products of 4 colours, 2 kinds and 2 uses, as the fashion catalog has them."""
    folder = tmp_path / "data" / "fashion"
    folder.mkdir(parents=True)
    rng = np.random.default_rng(0)
    with (folder / "catalog.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["id", "title", "color", "article_type", "usage", "image"])
        for number in range(400):
            colour = COLOURS[int(rng.integers(4))]
            kind, use = ("mug", "sock")[number % 2], ("home", "sport")[number % 3 == 0]
            name = f"{number}.png"
            rgb = np.array(ImageColor.getrgb(colour)) // (1 + number % 2)
            Image.new("RGB", (32, 32), tuple(int(x) for x in rgb)).save(folder / name)
            writer.writerow([number, f"new {colour} {kind} {number}", colour, kind, use, name])
    return tmp_path / "data"


CONFIG = AttributesConfig(
    network=NETWORK, warm_up_epochs=1, epochs=1, tuning_epochs=0, batch_size=32, rising_steps=2
)


def test_a_study_in_small(shop: Path, tmp_path: Path) -> None:
    data = read_data(shop, 200, 30)
    assert len(data.train) == 200
    assert len(data.test) == 30
    titles = [set(side.titles) for side in (data.train, data.validation, data.test)]
    assert len(set.union(*titles)) == sum(map(len, titles))
    said: list[str] = []

    def start() -> ClipEncoder:
        return make_encoder(tmp_path, TRANSFORMER)

    study = Study(data, tmp_path / "out", CONFIG, start)
    for arm in ("full", "linear head", "zero-shot"):
        study.run(arm, 0, said.append)
    assert len(said) == 4
    before = (tmp_path / "out" / "full-0.npz").stat().st_mtime_ns
    study.run("full", 0, said.append)
    assert (tmp_path / "out" / "full-0.npz").stat().st_mtime_ns == before
    classifier = load_attributes(tmp_path / "out" / "classifier-0", device="cpu")
    assert classifier.trained_on.held_out == 0.15
    results = Results.read(data, tmp_path / "out")
    write_report(results, tmp_path / "out", "the command")
    page = (tmp_path / "out" / "report.md").read_text()
    assert "    the command" in page
    figures = json.loads((tmp_path / "out" / "figures.json").read_text())
    gain = figures["full - linear head/clean"]["mean"]["mean"]
    one, other = (figures[f"R@P90/clean/{arm}"]["mean"]["mean"] for arm in ("full", "linear head"))
    assert gain == pytest.approx(one - other)
    # Without titles lambda is 1, and without pictures it is 0.
    weights = figures["lambda/full/color"]
    assert (weights["no title"], weights["no picture"]) == (1, 0)
    [run] = results.runs("full", "clean").values()
    own = Predictions.of(np.zeros((1, 2)), np.zeros(1, np.int64)).classes
    assert [run[name].classes for name in ATTRIBUTES] == [4, own, own]
    assert run["color"].gold.tolist() == data.test.labels[:, 0].tolist()


def test_versions_of_a_test_set(shop: Path) -> None:
    data = read_data(shop, 100, 30)
    found = versions(data.test, data)
    words = found["words deleted"].titles
    assert all(not set(title.split()) & {"mug", "sock", *COLOURS} for title in words)
    assert set(found["no title"].titles) == {""}
    assert set(found["no picture, words deleted"].pictures) == {-1}
    assert found["no picture, words deleted"].titles == words
