"""What the manifest of an index keeps of the attributes of its products."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field

from indexing.attributes.vocabulary import Attribute, AttributeClassifier, Kind, TrainedOn
from indexing.match_record import MODES, Mode

NonNegative = Annotated[float, Field(ge=0)]
MARGIN = 0.005  # of nDCG@10: what a sort of query may lose at most, by the end of its interval
Gain = tuple[float, float, float]  # a mean, and the ends of its 95% interval


class _Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class Gate(_Frozen):
    """Whether one kind of classifier may count for a kind of query.

    Attributes:
        gain: Mean gain of nDCG@10, by it and those before it over those before it alone, on
            queries that nothing was fitted on; and its 95% interval.
        gains: The same of each sort of query among them; the gate is shut for all where it is
            not ruled out that one of them loses.
    """

    gain: Gain
    gains: dict[str, Gain] = Field(default_factory=dict)

    @property
    def open(self) -> bool:
        mean, low, _ = self.gain
        return mean > 0 and low >= 0 and all(low >= -MARGIN for _, low, _ in self.gains.values())


class RerankRecord(_Frozen):
    """How one kind of query is reranked by attributes, as fitted on validation queries.

    A product scores cosine / temperature + the sum over attributes of weight x log(agreement),
    see indexing/attributes/fusing.py.

    Attributes:
        weights: By attribute; 0 for those of a classifier that did not pass its gate.
        temperature: What cosines are divided by.
        gamma: How far agreement on a frequent value counts less.
        demote: The attributes of which products that surely disagree come behind all others.
        queries: How the validation queries were made, and how many.
        gates: By kind of classifier, in the order in which they were tried.
    """

    weights: dict[str, NonNegative]
    temperature: Annotated[float, Field(gt=0)]
    gamma: Annotated[float, Field(ge=0, le=1)]
    demote: tuple[str, ...]
    queries: str
    asked: Annotated[int, Field(ge=0)]
    gates: dict[Kind, Gate] = Field(default_factory=dict)

    @property
    def active(self) -> bool:
        """Whether it changes anything."""
        return self.counts(self.weights)

    def counts(self, names: Iterable[str]) -> bool:
        """Whether one of these attributes changes anything."""
        return any(self.weights.get(name) or name in self.demote for name in names)


class SourceRecord(_Frozen):
    """A classifier that filled in attributes of an index.

    Attributes:
        words: For each attribute how its values are written, and which value each means.
    """

    kind: Kind
    name: str
    fingerprint: str
    attributes: Annotated[tuple[Attribute, ...], Field(min_length=1)]
    words: dict[str, tuple[tuple[str, str], ...]]
    trained_on: TrainedOn

    @classmethod
    def of(cls, classifier: AttributeClassifier) -> SourceRecord:
        return cls(
            kind=classifier.kind,
            name=classifier.name,
            fingerprint=classifier.fingerprint,
            attributes=classifier.attributes,
            words={name: tuple(ways) for name, ways in classifier.ways_of_writing().items()},
            trained_on=classifier.trained_on,
        )

    @property
    def names(self) -> tuple[str, ...]:
        """Of its attributes."""
        return tuple(attribute.name for attribute in self.attributes)


class AttributesRecord(_Frozen):
    """What filled in the attributes of an index, and what they can be used for.

    Attributes:
        sources: No two of one kind, and none with an attribute that another has.
        sure_from: For an attribute that is read off titles alone the confidence from which on it is
            sure of a query, see sureness.py; None where it never is.
        rerank: By kind of query; one that is missing is not reranked.
        skipped: Why a kind of query has none.
    """

    sources: Annotated[tuple[SourceRecord, ...], Field(min_length=1)]
    sure_from: dict[str, float | None] = Field(default_factory=dict)
    rerank: dict[Mode, RerankRecord] = Field(default_factory=dict)
    skipped: dict[Mode, str] = Field(default_factory=dict)

    @classmethod
    def of(cls, classifiers: Iterable[AttributeClassifier]) -> AttributesRecord:
        """Of an index that is not reranked."""
        return cls(sources=tuple(SourceRecord.of(classifier) for classifier in classifiers))

    @property
    def attributes(self) -> tuple[Attribute, ...]:
        """Of all sources."""
        return tuple(attribute for source in self.sources for attribute in source.attributes)

    @property
    def categories(self) -> tuple[str, ...]:
        """The attributes that are read off titles alone."""
        return tuple(
            name for source in self.sources if source.kind == "categories" for name in source.names
        )

    @property
    def words(self) -> dict[str, tuple[tuple[str, str], ...]]:
        """Of all sources."""
        return {name: ways for source in self.sources for name, ways in source.words.items()}

    @property
    def fingerprints(self) -> tuple[str, ...]:
        """Of all sources."""
        return tuple(source.fingerprint for source in self.sources)

    @property
    def trained_on(self) -> tuple[TrainedOn, ...]:
        """Of all sources."""
        return tuple(source.trained_on for source in self.sources)

    def unfitted(self) -> AttributesRecord:
        """The same for an index of other vectors, to which the reranking was not fitted."""
        why = "the index has another encoder by now: run `shoplens index` once more"
        return self.model_copy(update={"rerank": {}, "skipped": dict.fromkeys(MODES, why)})
