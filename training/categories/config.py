"""What a run of `shoplens train categories` is asked to do."""

from __future__ import annotations

from typing import ClassVar, Literal

from pydantic import BaseModel, ConfigDict, Field

from training.config import Precision
from training.losses.convirt import ALPHA
from training.losses.simcse import NegView

RATES = {"simcse": 5e-5, "convirt": 5e-4}  # that did well on validation titles of fashion


class AdaptConfig(BaseModel):
    """How the title encoder is adapted without labels.

    Chen & Chou train BERT-base for 50 epochs on 4 GPUs, in batches of 32, at a rate of 1e-5 and
    into 768 dimensions. Smaller encoders and fewer epochs want higher rates.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    method: Literal["simcse", "convirt"]
    epochs: int = Field(default=10, ge=1)
    batch_size: int = Field(default=128, ge=2)
    learning_rate: float = Field(gt=0, allow_inf_nan=False)  # the peak, such as RATES
    weight_decay: float = Field(default=1e-8, ge=0, allow_inf_nan=False)
    dim: int = Field(default=256, ge=1)  # of the space that is thrown away afterwards
    temperature: float = Field(default=0.1, gt=0, allow_inf_nan=False)
    alpha: float = Field(default=ALPHA, ge=0, le=1)  # of title -> picture
    # False: the denominators as printed.
    include_positive: bool = True
    neg_view: NegView = "second"


class TuneConfig(BaseModel):
    """How encoder and classifier are fine-tuned; as in the paper but for `head_rate`."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    epochs: int = Field(default=30, ge=1)
    # That many in all, validation being looked at `epochs` times; None: as the data has it.
    steps: int | None = Field(default=None, ge=1)
    batch_size: int = Field(default=32, ge=1)
    learning_rate: float = Field(default=5e-5, gt=0, allow_inf_nan=False)  # the peak
    # How many times faster the classifier learns, which is new. At one rate for both, as in the
    # paper, an encoder with few labels forgets what it has been adapted to.
    head_rate: float = Field(default=10.0, gt=0, allow_inf_nan=False)
    weight_decay: float = Field(default=1e-8, ge=0, allow_inf_nan=False)


class CategoriesConfig(BaseModel):
    """Settings; a run is repeated exactly by the same ones."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    # What changes how a run is computed and not what it computes.
    how: ClassVar[frozenset[str]] = frozenset({"precision"})

    adapt: AdaptConfig | None = None
    tune: TuneConfig = TuneConfig()
    validation_share: float = Field(default=0.1, gt=0, lt=1)
    seed: int = Field(default=0, ge=0, lt=2**32)
    precision: Precision = "auto"

    def decisive(self) -> dict[str, object]:
        """The settings that the outcome depends on but for rounding, as plain values."""
        return self.model_dump(mode="json", exclude=set(self.how))
