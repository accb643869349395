"""Budgets, halves of validation, and that what was measured is read, not measured again."""

import dataclasses
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest
import ray

from cdiff.config import Config
from cdiff.config_file import load_config
from cdiff.data.manifest import Row, make_manifest
from cdiff.data.run import Run
from cdiff.errors import ActorError, ConfigError
from cdiff.types import Knowledge, Revisions
from tune.objective import Bench, Rung, Trial, end, halves, rungs, stored


def test_budgets_grow_to_the_whole() -> None:
    assert rungs(96, 450, 3, 2) == (Rung(24, 112), Rung(48, 225), Rung(96, 450))
    assert rungs(8, 20, 1, 3) == (Rung(8, 20),)
    with pytest.raises(ConfigError, match="fewer rungs"):
        rungs(4, 20, 4, 3)


def test_halves_share_no_object_and_have_alike_types(photos) -> None:
    rows = [Row(s.sample_id, "validation", s.group, s.category, s.types, 0, False) for s in photos.samples]
    manifest = make_manifest(rows, (), ())
    first, second = halves(photos, manifest, seed=0)
    groups = [{photos.sample(i).group for i in half} for half in (first, second)]
    assert first and second and not groups[0] & groups[1]
    assert len(first) + len(second) == sum(not s.is_normal for s in photos.samples)
    kinds = [sorted(t for i in half for t in photos.sample(i).types) for half in (first, second)]
    assert kinds[0][0] == kinds[1][0] and kinds[0][-1] == kinds[1][-1]
    assert halves(photos, manifest, seed=0) == (first, second)
    with pytest.raises(ConfigError, match="four source objects, here are 0"):
        halves(photos, make_manifest([r for r in rows if not r.types], (), ()), seed=0)


@pytest.fixture
def bench(tmp_path) -> Bench:
    run = Run(tmp_path / "runs" / "one")
    run.path.mkdir(parents=True)
    known = Knowledge((), (), (), ())
    targets = ("a#0", "b#0")
    control = ({"a#0": 0.4, "b#0": 0.5}, {"a#0": 0.5, "b#0": 0.5})
    budget = (Rung(4, 10), Rung(8, 20))
    return Bench(
        run, Config(), known, Revisions("g", "b"), "base", 0, (), ("a", "b"), targets, budget, control
    )


@pytest.fixture
def point() -> dict:
    return {"sampling.safe_strength": 3.0}


def _of_objects(**objects: str) -> Any:
    """A data set of which only the source object of each photo is asked; an only target's id is PHOTO#0."""
    return SimpleNamespace(
        target=lambda target_id: SimpleNamespace(group=objects[target_id.removesuffix("#0")])
    )


def test_a_gain_is_the_mean_of_paired_differences_to_the_control_of_its_rung(
    bench, point, photos, monkeypatch
) -> None:
    trial = Trial(bench, _of_objects(a="a", b="b"), point)
    asked = []
    rows = [SimpleNamespace(target_id=t, type="pit", soft_dice=d) for t, d in (("a#0", 0.6), ("b#0", 0.4))]
    normal = SimpleNamespace(target_id="n", type="", soft_dice=1.0)

    def fit(request):
        asked.append(request)
        return SimpleNamespace(revision="r", seconds=3.0)

    monkeypatch.setattr(trial._fits, "fit", fit)
    monkeypatch.setattr(trial._fits, "evaluate", lambda *_: SimpleNamespace(outcomes=[*rows, normal]))
    monkeypatch.setattr(trial, "_pairs", lambda rung: ([], 0.75))
    monkeypatch.setattr("ray.get_runtime_context", lambda: SimpleNamespace(get_node_id=lambda: "n"))
    first, second = trial.measure()
    assert first["gain"] == pytest.approx((0.2 - 0.1) / 2) and second["gain"] == pytest.approx(0.0)
    assert first["error"] == pytest.approx(0.15) and first["valid_share"] == 0.75
    assert [(r.steps, r.start, r.mix) for r in asked] == [(10, "base", 1.0), (20, "base", 1.0)]


@pytest.mark.parametrize("photos_each", [1, 2, 5])
@pytest.mark.parametrize("objects", ["ab", "a"])
def test_the_error_of_a_gain_counts_source_objects_not_their_photos(
    bench, point, monkeypatch, photos_each, objects
) -> None:
    """A tile that was photographed six times is one piece of evidence."""
    owners = {f"{name}{number}": name for name in objects for number in range(photos_each)}
    control = {f"{photo}#0": 0.5 for photo in owners}
    trial = Trial(
        dataclasses.replace(bench, rungs=bench.rungs[:1], control=(control,)), _of_objects(**owners), point
    )
    dice = {"a": 0.7, "b": 0.4}  # changes of +0.2 and -0.1, equal within an object
    rows = [SimpleNamespace(target_id=f"{p}#0", type="pit", soft_dice=dice[owners[p]]) for p in owners]
    monkeypatch.setattr(trial._fits, "fit", lambda request: SimpleNamespace(revision="r", seconds=3.0))
    monkeypatch.setattr(trial._fits, "evaluate", lambda *_: SimpleNamespace(outcomes=rows))
    monkeypatch.setattr(trial, "_pairs", lambda rung: ([], 0.75))
    monkeypatch.setattr("ray.get_runtime_context", lambda: SimpleNamespace(get_node_id=lambda: "n"))
    (found,) = trial.measure()
    assert found["error"] == (pytest.approx(0.15) if len(objects) > 1 else None)
    assert stored(bench.run)[0]["rungs"] == [found], "one object has no error, and that is stored"


@ray.remote(max_restarts=-1, max_task_retries=1, concurrency_groups={"status": 1})  # type: ignore[call-overload]
class Lent:
    """In the place of coordinator, generators and extractor."""

    def plan(self, *about: Any) -> list[int]:
        return list(range(10))

    def generate(self, shard: list[int]) -> list[int]:
        return [10 * task for task in shard]

    def judge(self, *about: Any) -> tuple[list[Any], list[Any]]:
        _, tried, attempts, _ = about[-4:]
        assert list(attempts) == [10 * task for task in tried]
        return [SimpleNamespace(reason="", kept=True, attempt=attempt) for attempt in attempts], []

    def fidelity(self, *about: Any) -> dict[str, float]:
        return {"kid": 0.0, "coverage": 1.0}

    @ray.method(concurrency_group="status")
    def progress(self) -> tuple[int, int]:
        return 0, 0


@pytest.fixture
def lost(local_ray, bench) -> Iterator[Bench]:
    """A bench with a coordinator and two generators; one of these and the extractor were lost with a node, and find no other place."""
    sizes = {"coordinator": 0, "living": 0, "lost": 99, "extractor": 99}
    handles = [Lent.options(name=name, num_cpus=n).remote() for name, n in sizes.items()]  # type: ignore[attr-defined]
    config = load_config(None, ["resources.stall_timeout_s=20", "wasm.shard=2"])
    named = {"generators": ("lost", "living"), "coordinator": "coordinator", "extractor": "extractor"}
    yield dataclasses.replace(bench, config=config, **named)  # type: ignore[arg-type]
    for handle in handles:
        ray.kill(handle, no_restart=True)


@pytest.mark.ray
def test_a_trial_has_its_pairs_from_the_generators_that_are_left(lost, point, photos) -> None:
    trial = Trial(lost, photos, point)
    for rung, count in ((Rung(4, 10), 6), (Rung(8, 20), 10)):  # whole shards of two
        pairs, valid = trial._pairs(rung)
        assert [pair.attempt for pair in pairs] == [10 * task for task in range(count)] and valid == 1


@pytest.mark.ray
@pytest.mark.long
def test_a_trial_does_not_wait_for_ever_for_an_extractor_without_a_place(lost, point, photos) -> None:
    short = load_config(None, ["resources.wait_seconds=2"])
    pair: Any = SimpleNamespace(attempt=0)
    with pytest.raises(ActorError, match="no lent actor that could do fidelity shows life"):
        Trial(dataclasses.replace(lost, config=short), photos, point)._fidelity([pair])


def test_what_was_measured_is_read_and_an_ended_trial_ends_where_it_did(
    bench, point, photos, monkeypatch
) -> None:
    monkeypatch.setattr("ray.get_runtime_context", lambda: SimpleNamespace(get_node_id=lambda: "n"))
    measured = []

    def measure(self, number, rung):
        measured.append(number)
        return {"gain": 0.1 * number, "kept": 3}

    monkeypatch.setattr(Trial, "_measure", measure)
    rungs_of = Trial(bench, photos, point).measure()
    first = next(rungs_of)
    assert next(Trial(bench, photos, point).measure()) == first and measured == [1], "the second only read"
    end(bench.run, bench.key(point))
    assert list(Trial(bench, photos, point).measure()) == [first] and measured == [1], "it was stopped there"
    (trial,) = stored(bench.run)
    assert trial["ended"] and trial["point"] == point and trial["rungs"] == [first]
    other = dataclasses.replace(bench, seed=1)
    assert [found["gain"] for found in Trial(other, photos, point).measure()] == [0.1, 0.2], "another sweep's"
    assert bench.key(point) != bench.key({"sampling.safe_strength": 3.1})
