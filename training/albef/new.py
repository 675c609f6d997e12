"""An untrained ALBEF for a catalog: its word pieces are learned from the titles."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from tokenizers import Tokenizer
from tokenizers.models import WordPiece
from tokenizers.trainers import WordPieceTrainer

from indexing.durable import replace_bytes
from indexing.models.albef.config import AlbefConfig
from indexing.models.albef.encoder import AlbefEncoder, new_encoder
from indexing.models.albef.tokenizer import cut_into_words

# `base` is the size of the public checkpoints. All have six text and six fusion layers but
# `tiny`, which is for experiments without a GPU.
SIZES: dict[str, dict[str, int]] = {
    "tiny": {
        **{"image_size": 64, "patch_size": 16, "vision_width": 96, "vision_layers": 4},
        **{"vision_heads": 4, "text_width": 96, "text_layers": 4, "text_heads": 4},
        **{"text_intermediate": 384, "fusion_layer": 2, "max_positions": 64, "embed_dim": 64},
    },
    "small": {
        **{"image_size": 128, "patch_size": 16, "vision_width": 384, "vision_layers": 12},
        **{"vision_heads": 6, "text_width": 384, "text_layers": 12, "text_heads": 6},
        **{"text_intermediate": 1536, "fusion_layer": 6, "max_positions": 128},
    },
    "base": {},
}
WORD_PIECES = 8192  # of a catalog's titles at most; a public model has 30,522 for all English
_CHARACTERS = 1000  # the most frequent; words with others are unknown
_SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]


def new_albef(
    titles: Sequence[str], size: str, folder: Path, *, seed: int, device: str
) -> AlbefEncoder:
    """An untrained model of one of SIZES; the same for the same titles, size and seed.

    Writes its vocab.txt to `folder`.
    """
    vocab_file = folder / "vocab.txt"
    config = AlbefConfig(vocab_size=write_word_pieces(titles, vocab_file), **SIZES[size])
    return new_encoder(config, vocab_file, seed=seed, device=device)


def write_word_pieces(titles: Sequence[str], vocab_file: Path) -> int:
    """Writes a vocab.txt for titles; returns how many pieces it has."""
    pieces = learn_word_pieces(titles, WORD_PIECES)
    replace_bytes(vocab_file, ("\n".join(pieces) + "\n").encode())
    return len(pieces)


def learn_word_pieces(titles: Sequence[str], size: int) -> list[str]:
    """A WordPiece vocabulary of at most `size` pieces, those of BERT's own five first.

    The same for the same titles, in whatever order.
    """
    tokenizer = Tokenizer(WordPiece(unk_token="[UNK]"))
    cut_into_words(tokenizer)
    distinct = sorted(set(titles))
    normalise = tokenizer.normalizer.normalize_str
    words = Counter(
        word
        for title in distinct
        for word, _ in tokenizer.pre_tokenizer.pre_tokenize_str(normalise(title))
    )
    counts: Counter[str] = Counter()
    for word, count in words.items():
        counts.update(dict.fromkeys(word, count))
    kept = sorted(sorted(counts), key=counts.__getitem__, reverse=True)[:_CHARACTERS]
    inner = {character for word in words for character in word[1:]}.intersection(kept)
    # All are named: the trainer itself numbers characters, and breaks ties between them, as its
    # hash maps happen to lie in this process.
    named = [*_SPECIAL, *sorted(kept), *(f"##{character}" for character in sorted(inner))]
    trainer = WordPieceTrainer(
        vocab_size=size,
        min_frequency=2,
        limit_alphabet=len(kept),
        initial_alphabet=kept,
        special_tokens=[*named],
        show_progress=False,
    )
    tokenizer.train_from_iterator(iter(distinct), trainer)
    vocabulary: dict[str, int] = tokenizer.get_vocab()
    return sorted(vocabulary, key=lambda piece: vocabulary[piece])
