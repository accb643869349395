"""Arm B3, the difficulty token: what the segmenter makes of the reference joins the reference's SAFE tokens.

    w = norm(MLP(wanted difficulty, outcome of the reference under a model that never saw it)),    tokens = [S; idle + gamma w]

Crucial-Diff (2507.09915) fuses WASM's output with SAFE's; how is not said beyond a figure, so the form is this project's.
gamma, one number per channel (Touvron et al., 2103.17239), starts at 0: the generator, trained with the idle token in that place, is
then exactly what it was. w counts from its mean over all measured targets, so that what suits every target is not learned in its
place. Learned are MLP and gamma alone, with the generator's own loss on real targets, each under its measured difficulty and
beside a reference that is another of its type, and a contrastive term that keeps what is missed apart from what is found
(Khosla et al., 2004.11362). At sampling a rank within the band of the pair's
purpose is asked for: of pairs that are aimed never the extreme.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from safetensors import safe_open
from safetensors.torch import save_file
from torch import nn

from cdiff.config import Config
from cdiff.data.dataset import Dataset
from cdiff.data.storage import rename_durably
from cdiff.errors import RunError
from cdiff.generator.model import Generator, weights_hash
from cdiff.generator.objective import Clean, flow_loss
from cdiff.generator.patches import augmented, balanced, cut_patches, regions
from cdiff.types import Outcome
from cdiff.workers import Part

# Of an outcome; the first is the rank of its loss within the type, and is what sampling replaces.
FEATURES = ("rank", "missed", "false_area", "confidence", "boundary_error", "soft_dice")
_WIDTH = 64
_MISSED = 0.5  # share of the area from which a target counts as missed
_TEMPERATURE, _CONTRAST = 0.2, 0.05


class WeaknessToken(nn.Module):
    """Maps a target's outcome and a wanted difficulty to one more token."""

    def __init__(self, dim: int, table: dict[str, torch.Tensor]) -> None:
        super().__init__()
        # w is as long as SAFE's tokens, which are normed as well
        norm = nn.LayerNorm(dim, elementwise_affine=False)
        self.mlp = nn.Sequential(nn.Linear(len(FEATURES), _WIDTH), nn.SiLU(), nn.Linear(_WIDTH, dim), norm)
        self.gamma = nn.Parameter(torch.zeros(dim))
        self.table = table  # features [F] by target_id, on the CPU
        self.revision = ""

    def forward(self, features_BF: torch.Tensor) -> torch.Tensor:
        """gamma (w - its mean over the measured targets), [B, 1, D]."""
        return (self.gamma * (self.mlp(features_BF) - self.mlp(self._known()).mean(dim=0)))[:, None]

    def _known(self) -> torch.Tensor:
        rows = [self.table[name] for name in sorted(self.table)] or [_middling()]
        return torch.stack(rows).to(self.gamma.device)

    @torch.inference_mode()
    def wanted(self, target_id: str, difficulty: float, strength: float) -> torch.Tensor:
        """The token [1, D] that asks for a rank of difficulty in [0, 1], times `weakness_strength`.

        A target without an outcome (none was measured) counts as a middling one.
        """
        features = self.table.get(target_id, _middling()).clone()
        features[0] = difficulty
        return strength * self(features[None].to(self.gamma.device))[0]

    def save(self, checkpoints: Path) -> str:
        """Write weights and table to checkpoints/REVISION.safetensors; returns the revision."""
        state = {name: tensor.detach().cpu().contiguous() for name, tensor in self.state_dict().items()}
        ids = sorted(self.table)
        if ids:
            state["table"] = torch.stack([self.table[name] for name in ids])
        self.revision = "token-" + weights_hash(state)
        temporary = checkpoints / f".{self.revision}.tmp"
        save_file(state, temporary, metadata={"ids": json.dumps(ids)})
        rename_durably(temporary, checkpoints / f"{self.revision}.safetensors")
        return self.revision

    @classmethod
    def load(cls, path: Path) -> WeaknessToken:
        """Read what `save` wrote.

        Raises:
            RunError: another version wrote it.
        """
        with safe_open(path, "pt") as file:
            ids = json.loads(file.metadata()["ids"])
            state = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  # no mapping
        rows = state.pop("table") if ids else []
        token = cls(state["mlp.2.weight"].shape[0], dict(zip(ids, rows, strict=True)))
        if state["gamma"].shape != token.gamma.shape:
            raise RunError(f"{path} was learned by another version of cdiff: start a new run.")
        token.load_state_dict(state)
        token.revision = path.stem
        return token.eval()


def features_of(outcomes: Sequence[Outcome], kappa: float) -> dict[str, torch.Tensor]:
    """Features [F] by target_id; ranks are of min(kappa, loss) among the targets of a type, in [0, 1]."""
    kinds: dict[tuple[str, str], list[Outcome]] = {}
    for row in outcomes:
        if row.type:
            kinds.setdefault((row.category, row.type), []).append(row)
    out = {}
    for rows in kinds.values():
        losses = np.minimum([row.loss for row in rows], kappa)
        for row, loss in zip(rows, losses, strict=True):
            rank = ((losses < loss).sum() + 0.5 * (losses == loss).sum()) / len(losses)
            measured = (
                row.missed,
                min(row.false_area, 2.0),
                row.confidence,
                row.boundary_error,
                row.soft_dice,
            )
            out[row.target_id] = torch.tensor([float(rank), *measured], dtype=torch.float32)
    return out


def train_weakness_token(
    generator: Generator,
    dataset: Dataset,
    outcomes: Sequence[Outcome],
    config: Config,
    seed: int,
    progress: Callable[[int, int], None] | None = None,
) -> WeaknessToken:
    """Fit the token on real training targets with their outcomes; the generator stays as it is.

    Raises:
        ValueError: no outcome is one of a target.
    """
    table = features_of(outcomes, config.wasm.kappa)
    if not table:
        raise ValueError("a difficulty token needs outcomes of targets")
    settings = generator.config
    targets = [dataset.target(target_id) for target_id in sorted(table)]
    patches = cut_patches(dataset, targets, [], settings, np.random.default_rng([seed, 43]))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        token = WeaknessToken(config.safe.dim, table).to(generator.safe.idle.device)
    generator.requires_grad_(False)
    features = torch.stack([table[target.target_id] for target in targets])
    optimiser = torch.optim.AdamW(token.parameters(), lr=config.wasm.token_lr)
    for step in range(config.wasm.token_steps):
        rng = np.random.default_rng([seed, 44, step])
        index = rng.choice(len(targets), settings.batch, p=balanced(patches.kinds))
        optimiser.zero_grad(set_to_none=True)
        drawn = rng.bit_generator.state
        for turn in range(settings.accumulate):
            rng.bit_generator.state = drawn
            part = Part(turn, settings.accumulate)
            noise = torch.Generator().manual_seed((seed + 7) * 1_000_003 + step)
            loss = _loss(generator, token, patches, index, features[index], rng, noise, part)
            (loss / settings.accumulate).backward()
        optimiser.step()
        if progress:
            progress(step + 1, config.wasm.token_steps)
    return token.eval()


def _loss(generator, token, patches, index, features, rng, noise, part):  # type: ignore[no-untyped-def]
    settings = generator.config
    device = generator.safe.idle.device
    image, mask = (t.to(device) for t in augmented(patches, index, settings.resolution, rng, part))
    # Another target of the type stands as reference: one's own appearance would tell all that its difficulty could.
    other = _others(patches.kinds, index, rng)
    reference, reference_mask = (
        t.to(device) for t in augmented(patches, other, settings.resolution, rng, part)
    )
    features, kinds = features.to(device), part.cut([patches.kinds[i] for i in index])
    with torch.no_grad():
        safe = generator.safe(reference, reference_mask, kinds)
    tokens = generator.safe.fused(safe, token(part.cut(features)))
    clean = Clean.of(generator.denoiser, image, mask, regions(mask, rng, part))
    # weights that are kept in bfloat16 cannot compute in anything else
    narrow = settings.weights_dtype == "bfloat16"
    with torch.autocast(device.type, dtype=torch.bfloat16, enabled=narrow):
        loss = flow_loss(generator.denoiser, clean, tokens, settings, noise, part)
    return loss + _CONTRAST * _apart(token.mlp(features), features[:, 1] > _MISSED)


def _others(kinds: Sequence[str], index: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """For each target another of its type; the only one of a type stands for itself."""
    alike = {kind: [i for i, own in enumerate(kinds) if own == kind] for kind in {kinds[i] for i in index}}
    others = ([other for other in alike[kinds[i]] if other != i] or [i] for i in index)
    return np.array([rng.choice(choice) for choice in others])


def _apart(w_BD: torch.Tensor, missed_B: torch.Tensor) -> torch.Tensor:
    """Supervised contrast: tokens of missed targets near each other, and away from those of found ones."""
    unit = F.normalize(w_BD, dim=1)
    logits = unit @ unit.T / _TEMPERATURE
    itself = torch.eye(len(unit), dtype=torch.bool, device=unit.device)
    same = (missed_B[:, None] == missed_B[None]) & ~itself
    share = F.log_softmax(logits.masked_fill(itself, -1e4), dim=1)
    counted = same.sum(dim=1)
    return (
        -((share * same).sum(dim=1) / counted.clamp_min(1))[counted > 0].mean()
        if same.any()
        else w_BD.sum() * 0
    )


def _middling() -> torch.Tensor:
    return torch.tensor([0.5, 0.5, 0.5, 0.5, 0.5, 0.5])
