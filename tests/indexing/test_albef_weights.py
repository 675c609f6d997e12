"""Checkpoints as ALBEF and LAVIS write them, folders, and files that are refused."""

from __future__ import annotations

import json
import logging
import math
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from indexing.errors import ModelError
from indexing.models import load_encoder
from indexing.models.albef.config import AlbefConfig
from indexing.models.albef.encoder import AlbefEncoder, new_encoder
from indexing.models.albef.network import AlbefModel
from indexing.models.albef.vision import resized_positions
from indexing.models.albef.weights import load_albef
from indexing.models.protocol import Pixels
from indexing.models.token_pruning import Pruning, TokenPruning

pytestmark = pytest.mark.usefixtures("one_thread")
WORDS = "text_encoder.bert.embeddings.word_embeddings.weight"
POSITIONS = "text_encoder.bert.embeddings.position_embeddings.weight"
TYPES = "text_encoder.bert.embeddings.token_type_embeddings.weight"
DECODER = "text_encoder.cls.predictions.decoder"
PATCHES = "visual_encoder.pos_embed"
TITLES = ["red mug", "blue shoes t-shirt", ""]
State = dict[str, Tensor]


@pytest.fixture
def ours(albef_config: AlbefConfig, albef_vocab: Path) -> AlbefEncoder:
    encoder = new_encoder(albef_config, albef_vocab, seed=0, device="cpu")
    drawn = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for value in encoder.model.parameters():
            value.add_(0.1 * torch.randn(value.shape, generator=drawn))
    return encoder


@pytest.fixture
def folder(tmp_path: Path, albef_config: AlbefConfig, albef_vocab: Path) -> Path:
    """What lies beside a checkpoint."""
    path = tmp_path / "downloads"
    path.mkdir()
    (path / "vocab.txt").write_bytes(albef_vocab.read_bytes())
    (path / "config.json").write_text(albef_config.model_dump_json())
    return path


def official(encoder: AlbefEncoder) -> tuple[State, Tensor]:
    """`model` of ALBEF.pth for these weights, and the token type that is part of their
    positions."""
    drawn = torch.Generator().manual_seed(2)
    state = {key: value.detach().clone() for key, value in encoder.model.state_dict().items()}
    state[f"{DECODER}.bias"] = state["text_encoder.cls.predictions.bias"]
    types = torch.randn(2, encoder.config.text_width, generator=drawn)
    state[TYPES] = types
    state[POSITIONS] = state[POSITIONS] - types[0]
    state["text_encoder.bert.embeddings.position_ids"] = torch.arange(14)[None]
    for part in ("visual_encoder", "text_encoder", "vision_proj", "text_proj"):
        state.update(
            (key.replace(part, f"{part}_m", 1), torch.full_like(value, 7))
            for key, value in list(state.items())
            if key.startswith(f"{part}.")
        )
    state["image_queue"] = torch.randn(6, 32, generator=drawn)
    state["text_queue"] = torch.full((6, 32), math.nan)
    state["queue_ptr"] = torch.zeros(1, dtype=torch.int64)
    return state, types[0]


def lavis_features(encoder: AlbefEncoder) -> State:
    state = {key: value.detach().clone() for key, value in encoder.model.state_dict().items()}
    state[f"{DECODER}.bias"] = state["text_encoder.cls.predictions.bias"]
    return {key: value for key, value in state.items() if not key.startswith("itm_head.")}


def lavis_retrieval(encoder: AlbefEncoder) -> State:
    state = {
        key.replace("text_encoder.bert.", "text_encoder."): value.detach().clone()
        for key, value in encoder.model.state_dict().items()
        if not key.startswith("text_encoder.cls.")
    }
    state["text_encoder.embeddings.position_ids"] = torch.arange(14)[None]
    state["text_encoder_m.encoder.layer.0.output.dense.bias"] = torch.zeros(12)
    state["idx_queue"] = torch.full((1, 32), -100)
    return state


def pixels(encoder: AlbefEncoder, count: int = 2) -> Pixels:
    size = encoder.image_size
    return torch.randn(count, 3, size, size, generator=torch.Generator().manual_seed(3)).numpy()


def same(found: AlbefEncoder, expected: AlbefEncoder, *, atol: float = 2e-6) -> None:
    seen = pixels(expected)
    np.testing.assert_allclose(found.embed_pixels(seen), expected.embed_pixels(seen), atol=atol)
    np.testing.assert_allclose(found.embed_texts(TITLES), expected.embed_texts(TITLES), atol=atol)
    assert np.abs(expected.embed_texts(TITLES[:1]) - expected.embed_texts(TITLES[1:2])).max() > 0.01


def same_match(found: AlbefEncoder, expected: AlbefEncoder) -> None:
    seen = pixels(expected)
    both = [encoder.match_text(TITLES[1], seen) for encoder in (found, expected)]
    np.testing.assert_allclose(both[0], both[1], atol=2e-6)


def same_words(found: AlbefEncoder, expected: AlbefEncoder) -> None:
    states = torch.randn(3, 12, generator=torch.Generator().manual_seed(4))
    both = [encoder.model.text_encoder.words(states) for encoder in (found, expected)]
    torch.testing.assert_close(both[0], both[1], rtol=0, atol=2e-6)


@pytest.mark.parametrize("within", ["model", "state_dict", None])
@pytest.mark.parametrize("zipped", [True, False])
def test_an_official_checkpoint(
    ours: AlbefEncoder, folder: Path, within: str | None, zipped: bool
) -> None:
    state, _ = official(ours)
    content = state if within is None else {within: state, "epoch": 3, "optimizer": {"lr": 1e-5}}
    torch.save(content, folder / "ALBEF.pth", _use_new_zipfile_serialization=zipped)
    for path in (folder / "ALBEF.pth", folder):
        found = load_encoder(f"albef:{path}", device="cpu")
        assert isinstance(found, AlbefEncoder)
        assert (found.name, found.has_match) == (f"albef:{path}", True)
        same(found, ours)
        same_match(found, ours)
        same_words(found, ours)
    shared = found.model.text_encoder
    assert shared.cls.predictions.decoder.weight is shared.bert.embeddings.word_embeddings.weight
    # Nothing is a view of the file, which may be replaced or removed.
    (folder / "ALBEF.pth").write_bytes(b"")
    same(found, ours)
    assert all(value.requires_grad and not value.is_meta for value in found.model.parameters())


def test_only_the_first_token_type_is_added(ours: AlbefEncoder, folder: Path) -> None:
    state, first = official(ours)
    torch.save({"model": state}, folder / "ALBEF.pth")
    found = load_albef(folder).model.state_dict()
    torch.testing.assert_close(found[POSITIONS], state[POSITIONS] + first, rtol=0, atol=0)
    assert TYPES not in found


def test_lavis_feature_extractor_cannot_match(ours: AlbefEncoder, folder: Path) -> None:
    torch.save({"model": lavis_features(ours)}, folder / "features.pth")
    found = load_albef(folder)
    same(found, ours)
    same_words(found, ours)
    assert not found.has_match
    ids = found.tokenizer(TITLES[:2])
    for match in (
        lambda: found.match_text("red mug", pixels(found)),
        lambda: found.match(torch.from_numpy(pixels(found)), ids, found.tokenizer.mask(ids)),
    ):
        with pytest.raises(ModelError, match=r"has no matching head \(itm_head\): use a checkp"):
            match()
    found.save(folder / "saved", card="")
    assert not load_albef(folder / "saved").has_match
    assert load_albef(folder / "saved").fingerprint == found.fingerprint


def test_lavis_retrieval_has_no_words(
    ours: AlbefEncoder, folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    torch.save({"model": lavis_retrieval(ours)}, folder / "retrieval.pt")
    state = torch.random.get_rng_state()
    with caplog.at_level(logging.DEBUG):
        found = load_albef(folder)
    assert torch.equal(torch.random.get_rng_state(), state)
    assert not caplog.messages  # nothing to worry about
    same(found, ours)
    same_match(found, ours)
    head = found.model.text_encoder.cls.predictions
    assert head.decoder.weight is found.model.text_encoder.bert.embeddings.word_embeddings.weight
    assert 0.01 < float(head.transform.dense.weight.detach().std()) < 0.3
    torch.manual_seed(5)  # the words' head is drawn, but always the same
    assert load_albef(folder).fingerprint == found.fingerprint


def test_a_temperature_that_is_missing_is_that_of_the_start(
    ours: AlbefEncoder, folder: Path
) -> None:
    state, _ = official(ours)
    del state["temp"]
    torch.save({"model": state}, folder / "ALBEF.pth")
    found = load_albef(folder)
    assert float(found.model.temp.detach()) == pytest.approx(0.07)
    same(found, ours)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_read_as_float32(
    ours: AlbefEncoder, folder: Path, dtype: torch.dtype
) -> None:
    state = {
        key: value.to(dtype) if value.is_floating_point() else value
        for key, value in official(ours)[0].items()
    }
    torch.save({"model": state}, folder / "ALBEF.pth")
    found = load_albef(folder)
    assert {value.dtype for value in found.model.state_dict().values()} == {torch.float32}
    seen = pixels(ours)
    assert (found.embed_pixels(seen) * ours.embed_pixels(seen)).sum(1).min() > 0.999
    assert torch.equal(found.model.state_dict()[WORDS], state[WORDS].float())


def test_words_with_weights_and_a_bias_of_their_own(ours: AlbefEncoder, folder: Path) -> None:
    state, _ = official(ours)
    state[f"{DECODER}.weight"] = state[f"{DECODER}.weight"].flip(0)
    state[f"{DECODER}.bias"] = torch.arange(float(ours.config.vocab_size))
    torch.save({"model": state}, folder / "ALBEF.pth")
    found = load_albef(folder)
    found.save(folder / "saved", card="")
    states = torch.randn(3, 12, generator=torch.Generator().manual_seed(4))
    for encoder in (found, load_albef(folder / "saved")):
        head = encoder.model.text_encoder.cls.predictions
        expected = head.transform(states) @ state[f"{DECODER}.weight"].T + state[f"{DECODER}.bias"]
        torch.testing.assert_close(encoder.model.text_encoder.words(states), expected)
        torch.testing.assert_close(encoder.model.state_dict()[WORDS], state[WORDS])
        assert isinstance(head.decoder.weight, torch.nn.Parameter)
    del state[f"{DECODER}.bias"]
    torch.save({"model": state}, folder / "ALBEF.pth")
    bias = load_albef(folder / "ALBEF.pth").model.text_encoder.cls.predictions.bias
    assert torch.equal(bias, state["text_encoder.cls.predictions.bias"])


def test_positions_are_resized_for_the_pictures_of_config_json(
    ours: AlbefEncoder, folder: Path
) -> None:
    state, _ = official(ours)
    torch.save({"model": state}, folder / "ALBEF.pth")
    larger = ours.config.model_copy(update={"image_size": 40})
    (folder / "config.json").write_text(larger.model_dump_json())
    found = load_albef(folder)
    assert found.image_size == 40
    torch.testing.assert_close(
        found.model.visual_encoder.pos_embed.detach(), resized_positions(state[PATCHES], 5)
    )
    assert found.embed_pixels(pixels(found)).shape == (2, 6)


@pytest.mark.parametrize("grid", [14, 24])
def test_without_config_json_the_positions_tell_the_size_of_pictures(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, albef_vocab: Path, grid: int
) -> None:
    """The base model, asked for with sizes that a test can afford."""
    small = AlbefConfig(
        patch_size=16, vision_width=8, vision_layers=1, vision_heads=2, vocab_size=30,
        text_width=8, text_layers=2, text_heads=2, text_intermediate=8, fusion_layer=1,
    )  # fmt: skip

    def sizes(**changes: Any) -> AlbefConfig:
        return AlbefConfig(**{**small.model_dump(), **changes})

    monkeypatch.setattr("indexing.models.albef.weights.AlbefConfig", sizes)
    state = AlbefModel(sizes(image_size=16 * grid)).state_dict()
    torch.save({"model": state}, tmp_path / "ALBEF.pth")
    (tmp_path / "vocab.txt").write_bytes(albef_vocab.read_bytes())
    found = load_albef(tmp_path / "ALBEF.pth")
    assert found.image_size == 16 * grid
    assert torch.equal(found.model.visual_encoder.pos_embed, state[PATCHES])


@pytest.mark.parametrize("beside", ["{}", '{"model_type": "bert"}', "[1]", None])
def test_a_config_json_of_another_model_is_left_aside_with_a_warning(
    ours: AlbefEncoder, folder: Path, caplog: pytest.LogCaptureFixture, beside: str | None
) -> None:
    torch.save(official(ours)[0], folder / "ALBEF.pth")
    if beside is None:
        (folder / "config.json").unlink()
    else:
        (folder / "config.json").write_text(beside)
    with pytest.raises(ModelError) as raised:  # the base model's sizes
        load_albef(folder / "ALBEF.pth")
    assert "other sizes than the base model's need a config.json beside it" in str(raised.value)
    assert "visual_encoder.cls_token is [1, 1, 16] and not [1, 1, 768]" in str(raised.value)
    warned = [
        f"{folder}/config.json has no vision_width: it is not an ALBEF model's, and is not used"
    ]
    assert caplog.messages == (warned if beside else [])


def test_safetensors_are_preferred_and_several_checkpoints_refused(
    ours: AlbefEncoder, folder: Path
) -> None:
    with pytest.raises(ModelError, match=r"has 0 files of weights: it must have one \.pth"):
        load_albef(folder)
    for name in ("a.pth", "b.pt", "c.safetensors"):
        (folder / name).write_bytes(b"")
    message = r"has 3 files of weights \(a.pth; b.pt; c.safetensors\): .* or name a file as albef:"
    with pytest.raises(ModelError, match=message):
        load_albef(folder)
    state = {key: value for key, value in ours.model.state_dict().items() if DECODER not in key}
    save_file(state, folder / "model.safetensors")
    same(load_albef(folder), ours)
    (folder / "model.safetensors").rename(folder / "c.safetensors")
    same(load_albef(folder / "c.safetensors"), ours)


def test_a_link_to_a_checkpoint_has_its_files_beside_it(ours: AlbefEncoder, folder: Path) -> None:
    (folder.parent / "blobs").mkdir()
    torch.save({"model": official(ours)[0]}, folder.parent / "blobs" / "4f2a")
    (folder / "ALBEF.pth").symlink_to(folder.parent / "blobs" / "4f2a")
    found = load_albef(folder / "ALBEF.pth")
    same(load_encoder(found.name, device="cpu"), ours)  # type: ignore[arg-type]


def test_a_name_holds_from_elsewhere(
    ours: AlbefEncoder, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    torch.save({"model": official(ours)[0]}, folder / "ALBEF.pth")
    monkeypatch.chdir(folder)
    assert load_encoder("albef:ALBEF.pth", device="cpu").name == f"albef:{folder}/ALBEF.pth"
    monkeypatch.setenv("HOME", str(folder))
    assert load_encoder("albef:~/ALBEF.pth", device="cpu").name == f"albef:{folder}/ALBEF.pth"


def complaint(path: Path) -> str:
    with pytest.raises(ModelError) as raised:
        load_albef(path)
    assert "\n" not in str(raised.value)
    return str(raised.value)


def changed(
    change: Callable[[State], object],
) -> Callable[[AlbefEncoder, Path], None]:
    def write(encoder: AlbefEncoder, folder: Path) -> None:
        state, _ = official(encoder)
        change(state)
        torch.save({"model": state}, folder / "ALBEF.pth")

    return write


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda s: s.pop("vision_proj.bias"), "no vision_proj.bias (does config.json have its"),
        (lambda s: s.pop("itm_head.bias"), "no itm_head.bias ("),
        (
            lambda s: s.pop("text_encoder.cls.predictions.transform.dense.bias"),
            "no text_encoder.cls.",
        ),
        (lambda s: s.update(head=torch.zeros(2)), "unknown head ("),
        (lambda s: s.update({"a\nb": torch.zeros(2)}), "unknown a b ("),
        (
            lambda s: s.update({"text_proj.weight": torch.zeros(6, 13)}),
            "text_proj.weight is [6, 13] and not [6, 12] (",
        ),
        (
            lambda s: s.update({PATCHES: torch.zeros(1, 9, 16)}),
            "visual_encoder.pos_embed is [1, 9, 16] and not [1, 10, 16] (",
        ),
        (
            lambda s: s.update({TYPES: torch.zeros(2, 13)}),
            f"unknown {TYPES} (",
        ),
        (
            lambda s: s["vision_proj.bias"].fill_(math.nan),
            "numbers that are not finite in vision_proj.bias",
        ),
        (lambda s: s[WORDS].view(-1)[5].fill_(math.inf), f"that are not finite in {WORDS}"),
        (
            lambda s: s.update({"vision_proj.bias": torch.zeros(6, dtype=torch.int64)}),
            "has what is no tensor of floating-point numbers: vision_proj.bias",
        ),
        (
            lambda s: s.update({"vision_proj.bias": "x"}),  # type: ignore[dict-item]
            "has what is no tensor of floating-point numbers: vision_proj.bias",
        ),
    ],
)
def test_weights_that_do_not_fit_are_named(
    ours: AlbefEncoder, folder: Path, change: Callable[[State], object], message: str
) -> None:
    changed(change)(ours, folder)
    found = complaint(folder)
    assert str(folder / "ALBEF.pth") in found
    assert message in found


def test_of_many_names_the_first_are_listed(ours: AlbefEncoder, folder: Path) -> None:
    changed(lambda state: [state.pop(key) for key in list(state) if ".bert." in key])(ours, folder)
    found = complaint(folder)
    assert found.count("no text_encoder.bert.") == 8
    gone = sum(".bert." in key for key in ours.model.state_dict())
    assert f"; and {gone - 8} more (does config.json" in found


class Stranger:
    pass


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (
            {"model": {}, "args": Stranger()},
            "Stranger, and what is not plain tensors could run code",
        ),
        (np.float64(1), "scalar, and what is not plain tensors could run code"),
        ([1], "holds no weights by name"),
        ({}, "no visual_encoder.cls_token"),
        (b"", "it is not a checkpoint of torch, or not whole"),
        (b"<html>", "it is not a checkpoint of torch, or not whole"),
        (b"version https://git-lfs", "it is not a checkpoint of torch, or not whole"),
        (None, "it is not a checkpoint of torch, or not whole"),
    ],
)
def test_a_file_that_is_more_or_less_than_tensors_is_refused(
    ours: AlbefEncoder, folder: Path, content: Any, message: str
) -> None:
    file = folder / "ALBEF.pth"
    if isinstance(content, bytes):
        file.write_bytes(content)
    elif content is None:
        torch.save({"model": official(ours)[0]}, file)
        os.truncate(file, file.stat().st_size // 2)
    else:
        torch.save(content, file)
    found = complaint(file)
    assert str(file) in found
    assert message in found


def test_what_lies_beside_the_weights_is_checked(ours: AlbefEncoder, folder: Path) -> None:
    torch.save({"model": official(ours)[0]}, folder / "ALBEF.pth")
    config = folder / "config.json"
    sizes = json.loads(config.read_text())
    for text, message in (
        ("{", "config.json cannot be read: Expecting property name"),
        (
            json.dumps({**sizes, "depth": 3}),
            "config.json has depth: Extra inputs are not permitted",
        ),
        (json.dumps({**sizes, "fusion_layer": 3}), "fusion_layer 3 leaves none of 3 text_layers"),
        (json.dumps({**sizes, "vocab_size": 20}), "vocab.txt has 24 tokens and the model 20"),
        (
            json.dumps({**sizes, "pruning": {"score": "raw"}}),
            "config.json has pruning.score: Input",
        ),
    ):
        config.write_text(text)
        assert message in complaint(folder)
    config.write_text(json.dumps(sizes))
    (folder / "vocab.txt").unlink()
    message = "has no vocab.txt: put that of bert-base-uncased beside ALBEF.pth"
    assert message in complaint(folder / "ALBEF.pth")
    assert "does not exist: give a checkpoint or a folder" in complaint(folder / "missing.pth")
    with pytest.raises(ModelError, match="albef: needs the path of a checkpoint"):
        load_encoder("albef:")


def test_a_vocabulary_that_is_too_short_is_doubted(
    ours: AlbefEncoder, folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    torch.save({"model": official(ours)[0]}, folder / "ALBEF.pth")
    pieces = (folder / "vocab.txt").read_text().splitlines()
    (folder / "vocab.txt").write_text("\n".join(pieces[:-2]))
    load_albef(folder)
    assert "vocab.txt has 22 tokens and the model 24: is it the one" in caplog.text


def test_pruning_comes_with_config_json_and_its_thresholds(
    ours: AlbefEncoder, folder: Path
) -> None:
    pruning = Pruning(
        score="pre", key="first", base=(0.0, -math.inf, -math.inf, 0.1),
        trained=(True, False, False, True), temperature=(1.0,) * 4, straight_through=True,
        cumulative=True, multiply=False, keys="same", weight=0.5,
    )  # fmt: skip
    ours.pruning = TokenPruning(pruning)
    ours.pruning.delta.data[:] = torch.tensor([1e-5, 0, 0, -2e-5])
    ours.save(folder / "model", card="", half=True)
    found = load_albef(folder / "model")
    assert found.pruning is not None
    assert found.pruning.config == pruning
    assert torch.equal(found.pruning.delta, ours.pruning.delta)
    config = json.loads((folder / "model" / "config.json").read_text())
    for key in ("base", "trained", "temperature"):
        config["pruning"][key] = config["pruning"][key][:3]
    (folder / "model" / "config.json").write_text(json.dumps(config))
    assert "pruning.delta must be 3 finite numbers" in complaint(folder / "model")
    del config["pruning"]
    (folder / "model" / "config.json").write_text(json.dumps(config))
    assert "has pruning.delta and config.json no pruning" in complaint(folder / "model")
