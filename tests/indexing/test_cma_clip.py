"""CMA-CLIP: tokens of the towers, the network against plain loops, and the folder."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor, nn
from typer.testing import CliRunner

from indexing.attributes.attention import as_seen, attention_maps
from indexing.attributes.labels import Label, Labels
from indexing.attributes.vocabulary import Attribute, Calibration, TrainedOn
from indexing.errors import ModelError, QueryError
from indexing.models.clip import ClipEncoder, create_model
from indexing.models.cma_clip import load_attributes
from indexing.models.cma_clip.classifier import CmaClassifier, uncalibrated
from indexing.models.cma_clip.network import CmaConfig, CmaNetwork, Inputs, Sizes, initial
from indexing.models.cma_clip.towers import picture_tokens, text_tokens
from shoplens import app

TEXT = {"context_length": 77, "vocab_size": 49408, "width": 16, "heads": 2, "layers": 1}
VIT = {"layers": 1, "width": 32, "head_width": 16, "patch_size": 16}
TOWERS: dict[str, dict[str, Any]] = {
    "vit": VIT,
    "vit that averages": {**VIT, "pool_type": "avg"},
    "vit with its norm last": {**VIT, "pool_type": "avg", "final_ln_after_pool": True},
    "resnet": {"layers": [1, 1, 1, 1], "width": 8},
    "timm convolutions": {
        "timm_model_name": "mobilenetv2_035", "timm_pool": "avg", "timm_proj": "linear",
    },
    "timm vit": {
        "timm_model_name": "vit_tiny_patch16_224", "timm_pool": "", "timm_proj": "linear",
    },
}  # fmt: skip
SIZES = Sizes(dim=8, classes=(3, 2))
SMALL = CmaConfig(layers=2, heads=2, dropout=0.0)


def make_model(vision: dict[str, Any], **options: Any) -> Any:
    torch.manual_seed(0)
    size = 224 if "patch16_224" in str(vision) else 64
    config = {"embed_dim": 8, "vision_cfg": {**vision, "image_size": size}, "text_cfg": TEXT}
    return create_model({**config, **options}).eval(), size


@pytest.mark.parametrize("name", TOWERS)
def test_the_first_picture_token_is_the_pictures_vector(name: str) -> None:
    model, size = make_model(TOWERS[name])
    pixels = torch.randn(2, 3, size, size, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        tokens = picture_tokens(model, pixels)
        torch.testing.assert_close(tokens[:, 0], model.encode_image(pixels), rtol=1e-5, atol=1e-5)
    side = size // (32 if "conv" in name or name == "resnet" else 16)
    assert tokens.shape == (2, 1 + side * side, 8)
    # Patches differ from place to place: they are not copies of one vector.
    assert float(tokens[:, 1:].std(dim=1).min()) > 0


def test_patches_of_a_linear_tower_average_to_the_pictures_vector() -> None:
    model, size = make_model(TOWERS["timm convolutions"])
    with torch.no_grad():
        tokens = picture_tokens(model, torch.randn(2, 3, size, size))
    torch.testing.assert_close(tokens[:, 1:].mean(1), tokens[:, 0], rtol=1e-5, atol=1e-5)


def test_a_patch_belongs_to_its_place() -> None:
    """Row by row: what changes at the bottom right changes the last patch most."""
    model, size = make_model({**VIT, "layers": 0})
    blank = torch.zeros(1, 3, size, size)
    changed = blank.clone()
    changed[..., -16:, -16:] = 1
    with torch.no_grad():
        moved = (picture_tokens(model, changed) - picture_tokens(model, blank))[0, 1:].norm(dim=1)
    assert moved.argmax() == len(moved) - 1
    assert float(moved[:-1].max()) < 1e-6 * float(moved[-1])


@pytest.mark.parametrize("custom", [False, True])
def test_the_token_at_the_end_is_the_texts_vector(custom: bool) -> None:
    import open_clip

    model, _ = make_model(VIT, custom_text=custom)
    ids = open_clip.get_tokenizer("ViT-B-32")(["a red mug", "", "a"])
    with torch.no_grad():
        tokens, ends = text_tokens(model, ids)
        vectors = model.encode_text(ids)
    assert ends.tolist() == [4, 1, 2]
    assert tokens.shape[1] == 5  # no place is read beyond the longest text
    torch.testing.assert_close(tokens[torch.arange(3), ends], vectors, rtol=1e-5, atol=1e-6)


def test_a_tower_that_pools_its_last_place() -> None:
    """As SigLIP: nothing is causal, and padding is read."""
    text = {**TEXT, "context_length": 8, "vocab_size": 50, "no_causal_mask": True,
            "pool_type": "last", "proj_bias": True}  # fmt: skip
    torch.manual_seed(0)
    model = create_model(
        {"embed_dim": 8, "vision_cfg": {**VIT, "image_size": 64}, "text_cfg": text,
         "custom_text": True}
    ).eval()  # fmt: skip
    ids = torch.tensor([[3, 4, 5, 1, 1, 1, 1, 1]])
    with torch.no_grad():
        tokens, ends = text_tokens(model, ids)
        torch.testing.assert_close(tokens[0, ends[0]], model.encode_text(ids)[0])
    assert ends.tolist() == [7]


def test_towers_that_have_no_tokens_are_refused() -> None:
    class Other(nn.Module):
        visual = nn.Identity()
        text = nn.Identity()

    with pytest.raises(ModelError, match="Identity has none that can be projected"):
        picture_tokens(Other(), torch.zeros(1, 3, 64, 64))
    with pytest.raises(ModelError, match="Identity is none"):
        text_tokens(Other(), torch.zeros(1, 4, dtype=torch.int64))


def make_inputs(
    has_picture: list[bool], has_text: list[bool], ends: list[int], seed: int = 0
) -> Inputs:
    rng = torch.Generator().manual_seed(seed)
    count = len(ends)
    return Inputs(
        torch.randn(count, 5, 8, generator=rng),
        torch.randn(count, 1 + max(ends), 8, generator=rng),
        torch.tensor(ends),
        torch.tensor(has_picture),
        torch.tensor(has_text),
    )


def made(config: CmaConfig) -> CmaNetwork:
    """A network whose every weight counts, also those that start at 0."""
    network = initial(SIZES, config, 0).eval()
    rng = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(0.3 * torch.randn(parameter.shape, generator=rng))
    return network


Floats = NDArray[np.float64]


def by_hand(network: CmaNetwork, inputs: Inputs, row: int) -> tuple[list[Floats], list[float]]:
    """Logits and lambda of one product, by loops over heads and places."""
    w = {key: value.double().numpy() for key, value in network.state_dict().items()}
    picture, text = (part[row].double().numpy() for part in (inputs.picture, inputs.text))
    end = int(inputs.ends[row])
    has_picture, has_text = bool(inputs.has_picture[row]), bool(inputs.has_text[row])
    image, words = picture[0], text[end]
    if network.sequence is not None:
        mark = w["sequence.kind"][1] if has_text else w["sequence.no_text"]
        first = list(picture) if has_picture else [w["sequence.no_picture"]]
        states = [p + w["sequence.kind"][0] for p in first] + [t + mark for t in text[: end + 1]]
        for number in range(network.config.layers):
            states = _layer(states, w, f"sequence.encoder.layers.{number}.", network.config.heads)
        states = [_norm(s, w, "sequence.encoder.norm.") for s in states]
        image, words = states[0], states[-1]
    logits, weights = [], []
    for number in range(len(SIZES.classes)):
        own = f"_tasks.{number}."
        scores = [float(w[own + "weight"][0] @ image), float(w[own + "weight"][-1] @ words)]
        if not network.config.modality_wise:
            scores = [0.0, 0.0]
        part = math.exp(scores[0]) / (math.exp(scores[0]) + math.exp(scores[1]))
        part = part if has_picture and has_text else float(has_picture)
        fused = part * image + (1 - part) * words
        hidden = _gelu(w[own + "head.0.weight"] @ fused + w[own + "head.0.bias"])
        logits.append(w[own + "head.3.weight"] @ hidden + w[own + "head.3.bias"])
        weights.append(part)
    return logits, weights


def _layer(states: list[Floats], w: dict[str, Floats], own: str, heads: int) -> list[Floats]:
    dim = len(states[0])
    size = dim // heads
    normed = [_norm(s, w, own + "norm1.") for s in states]
    projected = [
        w[own + "self_attn.in_proj_weight"] @ s + w[own + "self_attn.in_proj_bias"] for s in normed
    ]
    out = []
    for place, state in enumerate(states):
        mixed = np.zeros(dim)
        for head in range(heads):
            q, k, v = (slice(part * dim + head * size, part * dim + (head + 1) * size)
                       for part in range(3))  # fmt: skip
            found = [float(projected[place][q] @ p[k]) / math.sqrt(size) for p in projected]
            shares = np.exp(found) / np.exp(found).sum()
            mixed[head * size : (head + 1) * size] = sum(
                share * p[v] for share, p in zip(shares, projected, strict=True)
            )
        state = state + w[own + "self_attn.out_proj.weight"] @ mixed
        state = state + w[own + "self_attn.out_proj.bias"]
        inner = _gelu(w[own + "linear1.weight"] @ _norm(state, w, own + "norm2.")
                      + w[own + "linear1.bias"])  # fmt: skip
        out.append(state + w[own + "linear2.weight"] @ inner + w[own + "linear2.bias"])
    return out


def _norm(x: Floats, w: dict[str, Floats], own: str) -> Floats:
    scaled = (x - x.mean()) / math.sqrt(x.var() + 1e-5)
    result: Floats = scaled * w[own + "weight"] + w[own + "bias"]
    return result


def _gelu(x: Floats) -> Floats:
    return np.array([value * 0.5 * (1 + math.erf(value / math.sqrt(2))) for value in x])


ROWS = make_inputs([True, True, False, True], [True, False, True, True], [3, 1, 2, 1])


@pytest.mark.parametrize(
    "config",
    [
        SMALL,
        SMALL.model_copy(update={"modality_wise": False}),
        SMALL.model_copy(update={"sequence_wise": False}),
        SMALL.model_copy(update={"sequence_wise": False, "modality_wise": False}),
        SMALL.model_copy(update={"shared_weight": False}),
    ],
)
@pytest.mark.parametrize("grad", [False, True])  # torch has a fast path without
def test_the_network_is_what_loops_say(config: CmaConfig, grad: bool) -> None:
    network = made(config)
    with torch.set_grad_enabled(grad):
        found = network(ROWS)
    for row in range(4):
        logits, weights = by_hand(network, ROWS, row)
        for own, wanted in zip(found.logits, logits, strict=True):
            np.testing.assert_allclose(own[row].detach().numpy(), wanted, rtol=2e-4, atol=2e-4)
        np.testing.assert_allclose(
            found.picture_weight[row].detach().numpy(), weights, rtol=1e-4, atol=1e-5
        )


@pytest.mark.parametrize("sequence_wise", [True, False])
def test_what_is_missing_is_not_read(sequence_wise: bool) -> None:
    network = made(SMALL.model_copy(update={"sequence_wise": sequence_wise}))
    other = make_inputs([True] * 4, [True] * 4, [3, 1, 2, 1], seed=9)
    # Row 2 has no picture; behind each end there is padding; row 1 has no title, and its T
    # would be read by nobody but the sequence, which keeps its two tokens.
    picture = torch.where(ROWS.has_picture[:, None, None], ROWS.picture, other.picture)
    behind = torch.arange(4)[None, :, None] > ROWS.ends[:, None, None]
    text = torch.where(behind, other.text, ROWS.text)
    with torch.no_grad():
        before, after = network(ROWS), network(ROWS._replace(picture=picture, text=text))
    for one, two in zip(before.logits, after.logits, strict=True):
        torch.testing.assert_close(one, two, rtol=1e-5, atol=1e-5)


def test_lambda_starts_at_one_half_and_is_forced_where_a_side_is_missing() -> None:
    network = initial(SIZES, SMALL, 0).eval()
    with torch.no_grad():
        weights = network(ROWS).picture_weight
    assert weights.tolist() == [[0.5, 0.5], [1, 1], [0, 0], [0.5, 0.5]]


def test_attention_is_a_share_of_what_may_be_read() -> None:
    network = made(SMALL)
    assert network.sequence is not None
    with torch.no_grad():
        maps = network.sequence.attention(ROWS)
        _, hidden = network.sequence.joined(ROWS)
    torch.testing.assert_close(maps.sum(-1), torch.ones(4, maps.shape[1]))
    assert float(maps.transpose(1, 2)[hidden].abs().max()) == 0


def test_attention_of_one_layer_by_hand() -> None:
    network = made(CmaConfig(layers=1, heads=2, dropout=0.0))
    assert network.sequence is not None
    w = {key: value.double().numpy() for key, value in network.state_dict().items()}
    own = "sequence.encoder.layers.0."
    with torch.no_grad():
        states, _ = network.sequence.joined(ROWS)
        found = network.sequence.attention(ROWS)[0].numpy()
    projected = [
        w[own + "self_attn.in_proj_weight"] @ _norm(s, w, own + "norm1.")
        + w[own + "self_attn.in_proj_bias"]
        for s in states[0].double().numpy()
    ]
    for place, at in enumerate(projected):
        shares = np.zeros(len(projected))
        for head in (0, 4):
            scores = np.exp([at[head : head + 4] @ p[8 + head : 12 + head] / 2 for p in projected])
            shares += scores / scores.sum() / 2
        np.testing.assert_allclose(found[place], shares, rtol=1e-4, atol=1e-5)


def test_heads_must_divide_the_width() -> None:
    with pytest.raises(ValueError, match="3 heads do not divide a width of 8"):
        CmaNetwork(SIZES, CmaConfig(heads=3))
    CmaNetwork(SIZES, CmaConfig(heads=3, sequence_wise=False))


def test_layers_start_different_and_the_same_for_a_seed() -> None:
    one, two = initial(SIZES, SMALL, 3).state_dict(), initial(SIZES, SMALL, 3).state_dict()
    assert all(torch.equal(one[key], two[key]) for key in one)
    first, second = (one[f"sequence.encoder.layers.{n}.linear1.weight"] for n in (0, 1))
    assert not torch.equal(first, second)


# The classifier and its folder


LABELS = Labels(
    [Label("color", "Red", 3, "Red"), Label("color", "Blue", 2, "Blue"),
     Label("color", "Puce", 1, "other"), Label("use", "Home", 3, "Home"),
     Label("use", "Sport", 3, "Sport")]
)  # fmt: skip


def attribute(name: str, values: tuple[str, ...], temperatures: tuple[float, ...]) -> Attribute:
    calibration = uncalibrated(len(values))
    for mode, temperature in zip(list(calibration), temperatures, strict=True):
        calibration[mode] = Calibration(
            temperature=temperature, threshold=0.5, classes=(0.4, *[None] * (len(values) - 1))
        )
    prior = tuple(1 / len(values) for _ in values)
    return Attribute(name=name, values=values, prior=prior, calibration=calibration)


@pytest.fixture
def classifier() -> CmaClassifier:
    import open_clip

    torch.manual_seed(0)
    config = {
        "model_cfg": {"embed_dim": 8, "vision_cfg": {**VIT, "image_size": 64}, "text_cfg": TEXT},
        "preprocess_cfg": {"size": 64, "mode": "RGB", "mean": [0.5] * 3, "std": [0.5] * 3},
        "tokenizer": "ViT-B-32",
    }
    encoder = ClipEncoder(
        "tiny", create_model(config["model_cfg"]), open_clip.get_tokenizer("ViT-B-32"), config
    )
    return CmaClassifier(
        "here",
        encoder,
        made(SMALL),
        (
            attribute("color", ("Red", "Blue", "other"), (1.0, 2.0, 3.0)),
            attribute("use", ("Home", "Sport"), (0.5, 1.0, 1.0)),
        ),
        LABELS,
        [(0.5, -0.5, 1.0), (0.0, 0.0)],
        TrainedOn(held_out=0.1, seed=0),
    )


TITLES = ["a red mug", "", "blue sport sock"]


def pixels_of(classifier: CmaClassifier) -> Tensor:
    colours = ["red", "white", "blue"]
    return np.stack([classifier.preprocess(Image.new("RGB", (64, 80), c)) for c in colours])


def test_probabilities_are_natural_and_calibrated_for_what_each_row_has(
    classifier: CmaClassifier,
) -> None:
    pixels = pixels_of(classifier)
    chances = classifier.predict(pixels, TITLES)
    with torch.no_grad():
        raw = classifier.network(classifier.inputs(pixels, TITLES)).logits
    # Rows 0 and 2 have both, row 1 a picture alone: MODES is image, text, image+text.
    for name, own, tilt, temperatures in (
        ("color", raw[0], [0.5, -0.5, 1.0], [3.0, 1.0, 3.0]),
        ("use", raw[1], [0.0, 0.0], [1.0, 0.5, 1.0]),
    ):
        for row, temperature in enumerate(temperatures):
            logits = [(float(x) - t) / temperature for x, t in zip(own[row], tilt, strict=True)]
            powers = [math.exp(x) for x in logits]
            wanted = [power / sum(powers) for power in powers]
            np.testing.assert_allclose(chances[name][row], wanted, rtol=1e-4)


def test_a_row_does_not_depend_on_its_batch(classifier: CmaClassifier) -> None:
    pixels = pixels_of(classifier)
    whole = classifier.predict(pixels, TITLES)
    for row in range(3):
        alone = classifier.predict(pixels[row : row + 1], TITLES[row : row + 1])
        for name in whole:
            np.testing.assert_allclose(alone[name][0], whole[name][row], rtol=1e-4, atol=1e-6)


def test_one_modality_alone(classifier: CmaClassifier) -> None:
    pixels = pixels_of(classifier)
    by_picture = classifier.read(pixels, None)
    assert by_picture.modes == ["image"] * 3
    assert (by_picture.picture_weight == 1).all()
    blank = classifier.predict(pixels, ["", " ", "\n"])
    np.testing.assert_allclose(classifier.predict(pixels, None)["color"], blank["color"])
    by_title = classifier.read(None, TITLES)
    assert by_title.modes == ["text"] * 3
    assert (by_title.picture_weight == 0).all()
    with pytest.raises(ValueError, match="3 pictures and 1 titles"):
        classifier.predict(pixels, ["x"])
    with pytest.raises(ValueError, match="neither"):
        classifier.predict(None, None)


def test_neither_picture_nor_title_gives_the_prior(classifier: CmaClassifier) -> None:
    chances = classifier.predict(None, ["", "a red mug"])
    np.testing.assert_allclose(chances["color"][0], [1 / 3] * 3, rtol=1e-5)
    assert abs(chances["color"][1] - 1 / 3).max() > 1e-3


def test_more_rows_than_a_batch(classifier: CmaClassifier) -> None:
    titles = [f"mug {number}" for number in range(70)]
    chances = classifier.predict(None, titles)
    for row in (0, 63, 64, 69):
        alone = classifier.predict(None, [titles[row]])
        np.testing.assert_allclose(alone["use"][0], chances["use"][row], rtol=1e-4, atol=1e-6)


def test_a_folder_comes_back_whole(classifier: CmaClassifier, tmp_path: Path) -> None:
    classifier.save(tmp_path / "cma", card="card\n")
    again = load_attributes(tmp_path / "cma", device="cpu")
    assert again.name == str(tmp_path / "cma")
    assert again.fingerprint == classifier.fingerprint
    assert again.attributes == classifier.attributes
    assert again.trained_on == classifier.trained_on
    pixels = pixels_of(classifier)
    before, after = classifier.predict(pixels, TITLES), again.predict(pixels, TITLES)
    assert all(np.array_equal(before[name], after[name]) for name in before)
    assert again.value_of("color", "puce") == "other"
    assert (tmp_path / "cma" / "README.md").read_text() == "card\n"


def test_a_fingerprint_tells_labels_calibration_and_weights_apart(
    classifier: CmaClassifier,
) -> None:
    prints = {classifier.fingerprint}
    classifier.labels = Labels(LABELS.rows[:-1])
    prints.add(classifier.fingerprint)
    classifier.tilts = ((0.5, -0.5, 1.1), (0.0, 0.0))
    prints.add(classifier.fingerprint)
    with torch.no_grad():
        classifier.network.tasks[0].weight[0, 0] += 1
    prints.add(classifier.fingerprint)
    assert len(prints) == 4


def test_folders_that_are_not_whole(classifier: CmaClassifier, tmp_path: Path) -> None:
    folder = tmp_path / "cma"
    with pytest.raises(ModelError, match=r"has no attributes\.json.*train attributes"):
        load_attributes(folder)
    classifier.save(folder, card="")
    config = json.loads((folder / "attributes.json").read_text())
    config["attributes"][0]["values"] = ["Red", "Blue"]
    (folder / "attributes.json").write_text(json.dumps(config))
    with pytest.raises(ModelError, match="cannot be loaded"):
        load_attributes(folder, device="cpu")
    config["attributes"] = []
    (folder / "attributes.json").write_text(json.dumps(config))
    with pytest.raises(ModelError, match=r"attributes\.json has attributes"):
        load_attributes(folder, device="cpu")
    classifier.save(folder, card="")
    (folder / "attributes.safetensors").write_bytes(b"no")
    with pytest.raises(ModelError, match="cannot be loaded"):
        load_attributes(folder, device="cpu")


def test_what_is_sure_enough() -> None:
    color = attribute("color", ("Red", "Blue", "other"), (1.0, 1.0, 1.0))
    chances = np.array([[0.4, 0.3, 0.3], [0.39, 0.3, 0.31], [0, 1, 0], [0, 0, 1]], np.float32)
    # Red has a threshold, Blue has none, and `other` is never used.
    assert color.decide(chances, "image").tolist() == [0, -1, -1, -1]


# One product, as people look at it


def test_words_look_at_patches(classifier: CmaClassifier) -> None:
    picture = Image.new("RGB", (64, 64), "red")
    maps = attention_maps(classifier, picture, "red sock")
    assert [word.text for word in maps] == ["red", "sock"]
    sequence = classifier.network.sequence
    assert sequence is not None
    with torch.no_grad():
        inputs = classifier.inputs(classifier.preprocess(picture)[None], ["red sock"])
        read = sequence.attention(inputs)[0].numpy()
    for place, word in enumerate(maps, start=1):  # behind the start of the text
        own = read[17 + place, 1:17]
        np.testing.assert_allclose(word.map.reshape(-1), own / own.sum(), rtol=1e-4)
        assert word.map.shape == (4, 4)


def test_maps_lie_on_the_picture_as_the_tower_sees_it(classifier: CmaClassifier) -> None:
    picture = Image.new("RGB", (64, 128), "red")
    picture.paste("blue", (0, 0, 64, 40))  # cut off, as the middle is what is seen
    seen = as_seen(classifier, picture)
    assert seen.size == (64, 64)
    assert seen.getpixel((32, 63)) == (255, 0, 0)
    first = np.asarray(seen)[:, 32]
    assert (first[:, 0] > 128).sum() > 50


def test_a_classifier_without_sequence_wise_attention_shows_none(
    classifier: CmaClassifier,
) -> None:
    classifier.network = made(SMALL.model_copy(update={"sequence_wise": False}))
    with pytest.raises(ModelError, match="no sequence-wise attention"):
        attention_maps(classifier, Image.new("RGB", (64, 64)), "red")


def test_the_command_reads_one_product(classifier: CmaClassifier, tmp_path: Path) -> None:
    folder, picture, sheet = tmp_path / "cma", tmp_path / "mug.png", tmp_path / "look.png"
    classifier.save(folder, card="")
    Image.new("RGB", (64, 80), "red").save(picture)
    start = ["attributes", str(folder), "--image", str(picture), "--title", "a red mug"]
    done = CliRunner().invoke(app, [*start, "--json", "--sheet", str(sheet)])
    assert done.exit_code == 0, done.output
    color, use = (json.loads(line) for line in done.stdout.splitlines())
    chances = classifier.predict(pixels_of(classifier)[:1], ["a red mug"])
    for found, attribute in zip((color, use), classifier.attributes, strict=True):
        own = dict(zip(attribute.values, chances[attribute.name][0].tolist(), strict=True))
        assert found["values"] == pytest.approx(own, abs=1e-5)
        best = max(own, key=lambda value: own[value])
        assert next(iter(found["values"])) == best
        assert found["sure"] == (best == attribute.values[0] and own[best] >= 0.4)
    assert 0 < color["picture_weight"] < 1
    with Image.open(sheet) as drawn:
        assert drawn.width > 400
    lines = CliRunner().invoke(app, [*start[:2], "--title", "a red mug"]).stdout.splitlines()
    assert lines[0].startswith("color: ")
    assert lines[0].endswith("picture 0%")


@pytest.mark.parametrize(
    ("options", "said"),
    [([], "give --image, --title"), (["--title", "x", "--sheet", "a.png"], "give --image and")],
)
def test_the_command_needs_something_to_read(options: list[str], said: str) -> None:
    with pytest.raises(QueryError, match=said):
        app(["attributes", "folder", *options], standalone_mode=False)
