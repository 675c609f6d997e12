"""All of ALBEF, with the names that the public checkpoints use."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional

from indexing.models.albef.bert import MaskedLanguageModel
from indexing.models.albef.config import AlbefConfig
from indexing.models.albef.reading import Reader
from indexing.models.albef.vision import VisionTransformer
from indexing.models.token_pruning import TokenPruning

_TEMPERATURE = 0.07
_SPREAD = 0.02  # standard deviation of weights at the start, as in BERT and ViT of this width:
_WIDTH = 768


class AlbefModel(nn.Module):
    """Picture encoder, text and fusion encoder, projections and heads.

    `encode_image` and `encode_text` give what is searched by, `match` what reranks. `temp` is
    the temperature of contrastive scores, the inverse of CLIP's logit scale.
    """

    def __init__(self, config: AlbefConfig) -> None:
        super().__init__()
        self.config = config
        self.visual_encoder = VisionTransformer(config)
        self.text_encoder = MaskedLanguageModel(config)
        self.vision_proj = nn.Linear(config.vision_width, config.embed_dim)
        self.text_proj = nn.Linear(config.text_width, config.embed_dim)
        self.itm_head = nn.Linear(config.text_width, 2)
        self.temp = nn.Parameter(torch.tensor(_TEMPERATURE))
        self.apply(_start)
        nn.init.trunc_normal_(self.visual_encoder.cls_token, std=_SPREAD)
        nn.init.trunc_normal_(self.visual_encoder.pos_embed, std=_SPREAD)

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """Whether activations are computed anew for the gradient instead of kept."""
        self.visual_encoder.grad_checkpointing = enable
        self.text_encoder.bert.grad_checkpointing = enable

    def encode_image(self, pixels: Tensor) -> Tensor:
        """Pictures, float [n, 3, image_size, image_size], to unit vectors [n, embed_dim]."""
        return self.image_vectors(self.visual_encoder(pixels))

    def encode_text(self, ids: Tensor, mask: Tensor, pruning: TokenPruning | None = None) -> Tensor:
        """Texts to unit vectors [n, embed_dim].

        Args:
            ids: int64 [n, length], `[CLS] ... [SEP]` and padding.
            mask: [n, length], not 0 where `ids` is no padding.
            pruning: Tokens are dropped by its hard masks.
        """
        return self.text_vectors(Reader(self, pruning).read(ids, mask, hard=True).x)

    def match(
        self, pixels: Tensor, ids: Tensor, mask: Tensor, pruning: TokenPruning | None = None
    ) -> Tensor:
        """Whether picture i and text i belong together: logits [n, 2], the second for yes.

        Arguments as of `encode_image` and `encode_text`.
        """
        reader = Reader(self, pruning)
        texts = reader.read(ids, mask, hard=True)
        fused = reader.fuse(texts, self.visual_encoder(pixels), hard=True)
        logits: Tensor = self.itm_head(fused.x[:, 0])
        return logits

    def image_vectors(self, states: Tensor) -> Tensor:
        """The picture encoder's states [n, 1 + patches, width] to unit vectors [n, embed_dim]."""
        return functional.normalize(self.vision_proj(states[:, 0]).float(), dim=-1)

    def text_vectors(self, states: Tensor) -> Tensor:
        """The text encoder's states [n, length, width] to unit vectors [n, embed_dim]."""
        return functional.normalize(self.text_proj(states[:, 0]).float(), dim=-1)


def _start(module: nn.Module) -> None:
    if isinstance(module, nn.Embedding):
        nn.init.trunc_normal_(module.weight, std=_SPREAD)
    if isinstance(module, nn.Linear):
        # Narrow layers would pass on next to nothing, and [CLS] would never hear of the words.
        # (The word embeddings get this spread, too: they are the weights of the last decoder.)
        spread = _SPREAD * math.sqrt(_WIDTH / module.in_features)
        nn.init.trunc_normal_(module.weight, std=spread)
    if isinstance(module, nn.Linear) and module.bias is not None:
        nn.init.zeros_(module.bias)
