from __future__ import annotations

import hashlib
import threading
from collections import deque
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image, PngImagePlugin

from indexing import images
from indexing.catalog.product import ProductImage
from indexing.embed import Embedded, VectorCache, embed_pictures
from indexing.phash import phash


def write_pictures(folder: Path, count: int, seed: int = 0) -> list[ProductImage]:
    """`count` different pictures, as files."""
    rng = np.random.default_rng(seed)
    pictures = []
    for number in range(count):
        path = folder / f"{number:03d}.png"
        Image.fromarray(rng.integers(0, 256, (8, 8, 3), np.uint8)).save(path)
        pictures.append(ProductImage(location=path.name, path=path))
    return pictures


def key_of(picture: ProductImage) -> bytes:
    assert picture.path is not None
    return hashlib.sha256(picture.path.read_bytes()).digest()


def direct(encoder: Any, picture: ProductImage) -> list[float]:
    vectors = encoder.embed_images([Image.open(str(picture.path)).convert("RGB")])
    return list(vectors[0].tolist())


def embed(
    pictures: list[ProductImage], encoder: Any, folder: Path, **sizes: int
) -> tuple[Embedded, VectorCache]:
    cache = VectorCache(folder, encoder.dim)
    sizes = {"batch_size": 3, "shard_size": 7, **sizes}
    return embed_pictures(pictures, len(pictures), encoder, cache, **sizes), cache


class RecordingEncoder:
    """An encoder that notes its batches and fails, when told so, at the n-th of them."""

    image_size, dim, fingerprint, name = 4, 48, "recording", "recording"

    def __init__(self, fail_at: int | None = None) -> None:
        self.batches: list[list[bytes]] = []
        self.fail_at = fail_at

    def preprocess(self, picture: Image.Image) -> NDArray[np.float32]:
        pixels = np.asarray(picture.resize((4, 4), Image.Resampling.BOX), np.float32)
        return pixels.copy()

    def embed_pixels(self, pixels: NDArray[np.float32]) -> np.ndarray[Any, np.dtype[np.float32]]:
        if len(self.batches) == self.fail_at:
            raise KeyboardInterrupt
        self.batches.append([picture.tobytes() for picture in pixels])
        flat = pixels.reshape(len(pixels), -1)
        # The last bits depend on the company in the batch, as with real networks.
        return flat / np.float32(255 + len(pixels) + flat.mean())


def test_vectors_are_what_the_encoder_gives_directly(tmp_path: Path, tiny_encoder: Any) -> None:
    pictures = write_pictures(tmp_path, 20)
    result, cache = embed(pictures, tiny_encoder, tmp_path / "shards")
    assert result.keys == [key_of(picture) for picture in pictures]
    assert (result.encoded, result.reused, result.failures) == (20, 0, {})
    keys = [key_of(picture) for picture in pictures]
    assert cache.gather(keys).tolist() == [direct(tiny_encoder, picture) for picture in pictures]


def test_an_encoder_may_take_several_batches_at_a_time(tmp_path: Path, tiny_encoder: Any) -> None:
    class Ahead(RecordingEncoder):
        """Takes three batches before it gives one back."""

        def embed_batches(self, batches: Iterable[NDArray[np.float32]]) -> Iterator[Any]:
            given: deque[NDArray[np.float32]] = deque()
            for batch in batches:
                given.append(batch)
                if len(given) == 3:
                    yield self.embed_pixels(given.popleft())
            yield from map(self.embed_pixels, given)

    pictures = write_pictures(tmp_path, 20)
    assert pictures[3].path is not None
    pictures[3].path.write_bytes(b"")
    pictures += pictures[:2]
    plain, several = RecordingEncoder(), Ahead()
    expected, its = embed(pictures, plain, tmp_path / "plain")
    found, own = embed(pictures, several, tmp_path / "several")
    assert (found, several.batches) == (expected, plain.batches)
    assert (found.encoded, found.reused) == (19, 2)
    keys = [key for key in found.keys if key is not None]
    np.testing.assert_array_equal(own.gather(keys), its.gather(keys))
    np.testing.assert_array_equal(own.gather_hashes(keys), its.gather_hashes(keys))


def test_broken_pictures_fail_alone_and_shift_nothing(tmp_path: Path, tiny_encoder: Any) -> None:
    pictures = write_pictures(tmp_path, 20)
    broken = {0: b"", 5: b"<html>not found</html>", 6: b"", 12: None, 19: b"\x89PNG\r\n\x1a\n"}
    for number, content in broken.items():
        path = pictures[number].path
        assert path is not None
        path.unlink() if content is None else path.write_bytes(content)
    result, cache = embed(pictures, tiny_encoder, tmp_path / "shards")
    assert sorted(result.failures) == sorted(broken)
    assert "0 bytes" in result.failures[0]
    assert "HTML" in result.failures[5]
    assert "012.png: cannot be read: No such file" in result.failures[12]
    assert result.unread == [12]
    assert (result.encoded, result.reused) == (15, 0)
    for number, picture in enumerate(pictures):
        key = result.keys[number]
        if number in broken:
            assert key is None
        else:
            assert key == key_of(picture)
            assert cache.gather([key])[0].tolist() == direct(tiny_encoder, picture)


def test_the_same_bytes_are_encoded_once(tmp_path: Path, tiny_encoder: Any) -> None:
    first, second, third = write_pictures(tmp_path, 3)
    copy = tmp_path / "copy.png"
    copy.write_bytes(first.path.read_bytes() if first.path else b"")
    pictures = [
        first,
        ProductImage(location="copy", path=copy),
        second,
        first,
        third,
        first,
        second,
        first,
        first,
    ]
    result, _ = embed(pictures, tiny_encoder, tmp_path / "shards", batch_size=2, shard_size=4)
    assert tiny_encoder.encoded == 3
    assert (result.encoded, result.reused) == (3, 6)
    assert result.keys == [key_of(picture) for picture in pictures]


def test_a_broken_picture_is_remembered_by_its_bytes(tmp_path: Path, tiny_encoder: Any) -> None:
    pictures = write_pictures(tmp_path, 4)
    for number in (1, 3):
        (tmp_path / f"{number:03d}.png").write_bytes(b"%PDF-")
    first, _ = embed(pictures, tiny_encoder, tmp_path / "shards", shard_size=2)
    again, _ = embed(pictures, tiny_encoder, tmp_path / "shards", shard_size=2)
    assert sorted(first.failures) == [1, 3]
    assert first.failures[1] == first.failures[3]
    assert "PDF" in first.failures[1]
    assert again.failures == first.failures
    assert again.keys == first.keys
    assert (again.encoded, again.reused) == (0, 2)


def test_batches_are_cut_in_order_and_never_across_shards(tmp_path: Path) -> None:
    pictures = write_pictures(tmp_path, 16)
    (tmp_path / "002.png").write_bytes(b"broken")
    pictures[4] = pictures[1]
    encoder = RecordingEncoder()
    embed(pictures, encoder, tmp_path / "shards")
    good = [0, 1, 3, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15]
    cells = {
        number: encoder.preprocess(Image.open(str(pictures[number].path))).tobytes()
        for number in good
    }
    expected = [[0, 1, 3], [5, 6], [7, 8, 9], [10, 11, 12], [13], [14, 15]]
    assert encoder.batches == [[cells[number] for number in batch] for batch in expected]


@pytest.mark.parametrize("fail_at", [0, 1, 2, 3, 4, 5])
def test_a_stopped_run_goes_on_with_the_same_vectors(tmp_path: Path, fail_at: int) -> None:
    pictures = write_pictures(tmp_path, 16)
    (tmp_path / "008.png").write_bytes(b"broken")
    pictures[9] = pictures[2]
    whole, cache = embed(pictures, RecordingEncoder(), tmp_path / "whole")
    keys = [key for key in whole.keys if key]
    with pytest.raises(KeyboardInterrupt):
        embed(pictures, RecordingEncoder(fail_at), tmp_path / "stopped")
    encoder = RecordingEncoder()
    resumed, resumed_cache = embed(pictures, encoder, tmp_path / "stopped")
    assert resumed.keys == whole.keys
    assert resumed.failures == whole.failures
    assert resumed_cache.gather(keys).tobytes() == cache.gather(keys).tobytes()
    assert resumed_cache.gather_hashes(keys).tolist() == cache.gather_hashes(keys).tolist()
    lost = sum(len(batch) for batch in encoder.batches)
    shards_finished = [0, 0, 0, 1, 1, 2][fail_at]  # batches of 3 + 3 + 1, 3 + 2, 2
    assert lost == [14, 7, 2][shards_finished]


def test_a_damaged_shard_is_made_again(tmp_path: Path, tiny_encoder: Any) -> None:
    pictures = write_pictures(tmp_path, 10)
    _, cache = embed(pictures, tiny_encoder, tmp_path / "shards", shard_size=5)
    keys = [key_of(picture) for picture in pictures]
    expected = cache.gather(keys)
    first = tmp_path / "shards" / "000000.npz"
    whole = first.read_bytes()
    middle = whole.index(expected[:5].tobytes()) + 500
    flipped = whole[:middle] + bytes([whole[middle] ^ 1]) + whole[middle + 1 :]
    for content in (b"", whole[:-50], flipped, b"PK" + whole[2:400]):
        first.write_bytes(content)
        result, cache = embed(pictures, tiny_encoder, tmp_path / "shards", shard_size=5)
        assert (result.encoded, result.reused) == (5, 5)
        assert cache.gather(keys).tolist() == expected.tolist()
        (tmp_path / "shards" / "000002.npz").unlink()


def test_each_vector_has_its_pictures_hash(tmp_path: Path, tiny_encoder: Any) -> None:
    pictures = write_pictures(tmp_path, 6)
    pictures += pictures[:2]
    embed(pictures[:3], tiny_encoder, tmp_path / "shards")
    _, cache = embed(pictures, tiny_encoder, tmp_path / "shards")
    hashes = [phash(Image.open(str(picture.path)).convert("RGB")) for picture in pictures]
    assert cache.gather_hashes([key_of(picture) for picture in pictures]).tolist() == hashes


def test_a_shard_without_hashes_is_made_again(tmp_path: Path, tiny_encoder: Any) -> None:
    pictures = write_pictures(tmp_path, 3)
    embed(pictures, tiny_encoder, tmp_path / "shards")
    shard = tmp_path / "shards" / "000000.npz"
    with np.load(shard) as arrays:
        older = {name: arrays[name] for name in arrays if name != "hashes"}
    np.savez(shard, **older)
    assert embed(pictures, tiny_encoder, tmp_path / "shards")[0].encoded == 3


def test_vectors_from_elsewhere_are_used(tmp_path: Path, tiny_encoder: Any) -> None:
    pictures = write_pictures(tmp_path, 4)
    keys = [key_of(picture) for picture in pictures]
    cache = VectorCache(tmp_path / "shards", tiny_encoder.dim)
    given = np.arange(2 * tiny_encoder.dim, dtype=np.float32).reshape(2, -1)
    cache.add_array([keys[3], keys[0]], given, np.array([7, 2**63 + 1], np.uint64))
    result = embed_pictures(pictures, 4, tiny_encoder, cache)
    assert (result.encoded, result.reused) == (2, 2)
    assert cache.gather([keys[0], keys[3]]).tolist() == [given[1].tolist(), given[0].tolist()]
    assert cache.gather_hashes([keys[0], keys[3]]).tolist() == [2**63 + 1, 7]
    assert cache.gather([keys[2]])[0].tolist() == direct(tiny_encoder, pictures[2])


def test_a_vector_that_is_not_finite_is_a_failure(tmp_path: Path) -> None:
    class Broken(RecordingEncoder):
        def embed_pixels(
            self, pixels: NDArray[np.float32]
        ) -> np.ndarray[Any, np.dtype[np.float32]]:
            vectors = super().embed_pixels(pixels)
            vectors[1, 5] = np.nan
            return vectors

    pictures = write_pictures(tmp_path, 3)
    result, _ = embed(pictures, Broken(), tmp_path / "shards")
    assert list(result.failures) == [1]
    assert "finite" in result.failures[1]
    assert [key is None for key in result.keys] == [False, True, False]


def test_a_picture_that_cannot_be_resized_is_a_failure(tmp_path: Path) -> None:
    class Narrow(RecordingEncoder):
        def preprocess(self, picture: Image.Image) -> NDArray[np.float32]:
            picture.resize((4, 4 * picture.height // picture.width))
            return super().preprocess(picture)

    pictures = write_pictures(tmp_path, 3)
    Image.new("RGB", (200, 4)).save(tmp_path / "001.png")
    result, _ = embed(pictures, Narrow(), tmp_path / "shards")
    assert list(result.failures) == [1]
    assert result.failures[1].startswith("200 x 4 pixels, which the encoder cannot prepare: ")
    assert [key is None for key in result.keys] == [False, True, False]


def test_a_picture_that_the_memory_cannot_hold_is_a_failure(
    tmp_path: Path, tiny_encoder: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    pictures = write_pictures(tmp_path, 3)
    Image.new("RGB", (200, 4)).save(tmp_path / "001.png")
    load = PngImagePlugin.PngImageFile.load

    def short(self: PngImagePlugin.PngImageFile) -> object:
        if self.width == 200:
            raise MemoryError
        return load(self)

    monkeypatch.setattr(PngImagePlugin.PngImageFile, "load", short)
    result, _ = embed(pictures, tiny_encoder, tmp_path / "shards")
    assert list(result.failures) == [1]
    assert "too little memory" in result.failures[1]
    assert (result.encoded, result.unread) == (2, [])


def test_pictures_count_until_they_are_preprocessed(tmp_path: Path) -> None:
    class Watching(RecordingEncoder):
        def preprocess(self, picture: Image.Image) -> NDArray[np.float32]:
            in_work.append(images.MAX_PIXELS - images._BUDGET._left)
            return super().preprocess(picture)

    in_work: list[int] = []
    embed(write_pictures(tmp_path, 5), Watching(), tmp_path / "shards")
    assert len(in_work) == 5
    assert all(pixels in range(64, 6 * 64, 64) for pixels in in_work)  # pictures of 8 x 8
    assert images._BUDGET._left == images.MAX_PIXELS


def test_progress_counts_every_picture(tmp_path: Path, tiny_encoder: Any) -> None:
    pictures = write_pictures(tmp_path, 8)
    (tmp_path / "003.png").write_bytes(b"broken")
    seen: list[tuple[int, int]] = []
    cache = VectorCache(tmp_path / "shards", tiny_encoder.dim)
    embed_pictures(
        pictures, 8, tiny_encoder, cache, shard_size=4, progress=lambda *pair: seen.append(pair)
    )
    assert seen == [(done, 8) for done in range(9)]


def test_few_pictures_are_loaded_ahead(tmp_path: Path) -> None:
    pictures = write_pictures(tmp_path, 60)
    asked = 0
    encoded_when_asked: list[int] = []
    encoder = RecordingEncoder()

    def source() -> Iterator[ProductImage]:
        nonlocal asked
        for picture in pictures:
            asked += 1
            encoded_when_asked.append(asked - sum(map(len, encoder.batches)))
            yield picture

    cache = VectorCache(tmp_path / "shards", encoder.dim)
    embed_pictures(source(), 60, encoder, cache, batch_size=4, shard_size=20)
    assert max(encoded_when_asked) <= 3 * 4  # two batches ahead of the one in work
    assert sum(map(len, encoder.batches)) == 60


def test_no_thread_outlives_a_failure(tmp_path: Path) -> None:
    pictures = write_pictures(tmp_path, 30)
    with pytest.raises(KeyboardInterrupt):
        embed(pictures, RecordingEncoder(fail_at=1), tmp_path / "shards")
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("decode")]
