"""ALBEF as an `Encoder`: pictures and titles to one space, and how well the two fit."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from indexing.errors import ModelError
from indexing.models.albef.config import AlbefConfig
from indexing.models.albef.eye import MEAN, STD, AlbefEye
from indexing.models.albef.network import AlbefModel
from indexing.models.albef.reading import Reader
from indexing.models.albef.tokenizer import AlbefTokenizer
from indexing.models.clip import TEXT_BATCH
from indexing.models.folder import DELTA, fingerprint_of, with_pruning, write_model
from indexing.models.protocol import Pixels, Vectors
from indexing.models.text import by_length
from indexing.models.token_pruning import TokenPruning

_MATCHED = 32  # pictures that are matched with a text at once
ITM = "itm_head."
WORDS = "text_encoder.bert.embeddings.word_embeddings.weight"
DECODER = "text_encoder.cls.predictions.decoder.weight"


class AlbefEncoder:
    """An ALBEF model with its tokenizer, as an `Encoder`.

    Training works on `model`; `pruning` are the masks of its texts, None for none. Without
    `has_match` the ITM head was never trained: then nothing can be matched, and the head is
    not saved.
    """

    mean: tuple[float, ...] = MEAN
    std: tuple[float, ...] = STD

    def __init__(
        self,
        name: str,
        model: AlbefModel,
        tokenizer: AlbefTokenizer,
        *,
        device: str = "cpu",
        pruning: TokenPruning | None = None,
    ) -> None:
        """Raises ModelError where the model cannot be pruned so."""
        self.name = name
        self.model = model.eval().to(device)
        self.tokenizer = tokenizer
        self.device = device
        self.pruning = pruning
        self.has_match = True
        if pruning is not None:
            Reader(self.model, pruning.to(device))

    @property
    def config(self) -> AlbefConfig:
        return self.model.config

    @property
    def dim(self) -> int:
        return self.config.embed_dim

    @property
    def image_size(self) -> int:
        return self.config.image_size

    @property
    def fingerprint(self) -> str:
        # Computed anew each time: training changes the weights of the model that is held.
        config = {**self._folder_config(), "mean": self.mean, "std": self.std}
        return fingerprint_of(config, self.tokenizer.vocab_file, self.tokenizer, self._tensors())

    def preprocess(self, picture: Image.Image) -> Pixels:
        return AlbefEye(self.image_size, self.mean, self.std).preprocess(picture)

    def embed_pixels(self, pixels: Pixels) -> Vectors:
        vectors: Vectors = self.encode_image(torch.from_numpy(pixels)).cpu().numpy()
        return vectors

    def embed_images(self, pictures: Sequence[Image.Image]) -> Vectors:
        if not pictures:
            return np.zeros((0, self.dim), np.float32)
        return self.embed_pixels(np.stack([self.preprocess(picture) for picture in pictures]))

    def embed_texts(self, texts: Sequence[str]) -> Vectors:
        parts = [np.zeros((0, self.dim), np.float32)]
        for start in range(0, len(texts), TEXT_BATCH):
            ids = self.tokenizer(texts[start : start + TEXT_BATCH])
            parts.append(self._embed(ids.to(self.device)).cpu().numpy())
        return np.concatenate(parts)

    @torch.inference_mode()
    def encode_image(self, pixels: Tensor) -> Tensor:
        """Preprocessed pictures [n, 3, h, w] to unit vectors, float32 [n, dim]."""
        return self.model.encode_image(pixels.to(self.device))

    @torch.inference_mode()
    def encode_text(self, ids: Tensor, mask: Tensor) -> Tensor:
        """Token ids and `AlbefTokenizer.mask` of them to unit vectors, float32 [n, dim]."""
        return self.model.encode_text(ids.to(self.device), mask.to(self.device), self.pruning)

    @torch.inference_mode()
    def match(self, pixels: Tensor, ids: Tensor, mask: Tensor) -> Tensor:
        """Whether picture i and text i belong together: logits [n, 2], the second for yes.

        Raises:
            ModelError: The model has no ITM head.
        """
        self._require_match()
        there = (pixels.to(self.device), ids.to(self.device), mask.to(self.device))
        return self.model.match(*there, self.pruning)

    @torch.inference_mode()
    def match_text(self, text: str, pixels: Pixels) -> NDArray[np.float32]:
        """The probability that each picture fits one text, float32 [n].

        Args:
            pixels: preprocessed pictures [n, 3, h, w].

        Raises:
            ModelError: The model has no ITM head.
        """
        self._require_match()
        ids = self.tokenizer([text]).to(self.device)
        reader = Reader(self.model, self.pruning)
        read = reader.read(ids, self.tokenizer.mask(ids), hard=True)
        parts = [torch.zeros(0)]
        for start in range(0, len(pixels), _MATCHED):
            shown = torch.from_numpy(pixels[start : start + _MATCHED]).to(self.device)
            seen = self.model.visual_encoder(shown)
            texts = read.take(torch.zeros(len(seen), dtype=torch.int64, device=seen.device))
            logits = self.model.itm_head(reader.fuse(texts, seen, hard=True).x[:, 0])
            parts.append(logits.float().softmax(-1)[:, 1].cpu())
        found: NDArray[np.float32] = torch.cat(parts).numpy()
        return found

    def save(self, folder: Path, *, card: str, half: bool = False) -> None:
        """Writes a model folder that `load_encoder` opens.

        Args:
            card: text of the model card.
            half: store weights as float16 (half the size; read back as float32), thresholds
                apart.

        Raises:
            ModelError: A weight is too large for float16.
        """
        files = {"vocab.txt": self.tokenizer.vocab_file}
        write_model(folder, self._folder_config(), self._tensors(), files, card=card, half=half)

    def _embed(self, ids: Tensor) -> Tensor:
        mask = self.tokenizer.mask(ids)
        return by_length(mask.sum(1) - 1, lambda part: self.encode_text(ids[part], mask[part]))

    def _require_match(self) -> None:
        if not self.has_match:
            raise ModelError(
                f"{self.name} has no matching head (itm_head): use a checkpoint that has one, "
                "such as ALBEF.pth, or train one"
            )

    def _folder_config(self) -> dict[str, object]:
        """What a folder's config.json says."""
        return with_pruning(self.config.model_dump(), self.pruning)

    def _tensors(self) -> dict[str, Tensor]:
        """What a folder's model.safetensors holds."""
        state: dict[str, Tensor] = self.model.state_dict()
        if state[DECODER].data_ptr() == state[WORDS].data_ptr():
            del state[DECODER]
        if not self.has_match:
            state = {key: value for key, value in state.items() if not key.startswith(ITM)}
        return state if self.pruning is None else {**state, DELTA: self.pruning.delta}


def new_encoder(
    config: AlbefConfig, vocab_file: Path, *, seed: int, device: str = "cpu"
) -> AlbefEncoder:
    """An untrained encoder of these sizes; the same for the same seed.

    Raises:
        ModelError: The vocabulary cannot be read or is not the model's.
    """
    tokenizer = AlbefTokenizer(vocab_file, config)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = AlbefModel(config)
    return AlbefEncoder("untrained", model, tokenizer, device=device)
