"""Why a product matched: regions of its picture, and words of the query."""

from __future__ import annotations

import math
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps

from indexing.cleaning import Word, clean, cleaned
from indexing.errors import ModelError
from indexing.explaining import Explanation, can_explain, explain
from indexing.explaining_sheet import HOT, WARM, heat_levels
from indexing.models.albef.encoder import AlbefEncoder
from indexing.models.clip import ClipEncoder
from indexing.models.protocol import Encoder
from indexing.saliency import framed, saliency
from search.query import MINUS_WEIGHT, query_vector, unit_sum

MAX_WEIGHED = 64  # words; each takes a pass of its text through the text tower
_STRONGEST = 0.7  # how far the hottest colour covers the picture

Vector = NDArray[np.float32]


@dataclass(frozen=True)
class MatchWord:
    """A word of the query's text.

    Attributes:
        kept: Whether token pruning keeps it; None where the model prunes no words.
        weight: How much the cosine falls when it is left out, below 0 where it rises; None
            beyond the first MAX_WEIGHED words, and where nothing would be left of the query.
    """

    text: str
    kept: bool | None
    weight: float | None


@dataclass(frozen=True, eq=False)
class MatchExplanation:
    """Why a picture of a product matched.

    Attributes:
        score: The cosine of the query and the picture.
        heat: float32 [h, w] from 0 to 1, over the product's picture, at most
            `indexing.saliency.LONGEST` pixels high and wide. 0 where the encoder does not see
            the picture, and throughout where no region speaks for the query.
        words: Those of the text, in order; none without a text.
    """

    score: float
    heat: NDArray[np.float32]
    words: list[MatchWord]


def explain_match(
    encoder: Encoder,
    query_picture: Image.Image | None,
    text: str | None,
    product_picture: Image.Image,
    minus: Sequence[str] = (),
) -> MatchExplanation:
    """The regions of a product's picture, and the words of the text, that made it match a query.

    Regions are those of `saliency` for the query's vector. ALBEF has maps of each word of a
    text, and where the query is a text alone they are added up.

    Args:
        query_picture, product_picture: RGB.
        minus: Unwanted texts; they lower the regions that speak for them.

    Raises:
        ModelError: The encoder is neither CLIP nor ALBEF, or of a kind without such regions.
        QueryError: Neither picture nor text, or a text that is blank or overlong.
    """
    found = saliency(encoder, product_picture, query_vector(encoder, query_picture, text, minus))
    if text is None:
        return MatchExplanation(found.score, found.heat, [])
    maps = None
    if isinstance(encoder, AlbefEncoder) and can_explain(encoder):
        maps = explain(encoder, product_picture, text)
    heat = found.heat
    if maps is not None and query_picture is None and not minus:
        cells = np.stack([word.map for word in maps.words]).sum(0, dtype=np.float32)
        heat = framed(encoder, product_picture, cells)
    words = _words(encoder, text, maps)
    plain = [word for word, _ in words]
    weights = _weights(encoder, query_picture, text, plain, product_picture, minus)
    explained = [
        MatchWord(word.text, kept, weight)
        for (word, kept), weight in zip(words, weights, strict=True)
    ]
    return MatchExplanation(found.score, heat, explained)


def overlay(picture: Image.Image, heat: NDArray[np.float32]) -> Image.Image:
    """A heat map to lay over its picture: RGBA of the picture's size, clear where there is none.

    Args:
        heat: float32 [h, w] from 0 to 1.
    """
    levels = heat_levels(heat, picture.size)
    colours = ImageOps.colorize(levels, WARM, HOT)
    colours.putalpha(levels.point(lambda level: round(level * _STRONGEST)))
    return colours


def _words(encoder: Encoder, text: str, maps: Explanation | None) -> list[tuple[Word, bool | None]]:
    """The words, and whether pruning keeps them: as the model's tokenizer parts them where it
    tells which are kept, else those between white space."""
    if isinstance(encoder, (ClipEncoder, AlbefEncoder)) and encoder.pruning is not None:
        if maps is not None:
            return [(_word(word.text), word.kept) for word in maps.words]
        # Masks that hang on a picture, or a tokenizer that does not tell its words.
        with suppress(ModelError):
            return [(word, word.kept) for word in clean(encoder, [text])[0]]
    return [(_word(word), None) for word in text.split()]


def _word(text: str) -> Word:
    return Word(text, math.nan, math.nan, None)


def _weights(
    encoder: Encoder,
    query_picture: Image.Image | None,
    text: str,
    words: Sequence[Word],
    product_picture: Image.Image,
    minus: Sequence[str],
) -> list[float | None]:
    """What the cosine loses with each word."""
    number = min(len(words), MAX_WEIGHED)
    if len(words) == 1 and query_picture is None:
        return [None]
    pictures = [product_picture] if query_picture is None else [product_picture, query_picture]
    product, *asked = encoder.embed_images(pictures)
    shorter = [_without(words, place) for place in range(number)]
    texts = encoder.embed_texts([*minus, text, *filter(None, shorter)])
    unwanted = [(-MINUS_WEIGHT, vector) for vector in texts[: len(minus)]]

    def cosine(vectors: Sequence[Vector]) -> float:
        return float(unit_sum([*((1.0, vector) for vector in vectors), *unwanted]) @ product)

    whole, *rest = [cosine([*asked, vector]) for vector in texts[len(minus) :]]
    without = iter(rest)
    found = [whole - (next(without) if left else cosine(asked)) for left in shorter]
    return [*found, *[None] * (len(words) - number)]


def _without(words: Sequence[Word], place: int) -> str:
    """The text without one word."""
    return cleaned([replace(word, dies=0 if i == place else None) for i, word in enumerate(words)])
