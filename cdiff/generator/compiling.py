"""torch.compile for networks that are sampled from: as a whole or not at all, and only where no gradient is wanted."""

from __future__ import annotations

import os
import shutil
from typing import Any

import torch
from torch import nn

from cdiff.errors import ConfigError

# Of one function: sizes of batch, with and without inference mode, halves of an autoencoder. PyTorch's own limit is eight.
_VARIANTS = 64


class Compiled(nn.Module):
    """A network, compiled whenever a new size of batch is met; where gradients are wanted, the network as it is.

    Raises:
        ConfigError: there is no C compiler; when called, what PyTorch says where it cannot compile.
    """

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        if not any(shutil.which(name) for name in (os.environ.get("CC") or "cc", "gcc", "clang")):
            raise ConfigError(
                "resources.compile needs a C compiler, and this node has none: install gcc, or set resources.compile=false."
            )
        self.network = network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        torch._dynamo.config.recompile_limit = _VARIANTS  # type: ignore[attr-defined]
        self._fast = torch.compile(network, dynamic=False, fullgraph=True)

    def forward(self, *given: Any, **more: Any) -> Any:
        if torch.is_grad_enabled():
            return self.network(*given, **more)
        try:
            return self._fast(*given, **more)
        except (torch._dynamo.exc.TorchDynamoException, torch._inductor.exc.InductorError) as error:
            first = str(error).strip().split("\n", 1)[0]
            raise ConfigError(
                f"this network cannot be compiled here: {first}\nSet resources.compile=false."
            ) from error
