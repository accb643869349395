"""Kept pairs made once more from their rows: from photos, checkpoints and tasks, without the pixels that are stored."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import groupby

import torch

from cdiff.config import Config
from cdiff.data.dataset import Dataset
from cdiff.data.images import encode_png
from cdiff.data.run import Run
from cdiff.types import Attempt
from cdiff.wasm.models import Models
from cdiff.wasm.production import produce


def made_again(
    run: Run, attempts: Sequence[Attempt], dataset: Dataset, config: Config
) -> Iterator[tuple[bytes, bytes]]:
    """Photo and mask of each attempt, PNG bytes, in their order.

    They are equal to what is stored, byte for byte, on a machine with the same PyTorch that rounds as the first did.

    Args:
        dataset: the photos of the run, as its loop split them. config: the run's.
    Raises:
        DataError: a photo that a pair is made of is not in the set.
        RunError: a checkpoint is gone.
    """
    models = Models(run, config)
    alike = groupby(attempts, lambda a: (a.assignment.task.recipe, a.assignment.task.revisions, _at_once(a)))
    for (recipe, revisions, at_once), own in alike:
        sampling = config.sampling.model_copy(update={"micro_batch": at_once})
        as_then = config.model_copy(update={"sampling": sampling})
        torch.set_num_threads(recipe.threads)
        together = list(own)
        models.draw_at_most(at_once)
        generator, bank = models.generator(revisions, recipe)
        tasks = [attempt.assignment.task for attempt in together]
        for first in range(0, len(tasks), recipe.micro_batch):
            part = tasks[first : first + recipe.micro_batch]
            made = produce(part, generator, bank, models.miners(revisions), dataset, as_then)
            for task, pair in zip(part, made, strict=True):
                mode = dataset.sample(task.background).mode
                yield encode_png(pair.image, mode), encode_png(pair.mask, "L")


def _at_once(attempt: Attempt) -> int:
    """How many went through the networks together: fewer than the recipe says where memory was short."""
    return int(dict(attempt.measures).get("micro_batch", attempt.assignment.task.recipe.micro_batch))
