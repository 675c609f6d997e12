"""The slow copy of a model, and the queue of what it made of earlier batches."""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn

from indexing.models.albef.network import AlbefModel

NOBODY = -1  # in place of a pair's number where the queue is not filled yet


class Momentum(nn.Module):
    """An exponential moving average of the model, and a ring of its embeddings.

    The copy is always in evaluation mode: what it teaches is without dropout. The ring takes
    batches of any size; ALBEF's own needs a queue that the batch size divides, which that of
    the MML-TP paper (65,536 and 320) is not.

    Buffers: `image_queue` and `text_queue`, float32 [size, embed_dim]; `pairs`, int64 [size],
    the number of each entry's pair, NOBODY where there is none; `place`, where to go on.
    """

    image_queue: Tensor
    text_queue: Tensor
    pairs: Tensor
    place: Tensor

    def __init__(self, model: AlbefModel, size: int, momentum: float) -> None:
        super().__init__()
        self.model = copy.deepcopy(model).requires_grad_(False).eval()
        self._momentum = momentum
        dim = model.config.embed_dim
        self.register_buffer("image_queue", torch.zeros(size, dim))
        self.register_buffer("text_queue", torch.zeros(size, dim))
        self.register_buffer("pairs", torch.full((size,), NOBODY))
        self.register_buffer("place", torch.zeros((), dtype=torch.int64))

    def train(self, mode: bool = True) -> Momentum:
        """Stays in evaluation mode."""
        return super().train(False)

    @torch.no_grad()
    def follow(self, model: AlbefModel) -> None:
        """Moves the copy towards the model."""
        for slow, fast in zip(self.model.parameters(), model.parameters(), strict=True):
            slow.lerp_(fast, 1 - self._momentum)

    @torch.no_grad()
    def enqueue(self, images: Tensor, texts: Tensor, pairs: Tensor) -> None:
        """Puts a batch into the ring, the oldest entries out.

        Args:
            images, texts: float32 [n, embed_dim]; pairs: int64 [n], their numbers.
        """
        size = len(self.pairs)
        if size == 0:
            return
        images, texts, pairs = images[-size:], texts[-size:], pairs[-size:]
        places = (self.place + torch.arange(len(pairs), device=self.place.device)) % size
        self.image_queue[places] = images.float()
        self.text_queue[places] = texts.float()
        self.pairs[places] = pairs.to(self.pairs.device)
        self.place.copy_((self.place + len(pairs)) % size)
