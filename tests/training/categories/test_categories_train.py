"""Training of categorisers: what is learned, what adaptation adds, going on, and the command."""

from __future__ import annotations

import csv
import shlex
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from typer.testing import CliRunner

from indexing.attributes.labels import suggest
from indexing.attributes.vocabulary import OTHER
from indexing.catalog import read_catalog
from indexing.catalog.product import Product, ProductImage
from indexing.errors import ShoplensError, TrainingError
from indexing.models import load_encoder
from indexing.models.calibration import calibrate
from indexing.models.categorizer import load_categorizer
from indexing.models.categorizer.network import TitleEncoder
from indexing.models.clip import ClipEncoder
from indexing.models.token_pruning import TokenPruning
from shoplens import app
from training.attributes.data import UNKNOWN
from training.categories.adapt import Seen, adapt
from training.categories.config import AdaptConfig, CategoriesConfig, TuneConfig
from training.categories.data import Examples, make_examples, split_examples, with_titles
from training.categories.finetune import finetune
from training.categories.new import new_encoder
from training.categories.run import LAST, Sources, run_categories
from training.categories.stage import batch
from training.data import Pairs

SIZE = {
    **{"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2},
    **{"intermediate_size": 64, "max_position_embeddings": 64},
}
KINDS = ("mugs", "socks", "lamps", "chairs")
# Eight words for each kind, which have nothing in common.
WORDS = {
    "mugs": ["mug", "beaker", "tankard", "goblet", "stein", "cup", "chalice", "demitasse"],
    "socks": ["sock", "stocking", "hose", "legging", "ankle", "argyle", "footlet", "tabi"],
    "lamps": ["lamp", "torch", "lantern", "bulb", "sconce", "candle", "beacon", "lumen"],
    "chairs": ["chair", "stool", "bench", "throne", "recliner", "rocker", "perch", "ottoman"],
}
BRANDS = ["zora", "quil", "fenn", "brax", "odil", "tovo", "mirra", "kesh"]
TUNE = TuneConfig(epochs=10, batch_size=16, learning_rate=1e-3)
CONVIRT = AdaptConfig(method="convirt", epochs=20, batch_size=32, learning_rate=3e-3, dim=16)


@pytest.fixture(autouse=True, scope="module")
def one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def examples(count: int, words: slice = slice(None), seed: int = 0) -> Examples:
    """Titles of a brand, a word for one of the kinds, and a number; no pictures to be read."""
    rng = np.random.default_rng(seed)
    titles, labels = [], []
    for number in range(count):
        kind = number % len(KINDS)
        names = WORDS[KINDS[kind]][words]
        title = f"{rng.choice(BRANDS)} {rng.choice(names)} {rng.integers(1000)}"
        titles.append(title)
        labels.append(kind)
    pictures = [ProductImage(location=f"{number}.png") for number in range(count)]
    products = [f"p{number}" for number in range(count)]
    return Examples(Pairs(pictures, titles, np.arange(count), products), np.array(labels, np.int64))


@pytest.fixture(scope="module")
def start(tmp_path_factory: pytest.TempPathFactory) -> Callable[[], TitleEncoder]:
    """Makes a small encoder that knows all words as pieces, always the same."""
    folder = tmp_path_factory.mktemp("start")
    titles = examples(800).pairs.titles
    return lambda: new_encoder(titles, SIZE, folder / "tokenizer.json", seed=0)


Start = Callable[[], TitleEncoder]


def seen(own: Examples, seed: int = 1) -> Seen:
    """Beside pictures whose vectors say the kind, and some of the brand, under noise."""
    noise = torch.randn(len(own), 12, generator=torch.Generator().manual_seed(seed))
    kinds = torch.nn.functional.one_hot(torch.from_numpy(own.labels), 12).float()
    return Seen(own.pairs, kinds + 0.1 * noise)


def accuracy(encoder: TitleEncoder, train: Examples, test: Examples) -> float:
    network, _ = finetune(encoder, train, train, len(KINDS), TUNE, seed=0)
    found = network.read(network.encoder.tokenizer(test.pairs.titles)).argmax(1).numpy()
    return float(np.mean(found == test.labels))


def test_kinds_that_titles_name_are_learned_exactly(start: Start) -> None:
    test = examples(80, seed=5)
    assert accuracy(start(), examples(240), test) == 1.0


def test_pictures_teach_words_that_no_label_does(start: Start) -> None:
    """Labels know two of eight words for each kind; ConVIRT sees them all beside pictures."""
    train, test = examples(40, slice(0, 2), seed=3), examples(80, slice(2, None), seed=5)
    plain = accuracy(start(), train, test)
    adapted, blind = start(), start()
    history = adapt(adapted, seen(examples(240)), seen(examples(60, seed=7)), CONVIRT, seed=0)
    recalls = [done.measures["title -> picture R@10"] for done in history]
    assert recalls[-1] > recalls[0]
    simcse = CONVIRT.model_copy(update={"method": "simcse", "epochs": 2})
    adapt(blind, examples(240).pairs, None, simcse, seed=0)
    assert plain < 0.6
    assert accuracy(blind, train, test) < 0.6  # titles alone do not tell
    assert accuracy(adapted, train, test) > 0.95


def test_products_of_one_title_or_picture_are_no_negatives_of_each_other(start: Start) -> None:
    """Where all are, nothing can be learned from contrast: no weight moves."""
    own = examples(32).pairs
    titled = Pairs(own.pictures, own.titles[:1] * 32, np.zeros(32, np.int64), own.products)
    shown = Pairs(own.pictures[:1] * 32, own.titles, own.keys, own.products)
    vectors = torch.randn(32, 12)
    convirt = CONVIRT.model_copy(update={"epochs": 1, "weight_decay": 0})
    simcse = convirt.model_copy(update={"method": "simcse"})
    for config, train, moves in (
        (convirt, Seen(titled, vectors), False),
        (convirt, Seen(shown, vectors), False),
        (convirt, Seen(own, vectors), True),
        (simcse, titled, False),
        (simcse, shown, True),  # no picture is seen
    ):
        encoder = start()
        before = {key: value.clone() for key, value in encoder.state_dict().items()}
        adapt(encoder, train, None, config, seed=0)
        after = encoder.state_dict()
        assert any(not torch.equal(after[key], before[key]) for key in before) is moves


class StoppedError(Exception):
    pass


@pytest.mark.parametrize("at", [1, 5, 8])
def test_a_stopped_stage_goes_on_to_the_same_end(start: Start, tmp_path: Path, at: int) -> None:
    train, validation = examples(64), examples(40, seed=7)
    config = CONVIRT.model_copy(update={"epochs": 4})
    whole = start()
    expected = adapt(whole, seen(train), seen(validation), config, seed=3)
    steps: list[int] = []

    def stopping(step: object) -> None:
        steps.append(step.number)  # type: ignore[attr-defined]
        if len(steps) == at:
            raise StoppedError

    def go(encoder: TitleEncoder, on_step: Callable[[object], None]) -> object:
        return adapt(
            encoder, seen(train), seen(validation), config, seed=3, folder=tmp_path / LAST,
            identity="x", on_step=on_step,
        )  # fmt: skip

    with pytest.raises(StoppedError):
        go(start(), stopping)
    later: list[int] = []
    resumed = start()
    found = go(resumed, lambda step: later.append(step.number))  # type: ignore[attr-defined]
    assert found == expected
    assert later[0] == (at - 1) // 2 * 2 + 1  # the epoch of two steps that was under way
    for key, value in whole.state_dict().items():
        assert torch.equal(value, resumed.state_dict()[key])
    # What is done is not done again, and another run does not take it for its own.
    done, again = start(), list[int]()
    go(done, lambda step: again.append(1))
    assert again == []
    assert all(torch.equal(v, done.state_dict()[k]) for k, v in whole.state_dict().items())
    with pytest.raises(TrainingError, match="other settings, on another catalog"):
        adapt(start(), seen(train), None, config, seed=3, folder=tmp_path / LAST, identity="y")
    (tmp_path / LAST / "convirt.pt").write_bytes(b"PK")
    with pytest.raises(TrainingError, match="cannot be read"):
        go(start(), lambda step: None)


def test_the_best_round_is_kept(start: Start) -> None:
    """Labels of validation are those of training in the first epoch's favour: all wrong later."""
    train = examples(96)
    wrong = Examples(train.pairs, (train.labels + 1) % len(KINDS))
    network, history = finetune(start(), train, wrong, len(KINDS), TUNE, seed=0)
    scores = [done.measures["accuracy"] for done in history]
    assert max(scores) > scores[-1]
    found = network.read(network.encoder.tokenizer(train.pairs.titles)).argmax(1).numpy()
    assert np.mean(found == wrong.labels) == pytest.approx(max(scores))


def test_a_loss_that_is_not_finite_stops_the_run(start: Start) -> None:
    config = TUNE.model_copy(update={"learning_rate": 1e30})
    with pytest.raises(TrainingError, match="lower the learning rate"):
        finetune(start(), examples(64), examples(8), len(KINDS), config, seed=0)


def test_batches_see_all_rows_once_a_pass() -> None:
    rows = [batch(10, 3, 0, step) for step in range(6)]
    for one in (rows[:3], rows[3:]):
        assert len(set(np.concatenate(one).tolist())) == 9
    assert [row.tolist() for row in rows[:3]] != [row.tolist() for row in rows[3:]]
    assert sorted(batch(2, 3, 0, 7).tolist()) == [0, 1]


def product(number: int, title: str, category: str = "") -> Product:
    images = tuple(ProductImage(location=f"{number}-{view}.png") for view in range(2))
    return Product(id="same", title=title, category=category, images=images)


def test_examples_are_main_pictures_and_known_categories() -> None:
    made = [
        product(0, "red mug", "Mugs"), product(1, "blue mug", "mugs"), product(2, "a sock", "Sock"),
        product(3, "RED  mug!"), product(4, " - ", "Mugs"), product(5, "a lamp", "Rare"),
    ]  # fmt: skip
    labels = suggest({"category": [p.category for p in made] + ["Sock", "Mugs"]}, least=2)
    found = make_examples(made, labels, "category", labels.values("category"))
    assert labels.values("category") == ("Mugs", "Sock", OTHER)
    assert found.labels.tolist() == [0, 0, 1, UNKNOWN, 2]
    assert [picture.location for picture in found.pairs.pictures] == [
        "0-0.png", "1-0.png", "2-0.png", "3-0.png", "5-0.png",
    ]  # fmt: skip
    assert found.pairs.keys.tolist() == [0, 1, 2, 0, 3]  # one normalised title, one key
    assert found.labelled().pairs.titles == ["red mug", "blue mug", "a sock", "a lamp"]


def test_no_title_is_on_two_sides() -> None:
    own = examples(200)
    doubled = own.take([*range(200), *range(200)])
    train, validation = split_examples(doubled, 0.2, 0)
    assert not set(train.pairs.titles) & set(validation.pairs.titles)
    assert len(train) + len(validation) == 400
    unknown = Examples(own.pairs, np.full(200, UNKNOWN))
    with pytest.raises(TrainingError, match="give more products"):
        split_examples(unknown, 0.2, 0)


def test_cleaned_titles_that_read_alike_have_one_key() -> None:
    pairs = examples(4).pairs
    found = with_titles(pairs, ["a mug", "A mug", "", "a sock"])
    assert found.titles == ["a mug", "A mug", pairs.titles[2], "a sock"]
    assert found.keys.tolist() == [0, 0, 1, 2]


@pytest.fixture(scope="module")
def catalog(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """240 products; pictures show the kind, and a third has no category."""
    folder = tmp_path_factory.mktemp("catalog")
    colours = ("red", "green", "blue", "white")
    own = examples(240)
    for colour in colours:
        Image.new("RGB", (16, 16), colour).save(folder / f"{colour}.png")
    with (folder / "catalog.csv").open("w", newline="") as file:
        rows = csv.writer(file)
        rows.writerow(["id", "title", "image", "kind"])
        for row, (title, label) in enumerate(zip(own.pairs.titles, own.labels, strict=True)):
            kind = "" if row % 3 == 0 else KINDS[label]
            rows.writerow([row, title, f"{colours[label]}.png", kind])
        rows.writerow([999, "one of its kind", "red.png", "rarity"])
    return folder / "catalog.csv"


def run(line: str, *arguments: object) -> object:
    made = [*shlex.split(line), *map(str, arguments)]
    return CliRunner().invoke(app, made)


QUICK = "--ssl-epochs 2 --ssl-batch-size 32 --epochs 8 --batch-size 16 --learning-rate 1e-3"


def test_the_command_trains_what_categorize_opens(catalog: Path, tmp_path: Path) -> None:
    out = tmp_path / "model"
    result = run(f"train categories --label kind {QUICK}", catalog, "--out", out)
    assert result.exception is None, result.output  # type: ignore[attr-defined]
    made = load_categorizer(out, device="cpu")
    assert made.label == "kind"
    assert set(made.categories) == {*KINDS, OTHER}
    test = examples(40, seed=9)
    chances = made.probabilities(test.pairs.titles)
    found = [made.categories[place] for place in chances.argmax(1)]
    assert found == [KINDS[label] for label in test.labels]
    card = (out / "README.md").read_text()
    assert card.count("| convirt |") == 2
    assert card.count("| fine-tuning |") == 8
    assert not (out / LAST).exists()
    with (out / "labels.csv").open(newline="") as file:
        values = {row["raw"]: row["value"] for row in csv.DictReader(file)}
    assert values["rarity"] == OTHER
    asked = run("categorize", out, "brax goblet 7")
    assert asked.stdout.startswith("brax goblet 7: mugs")  # type: ignore[attr-defined]


def test_titles_are_cleaned_for_the_adaptation_alone(
    catalog: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cleaner = load_encoder("builtin", device="cpu")
    assert isinstance(cleaner, ClipEncoder)
    titles = examples(240).pairs.titles
    cleaner.pruning = TokenPruning(calibrate(cleaner, titles))
    adapted: list[str] = []
    tuned: list[str] = []

    def adapting(encoder: TitleEncoder, train: Pairs, *rest: object, **named: object) -> object:
        adapted.extend(train.titles)
        return []

    def tuning(encoder: TitleEncoder, train: Examples, *rest: Any, **named: Any) -> object:
        tuned.extend(train.pairs.titles)
        return finetune(encoder, train, *rest, **named)

    monkeypatch.setattr("training.categories.run.adapt", adapting)
    monkeypatch.setattr("training.categories.run.finetune", tuning)
    config = CategoriesConfig(adapt=AdaptConfig(method="simcse", learning_rate=1e-4), tune=TUNE)

    def start(shown: object, folder: Path) -> TitleEncoder:
        return new_encoder(titles, SIZE, folder / "tokenizer.json", seed=0)

    sources = Sources(start, "small", cleaner=cleaner)
    run_categories(sources, [read_catalog(catalog)], "kind", tmp_path / "m", config)
    whole = set(titles) | {"one of its kind"}
    assert set(tuned) <= whole
    assert not set(adapted) <= whole
    for title in adapted:
        assert any(set(title.split()) <= set(known.split()) for known in whole)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ("--label colour", "no product has the attribute 'colour'"),
        ("--ssl moco", "--ssl moco: choose none, simcse or convirt"),
        ("--ssl none --clean builtin", "--clean is for the adaptation"),
        ("--clean builtin", "was trained without token pruning"),
        ("--layers 2", "--layers is for the folder of a model"),
        ("--from nowhere", "is no text encoder"),
        ("--epochs 0", "--epochs 0"),
        ("--ssl-epochs 0", "--ssl-epochs 0"),
        ("--ssl-learning-rate 0", "--ssl-learning-rate 0"),
        ("--alpha 2", "--alpha 2"),
        ("--neg-view third", "--neg-view third"),
        ("--least 1000", "lower --least"),
        ("--labels nowhere.csv", "nowhere.csv cannot be read"),
    ],
)
def test_what_cannot_be_done_is_said(
    catalog: Path, tmp_path: Path, options: str, said: str
) -> None:
    label = "" if "--label " in options else "--label kind"
    result = run(f"train categories {label} {options}", catalog, "--out", tmp_path / "m")
    assert isinstance(result.exception, ShoplensError)  # type: ignore[attr-defined]
    assert said in str(result.exception)  # type: ignore[attr-defined]
