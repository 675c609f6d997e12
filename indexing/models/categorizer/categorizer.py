"""A trained categoriser, and the folder that holds it.

config.json         the encoder's settings, the categories, how far to trust their probabilities
model.safetensors   weights of encoder and classifier
tokenizer.json      how titles are cut into pieces
README.md           the model card
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from indexing.attributes.vocabulary import OTHER, TrainedOn
from indexing.errors import ModelError
from indexing.messages import reason
from indexing.models.categorizer.bert import TOKENIZER, make_encoder
from indexing.models.categorizer.network import TitleClassifier
from indexing.models.config_file import CONFIG, WEIGHTS, invalid
from indexing.models.folder import fingerprint_of, write_model

_BATCH = 4096  # titles that are cut into pieces at once


class CategorizerConfig(BaseModel):
    """What config.json says.

    Attributes:
        encoder: Settings of the text encoder, see `bert.py`.
        label: The catalog's field that it was trained on.
        categories: In the order of the classifier's outputs; OTHER among them where rare ones
            were put together.
        temperature: What logits are divided by (Guo et al. 2017).
        threshold: The lowest confidence from which predictions are right in 90% of the cases,
            by Wilson's lower bound on titles not trained on; None where none is.
        trained_on: Which titles it was trained on.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    encoder: dict[str, Any]
    label: str
    categories: Annotated[tuple[str, ...], Field(min_length=2)]
    temperature: Annotated[float, Field(gt=0)] = 1.0
    threshold: float | None = None
    trained_on: TrainedOn


class Categorizer:
    """Says of titles what category they are of.

    Attributes:
        threshold: Confidence from which it answers for titles; None: it is never sure.
    """

    def __init__(self, name: str, network: TitleClassifier, config: CategorizerConfig) -> None:
        if network.head.out_features != len(config.categories):
            raise ValueError(
                f"{network.head.out_features} outputs and {len(config.categories)} categories"
            )
        self.name = name
        self.network = network.eval()
        self.config = config
        self.label = config.label
        self.categories = config.categories
        self.threshold = config.threshold

    @property
    def fingerprint(self) -> str:
        """Hex SHA-256 over weights, tokenizer, categories and calibration."""
        tokenizer = self.network.encoder.tokenizer

        def ids(texts: Sequence[str]) -> Tensor:
            return tokenizer(texts).ids

        return fingerprint_of(
            self.config.model_dump(mode="json"), tokenizer.file, ids, self.network.state_dict()
        )

    def probabilities(self, texts: Sequence[str]) -> NDArray[np.float32]:
        """Calibrated probabilities, float32 [n, categories]; rows sum to 1. They do not depend
        on the other texts but for rounding."""
        logits = self.logits(texts).astype(np.float64) / self.config.temperature
        powers = np.exp(logits - logits.max(axis=1, keepdims=True, initial=-np.inf))
        shares: NDArray[np.float32] = (powers / powers.sum(axis=1, keepdims=True)).astype("f4")
        return shares

    def logits(self, texts: Sequence[str]) -> NDArray[np.float32]:
        """What the classifier says before calibration, float32 [n, categories]."""
        found = [np.zeros((0, len(self.categories)), np.float32)]
        for start in range(0, len(texts), _BATCH):
            tokens = self.network.encoder.tokenizer(texts[start : start + _BATCH])
            found.append(self.network.read(tokens).numpy())
        return np.concatenate(found)

    def sure(self, probabilities: NDArray[np.float32]) -> NDArray[np.bool_]:
        """Where the most probable category is sure, bool [n]: at the threshold or above, and
        not OTHER."""
        limit = np.inf if self.threshold is None else self.threshold
        named = np.array([category != OTHER for category in self.categories])
        confident: NDArray[np.bool_] = probabilities.max(axis=1) >= limit
        sure: NDArray[np.bool_] = confident & named[probabilities.argmax(axis=1)]
        return sure

    def save(self, folder: Path, *, card: str) -> None:
        """Writes a folder that `load_categorizer` opens; the weights come last."""
        write_model(
            folder,
            self.config.model_dump(mode="json"),
            self.network.state_dict(),
            {TOKENIZER: self.network.encoder.tokenizer.file},
            card=card,
            half=False,
        )


def open_folder(folder: Path, *, device: str) -> Categorizer:
    """See `load_categorizer`."""
    for file in (CONFIG, WEIGHTS, TOKENIZER):
        if not (folder / file).is_file():
            raise ModelError(
                f"{folder} is no categoriser, it has no {file}: give the folder of "
                "`shoplens train categories`"
            )
    try:
        config = CategorizerConfig.model_validate_json((folder / CONFIG).read_bytes())
        encoder = make_encoder(config.encoder, folder / TOKENIZER)
        network = TitleClassifier(encoder, len(config.categories))
        network.load_state_dict(load_file(folder / WEIGHTS))
        made = Categorizer(str(folder.resolve()), network.to(device), config)
        if not np.isfinite(made.logits(["a title"])).all():
            raise ValueError("its weights are not finite numbers")
    except ValidationError as error:
        raise ModelError(f"{folder / CONFIG} has {invalid(error)}") from error
    except (OSError, ValueError, TypeError, RuntimeError, SafetensorError) as error:
        raise ModelError(f"{folder} cannot be loaded: {reason(error)}") from error
    return made
