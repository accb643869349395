"""A plan comes back whole but for the tasks that kill their actors, and those are few, or the fault is not theirs."""

import dataclasses
from collections.abc import Iterable, Iterator
from types import SimpleNamespace
from typing import Any

import pytest

from actors.shards import Shards
from cdiff.data.run import Run
from cdiff.errors import ActorError
from cdiff.types import Assignment
from tests.actors.test_shelf import assignment


class Mortal:
    """Generators as a group of actors; they die of the tasks with these numbers."""

    def __init__(self, *deadly: int) -> None:
        self.deadly, self.asked = set(deadly), list[list[int]]()

    def stream(self, method: str, work: Iterable[Any], *, parts: Any, lighter: Any) -> Iterator[Any]:
        left = list(work)
        while left:
            key, (shard, *more) = left.pop(0)
            numbers = [a.index for a in shard]
            self.asked.append(numbers)
            if self.deadly & set(numbers):
                left += parts(key, (shard, *more), "the actor died")
            else:
                yield key, [SimpleNamespace(task_id=a.task_id, index=a.index) for a in shard]


@pytest.fixture
def shards(photos, tiny_config, tmp_path) -> Shards:
    run = Run(tmp_path / "one")
    (run.path / "pairs").mkdir(parents=True)
    return Shards(run, tiny_config, photos)


@pytest.fixture
def plan(photos) -> list[Assignment]:
    normal = next(s.sample_id for s in photos.samples if s.is_normal)
    return [assignment(n, background=normal) for n in range(100)]


def _made(shards: Shards, plan: list[Assignment], mortal: Any) -> list[int]:
    made: Any = shards.make(mortal, plan, "round 1")
    return [attempt.index for attempt in made]


def test_of_a_shard_that_kills_its_actors_all_but_the_deadly_task_is_made(shards, plan):
    mortal = Mortal(3)
    assert _made(shards, plan[:20], mortal) == [n for n in range(20) if n != 3]
    assert shards.quarantined == [plan[3]]
    own = [asked for asked in mortal.asked if 3 in asked]
    assert [len(asked) for asked in own] == [16, 8, 4, 2, 1], "what it shares a shard with is halved"


def test_two_of_a_hundred_tasks_may_kill_their_actors_and_no_more(shards, plan):
    assert _made(shards, plan, Mortal(3, 57)) == [n for n in range(100) if n not in (3, 57)]
    assert shards.quarantined == [plan[3], plan[57]]
    shards.quarantined = []
    with pytest.raises(ActorError, match=r"after another dies, .*; first cause: the actor died"):
        _made(shards, plan, Mortal(3, 57, 91))
    assert shards.quarantined == [plan[3], plan[57]]


def test_those_of_a_first_wave_do_not_count_for_the_second(shards, plan):
    _made(shards, plan[:20], Mortal(3))
    assert _made(shards, plan[20:40], Mortal(30)) == [n for n in range(20, 40) if n != 30]
    assert shards.quarantined == [plan[3], plan[30]], "the round tells of both"


def test_shards_are_of_one_recipe_and_come_back_in_the_plans_order(shards, plan):
    recipe = dataclasses.replace(plan[0].task.recipe, steps=8)
    mixed = [
        dataclasses.replace(a, task=dataclasses.replace(a.task, recipe=recipe)) if a.index % 3 else a
        for a in plan[:20]
    ]
    mortal = Mortal()
    assert _made(shards, mixed, mortal) == list(range(20))
    assert sorted(len({n % 3 == 0 for n in asked}) for asked in mortal.asked) == [1, 1]


def test_where_memory_was_short_half_as_much_is_drawn_at_once_also_of_what_is_halved(shards, plan):
    lighter = shards._halved("key", (plan[:4],))
    assert lighter == (plan[:4], True)
    assert [more for _, (_, *more) in shards._suspects("key", lighter, "")] == [[True], [True]]
    single = shards.config.sampling.model_copy(update={"micro_batch": 1})
    shards.config = shards.config.model_copy(update={"sampling": single})
    assert shards._halved("key", (plan[:4],)) is None, "there is nothing to halve"
