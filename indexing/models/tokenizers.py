"""Titles to token ids; without torch, which takes two seconds to import."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray
from tokenizers import Tokenizer

from indexing.errors import ModelError
from indexing.models.torchvision_repair import import_torchvision

if TYPE_CHECKING:
    from torch import Tensor

TOKENIZER = "tokenizer.json"


class TextTokenizer(Protocol):
    """Texts to int64 [n, context_length], padded after the end-of-text token."""

    def __call__(self, texts: Sequence[str]) -> Tensor: ...


class Piece(NamedTuple):
    """A token in the text that it is of: the number of its word, and its characters."""

    word: int | None
    start: int
    end: int


class PieceTokenizer:
    """Texts to int64 [n, length] and to pieces; long texts are cut, short ones padded.

    `tokenizer` puts a start and an end token around each text.
    """

    def __init__(self, tokenizer: Tokenizer, length: int, *, pad_id: int) -> None:
        tokenizer.enable_truncation(length)
        tokenizer.enable_padding(length=length, pad_id=pad_id)
        self._tokenizer = tokenizer
        self._length = length
        self.vocab_size: int = tokenizer.get_vocab_size()
        self.unknown_id: int | None = tokenizer.token_to_id("[UNK]")

    def __call__(self, texts: Sequence[str]) -> Tensor:
        import torch

        return torch.from_numpy(self.ids(texts))

    def ids(self, texts: Sequence[str]) -> NDArray[np.int64]:
        """The same for those who do without torch."""
        encoded = self._tokenizer.encode_batch(list(texts))
        ids = np.array([encoding.ids for encoding in encoded], np.int64)
        return ids.reshape(-1, self._length)

    def pieces(self, text: str) -> list[Piece]:
        """The pieces of a text in order: those between its start and end token, and those
        that are cut off."""
        whole = self._tokenizer.encode(text)
        return [
            Piece(word, start, end)
            for part in (whole, *whole.overflowing)
            for word, (start, end), special in zip(
                part.word_ids, part.offsets, part.special_tokens_mask, strict=True
            )
            if not special
        ]


class FolderTokenizer(PieceTokenizer):
    """The `tokenizer.json` of a model folder: `[SOT] … [EOT] 0 0 …`, long texts cut.

    The file carries its own start and end tokens. Id 0 pads; the end token has the highest
    id of the vocabulary, so that open_clip's argmax pooling finds it.
    """

    def __init__(self, path: Path, context_length: int) -> None:
        super().__init__(read_tokenizer(path, "tokenizer.json"), context_length, pad_id=0)


def read_tokenizer(path: Path, kind: str) -> Tokenizer:
    """The tokenizer in a file. Raises ModelError where it is not of this kind."""
    try:
        return Tokenizer.from_file(str(path))
    except Exception as error:
        raise ModelError(f"{path} is not a {kind}: {error}") from error


def open_tokenizer(folder: Path, config: dict[str, Any]) -> tuple[TextTokenizer, Path | None]:
    """The tokenizer of a model folder with this config.json, and its file; None where it is
    one of open_clip's. Raises ValueError where it has more tokens than the text tower, and
    ModelError where the file is none."""
    file, text_cfg = folder / TOKENIZER, config["model_cfg"]["text_cfg"]
    if not file.is_file():
        import_torchvision()
        import open_clip

        found: TextTokenizer = open_clip.get_tokenizer(config["tokenizer"])
        return found, None
    tokenizer = FolderTokenizer(file, int(text_cfg["context_length"]))
    if tokenizer.vocab_size > text_cfg["vocab_size"]:
        raise ValueError(
            f"{TOKENIZER} has {tokenizer.vocab_size} tokens "
            f"and the text tower {text_cfg['vocab_size']}"
        )
    return tokenizer, file
