"""A step against plain code that takes one pair at a time, and what it leaves behind."""

from __future__ import annotations

import copy
import math
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

import training.albef.step
from indexing.models.albef.reading import Reader
from indexing.models.albef.recipes import calibrated_albef_pruning, observe
from indexing.models.token_pruning import TokenPruning
from training.albef.config import AlbefTraining
from training.albef.losses import UNSEEN, hard_negatives, hide_tokens
from training.albef.momentum import NOBODY, Momentum
from training.albef.step import AlbefMethod
from training.data import Pairs
from training.distributed import Ranks
from training.gradients import Outcome
from training.optimizer import make_optimizer

ROWS = np.array([5, 0, 17, 3, 11, 8, 2])
STEP, PER_EPOCH = 3, 6  # half of an epoch: half of the distillation
Rows = NDArray[np.int64]


@pytest.fixture
def shop(tiny_albef: Any) -> Any:
    """With two pictures of one title, and a product of two titles: in the batch, rows 5 and 0
    are of one title, and 17 and 3 of one product; beyond it 20 is of the title of 11, and 21 of
    the product of 8."""
    pairs = tiny_albef.pairs
    titles, products = list(pairs.titles), list(pairs.products)
    titles[0], titles[20] = titles[5], titles[11]
    products[3], products[21] = products[17], products[8]
    keys = pairs.keys.copy()
    keys[0], keys[20] = keys[5], keys[11]
    tiny_albef.pairs = Pairs(pairs.pictures, titles, keys, products)
    return tiny_albef


class Step:
    """A model, its slow copy, which is another model, and a queue that is half full."""

    def __init__(self, shop: Any, pruning: dict[str, Any] | None = None, **settings: Any) -> None:
        self.shop, self.encoder = shop, shop.encoder()
        self.config = AlbefTraining(batch_size=len(ROWS), epochs=2, **settings)
        model = self.encoder.model
        if pruning is not None:
            ids = self.encoder.tokenizer(shop.pairs.titles)
            mask = self.encoder.tokenizer.mask(ids)
            scores, prunable = observe(model, ids, mask, shop.pixels, "pre", "first")
            found = calibrated_albef_pruning(
                model.config, scores, prunable, prune=pruning.pop("prune", "all"), share=0.3
            )
            self.encoder.pruning = TokenPruning(found.model_copy(update=pruning))
        self.momentum = Momentum(model, 12, self.config.momentum)
        generator = torch.Generator().manual_seed(1)
        with torch.no_grad():
            for parameter in self.momentum.model.parameters():
                parameter += 0.05 * torch.randn(parameter.shape, generator=generator)
            images, texts = functional.normalize(torch.randn(2, 8, 8, generator=generator), dim=-1)
        # Of the batch's own pairs, of one title, of one product, and of strangers.
        self.momentum.enqueue(images, texts, torch.tensor([5, 0, 20, 21, 3, 14, 15, 16]))
        optimizer = make_optimizer(model, self.encoder.pruning, self.config, 10)
        self.method = AlbefMethod(
            *(self.encoder, shop.pairs, self.momentum, optimizer, self.config),
            *(Ranks("cpu"), PER_EPOCH),
        )
        self.method.train_mode()

    def named(self) -> dict[str, Any]:
        named = dict(self.encoder.model.named_parameters())
        if self.encoder.pruning is not None:
            named["delta"] = self.encoder.pruning.delta
        return named

    def take(self, rows: Rows = ROWS, step: int = STEP) -> tuple[Outcome, dict[str, Tensor]]:
        """The outcome of a batch, and its gradients."""
        pixels = self.shop.pixels[rows]
        outcome = self.method(rows, pixels, [len(rows)], epoch=1, step=step)
        gradients = {n: p.grad.clone() for n, p in self.named().items() if p.grad is not None}
        return outcome, gradients


def first_unlike(scores: Tensor, alike: Tensor) -> tuple[Tensor, Tensor]:
    """In place of a random negative the one that scores best."""
    rows = (~alike).any(1).nonzero().squeeze(1)
    return rows, scores.detach().masked_fill(alike, -torch.inf).argmax(1)[rows]


def no_negatives(scores: Tensor, alike: Tensor) -> tuple[Tensor, Tensor]:
    none = torch.zeros(0, dtype=torch.int64)
    return none, none


def plainly(given: Step) -> dict[str, Tensor]:
    """The losses of a step before it is taken, one pair at a time."""
    pairs, config = given.shop.pairs, given.config
    model, pruning, tokenizer = given.encoder.model, given.encoder.pruning, given.encoder.tokenizer
    slow = copy.deepcopy(given.momentum.model)
    with torch.no_grad():
        for one, other in zip(slow.parameters(), model.parameters(), strict=True):
            one.copy_(config.momentum * one + (1 - config.momentum) * other)
    soft = config.distillation * STEP / PER_EPOCH
    reader, slow_reader = Reader(model, pruning), Reader(slow, pruning)
    ids = tokenizer(pairs.titles)
    read, seen, slow_seen, images, texts, keys = [], [], [], [], [], []
    for row in ROWS:
        one = ids[row : row + 1]
        read.append(reader.read(one, tokenizer.mask(one)))
        seen.append(model.visual_encoder(given.shop.pixels[row : row + 1]))
        images.append(model.image_vectors(seen[-1])[0])
        texts.append(model.text_vectors(read[-1].x)[0])
        with torch.no_grad():
            slow_seen.append(slow.visual_encoder(given.shop.pixels[row : row + 1]))
            follow = None if pruning is None else read[-1]
            text = slow_reader.read(one, tokenizer.mask(one), follow=follow)
            keys.append(
                (slow.image_vectors(slow_seen[-1])[0], slow.text_vectors(text.x)[0], int(row))
            )
    queue = given.momentum
    for place, number in enumerate(queue.pairs.tolist()):
        if number != NOBODY:
            keys.append((queue.image_queue[place], queue.text_queue[place], number))

    def contrast(of: list[Tensor], own: int, other: int) -> Tensor:
        losses = []
        for n, row in enumerate(ROWS):
            counted = [
                key
                for key in keys
                if pairs.titles[key[2]] == pairs.titles[row]
                or pairs.products[key[2]] != pairs.products[row]
            ]
            right = torch.tensor(
                [float(pairs.titles[key[2]] == pairs.titles[row]) for key in counted]
            )
            scores = torch.stack([of[n] @ key[other] for key in counted]) / model.temp
            taught = torch.stack([keys[n][own] @ key[other] for key in counted]) / model.temp
            target = soft * taught.softmax(0).detach() + (1 - soft) * right / right.sum()
            losses.append(-(target * scores.log_softmax(0)).sum())
        return torch.stack(losses).mean()

    itc = (contrast(images, 0, 1) + contrast(texts, 1, 0)) / 2

    def unlike(row: int, other: int) -> bool:
        return (
            pairs.titles[row] != pairs.titles[other]
            and pairs.products[row] != pairs.products[other]
        )

    fused = [reader.fuse(text, image) for text, image in zip(read, seen, strict=True)]
    matches = [
        functional.cross_entropy(model.itm_head(f.x[:, 0]), torch.tensor([1])) for f in fused
    ]
    for n, row in enumerate(ROWS):
        others = [m for m, other in enumerate(ROWS) if unlike(row, other)]
        image = max(others, key=lambda m: (texts[n] @ keys[m][0]).item())
        text = max(others, key=lambda m: (images[n] @ keys[m][1]).item())
        for t, i in ((n, image), (text, n)):
            wrong = reader.fuse(read[t], seen[i]).x[:, 0]
            matches.append(functional.cross_entropy(model.itm_head(wrong), torch.tensor([0])))
    itm = torch.stack(matches).mean()

    guesses = []
    for n, row in enumerate(ROWS):
        one = ids[row : row + 1]
        mask = tokenizer.mask(one)
        words = mask & (one != tokenizer.cls_id) & (one != tokenizer.sep_id)
        shown, labels = hide_tokens(
            *(one, words, np.array([row]), config.masked_share, tokenizer.mask_id),
            *(tokenizer.vocab_size, config.seed, 1),
        )
        for place in (labels[0] != UNSEEN).nonzero().flatten().tolist():
            text = reader.read(shown, mask, exempt=labels != UNSEEN)
            guess = reader.fuse(text, seen[n])
            logits = model.text_encoder.words(guess.x[0, place])
            with torch.no_grad():
                follow = None if pruning is None else guess
                text = slow_reader.read(shown, mask, follow=follow)
                taught = slow_reader.fuse(text, slow_seen[n], follow=follow)
                target = soft * slow.text_encoder.words(taught.x[0, place]).softmax(0)
                target[labels[0, place]] += 1 - soft
            guesses.append(-(target * logits.log_softmax(0)).sum())
    assert len(guesses) > 5
    penalty = torch.stack([reader.penalty(f) for f in fused]).mean()
    return {"itc": itc, "itm": itm, "mlm": torch.stack(guesses).mean(), "penalty": penalty}


def assert_same(one: dict[str, Tensor], other: dict[str, Tensor], tolerance: float) -> None:
    assert one.keys() == other.keys()
    for name, gradient in one.items():
        scale = max(1.0, float(gradient.abs().max()))
        torch.testing.assert_close(
            *(gradient, other[name]), rtol=0, atol=tolerance * scale, msg=lambda m, n=name: n + m
        )


SOFT = {"straight_through": False, "multiply": True}
PRUNINGS: dict[str, Any] = {"whole": None, "all": {}, "cross": {"prune": "cross"}, "soft": SOFT}


@pytest.mark.parametrize("pruning", PRUNINGS.values(), ids=PRUNINGS.keys())
def test_a_step_is_the_three_losses_taken_plainly(
    shop: Any, pruning: dict[str, Any] | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(training.albef.step, "hard_negatives", first_unlike)
    given = Step(shop, pruning and dict(pruning), masked_share=0.6)
    expected = plainly(given)
    sum(expected.values(), torch.zeros(())).backward()
    gradients = {n: p.grad.clone() for n, p in given.named().items() if p.grad is not None}
    outcome, found = given.take()
    assert outcome.parts.keys() == {"itc", "itm", "mlm"}
    for name, value in {**outcome.parts, "penalty": outcome.penalty}.items():
        assert value == pytest.approx(expected[name].item(), rel=1e-5), name
    assert outcome.loss == pytest.approx(sum(value.item() for value in expected.values()), rel=1e-5)
    assert_same(found, gradients, 2e-6)
    norm = math.sqrt(sum(float(gradient.square().sum()) for gradient in gradients.values()))
    assert outcome.gradient_norm == pytest.approx(norm, rel=1e-4)
    assert found["temp"] != 0
    assert (pruning is None) == (outcome.kept is None)
    if pruning is not None:
        assert 0.3 < outcome.kept < 0.95
        prunes = [float("-inf") != base for base in given.encoder.pruning.config.base]
        assert (found["delta"] != 0).tolist() == prunes


@pytest.mark.parametrize("pruning", [None, {}], ids=["whole", "pruned"])
def test_but_for_negatives_a_step_is_the_same_in_chunks(
    shop: Any, pruning: dict[str, Any] | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of negatives there are others, as they are looked for within a chunk."""
    monkeypatch.setattr(training.albef.step, "hard_negatives", no_negatives)
    whole, expected = Step(shop, pruning and dict(pruning), masked_share=0.4).take()
    for chunk in (1, 3, 7, 100):
        outcome, found = Step(shop, pruning and {}, masked_share=0.4, chunk=chunk).take()
        assert_same(found, expected, 2e-6)
        assert outcome.parts == pytest.approx(whole.parts, rel=1e-5)
        assert outcome.penalty == pytest.approx(whole.penalty, rel=1e-5)
        assert outcome.loss == pytest.approx(whole.loss, rel=1e-5)


@pytest.mark.parametrize("chunk", [None, 1, 3])
def test_contrast_and_guesses_hang_on_no_chunk(shop: Any, chunk: int | None) -> None:
    whole, _ = Step(shop).take()
    outcome, _ = Step(shop, chunk=chunk).take()
    for name in ("itc", "mlm"):
        assert outcome.parts[name] == pytest.approx(whole.parts[name], rel=1e-5)
    if chunk == 1:  # nobody to be taken for: right pairs alone
        assert outcome.parts["itm"] != pytest.approx(whole.parts["itm"], rel=1e-3)


def test_negatives_are_of_other_products_and_of_other_titles(
    shop: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    drawn = []

    def noting(scores: Tensor, alike: Tensor) -> tuple[Tensor, Tensor]:
        rows, others = hard_negatives(scores, alike)
        drawn.extend((ROWS[row], ROWS[other]) for row, other in zip(rows, others, strict=True))
        return rows, others

    monkeypatch.setattr(training.albef.step, "hard_negatives", noting)
    given = Step(shop)
    for step in range(12):
        given.take(step=step)
    pairs = shop.pairs
    assert len(drawn) == 12 * 2 * 7
    for row, other in drawn:
        assert pairs.titles[row] != pairs.titles[other]
        assert pairs.products[row] != pairs.products[other]
    assert len(set(drawn)) > 20


def test_negatives_grow_hard(shop: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """From any at the first step to those by their scores, over a share of all 12 steps."""
    found: list[Tensor] = []

    def noting(scores: Tensor, alike: Tensor) -> tuple[Tensor, Tensor]:
        found.append(scores.detach())
        return hard_negatives(scores, alike)

    monkeypatch.setattr(training.albef.step, "hard_negatives", noting)
    scores = {}
    for hardening in (0.0, 0.5):
        for step in (0, 3, 6, 11):
            found.clear()
            Step(shop, hardening=hardening).take(step=step)
            scores[hardening, step] = torch.stack(found)
    for step, share in ((0, 0.0), (3, 0.5), (6, 1.0), (11, 1.0)):
        torch.testing.assert_close(scores[0.5, step], share * scores[0.0, step])


def test_hard_negatives_are_mixed_after_a_tenth_of_the_steps(
    shop: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of other products than the query's alone: neither its title's nor its own."""
    found: list[tuple[Tensor, Tensor]] = []
    real = training.albef.step.mixed_scores

    def noting(queries: Tensor, keys: Tensor, negative: Tensor, *rest: Any) -> Tensor:
        found.append((keys, negative))
        return real(queries, keys, negative, *rest)

    monkeypatch.setattr(training.albef.step, "mixed_scores", noting)
    given = Step(shop, hard_mixing=True)
    plain, _ = Step(shop).take(step=1)
    unmixed, _ = given.take(step=1)  # of 12
    assert not found
    assert unmixed.parts == plain.parts
    mixed, _ = Step(shop, hard_mixing=True).take(step=2)
    assert len(found) == 2
    units, pairs = given.method._units, [*ROWS, 5, 0, 20, 21, 3, 14, 15, 16, -1, -1, -1, -1]
    for keys, negative in found:
        assert len(keys) == len(pairs)
        for i, row in enumerate(ROWS):
            alone = [p >= 0 and bool(units[p] != units[row]) for p in pairs]
            assert negative[i].tolist() == alone
    again, _ = Step(shop, hard_mixing=True).take(step=2)
    unlike, _ = Step(shop).take(step=2)
    assert again.parts == mixed.parts
    assert mixed.parts["itc"] > unlike.parts["itc"]
    assert (mixed.parts["itm"], mixed.parts["mlm"]) == (unlike.parts["itm"], unlike.parts["mlm"])


def test_a_step_fills_the_queue_with_what_the_slow_copy_saw(shop: Any) -> None:
    given = Step(shop, chunk=3)
    before = given.momentum.pairs.tolist()
    given.take()
    slow, ids = given.momentum.model, given.encoder.tokenizer(shop.pairs.titles)[ROWS]
    images = slow.encode_image(shop.pixels[ROWS])
    texts = slow.encode_text(ids, given.encoder.tokenizer.mask(ids))
    places = [8, 9, 10, 11, 0, 1, 2]  # of 12, on from the eighth
    assert given.momentum.pairs[places].tolist() == ROWS.tolist()
    torch.testing.assert_close(given.momentum.image_queue[places], images)
    torch.testing.assert_close(given.momentum.text_queue[places], texts)
    assert given.momentum.pairs[3:8].tolist() == before[3:8]
    assert int(given.momentum.place) == 3


def test_who_counts_in_the_queue(shop: Any) -> None:
    """Strangers are negatives, pairs of one title positives; pairs of one product and other
    titles are neither, nor is an empty place. The queue holds 5 0 20 21 3 14 15 16 - - - -."""
    rows = np.array([11, 8])  # 20 is of the title of 11, and 21 of the product of 8
    start = Step(shop, distillation=0.0)
    base, _ = start.take(rows)
    model, ids = start.encoder.model, start.encoder.tokenizer(shop.pairs.titles)[rows]
    image = model.encode_image(shop.pixels[rows]).detach()
    text = model.encode_text(ids, start.encoder.tokenizer.mask(ids)).detach()

    def with_(place: int, of: int, rows: Rows = rows) -> float:
        """The loss where an entry is the very key of the pair that is number `of`."""
        given = Step(shop, distillation=0.0)
        given.momentum.image_queue[place] = text[of]
        given.momentum.text_queue[place] = image[of]
        return given.take(rows)[0].parts["itc"]

    loss = base.parts["itc"]
    assert with_(2, 0) < loss - 0.1  # 20 is of the title of 11
    for stranger in (0, 5):
        assert with_(stranger, 0) > loss + 0.1
        assert with_(stranger, 1) > loss + 0.1
    for empty in (8, 11):
        assert with_(empty, 0) == with_(empty, 1) == loss
    assert with_(3, 0) > loss + 0.1  # 21 is a stranger to 11, and of the product of 8
    alone = np.array([8])
    loss = Step(shop, distillation=0.0).take(alone)[0].parts["itc"]
    assert with_(3, 1, alone) == loss
    assert with_(5, 1, alone) > loss + 0.1


def test_a_queue_of_0_leaves_the_batch(shop: Any) -> None:
    given = Step(shop, distillation=0.0)
    given.momentum = Momentum(given.encoder.model, 0, 0.0)
    given.method._momentum = given.momentum
    outcome, _ = given.take(np.array([11, 8, 2]))
    model, tokenizer = given.encoder.model, given.encoder.tokenizer
    ids = tokenizer(shop.pairs.titles)[[11, 8, 2]]
    with torch.no_grad():
        images = model.encode_image(shop.pixels[[11, 8, 2]])
        scores = images @ model.encode_text(ids, tokenizer.mask(ids)).T / model.temp
    right = torch.arange(3)
    loss = functional.cross_entropy(scores, right) + functional.cross_entropy(scores.T, right)
    assert outcome.parts["itc"] == pytest.approx(loss.item() / 2, rel=1e-5)


def test_the_share_of_soft_targets_rises_over_the_first_epoch(
    shop: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    shares = []
    real = training.albef.step.contrastive_loss

    def noting(scores: Tensor, slow: Tensor, to: Any, soft: float, mixed: None) -> Tensor:
        shares.append(soft)
        return real(scores, slow, to, soft, mixed)

    monkeypatch.setattr(training.albef.step, "contrastive_loss", noting)
    given = Step(shop, distillation=0.4)
    for step in (0, 3, 6, 9):
        given.take(step=step)
    assert shares[::2] == shares[1::2] == pytest.approx([0, 0.2, 0.4, 0.4])


def test_the_slow_copy_follows_the_masks_of_the_model(shop: Any) -> None:
    """Also where its own would be others: its keys are of the titles as the model reads them."""
    given = Step(shop, {}, momentum=0.999999)
    attention = given.momentum.model.text_encoder.bert.encoder.layer[0].attention
    with torch.no_grad():
        attention.self.query.bias += 3 * torch.randn(16, generator=torch.Generator().manual_seed(0))
    given.take()
    slow, pruning = given.momentum.model, given.encoder.pruning
    ids = given.encoder.tokenizer(shop.pairs.titles)[ROWS]
    mask = given.encoder.tokenizer.mask(ids)
    online = Reader(given.encoder.model, pruning).read(ids, mask, hard=True)
    followed = Reader(slow, pruning).read(ids, mask, hard=True, follow=online)
    own = Reader(slow, pruning).read(ids, mask, hard=True)
    assert not torch.equal(own.alive, online.alive)
    found = given.momentum.text_queue[[8, 9, 10, 11, 0, 1, 2]]
    torch.testing.assert_close(found, slow.text_vectors(followed.x))
    assert (found - slow.text_vectors(own.x)).abs().max() > 1e-3


def test_dropout_is_the_same_for_masks_that_are_followed_and_those_that_are_learned(
    shop: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The model reads each title twice; scores hang on its dropout."""
    alive: list[Tensor] = []

    class Noting(Reader):
        def read(self, *arguments: Any, **options: Any) -> Any:
            states = super().read(*arguments, **options)
            if options.get("follow") is None and options.get("exempt") is None:
                alive.append(states.alive.detach())
            return states

    monkeypatch.setattr(training.albef.step, "Reader", Noting)
    shop.dropout = 0.5
    Step(shop, {}, chunk=4).take()
    followed, learned = alive[:2], alive[2:]
    assert len(learned) == 2
    for one, other in zip(followed, learned, strict=True):
        assert torch.equal(one, other)
    assert not torch.equal(followed[0][:3], followed[1])


def test_cross_attentions_alone_leave_the_text_encoder_as_it_is(shop: Any) -> None:
    given = Step(shop, {"prune": "cross"})
    ids = given.encoder.tokenizer(shop.pairs.titles)
    mask = given.encoder.tokenizer.mask(ids)
    model, pruning = given.encoder.model, given.encoder.pruning
    reader = Reader(model, pruning)
    texts = reader.read(ids, mask)
    assert all((mask == 1).all() for _, mask in texts.trail)
    assert texts.masks == ()
    assert torch.equal(texts.x, Reader(model, None).read(ids, mask).x)
    assert not (reader.fuse(texts, model.visual_encoder(shop.pixels)).alive == 1).all()
    whole = Step(shop)
    assert given.take()[0].parts["itc"] == whole.take()[0].parts["itc"]


def test_hidden_words_are_not_pruned(shop: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    found: list[tuple[Tensor, Tensor]] = []

    class Noting(Reader):
        def read(self, *arguments: Any, **options: Any) -> Any:
            states = super().read(*arguments, **options)
            if options.get("exempt") is not None:
                found.append((states.alive, options["exempt"][:, : states.alive.shape[1]]))
            return states

    monkeypatch.setattr(training.albef.step, "Reader", Noting)
    Step(shop, {}, masked_share=0.5).take()
    [(alive, hidden)] = found
    assert (alive[hidden] == 1).all()
    assert (alive[~hidden] == 0).any()


def test_the_temperature_stays_within_its_bounds(shop: Any) -> None:
    given = Step(shop)
    temp = given.encoder.model.temp
    for value, kept in ((7.0, 0.5), (0.5, 0.5), (0.07, 0.07), (-1.0, 0.001)):
        with torch.no_grad():
            temp.fill_(value)
        given.method.clamp()
        assert temp.item() == pytest.approx(kept)
        assert given.method.logit_scale() == pytest.approx(1 / kept)


@pytest.mark.parametrize("chunk", [None, 2])
def test_no_gradient_where_the_loss_is_not_finite(shop: Any, chunk: int | None) -> None:
    given = Step(shop, {}, chunk=chunk)
    shop.pixels[[3, 11]] = torch.nan
    outcome, gradients = given.take()
    assert math.isnan(outcome.loss)
    assert math.isnan(outcome.gradient_norm)
    assert outcome.suspects.tolist() == [3, 11]
    assert gradients == {}


@pytest.mark.parametrize("pruning", [None, {}], ids=["whole", "pruned"])
def test_checkpointed_activations_change_nothing(shop: Any, pruning: dict[str, Any] | None) -> None:
    shop.dropout = 0.1
    whole, expected = Step(shop, pruning and {}).take()
    given = Step(shop, pruning and {})
    given.encoder.model.set_grad_checkpointing(True)
    outcome, found = given.take()
    assert outcome.parts == whole.parts
    assert_same(found, expected, 1e-6)


@pytest.mark.parametrize("pruning", [None, {}, SOFT], ids=["whole", "pruned", "soft"])
def test_bfloat16_gives_about_the_same(
    shop: Any, pruning: dict[str, Any] | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(training.albef.step, "hard_negatives", first_unlike)
    exact, expected = Step(shop, pruning and dict(pruning)).take()
    half, found = Step(shop, pruning and dict(pruning), precision="bf16", chunk=4).take()
    assert half.parts != exact.parts
    assert half.parts["itc"] == pytest.approx(exact.parts["itc"], abs=0.2)
    assert half.parts["mlm"] == pytest.approx(exact.parts["mlm"], abs=0.2)
    assert {gradient.dtype for gradient in found.values()} == {torch.float32}
    assert all(gradient.isfinite().all() for gradient in found.values())
    assert found.keys() == expected.keys()
    # What no mask hangs on: one near its threshold may turn over.
    name = "vision_proj.weight"
    cosine = functional.cosine_similarity(found[name].flatten(), expected[name].flatten(), dim=0)
    assert cosine > 0.97


def test_cosines_are_not_rounded_to_bfloat16(shop: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """At a low temperature what is lost between 0.996 and 1 is worth more than a nat."""
    found: list[Tensor] = []
    for name in ("contrastive_loss", "hard_negatives"):
        real = getattr(training.albef.step, name)

        def noting(scores: Tensor, *rest: Any, real: Any = real) -> Any:
            found.append(scores.detach())
            return real(scores, *rest)

        monkeypatch.setattr(training.albef.step, name, noting)
    Step(shop, precision="bf16").take()
    assert len(found) == 4
    for scores in found:
        assert scores.dtype == torch.float32
        finite = scores[scores != 0]
        assert (finite.bfloat16().float() == finite).float().mean() < 0.1


def test_what_is_read_of_titles_may_be_less(shop: Any) -> None:
    """As in experiments: a step on titles cut to their first word is that of such titles."""
    seen = []

    def first_word(ids: Tensor, rows: Rows, epoch: int) -> Tensor:
        seen.append((rows.tolist(), epoch))
        cut = ids.clone()
        cut[:, 2], cut[:, 3:] = 3, 0
        return cut

    given = Step(shop)
    given.method._shown = first_word
    cut, _ = given.take()
    assert seen == [(ROWS.tolist(), 1)]
    pairs = shop.pairs
    expected = Step(shop)
    expected.method._tokens = expected.encoder.tokenizer([t.split()[0] for t in pairs.titles])
    assert cut.parts == expected.take()[0].parts
    assert cut.parts != Step(shop).take()[0].parts
