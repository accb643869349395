"""The generator as one thing: SAFE and the joint denoiser, saved and loaded together."""

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from cdiff.config import GeneratorConfig, SafeConfig
from cdiff.data.dataset import Dataset
from cdiff.data.run import cache_folder
from cdiff.data.storage import rename_durably
from cdiff.data.weights import local_weights, weights_sum
from cdiff.errors import CdiffError, RunError
from cdiff.generator.crops import cut, shift_inside, square_around, to_resolution
from cdiff.generator.denoiser import Denoiser, PixelDenoiser
from cdiff.safe.cache import FeatureCache
from cdiff.safe.features import masked_mean
from cdiff.safe.tokens import Safe, TokenBank
from cdiff.types import Box, Target, content_hash


class Generator(nn.Module):
    """SAFE tokens and the denoiser that they condition; one for all types and domains of a data set.

    What is pretrained is read from where the configuration says, and stays there: a checkpoint holds what was learned.

    Raises:
        ConfigError: weights that are named and cannot be used.
        RunError: weights that cannot be fetched.
    """

    def __init__(self, config: GeneratorConfig, safe: SafeConfig) -> None:
        super().__init__()
        self.config = config
        self.safe_config = safe
        named = pretrained(config, safe)
        self.safe = Safe(safe, named.get("safe"))
        self.denoiser = _denoiser(config, safe, named.get("generator"))
        self.revision = ""
        self._learned = [name for name, p in self.named_parameters() if p.requires_grad]
        # of what is pretrained, so that other weights under the same name are noticed
        self.pretrained = pretrained_sums(config, safe)

    def learned(self) -> dict[str, torch.Tensor]:
        """The parameters that training changes, by name; all of them where nothing is pretrained."""
        parameters = dict(self.named_parameters())
        return {name: parameters[name] for name in self._learned}

    def for_sampling(self, dtype: str, compiled: bool) -> Generator:
        """Itself, made ready to be sampled from in this type; it cannot be trained or saved any more."""
        self.denoiser.for_sampling(getattr(torch, dtype), compiled)
        return self

    def feature_cache(self, writes: bool = True) -> FeatureCache | None:
        """Of pooled features, on this machine; None where the encoder is trained.

        Args:
            writes: of several that look at the same, one keeps it.
        """
        if not self.safe.frozen:
            return None
        device = self.safe.idle.device.type  # cards round otherwise
        looks = content_hash([self.pretrained["safe"], self.safe_config.model_dump(), device])
        return FeatureCache(cache_folder() / "features" / looks, writes)

    def save(self, checkpoints: Path) -> str:
        """Write what was learned and the configuration to checkpoints/REVISION; returns the revision (hash of the weights)."""
        state = {name: tensor.detach().cpu().contiguous() for name, tensor in self.learned().items()}
        hashed = weights_hash(state)
        revision = "generator-" + (content_hash([hashed, self.pretrained]) if self.pretrained else hashed)
        folder = checkpoints / revision
        temporary = checkpoints / f".{revision}.{os.getpid()}"
        if not folder.exists():
            temporary.mkdir(parents=True, exist_ok=True)
            save_file(state, temporary / "model.safetensors")
            settings = {
                "generator": self.config.model_dump(mode="json"),
                "safe": self.safe_config.model_dump(mode="json"),
                "pretrained": self.pretrained,
            }
            (temporary / "config.json").write_text(json.dumps(settings, indent=1), encoding="utf-8")
            rename_durably(temporary, folder)
        self.revision = revision
        return revision

    @classmethod
    def load(cls, folder: Path, device: str = "cpu") -> Generator:
        """Read a folder that `save` wrote.

        Raises:
            RunError: the folder is missing or incomplete, or what it adapted is not there as it was.
        """
        try:
            settings = json.loads((folder / "config.json").read_text(encoding="utf-8"))
            state = load_file(folder / "model.safetensors")
        except OSError as error:
            raise RunError(f"{folder} holds no generator: {error}. Train one by running the loop.") from None
        config = GeneratorConfig.model_validate(settings["generator"])
        generator = cls(config, SafeConfig.model_validate(settings["safe"]))
        for name, known in settings.get("pretrained", {}).items():
            if generator.pretrained.get(name) != known:
                source = config.weights if name == "generator" else generator.safe_config.weights
                raise RunError(
                    f"{folder} changes the weights {known}, but {source} holds {generator.pretrained.get(name)} now. Put the former back, or "
                    "train anew."
                )
        unknown = generator.load_state_dict(state, strict=False).unexpected_keys
        if unknown or set(state) != set(generator.learned()):
            raise RunError(
                f"{folder}/model.safetensors does not fit its config.json. Train a generator anew."
            )
        generator.revision = folder.name
        return generator.to(device).eval()

    @torch.inference_mode()
    def pooled(self, image_3RR: torch.Tensor, mask_1RR: torch.Tensor) -> torch.Tensor:
        """Plain features [F] of one target: its encoder's levels, each pooled over the mask. SAFE without its learned half."""
        device = self.safe.idle.device
        levels = self.safe.encoder(image_3RR[None].to(device))
        return torch.cat([masked_mean(level, mask_1RR[None].to(device)) for level in levels], dim=1)[0].cpu()

    @torch.inference_mode()
    def bank(self, dataset: Dataset, targets: list[Target], cache: FeatureCache | None = None) -> TokenBank:
        """The SAFE tokens of real targets, each from its own crop.

        Args:
            cache: where features are looked up and kept; None: they are pooled anew.
        """
        margin, device = sum(self.config.margin) / 2, self.safe.idle.device
        tokens = {}
        for target in targets:
            image, mask = target_crop(dataset, target, margin, self.config)
            pooled = self.safe.remembered(image[None].to(device), mask[None].to(device), cache)
            found = self.safe.words(pooled, [f"{target.category}/{target.type}"])
            tokens[target.target_id] = found[0].cpu().contiguous()
        if cache is not None:
            cache.flush()
        return TokenBank(tokens, "bank-" + content_hash([self.revision, weights_hash(tokens)]))


def pretrained(config: GeneratorConfig, safe: SafeConfig) -> dict[str, Path]:
    """Folders of the weights that a configuration names: "generator" and "safe", as far as it does.

    Raises:
        ConfigError, RunError: as `cdiff.data.weights.local_weights`, with the setting's name.
    """
    named = {"generator": config.weights if config.backbone == "latent" else "", "safe": safe.weights}
    found: dict[str, Path] = {}
    for name, source in named.items():
        try:
            found |= {name: local_weights(source)} if source else {}
        except CdiffError as error:
            raise type(error)(f"{name}.weights: {error}") from None
    return found


def pretrained_sums(config: GeneratorConfig, safe: SafeConfig) -> dict[str, str]:
    """Checksums of the same, of the parts that are read."""
    parts = {
        "generator": ("unet", "vae", "scheduler", *(("text_encoder", "tokenizer") if config.prompt else ())),
        "safe": ("",),
    }
    return {name: weights_sum(folder, parts[name]) for name, folder in pretrained(config, safe).items()}


def _denoiser(config: GeneratorConfig, safe: SafeConfig, folder: Path | None) -> Denoiser:
    if folder is None:
        return PixelDenoiser(config, safe)
    from cdiff.generator.latent import LatentDenoiser  # here: who works on pixels does without its libraries

    return LatentDenoiser(config, safe, folder)


def target_crop(
    dataset: Dataset, target: Target, margin: float, config: GeneratorConfig
) -> tuple[torch.Tensor, torch.Tensor]:
    """One target in its square crop: image [3, R, R] in [-1, 1] and mask [1, R, R] in [0, 1]."""
    photo, mask = dataset.image(target.sample_id), dataset.target_mask(target.target_id)
    return crop_around(photo, mask, target.box, margin, config)


def crop_around(
    photo: np.ndarray, mask: np.ndarray, box: Box, margin: float, config: GeneratorConfig
) -> tuple[torch.Tensor, torch.Tensor]:
    """The same for any photo, uint8 [H, W, 3], and mask, bool [H, W]; the box is the target's."""
    square = square_of(box, photo.shape[:2], margin, config)
    image = to_resolution(cut(photo, square).astype("float32"), config.resolution) / 127.5 - 1
    return image, to_resolution(cut(mask, square), config.resolution)


def square_of(box: Box, shape: tuple[int, ...], margin: float, config: GeneratorConfig) -> Box:
    """The square crop around a box of a photo of this shape [H, W], moved onto the photo as far as it fits."""
    left, top, right, bottom = box
    longer = max(right - left, bottom - top)
    x, y = (left + right) / 2, (top + bottom) / 2
    square = square_around(x, y, longer, margin, config.min_side, max(shape))
    return shift_inside(square, shape[1], shape[0])


def weights_hash(state: dict[str, torch.Tensor]) -> str:
    """16 hex digits over names and bytes of all tensors."""
    digest = hashlib.sha256()
    for name in sorted(state):
        digest.update(name.encode())
        digest.update(state[name].contiguous().flatten().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()[:16]
