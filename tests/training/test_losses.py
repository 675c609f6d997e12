"""What every loss must have, and what none may pass over in silence."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from indexing.errors import TrainingError
from training.losses import LOSSES, PairLoss, make_loss
from training.losses.contrastive_gap import ContrastiveGap
from training.losses.global_contrast import SogCLR
from training.losses.infonce import InfoNCE
from training.losses.mixing import MoCHi
from training.losses.multi_similarity import MultiSimilarity
from training.losses.multi_view import MVDHEL, MVInfoNCE

MAKERS: dict[str, Callable[[], PairLoss]] = {
    **{name: partial(make, 64) for name, make in LOSSES.items()},
    "infonce in": lambda: InfoNCE("in"),
}
# Their gradient is not that of their value, by design.
SURROGATES = (SogCLR, MoCHi)
# They look at pairs of pictures, too, so that what a picture has to do with a title is not all.
AMONG_PICTURES = (ContrastiveGap, MultiSimilarity, MVDHEL, MVInfoNCE)
PIDS = torch.tensor([0, 1, 1, 2, 3, 3])
TITLE_PIDS = torch.tensor([3, 0, 1, 1])
IGNORE = torch.zeros(6, 4, dtype=torch.bool)
IGNORE[0, 2] = IGNORE[1, 2] = IGNORE[4, 1] = True  # the second one is a positive
WEIGHT = torch.tensor([1.0, 0.5, 2.0, 0.3, 0.7, 0.0])
BATCH = {"image_pid": PIDS, "text_pid": TITLE_PIDS, "weight": WEIGHT, "ignore": IGNORE}


def batch_for(loss: PairLoss) -> dict[str, Tensor]:
    """BATCH, as far as the loss takes it."""
    return {k: v for k, v in BATCH.items() if k != "weight" or "weight" in loss.uses}


@pytest.fixture(params=MAKERS)
def loss(request: pytest.FixtureRequest) -> PairLoss:
    return MAKERS[request.param]()


def unit(*shape: int, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return functional.normalize(
        torch.randn(*shape, generator=generator, dtype=torch.float64), dim=-1
    )


def value(loss: PairLoss, images: Tensor, texts: Tensor, scale: float = 5.0, **rest: Any) -> Tensor:
    if loss.initial_bias is not None:
        rest = {"logit_bias": torch.tensor(-2.0, dtype=torch.float64), **rest}
    if loss.needs_teacher:
        rest = {"teacher_image": unit(len(images), 3, seed=7), **rest}
    return loss(images, texts, torch.tensor(scale, dtype=torch.float64), **rest)["loss"]


def test_the_gradient_is_that_of_the_value(loss: PairLoss) -> None:
    if isinstance(loss, SURROGATES):
        pytest.skip("its gradient is not that of its value")
    images, texts = unit(6, 5).requires_grad_(), unit(4, 5, seed=1).requires_grad_()
    scale = torch.tensor(4.0, dtype=torch.float64, requires_grad=True)
    inputs = [images, texts, scale.detach() if loss.fixed_scale else scale]
    if loss.initial_bias is not None:
        inputs.append(torch.tensor(-1.0, dtype=torch.float64, requires_grad=True))

    def run(images: Tensor, texts: Tensor, scale: Tensor, bias: Tensor | None = None) -> Tensor:
        teacher = {"teacher_image": unit(6, 3, seed=7)} if loss.needs_teacher else {}
        result: Tensor = loss(images, texts, scale, logit_bias=bias, **batch_for(loss), **teacher)[
            "loss"
        ]
        return result

    assert torch.autograd.gradcheck(run, inputs)


def test_order_does_not_matter(loss: PairLoss) -> None:
    if isinstance(loss, MoCHi):
        pytest.skip("what is mixed is drawn for each row")
    images, texts = unit(6, 5), unit(4, 5, seed=1)
    a, b = torch.tensor([3, 0, 5, 1, 4, 2]), torch.tensor([2, 3, 0, 1])
    shuffled = {
        "image_pid": PIDS[a],
        "text_pid": TITLE_PIDS[b],
        "weight": WEIGHT[a],
        "ignore": IGNORE[a][:, b],
    }
    shuffled = {k: v for k, v in shuffled.items() if k in batch_for(loss)}
    if loss.needs_teacher:
        shuffled["teacher_image"] = unit(6, 3, seed=7)[a]
    expected = value(loss, images, texts, **batch_for(loss)).item()
    assert value(loss, images[a], texts[b], **shuffled).item() == pytest.approx(expected, rel=1e-12)


def test_aligned_pairs_cost_less_than_random_ones(loss: PairLoss) -> None:
    images = unit(16, 32)
    aligned = value(loss, images, images).item()
    assert aligned < value(loss, images, unit(16, 32, seed=1)).item()
    assert aligned < value(loss, images, images.roll(1, 0)).item()


def test_one_positive_each_is_the_loss_without_product_ids(loss: PairLoss) -> None:
    images, texts, pids = unit(5, 6), unit(5, 6, seed=1), torch.tensor([7, 3, 9, 1, 4])
    given = value(loss, images, texts, image_pid=pids, text_pid=pids)
    assert given.item() == pytest.approx(value(loss, images, texts).item(), rel=1e-12)


def test_an_ignored_pair_gets_no_gradient_and_the_others_do(loss: PairLoss) -> None:
    """The titles are an orthonormal basis, so the pictures' gradient is that of the cosines."""
    if isinstance(loss, (*AMONG_PICTURES, MoCHi)):
        pytest.skip("not of the cosines between pictures and titles alone")
    images = unit(6, 4).requires_grad_()
    batch = {k: v for k, v in BATCH.items() if k != "weight"}
    value(loss, images, torch.eye(4, dtype=torch.float64), **batch).backward()
    assert images.grad is not None
    assert (images.grad[IGNORE] == 0).all()
    counted = ~IGNORE
    if isinstance(loss, SogCLR):  # rows and columns without a positive, or a negative, say nothing
        positive = (PIDS[:, None] == TITLE_PIDS) & ~IGNORE
        counted &= positive.any(1, keepdim=True) | positive.any(0)
    assert (images.grad[counted] != 0).all()


def test_an_ignored_pair_has_no_say_in_the_value(loss: PairLoss) -> None:
    if isinstance(loss, (*AMONG_PICTURES, MoCHi)):
        pytest.skip("not of the cosines between pictures and titles alone")
    images, basis = unit(6, 4), torch.eye(4, dtype=torch.float64)
    moved = images + torch.where(IGNORE, 3.0, 0.0)
    batch = batch_for(loss)
    expected = value(loss, images, basis, **batch).item()
    assert value(loss, moved, basis, **batch).item() == expected
    without = {**batch, "ignore": None}
    assert value(loss, moved, basis, **without).item() != pytest.approx(expected, rel=1e-3)


@pytest.mark.filterwarnings("ignore:Anomaly Detection")
def test_a_picture_whose_pairs_are_all_ignored_gets_no_gradient(loss: PairLoss) -> None:
    images, texts = unit(4, 5).requires_grad_(), unit(4, 5, seed=1).requires_grad_()
    ignore = torch.zeros(4, 4, dtype=torch.bool)
    ignore[1] = ignore[:, 2] = True
    with torch.autograd.detect_anomaly(check_nan=True):
        value(loss, images, texts, ignore=ignore).backward()
    assert images.grad is not None
    assert texts.grad is not None
    assert not images.grad[1].any()
    assert not texts.grad[2].any()
    assert images.grad[0].isfinite().all()
    assert images.grad[0].any()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_computed_in_float32(loss: PairLoss, dtype: torch.dtype) -> None:
    images, texts = unit(8, 16).to(dtype).requires_grad_(), unit(8, 16, seed=1).to(dtype)
    expected = value(loss, images.float(), texts.float(), 30.0)
    found = value(loss, images, texts, 30.0)
    assert found.dtype == expected.dtype == torch.float32
    assert found.item() == expected.item()
    found.backward()
    assert images.grad is not None
    assert images.grad.dtype == dtype


def test_autocast_does_not_reach_into_a_loss(loss: PairLoss) -> None:
    images, texts = unit(8, 16).float(), unit(8, 16, seed=1).float()
    expected = value(loss, images, texts, 30.0).item()
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.mm(images, texts.T).dtype == torch.bfloat16
        assert value(loss, images, texts, 30.0).item() == expected


def test_float64_stays(loss: PairLoss) -> None:
    assert value(loss, unit(4, 5), unit(4, 5, seed=1)).dtype == torch.float64


def test_where_a_batch_stands_is_no_request(loss: PairLoss) -> None:
    images, texts = unit(4, 5), unit(4, 5, seed=1)
    plain = value(loss, images, texts, step=3).item()
    placed = value(loss, images, texts, sample_idx=torch.arange(4), step=3).item()
    assert placed == pytest.approx(
        plain, rel=1e-6
    )  # the first of each row, for those with a memory


@pytest.mark.parametrize("name", ["teacher_image", "teacher_text", "queue", "wieght"])
def test_what_a_loss_has_no_use_for_is_refused(loss: PairLoss, name: str) -> None:
    images = unit(4, 5)
    if name in loss.uses:
        value(loss, images, images, **{name: images})
        return
    with pytest.raises(TrainingError, match=f"has no use for {name}: leave it out"):
        value(loss, images, images, **{name: images})
    value(loss, images, images, **{name: None})


@pytest.mark.parametrize(
    ("images", "texts", "batch", "message"),
    [
        (3, 2, {}, "3 pictures and 2 titles are not one to one"),
        (0, 2, {}, "0 pictures and 2 titles: a batch needs both"),
        (3, 3, {"image_pid": PIDS[:3]}, "image_pid and text_pid mean nothing alone"),
        (3, 3, {"text_pid": PIDS[:3]}, "image_pid and text_pid mean nothing alone"),
        (
            3,
            2,
            {"image_pid": PIDS[:2], "text_pid": PIDS[:2]},
            r"image_pid is \[2\]: must be \[3\]",
        ),
        (3, 2, {"image_pid": PIDS[:3], "text_pid": PIDS}, r"text_pid is \[6\]: must be \[2\]"),
        (3, 3, {"weight": WEIGHT[:1]}, r"weight is \[1\]: must be \[3\]"),
        (2, 2, {"weight": torch.tensor([1.0, -0.5])}, "weight -0.5: must be at least 0"),
        (2, 2, {"weight": torch.tensor([1.0, torch.nan])}, "weight nan: must be at least 0"),
        (3, 3, {"ignore": IGNORE[0, :3]}, r"ignore is \[3\]: must be \[3, 3\]"),
        (2, 2, {"ignore": torch.eye(2)}, "ignore is torch.float32: must be torch.bool"),
    ],
)
def test_arguments_that_do_not_fit_are_named(
    loss: PairLoss, images: int, texts: int, batch: dict[str, Tensor], message: str
) -> None:
    if "weight" in batch and "weight" not in loss.uses:
        message = "has no use for weight"
    with pytest.raises(TrainingError, match=message):
        value(loss, unit(images, 5), unit(texts, 5), **batch)


def test_losses_are_made_by_name() -> None:
    for name, make in LOSSES.items():
        assert type(make_loss(name, 5)) is type(make(5))
    with pytest.raises(TrainingError, match="'clip': choose one of infonce, siglip"):
        make_loss("clip", 5)
