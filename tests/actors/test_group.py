"""Promises of the actor group, kept on a real Ray with real deaths."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
import ray

import actors.starting as starting_module
from actors.group import ActorGroup
from cdiff.config import ResourceConfig
from cdiff.errors import ActorError, DataError, LoopStalled

pytestmark = [pytest.mark.ray, pytest.mark.usefixtures("local_ray")]


@ray.remote(num_cpus=0.5)
class Worker:
    """Does what its item says; notes each call in a file, so that a test can count the tries."""

    def __init__(self, index: int, journal: str, broken: str = "") -> None:
        if broken:
            raise ValueError(f"no weights at {broken}\nGive an existing folder.")
        self.index, self.journal = index, Path(journal)

    def square(self, number: int, seconds: float = 0.0) -> tuple[int, int]:
        self._note(f"square {number}")
        time.sleep(seconds)
        return number * number, self.index

    def die_once(self, marker: str) -> str:
        self._note("die_once")
        try:  # one alone makes it, also where two actors begin in the same moment
            Path(marker).touch(exist_ok=False)
        except FileExistsError:
            return "alive again"
        os._exit(1)

    def die(self, poison: bool) -> int:
        self._note(f"die {poison}")
        if poison:
            time.sleep(0.2)  # the innocent calls behind it are queued by then
            os._exit(1)
        return self.index

    def squares(self, numbers: list[int]) -> list[int]:
        self._note(f"squares {numbers}")
        if 13 in numbers:
            os._exit(1)
        return [number * number for number in numbers]

    def fail(self, text: str) -> None:
        self._note(text)
        raise RuntimeError(text)

    def fail_on(self, index: int) -> int:
        self._note(f"fail_on {index}")
        if self.index == index:
            raise RuntimeError("this actor is ill")
        return self.index

    def refuse(self) -> None:
        self._note("refuse")
        raise DataError("2 of 7 images have no mask, first: a.png.\nAdd the masks.")

    def eat(self, crumbs: int, light: bool = False) -> str:
        self._note(f"eat {crumbs} {light}")
        if crumbs > 2 or (crumbs > 1 and not light):
            raise MemoryError("no room for 8.0 GiB")
        return "light" if light else "whole"

    def groan(self) -> None:
        os.write(sys.stderr.fileno(), b"the disk of this node is on fire\n")
        os._exit(1)

    def _note(self, text: str) -> None:
        with self.journal.open("a") as file:
            file.write(text + "\n")


Make = Callable[..., ActorGroup]


@pytest.fixture
def journal(tmp_path: Path) -> Path:
    path = tmp_path / "journal"
    path.touch()
    return path


@pytest.fixture
def make_group(journal: Path) -> Iterator[Make]:
    groups: list[ActorGroup] = []

    def make(count: int = 2, broken: str = "", **resources: Any) -> ActorGroup:
        def actor(index: int) -> Any:
            return Worker.remote(index, str(journal), broken)  # type: ignore[attr-defined]

        groups.append(ActorGroup("test", actor, count, ResourceConfig(**resources)))
        return groups[-1]

    yield make
    for group in groups:
        group.close()


def _ready(group: ActorGroup) -> None:
    """On a busy machine an actor may take long to start."""
    ray.get([handle.__ray_ready__.remote() for handle in group.handles])


def test_results_are_in_item_order_whatever_finishes_first(make_group: Make) -> None:
    items = [(f"item-{n}", (n, 1.0 if n == 0 else 0.0)) for n in range(8)]
    finished: list[str] = []
    group = make_group()
    _ready(group)
    results = group.run("square", items, done=finished.append)
    assert [square for square, _ in results] == [n * n for n in range(8)]
    assert sorted(finished) == sorted(key for key, _ in items)
    assert finished[0] != "item-0"
    assert {index for _, index in results} == {0, 1}, "both actors worked"


def test_items_are_taken_only_as_actors_have_room(make_group: Make) -> None:
    taken: list[int] = []

    def items() -> Iterator[tuple[str, tuple[Any, ...]]]:
        for number in range(20):
            taken.append(number)
            yield str(number), (number,)

    group = make_group(in_flight=2)
    stream = group.stream("square", items())
    next(stream)
    assert len(taken) <= 2 * 2, "two actors with two calls each, and the source is not read ahead"
    stream.close()
    assert group.call("square", 3)[0] == 9, "an abandoned stream leaves the group usable"


def test_an_item_whose_actor_is_killed_is_done_by_another_one(make_group: Make, journal: Path) -> None:
    group = make_group()
    victim = group.handles[0]
    stream = group.stream("square", [(str(n), (n, 0.5)) for n in range(6)])
    first = next(stream)
    ray.kill(victim, no_restart=True)
    results = dict([first, *stream])
    assert {key: square for key, (square, _) in results.items()} == {str(n): n * n for n in range(6)}
    assert group.handles[0] != victim
    assert len(journal.read_text().splitlines()) in (6, 7), "only what ran on the killed actor was repeated"


def test_a_crashed_process_is_replaced_and_its_item_tried_again(
    make_group: Make, journal: Path, tmp_path: Path
) -> None:
    assert make_group(count=1).call("die_once", str(tmp_path / "marker")) == "alive again"
    assert journal.read_text().splitlines() == ["die_once", "die_once"]


def test_a_poison_item_ends_with_an_error_that_names_it_and_spares_its_neighbours(
    make_group: Make, journal: Path
) -> None:
    group = make_group(count=1, retries=1, in_flight=3)
    items = [("poison", (True,)), ("good-1", (False,)), ("good-2", (False,))]
    with pytest.raises(ActorError, match=r"failed 2 times in die on item poison; first cause: .*died"):
        group.run("die", items)
    assert journal.read_text().splitlines().count("die True") == 2, "one try and one retry"
    assert group.call("die", False) == 0, "the group lives on"


def test_a_successor_that_finds_no_place_holds_nobody_up(journal: Path, tmp_path: Path) -> None:
    """As after the loss of a node: the others do its work, and what is queued does not wait for it."""
    made: list[int] = []

    def actor(index: int) -> Any:
        made.append(index)
        place = {} if len(made) <= 2 else {"num_cpus": 40}
        return Worker.options(**place).remote(index, str(journal))  # type: ignore[attr-defined]

    with ActorGroup("test", actor, 2, ResourceConfig(in_flight=2, stall_timeout_s=30.0)) as group:
        _ready(group)
        marker = str(tmp_path / "marker")
        assert group.run("die_once", [(str(n), (marker,)) for n in range(6)]) == ["alive again"] * 6
        assert len(made) == 3
        alive = 1 - made[2]
        assert group.run("square", [(str(n), (n,)) for n in range(6)]) == [(n * n, alive) for n in range(6)]


def test_a_group_of_which_none_has_a_place_says_what_it_waits_for(monkeypatch, caplog, journal: Path) -> None:
    made: list[int] = []

    def actor(index: int) -> Any:
        made.append(index)
        place = {} if len(made) == 1 else {"num_cpus": 40}
        return Worker.options(**place).remote(index, str(journal))  # type: ignore[attr-defined]

    monkeypatch.setattr(starting_module, "_SILENT", 0.5)
    with ActorGroup("test", actor, 1, ResourceConfig(stall_timeout_s=4.0)) as group:
        _ready(group)
        with pytest.raises(
            LoopStalled, match=r"nothing moved among the test actors .* 1 are waited for \(die\)"
        ):
            group.call("die", True)
    told = [message for message in caplog.messages if "has a place" in message]
    assert told == [
        "none of the 1 test actors has a place on the cluster; waiting at most 4 s (resources.stall_timeout_s)"
    ]


def test_actors_that_find_a_place_later_join_then(journal: Path) -> None:
    """As on a cluster that grows: two of four are there, and the others get work once nodes have come for them."""

    def actor(index: int) -> Any:
        return Worker.options(num_cpus=1).remote(index, str(journal))  # type: ignore[attr-defined]

    holder = Worker.options(num_cpus=2).remote(9, str(journal))  # type: ignore[attr-defined]
    ray.get(holder.__ray_ready__.remote())
    work = [(str(n), (n, 0.2)) for n in range(12)]
    with ActorGroup("test", actor, 4, ResourceConfig(in_flight=1, stall_timeout_s=30.0)) as group:
        while group.placed < 2:
            time.sleep(0.1)
        early = group.run("square", work)
        assert [value for value, _ in early] == [n * n for n in range(12)]
        assert len({index for _, index in early}) == 2
        ray.kill(holder)
        _ready(group)
        assert {index for _, index in group.run("square", work)} == {0, 1, 2, 3}


def test_what_is_harmless_in_a_poison_item_is_done_and_the_rest_is_left_out(
    make_group: Make, journal: Path
) -> None:
    left_out: list[tuple[str, str]] = []

    def parts(key: str, arguments: tuple[Any, ...], cause: str) -> list[tuple[str, tuple[Any, ...]]]:
        (numbers,) = arguments
        if len(numbers) == 1:
            left_out.append((key, cause))
            return []
        middle = len(numbers) // 2
        return [(str(part[0]), (part,)) for part in (numbers[:middle], numbers[middle:])]

    items = [("1", ([1, 2],)), ("11", ([11, 12, 13, 14],)), ("21", ([21, 22],))]
    group = make_group(count=2)
    _ready(group)
    found = dict(group.stream("squares", items, parts=parts))
    assert sorted(n for squares in found.values() for n in squares) == [
        n * n for n in (1, 2, 11, 12, 14, 21, 22)
    ]
    assert [key for key, _ in left_out] == ["13"] and "died" in left_out[0][1]
    deaths = [line for line in journal.read_text().splitlines() if "13" in line]
    assert deaths == ["squares [11, 12, 13, 14]"] * 2 + ["squares [13, 14]", "squares [13]"]


def test_what_runs_out_of_memory_is_tried_lighter_once(make_group: Make, journal: Path) -> None:
    asked: list[str] = []

    def lighter(key: str, arguments: tuple[Any, ...]) -> tuple[Any, ...]:
        asked.append(key)
        return (*arguments, True)

    group = make_group(count=2, retries=0)
    items = [("crumb", (1,)), ("slice", (2,))]
    assert dict(group.stream("eat", items, lighter=lighter)) == {"crumb": "whole", "slice": "light"}
    with pytest.raises(
        ActorError, match=r"(?s)failed 1 times .* loaf; .*MemoryError: .*lower sampling.micro_batch"
    ):
        dict(group.stream("eat", [("loaf", (3,))], lighter=lighter))
    assert asked == ["slice", "loaf"]
    assert [line for line in journal.read_text().splitlines() if "3" in line] == ["eat 3 False", "eat 3 True"]


def test_the_first_cause_of_a_death_comes_with_the_last_lines_of_its_log(make_group: Make) -> None:
    with pytest.raises(ActorError, match=r"(?s)first cause: .*died.*last lines:.*node is on fire"):
        make_group(count=1, retries=1).call("groan")


def test_a_failing_call_is_tried_again_on_another_actor(make_group: Make, journal: Path) -> None:
    group = make_group(count=2)
    _ready(group)
    assert group.call("fail_on", 0) == 1
    assert journal.read_text().splitlines() == ["fail_on 0", "fail_on 0"]


def test_the_error_after_the_last_retry_shows_item_and_first_cause(make_group: Make, journal: Path) -> None:
    with pytest.raises(
        ActorError, match="failed 3 times in fail on item shard-7; first cause: RuntimeError: out of luck"
    ):
        make_group(retries=2).run("fail", [("shard-7", ("out of luck",))])
    assert len(journal.read_text().splitlines()) == 3


def test_an_error_that_the_user_must_mend_is_raised_as_it_is_and_not_retried(
    make_group: Make, journal: Path
) -> None:
    with pytest.raises(DataError, match="2 of 7 images have no mask") as caught:
        make_group().run("refuse", [("shard-1", ())])
    assert type(caught.value) is DataError, "the library's own error, without Ray's wrapping"
    assert "item shard-1" in caught.value.__notes__[0]
    assert journal.read_text().splitlines() == ["refuse"]


def test_an_actor_that_cannot_be_made_says_why_at_once(make_group: Make) -> None:
    with pytest.raises(
        ActorError, match="could not be made; first cause: ValueError: no weights at /nowhere"
    ) as caught:
        make_group(broken="/nowhere").call("square", 1)
    assert "Give an existing folder." in str(caught.value), "all lines of the message"


def test_a_standstill_ends_within_its_bound_and_tells_the_counts(make_group: Make) -> None:
    group = make_group(count=1, stall_timeout_s=2.0)
    _ready(group)
    looks: list[int] = []
    began = time.monotonic()
    with pytest.raises(
        LoopStalled, match=r"for 2 s: of square, 1 results are there and 1 are waited for \(slow\)"
    ):
        group.run(
            "square", [("quick", (2,)), ("slow", (2, 30.0))], watch=lambda steps: looks.append(len(steps))
        )
    assert time.monotonic() - began < 6
    assert looks, "whoever waits may look"


def test_two_items_with_one_id_are_refused(make_group: Make) -> None:
    with pytest.raises(ValueError, match="two items have the id 'a'"):
        make_group().run("square", [("a", (1,)), ("a", (2,))])


@ray.remote(num_cpus=0, concurrency_groups={"status": 1})  # type: ignore[call-overload]
class Walker:
    """Takes steps of a second, and may stop in the midst."""

    def __init__(self) -> None:
        self.done = (0, 0)

    def walk(self, steps: int, until: int) -> int:
        for step in range(steps):
            self.done = (step, steps)
            time.sleep(1.0 if step < until else 60.0)
        return steps

    @ray.method(concurrency_group="status")
    def progress(self) -> tuple[int, int]:
        return self.done


@pytest.fixture
def walkers() -> Iterator[ActorGroup]:
    with ActorGroup("walker", lambda _: Walker.remote(), 2, ResourceConfig(stall_timeout_s=6.0)) as group:  # type: ignore[attr-defined]
        _ready(group)
        yield group


def test_a_long_call_may_take_its_time_as_long_as_it_takes_steps(walkers: ActorGroup) -> None:
    seen: list[tuple[int, int]] = []
    assert walkers.run("walk", [("long", (9, 9))], watch=seen.extend) == [9]
    assert any(0 < done < 9 for done, _ in seen) and all(done < total for done, total in seen)


def test_an_actor_that_hangs_in_the_midst_is_a_standstill_though_it_answers(walkers: ActorGroup) -> None:
    began = time.monotonic()
    with pytest.raises(LoopStalled, match="walker actors for 6 s"):
        walkers.run("walk", [("stuck", (9, 2))])
    assert 6 < time.monotonic() - began < 60


def test_a_bar_passes_over_an_actor_that_died(walkers: ActorGroup) -> None:
    seen: list[tuple[int, int]] = []

    def watch(steps: Sequence[tuple[int, int]]) -> None:
        if steps and not seen:
            ray.kill(walkers.handles[0])
        seen.extend(steps)

    assert walkers.run("walk", [("a", (4, 4)), ("b", (4, 4))], watch=watch) == [4, 4]
    assert seen
