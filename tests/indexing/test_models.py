"""Encoders: folders, open_clip names, text without padding, and what must not matter."""

from __future__ import annotations

import io
import json
import math
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image, ImageDraw
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer, pre_tokenizers, processors
from tokenizers.models import WordLevel
from torch.nn import functional

from indexing.errors import ModelError
from indexing.images import decode_image
from indexing.models import load_encoder
from indexing.models.calibration import observed_scores
from indexing.models.clip import ClipEncoder, create_model, load_folder, load_open_clip
from indexing.models.pruned_text import PrunedText
from indexing.models.text import embed_tokens
from indexing.models.token_pruning import Pruning, TokenPruning
from indexing.models.tokenizers import FolderTokenizer

WORDS = ["[PAD]", "[UNK]", "red", "blue", "mug", "shoe", "large", "[SOT]", "[EOT]"]
PLAIN: dict[str, Any] = {
    "embed_dim": 16,
    "vision_cfg": {"image_size": 16, "layers": 2, "width": 32, "head_width": 16, "patch_size": 8},
    "text_cfg": {
        "context_length": 12,
        "vocab_size": len(WORDS),
        "width": 32,
        "heads": 2,
        "layers": 2,
    },
}
CONVOLUTIONAL: dict[str, Any] = {
    **PLAIN,
    "vision_cfg": {
        "timm_model_name": "mobilenetv2_050",
        "timm_pool": "avg",
        "timm_proj": "linear",
        "image_size": 32,
    },
}


def write_folder(folder: Path, model_cfg: dict[str, Any], seed: int = 0) -> ClipEncoder:
    folder.mkdir()
    tokenizer = Tokenizer(WordLevel({word: i for i, word in enumerate(WORDS)}, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[SOT] $A [EOT]", special_tokens=[("[SOT]", 7), ("[EOT]", 8)]
    )
    tokenizer.save(str(folder / "tokenizer.json"))
    torch.manual_seed(seed)
    size = model_cfg["vision_cfg"]["image_size"]
    config = {
        "model_cfg": model_cfg,
        "preprocess_cfg": {"size": size, "mode": "RGB", "mean": [0.5] * 3, "std": [0.5] * 3},
    }
    encoder = ClipEncoder(
        str(folder),
        create_model(model_cfg),
        FolderTokenizer(folder / "tokenizer.json", model_cfg["text_cfg"]["context_length"]),
        config,
        tokenizer_file=folder / "tokenizer.json",
    )
    encoder.save(folder, card="# test\n")
    return encoder


def pictures(count: int, size: tuple[int, int] = (40, 30)) -> list[Image.Image]:
    rng = np.random.default_rng(1)
    return [
        Image.fromarray(rng.integers(0, 255, (size[1], size[0], 3), dtype=np.uint8))
        for _ in range(count)
    ]


@pytest.mark.parametrize("model_cfg", [PLAIN, CONVOLUTIONAL], ids=["vit", "timm"])
def test_a_saved_folder_is_the_same_encoder(tmp_path: Path, model_cfg: dict[str, Any]) -> None:
    encoder = write_folder(tmp_path / "model", model_cfg)
    loaded = load_encoder(str(tmp_path / "model"), device="cpu")
    assert loaded.fingerprint == encoder.fingerprint
    assert (loaded.dim, loaded.image_size) == (16, model_cfg["vision_cfg"]["image_size"])
    np.testing.assert_array_equal(
        loaded.embed_images(pictures(3)), encoder.embed_images(pictures(3))
    )
    np.testing.assert_array_equal(
        loaded.embed_texts(["red mug", ""]), encoder.embed_texts(["red mug", ""])
    )
    np.testing.assert_allclose(np.linalg.norm(loaded.embed_texts(["red"]), axis=1), 1, atol=1e-6)


def test_half_precision_files_are_half_the_size_and_nearly_the_same(tmp_path: Path) -> None:
    encoder = write_folder(tmp_path / "model", PLAIN)
    encoder.save(tmp_path / "half", card="", half=True)
    half = load_folder(tmp_path / "half")
    sizes = [(tmp_path / name / "model.safetensors").stat().st_size for name in ("model", "half")]
    assert sizes[1] < 0.6 * sizes[0]
    cosine = (half.embed_images(pictures(4)) * encoder.embed_images(pictures(4))).sum(1)
    assert cosine.min() > 0.9999
    assert half.fingerprint != encoder.fingerprint


def test_the_fingerprint_sees_weights_preprocessing_and_tokenizer(tmp_path: Path) -> None:
    prints = {write_folder(tmp_path / "a", PLAIN).fingerprint}
    prints.add(write_folder(tmp_path / "other weights", PLAIN, seed=1).fingerprint)
    write_folder(tmp_path / "b", PLAIN)
    config = json.loads((tmp_path / "b" / "config.json").read_text())
    config["preprocess_cfg"]["mean"] = [0.4] * 3
    (tmp_path / "b" / "config.json").write_text(json.dumps(config))
    prints.add(load_folder(tmp_path / "b").fingerprint)
    write_folder(tmp_path / "c", PLAIN)
    text = (tmp_path / "c" / "tokenizer.json").read_text()
    (tmp_path / "c" / "tokenizer.json").write_text(text.replace('"shoe"', '"boot"'))
    prints.add(load_folder(tmp_path / "c").fingerprint)
    assert len(prints) == 4


PRUNED = Pruning(
    score="pre",
    key="first",
    base=(-math.inf, 0.0),
    trained=(False, True),
    temperature=(1.0, 0.5),
    straight_through=True,
    cumulative=True,
    multiply=False,
    keys="same",
    weight=0.5,
)
TITLES = ["red mug", "large blue shoe mug red", "", "mug " * 30, "blue", "sofa red shoe"]


def write_pruned(folder: Path) -> ClipEncoder:
    """A folder whose threshold is among the scores of TITLES."""
    encoder = write_folder(folder, PLAIN)
    scores, prunable = observed_scores(encoder, TITLES, "pre", "first")
    pruning = TokenPruning(PRUNED)
    pruning.delta.data[1] = scores[1][prunable[1]].median() + 1e-3 / 3
    encoder.pruning = pruning
    encoder.save(folder, card="")
    return encoder


@pytest.mark.parametrize("half", [False, True])
def test_a_pruned_encoder_survives_its_folder(tmp_path: Path, half: bool) -> None:
    encoder = write_pruned(tmp_path / "model")
    whole = write_folder(tmp_path / "whole", PLAIN)
    changed = np.abs(encoder.embed_texts(TITLES) - whole.embed_texts(TITLES)).max(1)
    assert (changed > 1e-3).sum() > 2
    assert encoder.pruning is not None
    loaded = load_folder(tmp_path / "model")
    for number in range(3):
        assert loaded.pruning is not None
        assert loaded.pruning.config == PRUNED
        assert torch.equal(loaded.pruning.delta, encoder.pruning.delta)
        assert loaded.pruning.delta.dtype == torch.float32
        assert "pruning" not in loaded.config
        if not half:
            np.testing.assert_array_equal(loaded.embed_texts(TITLES), encoder.embed_texts(TITLES))
            assert loaded.fingerprint == encoder.fingerprint
        loaded.save(tmp_path / str(number), card="", half=half)
        loaded = load_folder(tmp_path / str(number))


def test_the_fingerprint_sees_the_pruning(tmp_path: Path) -> None:
    prints = {write_folder(tmp_path / "whole", PLAIN).fingerprint}
    encoder = write_pruned(tmp_path / "model")
    prints.add(encoder.fingerprint)
    assert encoder.pruning is not None
    encoder.pruning.delta.data[1] += 2e-5
    prints.add(encoder.fingerprint)
    changed = TokenPruning(PRUNED.model_copy(update={"keys": "next"}))
    changed.delta.data = encoder.pruning.delta.data
    encoder.pruning = changed
    prints.add(encoder.fingerprint)
    assert len(prints) == 4
    encoder.pruning = None
    assert encoder.fingerprint in prints


def test_pruned_texts_are_those_of_hard_masks_in_every_batch(tmp_path: Path) -> None:
    encoder = write_pruned(tmp_path / "model")
    assert encoder.pruning is not None
    texts = [" ".join(TITLES[i % 5 : i % 5 + 1 + i % 3]) for i in range(300)]  # groups, batches
    together = encoder.embed_texts(texts)
    with torch.inference_mode():
        ids = encoder.tokenizer(texts)
        masked = PrunedText(encoder.model, encoder.pruning)(ids, hard=True)
    expected = functional.normalize(masked.embeddings, dim=-1).numpy()
    np.testing.assert_allclose(together, expected, atol=1e-6)
    assert 0.2 < masked.kept() < 0.8
    alone = np.concatenate([encoder.embed_texts([text]) for text in texts[:20]])
    assert (together[:20] * alone).sum(1).min() >= 0.99999
    shuffled = encoder.embed_texts(texts[::-1])[::-1]
    assert (together * shuffled).sum(1).min() >= 0.99999
    assert encoder.embed_texts([]).shape == (0, 16)


@pytest.mark.parametrize(
    ("changes", "delta", "message"),
    [
        ({"lambda": 1}, [0, 0], "config.json has pruning.lambda: Extra inputs are not permitted"),
        ({"score": "raw"}, [0, 0], "config.json has pruning.score: Input should be"),
        ({"key": "mean", "score": "post"}, [0, 0], "config.json has pruning: Value error, score"),
        ({"keys": "none"}, [0, 0], "config.json has pruning: .* the masks would have no effect"),
        ({"weight": None}, [0, 0], "config.json has pruning.weight: Input should be"),
        ({"base": [0.0, "red"]}, [0, 0], "config.json has pruning.base.1: Input should be"),
        ({"base": [0.0]}, [0, 0], "base, trained and temperature need one value a layer"),
        (None, [0, 0], "model.safetensors has pruning.delta and config.json no pruning"),
        ({}, None, "config.json has a pruning and model.safetensors no pruning.delta"),
        ({}, [0], r"pruning.delta must be 2 finite numbers, not \[0.0\]"),
        ({}, [[0, 0]], r"pruning.delta must be 2 finite numbers, not \[\[0.0, 0.0\]\]"),
        ({}, [0, math.nan], r"pruning.delta must be 2 finite numbers, not \[0.0, nan\]"),
        (
            {"base": [0.0] * 3, "trained": [True] * 3, "temperature": [1.0] * 3},
            [0, 0, 0],
            "the text tower has 2 layers and the pruning is for 3",
        ),
    ],
)
def test_a_damaged_pruning_is_explained(
    tmp_path: Path, changes: dict[str, Any] | None, delta: list[Any] | None, message: str
) -> None:
    folder = tmp_path / "model"
    write_pruned(folder)
    config = json.loads((folder / "config.json").read_text())
    if changes is None:
        del config["pruning"]
    else:
        config["pruning"].update(changes)
    (folder / "config.json").write_text(json.dumps(config))
    state = load_file(folder / "model.safetensors")
    del state["pruning.delta"]
    if delta is not None:
        state["pruning.delta"] = torch.tensor(delta, dtype=torch.float32)
    save_file(state, folder / "model.safetensors")
    with pytest.raises(ModelError, match=f"^{re.escape(str(folder))} cannot be loaded: ") as raised:
        load_folder(folder)
    assert re.search(message, str(raised.value))
    assert "\n" not in str(raised.value)


def test_a_tower_that_cannot_be_pruned_is_refused_at_once() -> None:
    text_cfg = {**PLAIN["text_cfg"], "embed_cls": True}
    model_cfg = {**PLAIN, "text_cfg": text_cfg, "custom_text": True}
    config = {"model_cfg": model_cfg, "preprocess_cfg": {"size": 16}}
    with pytest.raises(ModelError, match="token pruning needs a causal text transformer"):
        ClipEncoder(
            "x", create_model(model_cfg), lambda _: torch.zeros(0, 12), config,
            pruning=TokenPruning(PRUNED),
        )  # fmt: skip


@pytest.mark.parametrize(
    ("extra", "custom"),
    [
        ({}, False),
        ({}, True),
        ({"pool_type": "eos", "eos_id": 8}, False),
        ({"pool_type": "eos", "eos_id": 8}, True),
        ({"proj_type": "linear"}, True),
        # These must not be cut: they read the padding or the last place.
        ({"pool_type": "last", "no_causal_mask": True}, True),
        ({"embed_cls": True}, True),
    ],
)
def test_texts_without_padding_embed_as_open_clip_embeds_them_whole(
    tmp_path: Path, extra: dict[str, Any], custom: bool
) -> None:
    model_cfg = {**PLAIN, "text_cfg": {**PLAIN["text_cfg"], **extra}, "custom_text": custom}
    encoder = write_folder(tmp_path / "model", model_cfg)
    ids = encoder.tokenizer(["red", "large blue shoe mug red", "", "mug " * 30])
    with torch.inference_mode():
        whole = encoder.model.encode_text(ids[:3])
        cut = embed_tokens(encoder.model, ids[:3])
        longest = embed_tokens(encoder.model, ids)
        torch.testing.assert_close(cut, whole, atol=2e-6, rtol=0)
        torch.testing.assert_close(longest, encoder.model.encode_text(ids), atol=2e-6, rtol=0)
    assert not torch.allclose(whole[0], whole[1], atol=1e-3)


def test_token_ids_are_padded_and_long_texts_end_with_the_end_token(tmp_path: Path) -> None:
    ids = write_folder(tmp_path / "model", PLAIN).tokenizer(["red sofa", "mug " * 40])
    assert ids[0].tolist() == [7, 2, 1, 8] + [0] * 8
    assert ids[1].tolist() == [7] + [4] * 10 + [8]


def test_embeddings_do_not_depend_on_batch_size_or_order() -> None:
    encoder = load_encoder("builtin", device="cpu")
    shown = pictures(9, (180, 120))
    together = encoder.embed_images(shown)
    alone = np.concatenate([encoder.embed_images([picture]) for picture in shown])
    assert (together * alone).sum(1).min() >= 0.99999
    assert (together * encoder.embed_images(shown[::-1])[::-1]).sum(1).min() >= 0.99999
    texts = ["red mug", "a very large blue leather shoe with laces and a strap", "hat", ""]
    together = encoder.embed_texts(texts)
    alone = np.concatenate([encoder.embed_texts([text]) for text in texts])
    assert (together * alone).sum(1).min() >= 0.99999


def test_builtin_fits_the_package_and_needs_no_network() -> None:
    folder = Path(load_encoder.__code__.co_filename).parent / "builtin"
    assert sum(file.stat().st_size for file in folder.iterdir()) <= 25_000_000
    code = (
        "import socket\n"
        "def refuse(*_, **__): raise AssertionError('network')\n"
        "socket.socket.connect = refuse; socket.getaddrinfo = refuse\n"
        "from indexing.models import load_encoder\n"
        "e = load_encoder('builtin', device='cpu')\n"
        "print(e.embed_texts(['red mug']).shape)"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert run.stdout.strip() == f"(1, {load_encoder('builtin').dim})", run.stderr


@pytest.mark.parametrize("size", [(1, 10_000), (10_000, 1), (2000, 4), (1_000_000, 1)])
@pytest.mark.parametrize("mode", ["shortest", "longest", "squash"])
def test_a_sliver_of_a_picture_is_embedded_on_white(
    tmp_path: Path, size: tuple[int, int], mode: str
) -> None:
    write_folder(tmp_path / "model", PLAIN)
    config = json.loads((tmp_path / "model" / "config.json").read_text())
    config["preprocess_cfg"]["resize_mode"] = mode
    (tmp_path / "model" / "config.json").write_text(json.dumps(config))
    pixels = load_folder(tmp_path / "model").preprocess(Image.new("RGB", size, "black"))
    assert pixels.shape == (3, 16, 16)
    assert pixels.min() < 1  # the picture is there, not its white background alone


def test_a_sliver_takes_no_more_memory_than_a_picture(tmp_path: Path) -> None:
    encoder = write_folder(tmp_path / "model", PLAIN)
    tallest = 0
    resize = Image.new

    def watch(mode: str, size: tuple[int, int], *rest: Any) -> Image.Image:
        nonlocal tallest
        tallest = max(tallest, size[0] * size[1])
        return resize(mode, size, *rest)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("indexing.models.clip.Image.new", watch)
        encoder.preprocess(Image.new("RGB", (2_000_000, 1)))
    assert tallest <= 2_000_000


@pytest.mark.parametrize("at", [(1200, 900), (1999, 1501), (900, 2000)])
def test_scaled_decoding_embeds_as_full_decoding_does(at: tuple[int, int]) -> None:
    """Smooth shapes with edges and a little noise, as JPEGs of photos have."""
    rng = np.random.default_rng(5)
    small = rng.integers(0, 255, (9, 12, 3), dtype=np.uint8)
    picture = Image.fromarray(small).resize(at, Image.Resampling.BICUBIC)
    draw = ImageDraw.Draw(picture)
    for _ in range(40):
        x, y, side = (int(rng.integers(0, limit)) for limit in (*at, 200))
        colour = tuple(int(value) for value in rng.integers(0, 255, 3))
        draw.rectangle((x, y, x + side, y + side // 2), fill=colour)
    noise = rng.normal(0, 6, (at[1], at[0], 3))
    pixels = np.clip(np.asarray(picture, np.float32) + noise, 0, 255).astype(np.uint8)
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "JPEG", quality=85)
    encoder = load_encoder("builtin", device="cpu")
    full = decode_image(file.getvalue())
    scaled = decode_image(file.getvalue(), at_least=encoder.image_size)
    assert scaled.width * scaled.height < full.width * full.height
    vectors = encoder.embed_images([full, scaled])
    assert vectors[0] @ vectors[1] >= 0.999


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_the_gpu_gives_the_vectors_of_the_cpu() -> None:
    cpu, gpu = (load_encoder("builtin", device=device) for device in ("cpu", "cuda"))
    shown = pictures(5, (180, 120))
    assert (cpu.embed_images(shown) * gpu.embed_images(shown)).sum(1).min() >= 0.9999
    texts = ["red mug", "a large blue shoe"]
    assert (cpu.embed_texts(texts) * gpu.embed_texts(texts)).sum(1).min() >= 0.9999
    assert cpu.fingerprint == gpu.fingerprint


@pytest.mark.skipif(torch.cuda.is_available(), reason="needs a machine without CUDA")
@pytest.mark.parametrize("device", ["cuda", "nonsense"])
def test_a_device_that_is_not_there_is_explained(device: str) -> None:
    with pytest.raises(ModelError, match=f"device '{device}' cannot be used here"):
        load_encoder("builtin", device=device)


def test_training_the_model_changes_the_fingerprint(tmp_path: Path) -> None:
    encoder = write_folder(tmp_path / "model", PLAIN)
    before = encoder.fingerprint
    with torch.no_grad():
        encoder.model.logit_scale.add_(1)
    assert encoder.fingerprint != before


def test_a_folder_is_found_from_elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_folder(tmp_path / "model", PLAIN)
    monkeypatch.chdir(tmp_path)
    assert load_encoder("model", device="cpu").name == str(tmp_path / "model")


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("./missing", "model folder './missing' does not exist"),
        ("nonsense", "unknown model 'nonsense'"),
        ("ViT-B-23/openai", "did you mean ViT-B-32"),
        ("ViT-B-32/no-such-tag", "cannot be loaded"),
        ("ViT-B-32-quickgelu/laion2b_s34b_b79k", "not a known tag"),
    ],
)
def test_a_name_that_cannot_be_loaded_is_explained(name: str, message: str) -> None:
    with pytest.raises(ModelError, match=message):
        load_encoder(name)


def test_a_damaged_folder_is_explained(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"has no config\.json"):
        load_encoder(str(tmp_path))
    write_folder(tmp_path / "a", PLAIN)
    (tmp_path / "a" / "model.safetensors").write_bytes(b"not weights")
    with pytest.raises(ModelError, match="cannot be loaded"):
        load_encoder(str(tmp_path / "a"))
    write_folder(tmp_path / "c", PLAIN)
    config = json.loads((tmp_path / "c" / "config.json").read_text())
    del config["preprocess_cfg"]
    (tmp_path / "c" / "config.json").write_text(json.dumps(config))
    with pytest.raises(ModelError, match="has no 'preprocess_cfg'"):
        load_encoder(str(tmp_path / "c"))
    write_folder(tmp_path / "d", {**PLAIN, "text_cfg": {**PLAIN["text_cfg"], "vocab_size": 8}})
    with pytest.raises(ModelError, match="9 tokens and the text tower 8"):
        load_encoder(str(tmp_path / "d"))
    write_folder(tmp_path / "b", PLAIN)
    config = json.loads((tmp_path / "b" / "config.json").read_text())
    config["model_cfg"]["embed_dim"] = 8
    (tmp_path / "b" / "config.json").write_text(json.dumps(config))
    with pytest.raises(ModelError, match="size mismatch"):
        load_encoder(str(tmp_path / "b"))


@pytest.mark.parametrize("weights_are_quick", [True, False])
def test_open_clip_weights_get_the_activation_they_were_trained_with(
    monkeypatch: pytest.MonkeyPatch, weights_are_quick: bool
) -> None:
    """`ViT-B-32/openai` needs QuickGELU although the name does not say so."""
    import open_clip

    asked: dict[str, Any] = {}

    def create(architecture: str, pretrained: str, **options: Any) -> Any:
        asked.update(options)
        raise RuntimeError("no network")

    monkeypatch.setattr(open_clip, "create_model", create)
    tag = "openai" if weights_are_quick else "laion2b_s34b_b79k"
    with pytest.raises(ModelError, match="no network"):
        load_open_clip(f"ViT-B-32/{tag}")
    assert asked["force_quick_gelu"] is weights_are_quick


def test_a_weights_file_behind_an_architecture_is_open_clips_own_model(tmp_path: Path) -> None:
    import open_clip

    torch.manual_seed(0)
    theirs = open_clip.create_model("ViT-S-32-alt").eval()
    torch.save(theirs.state_dict(), tmp_path / "weights.pt")
    encoder = load_open_clip(f"ViT-S-32-alt/{tmp_path / 'weights.pt'}")
    transform = open_clip.transform.image_transform_v2(
        open_clip.transform.PreprocessCfg(**theirs.visual.preprocess_cfg), is_train=False
    )
    shown = pictures(2, (300, 260))
    with torch.inference_mode():
        expected = theirs.encode_image(torch.stack([transform(p) for p in shown]), normalize=True)
        words = open_clip.get_tokenizer("ViT-S-32-alt")(["a red mug", "shoes"])
        expected_texts = theirs.encode_text(words, normalize=True)
    np.testing.assert_allclose(encoder.embed_images(shown), expected.numpy(), atol=1e-6)
    np.testing.assert_allclose(
        encoder.embed_texts(["a red mug", "shoes"]), expected_texts.numpy(), atol=1e-6
    )
    encoder.save(tmp_path / "folder", card="")
    again = load_encoder(str(tmp_path / "folder"), device="cpu")
    np.testing.assert_array_equal(again.embed_texts(["shoes"]), encoder.embed_texts(["shoes"]))


def test_builtin_reads_and_sees_what_it_was_trained_on() -> None:
    """Golden ids and vectors: a changed tokenizer, resize or activation shows here."""
    encoder = load_encoder("builtin", device="cpu")
    assert isinstance(encoder, ClipEncoder)
    ids = encoder.tokenizer(["Red T-Shirt, crème"])
    assert ids.tolist() == [[27625, 491, 59, 14, 1870, 13, 11736, 19406, 27626] + [0] * 55]
    words = encoder.embed_texts(["red mug"])[0]
    assert words[:6] == pytest.approx([-0.1625, -0.1686, -0.0793, 0.0241, 0.0581, 0.0467], abs=1e-3)
    shade = Image.linear_gradient("L").convert("RGB").resize((300, 200))
    seen = encoder.embed_images([shade])[0]
    assert seen[:6] == pytest.approx([-0.1372, 0.1191, 0.0402, -0.1932, 0.1612, 0.2633], abs=1e-3)
