"""ALBEF as an encoder: what it reads, what it sees, and folders it is saved in."""

from __future__ import annotations

import json
import math
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from indexing.errors import ModelError
from indexing.models import load_encoder
from indexing.models.albef.config import AlbefConfig
from indexing.models.albef.encoder import AlbefEncoder, new_encoder
from indexing.models.albef.tokenizer import AlbefTokenizer
from indexing.models.token_pruning import Pruning, TokenPruning
from indexing.models.torchvision_repair import import_torchvision

pytestmark = pytest.mark.usefixtures("one_thread")
TITLES = ["red mug", "blue shoes t-shirt", "", "mug " * 30, "5 red", "don't", "creme sofa red shoe"]


def make(config: AlbefConfig, vocab: Path, seed: int = 0) -> AlbefEncoder:
    """With weights so large that every token counts."""
    encoder = new_encoder(config, vocab, seed=seed, device="cpu")
    drawn = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for value in encoder.model.parameters():
            value.add_(0.2 * torch.randn(value.shape, generator=drawn))
    return encoder


@pytest.fixture
def encoder(albef_config: AlbefConfig, albef_vocab: Path) -> AlbefEncoder:
    return make(albef_config, albef_vocab)


@pytest.fixture
def pruned(encoder: AlbefEncoder) -> AlbefEncoder:
    """Drops some of the tokens of TITLES, in the text encoder and before a picture."""
    pruning = Pruning(
        score="pre", key="first", base=(-0.05, -math.inf, -math.inf, 0.0),
        trained=(True,) * 4, temperature=(1.0,) * 4, straight_through=False,
        cumulative=True, multiply=False, keys="same", weight=0.5,
    )  # fmt: skip
    encoder.pruning = TokenPruning(pruning)
    return encoder


def pictures(count: int, size: tuple[int, int] = (40, 30)) -> list[Image.Image]:
    rng = np.random.default_rng(1)
    return [
        Image.fromarray(rng.integers(0, 255, (size[1], size[0], 3), dtype=np.uint8))
        for _ in range(count)
    ]


@pytest.fixture
def tokenizer(albef_config: AlbefConfig, albef_vocab: Path) -> AlbefTokenizer:
    return AlbefTokenizer(albef_vocab, albef_config)


def test_titles_are_read_as_word_pieces(tokenizer: AlbefTokenizer) -> None:
    assert (tokenizer.pad_id, tokenizer.cls_id, tokenizer.sep_id, tokenizer.mask_id) == (0, 2, 3, 4)
    assert (tokenizer.vocab_size, tokenizer.unknown_id) == (24, 1)
    expected = {
        "Red  MUGs": [5, 6, 8],
        "red.mug, (shoes)": [1, 7, 8],  # marks go without a trace: "redmug"
        "red. mug, (shoes)!": [5, 6, 7, 8],
        "t-shirt/red": [12, 13, 5],
        "don't": [10, 11],
        'Crème "5.0" ~*#': [14, 15, 16],
        "[SEP] a": [17, 19, 18, 20],  # a word in brackets, no special token
        "a <PERSON>": [20, 23],
        "<a>": [21, 20, 22],
        "": [],
    }
    ids = tokenizer(list(expected))
    assert ids.dtype == torch.int64
    assert ids.shape == (len(expected), 10)
    for row, pieces in zip(ids.tolist(), expected.values(), strict=True):
        assert row == [2, *pieces, 3] + [0] * (8 - len(pieces))
    lengths = tokenizer.mask(ids).sum(1).tolist()
    assert lengths == [row.index(3) + 1 for row in ids.tolist()]


def test_long_titles_are_cut_and_no_title_is_an_empty_batch(tokenizer: AlbefTokenizer) -> None:
    assert tokenizer(["mug " * 40]).tolist() == [[2] + [6] * 8 + [3]]
    assert tokenizer([]).shape == (0, 10)
    assert tokenizer([]).dtype == torch.int64


def test_pieces_are_placed_in_the_title_as_it_is_written(tokenizer: AlbefTokenizer) -> None:
    title = "  (Crème) don't T-Shirt, MUGs. " + "red! " * 9
    found = [(piece.word, title[piece.start : piece.end]) for piece in tokenizer.pieces(title)]
    assert found[:7] == [
        *((0, "Crème"), (1, "don"), (1, "t"), (2, "T"), (3, "Shirt"), (4, "MUG"), (4, "s"))
    ]
    assert [text for _, text in found[7:]] == ["red"] * 9  # those that are cut off, too


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=200)
@given(
    st.text(alphabet=st.sampled_from("red mugshoe t-/.,'!?\"()*#:;~5İß\n\u2028é[]<>"), max_size=40)
)
def test_marks_go_as_in_pre_caption(tokenizer: AlbefTokenizer, title: str) -> None:
    """Against the rule that ALBEF's captions were cleaned by, on plain text."""
    plain = re.sub(r"([,.'!?\"()*#:;~])", "", title.lower()).replace("-", " ").replace("/", " ")
    cleaned = re.sub(r"\s{2,}", " ", plain).rstrip("\n").strip(" ")
    assert torch.equal(tokenizer([title]), tokenizer([cleaned]))
    ends = [piece.end for piece in tokenizer.pieces(title)]
    assert ends == sorted(ends)
    assert all(end <= len(title) for end in ends)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"[PAD]\n[UNK]\n[CLS]\n[SEP]\n", r"is not BERT's vocab.txt: it has no \[MASK\]"),
        (b"\xff\xfe", "cannot be read"),
        (None, "cannot be read"),
        (b"[PAD]\n[UNK]\n[CLS]\n[SEP]\n[MASK]\n" + b"a\n" * 20, "has 25 tokens and the model 24"),
    ],
)
def test_a_vocabulary_that_cannot_be_used_is_explained(
    tmp_path: Path, albef_config: AlbefConfig, content: bytes | None, message: str
) -> None:
    if content is not None:
        (tmp_path / "vocab.txt").write_bytes(content)
    with pytest.raises(ModelError, match=message):
        AlbefTokenizer(tmp_path / "vocab.txt", albef_config)


def test_lines_may_end_as_on_windows(albef_config: AlbefConfig, albef_vocab: Path) -> None:
    pieces = albef_vocab.read_text().splitlines()
    albef_vocab.write_bytes("\r\n".join(pieces).encode())
    assert AlbefTokenizer(albef_vocab, albef_config)(["red mug"])[0, :4].tolist() == [2, 5, 6, 3]


@pytest.mark.parametrize("size", [(40, 30), (24, 24), (7, 100), (300, 200)])
def test_pictures_are_squashed_as_open_clip_squashes_them(
    encoder: AlbefEncoder, size: tuple[int, int]
) -> None:
    import_torchvision()
    from open_clip.transform import PreprocessCfg, image_transform_v2

    theirs = image_transform_v2(
        PreprocessCfg(
            size=24, resize_mode="squash", interpolation="bicubic", mean=encoder.mean,
            std=encoder.std,
        ),
        is_train=False,
    )  # fmt: skip
    for picture in pictures(2, size):
        np.testing.assert_allclose(
            encoder.preprocess(picture), theirs(picture), rtol=1e-6, atol=1e-6
        )


def test_pixels_are_set_off_by_clips_mean(encoder: AlbefEncoder) -> None:
    pixels = encoder.preprocess(Image.new("RGB", (50, 40), (255, 0, 51)))
    for channel, expected in enumerate((1.9303361, -1.7520971, -0.7549964)):
        np.testing.assert_allclose(pixels[channel], np.full((24, 24), expected), rtol=1e-6)
    np.testing.assert_array_equal(
        encoder.preprocess(Image.new("L", (9, 9), 7)),
        encoder.preprocess(Image.new("RGB", (9, 9), (7, 7, 7))),
    )


@pytest.mark.parametrize("size", [(1, 10_000), (1_000_000, 1)])
def test_a_sliver_of_a_picture_is_seen_on_white(
    encoder: AlbefEncoder, size: tuple[int, int]
) -> None:
    pixels = encoder.preprocess(Image.new("RGB", size, "black"))
    white = encoder.preprocess(Image.new("RGB", (20, 20), "white"))
    assert pixels.min() < white.min() - 0.3
    assert pixels.max() == pytest.approx(float(white.max()), abs=0.05)


def test_embeddings_do_not_depend_on_the_batch(encoder: AlbefEncoder) -> None:
    check_batches(encoder)


def test_pruned_embeddings_do_not_depend_on_the_batch(pruned: AlbefEncoder) -> None:
    plain = pruned.embed_texts(TITLES)
    pruning, pruned.pruning = pruned.pruning, None
    assert np.abs(plain - pruned.embed_texts(TITLES)).max() > 1e-3
    pruned.pruning = pruning
    check_batches(pruned)


def check_batches(encoder: AlbefEncoder) -> None:
    texts = [" ".join(TITLES[i % 7 : i % 7 + 1 + i % 3]) for i in range(300)]  # groups, batches
    together = encoder.embed_texts(texts)
    assert together.dtype == np.float32
    np.testing.assert_allclose(np.linalg.norm(together, axis=1), 1, atol=1e-6)
    alone = np.concatenate([encoder.embed_texts([text]) for text in texts[:20]])
    assert (together[:20] * alone).sum(1).min() >= 0.99999
    shuffled = encoder.embed_texts(texts[::-1])[::-1]
    assert (together * shuffled).sum(1).min() >= 0.99999
    assert len(np.unique(together.round(4), axis=0)) > 10
    assert encoder.embed_texts([]).shape == (0, 6)
    shown = pictures(9)
    seen = encoder.embed_images(shown)
    one_by_one = np.concatenate([encoder.embed_images([picture]) for picture in shown])
    assert (seen * one_by_one).sum(1).min() >= 0.99999
    assert encoder.embed_images([]).shape == (0, 6)


def test_texts_are_embedded_as_the_model_embeds_them(pruned: AlbefEncoder) -> None:
    for pruning in (pruned.pruning, None):
        pruned.pruning = pruning
        ids = pruned.tokenizer(TITLES)
        with torch.inference_mode():
            expected = pruned.model.encode_text(ids, ids != 0, pruning).numpy()
        np.testing.assert_allclose(pruned.embed_texts(TITLES), expected, atol=1e-6)


@pytest.mark.parametrize("with_pruning", [True, False])
def test_a_text_is_matched_with_each_picture(pruned: AlbefEncoder, with_pruning: bool) -> None:
    if not with_pruning:
        pruned.pruning = None
    pixels = np.stack([pruned.preprocess(picture) for picture in pictures(70)])  # batches
    for title in TITLES[:2]:
        found = pruned.match_text(title, pixels)
        ids = pruned.tokenizer([title] * len(pixels))
        logits = (
            pruned.match(torch.from_numpy(pixels), ids, pruned.tokenizer.mask(ids))
            .numpy()
            .astype(np.float64)
        )
        expected = 1 / (1 + np.exp(logits[:, 0] - logits[:, 1]))
        assert found.dtype == np.float32
        np.testing.assert_allclose(found, expected, atol=1e-6)
        assert found.std() > 1e-4
        np.testing.assert_allclose(pruned.match_text(title, pixels[5:6]), found[5:6], atol=1e-6)
    assert pruned.match_text("red mug", pixels[:0]).shape == (0,)


def test_a_saved_folder_is_the_same_encoder(pruned: AlbefEncoder, tmp_path: Path) -> None:
    assert pruned.pruning is not None
    pruned.pruning.delta.data[:] = torch.tensor([1e-5, 0, 0, -3e-5])
    for number, pruning in enumerate((pruned.pruning, None)):
        pruned.pruning = pruning
        folder = tmp_path / f"model {number}"
        pruned.save(folder, card="# a card\n")
        names = ["README.md", "config.json", "model.safetensors", "vocab.txt"]
        assert sorted(file.name for file in folder.iterdir()) == names
        loaded = load_encoder(str(folder), device="cpu")
        assert isinstance(loaded, AlbefEncoder)
        assert (loaded.name, loaded.dim, loaded.image_size) == (str(folder), 6, 24)
        assert loaded.fingerprint == pruned.fingerprint
        np.testing.assert_array_equal(loaded.embed_texts(TITLES), pruned.embed_texts(TITLES))
        shown = pictures(3)
        np.testing.assert_array_equal(loaded.embed_images(shown), pruned.embed_images(shown))
        again = load_encoder(f"albef:{folder}", device="cpu")
        assert again.name == f"albef:{folder}"
        assert again.fingerprint == loaded.fingerprint
        loaded.save(folder, card="# another card\n")  # onto itself
        assert load_encoder(str(folder), device="cpu").fingerprint == pruned.fingerprint
        assert (folder / "README.md").read_text() == "# another card\n"
    assert json.loads((folder / "config.json").read_text()) == pruned.config.model_dump()


def test_half_precision_files_are_half_the_size(encoder: AlbefEncoder, tmp_path: Path) -> None:
    encoder.save(tmp_path / "whole", card="")
    encoder.save(tmp_path / "half", card="", half=True)
    half = load_encoder(str(tmp_path / "half"), device="cpu")
    sizes = [(tmp_path / name / "model.safetensors").stat().st_size for name in ("whole", "half")]
    assert sizes[1] < 0.75 * sizes[0]  # the names of the tensors are as long in both
    assert (half.embed_texts(TITLES) * encoder.embed_texts(TITLES)).sum(1).min() > 0.9999
    assert half.fingerprint != encoder.fingerprint
    with torch.no_grad():
        encoder.model.vision_proj.weight[0, 0] = 1e6
    with pytest.raises(ModelError, match=r"vision_proj\.weight has values beyond float16"):
        encoder.save(tmp_path / "large", card="", half=True)


def test_the_fingerprint_sees_weights_sizes_words_and_pruning(
    pruned: AlbefEncoder, albef_config: AlbefConfig, albef_vocab: Path, tmp_path: Path
) -> None:
    prints = {pruned.fingerprint}
    assert pruned.pruning is not None
    pruned.pruning.delta.data[0] += 2e-5
    prints.add(pruned.fingerprint)
    pruned.pruning = None
    prints.add(pruned.fingerprint)
    pruned.has_match = False
    prints.add(pruned.fingerprint)
    pruned.has_match = True
    prints.add(make(albef_config, albef_vocab, seed=1).fingerprint)
    shorter = albef_config.model_copy(update={"max_text_length": 8})
    prints.add(make(shorter, albef_vocab).fingerprint)
    (tmp_path / "vocab.txt").write_text(albef_vocab.read_text().replace("\nmug\n", "\nhat\n"))
    prints.add(make(albef_config, tmp_path / "vocab.txt").fingerprint)
    assert len(prints) == 7
    assert make(albef_config, albef_vocab).fingerprint in prints


def test_a_new_encoder_hangs_on_its_seed_alone(
    albef_config: AlbefConfig, albef_vocab: Path
) -> None:
    before = torch.random.get_rng_state()
    prints = [
        new_encoder(albef_config, albef_vocab, seed=seed, device="cpu").fingerprint
        for seed in (0, 0, 1)
    ]
    assert prints[0] == prints[1] != prints[2]
    assert torch.equal(torch.random.get_rng_state(), before)


def test_a_pruning_of_another_model_is_refused(encoder: AlbefEncoder) -> None:
    pruning = Pruning(
        score="pre", key="first", base=(0.0,) * 3, trained=(True,) * 3, temperature=(1.0,) * 3,
        straight_through=True, cumulative=True, multiply=False, keys="same", weight=0.5,
    )  # fmt: skip
    with pytest.raises(ModelError, match="4 attentions that may prune and the pruning is for 3"):
        AlbefEncoder("x", encoder.model, encoder.tokenizer, pruning=TokenPruning(pruning))


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_the_gpu_gives_the_vectors_of_the_cpu(pruned: AlbefEncoder, tmp_path: Path) -> None:
    pruned.save(tmp_path / "model", card="")
    gpu = load_encoder(str(tmp_path / "model"), device="cuda")
    assert isinstance(gpu, AlbefEncoder)
    shown = pictures(5)
    assert (pruned.embed_images(shown) * gpu.embed_images(shown)).sum(1).min() >= 0.9999
    assert (pruned.embed_texts(TITLES) * gpu.embed_texts(TITLES)).sum(1).min() >= 0.9999
    pixels = np.stack([pruned.preprocess(picture) for picture in shown])
    for title in TITLES:
        both = [encoder.match_text(title, pixels) for encoder in (pruned, gpu)]
        np.testing.assert_allclose(both[0], both[1], atol=1e-4)
    assert gpu.fingerprint == pruned.fingerprint
