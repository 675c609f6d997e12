"""InfoNCE against plain loops, open_clip's loss and closed forms."""

from __future__ import annotations

import math
from typing import Literal

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from indexing.errors import TrainingError
from indexing.models.torchvision_repair import import_torchvision
from training.losses.infonce import InfoNCE

Positives = Literal["out", "in"]
Grid = list[list[float]]


def unit(*shape: int, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return functional.normalize(
        torch.randn(*shape, generator=generator, dtype=torch.float64), dim=-1
    )


def transposed(grid: Grid) -> Grid:
    return [list(column) for column in zip(*grid, strict=True)]


def one_way(logits: Grid, quality: Grid, counted: Grid, alive: Grid, positives: str) -> float:
    """The weighted mean over the rows; `quality` is the weight of each positive pair."""
    total, weights = 0.0, 0.0
    for row, good, counts, live in zip(logits, quality, counted, alive, strict=True):
        if not sum(counts) or not sum(good):
            continue
        denominator = sum(math.exp(x) for x, lives in zip(row, live, strict=True) if lives)
        share = [g / sum(good) for g in good]
        p = [math.exp(x) / denominator for x in row]
        if positives == "out":
            cost = sum(-s * math.log(q) for s, q in zip(share, p, strict=True) if s)
        else:
            cost = -math.log(sum(s * q for s, q in zip(share, p, strict=True)))
        weight = sum(good) / sum(counts)
        total, weights = total + weight * cost, weights + weight
    return total / weights


def by_loops(
    images: Tensor,
    texts: Tensor,
    scale: float,
    image_pid: list[int],
    text_pid: list[int],
    weight: list[float],
    ignore: list[list[bool]],
    positives: str,
) -> float:
    rows, columns = range(len(images)), range(len(texts))
    logits = [[scale * float(images[i] @ texts[j]) for j in columns] for i in rows]
    alive = [[float(not ignore[i][j]) for j in columns] for i in rows]
    counted = [[alive[i][j] * (image_pid[i] == text_pid[j]) for j in columns] for i in rows]
    quality = [[weight[i] * counted[i][j] for j in columns] for i in rows]
    grids = (logits, quality, counted, alive)
    return (
        one_way(*grids, positives) + one_way(*(transposed(grid) for grid in grids), positives)
    ) / 2


@pytest.mark.parametrize("positives", ["out", "in"])
@pytest.mark.parametrize(
    ("image_pid", "text_pid"),
    [
        ([0, 1, 2, 3], [0, 1, 2, 3]),
        ([0, 0, 1, 2], [0, 1, 1, 2]),
        ([0, 1, 2, 9], [0, 1, 2, 8]),  # one of each side has no positive
        ([0, 0, 1, 2, 2, 2], [2, 0, 1]),
        ([1], [1, 1, 0]),
    ],
)
@pytest.mark.parametrize("kind", ["plain", "weighted", "ignoring", "both"])
def test_the_value_is_that_of_plain_loops(
    positives: Positives, image_pid: list[int], text_pid: list[int], kind: str
) -> None:
    n, m = len(image_pid), len(text_pid)
    images, texts = unit(n, 6), unit(m, 6, seed=1)
    generator = torch.Generator().manual_seed(2)
    weight = ignore = None
    if kind in ("weighted", "both"):
        weight = torch.rand(n, generator=generator, dtype=torch.float64)
        weight[1:2] = 0
    if kind in ("ignoring", "both"):
        ignore = torch.rand(n, m, generator=generator) < 0.25
        ignore[0, text_pid.index(image_pid[0])] = False  # one positive pair at least is left
    loss = InfoNCE(positives)(
        images,
        texts,
        torch.tensor(7.0),
        image_pid=torch.tensor(image_pid),
        text_pid=torch.tensor(text_pid),
        weight=weight,
        ignore=ignore,
    )["loss"]
    expected = by_loops(
        images,
        texts,
        7.0,
        image_pid,
        text_pid,
        [1.0] * n if weight is None else weight.tolist(),
        [[False] * m] * n if ignore is None else ignore.tolist(),
        positives,
    )
    assert loss.item() == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("positives", ["out", "in"])
def test_one_to_one_it_is_open_clips_loss_and_gradient(positives: Positives) -> None:
    import_torchvision()
    from open_clip.loss import ClipLoss

    found, expected = [], []
    for results, loss in ((found, InfoNCE(positives)), (expected, ClipLoss())):
        images, texts = unit(9, 8).requires_grad_(), unit(9, 8, seed=1).requires_grad_()
        scale = torch.tensor(12.0, dtype=torch.float64, requires_grad=True)
        value = loss(images, texts, scale)
        value = value["loss"] if isinstance(value, dict) else value
        value.backward()
        results += [value.detach(), images.grad, texts.grad, scale.grad]
    for a, b in zip(found, expected, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-14)


def test_orthogonal_pairs_give_the_closed_form() -> None:
    eye = torch.eye(4)
    loss = InfoNCE()(eye, eye, torch.tensor(3.0))["loss"]
    assert loss.item() == pytest.approx(math.log(1 + 3 * math.exp(-3)), rel=1e-6)


def test_two_pictures_of_a_title_give_the_closed_forms() -> None:
    """One picture lies on the title, the other across it; the other pair is far away."""
    images = torch.tensor([[1.0, 0, 0, 0], [0, 1, 0, 0], [0, 0, 1, 0]], dtype=torch.float64)
    texts = images[[0, 2]]
    pids = {"image_pid": torch.tensor([0, 0, 1]), "text_pid": torch.tensor([0, 1])}
    scale = torch.tensor(4.0)
    sum_0, sum_1 = math.exp(4) + 2, 2 + math.exp(4)  # over pictures, for either title
    p_easy, p_hard = math.exp(4) / sum_0, 1 / sum_0
    over_titles = (2 * math.log(1 + math.exp(-4)) + math.log(2)) / 3
    last = -math.log(math.exp(4) / sum_1)
    costs = {
        "out": -(math.log(p_easy) + math.log(p_hard)) / 2,
        "in": -math.log((p_easy + p_hard) / 2),
    }
    for positives, cost in costs.items():
        loss = InfoNCE(positives)(images, texts, scale, **pids)["loss"]  # type: ignore[arg-type]
        assert loss.item() == pytest.approx((over_titles + (cost + last) / 2) / 2, rel=1e-12)


def test_in_is_at_most_out_and_leaves_the_hard_picture_alone() -> None:
    images, texts = unit(8, 6), unit(5, 6, seed=1)
    pids = {
        "image_pid": torch.tensor([0, 0, 0, 1, 1, 2, 3, 4]),
        "text_pid": torch.arange(5),
    }
    outer, inner = (
        InfoNCE(kind)(images, texts, torch.tensor(9.0), **pids) for kind in ("out", "in")
    )
    assert inner["loss"].item() < outer["loss"].item()  # Jensen
    pulls = {}
    for kind in ("out", "in"):
        # The titles are a basis: what pulls on picture 1 is its gradient along title 0.
        pictures = torch.tensor([[0.9, 0.0], [0.1, 0.0], [0.0, 0.9]], dtype=torch.float64)
        pictures.requires_grad_()
        loss = InfoNCE(kind)(  # type: ignore[arg-type]
            pictures,
            torch.eye(2, dtype=torch.float64),
            torch.tensor(9.0),
            image_pid=torch.tensor([0, 0, 1]),
            text_pid=torch.tensor([0, 1]),
        )["loss"]
        loss.backward()
        assert pictures.grad is not None
        pulls[kind] = -pictures.grad[1, 0].item()
    assert pulls["out"] > 2 * pulls["in"]


@pytest.mark.parametrize("positives", ["out", "in"])
def test_only_the_ratios_of_weights_count(positives: Positives) -> None:
    images, texts, pids = unit(6, 4), unit(6, 4, seed=1), torch.tensor([0, 1, 1, 2, 3, 3])
    loss, scale = InfoNCE(positives), torch.tensor(5.0)

    def value(weight: Tensor | None) -> float:
        given = loss(images, texts, scale, image_pid=pids, text_pid=pids, weight=weight)
        return float(given["loss"])

    assert value(torch.full((6,), 0.3)) == pytest.approx(value(None), rel=1e-6)
    weight = torch.tensor([1.0, 0.5, 0.0, 2.0, 1.0, 1.0], dtype=torch.float64)
    assert value(4 * weight) == pytest.approx(value(weight), rel=1e-12)
    assert value(weight) != pytest.approx(value(None), rel=1e-3)


def test_a_pair_of_its_own_with_no_weight_costs_nothing() -> None:
    images, texts = unit(3, 4), unit(3, 4, seed=1)
    costs = torch.stack([-(6 * images @ texts.T).log_softmax(d).diagonal() for d in (0, 1)]).mean(0)
    weight = torch.tensor([1.0, 0.0, 3.0], dtype=torch.float64)
    loss = InfoNCE()(images, texts, torch.tensor(6.0), weight=weight)["loss"]
    assert loss.item() == pytest.approx(((costs[0] + 3 * costs[2]) / 4).item(), rel=1e-12)


@pytest.mark.parametrize(
    "batch",
    [
        {"image_pid": torch.tensor([0, 1]), "text_pid": torch.tensor([2, 3])},
        {"weight": torch.zeros(2)},
        {"ignore": torch.eye(2, dtype=torch.bool)},
    ],
)
def test_a_batch_without_positives_is_an_error(batch: dict[str, Tensor]) -> None:
    with pytest.raises(TrainingError, match="no picture of the batch has its title in it"):
        InfoNCE()(unit(2, 4), unit(2, 4), torch.tensor(5.0), **batch)


def test_a_bias_is_refused_as_it_would_cancel_out() -> None:
    with pytest.raises(TrainingError, match="InfoNCE has no use for logit_bias"):
        InfoNCE()(unit(2, 4), unit(2, 4), torch.tensor(5.0), logit_bias=torch.tensor(1.0))


def test_unknown_positives_are_an_error() -> None:
    with pytest.raises(TrainingError, match="positives 'mean': must be 'out' or 'in'"):
        InfoNCE("mean")  # type: ignore[arg-type]
