"""Categorisers: pooling by hand, padding, the folder and what is wrong with it, the command."""

from __future__ import annotations

import csv
import json
import shutil
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from typer.testing import CliRunner, Result

from indexing.attributes.vocabulary import OTHER, TrainedOn
from indexing.errors import MissingDependencyError, ModelError, ShoplensError
from indexing.models.categorizer import load_categorizer
from indexing.models.categorizer.bert import open_start
from indexing.models.categorizer.categorizer import Categorizer, CategorizerConfig
from indexing.models.categorizer.network import MAX_TOKENS, TitleClassifier, mean_pooled
from shoplens import app
from training.categories.new import new_encoder

TITLES = [
    "red stoneware mug", "blue wool sock", "mug", "a very long title of a red and blue wool sock",
    "", "sock 350ml", "wool",
]  # fmt: skip
CATEGORIES = ("mugs", "socks", OTHER)
SIZE = {
    **{"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2},
    **{"intermediate_size": 32, "max_position_embeddings": 64},
}


def make(folder: Path, *, threshold: float | None = 0.2) -> Categorizer:
    """With random weights, always the same."""
    encoder = new_encoder(TITLES * 2, SIZE, folder / "tokenizer.json", seed=0)
    torch.manual_seed(1)
    network = TitleClassifier(encoder, len(CATEGORIES))
    torch.nn.init.normal_(network.head.weight)
    config = CategorizerConfig(
        encoder=encoder.settings, label="kind", categories=CATEGORIES, temperature=2.0,
        threshold=threshold, trained_on=TrainedOn(held_out=0.1, seed=0),
    )  # fmt: skip
    return Categorizer("made", network, config)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Categorizer:
    return make(tmp_path_factory.mktemp("made"))


@pytest.fixture
def folder(model: Categorizer, tmp_path: Path) -> Path:
    model.save(tmp_path / "model", card="# A card\n")
    return tmp_path / "model"


def test_pooling_is_the_mean_over_tokens() -> None:
    states = torch.randn(3, 5, 4, generator=torch.Generator().manual_seed(0))
    lengths = [5, 2, 0]
    mask = torch.arange(5) < torch.tensor(lengths)[:, None]
    found = mean_pooled(states, mask)
    for row, length in enumerate(lengths):
        for place in range(4):
            values = [float(states[row, token, place]) for token in range(length)]
            expected = sum(values) / len(values) if values else 0.0
            assert float(found[row, place]) == pytest.approx(expected, abs=1e-6)


def test_a_vector_is_the_mean_of_berts_own_states(model: Categorizer) -> None:
    encoder = model.network.encoder
    for title in TITLES:
        tokens = encoder.tokenizer([title])
        with torch.no_grad():
            states = encoder.bert(input_ids=tokens.ids).last_hidden_state[0]
            torch.testing.assert_close(encoder(tokens)[0], states.mean(0), atol=1e-6, rtol=1e-5)


def test_answers_do_not_depend_on_the_batch(model: Categorizer) -> None:
    together = model.probabilities(TITLES * 50)  # more than one batch
    for number, title in enumerate(TITLES):
        alone = model.probabilities([title])[0]
        for copy in range(50):
            np.testing.assert_allclose(together[number + copy * len(TITLES)], alone, atol=1e-6)
    assert together.dtype == np.float32
    np.testing.assert_allclose(together.sum(1), 1, atol=1e-6)


def test_probabilities_are_calibrated(model: Categorizer) -> None:
    logits = model.logits(TITLES).astype(np.float64) / 2
    expected = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    np.testing.assert_allclose(model.probabilities(TITLES), expected, atol=1e-6)
    assert model.probabilities([]).shape == (0, 3)


def test_long_titles_are_cut_and_odd_ones_are_read(model: Categorizer) -> None:
    tokenizer = model.network.encoder.tokenizer
    tokens = tokenizer(["mug " * 500, "mug"])
    assert tokens.lengths.tolist() == [MAX_TOKENS, 3]
    # What comes after the cut has no effect.
    ways = model.probabilities(["mug " * 500, "mug " * 500 + "sock"])
    np.testing.assert_array_equal(ways[0], ways[1])
    assert np.isfinite(model.probabilities(["\ud800 mug", "[SEP] [PAD]", "\0", " "])).all()
    # Names of special tokens are words.
    assert len(set(tokenizer(["[SEP]"]).ids[0].tolist())) > 2


def test_sure_is_at_the_threshold_and_never_other(model: Categorizer, tmp_path: Path) -> None:
    chances = np.array([[0.2, 0.1, 0.0], [0.19, 0.1, 0.0], [0.1, 0.2, 0.7]], np.float32)
    assert model.sure(chances).tolist() == [True, False, False]
    assert not make(tmp_path, threshold=None).sure(chances).any()


def test_a_folder_holds_all(model: Categorizer, folder: Path) -> None:
    opened = load_categorizer(folder, device="cpu")
    np.testing.assert_array_equal(opened.probabilities(TITLES), model.probabilities(TITLES))
    assert (opened.label, opened.categories, opened.threshold) == ("kind", CATEGORIES, 0.2)
    assert opened.fingerprint == model.fingerprint
    assert sorted(file.name for file in folder.iterdir()) == [
        "README.md", "config.json", "model.safetensors", "tokenizer.json",
    ]  # fmt: skip


def test_the_fingerprint_tells_models_apart(model: Categorizer, folder: Path) -> None:
    known = {model.fingerprint}
    config = json.loads((folder / "config.json").read_text())
    for changes in ({"temperature": 3.0}, {"threshold": None}, {"label": "other"}):
        (folder / "config.json").write_text(json.dumps({**config, **changes}))
        known.add(load_categorizer(folder, device="cpu").fingerprint)
    (folder / "config.json").write_text(json.dumps(config))
    weights = load_file(folder / "model.safetensors")
    save_file({**weights, "head.bias": weights["head.bias"] + 1}, folder / "model.safetensors")
    known.add(load_categorizer(folder, device="cpu").fingerprint)
    assert len(known) == 5


def drop(name: str) -> Callable[[Path], None]:
    return lambda folder: (folder / name).unlink()


def edit(**changes: object) -> Callable[[Path], None]:
    def write(folder: Path) -> None:
        config = json.loads((folder / "config.json").read_text())
        (folder / "config.json").write_text(json.dumps({**config, **changes}))

    return write


def cut(folder: Path) -> None:
    data = (folder / "model.safetensors").read_bytes()
    (folder / "model.safetensors").write_bytes(data[: len(data) // 2])


def weights(change: Callable[[dict[str, torch.Tensor]], object]) -> Callable[[Path], None]:
    def write(folder: Path) -> None:
        held = load_file(folder / "model.safetensors")
        change(held)
        save_file(held, folder / "model.safetensors")

    return write


def more_pieces(folder: Path) -> None:
    tokenizer = json.loads((folder / "tokenizer.json").read_text())
    tokenizer["model"]["vocab"] |= {f"piece{number}": 1000 + number for number in range(900)}
    (folder / "tokenizer.json").write_text(json.dumps(tokenizer))


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (drop("config.json"), "it has no config.json"),
        (drop("model.safetensors"), "it has no model.safetensors"),
        (drop("tokenizer.json"), "it has no tokenizer.json"),
        (lambda folder: (folder / "config.json").write_text("{"), "config.json has"),
        (lambda folder: (folder / "tokenizer.json").write_text("{}"), "is not a tokenizer.json"),
        (edit(categories=["one"]), "config.json has categories"),
        (edit(categories=["a", "b"]), "cannot be loaded"),
        (edit(temperature=0), "config.json has temperature"),
        (edit(surprise=1), "config.json has surprise"),
        (edit(encoder={}), "make no text encoder"),
        (edit(encoder={"model_type": "nothing"}), "make no text encoder"),
        (edit(encoder={"model_type": "t5", "num_layers": 1}), "is no text encoder"),
        (cut, "cannot be loaded"),
        (weights(lambda held: held.pop("head.bias")), "head.bias"),
        (weights(lambda held: held["head.bias"].fill_(torch.nan)), "not finite"),
        (more_pieces, "do not belong together"),
    ],
)
def test_a_damaged_folder_is_refused(
    folder: Path, damage: Callable[[Path], None], said: str
) -> None:
    damage(folder)
    with pytest.raises(ModelError, match=said) as error:
        load_categorizer(folder, device="cpu")
    assert "\n" not in str(error.value)


def test_a_start_is_read_from_a_folder_of_transformers(model: Categorizer, tmp_path: Path) -> None:
    start = tmp_path / "start"
    encoder = model.network.encoder
    encoder.bert.save_pretrained(start)
    shutil.copy(encoder.tokenizer.file, start)
    opened = open_start(start)
    tokens = encoder.tokenizer(TITLES)
    with torch.no_grad():
        torch.testing.assert_close(opened.eval()(tokens), encoder(tokens))
    first = open_start(start, layers=1)
    assert len(first.bert.encoder.layer) == 1
    for key, value in first.state_dict().items():
        assert torch.equal(value, encoder.state_dict()[key])
    with pytest.raises(ModelError, match=r"--layers 3: .* has 1 to 2"):
        open_start(start, layers=3)
    held = load_file(start / "model.safetensors")
    lost = next(key for key in held if "layer.1.attention.self.query.weight" in key)
    save_file({k: v for k, v in held.items() if k != lost}, start / "model.safetensors")
    with pytest.raises(ModelError, match="lacks weights of its own model"):
        open_start(start)
    (start / "model.safetensors").unlink()
    with pytest.raises(ModelError, match=r"it has no model\.safetensors"):
        open_start(start)


def test_a_missing_library_is_named(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(MissingDependencyError, match=r"shoplens\[categories\]"):
        load_categorizer(folder, device="cpu")


def run(*arguments: object) -> Result:
    return CliRunner().invoke(app, ["categorize", *map(str, arguments)])


def test_titles_are_answered_with_confidence(model: Categorizer, folder: Path) -> None:
    result = run(folder, "red mug", "wool sock", "--json")
    assert result.exception is None
    found = [json.loads(line) for line in result.stdout.splitlines()]
    chances = model.probabilities(["red mug", "wool sock"])
    for own, each, sure in zip(found, chances, model.sure(chances), strict=True):
        assert own["category"] == CATEGORIES[int(each.argmax())]
        assert own["confidence"] == pytest.approx(float(each.max()), abs=1e-6)
        assert own["sure"] is bool(sure)
        assert own["categories"] == pytest.approx(
            dict(zip(CATEGORIES, map(float, each), strict=True)), abs=1e-6
        )
    [line] = run(folder, "red mug").stdout.splitlines()
    best = CATEGORIES[int(chances[0].argmax())]
    assert line.startswith(f"red mug: {best} {chances[0].max():.0%}")
    assert ("(not sure)" in line) is not bool(model.sure(chances)[0])


def test_a_file_gets_columns_and_a_broken_row_stops_nothing(
    model: Categorizer, folder: Path, tmp_path: Path
) -> None:
    source, out = tmp_path / "in.csv", tmp_path / "out.csv"
    source.write_bytes(
        b'id,name,sure\n1,"red mug, large",x\n2,blue sock,x,extra\n3,\xff,x\n4,,x\n5,wool\n'
    )
    result = run(folder, "--csv", source, "--out", out, "--title-column", "name")
    assert result.exception is None
    with out.open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["id"] for row in rows] == ["1", "4", "5"]
    assert list(rows[0]) == ["id", "name", "predicted_category", "confidence", "sure"]
    assert rows[0]["name"] == "red mug, large"
    assert [rows[1][name] for name in ("predicted_category", "confidence", "sure")] == [""] * 3
    for row in (rows[0], rows[2]):
        chances = model.probabilities([row["name"]])
        assert row["predicted_category"] == CATEGORIES[int(chances.argmax())]
        assert row["confidence"] == f"{chances.max():.3f}"
        assert row["sure"] == ("yes" if model.sure(chances)[0] else "no")
    assert "row 2: '2,blue sock,x,extra': 4 fields where the header has 3" in result.stderr
    assert "row 3" in result.stderr
    assert "is not UTF-8" in result.stderr
    assert "2 rows could not be read" in result.stderr


def test_more_rows_than_are_read_at_once(
    model: Categorizer, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("indexing.categorizing_cli._TOGETHER", 3)
    source, out = tmp_path / "in.csv", tmp_path / "out.csv"
    titles = [title for title in TITLES if title]
    source.write_text("title\n" + "\n".join(titles) + "\n")
    assert run(folder, "--csv", source, "--out", out).exception is None
    with out.open(newline="") as file:
        found = [row["predicted_category"] for row in csv.DictReader(file)]
    assert found == [CATEGORIES[place] for place in model.probabilities(titles).argmax(1)]


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ([], "give either titles, or --csv"),
        (["a title", "--csv", "in.csv", "--out", "out.csv"], "give either titles, or --csv"),
        (["--csv", "in.csv"], "--csv and --out go together"),
        (["a title", "--out", "out.csv"], "--csv and --out go together"),
        ([" "], "blank"),
        (["--csv", "in.csv", "--out", "out.csv", "--json"], "--json is for titles"),
        (["--csv", "in.csv", "--out", "no/out.csv"], "a folder that exists"),
        (["--csv", "in.csv", "--out", "out.csv"], "has no column 'title'; it has id, name"),
        (["--csv", "none.csv", "--out", "out.csv"], "none.csv"),
    ],
)
def test_what_cannot_be_done_is_refused(
    folder: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    arguments: list[str],
    said: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "in.csv").write_text("id,name\n1,mug\n")
    result = run(folder, *arguments)
    assert isinstance(result.exception, ShoplensError)
    assert said in str(result.exception)
    assert not (tmp_path / "out.csv").exists()
