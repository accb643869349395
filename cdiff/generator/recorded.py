"""A network's work on a card, recorded once and replayed: without that, the CPU's launches take longer than the card's arithmetic.

The sampler's batches have one size, so a few recordings serve a whole run. What is replayed are the very kernels that were recorded: results stay the
same to the last bit.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

import torch

Outputs = tuple[torch.Tensor, ...]


class Recorded:
    """A function of CUDA tensors as CUDA graphs, one for each set of shapes that it meets.

    Args:
        work: depends on its arguments and on weights that stay where they are, and does not ask the card for a value on the way. Weights are
            frozen: a cast of one that learns may be kept by autocast, and is gone when a recording is replayed.
    """

    def __init__(self, work: Callable[..., Outputs]) -> None:
        self._work = work
        self._lock = threading.Lock()
        self._known: dict[Any, tuple[torch.cuda.CUDAGraph, Outputs, Outputs]] = {}
        self._pool: Any = (
            None  # recordings share their memory: one is replayed at a time, and its results are copied out
        )

    @torch.inference_mode()
    def __call__(self, *given: torch.Tensor) -> Outputs:
        device = given[0].device.type
        autocast = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else None
        key = (autocast, *((part.shape, part.dtype) for part in given))
        with self._lock:
            if key not in self._known:
                self._known[key] = self._record(given)
            graph, inputs, outputs = self._known[key]
            for kept, new in zip(inputs, given, strict=True):
                kept.copy_(new)
            graph.replay()
            return tuple(part.clone() for part in outputs)

    def _record(self, given: Outputs) -> tuple[torch.cuda.CUDAGraph, Outputs, Outputs]:
        inputs = tuple(part.clone(memory_format=torch.contiguous_format) for part in given)
        self._work(
            *inputs
        )  # whoever compiles does it here: on another stream than the usual one it finds other graphs
        aside = torch.cuda.Stream()
        aside.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(aside):
            for _ in range(2):  # libraries choose their kernels and take their memory
                self._work(*inputs)
        torch.cuda.current_stream().wait_stream(aside)
        self._pool = self._pool or torch.cuda.graph_pool_handle()
        graph = torch.cuda.CUDAGraph()
        # other threads of a service may use the card meanwhile
        with torch.cuda.graph(graph, pool=self._pool, capture_error_mode="thread_local"):
            outputs = self._work(*inputs)
        return graph, inputs, outputs
