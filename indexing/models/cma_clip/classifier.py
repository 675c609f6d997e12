"""A trained CMA-CLIP as an `AttributeClassifier`, and the folder that holds it.

attributes.json           attributes with their values and calibration, parts of the network
attributes.safetensors    weights of the network on top of the towers
encoder/                  the towers, a model folder like any other
labels.csv                what each of the merchant's own values counts as
README.md                 the model card
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL.Image import Image
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from indexing.attributes.labels import Labels, read_labels, write_labels
from indexing.attributes.vocabulary import (
    Attribute,
    Calibration,
    Floats,
    Kind,
    TrainedOn,
    mode_of,
)
from indexing.durable import replace_bytes, write_atomically
from indexing.errors import ModelError, TrainingError
from indexing.match_record import MODES, Mode
from indexing.messages import reason
from indexing.models.clip import ClipEncoder, load_folder
from indexing.models.cma_clip.network import CmaConfig, CmaNetwork, Inputs, Sizes
from indexing.models.cma_clip.towers import picture_tokens, text_tokens
from indexing.models.config_file import invalid
from indexing.models.protocol import Pixels

CONFIG = "attributes.json"
WEIGHTS = "attributes.safetensors"
ENCODER = "encoder"
LABELS = "labels.csv"
_BATCH = 64


class _Config(BaseModel):
    """What attributes.json says."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    network: CmaConfig
    attributes: tuple[Attribute, ...] = Field(min_length=1)
    # By attribute and class: what weighing the classes in training has added to the logits.
    tilts: tuple[tuple[float, ...], ...]
    trained_on: TrainedOn


@dataclass(frozen=True)
class Reading:
    """What the network says of n products.

    Attributes:
        logits: float32 [n, classes] of each attribute, as a natural mix of classes has them:
            without what weighing the classes in training has added, and before calibration.
        picture_weight: float32 [n, attributes], lambda.
        modes: What each row has.
    """

    logits: dict[str, Floats]
    picture_weight: Floats
    modes: list[Mode]


class CmaClassifier:
    """CMA-CLIP with its towers, as an `AttributeClassifier`.

    `encoder` and `network` are what training works on.
    """

    kind: Kind = "attributes"

    def __init__(
        self,
        name: str,
        encoder: ClipEncoder,
        network: CmaNetwork,
        attributes: tuple[Attribute, ...],
        labels: Labels,
        tilts: Sequence[Sequence[float]],
        trained_on: TrainedOn,
    ) -> None:
        self.name = name
        self.encoder = encoder
        self.network = network.eval().to(encoder.device)
        self.attributes = attributes
        self.labels = labels
        self.tilts = tuple(tuple(tilt) for tilt in tilts)
        self.trained_on = trained_on

    @property
    def image_size(self) -> int:
        return self.encoder.image_size

    @property
    def fingerprint(self) -> str:
        digest = hashlib.sha256(self.encoder.fingerprint.encode())
        digest.update(self._config().model_dump_json().encode())
        digest.update(repr(self.labels.rows).encode("utf-8", "surrogatepass"))
        for key, value in sorted(self.network.state_dict().items()):
            digest.update(key.encode() + value.detach().cpu().contiguous().numpy().tobytes())
        return digest.hexdigest()

    def value_of(self, name: str, raw: str) -> str | None:
        return self.labels.value_of(name, raw)

    def ways_of_writing(self) -> dict[str, list[tuple[str, str]]]:
        return self.labels.ways_of_writing()

    def preprocess(self, picture: Image) -> Pixels:
        return self.encoder.preprocess(picture)

    def predict(self, pixels: Pixels | None, titles: Sequence[str] | None) -> dict[str, Floats]:
        reading = self.read(pixels, titles)
        return {
            attribute.name: calibrated(attribute, reading.logits[attribute.name], reading.modes)
            for attribute in self.attributes
        }

    def read(self, pixels: Pixels | None, titles: Sequence[str] | None) -> Reading:
        """What the network says, before calibration; arguments as for `predict`.

        Of a row with neither picture nor title there is nothing but the shares of the classes.

        Raises:
            ValueError: There are neither pictures nor titles, or not as many of both.
        """
        if pixels is None and titles is None:
            raise ValueError("neither pictures nor titles")
        count = len(titles or ()) if pixels is None else len(pixels)
        if titles is not None and len(titles) != count:
            raise ValueError(f"{count} pictures and {len(titles)} titles")
        modes = [
            mode_of(pixels is not None, None if titles is None else titles[row])
            for row in range(count)
        ]
        logits = {a.name: np.zeros((count, len(a.values)), np.float32) for a in self.attributes}
        weights = np.zeros((count, len(self.attributes)), np.float32)
        for start in range(0, count, _BATCH):
            part = slice(start, start + _BATCH)
            with torch.inference_mode():
                inputs = self.inputs(
                    None if pixels is None else pixels[part],
                    None if titles is None else titles[part],
                )
                found = self.network(inputs)
            weights[part] = found.picture_weight.float().cpu().numpy()
            for attribute, tilt, own in zip(self.attributes, self.tilts, found.logits, strict=True):
                tilted = own.float().cpu().numpy()
                logits[attribute.name][part] = tilted - np.array(tilt, np.float32)
        if pixels is None:
            blank = [not title.strip() for title in titles or ()]
            for attribute in self.attributes:
                logits[attribute.name][blank] = np.log(attribute.prior)
        return Reading(logits, weights, modes)

    def inputs(self, pixels: Pixels | None, titles: Sequence[str] | None) -> Inputs:
        """What the towers make of pictures and titles; arguments as for `predict`."""
        device = self.encoder.device
        texts = [""] * len(pixels) if titles is None and pixels is not None else list(titles or ())
        tokens, ends = text_tokens(self.encoder.model, self.encoder.tokenizer(texts).to(device))
        if pixels is None:
            patches = tokens.new_zeros(len(texts), 1, tokens.shape[2])
        else:
            patches = picture_tokens(self.encoder.model, torch.from_numpy(pixels).to(device))
        has_text = torch.tensor([bool(text.strip()) for text in texts], device=device)
        return Inputs(
            patches.float(),
            tokens.float(),
            ends,
            has_picture=torch.full_like(has_text, pixels is not None),
            # One with neither counts as a text.
            has_text=has_text if pixels is not None else torch.ones_like(has_text),
        )

    def save(self, folder: Path, *, card: str) -> None:
        """Writes a folder that `load_attributes` opens; attributes.json comes last."""
        folder.mkdir(parents=True, exist_ok=True)
        self.encoder.save(
            folder / ENCODER, card="The towers of the attribute classifier in the folder above.\n"
        )
        write_labels(self.labels, folder / LABELS)
        weights = {
            key: value.detach().cpu().contiguous().clone()
            for key, value in self.network.state_dict().items()
        }

        def write(path: Path) -> None:
            save_file(weights, path)
            path.chmod(0o644)  # written for its owner alone; other users load models, too

        write_atomically(folder / WEIGHTS, write)
        (folder / "README.md").write_text(card, encoding="utf-8")
        text = self._config().model_dump_json(indent=2) + "\n"
        replace_bytes(folder / CONFIG, text.encode())

    def _config(self) -> _Config:
        return _Config(
            network=self.network.config,
            attributes=self.attributes,
            tilts=self.tilts,
            trained_on=self.trained_on,
        )


def calibrated(attribute: Attribute, logits: Floats, modes: Sequence[Mode]) -> Floats:
    """Probabilities out of logits, float32 [n, classes], by the temperature of each row's mode."""
    temperatures = np.array([_temperature(attribute.calibration, mode) for mode in modes])
    scaled = logits.astype(np.float64) / temperatures[:, np.newaxis]
    powers = np.exp(scaled - scaled.max(axis=1, keepdims=True, initial=-np.inf))
    shares: Floats = (powers / powers.sum(axis=1, keepdims=True)).astype(np.float32)
    return shares


def uncalibrated(classes: int) -> dict[Mode, Calibration]:
    """What an attribute has before its calibration: temperature 1, and nothing is sure."""
    return {mode: Calibration(classes=(None,) * classes) for mode in MODES}


def _temperature(calibration: Mapping[Mode, Calibration], mode: Mode) -> float:
    return calibration[mode].temperature


def open_folder(folder: Path, *, device: str) -> CmaClassifier:
    """See `load_attributes`."""
    for file in (CONFIG, WEIGHTS, LABELS):
        if not (folder / file).is_file():
            raise ModelError(
                f"{folder} is no attribute classifier, it has no {file}: give the folder of "
                "`shoplens train attributes`"
            )
    encoder = load_folder(folder / ENCODER, device=device)
    try:
        config = _Config.model_validate_json((folder / CONFIG).read_bytes())
        classes = tuple(len(attribute.values) for attribute in config.attributes)
        network = CmaNetwork(Sizes(dim=encoder.dim, classes=classes), config.network)
        network.load_state_dict(load_file(folder / WEIGHTS))
        labels = read_labels(folder / LABELS)
        for attribute, tilt in zip(config.attributes, config.tilts, strict=True):
            sizes = {len(attribute.values), len(attribute.prior), len(tilt)}
            sizes |= {len(own.classes) for own in attribute.calibration.values()}
            if len(sizes) > 1 or set(attribute.calibration) != set(MODES):
                raise ValueError(f"attribute {attribute.name!r} is not whole")
    except ValidationError as error:
        raise ModelError(f"{folder / CONFIG} has {invalid(error)}") from error
    except (OSError, ValueError, RuntimeError, SafetensorError, TrainingError) as error:
        raise ModelError(f"{folder} cannot be loaded: {reason(error)}") from error
    return CmaClassifier(
        str(folder.resolve()), encoder, network, config.attributes, labels, config.tilts,
        config.trained_on,
    )  # fmt: skip
