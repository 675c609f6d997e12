"""A start small enough for tests, and encoders of which it is known what they keep."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import pytest
import torch
from tokenizers import Tokenizer, pre_tokenizers, processors
from tokenizers.models import WordLevel

from benchmarks.pruning import toy
from indexing.models.clip import ClipEncoder, create_model
from indexing.models.token_pruning import Pruning, TokenPruning
from indexing.models.tokenizers import FolderTokenizer
from training.config import TrainConfig

Keeping = Callable[[Iterable[str], Iterable[str]], ClipEncoder]
_WIDTH, _CONTEXT = 8, 16


@pytest.fixture(autouse=True, scope="package")
def one_thread() -> Iterator[None]:
    """Models this small are slower on several threads, on a busy machine many times so."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="session")
def start(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The toy's start after one step."""
    folder = tmp_path_factory.mktemp("start")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(toy, "PUBLIC", 8)
        patch.setattr(toy, "START", TrainConfig(epochs=1, batch_size=16))
        toy.make_start(folder)
    return folder


@pytest.fixture
def keeping(tmp_path: Path) -> Keeping:
    """keeping(words kept, words dropped): an encoder that prunes so, wherever a word stands.

    Its one layer scores a token by the product with the start token, of which kept words are
    the very image and dropped ones the opposite.
    """

    def make(kept: Iterable[str], dropped: Iterable[str]) -> ClipEncoder:
        kept, dropped = list(kept), list(dropped)
        names = ["[PAD]", "[UNK]", *kept, *dropped, "[START]", "[END]"]
        numbers = {name: number for number, name in enumerate(names)}
        tokenizer = Tokenizer(WordLevel(numbers, unk_token="[UNK]"))
        tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
            [pre_tokenizers.WhitespaceSplit(), pre_tokenizers.Punctuation()]
        )
        ends = [(name, numbers[name]) for name in ("[START]", "[END]")]
        tokenizer.post_processor = processors.TemplateProcessing(
            single="[START] $A [END]", special_tokens=ends
        )
        file = tmp_path / "tokenizer.json"
        tokenizer.save(str(file))
        config = {
            "model_cfg": {
                "embed_dim": _WIDTH,
                "vision_cfg": {
                    **{"image_size": 8, "patch_size": 8, "width": _WIDTH, "layers": 1},
                    "head_width": _WIDTH,
                },
                "text_cfg": {
                    **{"context_length": _CONTEXT, "vocab_size": len(names), "width": _WIDTH},
                    **{"heads": 1, "layers": 1},
                },
            },
            "preprocess_cfg": {"size": 8, "mode": "RGB", "mean": [0.5] * 3, "std": [0.5] * 3},
        }
        model = create_model(config["model_cfg"])
        pattern = torch.tensor([1.0, -1.0]).repeat(_WIDTH // 2)
        attention = model.transformer.resblocks[0].attn
        with torch.no_grad():
            model.positional_embedding.zero_()
            model.token_embedding.weight.copy_(pattern.expand(len(names), _WIDTH))
            model.token_embedding.weight[[numbers[word] for word in dropped]] *= -1
            attention.in_proj_weight.copy_(torch.eye(_WIDTH).repeat(3, 1))
            attention.in_proj_bias.zero_()
        pruning = Pruning(
            score="pre",
            key="first",
            base=(0.0,),
            trained=(True,),
            temperature=(1.0,),
            straight_through=True,
            cumulative=True,
            multiply=False,
            keys="same",
            weight=0.1,
        )
        reads = FolderTokenizer(file, _CONTEXT)
        return ClipEncoder(
            "made", model, reads, config, tokenizer_file=file, pruning=TokenPruning(pruning)
        )

    return make
