"""A plan of pairs cut into shards, made by the generator actors, and what is done about those that kill or overload them."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Any

from tqdm import tqdm

from actors.group import ActorGroup, Work
from cdiff.config import Config
from cdiff.data.dataset import Dataset
from cdiff.data.store import Run, shard_committed, shard_name
from cdiff.errors import ActorError
from cdiff.types import Assignment, Attempt, Recipe

log = logging.getLogger(__name__)

_POISON = 0.02  # share of a plan's tasks that may kill their actors; beyond it the fault is not theirs


class Shards:
    """What is committed is only read; what is missing is made, a shard per call."""

    def __init__(self, run: Run, config: Config, dataset: Dataset) -> None:
        self.run, self.config, self.dataset = run, config, dataset
        self.quarantined: list[Assignment] = []  # tasks of the last round that killed their actors ...
        self._bearable = 0  # ... and how many of them may

    def make(self, generators: ActorGroup, plan: Sequence[Assignment], label: str) -> list[Attempt]:
        """The attempts of a plan, in its order, without those of tasks that were given up."""
        size = self.config.wasm.shard
        recipes: dict[Recipe, list[Assignment]] = {}  # a shard is made in one go: its tasks are of one recipe
        for assignment in plan:
            recipes.setdefault(assignment.task.recipe, []).append(assignment)
        shards = [own[first : first + size] for own in recipes.values() for first in range(0, len(own), size)]
        missing = [a for shard in shards if not shard_committed(self.run, shard_name(shard)) for a in shard]
        self.run.demand_room(sum(map(self._bytes, missing)), f"{len(missing)} pairs")
        self._bearable = len(self.quarantined) + max(1, round(_POISON * len(plan)))
        found: dict[str, list[Attempt]] = {}
        with tqdm(total=len(plan), desc=label, unit="pair", leave=False) as bar:
            work = [(shard[0].task_id, (shard,)) for shard in shards]
            for _, attempts in generators.stream(
                "generate", work, parts=self._suspects, lighter=self._halved
            ):
                found |= {attempts[0].task_id: attempts}
                bar.update(len(attempts))
        order = {assignment.task_id: number for number, assignment in enumerate(plan)}
        return sorted((a for shard in found.values() for a in shard), key=lambda a: order[a.task_id])

    def _bytes(self, assignment: Assignment) -> int:
        """About what a pair takes on disk: PNG halves photos at best, and crops and masks come on top."""
        photo = self.dataset.sample(assignment.task.background)
        return photo.width * photo.height * (1 if photo.mode == "L" else 3)

    def _suspects(self, key: str, arguments: tuple[Any, ...], cause: str) -> list[Work]:
        """A shard that killed two actors, in halves; a task of which nothing is left to halve is given up, so that the round goes on."""
        shard, *halved = arguments
        middle = len(shard) // 2
        if middle:
            return [(part[0].task_id, (part, *halved)) for part in (shard[:middle], shard[middle:])]
        if len(self.quarantined) >= self._bearable:
            raise ActorError(
                f"one generator actor after another dies, whatever it makes; first cause: {cause}"
            )
        log.warning("task=%s of slice %s killed its actors and is left out: %s", key, shard[0].slice, cause)
        self.quarantined.append(shard[0])
        return []

    def _halved(self, key: str, arguments: tuple[Any, ...]) -> tuple[Any, ...] | None:
        """A shard for which memory was short, with micro-batches of half the size; their rows tell."""
        return (arguments[0], True) if self.config.sampling.micro_batch > 1 else None
