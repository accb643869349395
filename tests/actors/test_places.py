"""Reserved places: what a run cannot do without has them, whoever else waits for room."""

from __future__ import annotations

from typing import Any

import pytest
import ray

from actors.crew import Crew
from actors.places import reserve
from actors.resources import roles
from cdiff.config_file import overridden
from cdiff.data.manifest import Row, make_manifest
from cdiff.data.run import Run
from cdiff.errors import ResourceError

pytestmark = [pytest.mark.ray, pytest.mark.usefixtures("local_ray")]


def _ready(handles: list[Any], seconds: float) -> int:
    told = [handle.__ray_ready__.remote() for handle in handles]
    return len(ray.wait(told, num_returns=len(told), timeout=seconds)[0])


@pytest.mark.slow
def test_generators_that_wait_for_room_take_nobodys_place(tmp_path, photos, tiny_config) -> None:
    """Four CPUs are five places: two generators, the extractor and two downstream actors must be alive, four further generators wait."""
    sizes = ["resources.cpus=0.8", "resources.generators=6", "resources.least_generators=2"]
    config = overridden(tiny_config, [*sizes, "resources.downstreams=2"])
    rows = [Row(s.sample_id, "train", s.group, s.category, s.types, 0, False) for s in photos.samples]
    manifest = make_manifest(rows, (), ())
    with Crew(Run(tmp_path), config, photos, manifest, local=True) as crew:
        must = [*crew.downstream.handles, *crew.extractor.handles, *crew.generators.handles[:2]]
        assert (
            _ready(must, 120) == sum(roles(config).values()) - 1
        )  # the coordinator comes later, and needs none
        assert _ready(crew.generators.handles[2:], 3) == 0 and crew.generators.placed == 2
        ray.kill(crew.extractor.handles[0])
        sample = photos.samples[0].sample_id
        assert set(crew.extractor.call("frames", [sample])) == {sample}, "its successor has its place"
    again = reserve(config, wait=False)  # all of it was given back
    with pytest.raises(ResourceError, match="free 0 CPU"):
        reserve(config, wait=False)
    again.give_back()
