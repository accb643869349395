"""The downstream model: the default U-Net, the user's own through a factory, and its weights on disk."""

from __future__ import annotations

import hashlib
import importlib
import json
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, load_model, save_model
from torch import nn

from cdiff.config import DownstreamConfig
from cdiff.data.storage import rename_durably
from cdiff.errors import ConfigError, RunError

CHANNELS = (24, 32, 64, 96, 128, 24)  # the last is the decoder's
START_LOGIT = -3.0
CONTRACT = "[B, 3, H, W] in [-1, 1] to logits [B, 1, H, W]"
# What calling a user's factory or network on a well-formed batch may reasonably raise.
_USER_ERRORS = (AttributeError, TypeError, ValueError, RuntimeError, LookupError, ArithmeticError, OSError)


def unet(in_channels: int) -> nn.Module:
    """The default segmenter: MONAI's U-Net between a pixel-unshuffle and a pixel-shuffle by 2, 0.9 M parameters.

    All convolutions run at half the photo's side or less, which on CPUs is what buys steps: with 16 channels at full size a
    step took 1.7 times as long, and learned less. MONAI's strided UNet ends in one normalised channel, which
    held it back on rare targets. Batch norm keeps how strong a response is from photo to photo; group norm rescales each
    photo by itself, which raises faint texture of normals to alarms. Sides are multiples of 16 and at least 32.
    """
    from monai.networks.nets import (
        BasicUNet,  # here: it takes seconds, and who makes no network is spared them
    )

    body = BasicUNet(
        spatial_dims=2,
        in_channels=4 * in_channels,
        out_channels=4,
        features=CHANNELS,
        act=("relu", {"inplace": True}),
        norm="batch",
    )
    # Targets are rare: starting from 5 % instead of 50 % saves the steps that would unlearn it.
    nn.init.constant_(body.final_conv.bias, START_LOGIT)
    return nn.Sequential(nn.PixelUnshuffle(2), body, nn.PixelShuffle(2))


def build_segmenter(config: DownstreamConfig, seed: int) -> nn.Module:
    """Make the configured segmenter with seeded start weights, or with `config.weights`, and check its contract.

    Args:
        seed: decides the start weights; the global torch generator is left as it was.
    Raises:
        ConfigError: the factory cannot be imported or called, its network breaks the contract, or the weights do not fit.
    """
    factory = _import_factory(config.factory)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        try:
            model = factory(3)
        except _USER_ERRORS as error:
            raise ConfigError(f"downstream.factory {config.factory}(3) failed: {error}") from error
    if not isinstance(model, nn.Module):
        raise ConfigError(
            f"downstream.factory {config.factory} returned a {type(model).__name__}, not a torch.nn.Module."
        )
    if config.weights:
        _start_from(model, Path(config.weights))
    _check_contract(model, config.factory)
    return model


def save_segmenter(
    model: nn.Module, folder: Path, config: DownstreamConfig, extra: dict[str, Any] | None = None
) -> str:
    """Write weights and settings to folder/REVISION and return the revision.

    The revision is the hash of factory and weights. The folder appears under its name only when complete; weights that
    are there already are left alone.

    Args:
        extra: further JSON values for config.json.
    """
    revision = _revision(model, config.factory)
    final = Path(folder) / revision
    if final.exists():
        return revision
    final.parent.mkdir(parents=True, exist_ok=True)
    temporary = Path(tempfile.mkdtemp(prefix=f".{revision}-", dir=final.parent))
    try:
        save_model(model, str(temporary / "model.safetensors"))
        text = json.dumps(
            {"downstream": config.model_dump(mode="json"), **(extra or {})}, indent=2, sort_keys=True
        )
        (temporary / "config.json").write_text(text, encoding="utf-8")
        _rename(temporary, final)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return revision


def load_segmenter(path: str | Path) -> nn.Module:
    """The segmenter of a revision folder, in evaluation mode.

    Raises:
        RunError: the folder is missing, incomplete or damaged.
        ConfigError: its factory is no longer there.
    """
    config = segmenter_config(path)
    # `weights` was the start of the fit: the file may be gone, and is not needed.
    model = build_segmenter(config.model_copy(update={"weights": ""}), seed=0)
    try:
        load_model(model, str(Path(path) / "model.safetensors"))
    except (OSError, SafetensorError, RuntimeError) as error:
        raise RunError(f"cannot read the segmenter in {path}: {error}") from None
    return model.eval()


def segmenter_config(path: str | Path) -> DownstreamConfig:
    """The settings that a saved segmenter was fitted with; raises RunError when they cannot be read."""
    try:
        values = json.loads((Path(path) / "config.json").read_text(encoding="utf-8"))
        return DownstreamConfig.model_validate(values["downstream"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise RunError(f"{path} holds no complete segmenter: {error}") from None


def _import_factory(name: str) -> Callable[[int], Any]:
    module, colon, function = name.partition(":")
    if not colon or not module or not function:
        raise ConfigError(f"downstream.factory = {name!r} is not of the form package.module:factory.")
    try:
        factory = getattr(importlib.import_module(module), function)
    except (ImportError, AttributeError, SyntaxError) as error:
        raise ConfigError(
            f"downstream.factory = {name!r} cannot be imported: {error}. Install its package, or correct the name."
        ) from error
    if not callable(factory):
        raise ConfigError(f"downstream.factory = {name!r} is not callable.")
    return factory


def _start_from(model: nn.Module, path: Path) -> None:
    if not path.is_file():
        raise ConfigError(f"downstream.weights: there is no file {path}.")
    try:
        weights = load_file(str(path))
    except (SafetensorError, OSError) as error:
        raise ConfigError(f"downstream.weights: {path} is not a safetensors file: {error}") from None
    try:
        missing, unexpected = model.load_state_dict(weights, strict=False)
    except RuntimeError as error:
        raise ConfigError(f"downstream.weights: {path} does not fit the factory's network: {error}") from None
    if missing or unexpected:
        raise ConfigError(
            f"downstream.weights: {path} does not fit the factory's network: missing {missing[:5]}, "
            f"unexpected {unexpected[:5]} (the first of {len(missing)} and {len(unexpected)})."
        )


@torch.no_grad()
def _check_contract(model: nn.Module, name: str) -> None:
    training = model.training
    model.eval()  # in training mode the check would move the running statistics of batch norm
    batch = torch.linspace(-1, 1, 3 * 64 * 64).reshape(1, 3, 64, 64)
    try:
        logits = model(batch)
    except _USER_ERRORS as error:
        raise ConfigError(
            f"downstream.factory {name}: the network failed on a [1, 3, 64, 64] batch: {error}"
        ) from error
    finally:
        model.train(training)
    if not isinstance(logits, torch.Tensor):
        raise ConfigError(
            f"downstream.factory {name}: the network must map {CONTRACT}, it gave a {type(logits).__name__}."
        )
    if logits.shape != (1, 1, 64, 64):
        raise ConfigError(
            f"downstream.factory {name}: the network must map {CONTRACT}; "
            f"a [1, 3, 64, 64] batch gave {list(logits.shape)}."
        )
    if not logits.is_floating_point() or not bool(torch.isfinite(logits).all()):
        raise ConfigError(
            f"downstream.factory {name}: the network's logits are not finite floating-point numbers."
        )


def _revision(model: nn.Module, factory: str) -> str:
    digest = hashlib.sha256(factory.encode())
    for name, tensor in sorted(model.state_dict().items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        # Bytes through uint8: numpy knows no bfloat16.
        digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()[:16]


def _rename(temporary: Path, final: Path) -> None:
    try:
        rename_durably(temporary, final)
    except OSError:
        if not final.exists():  # otherwise another process wrote the same weights first
            raise
