"""The actor that trains the generator and makes pairs. Same task, same bytes, whoever runs it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import ray

from actors.resources import set_threads
from actors.shelf import shelve_shard, take_shard
from cdiff.config import Config
from cdiff.data.dataset import Dataset
from cdiff.data.store import Run, shard_name
from cdiff.downstream.segmenter import load_segmenter
from cdiff.generator.model import Generator
from cdiff.generator.training import Trained, train_generator
from cdiff.safe.tokens import TokenBank
from cdiff.types import Assignment, Attempt, GenerationTask, Outcome, Revisions
from cdiff.wasm.adaptation import adapt
from cdiff.wasm.mining import Miners
from cdiff.wasm.noise import NoiseMiner
from cdiff.wasm.production import produce_shard
from cdiff.wasm.token import WeaknessToken


@ray.remote(concurrency_groups={"status": 1})  # type: ignore[call-overload]  # missing in Ray's stubs
class GeneratorActor:
    """Holds one generator, its token bank, and its own copy of the segmenter that judges."""

    def __init__(self, run: Run, config: Config, dataset: Dataset) -> None:
        set_threads(config.resources.threads)
        self.run, self.config, self.dataset = run, config, dataset
        self.done = (0, 0)
        self.loaded: dict[str, Any] = {}

    def train(self, target_ids: list[str], photo_ids: list[str]) -> Trained:
        """Train on these targets, or go on from the last checkpoint."""
        targets = [self.dataset.target(target_id) for target_id in target_ids]
        return train_generator(
            self.dataset,
            targets,
            photo_ids,
            self.config,
            self.run.checkpoints,
            self._progress,
            self.config.resources.device,
            lambda revision: self.run.publish(f"checkpoints/{revision}"),
        )

    def generate(self, shard: list[Assignment]) -> list[Attempt]:
        """Make the pairs of one shard and store them; a committed shard is only read."""
        revisions = shard[0].task.revisions
        generator, bank = self._generator(revisions)
        name = shard_name(shard)
        take_shard(self.run, name, shard, self.config)
        attempts = produce_shard(
            shard, self.run, generator, bank, self._miners(revisions), self.dataset, self.config
        )
        shelve_shard(self.run, name, shard, self.config)
        return attempts

    def adapt(self, tasks: list[GenerationTask], outcomes: list[Outcome], seed: int) -> Revisions:
        """Fit what the tasks' arm learns each round; the tasks' revisions with those of the new parts."""
        generator, bank = self._generator(tasks[0].revisions)
        miners = self._miners(tasks[0].revisions)
        folder = self.run.checkpoints
        adapted = adapt(
            generator, bank, miners, tasks, outcomes, self.dataset, self.config, folder, seed, self._progress
        )
        for revision in {adapted.miner, adapted.token} - {"", None}:
            self.run.publish(f"checkpoints/{revision}.safetensors")
        return adapted

    def _generator(self, revisions: Revisions) -> tuple[Generator, TokenBank]:
        device = self.config.resources.device
        generator = self._load(revisions.generator, lambda path: Generator.load(path, device))
        return generator, self._load(revisions.bank, lambda path: TokenBank.load(_file(path)))

    def _miners(self, revisions: Revisions) -> Miners:
        """What the task's arm needs, as far as its revisions name it."""
        known: dict[str, Any] = {}
        if revisions.segmenter:
            known["segmenter"] = self._load(revisions.segmenter, load_segmenter)
        if revisions.miner:
            known["noise"] = self._load(revisions.miner, lambda path: NoiseMiner.load(_file(path)))
        if revisions.token:
            known["token"] = self._load(revisions.token, lambda path: WeaknessToken.load(_file(path)))
        return Miners(**known)

    def _progress(self, done: int, total: int, _: float = 0.0) -> None:
        self.done = (done, total)

    @ray.method(concurrency_group="status")
    def progress(self) -> tuple[int, int]:
        """Steps done and steps in all of the current training: (0, 0) before it."""
        return self.done

    def _load(self, revision: str, read):  # type: ignore[no-untyped-def]  # one of three model kinds
        if revision not in self.loaded:
            self.loaded[revision] = read(self.run.checkpoint(revision))
        return self.loaded[revision]


def _file(path: Path) -> Path:
    return path.with_suffix(".safetensors")
