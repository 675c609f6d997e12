"""An untrained title encoder whose word pieces are learned from a catalog's titles."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, normalizers, pre_tokenizers, processors
from tokenizers.models import WordPiece

from indexing.durable import replace_bytes
from indexing.models.categorizer.bert import make_encoder
from indexing.models.categorizer.network import TitleEncoder
from training.albef.new import WORD_PIECES, learn_word_pieces

# Sizes of BERT by the names that `--from` takes.
SIZES: dict[str, dict[str, Any]] = {
    "small": {
        **{"hidden_size": 256, "num_hidden_layers": 4, "num_attention_heads": 4},
        **{"intermediate_size": 1024, "max_position_embeddings": 64},
    },
}


def new_encoder(
    titles: Sequence[str], size: dict[str, Any], tokenizer_file: Path, *, seed: int
) -> TitleEncoder:
    """A BERT with random weights, the same for the same titles and seed.

    Args:
        size: One of SIZES, or like them: settings of transformers' BertConfig.
        tokenizer_file: Where the tokenizer is written.
    """
    pieces = learn_word_pieces(titles, WORD_PIECES)
    ids = {piece: number for number, piece in enumerate(pieces)}
    tokenizer = Tokenizer(WordPiece(ids, unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=True)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[(name, ids[name]) for name in ("[CLS]", "[SEP]")]
    )
    tokenizer_file.parent.mkdir(parents=True, exist_ok=True)
    replace_bytes(tokenizer_file, tokenizer.to_str().encode())
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        settings = {"model_type": "bert", "vocab_size": len(pieces), "pad_token_id": 0, **size}
        return make_encoder(settings, tokenizer_file)
