"""SAFE, the Scene Agnostic Feature Extractor: one target's tokens, whatever product or organ it lies on.

    v_l = A( sum(M F_l) / sum(M) ) - alpha * B( sum((1-M) F_l) / sum(1-M) ),    S = [v_1 .. v_k] plus spatial tokens

(Crucial-Diff, 2507.09915; alpha is learned from 0, so that the scene is subtracted only as far as that helps.)
"""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from torch import nn

from cdiff.config import SafeConfig
from cdiff.data.storage import rename_durably
from cdiff.errors import RunError
from cdiff.safe.cache import FeatureCache, keys_of
from cdiff.safe.features import ConvEncoder, grid_weights, masked_mean
from cdiff.safe.frozen import FrozenEncoder
from cdiff.workers import WHOLE, Part

_LABELS = 4096  # of the ablation without SAFE: types are told apart by a hash of their names


@dataclass(frozen=True)
class Pooled:
    """What the encoder sees of targets: its levels pooled inside and outside of the mask, [B, C] each, and parts of the last, [B, g * g, C]."""

    inside: tuple[torch.Tensor, ...]
    outside: tuple[torch.Tensor, ...]
    parts: torch.Tensor

    def flat(self) -> torch.Tensor:
        """As one row per target, [B, F]."""
        return torch.cat([*self.inside, *self.outside, self.parts.flatten(1)], dim=1)


class Safe(nn.Module):
    """Maps crops and masks to SAFE tokens.

    Args:
        folder: of the frozen encoder; None where a small one is trained with the generator.
    """

    def __init__(self, config: SafeConfig, folder: Path | None = None) -> None:
        super().__init__()
        self.grid = config.spatial
        self.encoder = ConvEncoder(config.channels) if folder is None else FrozenEncoder(config, folder)
        widths = self.encoder.widths
        self.inside = nn.ModuleList(nn.Linear(width, config.dim) for width in widths)
        self.outside = nn.ModuleList(nn.Linear(width, config.dim) for width in widths)
        self.alpha = nn.Parameter(torch.zeros(()))
        self.spatial = nn.Linear(widths[-1], config.dim)
        self.place = nn.Parameter(torch.zeros(1, config.spatial**2, config.dim))
        self.norm = nn.LayerNorm(config.dim)
        self.labels = nn.Embedding(_LABELS, self.count * config.dim) if config.tokens == "label" else None
        self.null = nn.Parameter(torch.zeros(1, self.count, config.dim))
        self.idle = nn.Parameter(torch.zeros(1, 1, config.dim))  # where a weakness token may join in
        nn.init.normal_(self.idle, std=0.02)
        nn.init.normal_(self.place, std=0.02)
        nn.init.normal_(self.null, std=0.02)

    @property
    def count(self) -> int:
        """Tokens per target."""
        return len(self.inside) + self.grid**2

    def forward(
        self, image_B3HW: torch.Tensor, mask_B1HW: torch.Tensor, kinds: Sequence[str]
    ) -> torch.Tensor:
        """Tokens [B, N, D] of the targets that mask_B1HW in [0, 1] marks on crops in [-1, 1].

        Args:
            kinds: "category/type" of each target. SAFE knows nothing of it; the ablation `safe.tokens=label` nothing else.
        """
        return self.words(None if self.labels is not None else self.pooled(image_B3HW, mask_B1HW), kinds)

    def words(self, pooled: Pooled | None, kinds: Sequence[str]) -> torch.Tensor:
        """Tokens [B, N, D] of targets that were looked at already; of their types alone, in the ablation."""
        if self.labels is None:
            assert pooled is not None
            return self.tokens(pooled)
        places = torch.tensor([zlib.crc32(kind.encode()) % _LABELS for kind in kinds])
        words: torch.Tensor = self.labels(places.to(self.idle.device))
        return self.norm(words.view(len(kinds), self.count, -1))

    @property
    def frozen(self) -> bool:
        """Whether the same crop is seen the same way before and after training."""
        return isinstance(self.encoder, FrozenEncoder)

    def pooled(self, image_B3HW: torch.Tensor, mask_B1HW: torch.Tensor) -> Pooled:
        """What the encoder sees; the same again for the same crops where it is frozen."""
        features = self.encoder(image_B3HW)
        cells = grid_weights(mask_B1HW, self.grid).unbind(1) if self.grid else ()
        parts = [masked_mean(features[-1], cell[:, None]) for cell in cells]
        return Pooled(
            tuple(masked_mean(level, mask_B1HW) for level in features),
            tuple(masked_mean(level, 1 - mask_B1HW) for level in features),
            torch.stack(parts, dim=1) if parts else features[-1].new_zeros(len(mask_B1HW), 0, 1),
        )

    def tokens(self, pooled: Pooled) -> torch.Tensor:
        """Tokens [B, N, D] of what the encoder saw."""
        levels = zip(pooled.inside, pooled.outside, self.inside, self.outside, strict=True)
        tokens = [into(inner) - self.alpha * out(outer) for inner, outer, into, out in levels]
        stacked = torch.stack(tokens, dim=1)
        if self.grid:
            stacked = torch.cat([stacked, self.spatial(pooled.parts) + self.place], dim=1)
        return self.norm(stacked)

    def remembered(
        self, image_B3HW: torch.Tensor, mask_B1HW: torch.Tensor, cache: FeatureCache | None
    ) -> Pooled:
        """As `pooled`, from the cache where it has the same crops; new ones are put there. Without one, as `pooled`."""
        if cache is None:
            return self.pooled(image_B3HW, mask_B1HW)
        keys = keys_of(image_B3HW, mask_B1HW)
        rows = [cache.get(key) for key in keys]
        missing = [i for i, row in enumerate(rows) if row is None]
        if missing:
            seen = self.pooled(image_B3HW[missing], mask_B1HW[missing]).flat()
            for i, row in zip(missing, seen, strict=True):
                cache.put(keys[i], row)
                rows[i] = row
        device = image_B3HW.device
        return self.unflat(torch.stack([row.to(device) for row in rows if row is not None]))

    def unflat(self, rows_BF: torch.Tensor) -> Pooled:
        """Undoes `Pooled.flat`."""
        widths = self.encoder.widths
        inside, outside, parts = rows_BF.split(
            [sum(widths), sum(widths), rows_BF.shape[1] - 2 * sum(widths)], dim=1
        )
        cells = parts.unflatten(1, (self.grid**2, -1)) if self.grid else parts.view(len(rows_BF), 0, 1)
        return Pooled(inside.split(widths, dim=1), outside.split(widths, dim=1), cells)

    def dropped(
        self, tokens_BND: torch.Tensor, share: float, generator: torch.Generator, part: Part = WHOLE
    ) -> torch.Tensor:
        """Replace a share of the items' tokens by the learned null tokens: classifier-free guidance.

        Args:
            part: of a batch, that the tokens are; what is drawn is that of the whole.
        """
        drawn = torch.rand(len(tokens_BND) * part.of_parts, 1, 1, generator=generator)
        return torch.where(part.cut(drawn).to(tokens_BND.device) >= share, tokens_BND, self.null)

    def fused(self, tokens_BND: torch.Tensor, weakness_B1D: torch.Tensor | None = None) -> torch.Tensor:
        """[S; idle + weakness], [B, N + 1, D]: what the denoiser looks at. Without a weakness the place is idle."""
        extra = self.idle.expand(len(tokens_BND), -1, -1)
        return torch.cat([tokens_BND, extra if weakness_B1D is None else extra + weakness_B1D], dim=1)

    def describe(self, tokens_BND: torch.Tensor) -> torch.Tensor:
        """Unit vectors [B, k * D] of the level tokens: what retrieval and the contrastive term compare."""
        return F.normalize(tokens_BND[:, : len(self.inside)].flatten(1), dim=1)


def scene_contrast(
    here_BE: torch.Tensor,
    elsewhere_BE: torch.Tensor,
    empty_BE: torch.Tensor,
    kinds: Sequence[str],
    temperature: float,
    part: Part = WHOLE,
) -> torch.Tensor:
    """InfoNCE: a target's tokens stay close when it is pasted on another background.

    Args:
        here_BE: descriptors of targets, of a part of the batch.
        elsewhere_BE: descriptors of the whole batch's targets on another background.
        empty_BE: descriptors of target-free crops under the same masks: negatives, so that one type suffices.
        kinds: type of each target of the whole batch; another target of the same type is no negative.
    """
    candidates = torch.cat([elsewhere_BE, empty_BE])
    logits = here_BE @ candidates.T / temperature
    batch = len(kinds)
    same = torch.tensor([[a == b and i != j for j, b in enumerate(kinds)] for i, a in enumerate(kinds)])
    ignored = torch.cat([same, torch.zeros(batch, len(empty_BE), dtype=torch.bool)], dim=1)
    own = part.cut(torch.arange(batch)).to(logits.device)
    return F.cross_entropy(logits.masked_fill(part.cut(ignored).to(logits.device), -1e4), own)


class TokenBank:
    """The tokens of a data set's real training targets, by target_id."""

    def __init__(self, tokens: dict[str, torch.Tensor], revision: str) -> None:
        self.tokens = tokens
        self.revision = revision

    def __getitem__(self, target_id: str) -> torch.Tensor:
        """Tokens [N, D] of one target.

        Raises:
            RunError: the target is not in the bank: it was not a training target.
        """
        if target_id not in self.tokens:
            raise RunError(
                f"no tokens for {target_id}: the bank holds training targets only. Choose one of those."
            )
        return self.tokens[target_id]

    def save(self, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = path.with_suffix(".tmp")
        save_file(self.tokens, temporary, metadata={"revision": self.revision})
        rename_durably(temporary, path)

    @classmethod
    def load(cls, path: Path) -> TokenBank:
        if not path.exists():
            raise RunError(
                f"{path} is missing: the token bank was never built. Start the run again to build it."
            )
        return cls(load_file(path), path.stem)
