"""What token pruning keeps of a title: its words with their scores, and the cleaned title."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import accumulate, groupby, pairwise
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor

from indexing.errors import ModelError
from indexing.models.albef.encoder import AlbefEncoder
from indexing.models.albef.reading import Reader
from indexing.models.clip import TEXT_BATCH, ClipEncoder
from indexing.models.pruned_text import PrunedText
from indexing.models.token_pruning import TokenPruning
from indexing.models.tokenizers import PieceTokenizer, TextTokenizer
from indexing.models.torchvision_repair import import_torchvision

_Masks = tuple[list[Tensor], list[Tensor], Tensor]


@dataclass(frozen=True)
class Word:
    """A word of a title, as the model's tokenizer parts words.

    Of several pieces the word is what its longest-lived one is, the best-scored among equals.

    Attributes:
        text: The word as the title has it.
        score, threshold: Those of the layer where it dies; of a word that is kept, those of
            the last layer that prunes. nan where the model does not read the word, and where
            no layer prunes.
        dies: The layer, from 1, that drops the word; None for a word that is kept, and 0
            for one that the model does not read: it is beyond the context length, or the
            tokenizer has no token for it.
        spaced: Whether white space stands before it in the title.
    """

    text: str
    score: float
    threshold: float
    dies: int | None
    spaced: bool = True

    @property
    def kept(self) -> bool:
        return self.dies is None


def clean(encoder: ClipEncoder | AlbefEncoder, titles: Sequence[str]) -> list[list[Word]]:
    """The words of each title, in order, with what hard masks make of them.

    Of ALBEF those of the text encoder: what the fusion encoder drops hangs on a picture.

    Raises:
        ModelError: The model has no token pruning, or none that reads the title alone, or a
            tokenizer that does not tell which pieces make a word.
    """
    if encoder.pruning is None:
        raise ModelError(
            f"{encoder.name} was trained without token pruning: train one with "
            "`shoplens train clip --preset calibrated`"
        )
    masks_of, pruning = _masks_of(encoder), encoder.pruning
    spans = span_reader(encoder.tokenizer)
    found = []
    for start in range(0, len(titles), TEXT_BATCH):
        part = titles[start : start + TEXT_BATCH]
        with torch.inference_mode():
            masks = masks_of(encoder.tokenizer(part).to(encoder.device))
        fates = _fates(*masks, pruning)
        for title, fate in zip(part, fates, strict=True):
            found.append(list(_words(*spans(title), fate)))
    return found


def cleaned(words: Sequence[Word]) -> str:
    """The words that are kept, with space where the title has some or a word is left out."""
    parts: list[str] = []
    for before, word in zip([None, *words], words, strict=False):
        if word.kept:
            apart = word.spaced or before is None or not before.kept
            parts.append(f" {word.text}" if parts and apart else word.text)
    return "".join(parts)


def kept_share(words: Sequence[Word]) -> float:
    """The share of the words that are kept; 1 where there are none."""
    return sum(word.kept for word in words) / len(words) if words else 1.0


def _masks_of(encoder: ClipEncoder | AlbefEncoder) -> Callable[[Tensor], _Masks]:
    """What tells of token ids how far each is kept after each layer up to the last that
    prunes, the scores of those that prune, and what is prunable."""
    if isinstance(encoder, ClipEncoder):
        pruned = cast("TokenPruning", encoder.pruning)
        return PrunedText(encoder.model, pruned).masks
    pruning, tokenizer = cast("TokenPruning", encoder.pruning), encoder.tokenizer
    layers = [layer for layer in range(encoder.config.fusion_layer) if pruning.prunes(layer)]
    if not layers:
        raise ModelError(
            f"{encoder.name} drops words by what they make of a picture: see them beside one with "
            "`shoplens explain`"
        )
    reader = Reader(encoder.model, pruning)

    def masks(ids: Tensor) -> _Masks:
        states = reader.read(ids, tokenizer.mask(ids), hard=True)
        scores, trail = dict(states.scores), dict(states.trail)
        alive = [trail[layer] for layer in range(layers[-1] + 1)]
        return alive, [scores[layer] for layer in layers], states.prunable

    return masks


class _Fate(NamedTuple):
    """What becomes of a piece; the fields are those of a word, inf: it is kept."""

    dies: float
    score: float
    threshold: float


def _fates(
    alive: list[Tensor], scores: list[Tensor], prunable: Tensor, pruning: TokenPruning
) -> list[list[_Fate | None]]:
    """For each title and place what becomes of the token; None where it is not prunable."""
    layers = len(alive)
    # Layers at the end in which a token is gone: one without cumulative masks may come back.
    gone = torch.zeros(prunable.shape)
    if alive:
        gone = (torch.stack(alive).cpu() == 0).flip(0).cumprod(0).sum(0)
    dies = torch.where(gone == 0, math.inf, layers - gone + 1.0).tolist()
    numbers = [layer + 1 for layer in range(layers) if pruning.prunes(layer)]
    table = {number: found.tolist() for number, found in zip(numbers, scores, strict=True)}
    thresholds = pruning.thresholds().tolist()
    rows = prunable.tolist()

    def fate(title: int, place: int) -> _Fate | None:
        if not rows[title][place]:
            return None
        died = dies[title][place]
        if not layers:
            return _Fate(died, math.nan, math.nan)
        layer = layers if died == math.inf else int(died)
        return _Fate(died, table[layer][title][place], thresholds[layer - 1])

    return [[fate(title, place) for place in range(len(row))] for title, row in enumerate(rows)]


class Span(NamedTuple):
    """A word in a text: its characters, and the places of its pieces among the token ids."""

    start: int
    end: int
    places: list[int]


def _words(text: str, spans: list[Span], fates: list[_Fate | None]) -> Iterator[Word]:
    """The words of a text in order, with what stands between them and has no piece."""
    read = 0
    for span in [*spans, Span(len(text), len(text), [])]:
        for run in re.finditer(r"\S+", text[read : span.start]):
            yield _word(text, read + run.start(), read + run.end(), [])
        if span.end > span.start:
            pieces = [fates[place] for place in span.places if place < len(fates)]
            yield _word(text, span.start, span.end, [piece for piece in pieces if piece])
        read = max(read, span.end)


def _word(text: str, start: int, end: int, pieces: list[_Fate]) -> Word:
    spaced = start == 0 or text[start - 1].isspace()
    if not pieces:
        return Word(text[start:end], math.nan, math.nan, 0, spaced)
    best = max(pieces, key=lambda piece: (piece.dies, piece.score - piece.threshold))
    dies = None if best.dies == math.inf else int(best.dies)
    return Word(text[start:end], best.score, best.threshold, dies, spaced)


def span_reader(tokenizer: TextTokenizer) -> Callable[[str], tuple[str, list[Span]]]:
    """What makes of a title the text that its words are parts of, and the words, also those
    that are cut off."""
    import_torchvision()
    from open_clip.tokenizer import SimpleTokenizer

    if isinstance(tokenizer, PieceTokenizer):
        return partial(_piece_spans, tokenizer)
    if isinstance(tokenizer, SimpleTokenizer) and tokenizer.reduction_fn is None:
        return partial(_clip_spans, tokenizer)
    raise ModelError(
        f"{type(tokenizer).__name__} does not tell which pieces make a word: `clean` needs "
        "CLIP's own byte-pair tokens or a model folder with a tokenizer.json"
    )


def _piece_spans(tokenizer: PieceTokenizer, title: str) -> tuple[str, list[Span]]:
    # Without a pre-tokenizer all pieces are of one word: white space parts them all the same.
    spaces = [0, *accumulate(map(str.isspace, title))]
    pieces = enumerate(tokenizer.pieces(title), 1)
    spans = []
    for _, group in groupby(pieces, lambda piece: (piece[1].word, spaces[piece[1].end])):
        own = list(group)
        start, end = min(piece.start for _, piece in own), max(piece.end for _, piece in own)
        # Some tokenizers count the space before a word to it.
        start += len(title[start:end]) - len(title[start:end].lstrip())
        spans.append(Span(start, end, [place for place, _ in own]))
    return title, spans


def _clip_spans(tokenizer: Any, title: str) -> tuple[str, list[Span]]:
    text = tokenizer.clean_fn(title)
    as_written = " ".join(title.split())
    alike = as_written.lower() == text and len(as_written) == len(text)
    ends = [
        place
        for place, piece in enumerate(tokenizer.encode(title), 1)
        if tokenizer.decoder[piece].endswith("</w>") or piece in tokenizer.all_special_ids
    ]
    spans = [
        Span(match.start(), match.end(), list(range(before + 1, end + 1)))
        for match, (before, end) in zip(
            tokenizer.pat.finditer(text), pairwise([0, *ends]), strict=True
        )
    ]
    return as_written if alike else text, spans
