"""The loop learns, is repeatable, goes on after a stop with the same losses, and stops on NaN."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from tokenizers import Tokenizer, pre_tokenizers, processors
from tokenizers.models import WordLevel

from indexing.catalog import read_catalog
from indexing.catalog.product import ProductImage
from indexing.errors import TrainingError
from indexing.images import decode_image
from indexing.models import load_encoder
from indexing.models.clip import ClipEncoder, create_model
from indexing.models.text import FolderTokenizer
from training.config import TrainConfig
from training.data import Pairs
from training.images import LockedImages, OpenImages, TrunkEncoder, random_crop
from training.loop import Epoch, hide_words, similarity_loss, train_clip
from training.run import run_clip

COLOURS = ["red", "green", "blue", "yellow", "black", "white", "cyan", "magenta"]


CONVOLUTIONAL = {"timm_model_name": "mobilenetv2_035", "timm_pool": "avg", "timm_proj": "linear"}
TRANSFORMER = {"layers": 1, "width": 32, "head_width": 16, "patch_size": 16}


@pytest.fixture
def encoder(tmp_path: Path, request: pytest.FixtureRequest) -> ClipEncoder:
    """A tiny picture tower and a tiny text tower, always with the same weights."""
    vision = getattr(request, "param", CONVOLUTIONAL)
    words = ["[PAD]", "[UNK]", *COLOURS, "[SOT]", "[EOT]"]
    tokenizer = Tokenizer(WordLevel({word: i for i, word in enumerate(words)}, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[SOT] $A [EOT]", special_tokens=[("[SOT]", 10), ("[EOT]", 11)]
    )
    file = tmp_path / "tokenizer.json"
    tokenizer.save(str(file))
    text = {"context_length": 8, "vocab_size": 12, "width": 16, "heads": 2, "layers": 1}
    config = {
        "model_cfg": {"embed_dim": 8, "vision_cfg": {**vision, "image_size": 32}, "text_cfg": text},
        "preprocess_cfg": {"size": 32, "mode": "RGB", "mean": [0.5] * 3, "std": [0.5] * 3},
    }
    torch.manual_seed(0)
    model = create_model(config["model_cfg"])
    return ClipEncoder("tiny", model, FolderTokenizer(file, 8), config, tokenizer_file=file)


@pytest.fixture
def pairs(tmp_path: Path) -> Pairs:
    """Plain pictures titled by their colour: three shades of each."""
    folder = tmp_path / "pictures"
    folder.mkdir()
    pictures, titles, keys = [], [], []
    for key, colour in enumerate(COLOURS):
        for shade in range(3):
            path = folder / f"{colour}{shade}.png"
            Image.new("RGB", (32 + shade, 32), colour).save(path)
            pictures.append(ProductImage(location=path.name, path=path))
            titles.append(colour)
            keys.append(key)
    return Pairs(pictures, titles, np.array(keys))


Run = Callable[..., list[Epoch]]


@pytest.fixture
def run(encoder: ClipEncoder, pairs: Pairs) -> Run:
    start = {key: value.clone() for key, value in encoder.model.state_dict().items()}

    def train(out: Path, *, stop_after: int | None = None, **settings: float) -> list[Epoch]:
        encoder.model.load_state_dict(start)
        encoder.model.requires_grad_(True)
        config = TrainConfig.model_validate(
            {"epochs": 4, "batch_size": 12, "learning_rate": 1e-2, **settings}
        )
        side = LockedImages if config.lock_image else OpenImages
        images = (
            LockedImages(encoder, pairs.pictures, out / "features")
            if side is LockedImages
            else OpenImages(encoder, pairs.pictures, augment=config.seed)
        )

        def on_epoch(epoch: Epoch) -> None:
            if epoch.number + 1 == stop_after:
                raise KeyboardInterrupt

        return train_clip(encoder, pairs, images, pairs, images, out, config, on_epoch=on_epoch)

    return train


@pytest.mark.parametrize("lock_image", [True, False])
def test_a_stopped_run_goes_on_with_the_same_losses(
    tmp_path: Path, run: Run, lock_image: bool
) -> None:
    settings = {"lock_image": lock_image, "word_dropout": 0.3, "keep_similarities": 1.0}
    undisturbed = run(tmp_path / "whole", **settings)
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path / "stopped", stop_after=2, **settings)
    resumed = run(tmp_path / "stopped", **settings)
    assert resumed == undisturbed
    files = [(tmp_path / name / "model.safetensors").read_bytes() for name in ("whole", "stopped")]
    assert files[0] == files[1]


@pytest.mark.parametrize("encoder", [TRANSFORMER], indirect=True)
def test_it_learns_the_colours_and_writes_a_model_that_opens(
    tmp_path: Path, run: Run, encoder: ClipEncoder
) -> None:
    history = run(tmp_path / "out", epochs=40, learning_rate=1e-3)
    assert history[0].recall_1 < 0.5
    assert max(epoch.recall_1 for epoch in history) == 1.0
    model = load_encoder(str(tmp_path / "out"), device="cpu")
    shown = model.embed_images([Image.new("RGB", (32, 32), colour) for colour in COLOURS])
    assert (model.embed_texts(COLOURS) @ shown.T).argmax(1).tolist() == list(range(len(COLOURS)))


def test_a_locked_tower_does_not_change_and_an_open_one_does(
    tmp_path: Path, run: Run, encoder: ClipEncoder
) -> None:
    trunk = encoder.model.visual.trunk
    before = {key: value.clone() for key, value in trunk.state_dict().items()}
    run(tmp_path / "locked", lock_image=True, epochs=1)
    assert all(torch.equal(value, before[key]) for key, value in trunk.state_dict().items())
    run(tmp_path / "open", lock_image=False, epochs=1)
    after = trunk.state_dict()
    assert not torch.equal(after["conv_stem.weight"], before["conv_stem.weight"])
    # The statistics of batch normalisation stay those of the pretraining.
    assert torch.equal(after["bn1.running_mean"], before["bn1.running_mean"])


def test_other_settings_do_not_go_on_with_a_run(tmp_path: Path, run: Run) -> None:
    run(tmp_path / "out", lock_image=True, epochs=1)
    with pytest.raises(TrainingError, match="holds a run with other settings"):
        run(tmp_path / "out", lock_image=True, epochs=2)


def test_another_start_or_catalog_does_not_go_on_with_a_run(
    tmp_path: Path, run: Run, pairs: Pairs, encoder: ClipEncoder
) -> None:
    run(tmp_path / "out", lock_image=True, epochs=1)
    pairs.titles[0] = "blue"
    with pytest.raises(TrainingError, match="on another catalog or from another model"):
        run(tmp_path / "out", lock_image=True, epochs=1)


def test_a_damaged_run_is_an_error_that_says_what_to_remove(tmp_path: Path, run: Run) -> None:
    run(tmp_path / "out", lock_image=True, epochs=1)
    (tmp_path / "out" / "last" / "run.pt").write_bytes(b"garbage")
    with pytest.raises(TrainingError, match=r"remove .*run\.pt to start over"):
        run(tmp_path / "out", lock_image=True, epochs=1)


@pytest.mark.parametrize("lock_image", [True, False])
def test_pictures_none_of_which_can_be_read_are_an_error(
    tmp_path: Path, run: Run, pairs: Pairs, lock_image: bool
) -> None:
    for picture in pairs.pictures:
        assert picture.path is not None
        picture.path.unlink()
    with pytest.raises(TrainingError, match="none of the pictures can be read"):
        run(tmp_path / "out", lock_image=lock_image)


def test_hidden_words_are_words() -> None:
    tokens = torch.tensor([[10, 2, 3, 4, 11, 0], [10, 5, 11, 0, 0, 0]]).repeat(500, 1)
    torch.manual_seed(0)
    hidden = hide_words(tokens, 0.4, 1)
    changed = hidden != tokens
    assert (hidden[changed] == 1).all()
    words = torch.tensor([[False, True, True, True, False, False], [False, True] + [False] * 4])
    assert not changed[~words.repeat(500, 1)].any()
    share = changed.sum() / words.repeat(500, 1).sum()  # of 2,000 words: sd .011
    assert abs(share - 0.4) < 0.05
    assert torch.equal(hide_words(tokens, 0.0, 1), tokens)


def test_a_loss_that_is_not_finite_stops_the_run_and_names_the_batch(
    tmp_path: Path, run: Run, encoder: ClipEncoder, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("training.loop.MAX_LOGIT_SCALE", float("nan"))
    with pytest.raises(TrainingError, match=r"epoch 0, batch 1 \(first title: "):
        run(tmp_path / "out", lock_image=True)
    assert not (tmp_path / "out" / "model.safetensors").exists()


def test_a_catalog_smaller_than_a_batch_is_an_error(tmp_path: Path, run: Run) -> None:
    with pytest.raises(TrainingError, match="24 pairs do not fill a batch of 25"):
        run(tmp_path / "out", batch_size=25)


@pytest.mark.parametrize("lock_image", [True, False])
def test_pictures_that_cannot_be_read_are_left_out(
    tmp_path: Path, encoder: ClipEncoder, pairs: Pairs, lock_image: bool
) -> None:
    broken = pairs.pictures[1].path
    assert broken is not None
    broken.write_bytes(b"no picture")
    images = (
        LockedImages(encoder, pairs.pictures, tmp_path / "features")
        if lock_image
        else OpenImages(encoder, pairs.pictures, augment=0)
    )
    [(rows, batch)] = images.batches([np.array([0, 1, 2])], 0)
    assert rows.tolist() == [0, 2]
    assert len(batch) == 2


def test_locked_features_through_the_projection_are_the_towers_own(
    tmp_path: Path, encoder: ClipEncoder, pairs: Pairs
) -> None:
    images = LockedImages(encoder, pairs.pictures, tmp_path / "features")
    [(_, batch)] = images.batches([np.arange(5)], 0)
    decoded = [decode_image(p.path.read_bytes()) for p in pairs.pictures[:5] if p.path]
    with torch.inference_mode():
        projected = torch.nn.functional.normalize(images.embed(batch), dim=-1)
    np.testing.assert_allclose(projected.numpy(), encoder.embed_images(decoded), atol=1e-5)
    assert TrunkEncoder(encoder).dim == batch.shape[1]


def test_similarity_loss_is_the_mean_squared_change_of_the_cosines() -> None:
    before = torch.tensor([[1.0, 0.0], [0.0, 1.0]])
    turned = torch.tensor([[0.0, -1.0], [1.0, 0.0]])  # a rotation changes no cosine
    assert similarity_loss(turned, before).item() == 0
    same = torch.tensor([[1.0, 0.0], [1.0, 0.0]])  # the two off-diagonal cosines go 0 -> 1
    assert similarity_loss(same, before).item() == 0.5


def test_random_crops_depend_on_the_generator_alone() -> None:
    picture = Image.linear_gradient("L").convert("RGB")
    one, two, other = (
        np.asarray(random_crop(picture, 16, np.random.default_rng(seed))) for seed in (3, 3, 4)
    )
    np.testing.assert_array_equal(one, two)
    assert not np.array_equal(one, other)


def test_a_run_from_a_catalog_file(tmp_path: Path, encoder: ClipEncoder, pairs: Pairs) -> None:
    rows = "".join(
        f"{number},{title} number {number},{picture.location}\n"
        for number, (title, picture) in enumerate(zip(pairs.titles, pairs.pictures, strict=True))
    )
    catalog = tmp_path / "pictures" / "catalog.csv"
    catalog.write_text("id,title,image\n" + rows)
    config = TrainConfig(epochs=2, batch_size=4, validation_share=0.3, lock_image=True)
    (tmp_path / "foreign").mkdir()
    (tmp_path / "foreign" / "README.md").write_text("mine")
    with pytest.raises(TrainingError, match="holds other files"):
        run_clip(encoder, [read_catalog(catalog)], tmp_path / "foreign", config)
    with pytest.raises(TrainingError, match="cannot be written: Not a directory"):
        run_clip(encoder, [read_catalog(catalog)], catalog, config)
    history = run_clip(encoder, [read_catalog(catalog)], tmp_path / "out", config)
    assert [epoch.number for epoch in history] == [0, 1]
    lines = (tmp_path / "out" / "log" / "metrics.jsonl").read_text().splitlines()
    assert len(lines) == 2
