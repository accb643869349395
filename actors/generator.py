"""The actor that trains the generator and makes pairs. Same task, same bytes, whoever runs it."""

from __future__ import annotations

import ray

from actors.resources import set_threads
from cdiff.config import Config
from cdiff.data.dataset import Dataset
from cdiff.data.store import Run
from cdiff.downstream.segmenter import load_segmenter
from cdiff.generator.model import Generator
from cdiff.generator.training import Trained, train_generator
from cdiff.safe.tokens import TokenBank
from cdiff.types import Assignment, Attempt
from cdiff.wasm.production import produce_shard


@ray.remote(concurrency_groups={"status": 1})  # type: ignore[call-overload]  # missing in Ray's stubs
class GeneratorActor:
    """Holds one generator, its token bank, and its own copy of the segmenter that judges."""

    def __init__(self, run: Run, config: Config, dataset: Dataset) -> None:
        set_threads(config.resources.threads)
        self.run, self.config, self.dataset = run, config, dataset
        self.done = (0, 0)
        self.loaded: dict[str, object] = {}

    def train(self, target_ids: list[str], photo_ids: list[str]) -> Trained:
        """Train on these targets, or go on from the last checkpoint."""
        targets = [self.dataset.target(target_id) for target_id in target_ids]

        def progress(step: int, steps: int, _: float) -> None:
            self.done = (step, steps)

        folder = self.run.checkpoints
        return train_generator(
            self.dataset, targets, photo_ids, self.config, folder, progress, self.config.resources.device
        )

    def generate(self, shard: list[Assignment]) -> list[Attempt]:
        """Make the pairs of one shard and store them; a committed shard is only read."""
        revisions = shard[0].task.revisions
        device = self.config.resources.device
        generator = self._load(revisions.generator, lambda path: Generator.load(path, device))
        bank = self._load(revisions.bank, lambda path: TokenBank.load(path.with_suffix(".safetensors")))
        segmenter = self._load(revisions.segmenter, load_segmenter) if revisions.segmenter else None
        return produce_shard(shard, self.run, generator, bank, segmenter, self.dataset, self.config)

    @ray.method(concurrency_group="status")
    def progress(self) -> tuple[int, int]:
        """Steps done and steps in all of the current training: (0, 0) before it."""
        return self.done

    def _load(self, revision: str, read):  # type: ignore[no-untyped-def]  # one of three model kinds
        if revision not in self.loaded:
            self.loaded[revision] = read(self.run.checkpoint(revision))
        return self.loaded[revision]
