"""The picture encoder: a pre-norm vision transformer (Dosovitskiy et al. 2021)."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.checkpoint import checkpoint

from indexing.models.albef.config import AlbefConfig

_EPS = 1e-6


class _Attention(nn.Module):
    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self._heads = heads
        self.qkv = nn.Linear(width, 3 * width)
        self.proj = nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        batch, length, width = x.shape
        packed = self.qkv(x).view(batch, length, 3, self._heads, width // self._heads)
        query, key, value = packed.permute(2, 0, 3, 1, 4)
        attended = functional.scaled_dot_product_attention(query, key, value)
        result: Tensor = self.proj(attended.transpose(1, 2).flatten(2))
        return result


class _Mlp(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(width, 4 * width)
        self.fc2 = nn.Linear(4 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        result: Tensor = self.fc2(functional.gelu(self.fc1(x)))
        return result


class _Block(nn.Module):
    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(width, eps=_EPS)
        self.attn = _Attention(width, heads)
        self.norm2 = nn.LayerNorm(width, eps=_EPS)
        self.mlp = _Mlp(width)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attn(self.norm1(x))
        after: Tensor = x + self.mlp(self.norm2(x))
        return after


class _PatchEmbed(nn.Module):
    def __init__(self, patch_size: int, width: int) -> None:
        super().__init__()
        self.proj = nn.Conv2d(3, width, patch_size, stride=patch_size)

    def forward(self, pixels: Tensor) -> Tensor:
        patches: Tensor = self.proj(pixels)
        return patches.flatten(2).transpose(1, 2)


class VisionTransformer(nn.Module):
    """Pictures to the states of [CLS] and the patches."""

    def __init__(self, config: AlbefConfig) -> None:
        super().__init__()
        width = config.vision_width
        self.patch_embed = _PatchEmbed(config.patch_size, width)
        self.cls_token = nn.Parameter(torch.zeros(1, 1, width))
        self.pos_embed = nn.Parameter(torch.zeros(1, 1 + config.grid**2, width))
        self.blocks = nn.ModuleList(
            _Block(width, config.vision_heads) for _ in range(config.vision_layers)
        )
        self.norm = nn.LayerNorm(width, eps=_EPS)
        self.grad_checkpointing = False

    def forward(self, pixels: Tensor) -> Tensor:
        """Float [n, 3, image_size, image_size] to [n, 1 + patches, vision_width], [CLS] first."""
        x = self.patch_embed(pixels)
        x = torch.cat([self.cls_token.expand(x.shape[0], -1, -1), x], dim=1) + self.pos_embed
        for block in self.blocks:
            if self.grad_checkpointing and torch.is_grad_enabled():
                x = checkpoint(block, x, use_reentrant=False)
            else:
                x = block(x)
        normed: Tensor = self.norm(x)
        return normed


def resized_positions(positions: Tensor, grid: int) -> Tensor:
    """Position embeddings for another grid of patches, bicubic; that of [CLS] stays.

    Args:
        positions: [1, 1 + g * g, width].

    Returns:
        [1, 1 + grid * grid, width].
    """
    first, patches = positions[:, :1], positions[:, 1:]
    before = round(patches.shape[1] ** 0.5)
    if before == grid:
        return positions
    square = patches.float().reshape(1, before, before, -1).permute(0, 3, 1, 2)
    resized = functional.interpolate(square, (grid, grid), mode="bicubic", align_corners=False)
    return torch.cat([first, resized.flatten(2).transpose(1, 2).to(positions.dtype)], dim=1)
