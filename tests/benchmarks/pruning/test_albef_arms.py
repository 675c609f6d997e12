"""ALBEF's arms: what each shows the model, and which words a model keeps whose masks are known."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from benchmarks.pruning import albef_arms
from benchmarks.pruning.albef_arms import ARMS, _RandomDrop, kept_words, train_albef_arm
from indexing.catalog.product import ProductImage
from indexing.models.albef.config import AlbefConfig
from indexing.models.albef.encoder import AlbefEncoder, new_encoder
from indexing.models.token_pruning import Pruning, TokenPruning
from training.albef.config import AlbefTraining
from training.data import Pairs

SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
# Pieces, and whether the text encoder keeps them; then whether it is a light or a dark picture
# beside which the fusion encoder does.
FATES = {
    "red": (True, "light"),
    "mug": (True, "dark"),
    "brand": (False, "light"),
    "vegan": (False, "dark"),
    "shoe": (False, "light"),
    "##s": (True, "light"),
    "[UNK]": (False, "dark"),
}
WIDTH, LENGTH = 16, 8


class Light(nn.Module):
    """States that tell light pictures from dark ones: those of [CLS] are 1 or -1."""

    def forward(self, pixels: Tensor) -> Tensor:
        return pixels.mean((1, 2, 3)).sign()[:, None, None].expand(-1, 2, WIDTH)


@pytest.fixture
def keeping(tmp_path: Path) -> AlbefEncoder:
    """Prunes by FATES, in the first attention of the text encoder and of the fusion encoder.

    Layers pass on what they get. States are two patterns, each with its sign: the text encoder
    asks whether a piece has that of [CLS] for the one, the fusion encoder whether it has the
    picture's for the other.
    """
    vocab_file = tmp_path / "vocab.txt"
    pieces = [*SPECIAL, *(piece for piece in FATES if piece not in SPECIAL)]
    vocab_file.write_text("\n".join(pieces) + "\n")
    config = AlbefConfig(
        image_size=8, patch_size=8, vision_width=WIDTH, vision_layers=1, vision_heads=1,
        vocab_size=len(pieces), text_width=WIDTH, text_layers=3, text_heads=1,
        text_intermediate=WIDTH, fusion_layer=1, max_positions=LENGTH, embed_dim=WIDTH,
        max_text_length=LENGTH,
    )  # fmt: skip
    encoder = new_encoder(config, vocab_file, seed=0)
    bert: Any = encoder.model.text_encoder.bert
    own = torch.tensor([1.0, -1.0]).repeat(WIDTH // 2)
    crossing = torch.tensor([1.0, 1.0, -1.0, -1.0]).repeat(WIDTH // 4)
    projections = {"attention": own.outer(own), "crossattention": crossing.outer(crossing)}
    with torch.no_grad():
        words = bert.embeddings.word_embeddings.weight
        words.copy_((own + crossing).expand_as(words))
        for piece, (kept, beside) in FATES.items():
            signs = (1 if kept else -1), (1 if beside == "light" else -1)
            words[pieces.index(piece)] = signs[0] * own + signs[1] * crossing
        bert.embeddings.position_embeddings.weight.zero_()
        for name, value in bert.encoder.named_parameters():
            if ".output.dense" in name or ".bias" in name:
                value.zero_()
            for kind, projection in projections.items():
                if f".{kind}.self.query.weight" in name:
                    value.copy_(projection)
        for layer in bert.encoder.layer:
            layer.attention.self.key.weight.copy_(torch.eye(WIDTH))
            if hasattr(layer, "crossattention"):
                layer.crossattention.self.key.weight.copy_(torch.diag(crossing))
    encoder.model.visual_encoder = cast(Any, Light())
    encoder.pruning = TokenPruning(
        Pruning(
            score="pre", key="first",
            base=(0.0, -np.inf, -np.inf, 0.0, -np.inf),
            trained=(True, False, False, True, False),
            temperature=(1.0,) * 5,
            straight_through=True, cumulative=True, multiply=False, keys="same", weight=0.1,
        )
    )  # fmt: skip
    return encoder


def pixels(*shades: str) -> Tensor:
    values = torch.tensor([1.0 if shade == "light" else -1.0 for shade in shades])
    return values.view(-1, 1, 1, 1).expand(-1, 3, 8, 8)


# --- which words are kept


@pytest.mark.parametrize(
    ("title", "light", "dark"),
    [
        ("red mug brand vegan", [1, 0, 0, 0], [0, 1, 0, 0]),  # both encoders must keep a word
        ("Red  MUG", [1, 0], [0, 1]),
        ("shoe shoes", [0, 1], [0, 0]),  # any piece is enough
        ("mug-red brand/vegan red-mug", [1, 0, 1], [1, 0, 1]),
        ("re.d 'mug' (brand)", [1, 0, 0], [0, 1, 0]),  # marks go without a trace
        ("red !! mug", [1, 0, 0], [0, 0, 1]),  # of which nothing is read
        ("unheard red", [0, 1], [0, 0]),
        # Six pieces are read: of the last two words one, and none.
        ("red red red red brand-red mug-red red", [1] * 5 + [0, 0], [0] * 7),
        ("red red red red brand mug-red red", [1] * 4 + [0] * 3, [0] * 5 + [1, 0]),
        ("", [], []),
    ],
)
def test_words_are_kept_where_any_piece_is(
    title: str, light: list[int], dark: list[int], keeping: AlbefEncoder
) -> None:
    # Beside a longer title: its length is that of both.
    found = kept_words(keeping, [title, title, "mug mug mug"], pixels("light", "dark", "dark"))
    assert [[word for word, _ in words] for words in found[:2]] == [title.split()] * 2
    assert [[int(kept) for _, kept in words] for words in found[:2]] == [light, dark]
    assert found[2] == [("mug", True)] * 3


def test_each_title_is_read_beside_its_own_picture_in_groups_of_any_size(
    keeping: AlbefEncoder, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Against a plain walk along the pieces of each word."""
    rng = np.random.default_rng(0)
    known = {**{piece: [piece] for piece in FATES if piece.isalpha()}, "other": ["[UNK]"]}
    words_of = {**known, "shoes": ["shoe", "##s"], "reds": ["red", "##s"], "&": ["[UNK]"]}
    words_of |= {"mug-shoes": ["mug", "shoe", "##s"], "!": []}
    names = list(words_of)
    titles = [" ".join(rng.choice(names, rng.integers(0, 8))) for _ in range(120)]
    shades = rng.choice(["light", "dark"], len(titles)).tolist()
    expected = []
    for title, shade in zip(titles, shades, strict=True):
        left, words = LENGTH - 2, []
        for word in title.split():
            read = words_of[word][: max(0, left)]
            left -= len(words_of[word])
            words.append((word, any(FATES[piece] == (True, shade) for piece in read)))
        expected.append(words)
    kept = [stays for words in expected for _, stays in words]
    assert 0.1 < np.mean(kept) < 0.9
    for together in (7, 250):
        monkeypatch.setattr(albef_arms, "_TOGETHER", together)
        assert kept_words(keeping, titles, pixels(*shades)) == expected


def test_without_pruning_all_words_that_are_read_are_kept(keeping: AlbefEncoder) -> None:
    keeping.pruning = None
    [found] = kept_words(keeping, ["red brand vegan mug red red red"], pixels("dark"))
    assert [kept for _, kept in found] == [True] * 6 + [False]


# --- random drop


def between(row: Sequence[int]) -> list[int]:
    """The words of a row of ids; fails where it is not `[CLS] words [SEP]` and padding."""
    end = row.index(SPECIAL.index("[SEP]"))
    assert row[0] == SPECIAL.index("[CLS]")
    assert not any(row[end + 1 :])  # [PAD] is 0
    return list(row[1:end])


def test_random_drop_depends_on_row_epoch_and_seed_alone(keeping: AlbefEncoder) -> None:
    rows = np.array([7, 3, 900, 12])
    ids = keeping.tokenizer(["red mug brand vegan shoe reds"] * 4)

    def drawn(order: Sequence[int], epoch: int = 1, seed: int = 2) -> Tensor:
        found = _RandomDrop(keeping, 0.5, seed)(ids[list(order)], rows[list(order)], epoch)
        return found[torch.argsort(torch.tensor(order))]

    whole = drawn([0, 1, 2, 3])
    assert torch.equal(whole, drawn([2, 0, 3, 1]))
    alone = [_RandomDrop(keeping, 0.5, 2)(ids[n : n + 1], rows[n : n + 1], 1) for n in range(4)]
    assert torch.equal(whole, torch.cat(alone))
    assert not torch.equal(whole, drawn([0, 1, 2, 3], epoch=2))
    assert not torch.equal(whole, drawn([0, 1, 2, 3], seed=3))
    assert len({tuple(row) for row in whole.tolist()}) > 1  # rows differ, too


@pytest.mark.parametrize("share", [0.0, 0.3, 0.85, 1.0])
def test_random_drop_keeps_its_share_in_every_place(share: float, keeping: AlbefEncoder) -> None:
    count = 800
    ids = keeping.tokenizer(["red mug brand vegan shoe"] * count)
    found = _RandomDrop(keeping, share, 0)(ids, np.arange(count), 0)
    assert found.shape == ids.shape
    words = between(ids[0].tolist())
    kept = Counter[int]()
    for row in found.tolist():
        left = between(row)
        assert left == [word for word in words if word in left]  # in their order
        kept.update(left)
    sigma = (share * (1 - share) / count) ** 0.5
    for word in words:
        assert abs(kept[word] / count - share) <= 4.5 * sigma


def test_random_drop_leaves_titles_of_no_words_alone(keeping: AlbefEncoder) -> None:
    ids = keeping.tokenizer(["", "red"])
    assert torch.equal(_RandomDrop(keeping, 0.0, 0)(ids, np.arange(2), 0), ids[[0, 0]])


# --- arms

CONFIG = AlbefTraining(epochs=3, batch_size=8, learning_rate=3e-4, seed=4, hardening=0.5)
IMAGES = cast(Any, object())
CHANGES: dict[str, dict[str, object]] = {
    "standard": {"preset": "standard"},
    "paper cross": {"preset": "paper", "prune": "cross", "threshold_learning_rate": 3e-4},
    "paper all": {"preset": "paper", "prune": "all", "threshold_learning_rate": 3e-4},
    "cross": {"preset": "calibrated", "prune": "cross"},
    "all": {"preset": "calibrated", "prune": "all"},
    "cross mean key": {"preset": "calibrated", "prune": "cross", "key": "mean"},
    "all mean key": {"preset": "calibrated", "prune": "all", "key": "mean"},
    "random drop": {"preset": "standard"},
    "oracle": {"preset": "standard"},
}


@pytest.fixture
def trained(monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    """What an arm hands to training."""
    found = SimpleNamespace()

    def record(
        encoder: AlbefEncoder,
        pairs: Pairs,
        images: object,
        validation: None,
        validation_images: None,
        out: None,
        config: AlbefTraining,
        *,
        shown: Any,
    ) -> None:
        found.pairs, found.images, found.config, found.shown = pairs, images, config, shown

    monkeypatch.setattr(albef_arms, "train_albef", record)
    return found


@pytest.fixture
def pairs() -> Pairs:
    titles = ["brand red mug", "vegan shoes", "red", "mug"] * 3
    pictures = [ProductImage(location=f"{number}.png") for number in range(12)]
    return Pairs(pictures, titles, np.arange(12) // 2, [f"p{number}" for number in range(12)])


def test_every_arm_is_tested_here() -> None:
    assert CHANGES.keys() == ARMS.keys()


@pytest.mark.parametrize(("arm", "changes"), CHANGES.items())
def test_arms_differ_in_nothing_but_how_titles_are_read(
    arm: str,
    changes: dict[str, object],
    keeping: AlbefEncoder,
    pairs: Pairs,
    trained: SimpleNamespace,
) -> None:
    shows = {"red", "mug"}.__contains__
    train_albef_arm(arm, keeping, pairs, IMAGES, CONFIG, share=0.5, visual=shows)
    assert trained.config == CONFIG.model_copy(update={"key": "first", **changes})
    assert AlbefTraining.model_validate(trained.config.model_dump()) == trained.config
    assert trained.images is IMAGES
    assert trained.pairs.pictures == pairs.pictures
    assert trained.pairs.products == pairs.products
    np.testing.assert_array_equal(trained.pairs.keys, pairs.keys)
    titles = ["red mug", "", "red", "mug"] * 3 if arm == "oracle" else pairs.titles
    assert trained.pairs.titles == titles
    if arm != "random drop":
        assert trained.shown is None
        return
    ids, rows = keeping.tokenizer(pairs.titles), np.arange(12)
    found = trained.shown(ids, rows, 2)
    assert torch.equal(found, _RandomDrop(keeping, 0.5, CONFIG.seed)(ids, rows, 2))
    assert not torch.equal(found, _RandomDrop(keeping, 0.6, CONFIG.seed)(ids, rows, 2))
