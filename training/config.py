"""What a training run is asked to do, and what it depends on."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict, Field


class TrainConfig(BaseModel):
    """Settings of `shoplens train clip`; a run is repeated exactly by the same settings."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    epochs: int = Field(10, ge=1)
    batch_size: int = Field(256, ge=2)
    # Peak of a linear warm-up over the first 5% of the steps and a cosine down to zero.
    learning_rate: float = Field(1e-4, gt=0, allow_inf_nan=False)
    weight_decay: float = Field(0.02, ge=0, allow_inf_nan=False)  # the MML-TP paper's
    # Share of the distinct titles that is held out to choose the best epoch.
    validation_share: float = Field(0.05, gt=0, lt=1)
    # Train the text tower and the last picture projection only; each picture is seen once.
    lock_image: bool = False
    # Weight of keeping the similarities between pictures that the tower had before. What it
    # knew of pictures unlike this catalog's would otherwise fade.
    keep_similarities: float = Field(0.0, ge=0, allow_inf_nan=False)
    # Share of title words hidden in each step.
    word_dropout: float = Field(0.0, ge=0, lt=1)
    seed: int = Field(0, ge=0, lt=2**32)
