"""What a run of `shoplens train attributes` is asked to do."""

from __future__ import annotations

from typing import ClassVar, Literal, NamedTuple

from pydantic import BaseModel, ConfigDict, Field

from indexing.models.cma_clip.network import CmaConfig
from training.config import Precision

Trained = Literal["network", "all", "tasks"]


class Stage(NamedTuple):
    """One of the stages of CMA-CLIP, section 3.4: what it trains, how long and how fast.

    `network` is all but the towers, `tasks` the modality-wise attention and the heads alone.
    """

    name: str
    trained: Trained
    epochs: int
    learning_rate: float


class AttributesConfig(BaseModel):
    """Settings; a run is repeated exactly by the same ones."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    # What changes how a run is computed and not what it computes.
    how: ClassVar[frozenset[str]] = frozenset({"precision", "checkpoint_minutes"})

    network: CmaConfig = CmaConfig()
    # Epochs and learning rates of the three stages; the paper has 20 of each, and 1e-5. New
    # layers on few products want more. No epochs leave a stage out.
    warm_up_epochs: int = Field(default=20, ge=0)
    epochs: int = Field(default=20, ge=0)
    tuning_epochs: int = Field(default=20, ge=0)
    warm_up_rate: float = Field(default=1e-4, gt=0, allow_inf_nan=False)
    learning_rate: float = Field(default=1e-5, gt=0, allow_inf_nan=False)
    tuning_rate: float = Field(default=1e-4, gt=0, allow_inf_nan=False)
    rising_steps: int = Field(default=500, ge=0)  # of each stage, a fifth of it at most
    batch_size: int = Field(default=256, ge=1)  # 1,024 in the paper
    weight_decay: float = Field(default=1e-4, ge=0, allow_inf_nan=False)
    # Share of the products in each step whose title, and whose picture, is left out.
    modality_dropout: float = Field(default=0.15, ge=0, lt=0.5)
    # Share of the products in each step whose title loses the words of its attributes' values.
    hide_words: float = Field(default=0.3, ge=0, le=1)
    # A class counts in training by its number of products to the power of minus this.
    balance: float = Field(default=0.5, ge=0, le=1)
    # The picture tower stays as it is in all stages; pictures are then seen once.
    lock_image: bool = False
    augment: bool = True  # random crops in the second stage
    validation_share: float = Field(default=0.1, gt=0, lt=1)
    seed: int = Field(default=0, ge=0, lt=2**32)
    precision: Precision = "auto"
    checkpoint_minutes: float = Field(default=10.0, ge=0)

    def stages(self, attributes: int) -> list[Stage]:
        """Those that have epochs; the third is for several attributes only, as in the paper."""
        all_three = [
            Stage("warm-up", "network", self.warm_up_epochs, self.warm_up_rate),
            Stage("end-to-end", "all", self.epochs, self.learning_rate),
            Stage("tuning", "tasks", self.tuning_epochs if attributes > 1 else 0, self.tuning_rate),
        ]
        return [stage for stage in all_three if stage.epochs]

    def decisive(self) -> dict[str, object]:
        """The settings that the outcome depends on but for rounding, as plain values."""
        return self.model_dump(mode="json", exclude=set(self.how))
