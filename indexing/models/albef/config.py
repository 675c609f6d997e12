"""The sizes of an ALBEF model; what a folder's config.json says."""

from __future__ import annotations

from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field, model_validator

Count = Annotated[int, Field(gt=0)]


class AlbefConfig(BaseModel):
    """Sizes; the defaults are those of the base model that is public.

    The first `fusion_layer` of the `text_layers` read the text alone, the others also look at
    the picture.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    image_size: Count = 256
    patch_size: Count = 16
    vision_width: Count = 768
    vision_layers: Count = 12
    vision_heads: Count = 12
    vocab_size: Count = 30522
    text_width: Count = 768
    text_layers: Count = 12
    text_heads: Count = 12
    text_intermediate: Count = 3072
    fusion_layer: Count = 6
    max_positions: Count = 512
    embed_dim: Count = 256
    max_text_length: Annotated[int, Field(ge=3)] = 64  # 30 is too short for titles

    @model_validator(mode="after")
    def _fits(self) -> AlbefConfig:
        for width, heads in (
            (self.vision_width, self.vision_heads),
            (self.text_width, self.text_heads),
        ):
            if width % heads:
                raise ValueError(f"a width of {width} cannot be parted into {heads} heads")
        if self.image_size % self.patch_size:
            raise ValueError(
                f"image_size {self.image_size} is no multiple of patch_size {self.patch_size}"
            )
        if self.fusion_layer >= self.text_layers:
            raise ValueError(
                f"fusion_layer {self.fusion_layer} leaves none of {self.text_layers} text_layers "
                "to look at the picture"
            )
        if self.max_text_length > self.max_positions:
            raise ValueError(
                f"max_text_length {self.max_text_length} is over max_positions {self.max_positions}"
            )
        return self

    @property
    def grid(self) -> int:
        """Patches along a side."""
        return self.image_size // self.patch_size

    @property
    def attentions(self) -> int:
        """Attentions that may prune: the self-attention of each text layer, then the
        cross-attention of each fusion layer."""
        return self.text_layers + self.text_layers - self.fusion_layer
