"""SigLIP's loss against plain loops and open_clip's, and what it holds in memory."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.autograd.graph import saved_tensors_hooks
from torch.nn import functional

from indexing.errors import TrainingError
from indexing.models.torchvision_repair import import_torchvision
from training.losses import batch, siglip
from training.losses.siglip import SigLIP

SCALE = torch.tensor(10.0, dtype=torch.float64)
BIAS = torch.tensor(-10.0, dtype=torch.float64)


def unit(*shape: int, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return functional.normalize(
        torch.randn(*shape, generator=generator, dtype=torch.float64), dim=-1
    )


@pytest.mark.parametrize(
    ("image_pid", "text_pid"),
    [([0, 1, 2, 3], [0, 1, 2, 3]), ([0, 0, 1, 2, 2], [2, 0, 1]), ([0, 1], [2, 3, 4])],
)
@pytest.mark.parametrize("kind", ["plain", "weighted", "ignoring", "both"])
def test_the_value_is_that_of_plain_loops(
    image_pid: list[int], text_pid: list[int], kind: str
) -> None:
    n, m = len(image_pid), len(text_pid)
    images, texts = unit(n, 6), unit(m, 6, seed=1)
    weight = torch.tensor([0.5, 0.0, 2.0, 1.0, 0.1])[:n] if kind in ("weighted", "both") else None
    ignore = None
    if kind in ("ignoring", "both"):
        ignore = torch.rand(n, m, generator=torch.Generator().manual_seed(2)) < 0.4
    loss = SigLIP()(
        images,
        texts,
        SCALE,
        logit_bias=BIAS / 5,
        image_pid=torch.tensor(image_pid),
        text_pid=torch.tensor(text_pid),
        weight=weight,
        ignore=ignore,
    )["loss"]
    expected = 0.0
    for i in range(n):
        for j in range(m):
            if ignore is not None and ignore[i, j]:
                continue
            z = 1 if image_pid[i] == text_pid[j] else -1
            cost = math.log1p(math.exp(-z * (10 * float(images[i] @ texts[j]) - 2)))
            expected += cost * (float(weight[i]) if weight is not None and z == 1 else 1)
    assert loss.item() == pytest.approx(expected / n, rel=1e-7 if weight is not None else 1e-12)


def run(loss: Any, n: int = 9, **rest: Any) -> list[Tensor]:
    images, texts = unit(n, 8).requires_grad_(), unit(n, 8, seed=1).requires_grad_()
    scale, bias = SCALE.clone().requires_grad_(), BIAS.clone().requires_grad_()
    value = loss(images, texts, scale, logit_bias=bias, **rest)
    value = value["loss"] if isinstance(value, dict) else value
    value.backward()
    assert images.grad is not None
    assert texts.grad is not None
    assert scale.grad is not None
    assert bias.grad is not None
    return [value.detach(), images.grad, texts.grad, scale.grad, bias.grad]


def test_one_to_one_it_is_open_clips_loss_and_gradient() -> None:
    import_torchvision()
    from open_clip.loss import SigLipLoss

    for found, expected in zip(run(SigLIP()), run(SigLipLoss()), strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("pairs", [1, 9, 20, 45, 81])
def test_a_few_pictures_at_a_time_give_the_same(
    pairs: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    given = {
        "image_pid": torch.tensor([0, 0, 1, 2, 3, 4, 4, 4, 5]),
        "text_pid": torch.tensor([0, 1, 2, 3, 4, 5, 6, 7, 0]),
        "weight": torch.linspace(0, 1, 9, dtype=torch.float64),
        "ignore": torch.rand(9, 9, generator=torch.Generator().manual_seed(0)) < 0.2,
    }
    whole = run(SigLIP(), **given)
    monkeypatch.setattr(siglip, "PAIRS_AT_ONCE", pairs)
    for found, expected in zip(run(SigLIP(), **given), whole, strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-14)


def test_no_more_pairs_are_scored_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    sizes = []

    def logits(*arguments: Tensor) -> Tensor:
        sizes.append(batch.logits(*arguments).numel())
        return batch.logits(*arguments)

    monkeypatch.setattr(siglip, "PAIRS_AT_ONCE", 20)
    monkeypatch.setattr(siglip, "logits", logits)
    run(SigLIP())
    assert sizes == [18, 18, 18, 18, 9, 9, 18, 18, 18, 18]  # once more for the gradient, last first


def test_what_is_kept_for_the_gradient_does_not_grow_with_the_square(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    n, width = 512, 4
    monkeypatch.setattr(siglip, "PAIRS_AT_ONCE", 16 * n)
    kept: dict[int, int] = {}

    def pack(tensor: Tensor) -> Tensor:
        kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    images = unit(n, width).float().requires_grad_()
    with saved_tensors_hooks(pack, lambda tensor: tensor):
        loss = SigLIP()(images, unit(n, width, seed=1).float(), SCALE, logit_bias=BIAS)["loss"]
    assert 0 < sum(kept.values()) < n * n * 4 / 8
    loss.backward()
    assert images.grad is not None
    assert images.grad.any()


def test_without_a_bias_it_says_what_to_do() -> None:
    with pytest.raises(TrainingError, match=r"SigLIP needs a logit_bias: .* starts at -10"):
        SigLIP()(unit(2, 4), unit(2, 4), SCALE)


def test_it_starts_with_the_papers_scale_and_bias() -> None:
    """With them a random batch costs about what its positives cost: 10 each (sec. 3.2)."""
    loss = SigLIP()
    assert (loss.initial_scale, loss.initial_bias) == (10, -10)
    images, texts = unit(64, 512), unit(64, 512, seed=1)
    value = loss(images, texts, SCALE, logit_bias=BIAS)["loss"].item()
    positives = 10 - 10 * (images * texts).sum(1).mean().item()
    assert value == pytest.approx(positives, abs=0.01)
