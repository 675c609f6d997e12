"""What a loss itself costs: time and memory of value and gradient, beside InfoNCE's."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional
from torch.profiler import ProfilerActivity, profile

from training.losses import PairLoss, make_loss

DIM = 512


@dataclass(frozen=True)
class Cost:
    """Of a loss on batches of this size.

    Attributes:
        ratios: its CPU seconds over those of InfoNCE, turn by turn.
        memory: bytes that it allocates at most at a time.
    """

    loss: str
    batch: int
    ratios: tuple[float, ...]
    memory: int


def measure_costs(names: Sequence[str], batch: int, rounds: int = 9) -> list[Cost]:
    """The losses by turns, InfoNCE before each; every product has two pictures in the batch."""
    generator = torch.Generator().manual_seed(0)

    def vectors() -> Tensor:
        return functional.normalize(torch.randn(batch, DIM, generator=generator), dim=1)

    images, texts, teacher = vectors(), vectors(), vectors()
    baseline = make_loss("infonce", batch)
    return [
        Cost(
            name,
            batch,
            tuple(
                _seconds(loss, images, texts, teacher) / _seconds(baseline, images, texts, teacher)
                for _ in range(rounds)
            ),
            _memory(loss, images, texts, teacher),
        )
        for name in names
        for loss in [make_loss(name, batch)]
    ]


def _step(loss: PairLoss, images: Tensor, texts: Tensor, teacher: Tensor) -> None:
    images, texts = images.clone().requires_grad_(), texts.clone().requires_grad_()
    scale = torch.tensor(20.0, requires_grad=True)
    ids = torch.arange(len(images)) // 2
    loss(
        images,
        texts,
        scale,
        logit_bias=None if loss.initial_bias is None else torch.tensor(-10.0),
        image_pid=ids,
        text_pid=ids,
        sample_idx=torch.arange(len(images)),
        teacher_image=teacher if loss.needs_teacher else None,
        step=0,
    )["loss"].backward()


def _seconds(loss: PairLoss, images: Tensor, texts: Tensor, teacher: Tensor) -> float:
    started = time.process_time()
    _step(loss, images, texts, teacher)
    return time.process_time() - started


def _memory(loss: PairLoss, images: Tensor, texts: Tensor, teacher: Tensor) -> int:
    """The highest sum of what is allocated and not yet freed."""
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as events:
        _step(loss, images, texts, teacher)
    held = highest = 0
    for event in events.profiler.kineto_results.events():
        if event.name() == "[memory]":
            held += event.nbytes()
            highest = max(highest, held)
    return highest
