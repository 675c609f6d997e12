"""CLIP's byte-pair tokens without open_clip, whose import takes seconds."""

from __future__ import annotations

import html
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tokenizers import AddedToken, Regex, Tokenizer, pre_tokenizers, processors
from tokenizers.models import BPE

from indexing.models.tokenizers import PieceTokenizer, read_tokenizer

CLIP_TOKENIZER = "clip-tokenizer.json"
_END_OF_WORD = "</w>"


class ClipTokenizer(PieceTokenizer):
    """Gives the ids that open_clip's `SimpleTokenizer` gives, out of a file that
    `write_clip_tokenizer` wrote; its pieces are those of the cleaned text.

    Characters that Unicode has had for a few years only may be letters for one of the two and
    none for the other.
    """

    def __init__(self, path: Path, context_length: int) -> None:
        super().__init__(read_tokenizer(path, "tokenizer's file"), context_length, pad_id=0)

    def ids(self, texts: Sequence[str]) -> NDArray[np.int64]:
        return super().ids([_cleaned(text) for text in texts])


def write_clip_tokenizer(tokenizer: Any, path: Path) -> bool:
    """Writes one of open_clip's tokenizers; false, and nothing, where it is of another kind."""
    from open_clip.tokenizer import SimpleTokenizer, get_clean_fn

    if (
        not isinstance(tokenizer, SimpleTokenizer)
        or tokenizer.reduction_fn is not None
        or tokenizer.clean_fn is not get_clean_fn("lower")
    ):
        return False
    specials = [tokenizer.decoder[place] for place in tokenizer.all_special_ids]
    start, end = specials[:2]
    ranked = sorted(tokenizer.bpe_ranks, key=tokenizer.bpe_ranks.__getitem__)
    made = Tokenizer(BPE(tokenizer.encoder, ranked, end_of_word_suffix=_END_OF_WORD))
    made.add_special_tokens([AddedToken(token, normalized=False) for token in specials])
    made.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(f"(?i){tokenizer.pat.pattern}"), "removed", invert=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    made.post_processor = processors.TemplateProcessing(
        single=f"{start} $A {end}",
        special_tokens=[(token, tokenizer.encoder[token]) for token in (start, end)],
    )
    made.save(str(path))
    return True


def _cleaned(text: str) -> str:
    """Mended, unescaped, single spaces, lower case, as CLIP's texts were."""
    import ftfy

    mended = html.unescape(html.unescape(ftfy.fix_text(text)))
    return " ".join(mended.split()).lower()
