"""What each arm shows the model, against plain loops and properties."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from benchmarks.pruning import arms
from benchmarks.pruning.arms import (
    ARMS,
    CONTROLS,
    RandomDrop,
    keep_tokens,
    train_arm,
    visual_only,
    without_types,
)
from benchmarks.pruning.toy_data import draw_products
from indexing.catalog.product import ProductImage
from indexing.models.calibration import calibrate
from indexing.models.clip import ClipEncoder, load_folder
from training.config import TrainConfig
from training.data import Pairs

START, END = 98, 99
Titles = st.lists(st.lists(st.sampled_from("abcdefgh"), max_size=6).map(" ".join), max_size=20)
CONFIG = TrainConfig(epochs=3, batch_size=8, learning_rate=3e-4, seed=4)

# --- tokens


def token_rows(words: Sequence[Sequence[int]], length: int = 12) -> Tensor:
    rows = [[START, *row, END] for row in words]
    return torch.tensor([row + [0] * (length - len(row)) for row in rows])


def between(row: Sequence[int]) -> list[int]:
    """The words of a row of ids; fails where it is not `[SOT] words [EOT] 0 0 ...`."""
    end = row.index(END)
    assert row[0] == START
    assert not any(row[end + 1 :])
    return list(row[1:end])


@given(st.data())
def test_keep_tokens_is_a_plain_loop(data: st.DataObject) -> None:
    words = data.draw(st.lists(st.lists(st.integers(1, 97), max_size=10), min_size=1, max_size=5))
    size = 12 * len(words)
    flat = data.draw(st.lists(st.booleans(), min_size=size, max_size=size))
    keep = torch.tensor(flat).reshape(len(words), 12)
    expected = [
        [word for place, word in enumerate(row, 1) if keep[number, place]]
        for number, row in enumerate(words)
    ]
    ids = token_rows(words)
    kept = keep_tokens(ids, keep, ids.argmax(-1, keepdim=True))
    assert torch.equal(kept, token_rows(expected))
    other = keep_tokens(ids.clone(), keep, ids.argmax(-1, keepdim=True), pad_id=7)
    assert torch.equal(other == 7, (kept == 0) | (kept == 7))


def test_all_or_nothing_is_kept() -> None:
    ids = token_rows([[5, 6, 7], [], [1] * 10])
    end = ids.argmax(-1, keepdim=True)
    assert torch.equal(keep_tokens(ids, torch.ones(3, 12, dtype=torch.bool), end), ids)
    nothing = keep_tokens(ids, torch.zeros(3, 12, dtype=torch.bool), end)
    assert torch.equal(nothing, token_rows([[], [], []]))


# --- random drop


@pytest.fixture
def shown(monkeypatch: pytest.MonkeyPatch) -> None:
    """Embeddings are the ids themselves."""
    monkeypatch.setattr(arms, "embed_tokens", lambda model, ids: ids)


@pytest.mark.usefixtures("shown")
def test_random_drop_depends_on_row_epoch_and_seed_alone() -> None:
    rows = np.array([7, 3, 900, 12])
    ids = token_rows([list(range(10 * n + 1, 10 * n + 11)) for n in range(4)])

    def drawn(order: Sequence[int], epoch: int = 1, seed: int = 2) -> Tensor:
        texts = RandomDrop(object(), 0.5, seed)(ids[list(order)], rows[list(order)], epoch)
        return texts.embeddings[torch.argsort(torch.tensor(order))]

    whole = drawn([0, 1, 2, 3])
    assert torch.equal(whole, drawn([2, 0, 3, 1]))
    alone = [RandomDrop(object(), 0.5, 2)(ids[n : n + 1], rows[n : n + 1], 1) for n in range(4)]
    assert torch.equal(whole, torch.cat([texts.embeddings for texts in alone]))
    assert not torch.equal(whole, drawn([0, 1, 2, 3], epoch=2))
    assert not torch.equal(whole, drawn([0, 1, 2, 3], seed=3))
    kept = [{word % 10 for word in between(row)} for row in whole.tolist()]
    assert len({frozenset(places) for places in kept}) > 1  # rows differ, too


@pytest.mark.parametrize("share", [0.0, 0.3, 0.85, 1.0])
@pytest.mark.usefixtures("shown")
def test_random_drop_keeps_its_share_in_every_place(share: float) -> None:
    count = 1500
    words = list(range(1, 11))
    texts = RandomDrop(object(), share, 0)(token_rows([words] * count), np.arange(count), 0)
    assert (float(texts.penalty), texts.kept) == (0.0, None)
    counts = Counter(word for row in texts.embeddings.tolist() for word in between(row))
    sigma = (share * (1 - share) / count) ** 0.5
    for word in words:
        assert abs(counts[word] / count - share) <= 4.5 * sigma


# --- words


@given(Titles, st.floats(0, 1), st.integers(0, 5))
def test_without_types_keeps_or_drops_a_word_everywhere(
    titles: list[str], share: float, seed: int
) -> None:
    found = without_types(titles, share, seed)
    assert found == without_types(titles, share, seed)
    counts = Counter(word for title in titles for word in title.split())
    kept = {word for title in found for word in title.split()}
    expected = [" ".join(w for w in title.split() if w in kept) for title in titles]
    assert found == expected  # neither order nor number of what is kept has changed
    left = share * counts.total() - sum(counts[word] for word in kept)
    assert left >= -1e-9
    assert all(counts[word] > left - 1e-9 for word in counts.keys() - kept)  # no room for more


def test_without_types_draws_by_seed_and_hits_the_share() -> None:
    titles = draw_products(60, 3, views=1).titles
    total = sum(len(title.split()) for title in titles)
    found = [without_types(titles, 0.4, seed) for seed in range(3)]
    for some in found:
        assert abs(sum(len(title.split()) for title in some) / total - 0.4) < 1 / total
    assert found[0] != found[1] != found[2] != found[0]
    assert without_types(titles, 1.0, 0) == titles
    assert without_types(titles[::-1], 0.4, 0) == found[0][::-1]  # the catalog's order is nothing


def test_visual_only_asks_of_each_word() -> None:
    titles = ["brand red  mug", "", "model9", "mug red"]
    assert visual_only(titles, {"red", "mug"}.__contains__) == ["red mug", "", "", "mug red"]


# --- arms


@pytest.fixture
def encoder(start: Path) -> ClipEncoder:
    return load_folder(start)


@pytest.fixture
def pairs() -> Pairs:
    titles = draw_products(24, 1, views=1).titles
    pictures = [ProductImage(location=f"{number}.png") for number in range(24)]
    return Pairs(pictures, titles, np.arange(24) // 2, [f"p{number}" for number in range(24)])


@pytest.fixture
def trained(monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    """What an arm hands to training."""
    found = SimpleNamespace()

    def record(
        encoder: ClipEncoder,
        pairs: Pairs,
        images: object,
        validation: None,
        validation_images: None,
        out: None,
        config: TrainConfig,
        *,
        texts: Any,
    ) -> None:
        found.pairs, found.images, found.config, found.texts = pairs, images, config, texts

    monkeypatch.setattr(arms, "train_clip", record)
    return found


IMAGES = cast(Any, object())


CHANGES: dict[str, dict[str, object]] = {
    "standard": {"preset": "standard"},
    "paper": {"preset": "paper", "threshold_learning_rate": 3e-4},
    "online": {"preset": None},
    "calibrated": {"preset": "calibrated", "mask_steps": 30},
    "mean key": {"preset": None, "mask_steps": 30},
    **{arm: {"preset": "standard"} for arm in (*CONTROLS, "oracle")},
}


def test_every_arm_is_tested_here() -> None:
    assert CHANGES.keys() == ARMS.keys()


@pytest.mark.parametrize(("arm", "changes"), CHANGES.items())
def test_arms_differ_in_nothing_but_how_titles_are_read(
    arm: str,
    changes: dict[str, object],
    encoder: ClipEncoder,
    pairs: Pairs,
    trained: SimpleNamespace,
) -> None:
    train_arm(arm, encoder, pairs, IMAGES, CONFIG, share=0.5, mask_steps=30)
    assert trained.config == CONFIG.model_copy(update=changes)
    assert TrainConfig.model_validate(trained.config.model_dump()) == trained.config
    assert trained.images is IMAGES
    assert trained.pairs.pictures == pairs.pictures
    assert trained.pairs.products == pairs.products
    np.testing.assert_array_equal(trained.pairs.keys, pairs.keys)
    assert isinstance(trained.texts, RandomDrop) == (arm == "random drop")
    assert (trained.pairs.titles == pairs.titles) == (arm not in ("fixed types", "truncated"))
    assert (encoder.pruning is not None) == (arm in ("online", "mean key"))


@pytest.mark.parametrize(
    ("arm", "recipe"),
    [("online", {"spread": 1.4, "weight": 0.5}), ("mean key", {"key": "mean"})],
)
def test_these_arms_bring_their_own_thresholds(
    arm: str, recipe: dict[str, Any], encoder: ClipEncoder, pairs: Pairs, trained: SimpleNamespace
) -> None:
    train_arm(arm, encoder, pairs, IMAGES, CONFIG)
    assert encoder.pruning is not None
    config = encoder.pruning.config
    assert config == calibrate(encoder, pairs.titles, **recipe)
    assert recipe.items() <= {"spread": 1.4, **config.model_dump()}.items()


def test_truncated_titles_are_the_first_words(
    encoder: ClipEncoder, pairs: Pairs, trained: SimpleNamespace
) -> None:
    pairs.titles[:3] = ["a b c d e f g h i j", "a", ""]
    train_arm("truncated", encoder, pairs, IMAGES, CONFIG, share=0.31)
    assert trained.pairs.titles[:3] == ["a b c", "a", ""]
    for title, cut in zip(pairs.titles[3:], trained.pairs.titles[3:], strict=True):
        assert title.startswith(f"{cut} ")
        assert abs(len(cut.split()) - 0.31 * len(title.split())) <= 0.5
    train_arm("truncated", encoder, pairs, IMAGES, CONFIG, share=0.0)
    assert trained.pairs.titles[0] == "a"  # a title is never cut to nothing


def test_the_controls_get_their_share_and_seed(
    encoder: ClipEncoder, pairs: Pairs, trained: SimpleNamespace
) -> None:
    train_arm("fixed types", encoder, pairs, IMAGES, CONFIG, share=0.6)
    assert trained.pairs.titles == without_types(pairs.titles, 0.6, CONFIG.seed)
    train_arm("random drop", encoder, pairs, IMAGES, CONFIG, share=0.6)
    ids, rows = encoder.tokenizer(pairs.titles), np.arange(24)
    expected = RandomDrop(encoder.model, 0.6, CONFIG.seed)(ids, rows, 2)
    other = RandomDrop(encoder.model, 0.5, CONFIG.seed)(ids, rows, 2)
    found = trained.texts(ids, rows, 2)
    assert torch.equal(found.embeddings, expected.embeddings)
    assert not torch.equal(found.embeddings, other.embeddings)


def test_the_oracle_reads_visual_words_only(
    encoder: ClipEncoder, pairs: Pairs, trained: SimpleNamespace
) -> None:
    pairs.titles[0] = "brand1 red mug vegan"
    train_arm("oracle", encoder, pairs, IMAGES, CONFIG, visual={"red", "mug"}.__contains__)
    assert trained.pairs.titles[0] == "red mug"
