"""What every test may use: a tiny encoder whose answers can be worked out by hand."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import settings
from numpy.typing import NDArray
from PIL import Image, ImageColor

from indexing.attributes.categories import CategoryReader
from indexing.attributes.labels import Label, Labels
from indexing.attributes.vocabulary import OTHER, Attribute, Calibration, TrainedOn
from indexing.match_record import MODES
from indexing.table import IMAGE_SCHEMA, Images

# No test waits on time: a slow machine must not turn an example into a failure.
settings.register_profile("shoplens", deadline=None)
settings.load_profile("shoplens")


class TinyEncoder:
    """Sees a picture as 4 x 4 coloured cells; reads a colour word as that plain picture.

    Vectors are the 48 cell values shifted to [-1, 1] (plus a constant, so that none is
    zero), made unit length. Words that are no colour have no effect.
    """

    name = "tiny"
    dim = 49
    image_size = 4

    def __init__(self, salt: str = "") -> None:
        self.fingerprint = hashlib.sha256(f"tiny{salt}".encode()).hexdigest()
        self.encoded = 0  # pictures that went through the tower

    def preprocess(self, picture: Image.Image) -> NDArray[np.float32]:
        cells = np.asarray(picture.convert("RGB").resize((4, 4), Image.Resampling.BOX))
        return np.ascontiguousarray(np.moveaxis(cells.astype(np.float32) / 127.5 - 1, 2, 0))

    def embed_pixels(self, pixels: NDArray[np.float32]) -> NDArray[np.float32]:
        self.encoded += len(pixels)
        flat = np.asarray(pixels, dtype=np.float32).reshape(len(pixels), -1)
        vectors = np.concatenate([flat, np.full((len(flat), 1), 0.5, np.float32)], axis=1)
        return (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32)

    def embed_images(self, pictures: Sequence[Image.Image]) -> NDArray[np.float32]:
        return self.embed_pixels(np.stack([self.preprocess(picture) for picture in pictures]))

    def embed_texts(self, texts: Sequence[str]) -> NDArray[np.float32]:
        return self.embed_images([_plain(text) for text in texts])


def _plain(text: str) -> Image.Image:
    colours = [word for word in text.lower().split() if word in ImageColor.colormap]
    mean = np.mean([ImageColor.getrgb(word)[:3] for word in colours] or [(128, 128, 128)], axis=0)
    return Image.new("RGB", (4, 4), (int(mean[0]), int(mean[1]), int(mean[2])))


class TinyClassifier:
    """Reads `color` (Red, Blue, Green or other) off the mean pixel and the title's words, and
    `kind` (mug or sock) off the title alone.

    A side that names a color gives it .8 and the rest evenly; both sides are averaged. What no
    side tells has the prior. A class needs .6 to be sure.
    """

    kind = "attributes"
    name = "tiny classifier"
    image_size = 4
    trained_on = TrainedOn(held_out=0.5, seed=0)

    def __init__(self, salt: str = "") -> None:
        self.fingerprint = hashlib.sha256(f"classifier{salt}".encode()).hexdigest()
        self.predicted = 0  # rows
        self.attributes = (
            _attribute("color", ("Red", "Blue", "Green", OTHER)),
            _attribute("kind", ("mug", "sock")),
        )

    def value_of(self, name: str, raw: str) -> str | None:
        values = next(a.values for a in self.attributes if a.name == name)
        known = {value.casefold(): value for value in values}
        if not raw.strip():
            return None
        return None if raw == "?" else known.get(raw.strip().casefold(), OTHER)

    def ways_of_writing(self) -> dict[str, list[tuple[str, str]]]:
        return {a.name: [(value, value) for value in a.values] for a in self.attributes}

    preprocess = TinyEncoder.preprocess

    def predict(
        self, pixels: NDArray[np.float32] | None, titles: Sequence[str] | None
    ) -> dict[str, NDArray[np.float32]]:
        count = len(titles or ()) if pixels is None else len(pixels)
        self.predicted += count
        found: dict[str, NDArray[np.float32]] = {}
        for attribute in self.attributes:
            rows = []
            for row in range(count):
                sides = [] if titles is None else [_named(titles[row], attribute.values)]
                if pixels is not None and attribute.name == "color":
                    sides.append(_seen(pixels[row]))
                told = [_peak(place, len(attribute.values)) for place in sides if place is not None]
                rows.append(np.mean(told, axis=0) if told else np.array(attribute.prior))
            found[attribute.name] = np.array(rows, np.float32).reshape(count, -1)
        return found


def _attribute(name: str, values: tuple[str, ...]) -> Attribute:
    sure = Calibration(threshold=0.6, classes=(0.6,) * len(values))
    prior = tuple(1 / len(values) for _ in values)
    return Attribute(name=name, values=values, prior=prior, calibration=dict.fromkeys(MODES, sure))


def _named(title: str, values: Sequence[str]) -> int | None:
    words = title.casefold().split()
    found = [place for place, value in enumerate(values) if value.casefold() in words]
    return found[0] if found else None


def _seen(pixels: NDArray[np.float32]) -> int | None:
    """The place of Red, Blue or Green where a picture is that colour and no other."""
    means = pixels.mean(axis=(1, 2)).tolist()
    bright = [mean > 0.5 for mean in means]
    return (0, 2, 1)[bright.index(True)] if sum(bright) == 1 else None


def _peak(place: int, count: int) -> NDArray[np.float64]:
    rest = 0.2 / (count - 1)
    return np.where(np.arange(count) == place, 0.8, rest)


class TinyCategorizer:
    """Says of a text what its first word is: the `shelf` of that name has .8, and the others share
    the rest; a word that is no shelf leaves all alike. A title needs .7 to be sure."""

    name = "tiny categories"
    label = "shelf"
    categories = ("Kitchen", "Clothes", "Toys", "Garden")
    threshold: float | None = 0.7
    config = SimpleNamespace(trained_on=TrainedOn(held_out=0.5, seed=0))

    def __init__(self, salt: str = "") -> None:
        self.fingerprint = hashlib.sha256(f"categories{salt}".encode()).hexdigest()
        self.read = 0  # texts

    def probabilities(self, texts: Sequence[str]) -> NDArray[np.float32]:
        self.read += len(texts)
        places = {name.casefold(): place for place, name in enumerate(self.categories)}
        first = [places.get(text.split()[0].casefold()) for text in texts]
        rows = [np.full(4, 0.25) if place is None else _peak(place, 4) for place in first]
        return np.array(rows, np.float32).reshape(len(texts), 4)


def tiny_shelves(categorizer: TinyCategorizer | None = None) -> CategoryReader:
    """The categoriser as a classifier; merchants write `Cooking` for `Kitchen`, too."""
    counts = {"Kitchen": 40, "Cooking": 10, "Clothes": 25, "Toys": 15, "Garden": 10}
    labels = [
        Label("shelf", raw, count, "Kitchen" if raw == "Cooking" else raw)
        for raw, count in counts.items()
    ]
    return CategoryReader(cast("Any", categorizer or TinyCategorizer()), Labels(labels))


@pytest.fixture
def tiny_classifier() -> TinyClassifier:
    return TinyClassifier()


@pytest.fixture
def tiny_encoder() -> TinyEncoder:
    return TinyEncoder()


@pytest.fixture
def other_encoder() -> TinyEncoder:
    """Same vectors as `tiny_encoder`, another fingerprint."""
    return TinyEncoder("other")


def pictures_of(
    owners: Sequence[int],
    *,
    main: Sequence[bool] | None = None,
    hashes: Sequence[int] | None = None,
    files: Sequence[Path] | None = None,
) -> Images:
    """The pictures of products, one row an owner: `0.png` and so on, all different; without
    `files` there are none."""
    count = len(owners)
    return Images(
        pa.table(
            {
                "product": owners,
                "location": [f"{row}.png" for row in range(count)],
                "path": [None] * count if files is None else list(map(str, files)),
                "role": ["main" if yes else "additional" for yes in main or [True] * count],
                "sha256": [f"{row:064x}" for row in range(count)],
                "phash": [0] * count if hashes is None else hashes,
            },
            schema=IMAGE_SCHEMA,
        )
    )
