"""Titles to word pieces, as ALBEF's own captions were read."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from tokenizers import Regex, Tokenizer, normalizers, pre_tokenizers, processors
from tokenizers.models import WordPiece

from indexing.errors import ModelError
from indexing.messages import reason
from indexing.models.albef.config import AlbefConfig
from indexing.models.tokenizers import PieceTokenizer

if TYPE_CHECKING:
    from torch import Tensor

_PAD, _UNKNOWN, _CLS, _SEP, _MASK = "[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"


class AlbefTokenizer(PieceTokenizer):
    """BERT's lower-case word pieces: `[CLS] … [SEP]` and padding, long texts cut.

    Marks go first, as ALBEF's `pre_caption` takes them out: `,.'!?"()*#:;~` without a trace,
    hyphens and slashes for a space. Pieces keep their place in the text as it was written.
    Words such as `[SEP]` in a text are words, not special tokens.
    """

    def __init__(self, vocab_file: Path, config: AlbefConfig) -> None:
        """Reads a vocab.txt: a piece a line, whose number is its id.

        Raises:
            ModelError: The file cannot be read, has no [PAD], [UNK], [CLS], [SEP] or [MASK],
                or has more pieces than the model.
        """
        ids, lines = _read_vocabulary(vocab_file)
        if lines > config.vocab_size:
            raise ModelError(
                f"{vocab_file} has {lines:,} tokens and the model {config.vocab_size:,}"
            )
        tokenizer = Tokenizer(WordPiece(ids, unk_token=_UNKNOWN))
        cut_into_words(tokenizer)
        tokenizer.post_processor = processors.TemplateProcessing(
            single=f"{_CLS} $A {_SEP}", special_tokens=[(_CLS, ids[_CLS]), (_SEP, ids[_SEP])]
        )
        super().__init__(tokenizer, config.max_text_length, pad_id=ids[_PAD])
        self.vocab_file = vocab_file
        self.vocab_size = lines
        self.pad_id = ids[_PAD]
        self.cls_id = ids[_CLS]
        self.sep_id = ids[_SEP]
        self.mask_id = ids[_MASK]

    def mask(self, ids: Tensor) -> Tensor:
        """Where ids are no padding, bool of their shape."""
        return ids != self.pad_id


def cut_into_words(tokenizer: Tokenizer) -> None:
    """Makes a tokenizer see words as ALBEF does, before they are cut into pieces."""
    tokenizer.normalizer = normalizers.Sequence(
        [
            normalizers.Replace(Regex(r"""[,.'!?"()*#:;~]"""), ""),
            normalizers.Replace(Regex("[-/]"), " "),
            normalizers.Replace(Regex("(?i)<person>"), "person"),
            normalizers.BertNormalizer(lowercase=True),
        ]
    )
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()


def _read_vocabulary(path: Path) -> tuple[dict[str, int], int]:
    """The id of each piece, and the number of lines."""
    try:
        # Not splitlines: some pieces are characters that it takes for the end of a line.
        lines = path.read_text(encoding="utf-8").removesuffix("\n").split("\n")
    except (OSError, UnicodeDecodeError) as error:
        raise ModelError(f"{path} cannot be read: {reason(error)}") from error
    ids = {piece: number for number, piece in enumerate(lines)}
    for piece in (_PAD, _UNKNOWN, _CLS, _SEP, _MASK):
        if piece not in ids:
            raise ModelError(f"{path} is not BERT's vocab.txt: it has no {piece}")
    return ids, len(lines)
