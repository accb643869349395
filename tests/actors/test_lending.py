"""Actors that are lent: found by name, made anew by Ray when they die, and gone when the block ends."""

from types import SimpleNamespace

import pytest
import ray
from ray.exceptions import RayActorError

from actors.lending import lent
from cdiff.data.run import Run
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
