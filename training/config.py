"""What a training run is asked to do, and what it depends on."""

from __future__ import annotations

from typing import ClassVar, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationInfo, field_validator
from pydantic_core import PydanticCustomError

from training.losses import LOSSES

Preset = Literal["standard", "calibrated", "paper"]
Precision = Literal["auto", "fp32", "bf16"]


class RunConfig(BaseModel):
    """Settings that all kinds of models are trained with."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    # What changes how a run is computed and not what it computes: a stopped run may go on
    # with others, as after running out of memory.
    how: ClassVar[frozenset[str]] = frozenset(
        {"chunk", "precision", "checkpoint_activations", "checkpoint_minutes"}
    )

    # Where token pruning comes from, see training/presets.py; None: the encoder as it is.
    preset: Preset | None = None
    epochs: int = Field(default=10, ge=1)
    batch_size: int = Field(default=256, ge=2)
    # How many pictures of a product are put into a batch together, where it has several.
    views: int = Field(default=1, ge=1)
    learning_rate: float = Field(default=1e-4, gt=0, allow_inf_nan=False)  # the peak
    # Share of the steps over which the rate rises to its peak; after that a cosine falls.
    warm_up: float = Field(default=0.05, ge=0, le=1)
    # Share of the peak that the rate starts from and comes down to.
    floor: float = Field(default=0.0, ge=0, le=1)
    # Peak for the thresholds of token pruning; None: by the rule in training/optimizer.py.
    threshold_learning_rate: float | None = Field(default=None, ge=0, allow_inf_nan=False)
    weight_decay: float = Field(default=0.02, ge=0, allow_inf_nan=False)  # the MML-TP paper's
    # Share of the distinct titles that is held out to choose the best epoch.
    validation_share: float = Field(default=0.05, gt=0, lt=1)
    # Show open picture towers random crops, mirrored half of the time.
    augment: bool = True
    seed: int = Field(default=0, ge=0, lt=2**32)
    # Pairs that go through the towers at a time; None: the whole batch.
    chunk: int | None = Field(default=None, ge=1)
    precision: Precision = "auto"
    # Compute activations anew for the gradient, and not keep them.
    checkpoint_activations: bool = False
    checkpoint_minutes: float = Field(default=10.0, ge=0)

    def decisive(self) -> dict[str, object]:
        """The settings that the outcome depends on but for rounding, as plain values."""
        return self.model_dump(mode="json", exclude=set(self.how))


class TrainConfig(RunConfig):
    """Settings of `shoplens train clip`; a run is repeated exactly by the same settings."""

    # Steps in which masks are learned by the worth of tokens while the weights rest, see
    # training/worth.py; thresholds are held from then on. 0: masks are learned with the weights.
    mask_steps: int = Field(default=0, ge=0)
    loss: str = "infonce"  # one of training.losses.LOSSES
    # Train the text tower and the last picture projection only; each picture is seen once.
    lock_image: bool = False
    # Weight of keeping the similarities between pictures that the tower had before. What it
    # knew of pictures unlike this catalog's would otherwise fade.
    keep_similarities: float = Field(default=0.0, ge=0, allow_inf_nan=False)
    # Share of title words hidden in each step.
    word_dropout: float = Field(default=0.0, ge=0, lt=1)

    @field_validator("loss")
    @classmethod
    def _known(cls, loss: str) -> str:
        if loss not in LOSSES:
            raise PydanticCustomError(
                "loss", "no loss has this name: choose one of {names}", {"names": ", ".join(LOSSES)}
            )
        return loss

    @field_validator("mask_steps")
    @classmethod
    def _not_as_printed(cls, steps: int, info: ValidationInfo) -> int:
        if steps and info.data.get("preset") == "paper":
            raise PydanticCustomError(
                "mask_steps", "the preset paper learns its masks along with the weights: give 0"
            )
        return steps
