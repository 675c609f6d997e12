"""Titles to vectors by a BERT-style encoder with mean pooling, and a linear classifier on them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from tokenizers import Tokenizer
from torch import Tensor, nn

from indexing.errors import ModelError
from indexing.models.text import by_length

MAX_TOKENS = 64  # of a title, start and end among them; the rest is cut off
_TOGETHER = 16  # titles of like length that go through the encoder at a time
_READ = 256  # titles whose states are in memory at a time


class Tokens(NamedTuple):
    """Titles as token ids.

    Attributes:
        ids: int64 [n, longest], any id of the vocabulary beyond a title's length.
        lengths: int64 [n].
    """

    ids: Tensor
    lengths: Tensor

    def take(self, rows: Tensor) -> Tokens:
        """The titles of these rows, int64 [m]."""
        return Tokens(self.ids[rows], self.lengths[rows])


class TitleTokenizer:
    """The `tokenizer.json` of a folder. Words such as `[SEP]` in a title are words."""

    def __init__(self, file: Path, *, longest: int = MAX_TOKENS) -> None:
        """Raises ModelError where the file cannot be read."""
        try:
            self._tokenizer = Tokenizer.from_file(str(file))
        except Exception as error:  # tokenizers raises nothing narrower
            raise ModelError(f"{file} is not a tokenizer.json: {error}") from error
        self._tokenizer.enable_truncation(longest)
        self._tokenizer.no_padding()
        self._tokenizer.encode_special_tokens = True
        self.file = file
        self.size: int = self._tokenizer.get_vocab_size()

    def __call__(self, texts: Sequence[str]) -> Tokens:
        # What is no Unicode, such as half of a surrogate pair, is an unknown character.
        whole = [text.encode("utf-8", "replace").decode() for text in texts]
        found = [encoding.ids for encoding in self._tokenizer.encode_batch(whole)]
        lengths = torch.tensor([len(ids) for ids in found], dtype=torch.int64)
        longest = max([1, *map(len, found)])
        padded = [ids + [0] * (longest - len(ids)) for ids in found]
        return Tokens(torch.tensor(padded, dtype=torch.int64).view(-1, longest), lengths)


class TitleEncoder(nn.Module):
    """A text encoder of transformers, and the mean of its last states over a title's tokens.

    Attributes:
        settings: What makes an encoder of this shape, as `bert.py` reads it.
        width: Of a vector.
    """

    def __init__(self, bert: Any, settings: Mapping[str, Any], tokenizer: TitleTokenizer) -> None:
        """Raises ModelError where the tokenizer has more pieces than the encoder."""
        super().__init__()
        if tokenizer.size > bert.config.vocab_size:
            raise ModelError(
                f"{tokenizer.file} has {tokenizer.size:,} pieces and the model "
                f"{bert.config.vocab_size:,}: they do not belong together"
            )
        self.bert = bert
        self.settings = dict(settings)
        self.tokenizer = tokenizer
        self.width: int = bert.config.hidden_size

    def forward(self, tokens: Tokens) -> Tensor:
        """Vectors of titles, float [n >= 1, width], not normalised.

        Titles go through the encoder in groups of like length, so that little of the work is
        on padding, which has no effect on a vector.
        """
        device = next(self.parameters()).device
        ids, lengths = tokens.ids.to(device), tokens.lengths.to(device)
        # Once for all groups: the gradient of each look-up is as large as the vocabulary.
        words = self.bert.get_input_embeddings()(ids)

        def run(part: Tensor) -> Tensor:
            own = lengths[part]
            longest = max(1, int(own.max()))
            mask = torch.arange(longest, device=device) < own[:, None]
            shown = words[part, :longest]
            states = self.bert(inputs_embeds=shown, attention_mask=mask.long()).last_hidden_state
            return mean_pooled(states, mask)

        return by_length(lengths, run, group=_TOGETHER)


def mean_pooled(states: Tensor, mask: Tensor) -> Tensor:
    """The mean of the states [n, length, width] where `mask`, bool [n, length], is: [n, width].
    Of a row without any it is 0."""
    weight = mask[..., None].to(states.dtype)
    total: Tensor = (states * weight).sum(1)
    return total / weight.sum(1).clamp(min=1)


class TitleClassifier(nn.Module):
    """An encoder and a linear classifier on its vectors."""

    def __init__(self, encoder: TitleEncoder, classes: int) -> None:
        super().__init__()
        self.encoder = encoder
        self.head = nn.Linear(encoder.width, classes)

    def forward(self, tokens: Tokens) -> Tensor:
        """Logits, float [n >= 1, classes]."""
        logits: Tensor = self.head(self.encoder(tokens))
        return logits

    def read(self, tokens: Tokens) -> Tensor:
        """Logits without gradient, some titles at a time: float32 [n >= 1, classes], on the
        CPU."""
        parts = torch.arange(len(tokens.lengths)).split(_READ)  # type: ignore[no-untyped-call]
        with torch.inference_mode():
            return torch.cat([self(tokens.take(part)).float().cpu() for part in parts])
