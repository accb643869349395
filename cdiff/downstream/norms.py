"""Batch norm over all workers of a training: as one process would have normalised the whole batch, on CPUs as well."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn
from torch.distributed.nn.functional import all_reduce
from torch.nn.modules.batchnorm import _BatchNorm

from cdiff.workers import Workers


class _SharedNorm(_BatchNorm):
    """torch's own SyncBatchNorm works on GPUs alone."""

    workers: Workers

    def _check_input_dim(self, input: torch.Tensor) -> None:
        pass  # whatever the layer took that this one stands for

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        if not self.training:
            return super().forward(input)
        x = input.float()
        dims = [0, *range(2, x.dim())]
        count = x.new_tensor(float(x.numel() // x.shape[1])).view(1)
        told = all_reduce(torch.cat([x.sum(dims), x.square().sum(dims), count]), group=self.workers.group)
        total, squares, number = told.split([x.shape[1], x.shape[1], 1])
        mean = total / number
        variance = (squares / number - mean.square()).clamp_min(0)
        if self.track_running_stats and self.running_mean is not None and self.running_var is not None:
            share = 0.1 if self.momentum is None else self.momentum
            with torch.no_grad():
                self.running_mean.lerp_(mean.detach(), share)
                self.running_var.lerp_(variance.detach() * number.detach() / (number.detach() - 1), share)
        shape = [1, -1, *[1] * (x.dim() - 2)]
        out = (x - mean.view(shape)) * (variance + self.eps).rsqrt().view(shape)
        if self.affine:
            out = out * self.weight.view(shape) + self.bias.view(shape)
        return out.to(input.dtype)


@contextmanager
def shared_norms(model: nn.Module, workers: Workers) -> Iterator[None]:
    """Meanwhile the batch norms of a model know the batches of all workers. Parameters and statistics stay theirs."""
    kinds = {}
    if workers.count > 1:
        for module in model.modules():
            if isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d | nn.BatchNorm3d):
                kinds[module] = type(module)
                module.__class__ = _SharedNorm  # type: ignore[assignment]  # the same tensors under another forward pass
                module.workers = workers  # type: ignore[assignment]
    try:
        yield
    finally:
        for module, kind in kinds.items():
            module.__class__ = kind
            del module.workers
