"""The models that tasks name by their revisions, loaded from a run's checkpoints when they are first asked for."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from cdiff.config import Config
from cdiff.data.run import Run
from cdiff.downstream.segmenter import load_segmenter
from cdiff.generator.model import Generator
from cdiff.safe.tokens import TokenBank
from cdiff.types import Recipe, Revisions
from cdiff.wasm.mining import Miners
from cdiff.wasm.noise import NoiseMiner
from cdiff.wasm.token import WeaknessToken

KEPT = 2  # revisions of each role: pairs of an earlier round may be made again beside new ones


class Models:
    """Of one run, each loaded once; of each role only what was asked for last stays, or a card would fill up round by round."""

    def __init__(self, run: Run, config: Config) -> None:
        self._run, self._device = run, config.resources.device
        # by role and revision, the last asked for at the end; under a revision, by how it is used
        self._loaded: dict[str, dict[str, dict[Any, Any]]] = {}

    def generator(self, revisions: Revisions, recipe: Recipe) -> tuple[Generator, TokenBank]:
        """The generator, ready to be sampled from as a recipe says, and its token bank."""
        how = recipe.dtype, recipe.compiled

        def ready(path: Path) -> Generator:
            return Generator.load(path, self._device).for_sampling(*how)

        generator = self._load("generator", revisions.generator, ready, *how)
        return generator, self._load("bank", revisions.bank, lambda path: TokenBank.load(_file(path)))

    def draw_at_most(self, micro_batch: int) -> None:
        """Recordings of larger batches are freed: who asks for smaller ones is short of memory."""
        for ready in self._loaded.get("generator", {}).values():
            for generator in ready.values():
                generator.denoiser.forget_recordings(above=2 * micro_batch)

    def miners(self, revisions: Revisions) -> Miners:
        """What the tasks' arm needs, as far as their revisions name it."""
        known: dict[str, Any] = {}
        if revisions.segmenter:
            known["segmenter"] = self._load(
                "segmenter", revisions.segmenter, lambda path: load_segmenter(path).to(self._device)
            )
        if revisions.miner:
            known["noise"] = self._load("miner", revisions.miner, lambda path: NoiseMiner.load(_file(path)))
        if revisions.token:
            known["token"] = self._load(
                "token", revisions.token, lambda path: WeaknessToken.load(_file(path))
            )
        return Miners(**known)

    def _load(self, role: str, revision: str, read: Callable[[Path], Any], *how: Any) -> Any:
        known = self._loaded.setdefault(role, {})
        ready = known[revision] = known.pop(revision, {})
        while len(known) > KEPT:
            for model in known.pop(next(iter(known))).values():
                if isinstance(model, Generator):  # whoever still holds it need not hold the card's memory
                    model.denoiser.forget_recordings()
        if how not in ready:
            ready[how] = read(self._run.checkpoint(revision))
        return ready[how]


def _file(path: Path) -> Path:
    return path.with_suffix(".safetensors")
