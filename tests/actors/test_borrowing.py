"""Calls of lent actors: whoever lives answers, a death costs one call, and a wait ends."""

from __future__ import annotations

import logging
import os
import signal
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import ray
from ray.cluster_utils import Cluster

from actors.borrowing import answers
from cdiff.config_file import load_config, overridden
from cdiff.errors import ActorError, DataError, LoopStalled

pytestmark = [pytest.mark.ray, pytest.mark.slow]
CONFIG = load_config(None, ["resources.stall_timeout_s=40", "resources.retries=1"])


@ray.remote(max_restarts=-1, max_task_retries=1, concurrency_groups={"status": 1})  # type: ignore[call-overload]
class Maker:
    """Does what its call says."""

    def double(self, number: int, seconds: float = 0.0) -> int:
        time.sleep(seconds)
        return 2 * number

    def die(self, marker: str, times: int) -> int:
        with Path(marker).open("a") as file:
            file.write("x")
        if Path(marker).stat().st_size <= times:
            os._exit(1)
        return Path(marker).stat().st_size

    def compute_once(self, marker: str) -> str:
        if not Path(marker).exists():
            Path(marker).write_text(str(os.getpid()))
        if Path(marker).read_text() == str(os.getpid()):
            raise RuntimeError("CUDA error: an illegal memory access was encountered")
        return "computed"

    def refuse(self) -> None:
        raise DataError("no photo at a.png")

    def freeze_once(self, marker: str) -> str:
        if not Path(marker).exists():
            Path(marker).write_text(str(os.getpid()))
            os.kill(os.getpid(), signal.SIGSTOP)
        return "warm"

    @ray.method(concurrency_group="status")
    def progress(self) -> tuple[int, int]:
        return 0, 0

    def node(self) -> str:
        return ray.get_runtime_context().get_node_id()


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    found = Cluster(initialize_head=True, head_node_args={"num_cpus": 1})
    ray.init(address=found.address, log_to_driver=False, logging_level=logging.ERROR)
    yield found
    ray.shutdown()
    found.shutdown()


@pytest.fixture
def makers(cluster) -> Iterator[Any]:
    """Makes an actor under a name."""
    handles = []

    def make(name: str, **options: Any) -> str:
        handles.append(Maker.options(name=name, **{"num_cpus": 0, **options}).remote())  # type: ignore[attr-defined]
        return name

    yield make
    for handle in handles:
        ray.kill(handle, no_restart=True)


def test_answers_are_in_the_order_of_the_calls_and_an_actor_without_a_place_is_done_without(makers) -> None:
    names = [makers("nowhere", num_cpus=99), makers("one"), makers("two")]
    calls = [(n, 0.5 if n == 0 else 0.0) for n in range(7)]
    assert answers(names, "double", calls, CONFIG) == [2 * n for n in range(7)]
    assert answers(names, "double", [], CONFIG) == []


def test_calls_of_actors_that_are_lost_with_their_node_are_made_by_another(cluster, makers) -> None:
    node = cluster.add_node(num_cpus=1)
    names = [makers("left", num_cpus=1), makers("right", num_cpus=1)]
    where: set[str] = set(ray.get([ray.get_actor(name).node.remote() for name in names]))
    assert len(where) == 2, "each on its own node"
    blow = threading.Timer(1.5, lambda: cluster.remove_node(node))
    blow.start()
    calls = [(n, 1.0) for n in range(8)]
    assert answers(names, "double", calls, CONFIG) == [2 * n for n in range(8)]
    blow.join()
    assert answers(names, "double", calls[:2], CONFIG) == [0, 2], "one of the two has no place any more"


def test_what_kills_its_actors_is_tried_again_and_fails_in_the_end(makers, tmp_path) -> None:
    names = [makers("mortal")]
    assert answers(names, "die", [(str(tmp_path / "once"), 1)], CONFIG) == [2]
    with pytest.raises(ActorError, match="die by a trial failed with 2 lent actors"):
        answers(names, "die", [(str(tmp_path / "ever"), 9)], CONFIG)
    assert len((tmp_path / "ever").read_text()) == 2


def test_an_actor_whose_gpu_is_broken_is_made_anew(makers, tmp_path) -> None:
    assert answers([makers("ill")], "compute_once", [(str(tmp_path / "who"),)], CONFIG) == ["computed"]


def test_an_error_of_the_method_itself_is_told_at_once(makers) -> None:
    with pytest.raises(DataError, match=r"no photo at a\.png"):
        answers([makers("strict")], "refuse", [()], CONFIG)


def test_a_call_whose_actor_shows_no_life_is_made_by_another(makers, tmp_path, monkeypatch) -> None:
    monkeypatch.setattr("actors.borrowing._LIFE", 3.0)
    config = overridden(CONFIG, ["resources.wait_seconds=2"])
    names, marker = [makers("first"), makers("second")], tmp_path / "frozen"
    try:
        assert answers(names, "freeze_once", [(str(marker),)], config) == ["warm"]
    finally:
        os.kill(int(marker.read_text()), signal.SIGKILL)


def test_a_trial_gives_its_place_up_where_no_actor_has_one(makers, monkeypatch) -> None:
    monkeypatch.setattr("actors.borrowing._LIFE", 1.0)
    config = overridden(CONFIG, ["resources.wait_seconds=2"])
    with pytest.raises(ActorError, match="no lent actor that could do double shows life"):
        answers([makers("nowhere", num_cpus=99), makers("neither", num_cpus=99)], "double", [(1,)], config)
    with pytest.raises(ActorError, match="no lent actor is left for double"):
        answers(["never made"], "double", [(1,)], config)


def test_a_wait_for_an_actor_that_lives_ends_too(makers) -> None:
    config = overridden(CONFIG, ["resources.wait_seconds=1", "resources.stall_timeout_s=4"])
    with pytest.raises(
        LoopStalled, match="1 of 2 calls of double by a trial wait, and none was answered in 4 s"
    ):
        answers([makers("slow")], "double", [(1,), (1, 60.0)], config)
