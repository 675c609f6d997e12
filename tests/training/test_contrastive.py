"""The loss against plain loops, closed forms and the properties it must have."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from training.losses.contrastive import multi_positive_info_nce


def unit(*shape: int, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return functional.normalize(
        torch.randn(*shape, generator=generator, dtype=torch.float64), dim=-1
    )


def by_loops(images: Tensor, texts: Tensor, scale: float, ik: list[int], tk: list[int]) -> float:
    def one_way(a: Tensor, b: Tensor, ak: list[int], bk: list[int]) -> float:
        rows = []
        for i in range(len(a)):
            logits = [scale * float(a[i] @ b[j]) for j in range(len(b))]
            log_sum = math.log(sum(math.exp(x) for x in logits))
            positives = [j for j in range(len(b)) if bk[j] == ak[i]]
            if positives:
                rows.append(sum(log_sum - logits[j] for j in positives) / len(positives))
        return sum(rows) / len(rows)

    return (one_way(images, texts, ik, tk) + one_way(texts, images, tk, ik)) / 2


@pytest.mark.parametrize(
    ("image_keys", "text_keys"),
    [([0, 1, 2, 3], [0, 1, 2, 3]), ([0, 0, 1, 2], [0, 1, 1, 2]), ([0, 1, 2, 9], [0, 1, 2, 8])],
)
def test_the_value_is_that_of_plain_loops(image_keys: list[int], text_keys: list[int]) -> None:
    images, texts = unit(4, 6), unit(4, 6, seed=1)
    loss = multi_positive_info_nce(
        images,
        texts,
        torch.tensor(7.0),
        image_keys=torch.tensor(image_keys),
        text_keys=torch.tensor(text_keys),
    )
    assert loss.item() == pytest.approx(
        by_loops(images, texts, 7.0, image_keys, text_keys), rel=1e-5
    )


def test_without_keys_it_is_clips_loss() -> None:
    images, texts = unit(5, 8), unit(5, 8, seed=1)
    logits = (10 * images @ texts.T).float()
    target = torch.arange(5)
    expected = (
        functional.cross_entropy(logits, target) + functional.cross_entropy(logits.T, target)
    ) / 2
    loss = multi_positive_info_nce(images, texts, torch.tensor(10.0))
    assert loss.item() == pytest.approx(expected.item(), rel=1e-6)


def test_orthogonal_pairs_give_the_closed_form() -> None:
    eye = torch.eye(4)
    loss = multi_positive_info_nce(eye, eye, torch.tensor(3.0))
    assert loss.item() == pytest.approx(math.log(1 + 3 * math.exp(-3)), rel=1e-6)


def test_order_does_not_matter() -> None:
    images, texts, keys = unit(6, 4), unit(6, 4, seed=1), torch.tensor([0, 1, 1, 2, 3, 3])
    order = torch.tensor([3, 0, 5, 1, 4, 2])
    scale = torch.tensor(5.0)
    a = multi_positive_info_nce(images, texts, scale, image_keys=keys, text_keys=keys)
    b = multi_positive_info_nce(
        images[order], texts[order], scale, image_keys=keys[order], text_keys=keys[order]
    )
    assert a.item() == pytest.approx(b.item(), rel=1e-6)


def test_bfloat16_embeddings_are_scored_in_float32() -> None:
    images, texts = unit(4, 6).bfloat16(), unit(4, 6, seed=1).bfloat16()
    loss = multi_positive_info_nce(images, texts, torch.tensor(20.0).bfloat16())
    exact = multi_positive_info_nce(images.float(), texts.float(), torch.tensor(20.0))
    assert loss.dtype == torch.float32
    assert loss.item() == exact.item()


def test_the_gradient_brings_positives_together() -> None:
    images = unit(4, 6).float().requires_grad_()
    texts, keys = unit(4, 6, seed=1).float(), torch.tensor([0, 0, 1, 2])
    scale = torch.tensor(5.0)
    before = multi_positive_info_nce(images, texts, scale, image_keys=keys, text_keys=keys)
    before.backward()
    assert images.grad is not None
    moved = functional.normalize(images.detach() - 0.1 * images.grad, dim=-1)
    after = multi_positive_info_nce(moved, texts, scale, image_keys=keys, text_keys=keys)
    assert after.item() < before.item()
