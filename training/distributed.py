"""Training on several devices: one process a device, each with a share of every batch.

No gradient flows between processes. Each has all embeddings of the batch, so each computes
the whole loss and its gradient on all of them; a process goes on with the gradient of its
own, and what arrives at the weights is added up over the processes. That is the gradient of
one process on the whole batch, whatever the loss, and a quarter of the traffic of gathering
with gradients; that the small matrix of scores is computed in each process costs nothing.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import timedelta

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, distributed, nn

# How long a process waits for the others; the first validates and writes meanwhile. torchrun
# ends the others at once where one fails.
PATIENCE = timedelta(hours=2)


class Ranks:
    """The processes that train together: those of torch.distributed, or this one alone."""

    def __init__(self, device: str) -> None:
        together = distributed.is_available() and distributed.is_initialized()
        self.rank = distributed.get_rank() if together else 0
        self.size = distributed.get_world_size() if together else 1
        self._device = device

    @property
    def first(self) -> bool:
        """Whether this process is the one that writes, shows progress and validates."""
        return self.rank == 0

    def share(self, rows: NDArray[np.int64]) -> NDArray[np.int64]:
        """The rows of a batch that this process loads; in rank order they are the batch."""
        return np.array_split(rows, self.size)[self.rank]

    def agree(self, count: int, stop: bool) -> tuple[list[int], bool]:
        """How many rows each process has, and whether any of them is to stop."""
        if self.size == 1:
            return [count], stop
        mine = torch.tensor([count, int(stop)], device=self._device)
        everyone = [torch.empty_like(mine) for _ in range(self.size)]
        distributed.all_gather(everyone, mine)
        counts, stops = torch.stack(everyone).T.tolist()
        return counts, any(stops)

    def gather(self, values: Tensor, counts: Sequence[int]) -> Tensor:
        """The rows of all processes, [sum(counts), ...], in rank order and without gradient."""
        if self.size == 1:
            return values.detach()
        padded = values.new_zeros((max(counts), *values.shape[1:]))
        padded[: len(values)] = values.detach()
        parts = [torch.empty_like(padded) for _ in counts]
        distributed.all_gather(parts, padded)
        return torch.cat([part[:count] for part, count in zip(parts, counts, strict=True)])

    def sum_gradients(self, parameters: Sequence[nn.Parameter]) -> None:
        """Adds up `.grad` over the processes; None counts as 0 where any has a gradient."""
        if self.size == 1:
            return
        there = torch.tensor([p.grad is not None for p in parameters], device=self._device).int()
        distributed.all_reduce(there, distributed.ReduceOp.MAX)
        used = [p for p, some in zip(parameters, there.tolist(), strict=True) if some]
        for parameter in used:
            if parameter.grad is None:
                parameter.grad = torch.zeros_like(parameter)
        gradients = [p.grad for p in used if p.grad is not None]
        flat = torch.cat([gradient.flatten() for gradient in gradients])
        distributed.all_reduce(flat)
        sizes = [gradient.numel() for gradient in gradients]
        for gradient, summed in zip(gradients, torch.split(flat, sizes), strict=True):
            gradient.copy_(summed.view(gradient.shape))

    def total(self, values: Sequence[float]) -> list[float]:
        """Each of these numbers, added up over the processes."""
        if self.size == 1:
            return list(values)
        sums = torch.tensor(values, dtype=torch.float64, device=self._device)
        distributed.all_reduce(sums)
        result: list[float] = sums.tolist()
        return result

    def from_first(self, values: Sequence[float]) -> list[float]:
        """What the first process has; the others wait for it and give as many numbers."""
        if self.size == 1:
            return list(values)
        shared = torch.tensor(values, dtype=torch.float64, device=self._device)
        distributed.broadcast(shared, src=0)
        result: list[float] = shared.tolist()
        return result

    def give_out(self, parameters: Sequence[nn.Parameter]) -> None:
        """Sets parameters to what the first process has."""
        if self.size == 1:
            return
        for parameter in parameters:
            distributed.broadcast(parameter.data, src=0)

    @contextmanager
    def first_alone(self) -> Iterator[None]:
        """Lets the first process through, and the others once it is done."""
        if not self.first:
            self.from_first([0.0])
        yield
        if self.first:
            self.from_first([0.0])


@contextmanager
def joined(device: str | None) -> Iterator[str | None]:
    """Joins the processes that torchrun started, if it did; yields the device to use.

    Args:
        device: what the user asked for; None: this process's own GPU, else the CPU.
    """
    if not {"RANK", "WORLD_SIZE", "MASTER_ADDR"} <= os.environ.keys():
        yield device
        return
    if device is None and torch.cuda.is_available():
        device = f"cuda:{int(os.environ.get('LOCAL_RANK', 0)) % torch.cuda.device_count()}"
    backend = "nccl" if device is not None and device.startswith("cuda") else "gloo"
    if backend == "nccl":
        torch.cuda.set_device(device)
    distributed.init_process_group(backend, timeout=PATIENCE)
    yield device
    # Only after success: with one process gone, parting would wait for it.
    distributed.destroy_process_group()
