"""What a query says of attributes: by words of its text, by choice, or by what a classifier reads.

A value that is chosen (a click on a facet) wins over one that the text names, and that over the
classifier. Texts to turn away from name no values.
"""

from __future__ import annotations

import difflib
import logging
from collections.abc import Callable, Container, Mapping
from dataclasses import dataclass
from threading import Lock
from typing import TYPE_CHECKING

from indexing.attributes.evidence import named, read, told
from indexing.attributes.fusing import Evidence
from indexing.attributes.opening import load_classifier
from indexing.attributes.record import AttributesRecord, RerankRecord, SourceRecord
from indexing.attributes.vocabulary import (
    OTHER,
    Attribute,
    AttributeClassifier,
    Kind,
    mode_of,
)
from indexing.attributes.words import Words
from indexing.errors import MissingDependencyError, ModelError, QueryError
from indexing.match_record import Mode
from indexing.titles import normalise_title

if TYPE_CHECKING:
    from PIL.Image import Image

logger = logging.getLogger(__name__)

_LISTED = 20  # values that an error message names

Load = Callable[[Kind, str], AttributeClassifier]


@dataclass(frozen=True)
class Wishes:
    """What a query says of attributes, and how its answers are reranked by that.

    Attributes:
        evidence: By attribute.
        record: None where only what was chosen counts.
        likely: What its text surely says of categories, by attribute; to be proposed.
    """

    evidence: Mapping[str, Evidence]
    record: RerankRecord | None
    likely: Mapping[str, Evidence]


class QueryAttributes:
    """Reads attributes off queries to one index; any number of threads may use it.

    A classifier is opened by the first query that needs it.
    """

    def __init__(self, record: AttributesRecord, load: Load = load_classifier) -> None:
        self.record = record
        self._attributes = {attribute.name: attribute for attribute in record.attributes}
        self._words = Words(record.words)
        self._opened = [_Opened(source, load) for source in record.sources]
        # What would never be sure is not read for nothing.
        self._silent = {name for name, least in record.sure_from.items() if least is None}

    def reranking(self, mode: Mode) -> RerankRecord | None:
        """How such queries are reranked; None where they are not."""
        found = self.record.rerank.get(mode)
        return found if found is not None and found.active else None

    def wishes(
        self,
        picture: Image | None,
        text: str | None,
        chosen: Mapping[str, str],
        *,
        rerank: bool = True,
    ) -> Wishes:
        """What the query says of each attribute; those of which it says nothing are left out.

        Args:
            picture: RGB.
            chosen: Value by attribute.
            rerank: Whether more than what is chosen is wanted for the order.

        Raises:
            QueryError: An attribute or a value that is chosen is unknown, or an attribute is
                chosen twice, in two ways of writing.
        """
        by_choice = self._chosen(chosen)
        mode = mode_of(picture is not None, text)
        record = self.reranking(mode) if rerank else None
        weighed = [] if record is None else [name for name, own in record.weights.items() if own]
        proposed = [name for name in self.record.categories if text and name not in by_choice]
        by_words = named(self._words, self._attributes, text or "")
        unsaid = {*weighed, *proposed} - by_choice.keys() - by_words.keys() - self._silent
        said = by_words | self._read(unsaid, mode, picture, text)
        counted = set() if record is None else {*by_words, *weighed}
        return Wishes(
            {name: own for name, own in said.items() if name in counted} | by_choice,
            record,
            {name: said[name] for name in proposed if name in said and said[name].sure},
        )

    def _chosen(self, chosen: Mapping[str, str]) -> dict[str, Evidence]:
        found: dict[str, Evidence] = {}
        for given, value in chosen.items():
            attribute = self.attribute(given)
            if attribute.name in found:
                raise QueryError(f"{given!r} is {attribute.name}, which is chosen already")
            found[attribute.name] = told(attribute, [self._value(attribute, value)], "chosen")
        return found

    def attribute(self, name: str) -> Attribute:
        """The attribute of this name; case and punctuation do not matter. Raises QueryError."""
        return self._attributes[_find(name, {own: own for own in self._attributes}, "attribute")]

    def _value(self, attribute: Attribute, given: str) -> str:
        ways = {value: value for value in attribute.values if value != OTHER}
        for written, value in self.record.words.get(attribute.name, ()):
            if value in attribute.values and value != OTHER:
                ways.setdefault(written, value)
        return _find(given, ways, f"value of {attribute.name}")

    def _read(
        self, names: Container[str], mode: Mode, picture: Image | None, text: str | None
    ) -> dict[str, Evidence]:
        found: dict[str, Evidence] = {}
        for opened in self._opened:
            wanted = [name for name in opened.source.names if name in names]
            classifier = opened.classifier() if wanted else None
            if classifier is None:
                continue
            pixels = None
            if picture is not None and classifier.image_size:
                pixels = classifier.preprocess(picture)[None]
            shares = classifier.predict(pixels, None if text is None else [text])
            for name in wanted:
                found[name] = read(
                    self._attributes[name], shares[name][0], mode, self.record.sure_from
                )
        return found


class _Opened:
    """A classifier of the index, opened when it is first needed."""

    def __init__(self, source: SourceRecord, load: Load) -> None:
        self.source = source
        self._load = load
        self._lock = Lock()
        self._classifier: AttributeClassifier | None = None
        self._failed = False

    def classifier(self) -> AttributeClassifier | None:
        """The classifier; None, with one warning, where it is gone or another."""
        with self._lock:
            if self._classifier is None and not self._failed:
                kind, name = self.source.kind, self.source.name
                try:
                    opened = self._load(kind, name)
                    if opened.fingerprint != self.source.fingerprint:
                        raise ModelError(f"{name} has changed since it read the index")
                    self._classifier = opened
                except (ModelError, MissingDependencyError) as error:
                    self._failed = True
                    logger.warning("%s of queries are read by words alone: %s", kind, error)
            return self._classifier


def _find(given: str, ways: Mapping[str, str], kind: str) -> str:
    """What `given` means. Raises QueryError, with what it might have meant."""
    normal: dict[str, str] = {}
    for written, meant in ways.items():
        normal.setdefault(normalise_title(written), meant)
    found = normal.get(normalise_title(given))
    if found is not None:
        return found
    close = difflib.get_close_matches(normalise_title(given), normal, n=3)
    near = list(dict.fromkeys(normal[name] for name in close))
    known = list(dict.fromkeys(ways.values()))
    listed = ", ".join(known[:_LISTED]) + (", ..." if len(known) > _LISTED else "")
    hint = f"did you mean {' or '.join(near)}?" if near else f"there are {listed}"
    raise QueryError(f"{given!r} is no {kind} of this index: {hint}")
