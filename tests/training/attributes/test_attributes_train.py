"""Training of attribute classifiers: what each stage trains, what counts, and going on."""

from __future__ import annotations

import csv
import shlex
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image, ImageColor
from torch import Tensor
from typer.testing import CliRunner

from indexing.attributes.labels import Labels, suggest
from indexing.attributes.vocabulary import TrainedOn
from indexing.catalog.product import Product, ProductImage
from indexing.errors import TrainingError
from indexing.models.clip import ClipEncoder
from indexing.models.cma_clip import load_attributes
from indexing.models.cma_clip.network import CmaConfig, CmaNetwork, Sizes, initial
from shoplens import app
from tests.training.conftest import COLOURS, NOISE, TRANSFORMER, make_encoder
from training.attributes.config import AttributesConfig
from training.attributes.data import (
    UNKNOWN,
    Examples,
    make_examples,
    read_products,
    split_examples,
)
from training.attributes.run import calibrated_classifier
from training.attributes.stage import class_weights, losses
from training.attributes.train import StepDone, train_attributes

SIZES = Sizes(dim=8, classes=(4, 2))
CONFIG = AttributesConfig(
    network=CmaConfig(layers=1, heads=2, dropout=0.1),
    warm_up_epochs=2, epochs=2, tuning_epochs=1, batch_size=16, rising_steps=2,
    warm_up_rate=1e-3, learning_rate=1e-3, tuning_rate=1e-3, augment=False,
)  # fmt: skip
KINDS = ("mug", "sock")


def products(folder: Path, count: int = 48) -> list[Product]:
    """Pictures of one of four colours, light ones mugs and dark ones socks; titles name the
    colour."""
    folder.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(0)
    found = []
    for number in range(count):
        colour, kind = COLOURS[number % 4], KINDS[number % 3 == 0]
        path = folder / f"{number}.png"
        rgb = np.array(ImageColor.getrgb(colour)) * (0.5 if kind == "sock" else 1)
        Image.new("RGB", (32, 32), tuple(int(x) for x in rgb)).save(path)
        words = [NOISE[int(rng.integers(len(NOISE)))], colour]
        known = {"color": colour, "kind": kind} if number % 5 else {"kind": kind}
        found.append(
            Product(
                id=f"p{number}", title=f"{' '.join(words)} {number}", attributes=known,
                images=(ProductImage(location=path.name, path=path),),
            )
        )  # fmt: skip
    return found


def data(folder: Path) -> tuple[Labels, list[tuple[str, tuple[str, ...]]], Examples, Examples]:
    made = products(folder)
    raw = {name: [p.attributes.get(name, "") for p in made] for name in ("color", "kind")}
    labels = suggest(raw, least=2)
    named = [(name, labels.values(name)) for name in raw]
    return (labels, named, *split_examples(make_examples(made, labels, named), 0.25, 0))


@pytest.fixture
def make(tmp_path: Path) -> Callable[[], tuple[ClipEncoder, CmaNetwork]]:
    def made() -> tuple[ClipEncoder, CmaNetwork]:
        return make_encoder(tmp_path, TRANSFORMER), initial(SIZES, CONFIG.network, 0)

    return made


Start = Callable[[], tuple[ClipEncoder, CmaNetwork]]


def changed(before: dict[str, Tensor], after: dict[str, Tensor]) -> set[str]:
    return {key for key in before if not torch.equal(before[key], after[key])}


def copied(state: dict[str, Tensor]) -> dict[str, Tensor]:
    return {key: value.clone() for key, value in state.items()}


@pytest.mark.parametrize(
    ("epochs", "parts"),
    [
        ((1, 0, 0), {"sequence", "_tasks"}),
        ((0, 1, 0), {"sequence", "_tasks", "picture", "title"}),
        ((0, 0, 1), {"_tasks"}),
    ],
)
def test_each_stage_trains_its_parts_and_no_others(
    make: Start, tmp_path: Path, epochs: tuple[int, int, int], parts: set[str]
) -> None:
    _, _, train, validation = data(tmp_path / "p")
    encoder, network = make()
    names = ("warm_up_epochs", "epochs", "tuning_epochs")
    config = CONFIG.model_copy(update=dict(zip(names, epochs, strict=True)))
    towers, own = copied(encoder.model.state_dict()), copied(network.state_dict())
    train_attributes(encoder, network, train, validation, tmp_path / "run", config, "x")
    found = {key.split(".")[0] for key in changed(own, network.state_dict())}
    moved = changed(towers, encoder.model.state_dict())
    found |= {"picture" if key.startswith("visual") else "title" for key in moved}
    assert found == parts


def test_a_locked_picture_tower_stays(make: Start, tmp_path: Path) -> None:
    _, _, train, validation = data(tmp_path / "p")
    encoder, network = make()
    before = copied(encoder.model.state_dict())
    config = CONFIG.model_copy(update={"lock_image": True})
    train_attributes(encoder, network, train, validation, tmp_path / "run", config, "x")
    moved = changed(before, encoder.model.state_dict())
    assert moved
    assert not any(key.startswith("visual") for key in moved)


def test_one_attribute_has_no_third_stage() -> None:
    assert [stage.trained for stage in CONFIG.stages(1)] == ["network", "all"]
    assert [stage.trained for stage in CONFIG.stages(2)] == ["network", "all", "tasks"]


def test_weights_of_classes_by_hand() -> None:
    labels = np.array([[0, 1], [0, UNKNOWN], [0, 1], [0, 1], [1, UNKNOWN]])
    color, use = class_weights(labels, (3, 2), 0.5)
    # 4, 1 and (as none was seen) 1 products: 1/2, 1 and 1, scaled to 1 on average over 6.
    scale = 6 / (4 * 0.5 + 1 + 1)
    np.testing.assert_allclose(color, [0.5 * scale, scale, scale], rtol=1e-6)
    scale = 4 / (1 + 3 * 3**-0.5)
    np.testing.assert_allclose(use, [scale, 3**-0.5 * scale], rtol=1e-6)
    assert class_weights(labels, (3, 2), 0.0)[0].tolist() == [1, 1, 1]


def test_losses_by_hand_and_the_unknown_counts_for_nothing() -> None:
    logits = torch.tensor([[1.0, 0.0], [0.0, 2.0], [5.0, -5.0]])
    labels = torch.tensor([[0, UNKNOWN], [1, UNKNOWN], [UNKNOWN, UNKNOWN]])
    weights = [torch.tensor([2.0, 1.0]), torch.tensor([1.0, 1.0])]
    first, second = losses([logits, logits], labels, weights)
    one, two = np.log(1 + np.exp(-1)), np.log(1 + np.exp(-2))
    assert float(first) == pytest.approx((2 * one + two) / 3, rel=1e-6)
    assert float(second) == 0


def test_it_learns_colours_from_pictures_and_words(tmp_path: Path) -> None:
    labels, named, train, validation = data(tmp_path / "p")
    encoder = make_encoder(tmp_path, TRANSFORMER)
    network = initial(SIZES, CONFIG.network, 0)
    config = CONFIG.model_copy(
        update={
            "warm_up_epochs": 0,
            "epochs": 40,
            "learning_rate": 5e-3,
            "modality_dropout": 0.3,
            "hide_words": 0.0,
        }
    )
    folder = tmp_path / "run"
    history = train_attributes(encoder, network, train, validation, folder, config, "x")
    assert max(epoch.accuracy[0] for epoch in history) > 0.9  # chance is .25
    classifier = calibrated_classifier(
        encoder, network, labels, named, train, validation, folder, config,
        TrainedOn(held_out=0.25, seed=0),
    )  # fmt: skip
    assert classifier.trained_on.held_out == 0.25
    pixels = np.stack(
        [classifier.preprocess(Image.new("RGB", (32, 32), colour)) for colour in COLOURS[:4]]
    )
    color = classifier.attributes[0]
    by_picture = classifier.predict(pixels, None)["color"].argmax(1)
    assert [color.values[place] for place in by_picture] == COLOURS[:4]
    by_title = classifier.predict(None, [f"new {c} 1" for c in COLOURS[:4]])["color"].argmax(1)
    assert [color.values[place] for place in by_title] == COLOURS[:4]
    assert sum(color.prior) == pytest.approx(1)


class StopError(Exception):
    pass


@pytest.mark.parametrize("stop", [1, 2, 3, 7, 9])
def test_a_run_that_was_stopped_goes_on_the_same(make: Start, tmp_path: Path, stop: int) -> None:
    _, _, train, validation = data(tmp_path / "p")
    seen: list[float] = []
    encoder, network = make()
    whole = train_attributes(
        encoder, network, train, validation, tmp_path / "whole", CONFIG, "x",
        on_step=lambda step: seen.append(step.loss),
    )  # fmt: skip
    config = CONFIG.model_copy(update={"checkpoint_minutes": 0.0})  # saved after each step
    again: list[float] = []

    def on_step(step: StepDone) -> None:
        if step.number > stop and len(again) <= stop:
            raise StopError  # before this step is saved
        again.append(step.loss)

    other, second = make()
    with pytest.raises(StopError):
        train_attributes(
            other, second, train, validation, tmp_path / "run", config, "x", on_step=on_step
        )
    del again[stop:]
    other, second = make()

    def go_on(step: StepDone) -> None:
        again.append(step.loss)

    history = train_attributes(
        other, second, train, validation, tmp_path / "run", config, "x", on_step=go_on
    )
    assert again == seen
    assert history == whole
    assert not changed(network.state_dict(), second.state_dict())
    assert not changed(encoder.model.state_dict(), other.model.state_dict())


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU")
def test_a_gpu_trains_the_same_within_rounding(make: Start, tmp_path: Path) -> None:
    _, _, train, validation = data(tmp_path / "p")
    config = CONFIG.model_copy(
        update={"network": CONFIG.network.model_copy(update={"dropout": 0.0}), "precision": "fp32"}
    )
    seen: dict[str, list[float]] = {"cpu": [], "cuda": []}
    for device, losses_seen in seen.items():
        encoder, _ = make()
        encoder.model.to(device)
        encoder.device = device
        network = initial(SIZES, config.network, 0)
        train_attributes(
            encoder, network, train, validation, tmp_path / device, config, "x",
            on_step=lambda step, own=losses_seen: own.append(step.loss),
        )  # fmt: skip
    assert seen["cuda"] == pytest.approx(seen["cpu"], rel=1e-2)


def test_a_run_of_other_settings_or_data_is_not_taken_up(make: Start, tmp_path: Path) -> None:
    _, _, train, validation = data(tmp_path / "p")
    config = CONFIG.model_copy(update={"epochs": 0, "tuning_epochs": 0})
    train_attributes(*make(), train, validation, tmp_path / "run", config, "x")
    with pytest.raises(TrainingError, match="other settings"):
        train_attributes(*make(), train, validation, tmp_path / "run", CONFIG, "x")
    with pytest.raises(TrainingError, match="another catalog"):
        train_attributes(*make(), train, validation, tmp_path / "run", config, "y")
    (tmp_path / "run" / "run.pt").write_bytes(b"no")
    with pytest.raises(TrainingError, match=r"run\.pt cannot be read"):
        train_attributes(*make(), train, validation, tmp_path / "run", config, "x")


def test_an_infinite_loss_names_products(make: Start, tmp_path: Path) -> None:
    _, _, train, validation = data(tmp_path / "p")
    encoder, network = make()
    with torch.no_grad():
        network.tasks[0].head[-1].bias[:] = float("nan")
    with pytest.raises(TrainingError, match=r"nan in stage warm-up \(products: p"):
        train_attributes(encoder, network, train, validation, tmp_path / "run", CONFIG, "x")


def test_pictures_that_cannot_be_read_are_left_out(make: Start, tmp_path: Path) -> None:
    _, _, train, validation = data(tmp_path / "p")
    for number, picture in enumerate(train.pictures):
        if picture.path is not None and number % 2:
            picture.path.write_bytes(b"no picture")
    encoder, network = make()
    history = train_attributes(encoder, network, train, validation, tmp_path / "run", CONFIG, "x")
    assert len(history) == 5
    assert all(np.isfinite(epoch.loss) for epoch in history)


def test_attributes_that_no_product_has(tmp_path: Path) -> None:
    with pytest.raises(TrainingError, match=r"'colour'; did you mean color\? there are color, k"):
        read_products([products(tmp_path)], ["colour"])


def test_catalogs_without_a_product() -> None:
    with pytest.raises(TrainingError, match="no product that can be used"):
        read_products([[]], ["color"])


def test_titles_are_on_one_side() -> None:
    count = 200
    examples = Examples(
        [ProductImage(location="x")] * count,
        [f"title {n % 50}" if n % 2 else f"TITLE, {n % 50}" for n in range(count)],
        [""] * count,
        np.zeros((count, 1), np.int64),
        [str(number) for number in range(count)],
    )  # fmt: skip
    train, validation = split_examples(examples, 0.3, 0)
    assert len(train) + len(validation) == count
    normal = [
        {title.lower().replace(",", "") for title in side.titles} for side in (train, validation)
    ]
    assert not normal[0] & normal[1]
    with pytest.raises(TrainingError, match="cannot be split"):
        split_examples(examples.take([0]), 0.3, 0)


@pytest.fixture
def catalog(tmp_path: Path) -> Path:
    folder = tmp_path / "shop"
    rows = [
        {"id": p.id, "title": p.title, "image": p.images[0].location, "color": "", **p.attributes}
        for p in products(folder)
    ]
    with (folder / "catalog.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    return folder / "catalog.csv"


@pytest.fixture
def model(tmp_path: Path) -> Path:
    (tmp_path / "files").mkdir()
    make_encoder(tmp_path / "files", TRANSFORMER).save(tmp_path / "model", card="")
    return tmp_path / "model"


OPTIONS = shlex.split(
    "--attributes color,kind --layers 1 --heads 2 --warm-up-epochs 1 --epochs 1 --tuning-epochs 1 "
    "--batch-size 16 --validation-share 0.25 --least 2"
)


def test_the_command_writes_a_classifier(catalog: Path, model: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    done = CliRunner().invoke(
        app,
        ["train", "attributes", str(catalog), "--from", str(model), "--out", str(out), *OPTIONS],
    )
    assert done.exit_code == 0, done.output
    assert {path.name for path in out.iterdir()} == {
        "README.md", "attributes.json", "attributes.safetensors", "encoder", "labels.csv", "log",
    }  # fmt: skip
    classifier = load_attributes(out, device="cpu")
    assert [a.name for a in classifier.attributes] == ["color", "kind"]
    assert set(classifier.attributes[1].values) == {"mug", "sock"}
    card = (out / "README.md").read_text()
    assert "| end-to-end | 1 |" in card
    assert "| color | image+text |" in card


def test_the_command_takes_an_edited_table(catalog: Path, model: Path, tmp_path: Path) -> None:
    table = tmp_path / "table.csv"
    rows = [("color", c, 9, "warm" if c in ("red", "yellow") else "cold") for c in COLOURS[:4]]
    rows += [("kind", kind, 9, kind) for kind in KINDS]
    lines = ["attribute,raw,count,value", *(",".join(map(str, row)) for row in rows)]
    table.write_text("\n".join(lines) + "\n")
    start = ["train", "attributes", str(catalog), "--from", str(model), "--labels", str(table)]
    done = CliRunner().invoke(app, [*start, "--out", str(tmp_path / "out"), *OPTIONS])
    assert done.exit_code == 0, done.output
    classifier = load_attributes(tmp_path / "out", device="cpu")
    assert set(classifier.attributes[0].values) == {"warm", "cold"}
    assert classifier.value_of("color", "Yellow") == "warm"


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--attributes", "colour"], "no product has the attribute 'colour'"),
        (["--attributes", ","], "names none"),
        (
            ["--attributes", "color", "--heads", "3", "--least", "2"],
            "3 heads do not divide a width of 8",
        ),
        (["--attributes", "color", "--layers", "0"], "--layers 0"),
        (["--attributes", "color", "--balance", "2"], "--balance 2.0"),
        (["--attributes", "color", "--warm-up-epochs", "0", "--epochs", "0"], "no stage"),
        (["--attributes", "color", "--labels", "none.csv"], "label table none.csv"),
        (["--attributes", "color", "--least", "40"], "fewer than two"),
    ],
)
def test_wrong_options_are_named(
    catalog: Path, model: Path, tmp_path: Path, options: list[str], said: str
) -> None:
    start = ["train", "attributes", str(catalog), "--from", str(model)]
    with pytest.raises(TrainingError) as caught:
        app([*start, "--out", str(tmp_path / "out"), *options], standalone_mode=False)
    assert said in str(caught.value)


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)
