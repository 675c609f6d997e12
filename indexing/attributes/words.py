"""Attribute values as they are written in titles and queries: found, and taken out."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import NamedTuple

from indexing.attributes.vocabulary import OTHER
from indexing.titles import normalise_title

_WORD = re.compile(r"[^\W_]+")


class Mention(NamedTuple):
    """A value that a text names."""

    attribute: str
    value: str
    start: int  # in characters of the text
    end: int


class Words:
    """Knows how the values of attributes are written.

    A value is named by its own words or those of a synonym, in their order: `Navy Blue` by
    "navy blue". Plurals, hyphens and spaces do not matter: "t-shirt", "t shirts" and "tshirt"
    all name `Tshirts`, and "navyblue" names `Navy Blue`. Of mentions that overlap the longest
    counts.
    """

    def __init__(self, values: Mapping[str, Iterable[tuple[str, str]]]) -> None:
        """`values`: for each attribute the ways of writing, and the value that each means."""
        self._meaning: dict[str, list[tuple[str, str]]] = {}
        self._longest = 0  # words that a mention may have
        for attribute, ways in values.items():
            for written, value in ways:
                stems, meant = _stems(written), (attribute, value)
                if not stems or value == OTHER:
                    continue
                known = self._meaning.setdefault("".join(stems), [])
                if meant not in known:
                    known.append(meant)
                self._longest = max(self._longest, len(stems) + 1)  # "t shirt" is one word more

    def mentions(self, text: str) -> list[Mention]:
        """The values that a text names, in its order. Words that mean values of several
        attributes give a mention of each."""
        words = list(_WORD.finditer(text))
        stems = [_stem(normalise_title(word.group())) for word in words]
        found: list[Mention] = []
        place = 0
        while place < len(words):
            length = self._longest_at(stems, place)
            if length:
                start, end = words[place].start(), words[place + length - 1].end()
                meant = self._meaning["".join(stems[place : place + length])]
                found += [Mention(attribute, value, start, end) for attribute, value in meant]
            place += max(1, length)
        return found

    def without(self, text: str) -> str:
        """The text with all mentions taken out."""
        parts, last = [], 0
        for mention in self.mentions(text):
            if mention.start >= last:
                parts.append(text[last : mention.start])
            last = max(last, mention.end)
        return " ".join(("".join([*parts, text[last:]])).split())

    def _longest_at(self, stems: list[str], place: int) -> int:
        for length in range(min(self._longest, len(stems) - place), 0, -1):
            if "".join(stems[place : place + length]) in self._meaning:
                return length
        return 0


def _stems(written: str) -> list[str]:
    return [_stem(normalise_title(word.group())) for word in _WORD.finditer(written)]


def _stem(word: str) -> str:
    """A word without what a plural adds. Short words stay: "bras" is "bra", and "gas" is "gas"."""
    if word.endswith("ies") and len(word) > 4:
        return word[:-3] + "y"
    for ending in ("sses", "shes", "ches", "xes"):
        if word.endswith(ending):
            return word[:-2]
    if word.endswith("s") and not word.endswith("ss") and len(word) > 3:
        return word[:-1]
    return word
