"""Attribute values as they are written in titles and queries: found, and taken out."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import NamedTuple

from indexing.attributes.vocabulary import OTHER
from indexing.titles import normalise_title

_WORD = re.compile(r"[^\W_]+(?:['’-][^\W_]+)*")


class Mention(NamedTuple):
    """A value that a text names."""

    attribute: str
    value: str
    start: int  # in characters of the text
    end: int


class Words:
    """Knows how the values of attributes are written.

    A value is named by its own words or those of a synonym, in their order: `Navy Blue` by
    "navy blue". The plural of the last word counts as the word, and so does one that is written
    with a hyphen or without: "t-shirt" is `Tshirts`. Of mentions that overlap the longest counts.
    """

    def __init__(self, values: Mapping[str, Iterable[tuple[str, str]]]) -> None:
        """`values`: for each attribute the ways of writing, and the value that each means."""
        self._phrases: dict[tuple[str, ...], list[tuple[str, str]]] = {}
        for attribute, ways in values.items():
            for written, value in ways:
                phrase = tuple(_stem(word) for word in _split(written))
                meant = (attribute, value)
                if phrase and value != OTHER and meant not in self._phrases.setdefault(phrase, []):
                    self._phrases[phrase].append(meant)
        self._longest = max(map(len, self._phrases), default=0)

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
                meant = self._phrases[tuple(stems[place : place + length])]
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
            if tuple(stems[place : place + length]) in self._phrases:
                return length
        return 0


def _split(written: str) -> list[str]:
    return [normalise_title(word.group()) for word in _WORD.finditer(written)]


def _stem(word: str) -> str:
    """A word without what a plural adds and without hyphens: "t shirts" (as normalised) and
    "Tshirt" are both "tshirt". Short words stay: "bras" is "bra" but "gas" is "gas"."""
    joined = word.replace(" ", "")
    if joined.endswith("ies") and len(joined) > 4:
        return joined[:-3] + "y"
    for ending in ("sses", "shes", "ches", "xes"):
        if joined.endswith(ending):
            return joined[:-2]
    if joined.endswith("s") and not joined.endswith("ss") and len(joined) > 3:
        return joined[:-1]
    return joined
