"""ALBEF on real titles, on made-up ones: stored pictures, and whole arms on a handful."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image

from benchmarks.pruning import albef_fashion
from benchmarks.pruning.albef_fashion import SIZE, StoredImages, _parts, prepare, run_arm
from indexing.images import read_image
from indexing.models.albef.weights import load_albef
from training.albef.config import AlbefTraining

COLOURS = ("Red", "Green", "Blue", "Black", "White")
KINDS = ("Shirts", "Shoes", "Watches", "Bags")
CONFIG = AlbefTraining(
    epochs=1, batch_size=8, learning_rate=2e-3, warm_up=0.1, momentum=0.5, queue_size=16
)
RECALLS = {f"title R@{k}" for k in (1, 5, 10)}


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """fashion/ with 160 products, two of a title."""
    folder = tmp_path_factory.mktemp("data")
    (folder / "fashion/images").mkdir(parents=True)
    lines = ["id,title,article_type,color,image"]
    rng = np.random.default_rng(0)
    for number in range(160):
        name = number // 2
        colour, kind = COLOURS[name % 5], KINDS[name % 4]
        title = f"Acme{name % 7} Men {colour} {kind} {name}"
        lines.append(f"{number},{title},{kind},{colour},images/{number}.png")
        noise = rng.integers(0, 256, (20, 15, 3)).astype(np.uint8)
        picture = Image.fromarray(noise).resize((60, 80))
        picture.save(folder / f"fashion/images/{number}.png")
    (folder / "fashion/catalog.csv").write_text("\n".join(lines))
    return folder


@pytest.fixture(scope="module")
def prepared(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What all arms start from, after some steps."""
    work = tmp_path_factory.mktemp("work")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(albef_fashion, "START", CONFIG)
        prepare(data, work)
    return work


@pytest.fixture
def work(prepared: Path, tmp_path: Path) -> Path:
    """The same in a folder of its own: arms write beside it."""
    for file in prepared.iterdir():
        (tmp_path / file.name).symlink_to(file)
    return tmp_path


# --- pictures


def of(file: Path, seed: int | None, work: Path, rows: Any = None) -> StoredImages:
    return StoredImages(load_albef(work / "start"), file, seed, rows)


@pytest.mark.parametrize("name", ["first", "second", "test"])
def test_stored_pictures_are_what_the_encoder_makes_of_them(
    name: str, data: Path, prepared: Path
) -> None:
    pairs, encoder = _parts(data)[name], load_albef(prepared / "start")
    assert encoder.image_size == SIZE
    rows = np.arange(len(pairs))[::-3]
    paths = [path for picture in pairs.pictures if (path := picture.path) is not None]
    assert len(paths) == len(pairs) >= 10
    expected = [encoder.preprocess(read_image(paths[row], at_least=SIZE)) for row in rows]
    found = of(prepared / f"{name}.npy", None, prepared).pixels(rows)
    np.testing.assert_allclose(found, np.stack(expected), rtol=0, atol=1e-5)


@pytest.fixture
def file(tmp_path: Path) -> Path:
    pictures = np.random.default_rng(0).integers(0, 256, (200, 3, 4, 4)).astype(np.uint8)
    np.save(tmp_path / "some.npy", pictures)
    return tmp_path / "some.npy"


def shown(images: StoredImages, epoch: int) -> torch.Tensor:
    batches = np.array_split(np.arange(200), 3)
    parts = list(images.batches(batches, epoch))
    for (rows, _), asked in zip(parts, batches, strict=True):
        np.testing.assert_array_equal(rows, asked)
    return torch.cat([pixels for _, pixels in parts])


def mirrored(images: StoredImages, epoch: int) -> NDArray[np.bool_]:
    """Which pictures are shown so; fails where one is shown in a third way."""
    plain, seen = images.pixels(np.arange(200)), shown(images, epoch)
    turned = (seen == plain.flip(3)).flatten(1).all(1)
    assert (turned ^ (seen == plain).flatten(1).all(1)).all()
    return turned.numpy()


def test_half_of_the_pictures_are_mirrored_others_in_each_epoch(file: Path, work: Path) -> None:
    images = of(file, 3, work)
    once = mirrored(images, 0)
    assert 70 < once.sum() < 130
    np.testing.assert_array_equal(once, mirrored(of(file, 3, work), 0))
    assert 60 < (once ^ mirrored(images, 1)).sum() < 140
    assert 60 < (once ^ mirrored(of(file, 4, work), 0)).sum() < 140
    assert 5 < once[:66].sum() < 61  # in each batch
    assert (once[:66] ^ once[67:133]).any()
    assert not mirrored(of(file, None, work), 0).any()


def test_rows_are_those_of_the_file_that_are_given(file: Path, work: Path) -> None:
    some = np.array([7, 199, 3])
    found = of(file, None, work, some).pixels(np.array([2, 0]))
    assert torch.equal(found, of(file, None, work).pixels(np.array([3, 7])))


# --- whole arms


class Few(StoredImages):
    """Asked for more pictures than there are, gives all."""

    def pixels(self, rows: NDArray[np.int64]) -> torch.Tensor:
        return super().pixels(rows[rows < len(self._rows)])


@pytest.fixture(autouse=True)
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(albef_fashion, "PAIRS", 16)
    monkeypatch.setattr(albef_fashion, "CONFIG", CONFIG)
    monkeypatch.setattr(albef_fashion, "SECOND", CONFIG.model_copy(update={"learning_rate": 1e-4}))
    monkeypatch.setattr(albef_fashion, "StoredImages", Few)


def test_an_arm_gives_plain_values_that_its_seed_repeats(data: Path, work: Path) -> None:
    found = run_arm("all", 1, 1.0, data, work)
    assert found == run_arm("all", 1, 1.0, data, work)
    assert json.loads(json.dumps(found)) == found
    assert (found["arm"], found["seed"]) == ("all", 1)
    assert found.keys() == {"arm", "seed", *RECALLS, "kept", "share"}
    one, five, ten = (found[f"title R@{k}"] for k in (1, 5, 10))
    assert 0 <= one <= five <= ten <= 1
    assert ten > 0
    assert {"all", "visual", "noise", "brand", "audience", "colour"} <= found["kept"].keys()
    assert all(0 <= share <= 1 for share in (found["share"], *found["kept"].values()))


def test_the_title_of_a_picture_finds_it(data: Path, work: Path) -> None:
    """Recall counts every picture of a title, by a model that knows them all."""
    encoder, test = load_albef(work / "start"), _parts(data)["test"]
    images = StoredImages(encoder, work / "test.npy", None)
    vectors = {title: row for row, title in reversed(list(enumerate(test.titles)))}
    basis = torch.eye(len(test))

    def encode_image(pixels: torch.Tensor) -> torch.Tensor:
        rows = [
            int((images.pixels(np.arange(len(test))) == one).flatten(1).all(1).nonzero())
            for one in pixels
        ]
        return basis[[vectors[test.titles[row]] for row in rows]]

    def right(titles: list[str]) -> NDArray[np.float32]:
        return basis[[vectors[title] for title in titles]].numpy()

    def wrong(titles: list[str]) -> NDArray[np.float32]:
        return -right(titles)

    known: Any = SimpleNamespace(
        model=SimpleNamespace(encode_image=encode_image), pruning=None, embed_texts=right
    )
    lexicon: Any = None
    assert albef_fashion.measure(known, test, images, lexicon) == dict.fromkeys(RECALLS, 1.0)
    known.embed_texts = wrong
    assert albef_fashion.measure(known, test, images, lexicon)["title R@1"] == 0.0


def test_second_stages_go_on_from_the_standard_model_of_their_seed(
    data: Path, work: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[SimpleNamespace] = []

    def note(arm: str, encoder: Any, pairs: Any, images: Any, config: Any, **more: Any) -> None:
        temp = float(encoder.model.temp.detach())
        calls.append(
            SimpleNamespace(arm=arm, temp=temp, titles=pairs.titles, config=config, images=images)
        )
        assert more["visual"]("red")
        assert not more["visual"]("acme0")
        with torch.no_grad():
            encoder.model.temp.fill_((1 + config.seed) / 8)

    monkeypatch.setattr(albef_fashion, "train_albef_arm", note)
    for arm, seed in (("standard", 0), ("standard", 1), ("second all", 0), ("second all", 1)):
        run_arm(arm, seed, 0.5, data, work)
    assert [call.arm for call in calls] == ["standard", "standard", "all", "all"]
    assert [call.temp for call in calls] == [calls[0].temp] * 2 + [1 / 8, 2 / 8]
    assert calls[0].temp not in (1 / 8, 2 / 8)
    configs = [albef_fashion.CONFIG] * 2 + [albef_fashion.SECOND] * 2
    for call, config, seed in zip(calls, configs, (0, 1, 0, 1), strict=True):
        assert call.config == config.model_copy(update={"seed": seed})
    # Seeds take other pairs of the second half, each title with its own picture.
    half = _parts(data)["second"]
    assert calls[0].titles == calls[2].titles != calls[1].titles == calls[3].titles
    whole = StoredImages(load_albef(work / "start"), work / "second.npy", None)
    for call in calls:
        assert len(call.titles) == 16 < len(half)
        for row, title in enumerate(call.titles):
            places = [place for place, other in enumerate(half.titles) if other == title]
            own = call.images.pixels(np.array([row]))
            assert (whole.pixels(np.array(places)) == own).flatten(1).all(1).any()
