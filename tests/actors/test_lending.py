"""Actors that are lent: found by name, made anew by Ray when they die, and gone when the block ends."""

from types import SimpleNamespace
from typing import Any

import pytest
import ray
from ray.exceptions import RayActorError

from actors.lending import lent, make_room
from actors.places import preflight
from cdiff.config_file import overridden
from cdiff.data.run import Run
from cdiff.errors import ResourceError
from cdiff.wasm.quality import Thresholds

pytestmark = [pytest.mark.ray, pytest.mark.slow]


@pytest.fixture
def crew(local_ray, photos, tiny_config, tmp_path) -> SimpleNamespace:
    calls: list[str] = []
    nothing: tuple = (tiny_config, {}, {}, {}, {}, set(), Thresholds(()), {})
    return SimpleNamespace(
        run=Run(tmp_path),
        config=tiny_config,
        shared=ray.put(photos),
        coordinates=nothing,
        generators=SimpleNamespace(placed=tiny_config.resources.generators),
        calls=calls,
        rest=lambda: calls.append("rest"),
        wake=lambda: calls.append("wake"),
    )


@pytest.mark.long
def test_a_lent_actor_that_dies_is_made_anew_under_its_name(crew, photos) -> None:
    with lent(crew) as names:
        assert crew.calls == ["rest"] and len(names.generators) == crew.config.resources.generators
        generator = ray.get_actor(names.generators[0])
        assert ray.get(generator.progress.remote()) == (0, 0)
        ray.kill(generator, no_restart=False)
        assert ray.get(ray.get_actor(names.generators[0]).progress.remote(), timeout=60) == (0, 0)
        sample = photos.samples[0].sample_id
        assert set(ray.get(ray.get_actor(names.extractor).frames.remote([sample]))) == {sample}
        assert ray.get_actor(names.coordinator)
        handle = ray.get_actor(names.generators[1])
    assert crew.calls == ["rest", "wake"]
    with pytest.raises((RayActorError, ValueError)):
        ray.get(handle.progress.remote(), timeout=30)


@ray.remote
class Light:
    """In the place of an actor that would take seconds to import what it computes with."""

    def __init__(self, *_: Any) -> None:
        pass

    def progress(self) -> tuple[int, int]:
        return 0, 0


@pytest.fixture
def bereft(crew, monkeypatch) -> SimpleNamespace:
    """A crew of four generators, two of which were lost with a node, as nobody has noticed: four places are left."""
    for name in ("GeneratorActor", "ExtractorActor", "CoordinatorActor"):
        monkeypatch.setattr(f"actors.lending.{name}", Light)
    sizes = ["resources.cpus=1", "resources.generators=4", "resources.wait_seconds=10"]
    crew.config = overridden(crew.config, [*sizes, "resources.stall_timeout_s=30"])
    crew.generators.placed = 4
    return crew


def test_generators_that_find_no_place_are_done_without_and_leave_room_for_a_trial(bereft, caplog) -> None:
    with lent(bereft) as names:
        assert len(names.generators) == 2
        assert ray.get([ray.get_actor(name).progress.remote() for name in names.generators])
        assert ray.get(ray.get_actor(names.extractor).progress.remote())
        preflight(bereft.config, actors={"downstream": 1})  # a trial finds its place
    assert "2 of 4 generators found a place; the others had 10 s" in caplog.messages
    preflight(bereft.config, actors={"downstream": 4})  # all of it was given back


def test_without_room_for_a_trial_nothing_is_lent_and_nothing_stays(bereft) -> None:
    others = [Light.options(num_cpus=1).remote() for _ in range(2)]  # type: ignore[attr-defined]
    ray.get([other.progress.remote() for other in others])
    bereft.config = overridden(bereft.config, ["resources.wait_seconds=2"])
    with pytest.raises(ResourceError, match="1 downstream"), lent(bereft):
        pass
    assert bereft.calls == ["rest"], "what ends the run needs no actors"
    preflight(bereft.config, actors={"downstream": 2})


def test_room_is_made_by_generators_without_a_place_and_one_more_but_one_stays(
    local_ray, monkeypatch
) -> None:
    monkeypatch.setattr("actors.borrowing._LIFE", 3.0)
    sizes = {"first": 1, "second": 1, "third": 1, "nowhere": 9}
    named = [Light.options(name=name, num_cpus=cpus) for name, cpus in sizes.items()]  # type: ignore[attr-defined]
    handles = [actor.remote() for actor in named]
    ray.get([handle.progress.remote() for handle in handles[:3]])
    names = list(sizes)
    assert (left := make_room(names)) == ["first", "second"]
    for gone in ("third", "nowhere"):
        with pytest.raises(ValueError, match=gone):
            ray.get_actor(gone)
    assert make_room(left) == ["first"] and make_room(["first"]) == ["first"]
    assert ray.get(handles[0].progress.remote()) == (0, 0)
    ray.kill(handles[0])
