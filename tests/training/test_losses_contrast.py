"""SimCSE's and ConVIRT's losses against plain loops, in both denominators and views."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from indexing.errors import TrainingError
from training.losses.convirt import ConVIRT
from training.losses.infonce import InfoNCE
from training.losses.simcse import SimCSE, contrast

SCALE = torch.tensor(10.0, dtype=torch.float64)
IDS = [[0, 1, 2, 3, 4], [0, 0, 1, 2, 1]]


def unit(count: int, seed: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return functional.normalize(
        torch.randn(count, 6, generator=generator, dtype=torch.float64), dim=-1
    )


def row(positive: float, negatives: list[float], include: bool) -> float:
    """One row, by the formula."""
    if not negatives:
        return 0.0
    terms = [math.exp(10 * s) for s in negatives] + include * [math.exp(10 * positive)]
    return -10 * positive + math.log(sum(terms))


@pytest.mark.parametrize("ids", IDS)
@pytest.mark.parametrize("include", [True, False])
@pytest.mark.parametrize("view", ["second", "first"])
def test_simcse_is_that_of_plain_loops(ids: list[int], include: bool, view: str) -> None:
    first, second = unit(5, 0), unit(5, 1)
    others = second if view == "second" else first
    expected = 0.0
    for i in range(5):
        negatives = [float(first[i] @ others[j]) for j in range(5) if ids[j] != ids[i]]
        expected += row(float(first[i] @ second[i]), negatives, include) / 5
    loss = SimCSE(include_positive=include, neg_view=view)  # type: ignore[arg-type]
    found = loss(first, second, SCALE, title_id=torch.tensor(ids))["loss"]
    assert float(found) == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize("ids", IDS)
@pytest.mark.parametrize("include", [True, False])
@pytest.mark.parametrize("alpha", [0.0, 0.75, 1.0])
@pytest.mark.parametrize("ignoring", [False, True])
def test_convirt_is_that_of_plain_loops(
    ids: list[int], include: bool, alpha: float, ignoring: bool
) -> None:
    pictures, titles = unit(5, 0), unit(5, 1)
    ignore = torch.rand(5, 5, generator=torch.Generator().manual_seed(2)) < 0.3
    expected = 0.0
    for i in range(5):
        positive = float(titles[i] @ pictures[i])
        to_pictures, to_titles = (
            [float(one[i] @ other[j]) for j in range(5) if ids[j] != ids[i] and not out[i, j]]
            for one, other, out in (
                (titles, pictures, ignore.T & ignoring),
                (pictures, titles, ignore & ignoring),
            )
        )
        expected += alpha * row(positive, to_pictures, include) / 5
        expected += (1 - alpha) * row(positive, to_titles, include) / 5
    found = ConVIRT(alpha=alpha, include_positive=include)(
        pictures,
        titles,
        SCALE,
        image_pid=torch.tensor(ids),
        text_pid=torch.tensor(ids),
        ignore=ignore if ignoring else None,
    )["loss"]
    assert float(found) == pytest.approx(expected, abs=1e-12)


def test_the_standard_forms_are_cross_entropies() -> None:
    one, two = unit(6, 0), unit(6, 1)
    target = torch.arange(6)
    simcse = SimCSE()(one, two, SCALE)["loss"]
    torch.testing.assert_close(simcse, functional.cross_entropy(10 * one @ two.T, target))
    # With equal weights on both directions it is CLIP's loss.
    both = ConVIRT(alpha=0.5)(one, two, SCALE)["loss"]
    torch.testing.assert_close(both, InfoNCE()(one, two, SCALE)["loss"])


def test_alpha_weighs_title_to_picture() -> None:
    pictures = unit(4, 0)
    titles = functional.normalize(pictures + 0.3 * unit(4, 1), dim=1)
    # Every title is nearest to picture 0, which is nearest to its own title: titles fail to
    # find their pictures, and pictures find theirs.
    scores = torch.tensor([[0.9, 0.8, 0.8, 0.8], [0.1, 0.2, 0.1, 0.1],
                           [0.1, 0.1, 0.2, 0.1], [0.1, 0.1, 0.1, 0.2]])  # fmt: skip
    negative = ~torch.eye(4, dtype=torch.bool)
    to_pictures = contrast(10 * scores.diagonal(), 10 * scores.T, negative, include_positive=True)
    to_titles = contrast(10 * scores.diagonal(), 10 * scores, negative, include_positive=True)
    assert to_pictures.mean() > to_titles.mean()
    only = [float(ConVIRT(alpha=a)(pictures, titles, SCALE)["loss"]) for a in (0, 0.25, 1)]
    assert only[1] == pytest.approx(0.75 * only[0] + 0.25 * only[2])


@pytest.mark.parametrize("include", [True, False])
def test_gradients_are_right(include: bool) -> None:
    one, two = unit(4, 0).requires_grad_(), unit(4, 1).requires_grad_()
    ids = torch.tensor([0, 1, 1, 2])
    for view in ("second", "first"):
        simcse = SimCSE(include_positive=include, neg_view=view)  # type: ignore[arg-type]
        assert torch.autograd.gradcheck(
            lambda a, b, own=simcse: own(a, b, SCALE, title_id=ids)["loss"], (one, two)
        )
    convirt = ConVIRT(include_positive=include)
    assert torch.autograd.gradcheck(
        lambda a, b: convirt(a, b, SCALE, image_pid=ids, text_pid=ids)["loss"], (one, two)
    )


def test_the_printed_form_goes_on_pulling_what_is_near() -> None:
    """Without the positive in the denominator its gradient has no factor 1 - p: DCL."""
    one = torch.eye(4, dtype=torch.float64)
    pulls = {}
    for include in (True, False):
        two = torch.eye(4, dtype=torch.float64, requires_grad=True)
        loss = ConVIRT(include_positive=include)(one, two, SCALE)["loss"]
        (gradient,) = torch.autograd.grad(loss, two)
        pulls[include] = -float(gradient.diagonal().sum())
        bound = -2 * 10 + math.log(3)
        value = float(loss.detach())
        assert (value < 0) is not include
        assert value >= bound
    assert pulls[False] == pytest.approx(10.0)  # k, whatever p is
    assert pulls[True] < 0.01


def test_rows_without_negatives_teach_nothing() -> None:
    one, two = unit(3, 0).requires_grad_(), unit(3, 1)
    same = torch.zeros(3, dtype=torch.int64)
    for include in (True, False):
        losses = [
            SimCSE(include_positive=include)(one, two, SCALE, title_id=same)["loss"],
            ConVIRT(include_positive=include)(one, two, SCALE, image_pid=same, text_pid=same)[
                "loss"
            ],
        ]
        for loss in losses:
            assert float(loss.detach()) == 0
            (gradient,) = torch.autograd.grad(loss, one)
            assert torch.equal(gradient, torch.zeros_like(one))


def test_titles_of_one_product_do_not_push_each_other_away() -> None:
    two = unit(4, 1)
    ids = torch.tensor([0, 0, 1, 2])
    first = unit(4, 0).requires_grad_()
    loss = ConVIRT(alpha=0.0)(first, two, SCALE, image_pid=ids, text_pid=ids)["loss"]
    (gradient,) = torch.autograd.grad(loss, first)
    other = two.clone()
    other[1] = unit(1, 9)[0]  # the loss of row 0 does not see row 1
    moved = ConVIRT(alpha=0.0)(first, other, SCALE, image_pid=ids, text_pid=ids)["loss"]
    (elsewhere,) = torch.autograd.grad(moved, first)
    torch.testing.assert_close(gradient[0], elsewhere[0])
    assert not torch.allclose(gradient[2], elsewhere[2])


def test_low_precision_is_computed_in_float32() -> None:
    one, two = unit(5, 0).float(), unit(5, 1).float()
    for loss in (SimCSE(), ConVIRT()):
        low = loss(one.bfloat16(), two.bfloat16(), SCALE)["loss"]
        assert low.dtype == torch.float32
        with torch.autocast("cpu", torch.bfloat16):
            whole = loss(one, two, SCALE)["loss"]
        torch.testing.assert_close(whole, loss(one, two, SCALE)["loss"])


@pytest.mark.parametrize(
    ("call", "said"),
    [
        (lambda: SimCSE(neg_view="third"), "neg_view 'third'"),  # type: ignore[arg-type]
        (lambda: ConVIRT(alpha=1.5), "alpha 1.5"),
        (lambda: SimCSE()(unit(3, 0), unit(4, 0), SCALE), "two of each title"),
        (
            lambda: SimCSE()(unit(3, 0), unit(3, 1), SCALE, title_id=torch.arange(2)),
            r"ids \[2\] for 3 rows",
        ),
        (lambda: ConVIRT()(unit(3, 0), unit(4, 0), SCALE), "not one to one"),
        (
            lambda: ConVIRT()(unit(3, 0), unit(3, 0), SCALE, weight=torch.ones(3)),
            "no use for weight",
        ),
        (
            lambda: ConVIRT()(unit(3, 0), unit(3, 0), SCALE, image_pid=torch.arange(3)),
            "mean nothing alone",
        ),
    ],
)
def test_what_makes_no_sense_is_refused(call: object, said: str) -> None:
    with pytest.raises(TrainingError, match=said):
        call()  # type: ignore[operator]
