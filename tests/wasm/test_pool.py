"""Arms and seeds that choose from one pool of candidates."""

from collections import Counter
from dataclasses import replace

import pytest

from cdiff.types import Attempt, Pose, Revisions, Slice, Target, Weakness
from cdiff.wasm.budget import Stock, quotas
from cdiff.wasm.pool import dealt, plan_pool, types_of, undirected_quotas
from cdiff.wasm.quality import Thresholds, judge

REVISIONS = Revisions("generator", "bank")


@pytest.fixture
def stock():
    """Nine pits and three bars on twelve photos, twenty normals."""
    targets = {}
    for number in range(12):
        kind = "pit" if number < 9 else "bar"
        name = f"metal/{kind}/{number}"
        targets[f"{name}#0"] = Target(f"{name}#0", name, "metal", kind, name, (0, 0, 9, 9), 81)
    normals = [f"metal/good/{number}" for number in range(20)]

    def pose(reference, background, rng):
        return Pose(float(rng.uniform(0, 90)), 5.0, 0.0, 1.0, False, 0.0, 1.5)

    return Stock(targets, {"metal": normals}, {name: name for name in normals}, pose)


def attempted(assignment) -> Attempt:
    """Every candidate is valid; fingerprints are unlike."""
    number = assignment.index
    measures = {"area": 50.0, "visible": 1.0, "on_object": 1.0, "sharpness": 1.0}
    return Attempt(
        assignment,
        "pairs/x.parquet",
        number,
        "metal",
        assignment.slice.split("/")[1],
        (0, 0, 9, 9),
        tuple(sorted(measures.items())),
        bytes([number % 256, number // 256] * 288),
    )


@pytest.fixture
def pool(stock, tiny_config):
    return [attempted(a) for a in plan_pool(stock, tiny_config, 60, REVISIONS)]


def test_every_type_has_as_many_candidates_and_every_target_about_as_many(pool):
    assert Counter(a.type for a in pool) == {"pit": 60, "bar": 60}
    used = Counter(a.assignment.task.reference for a in pool)
    assert {used[name] for name in used if "bar" in name} == {20}
    assert {used[name] for name in used if "pit" in name} <= {6, 7}
    assert len({a.task_id for a in pool}) == 120


def test_undirected_pairs_follow_the_targets(stock):
    assert undirected_quotas(types_of(stock.targets.values()), 40) == {
        ("metal/pit", "uniform"): 30,
        ("metal/bar", "uniform"): 10,
    }


def test_an_aimed_arm_is_kept_by_the_same_gate_within_its_bands(stock, pool, tiny_config):
    config = tiny_config.model_copy(update={"wasm": tiny_config.wasm.model_copy(update={"pairs": 20})})
    slices = [
        replace(w, score=0.7 if w.slice.type == "bar" else 0.3) for w in types_of(stock.targets.values())
    ]
    losses = {a.task_id: place / 100 for place, a in enumerate(pool)}
    wanted = quotas(config, slices)
    view = dealt(pool, slices, wanted, losses, seed=3)
    pairs = judge(view, wanted, Thresholds(()), config, last=True)
    kept = [pair for pair in pairs if pair.kept]
    assert len(kept) == 20
    assert Counter(p.attempt.assignment.slice for p in kept)["metal/bar"] > 10
    bars = sorted(losses[a.task_id] for a in pool if a.type == "bar")
    for pair in kept:
        if pair.attempt.assignment.slice == "metal/bar" and pair.attempt.assignment.purpose == "weak":
            rank = bars.index(pair.attempt.measure("loss")) / len(bars)
            assert 0.35 < rank < 0.9


def test_a_seed_has_an_order_of_its_own_and_repeats(stock, pool):
    slices = types_of(stock.targets.values())
    wanted = undirected_quotas(slices, 20)
    ids = [[a.task_id for a in dealt(pool, slices, wanted, {}, seed)][:20] for seed in (0, 0, 1)]
    assert ids[0] == ids[1] != ids[2]
    view = dealt(pool, slices, wanted, {}, 0)
    assert [a.assignment.index for a in view] == list(range(len(view)))


def test_slices_without_a_quota_are_left_out(stock, pool):
    slices = [*types_of(stock.targets.values()), Weakness(Slice("wood"), (), 0, 0, 0, 0)]
    view = dealt(pool, slices, {("metal/pit", "uniform"): 5}, {}, 0)
    assert {a.type for a in view} == {"pit"} and len(view) == 60
