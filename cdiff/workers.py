"""Processes that train one model together: each computes a part of every batch, and gradients are averaged."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.distributed.nn.functional import all_gather


@dataclass(frozen=True, slots=True)
class Part:
    """Every n-th item of a batch, from one on: what one of n workers computes of it."""

    number: int = 0
    of_parts: int = 1

    def cut(self, items: Any) -> Any:
        """The part's items of a sequence, array or tensor of the whole."""
        return items[self.number :: self.of_parts]


WHOLE = Part()


@dataclass(frozen=True)
class Workers:
    """What one process knows of the others.

    Args:
        own: which part of a batch it computes, of how many.
        group: of torch.distributed, that all of them have joined; None for all of its processes.
    """

    own: Part = WHOLE
    group: Any = None

    @property
    def count(self) -> int:
        return self.own.of_parts

    @property
    def first(self) -> bool:
        """It writes and tells; the others only compute."""
        return self.own.number == 0

    def sum(self, value: torch.Tensor) -> torch.Tensor:
        """Over all workers, without gradients."""
        if self.count == 1:
            return value
        out = value.detach().clone()
        torch.distributed.all_reduce(out, group=self.group)
        return out

    def mean(self, value: float, device: torch.device) -> float:
        """Of a number over all workers."""
        return value if self.count == 1 else self.sum(torch.tensor(value, device=device)).item() / self.count

    def gathered(self, rows: torch.Tensor) -> torch.Tensor:
        """Rows of all workers in the batch's own order; gradients find their way back."""
        if self.count == 1:
            return rows
        return torch.stack(all_gather(rows.contiguous(), group=self.group), dim=1).flatten(0, 1)

    def average_gradients(self, parameters: Iterable[nn.Parameter]) -> None:
        """Of parameters that every worker has gradients of."""
        slopes = [p.grad for p in parameters if p.grad is not None] if self.count > 1 else []
        if slopes:
            flat = torch._utils._flatten_dense_tensors(slopes)  # type: ignore[attr-defined]
            torch.distributed.all_reduce(flat, group=self.group)
            means = torch._utils._unflatten_dense_tensors(flat / self.count, slopes)  # type: ignore[attr-defined]
            torch._foreach_copy_(slopes, list(means))

    def together(self, module: nn.Module, unused: bool = False) -> nn.Module:
        """A module whose backward passes average gradients as they go.

        Args:
            unused: some parameters have no part in the loss.
        """
        if self.count == 1:
            return module
        return nn.parallel.DistributedDataParallel(
            module, broadcast_buffers=False, find_unused_parameters=unused, process_group=self.group
        )


ALONE = Workers()


def usable(batch: int, workers: int) -> int:
    """How many of so many workers a batch can be cut among evenly."""
    return next(count for count in range(workers, 0, -1) if batch % count == 0)
