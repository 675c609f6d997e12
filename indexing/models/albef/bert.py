"""The blocks of the text and the fusion encoder: BERT (Devlin et al. 2019) with cross-attention.

Post-norm: each part's output is added to its input and then normalised. Modules carry the
names of the public checkpoints, hence `self` for the attention proper.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional

from indexing.models.albef.config import AlbefConfig

_EPS = 1e-12
_DROPOUT = 0.1  # while training, as in BERT; attention weights are not dropped


class Heads(NamedTuple):
    """Queries, keys and values, [b, heads, n, d] each; keys and values may have another n."""

    query: Tensor
    key: Tensor
    value: Tensor


class _AddNorm(nn.Module):
    """A projection whose output is added to the input and normalised."""

    def __init__(self, inner: int, width: int) -> None:
        super().__init__()
        self.dense = nn.Linear(inner, width)
        self.LayerNorm = nn.LayerNorm(width, eps=_EPS)
        self._dropout = nn.Dropout(_DROPOUT)

    def forward(self, inner: Tensor, x: Tensor) -> Tensor:
        normed: Tensor = self.LayerNorm(x + self._dropout(self.dense(inner)))
        return normed


class _Projections(nn.Module):
    def __init__(self, width: int, memory_width: int) -> None:
        super().__init__()
        self.query = nn.Linear(width, width)
        self.key = nn.Linear(memory_width, width)
        self.value = nn.Linear(memory_width, width)


class Attention(nn.Module):
    """Attention over the text itself, or over a picture; see `Layer` for the order of calls."""

    def __init__(self, width: int, heads: int, memory_width: int) -> None:
        super().__init__()
        self._heads = heads
        self.self = _Projections(width, memory_width)
        self.output = _AddNorm(width, width)

    def heads(self, x: Tensor, memory: Tensor) -> Heads:
        """What attends (`x`, [b, n, width]) and what is attended to (`memory`, [b, k, ...])."""
        return Heads(
            self._parted(self.self.query(x)),
            self._parted(self.self.key(memory)),
            self._parted(self.self.value(memory)),
        )

    def merged(self, attended: Tensor, x: Tensor) -> Tensor:
        """The states after attention, out of [b, heads, n, d] and the states before."""
        after: Tensor = self.output(attended.transpose(1, 2).flatten(2), x)
        return after

    def _parted(self, x: Tensor) -> Tensor:
        return x.view(*x.shape[:2], self._heads, x.shape[2] // self._heads).transpose(1, 2)


class _Intermediate(nn.Module):
    def __init__(self, width: int, inner: int) -> None:
        super().__init__()
        self.dense = nn.Linear(width, inner)

    def forward(self, x: Tensor) -> Tensor:
        return functional.gelu(self.dense(x))


class Layer(nn.Module):
    """`attention`, then `crossattention` in fusion layers, then `feed_forward`."""

    def __init__(self, config: AlbefConfig, *, fusion: bool) -> None:
        super().__init__()
        width, heads = config.text_width, config.text_heads
        self.attention = Attention(width, heads, width)
        if fusion:
            self.crossattention = Attention(width, heads, config.vision_width)
        self.intermediate = _Intermediate(width, config.text_intermediate)
        self.output = _AddNorm(config.text_intermediate, width)

    def feed_forward(self, x: Tensor) -> Tensor:
        after: Tensor = self.output(self.intermediate(x), x)
        return after


class _Embeddings(nn.Module):
    def __init__(self, config: AlbefConfig) -> None:
        super().__init__()
        self.word_embeddings = nn.Embedding(config.vocab_size, config.text_width)
        self.position_embeddings = nn.Embedding(config.max_positions, config.text_width)
        self.LayerNorm = nn.LayerNorm(config.text_width, eps=_EPS)
        self._dropout = nn.Dropout(_DROPOUT)

    def forward(self, ids: Tensor) -> Tensor:
        """int64 [b, n] to [b, n, width]."""
        embedded = self.word_embeddings(ids) + self.position_embeddings.weight[: ids.shape[1]]
        normed: Tensor = self._dropout(self.LayerNorm(embedded))
        return normed


class _Encoder(nn.Module):
    def __init__(self, config: AlbefConfig) -> None:
        super().__init__()
        self.layer = nn.ModuleList(
            Layer(config, fusion=number >= config.fusion_layer)
            for number in range(config.text_layers)
        )


class Bert(nn.Module):
    """Embeddings and layers; `reading.py` sends texts through them."""

    def __init__(self, config: AlbefConfig) -> None:
        super().__init__()
        self.embeddings = _Embeddings(config)
        self.encoder = _Encoder(config)
        self.grad_checkpointing = False


class _Transform(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.dense = nn.Linear(width, width)
        self.LayerNorm = nn.LayerNorm(width, eps=_EPS)

    def forward(self, x: Tensor) -> Tensor:
        normed: Tensor = self.LayerNorm(functional.gelu(self.dense(x)))
        return normed


class _Predictions(nn.Module):
    def __init__(self, words: nn.Embedding) -> None:
        super().__init__()
        self.transform = _Transform(words.embedding_dim)
        self.decoder = nn.Linear(words.embedding_dim, words.num_embeddings, bias=False)
        self.decoder.weight = words.weight
        self.bias = nn.Parameter(torch.zeros(words.num_embeddings))

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.decoder(self.transform(x)) + self.bias
        return logits


class _Head(nn.Module):
    def __init__(self, words: nn.Embedding) -> None:
        super().__init__()
        self.predictions = _Predictions(words)


class MaskedLanguageModel(nn.Module):
    """BERT with the head that says which word was hidden; the head shares its embeddings."""

    def __init__(self, config: AlbefConfig) -> None:
        super().__init__()
        self.bert = Bert(config)
        self.cls = _Head(self.bert.embeddings.word_embeddings)

    def words(self, states: Tensor) -> Tensor:
        """States [..., width] to the logits of all words, [..., vocab_size]."""
        logits: Tensor = self.cls.predictions(states)
        return logits
