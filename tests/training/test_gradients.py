"""Gradients of a batch in chunks are those of the whole batch, and of plain autograd."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from indexing.models.calibration import calibrate
from indexing.models.pruned_text import PrunedText
from indexing.models.text import embed_tokens
from indexing.models.token_pruning import TokenPruning
from training.config import TrainConfig
from training.data import Pairs
from training.distributed import Ranks
from training.gradients import BatchGradients, Outcome, similarity_loss
from training.setup import set_up
from training.texts import PlainTexts, Texts, TextSide, hide_words

ROWS = np.array([5, 0, 17, 3, 11, 8, 2])


def gradients_of(
    tiny: Any,
    *,
    texts: TextSide | None = None,
    pairs: Pairs | None = None,
    double: bool = False,
    pruning: dict[str, Any] | None = None,
    **settings: Any,
) -> tuple[Outcome, dict[str, Tensor], Any]:
    encoder = tiny.encoder()
    if double:
        encoder.model.double()
        encoder.model.attn_mask = encoder.model.attn_mask.double()
    if pruning is not None:
        found = calibrate(encoder, tiny.pairs.titles)
        encoder.pruning = TokenPruning(found.model_copy(update=pruning))
    config = TrainConfig(batch_size=len(ROWS), **settings)
    pairs = tiny.pairs if pairs is None else pairs
    setup = set_up(encoder, pairs, None, None, config, 1, texts and texts(encoder.model))
    encoder.model.train()
    images = tiny.images(encoder)
    if double:
        images.pixels = images.pixels.double()
    batch = BatchGradients(
        *(encoder, pairs, images, setup.texts, setup.loss, setup.optimizer, config),
        Ranks("cpu"),
    )
    outcome = batch(ROWS, images.pixels[ROWS], [len(ROWS)], epoch=0, step=0)
    named = dict(encoder.model.named_parameters())
    if encoder.pruning is not None:
        named["delta"] = encoder.pruning.delta
    gradients = {name: p.grad.clone() for name, p in named.items() if p.grad is not None}
    return outcome, gradients, encoder


def assert_same(one: dict[str, Tensor], other: dict[str, Tensor], tolerance: float) -> None:
    assert one.keys() == other.keys()
    for name, gradient in one.items():
        scale = max(1.0, float(gradient.abs().max()))
        torch.testing.assert_close(gradient, other[name], rtol=0, atol=tolerance * scale)


SOFT = {"straight_through": False}
SETTINGS = {
    "plain": {},
    "siglip": {"loss": "siglip"},
    "teacher": {"loss": "cwcl"},
    "memory": {"loss": "sogclr"},
    "similarities": {"keep_similarities": 2.0},
    "hidden words": {"word_dropout": 0.4},
    "pruning": {"pruning": {}},
    "soft pruning": {"pruning": SOFT, "loss": "siglip", "word_dropout": 0.2},
}


@pytest.mark.parametrize("settings", SETTINGS.values(), ids=SETTINGS.keys())
def test_chunks_give_the_gradients_of_the_whole_batch(tiny: Any, settings: dict[str, Any]) -> None:
    whole, expected, _ = gradients_of(tiny, **settings)
    assert whole.gradient_norm > 0.01
    for chunk in (1, 3, 7, 100):
        outcome, found, _ = gradients_of(tiny, chunk=chunk, **settings)
        assert_same(found, expected, 5e-6)  # float32 sums in another order
        assert outcome.loss == pytest.approx(whole.loss, abs=1e-5)
        assert outcome.penalty == pytest.approx(whole.penalty, abs=1e-6)
        assert outcome.gradient_norm == pytest.approx(whole.gradient_norm, rel=1e-5)
        assert (outcome.kept is None) == ("pruning" not in settings)


def test_chunks_in_double_precision_agree_to_its_last_digits(tiny: Any) -> None:
    _, expected, _ = gradients_of(tiny, double=True)
    _, found, _ = gradients_of(tiny, double=True, chunk=2)
    assert expected["logit_scale"].dtype == torch.float64
    assert_same(found, expected, 1e-14)


@pytest.mark.parametrize("pruning", [None, {}, SOFT])
def test_they_are_those_of_plain_autograd(tiny: Any, pruning: dict[str, Any] | None) -> None:
    outcome, found, encoder = gradients_of(tiny, chunk=3, keep_similarities=0.5, pruning=pruning)
    model = encoder.model
    model.zero_grad()
    pixels, ids = tiny.pixels[ROWS], encoder.tokenizer(tiny.pairs.titles)[ROWS]
    images = functional.normalize(model.encode_image(pixels), dim=-1)
    penalty: Any = 0.0
    if pruning is None:
        texts = model.encode_text(ids)
    else:
        encoder.pruning.delta.grad = None
        pruned = PrunedText(model, encoder.pruning)(ids)
        texts, penalty = pruned.embeddings, pruned.penalty
        assert outcome.penalty == pytest.approx(penalty.item(), rel=1e-6)
    logits = model.logit_scale.exp() * images @ functional.normalize(texts, dim=-1).T
    right = torch.arange(len(ROWS))
    loss = (functional.cross_entropy(logits, right) + functional.cross_entropy(logits.T, right)) / 2
    before = tiny.images(encoder).before(pixels)
    change = (images @ images.T - before @ before.T).square().mean()
    (loss + 0.5 * change + penalty).backward()
    expected = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
    if pruning is not None:
        expected["delta"] = encoder.pruning.delta.grad
        assert expected["delta"].abs().max() > 1e-3
    assert_same(found, expected, 1e-6)


class Dropping:
    """A text side that leaves out numbers by torch's generator, and notes which."""

    def __init__(self, model: Any) -> None:
        self._model = model
        self.noted: list[Tensor] = []

    def __call__(self, ids: Tensor, rows: NDArray[np.int64], epoch: int) -> Texts:
        embeddings = embed_tokens(self._model, ids)
        self.noted.append(torch.rand(embeddings.shape))
        return Texts(embeddings * (self.noted[-1] < 0.5), torch.zeros(()), None)


def test_the_second_pass_sees_the_same_random_numbers(tiny: Any) -> None:
    made = []

    def side(model: Any) -> Dropping:
        made.append(Dropping(model))
        return made[-1]

    gradients_of(tiny, texts=side, chunk=3)
    noted = made[0].noted
    assert len(noted) == 6
    for first, second in zip(noted[:3], noted[3:], strict=True):
        assert torch.equal(first, second)
    assert not torch.equal(noted[0], noted[1])


def test_pairs_linked_by_a_product_or_a_picture_are_no_negatives(tiny: Any) -> None:
    pairs = tiny.pairs
    pictures, products = list(pairs.pictures), list(pairs.products)
    products[0] = products[5]  # the second row and the first
    pictures[3] = pictures[17]  # the fourth and the third
    linked = Pairs(pictures, pairs.titles, pairs.keys, products)
    outcome, _, encoder = gradients_of(tiny, pairs=linked)
    model, ids = encoder.model, encoder.tokenizer(pairs.titles)[ROWS]
    images = functional.normalize(model.encode_image(tiny.pixels[ROWS]), dim=-1)
    logits = model.logit_scale.exp() * images @ functional.normalize(model.encode_text(ids)).T
    for one, other in ((0, 1), (2, 3)):
        logits[one, other] = logits[other, one] = -torch.inf
    right = torch.arange(len(ROWS))
    loss = (functional.cross_entropy(logits, right) + functional.cross_entropy(logits.T, right)) / 2
    assert outcome.loss == pytest.approx(loss.item(), rel=1e-6)
    unlinked, _, _ = gradients_of(tiny)
    assert unlinked.loss > outcome.loss + 0.01


def test_titles_that_are_equal_are_positives_of_each_other(tiny: Any) -> None:
    keys = tiny.pairs.keys.copy()
    keys[5] = keys[0] = 99
    alike = Pairs(tiny.pairs.pictures, tiny.pairs.titles, keys, tiny.pairs.products)
    outcome, _, encoder = gradients_of(tiny, pairs=alike)
    model, ids = encoder.model, encoder.tokenizer(tiny.pairs.titles)[ROWS]
    images = functional.normalize(model.encode_image(tiny.pixels[ROWS]), dim=-1)
    logits = model.logit_scale.exp() * images @ functional.normalize(model.encode_text(ids)).T
    target = torch.eye(len(ROWS))
    target[:2, :2] = 0.5
    loss = (
        functional.cross_entropy(logits, target) + functional.cross_entropy(logits.T, target)
    ) / 2
    assert outcome.loss == pytest.approx(loss.item(), rel=1e-6)


def test_no_gradient_where_the_loss_is_not_finite(tiny: Any) -> None:
    class Broken(PlainTexts):
        def __call__(self, ids: Tensor, rows: NDArray[np.int64], epoch: int) -> Texts:
            texts = super().__call__(ids, rows, epoch)
            wrong = torch.from_numpy(np.where(np.isin(rows, [3, 11]), np.nan, 1.0)).float()
            return Texts(texts.embeddings * wrong[:, None], texts.penalty, None)

    outcome, gradients, _ = gradients_of(tiny, texts=Broken, chunk=2)
    assert np.isnan(outcome.loss)
    assert outcome.suspects.tolist() == [3, 11]
    assert gradients == {}


@pytest.mark.parametrize("pruning", [None, {}])
def test_bfloat16_and_checkpointed_activations_give_about_the_same_gradients(
    tiny: Any, pruning: dict[str, Any] | None
) -> None:
    exact, expected, _ = gradients_of(tiny, pruning=pruning)
    _, again, encoder = gradients_of(tiny, pruning=pruning, checkpoint_activations=True, chunk=3)
    assert encoder.model.transformer.grad_checkpointing
    assert encoder.model.visual.transformer.grad_checkpointing
    assert_same(again, expected, 1e-6)
    # The picture tower, on which no mask depends: one near its threshold may turn over.
    half, found, _ = gradients_of(tiny, pruning=pruning, precision="bf16", chunk=3)
    assert half.loss != exact.loss
    assert half.loss == pytest.approx(exact.loss, abs=0.2)
    assert {gradient.dtype for gradient in found.values()} == {torch.float32}
    assert found.keys() == expected.keys()
    for name in ("visual.proj", "visual.conv1.weight"):
        cosine = functional.cosine_similarity(
            found[name].flatten(), expected[name].flatten(), dim=0
        )
        assert cosine > 0.97, name


def test_hidden_words_are_words() -> None:
    tokens = torch.tensor([[10, 2, 3, 4, 11, 0], [10, 5, 11, 0, 0, 0]]).repeat(500, 1)
    rows = np.arange(1000)
    hidden = hide_words(tokens, rows, 0.4, 1, seed=0, epoch=0)
    changed = hidden != tokens
    assert (hidden[changed] == 1).all()
    words = torch.tensor([[False, True, True, True, False, False], [False, True] + [False] * 4])
    assert not changed[~words.repeat(500, 1)].any()
    share = changed.sum() / words.repeat(500, 1).sum()  # of 2,000 words: sd .011
    assert abs(share - 0.4) < 0.05
    assert torch.equal(hide_words(tokens, rows, 0.0, 1, seed=0, epoch=0), tokens)


def test_which_words_are_hidden_depends_on_row_epoch_and_seed_alone() -> None:
    tokens = torch.tensor([[10, 2, 3, 4, 5, 6, 7, 11]]).repeat(50, 1)
    rows = np.arange(50)
    hidden = hide_words(tokens, rows, 0.5, 1, seed=3, epoch=2)
    order = np.random.default_rng(0).permutation(50)[:20]
    assert torch.equal(hide_words(tokens[order], rows[order], 0.5, 1, 3, 2), hidden[order])
    assert not torch.equal(hide_words(tokens, rows, 0.5, 1, 3, 3), hidden)
    assert not torch.equal(hide_words(tokens, rows, 0.5, 1, 4, 2), hidden)


def test_similarity_loss_is_the_mean_squared_change_of_the_cosines() -> None:
    before = torch.tensor([[1.0, 0.0], [0.0, 1.0]])
    turned = torch.tensor([[0.0, -1.0], [1.0, 0.0]])  # a rotation changes no cosine
    assert similarity_loss(turned, before).item() == 0
    same = torch.tensor([[1.0, 0.0], [1.0, 0.0]])  # the two off-diagonal cosines go 0 -> 1
    assert similarity_loss(same, before).item() == 0.5
