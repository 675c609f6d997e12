"""What the two picture sides hand out: readable pictures, batch by batch."""

from __future__ import annotations

import threading
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from indexing.errors import TrainingError
from indexing.images import decode_image
from indexing.models.clip import ClipEncoder
from training.data import Pairs
from training.images import LockedImages, OpenImages, TrunkEncoder, last_projection, random_crop


@pytest.mark.parametrize("lock_image", [True, False])
def test_pictures_that_cannot_be_read_are_left_out(
    tmp_path: Path, encoder: ClipEncoder, pairs: Pairs, lock_image: bool
) -> None:
    for row in (1, 4, 5):
        broken = pairs.pictures[row].path
        assert broken is not None
        broken.write_bytes(b"no picture")
    images = (
        LockedImages(encoder, pairs.pictures, tmp_path / "features")
        if lock_image
        else OpenImages(encoder, pairs.pictures, augment=0)
    )
    batches = [np.array([0, 1, 2]), np.array([5, 4]), np.array([7, 1])]
    found = list(images.batches(batches, 0))
    assert [rows.tolist() for rows, _ in found] == [[0, 2], [], [7]]
    assert [len(pictures) for _, pictures in found] == [2, 0, 1]
    assert images.embed(found[0][1]).shape == (2, encoder.dim)


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


@pytest.mark.parametrize("lock_image", [True, False])
def test_before_is_what_the_tower_made_of_a_picture_before_it_was_trained(
    tmp_path: Path, encoder: ClipEncoder, pairs: Pairs, lock_image: bool
) -> None:
    images = (
        LockedImages(encoder, pairs.pictures, tmp_path / "features")
        if lock_image
        else OpenImages(encoder, pairs.pictures, augment=None, remember=True)
    )
    [(_, batch)] = images.batches([np.arange(5)], 0)
    decoded = [decode_image(p.path.read_bytes()) for p in pairs.pictures[:5] if p.path]
    expected = encoder.embed_images(decoded)
    with torch.no_grad():
        last_projection(encoder.model.visual).weight.mul_(-3).add_(0.1)
    np.testing.assert_allclose(images.before(batch).numpy(), expected, atol=1e-5)
    assert not images.before(batch).requires_grad


def test_crops_are_those_of_the_picture_the_epoch_and_the_seed(
    encoder: ClipEncoder, pairs: Pairs
) -> None:
    gradient = Image.linear_gradient("L").convert("RGB")
    for picture in pairs.pictures:
        assert picture.path is not None
        gradient.save(picture.path)
    images = OpenImages(encoder, pairs.pictures, augment=3)
    [(_, whole)] = images.batches([np.arange(6)], 1)
    parts = list(images.batches([np.array([4, 1]), np.array([5])], 1))
    assert torch.equal(torch.cat([pixels for _, pixels in parts]), whole[[4, 1, 5]])
    assert not torch.equal(whole[0], whole[1])
    [(_, later)] = images.batches([np.arange(6)], 2)
    assert not torch.equal(later, whole)
    [(_, plain)] = OpenImages(encoder, pairs.pictures, augment=None).batches([np.arange(2)], 1)
    assert torch.equal(plain[0], torch.from_numpy(encoder.preprocess(gradient)))


def test_no_thread_is_left_where_training_stops_in_the_middle(
    encoder: ClipEncoder, pairs: Pairs
) -> None:
    images = OpenImages(encoder, pairs.pictures, augment=None)
    batches = iter(images.batches([np.array([row]) for row in range(20)], 0))
    next(batches)
    assert any(thread.name.startswith("decode") for thread in threading.enumerate())
    batches.close()  # type: ignore[attr-defined]
    assert not any(thread.name.startswith("decode") for thread in threading.enumerate())


def test_random_crops_depend_on_the_generator_alone() -> None:
    picture = Image.linear_gradient("L").convert("RGB")
    one, two, other = (
        np.asarray(random_crop(picture, 16, np.random.default_rng(seed))) for seed in (3, 3, 4)
    )
    np.testing.assert_array_equal(one, two)
    assert not np.array_equal(one, other)


def test_a_tower_without_a_last_projection_cannot_be_locked(tiny: object) -> None:
    encoder: ClipEncoder = tiny.encoder()  # type: ignore[attr-defined]
    with pytest.raises(TrainingError, match="--lock-image needs a timm picture tower"):
        last_projection(encoder.model.visual)
