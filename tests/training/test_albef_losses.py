"""The three losses against loops, and what is drawn at random against its own shares."""

from __future__ import annotations

import math
from collections import Counter

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn import functional

from training.albef.losses import (
    UNSEEN,
    Relations,
    contrastive_loss,
    guessing_loss,
    hard_negatives,
    hide_tokens,
)


def relations_of(rows: int, keys: int, seed: int) -> Relations:
    """Each row has one to three positives; of the other keys a third is ignored."""
    rng = np.random.default_rng(seed)
    positive, ignored = np.zeros((rows, keys), bool), rng.random((rows, keys)) < 1 / 3
    for row in range(rows):
        positive[row, rng.choice(keys, rng.integers(1, 4), replace=False)] = True
    return Relations(torch.from_numpy(positive), torch.from_numpy(ignored & ~positive))


def slow_contrastive_loss(scores: Tensor, slow: Tensor, to: Relations, soft: float) -> float:
    losses = []
    for row, (own, taught) in enumerate(zip(scores.tolist(), slow.tolist(), strict=True)):
        counted = [key for key in range(len(own)) if not to.ignored[row, key]]
        right = [key for key in counted if to.positive[row, key]]
        total = math.log(sum(math.exp(own[key]) for key in counted))
        taught_total = sum(math.exp(taught[key]) for key in counted)
        loss = 0.0
        for key in counted:
            target = soft * math.exp(taught[key]) / taught_total
            target += (1 - soft) / len(right) if key in right else 0
            loss -= target * (own[key] - total)
        losses.append(loss)
    return sum(losses) / len(losses)


@pytest.mark.parametrize("soft", [0.0, 0.4, 0.9])
@pytest.mark.parametrize("seed", range(3))
def test_contrast_with_several_positives_and_ignored_keys(soft: float, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    scores = torch.randn(5, 9, generator=generator, dtype=torch.float64, requires_grad=True)
    slow = torch.randn(5, 9, generator=generator, dtype=torch.float64, requires_grad=True)
    to = relations_of(5, 9, seed)
    loss = contrastive_loss(scores, slow, to, soft)
    expected = slow_contrastive_loss(scores, slow, to, soft)
    assert loss.item() == pytest.approx(expected, rel=1e-7)  # shares in float32
    loss.backward()
    assert scores.grad is not None
    assert (scores.grad[to.ignored] == 0).all()
    assert (scores.grad[~to.ignored] != 0).all()
    assert slow.grad is None  # it teaches, and is not taught

    # What is ignored may be anything.
    for wild in (1e6, -1e6):
        changed = contrastive_loss(
            scores.detach().masked_fill(to.ignored, wild),
            slow.detach().masked_fill(to.ignored, wild),
            to,
            soft,
        )
        assert changed.item() == loss.item()


def test_with_one_positive_each_it_is_cross_entropy() -> None:
    scores = torch.randn(6, 11, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    right = torch.tensor([3, 0, 10, 4, 4, 7])
    to = Relations(functional.one_hot(right, 11).bool(), torch.zeros(6, 11, dtype=torch.bool))
    loss = contrastive_loss(scores, scores.flip(1), to, 0.0)
    assert loss.item() == pytest.approx(functional.cross_entropy(scores, right).item(), rel=1e-12)


def test_negatives_are_never_alike_and_follow_their_scores() -> None:
    torch.manual_seed(0)
    size, draws = 5, 4000
    scores = 2 * torch.randn(size, size)
    alike = torch.eye(size, dtype=torch.bool)
    alike[0, 3] = alike[3, 0] = True
    alike[4] = True  # of one kind with all others: it has no negative
    counts = np.zeros((size, size))
    for _ in range(draws):
        rows, drawn = hard_negatives(scores, alike)
        assert rows.tolist() == [0, 1, 2, 3]
        counts[rows, drawn] += 1
    # In the scale of all scores, those of the pairs that are alike among them.
    weights = np.where(alike, 0, scores.double().softmax(1).numpy() + 1e-4)
    for row in range(4):
        expected = weights[row] / weights[row].sum()
        deviation = np.sqrt(expected * (1 - expected) / draws)
        assert (abs(counts[row] / draws - expected) <= 4 * deviation).all()
    assert (counts[alike.numpy()] == 0).all()


def test_a_negative_that_scores_far_below_may_be_drawn_where_there_is_no_other() -> None:
    scores = torch.tensor([[90.0, -90.0], [0.0, 0.0]])
    rows, drawn = hard_negatives(scores, torch.eye(2, dtype=torch.bool))
    assert (rows.tolist(), drawn.tolist()) == ([0, 1], [1, 0])


@pytest.mark.parametrize("size", [0, 1, 3])
def test_where_all_are_alike_there_are_no_negatives(size: int) -> None:
    rows, drawn = hard_negatives(torch.zeros(size, size), torch.ones(size, size, dtype=torch.bool))
    assert (rows.tolist(), drawn.tolist()) == ([], [])
    assert (rows.dtype, drawn.dtype) == (torch.int64, torch.int64)


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_scores_that_are_no_numbers_are_left_for_the_loss_to_report(value: float) -> None:
    scores = torch.zeros(4, 4)
    scores[1], scores[:, 2] = value, value
    rows, drawn = hard_negatives(scores, torch.eye(4, dtype=torch.bool))
    assert rows.tolist() == [0, 1, 2, 3]
    assert (rows != drawn).all()


VOCABULARY, MASK = 50, 4


def titles(count: int) -> tuple[Tensor, Tensor]:
    """Ids of titles of 18 words with [CLS], [SEP] and padding (2, 3 and 0), and what is a word."""
    ids = torch.randint(5, VOCABULARY, (count, 24), generator=torch.Generator().manual_seed(0))
    ids[:, 0], ids[:, 19], ids[:, 20:] = 2, 3, 0
    words = torch.zeros(ids.shape, dtype=torch.bool)
    words[:, 1:19] = True
    return ids, words


def hide(ids: Tensor, words: Tensor, rows: list[int], **other: int) -> tuple[Tensor, Tensor]:
    settings = {"seed": 7, "epoch": 2, **other}
    return hide_tokens(ids, words, np.array(rows, np.int64), 0.15, MASK, VOCABULARY, **settings)


def test_shares_of_what_is_hidden_and_how() -> None:
    ids, words = titles(3000)
    shown, labels = hide(ids, words, list(range(3000)))
    hidden = labels != UNSEEN
    assert not (hidden & ~words).any()
    assert torch.equal(labels[hidden], ids[hidden])
    assert torch.equal(shown[~hidden], ids[~hidden])
    count = 54_000

    def near(found: float, share: float, of: int) -> bool:
        return abs(found / of - share) < 4 * math.sqrt(share * (1 - share) / of)

    total = int(hidden.sum())
    assert near(total, 0.15, count)
    for place in range(1, 19):
        assert near(int(hidden[:, place].sum()), 0.15, 3000)
    assert near(int((shown[hidden] == MASK).sum()), 0.8 + 0.1 / VOCABULARY, total)
    # One in fifty random words is the word itself.
    assert near(int((shown == ids)[hidden].sum()), 0.1 + 0.1 / VOCABULARY, total)
    random = shown[hidden & (shown != MASK) & (shown != ids)]
    seen = Counter(random.tolist())
    assert sorted(seen) == [word for word in range(VOCABULARY) if word != MASK]
    assert max(seen.values()) < 2.5 * len(random) / VOCABULARY


def test_what_is_hidden_depends_on_row_epoch_and_seed_alone() -> None:
    ids, words = titles(60)
    shown, labels = hide(ids, words, list(range(60)))
    some = [41, 3, 17, 58]
    torch.manual_seed(123)
    again, labelled = hide(ids[some], words[some], some)
    assert torch.equal(again, shown[some])
    assert torch.equal(labelled, labels[some])
    others = (
        hide(ids, words, list(range(60)), epoch=3),
        hide(ids, words, list(range(60)), seed=8),
        hide(ids, words, list(range(60, 120))),
    )
    for _, other in others:
        assert ((other != UNSEEN) != (labels != UNSEEN)).float().mean() > 0.1


def test_nothing_is_hidden_at_a_share_of_0() -> None:
    ids, words = titles(10)
    shown, labels = hide_tokens(ids, words, np.arange(10), 0.0, MASK, VOCABULARY, 0, 0)
    assert torch.equal(shown, ids)
    assert (labels == UNSEEN).all()


@pytest.mark.parametrize("soft", [0.0, 0.4])
def test_guesses_in_closed_form(soft: float) -> None:
    # Odds of 1 : 2 : 5 and 4 : 3 : 1, as the model has them; the slow copy is sure, or halves.
    logits = torch.tensor([[1.0, 2.0, 5.0], [4.0, 3.0, 1.0]]).log().requires_grad_()
    slow = torch.tensor([[1e-30, 1.0, 1e-30], [1.0, 1.0, 1e-30]]).log().requires_grad_()
    loss = guessing_loss(logits, slow, torch.tensor([2, 0]), soft)
    hard = -(math.log(5 / 8) + math.log(4 / 8)) / 2
    guessed = -(math.log(2 / 8) + (math.log(4 / 8) + math.log(3 / 8)) / 2) / 2
    assert loss.item() == pytest.approx((1 - soft) * hard + soft * guessed, rel=1e-6)
    loss.backward()
    assert slow.grad is None
    # The gradient of a cross-entropy is what is thought less what is so, over the mean's two.
    taught = torch.tensor([[0.0, 1.0, 0.0], [0.5, 0.5, 0.0]])
    so = (1 - soft) * functional.one_hot(torch.tensor([2, 0]), 3) + soft * taught
    torch.testing.assert_close(logits.grad, (logits.detach().softmax(1) - so) / 2)


def test_without_hidden_words_there_is_nothing_to_learn() -> None:
    logits = torch.zeros(0, 9, requires_grad=True)
    loss = guessing_loss(logits, torch.zeros(0, 9), torch.zeros(0, dtype=torch.int64), 0.4)
    loss.backward()
    assert loss.item() == 0


def test_mixed_negatives_stand_in_the_denominators_alone() -> None:
    generator = torch.Generator().manual_seed(0)
    scores = torch.randn(5, 9, generator=generator, dtype=torch.float64)
    mixed = torch.randn(5, 3, generator=generator, dtype=torch.float64)
    to = relations_of(5, 9, 0)
    more = Relations(
        torch.cat([to.positive, torch.zeros(5, 3, dtype=torch.bool)], 1),
        torch.cat([to.ignored, torch.zeros(5, 3, dtype=torch.bool)], 1),
    )
    found = contrastive_loss(scores, scores, to, 0.0, mixed)
    expected = contrastive_loss(torch.cat([scores, mixed], 1), torch.zeros(5, 12), more, 0.0)
    assert found.item() == pytest.approx(expected.item(), rel=1e-12)
    # What the slow copy finds is shared out among the real keys as before.
    soft = contrastive_loss(scores, scores, to, 0.7, torch.full((5, 3), -1e9))
    assert soft.item() == pytest.approx(contrastive_loss(scores, scores, to, 0.7).item(), rel=1e-7)
