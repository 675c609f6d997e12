"""What a query says of attributes: by words of its text, by choice, or by what a classifier reads.

A value that is chosen (a click on a facet) wins over one that the text names, and that over the
classifier. Texts to turn away from name no values.
"""

from __future__ import annotations

import difflib
import logging
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from threading import Lock
from typing import TYPE_CHECKING

from indexing.attributes.evidence import named, read, told
from indexing.attributes.fusing import Evidence
from indexing.attributes.record import AttributesRecord, RerankRecord
from indexing.attributes.vocabulary import (
    OTHER,
    Attribute,
    AttributeClassifier,
    mode_of,
)
from indexing.attributes.words import Words
from indexing.errors import ModelError, QueryError
from indexing.match_record import Mode
from indexing.models.cma_clip import load_attributes
from indexing.titles import normalise_title

if TYPE_CHECKING:
    from PIL.Image import Image

logger = logging.getLogger(__name__)

_LISTED = 20  # values that an error message names

Load = Callable[[str], AttributeClassifier]


@dataclass(frozen=True)
class Wishes:
    """What a query says of attributes, and how its answers are reranked by that.

    Attributes:
        evidence: By attribute.
        record: None where only what was chosen counts.
    """

    evidence: Mapping[str, Evidence]
    record: RerankRecord | None


class QueryAttributes:
    """Reads attributes off queries to one index; any number of threads may use it.

    The classifier is opened by the first query that needs it.
    """

    def __init__(self, record: AttributesRecord, load: Load = load_attributes) -> None:
        self.record = record
        self._attributes = {attribute.name: attribute for attribute in record.attributes}
        self._words = Words(record.words)
        self._load = load
        self._lock = Lock()
        self._classifier: AttributeClassifier | None = None
        self._failed = False

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
        """What the query says, and how to rerank by it; arguments and errors as for `evidence`."""
        record = self.reranking(mode_of(picture is not None, text)) if rerank else None
        return Wishes(self.evidence(picture, text, chosen, rerank=rerank), record)

    def evidence(
        self,
        picture: Image | None,
        text: str | None,
        chosen: Mapping[str, str],
        *,
        rerank: bool = True,
    ) -> dict[str, Evidence]:
        """What the query says of each attribute; those of which it says nothing are left out.

        Args:
            picture: RGB.
            chosen: Value by attribute.
            rerank: Whether more than what is chosen is wanted.

        Raises:
            QueryError: An attribute or a value that is chosen is unknown, or an attribute is
                chosen twice, in two ways of writing.
        """
        found: dict[str, Evidence] = {}
        for given, value in chosen.items():
            attribute = self.attribute(given)
            if attribute.name in found:
                raise QueryError(f"{given!r} is {attribute.name}, which is chosen already")
            found[attribute.name] = told(attribute, [self._value(attribute, value)], "chosen")
        mode = mode_of(picture is not None, text)
        record = self.reranking(mode)
        if not rerank or record is None:
            return found
        found = named(self._words, self._attributes, text or "") | found
        weights = record.weights
        wanted = [name for name in self._attributes if weights.get(name) and name not in found]
        if wanted:
            found |= self._read(wanted, mode, picture, text)
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
        self, names: Iterable[str], mode: Mode, picture: Image | None, text: str | None
    ) -> dict[str, Evidence]:
        classifier = self._opened()
        if classifier is None:
            return {}
        pixels = None if picture is None else classifier.preprocess(picture)[None]
        shares = classifier.predict(pixels, None if text is None else [text])
        return {name: read(self._attributes[name], shares[name][0], mode) for name in names}

    def _opened(self) -> AttributeClassifier | None:
        """The classifier; None, with one warning, where it is gone or another."""
        with self._lock:
            if self._classifier is None and not self._failed:
                name = self.record.name
                try:
                    opened = self._load(name)
                    if opened.fingerprint != self.record.fingerprint:
                        raise ModelError(f"{name} has changed since it read the index")
                    self._classifier = opened
                except ModelError as error:
                    self._failed = True
                    logger.warning("queries are read by their words alone: %s", error)
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
