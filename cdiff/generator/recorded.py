"""A network's work on a card, recorded once and replayed: without that, the CPU's launches take longer than the card's arithmetic.

The sampler's batches have two sizes, with guidance and without, so a few recordings serve a whole run. What is replayed are the very kernels that were
recorded: results stay the same to the last bit.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

import torch

Outputs = tuple[torch.Tensor, ...]
Work = Callable[..., Outputs]


class Recorded:
    """Recordings (CUDA graphs) of one function of CUDA tensors, one for each set of shapes that it meets.

    The function depends on its arguments and on weights that stay where they are, and does not ask the card for a value on the way. The weights are
    frozen: a cast of one that learns may be kept by autocast, and is gone when a recording is replayed.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._known: dict[Any, tuple[torch.cuda.CUDAGraph, Outputs, Outputs]] = {}
        # recordings share their memory: one is replayed at a time, and its results are copied out
        self._pool: Any = None

    @torch.inference_mode()
    def __call__(self, work: Work, *given: torch.Tensor) -> Outputs:
        """work(*given), replayed. It is passed each time, so that a recording keeps no network alive that nobody else needs."""
        device = given[0].device.type
        autocast = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else None
        key = (autocast, *((part.shape, part.dtype) for part in given))
        with self._lock:
            if key not in self._known:
                self._known[key] = self._record(work, given)
            graph, inputs, outputs = self._known[key]
            for kept, new in zip(inputs, given, strict=True):
                kept.copy_(new)
            graph.replay()
            return tuple(part.clone() for part in outputs)

    def forget(self, above: int = 0) -> None:
        """All of them, if one is of a larger batch than this: they share their memory."""
        with self._lock:
            if any(len(inputs[0]) > above for _, inputs, _ in self._known.values()):
                self._known.clear()
                self._pool = None
                torch.cuda.empty_cache()

    def _record(self, work: Work, given: Outputs) -> tuple[torch.cuda.CUDAGraph, Outputs, Outputs]:
        inputs = tuple(part.clone(memory_format=torch.contiguous_format) for part in given)
        # whoever compiles does it here: on another stream than the usual one it finds other graphs
        work(*inputs)
        aside = torch.cuda.Stream()
        aside.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(aside):
            # libraries choose their kernels and take their memory
            for _ in range(2):
                work(*inputs)
        torch.cuda.current_stream().wait_stream(aside)
        self._pool = self._pool or torch.cuda.graph_pool_handle()
        graph = torch.cuda.CUDAGraph()
        # other threads of a service may use the card meanwhile
        with torch.cuda.graph(graph, pool=self._pool, capture_error_mode="thread_local"):
            outputs = work(*inputs)
        return graph, inputs, outputs
