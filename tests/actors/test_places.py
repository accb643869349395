"""Reserved places: what a run cannot do without has them, whoever else waits for room."""

from __future__ import annotations

from typing import Any

import pytest
import ray

from actors.places import reserve
from actors.resources import roles
from actors.staff import Staff
from cdiff.config_file import overridden
from cdiff.data.run import Run
from cdiff.errors import ResourceError

pytestmark = [pytest.mark.ray, pytest.mark.usefixtures("local_ray")]


@ray.remote
class Light:
    """In the place of an actor that would take seconds to import what it computes with."""

    def __init__(self, *_: Any) -> None:
        pass

    def frames(self, ids: list[str]) -> list[str]:
        return ids


def _ready(handles: list[Any], seconds: float) -> int:
    told = [handle.__ray_ready__.remote() for handle in handles]
    return len(ray.wait(told, num_returns=len(told), timeout=seconds)[0])


def test_generators_that_wait_for_room_take_nobodys_place(tmp_path, photos, tiny_config, monkeypatch) -> None:
    """Four CPUs are five places: two generators, the extractor and two downstream actors must be alive, four further generators wait."""
    for name in ("GeneratorActor", "ExtractorActor", "DownstreamActor"):
        monkeypatch.setattr(f"actors.staff.{name}", Light)
    sizes = ["resources.cpus=0.8", "resources.generators=6", "resources.least_generators=2"]
    config = overridden(tiny_config, [*sizes, "resources.downstreams=2"])
    with Staff(Run(tmp_path), config, photos, local=True) as staff:
        must = [*staff.downstream.handles, *staff.extractor.handles, *staff.generators.handles[:2]]
        assert (
            _ready(must, 60) == sum(roles(config).values()) - 1
        )  # the coordinator comes later, and needs none
        assert _ready(staff.generators.handles[2:], 2) == 0 and staff.generators.placed == 2
        ray.kill(staff.extractor.handles[0])
        assert staff.extractor.call("frames", ["a"]) == ["a"], "its successor has its place"
    again = reserve(config, wait=False)  # all of it was given back
    with pytest.raises(ResourceError, match="free 0 CPU"):
        reserve(overridden(config, ["resources.wait_seconds=1"]), wait=False)
    again.give_back()
