"""What the manifest of an index keeps of the attributes of its products."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field

from indexing.attributes.vocabulary import Attribute, AttributeClassifier, TrainedOn
from indexing.match_record import MODES, Mode

NonNegative = Annotated[float, Field(ge=0)]
Demote = Literal["never", "disagreeing"]
Gain = tuple[float, float, float]  # a mean, and the ends of its 95% interval


class _Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class RerankRecord(_Frozen):
    """How one kind of query is reranked by attributes, as fitted on validation queries.

    A product scores cosine / temperature + the sum over attributes of weight x log(agreement),
    see indexing/attributes/fusing.py.

    Attributes:
        weights: By attribute; all 0 where reranking did not pass the gate.
        temperature: What cosines are divided by.
        gamma: How far agreement on a frequent value counts less.
        demote: Whether products that surely disagree come behind all others.
        queries: How the validation queries were made, and how many.
        gain: Mean gain of nDCG@10 on queries that the weights were not fitted on, and its 95%
            interval.
        gains: The same of each sort of query among them; the gate is shut for all where it is
            not ruled out that one of them loses.
    """

    weights: dict[str, NonNegative]
    temperature: Annotated[float, Field(gt=0)]
    gamma: Annotated[float, Field(ge=0, le=1)]
    demote: Demote
    queries: str
    asked: Annotated[int, Field(ge=0)]
    gain: Gain
    gains: dict[str, Gain] = Field(default_factory=dict)

    @property
    def active(self) -> bool:
        """Whether it changes anything."""
        return any(self.weights.values()) or self.demote != "never"


class AttributesRecord(_Frozen):
    """The classifier that filled in the attributes of an index, and what it can be used for.

    Attributes:
        name, fingerprint: Of the classifier.
        words: For each attribute how its values are written, and which value each means.
        rerank: By kind of query; one that is missing is not reranked.
        skipped: Why a kind of query has none.
    """

    name: str
    fingerprint: str
    attributes: Annotated[tuple[Attribute, ...], Field(min_length=1)]
    words: dict[str, tuple[tuple[str, str], ...]]
    trained_on: TrainedOn
    rerank: dict[Mode, RerankRecord] = Field(default_factory=dict)
    skipped: dict[Mode, str] = Field(default_factory=dict)

    @classmethod
    def of(cls, classifier: AttributeClassifier) -> AttributesRecord:
        """Of an index that is not reranked."""
        return cls(
            name=classifier.name,
            fingerprint=classifier.fingerprint,
            attributes=classifier.attributes,
            words={name: tuple(ways) for name, ways in classifier.ways_of_writing().items()},
            trained_on=classifier.trained_on,
        )

    def unfitted(self) -> AttributesRecord:
        """The same for an index of other vectors, to which the reranking was not fitted."""
        why = "the index has another encoder by now: run `shoplens index` once more"
        return self.model_copy(update={"rerank": {}, "skipped": dict.fromkeys(MODES, why)})
