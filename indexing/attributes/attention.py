"""Which part of a picture each word of a title looks at, in CMA-CLIP's sequence-wise attention."""

from __future__ import annotations

import math

import torch
from PIL import Image
from torch import Tensor

from indexing.cleaning import span_reader
from indexing.errors import ModelError
from indexing.explaining import WordMap, map_entropy
from indexing.models.cma_clip.classifier import CmaClassifier
from indexing.query_text import check_text


def attention_maps(classifier: CmaClassifier, picture: Image.Image, title: str) -> list[WordMap]:
    """The patches that each word reads, as shares of what it reads of the picture.

    Attention is averaged over heads and layers, and over the pieces of a word. It says where a
    word looks, not what comes of it: a patch may be looked at and change nothing.

    Args:
        picture: RGB.

    Raises:
        ModelError: The classifier has no sequence-wise attention, or patches that make no square.
        QueryError: The title is blank or overlong.
    """
    sequence = classifier.network.sequence
    if sequence is None:
        raise ModelError(
            f"{classifier.name} has no sequence-wise attention: train one without "
            "--no-sequence-wise, or leave --sheet out"
        )
    check_text("title", title)
    text, spans = span_reader(classifier.encoder.tokenizer)(title)
    with torch.inference_mode():
        inputs = classifier.inputs(classifier.preprocess(picture)[None], [title])
        read = sequence.attention(inputs)[0].cpu()
    patches = inputs.picture.shape[1] - 1
    side = math.isqrt(patches)
    if side * side != patches:
        raise ModelError(f"{classifier.name} sees {patches} patches, which make no square")
    end = int(inputs.ends[0])
    found = []
    for span in spans:
        places = [place for place in span.places if place < end]
        cam = _shares(read[[1 + patches + place for place in places], 1 : 1 + patches])
        heat = cam.view(side, side).numpy()
        word = text[span.start : span.end]
        found.append(WordMap(word, heat, map_entropy(heat), kept=bool(places), read=bool(places)))
    return found


def as_seen(classifier: CmaClassifier, picture: Image.Image) -> Image.Image:
    """An RGB picture as the tower gets it: cut or put on a ground, and square as the patches."""
    encoder = classifier.encoder
    pixels = torch.from_numpy(classifier.preprocess(picture)).permute(1, 2, 0)
    shown = pixels * torch.tensor(encoder.std) + torch.tensor(encoder.mean)
    return Image.fromarray((shown.clamp(0, 1) * 255).round().byte().numpy())


def _shares(read: Tensor) -> Tensor:
    """The mean of rows, float32 [patches], adding up to 1; all 0 where there is no row."""
    total = read.sum()
    return read.sum(0) / total if len(read) and float(total) > 0 else torch.zeros(read.shape[1])
