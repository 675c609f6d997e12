"""Where a picture lies in what a tower sees: against the preprocessing itself."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from indexing.framing import Frame, frame_of, whole_frame
from indexing.models.albef.config import AlbefConfig
from indexing.models.albef.encoder import new_encoder
from indexing.models.pictures import bounded
from indexing.models.torchvision_repair import import_torchvision

SIZES = [(64, 64), (100, 40), (41, 97), (33, 200), (640, 30), (20, 900), (1200, 40)]


def spotted(size: tuple[int, int]) -> Image.Image:
    """White with a black spot off its middle, which every crop leaves in."""
    values = np.full((size[1], size[0], 3), 255, np.uint8)
    short = min(size)
    half = max(2, short // 12)
    x, y = size[0] // 2 - short // 12, size[1] // 2 + short // 5
    values[y - half : y + half, x - half : x + half] = 0
    return Image.fromarray(values)


def centre(values: NDArray[Any]) -> tuple[float, float]:
    """Of what is dark, in fractions of width and height."""
    weights = values.max() - values.astype(float)
    rows, columns = np.indices(weights.shape) + 0.5
    total = weights.sum()
    height, width = weights.shape
    return float((columns * weights).sum() / total / width), float(
        (rows * weights).sum() / total / height
    )


def check(frame: Frame, picture: Image.Image, seen: NDArray[Any], pixels: float) -> None:
    """The spot of the picture is where the frame says, within so many pixels."""
    x, y = centre(np.asarray(picture.convert("L")))
    height, width = seen.shape
    found = centre(seen)
    assert found[0] == pytest.approx(frame.x + frame.width * x, abs=pixels / width)
    assert found[1] == pytest.approx(frame.y + frame.height * y, abs=pixels / height)


@pytest.mark.parametrize("mode", ["longest", "shortest", "squash"])
@pytest.mark.parametrize("wanted", [48, (48, 48), (64, 32)])
@pytest.mark.parametrize("size", SIZES)
def test_a_spot_is_where_the_preprocessing_puts_it(
    mode: str, wanted: Any, size: tuple[int, int]
) -> None:
    import_torchvision()
    from open_clip.transform import PreprocessCfg, image_transform_v2

    config = {
        "size": wanted, "resize_mode": mode, "mean": [0] * 3, "std": [1] * 3, "fill_color": 255,
        "interpolation": "bilinear",
    }  # fmt: skip
    longest = wanted if isinstance(wanted, int) else max(wanted)
    picture = spotted(size)
    transform = image_transform_v2(PreprocessCfg(**config), is_train=False)
    seen = transform(bounded(picture, longest))[0].numpy()
    check(frame_of(config, size, longest), picture, seen, 0.75)


def test_shortest_is_what_open_clip_does_by_default() -> None:
    assert frame_of({"size": 48}, (96, 48), 48) == Frame(-0.5, 0.0, 2.0, 1.0)
    letterbox = frame_of({"size": 48, "resize_mode": "longest"}, (96, 48), 48)
    assert letterbox == Frame(0.0, 0.25, 1.0, 0.5)


def test_albef_sees_the_whole_picture(albef_config: AlbefConfig, albef_vocab: Path) -> None:
    encoder = new_encoder(albef_config, albef_vocab, seed=0)
    picture = spotted((100, 40))
    seen = encoder.preprocess(picture)[0]
    check(whole_frame(picture.size, encoder.image_size), picture, seen, 0.5)


def test_heat_is_bilinear_and_nothing_where_the_tower_does_not_look() -> None:
    cells = np.array([[0, 1], [0, 1]], np.float32)
    whole = Frame(0, 0, 1, 1).heat(cells, (8, 2))
    # Centres of the cells are at 2 and 6 pixels; beyond them nothing changes.
    assert whole.tolist() == [pytest.approx([0, 0, 0.125, 0.375, 0.625, 0.875, 1, 1])] * 2
    # The middle half of the picture is seen.
    cropped = Frame(-0.5, 0, 2, 1).heat(np.ones((2, 2), np.float32), (8, 3))
    assert cropped.tolist() == [[0, 0, 1, 1, 1, 1, 0, 0]] * 3
    # The picture lies in the lower half of what is seen.
    boxed = Frame(0, 0.5, 1, 0.5).heat(
        np.array([[0, 0], [0, 0], [4, 4], [4, 4]], np.float32), (2, 4)
    )
    assert boxed.tolist() == [pytest.approx([value] * 2) for value in (3, 4, 4, 4)]
