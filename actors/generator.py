"""The actor that trains the generator and makes pairs. Same task, same bytes, whoever runs it."""

from __future__ import annotations

from typing import Any

import ray

from actors.resources import join_driver, photos_of
from actors.shelf import shelve_shard, take_shard
from cdiff.config import Config
from cdiff.data.dataset import Dataset
from cdiff.data.store import Run, shard_name
from cdiff.generator.training import TRAINING_STATE, Progress, Trained, train_generator
from cdiff.types import Assignment, Attempt, GenerationTask, Outcome, Revisions
from cdiff.wasm.adaptation import adapt
from cdiff.wasm.models import Models
from cdiff.wasm.production import produce_shard, with_half_batches
from cdiff.workers import ALONE, Workers


def trained(
    run: Run,
    config: Config,
    dataset: Dataset,
    workers: Workers,
    device: str,
    progress: Progress,
    *,
    target_ids: list[str],
    photo_ids: list[str],
) -> Trained:
    """Train a generator alone or as one of several workers, from the last checkpoint, whichever machine wrote it."""
    run.local(f"checkpoints/{TRAINING_STATE}", anew=True)
    targets = [dataset.target(target_id) for target_id in target_ids]
    stored = lambda name: run.publish(f"checkpoints/{name}")  # noqa: E731
    about = dataset, targets, photo_ids, config, run.checkpoints
    return train_generator(*about, progress, device, stored, workers)


@ray.remote(concurrency_groups={"status": 1})  # type: ignore[call-overload]  # missing in Ray's stubs
class GeneratorActor:
    """Holds one generator, its token bank, and its own copy of the segmenter that judges."""

    def __init__(self, run: Run, config: Config, dataset: Dataset | list[Any]) -> None:
        join_driver(config)
        self.run, self.config, self.dataset = run, config, photos_of(dataset)
        self.done = (0, 0)
        self.models = Models(run, config)

    def train(self, target_ids: list[str], photo_ids: list[str]) -> Trained:
        """Train on these targets, or go on from the last checkpoint, whichever machine wrote it."""
        device = self.config.resources.device
        work = self.run, self.config, self.dataset, ALONE, device, self._progress
        return trained(*work, target_ids=target_ids, photo_ids=photo_ids)

    def generate(self, shard: list[Assignment], halved: bool = False) -> list[Attempt]:
        """Make the pairs of one shard and store them; a committed shard is only read.

        Args:
            halved: half as many at once as the tasks' recipe says, since those were too many for this machine's memory; the rows say so.
        """
        config = with_half_batches(self.config) if halved else self.config
        revisions = shard[0].task.revisions
        generator, bank = self.models.generator(revisions, shard[0].task.recipe)
        if halved:
            self.models.draw_at_most(config.sampling.micro_batch)
        name = shard_name(shard)
        take_shard(self.run, name, shard, self.dataset, self.config)
        attempts = produce_shard(
            shard, self.run, generator, bank, self.models.miners(revisions), self.dataset, config
        )
        if not halved:  # those may differ by a rounding
            shelve_shard(self.run, name, shard, self.dataset, self.config)
        return attempts

    def adapt(self, tasks: list[GenerationTask], outcomes: list[Outcome], seed: int) -> Revisions:
        """Fit what the tasks' arm learns each round; the tasks' revisions with those of the new parts."""
        generator, bank = self.models.generator(tasks[0].revisions, tasks[0].recipe)
        miners = self.models.miners(tasks[0].revisions)
        folder = self.run.checkpoints
        adapted = adapt(
            generator, bank, miners, tasks, outcomes, self.dataset, self.config, folder, seed, self._progress
        )
        for revision in {adapted.miner, adapted.token} - {"", None}:
            self.run.publish(f"checkpoints/{revision}.safetensors")
        return adapted

    def _progress(self, done: int, total: int, _: float = 0.0) -> None:
        self.done = (done, total)

    @ray.method(concurrency_group="status")
    def progress(self) -> tuple[int, int]:
        """Steps done and steps in all of the current training: (0, 0) before it."""
        return self.done
