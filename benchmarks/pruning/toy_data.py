"""Drawn products with noisy titles, where it is known of each word whether pictures show it."""

from __future__ import annotations

import random
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from tokenizers import Tokenizer, pre_tokenizers, processors
from tokenizers.models import WordLevel

from indexing.rendering import ACCENTS, COLOURS, KINDS, PATTERNS, Thing, draw_thing, render

SIZE = 32  # pixels, of a picture's side
CONTEXT = 36

_OTHER_NAMES = {
    **{"mug": "cup", "bottle": "flask", "t-shirt": "tee", "dress": "gown", "chair": "seat"},
    **{"lamp": "light", "shoe": "sneaker", "bag": "tote", "box": "crate", "ball": "sphere"},
    **{"hat": "cap", "clock": "timer"},
}
_OTHER_PATTERNS = {"dotted": "polka", "checkered": "plaid", "plain": "solid"}
_SHAPE = {"narrow": (0.0, 0.94), "wide": (1.04, 9.0)}  # of the usual width
_GRAIN = {"fine": (0.0, 0.085), "bold": (0.105, 9.0)}  # the pattern's period

_BRANDS = [f"brand{number}" for number in range(150)]
_SERIES = [f"series{number}" for number in range(80)]
_MODELS = [f"model{number}" for number in range(300)]
_CLAIMS = [
    claim.split()
    for claims in (
        "bpa free, dishwasher safe, eco friendly, premium quality, best seller, gift for mom",
        "gift for dad, money back, new version, easy clean, 2024 edition, machine washable",
        "hypoallergenic, certified, imported, durable, lightweight, free shipping, vegan",
        "as seen on tv, made in usa, odor resistant, unisex, for women, for men, for kids",
        "home office, travel ready, summer, winter, heavy duty, professional grade",
    )
    for claim in claims.split(", ")
]
_PACKS = [
    *[["pack", "of", str(count)] for count in (1, 2, 3, 4, 6, 12)],
    *[[str(volume), "oz"] for volume in (8, 12, 16, 20)],
    *[["size", size] for size in ("s", "m", "l", "xl")],
    *[[str(length), "inch"] for length in (5, 8, 10, 14)],
]
_OPENINGS = [
    opening.split() for opening in (("a photo of", "the", "a", "this is a", "picture of", "one"))
]

# What kind of word a word is; the first half is what pictures show.
VISUAL = {
    "colour": list(COLOURS),
    "name": [*KINDS, *_OTHER_NAMES.values()],
    "pattern": [*PATTERNS, *_OTHER_PATTERNS.values()],
    "material": list(ACCENTS),
    "fine": [*_SHAPE, *_GRAIN],
}
NOISE = {
    "brand": _BRANDS,
    "series": _SERIES,
    "model": _MODELS,
    "claim": sorted({word for phrase in [*_CLAIMS, *_PACKS] for word in phrase}),
}
KIND_OF = {word: kind for kind, words in {**NOISE, **VISUAL}.items() for word in words}
# All words of titles and captions.
WORDS = list(dict.fromkeys([*KIND_OF, *(word for opening in _OPENINGS for word in opening)]))


@dataclass(frozen=True)
class ToyProducts:
    """Products, their pictures and their titles.

    `pictures` is uint8 [n, views, SIZE, SIZE, 3], the first view upright on white.
    """

    pictures: NDArray[np.uint8]
    titles: list[str]
    clean: list[str]  # every word of it visual, none left out


def draw_products(count: int, seed: int, *, views: int, captions: bool = False) -> ToyProducts:
    """`count` random products; `captions`: with the plain texts that a public model has read
    in place of a shop's titles."""
    rng = random.Random(seed)
    things = [draw_thing(rng) for _ in range(count)]
    pictures = np.stack(
        [
            np.stack(
                [np.asarray(render(thing, rng, main=view == 0, size=SIZE)) for view in range(views)]
            )
            for thing in things
        ]
    )
    written = [_caption(thing, rng) if captions else _title(thing, rng) for thing in things]
    clean = [
        " ".join(word for phrase in _visual_phrases(thing, rng) for word in phrase)
        for thing in things
    ]
    return ToyProducts(pictures, written, clean)


def visual_words(title: str) -> list[bool]:
    """Of each word of a title, whether a picture shows it."""
    return [KIND_OF.get(word) in VISUAL for word in title.split()]


def save_tokenizer(file: Path) -> int:
    """Writes a tokenizer of whole words; returns the size of its vocabulary."""
    names = ["[PAD]", "[UNK]", *WORDS, "[START]", "[END]"]
    vocabulary = {name: number for number, name in enumerate(names)}
    tokenizer = Tokenizer(WordLevel(vocabulary, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    ends = [(name, vocabulary[name]) for name in ("[START]", "[END]")]
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[START] $A [END]", special_tokens=ends
    )
    tokenizer.save(str(file))
    return len(names)


def _visual_phrases(thing: Thing, rng: random.Random) -> list[list[str]]:
    """What can be seen of a product, the name last."""
    phrases = [[thing.colour], [thing.accent]]
    phrases += [[word] for word, (low, high) in _SHAPE.items() if low <= thing.width < high]
    patterned = thing.pattern != "plain"
    if patterned:
        phrases.append([thing.second])
        phrases += [[word] for word, (low, high) in _GRAIN.items() if low <= thing.period < high]
    if patterned or rng.random() < 0.5:
        names = [thing.pattern, _OTHER_PATTERNS.get(thing.pattern, thing.pattern)]
        phrases.append([rng.choice(names)])
    return [*phrases, [rng.choice([thing.kind, _OTHER_NAMES[thing.kind]])]]


def _title(thing: Thing, rng: random.Random) -> str:
    """A shop's title: brand first, then what it shows and what it does not, in any order."""
    *phrases, name = _visual_phrases(thing, rng)
    kept = [phrase for phrase in phrases if rng.random() > 0.1]
    noise = [[rng.choice(_SERIES)], [rng.choice(_MODELS), rng.choice(_MODELS)]]
    noise += [*rng.sample(_CLAIMS, 4), rng.choice(_PACKS)]
    mixed = [*kept, name, *noise]
    rng.shuffle(mixed)
    return " ".join([rng.choice(_BRANDS), *(word for phrase in mixed for word in phrase)])


def _caption(thing: Thing, rng: random.Random) -> str:
    *phrases, name = _visual_phrases(thing, rng)
    kept = [phrase for phrase in phrases if rng.random() > 0.2]
    rng.shuffle(kept)
    return " ".join([*rng.choice(_OPENINGS), *(word for phrase in kept for word in phrase), *name])
