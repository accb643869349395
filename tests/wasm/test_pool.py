"""Arms and seeds that choose from one pool of candidates."""

from collections import Counter
from dataclasses import replace

import pytest

from cdiff.types import Attempt, Pose, Revisions, Slice, Target
from cdiff.wasm.budget import Quotas, quotas
from cdiff.wasm.dealing import Stock
from cdiff.wasm.pool import chosen, plan_pool, started, types_of, undirected_quotas
from cdiff.wasm.quality import Thresholds

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


def test_types_that_are_named_have_candidates_of_their_own_number(stock, tiny_config):
    plan = plan_pool(stock, tiny_config, {"metal/pit": 30, "metal/none": 9}, REVISIONS)
    assert Counter(a.slice for a in plan) == {"metal/pit": 30}


def test_a_slice_takes_the_candidates_that_start_where_it_pays(stock, tiny_config):
    pool = []
    for strength in (0.0, 0.4):
        sampling = tiny_config.sampling.model_copy(update={"start_strength": strength})
        config = tiny_config.model_copy(update={"sampling": sampling})
        pool += [attempted(a) for a in plan_pool(stock, config, 10, REVISIONS)]
    slices = types_of(stock.targets.values())
    taken = started(pool, slices, {"metal/pit": 0.4, "metal/bar": 0.0})
    told = {(a.type, a.assignment.task.strengths.start_strength) for a in taken}
    assert told == {("pit", 0.4), ("bar", 0.0)} and len(taken) == 20
    assert started(pool, slices, {}) == pool
    assert len(started(pool, slices, {"metal/pit": 0.4})) == 30


def test_undirected_pairs_follow_the_targets(stock):
    assert undirected_quotas(types_of(stock.targets.values()), 40) == {
        ("metal/pit", "uniform"): 30,
        ("metal/bar", "uniform"): 10,
    }


def test_an_aimed_arm_takes_its_quotas_within_their_bands(stock, pool, tiny_config):
    config = tiny_config.model_copy(update={"wasm": tiny_config.wasm.model_copy(update={"pairs": 20})})
    slices = [
        replace(w, score=0.7 if w.slice.type == "bar" else 0.3) for w in types_of(stock.targets.values())
    ]
    losses = {a.task_id: place / 100 for place, a in enumerate(pool)}
    wanted = quotas(config, slices)
    pairs, beyond = chosen(pool, slices, wanted, losses, Thresholds(()), config, seed=3)
    kept = [pair.attempt.assignment for pair in pairs if pair.kept]
    assert Counter((a.slice, a.purpose) for a in kept) == wanted
    assert not beyond
    bars = sorted(losses[a.task_id] for a in pool if a.type == "bar")
    for pair in pairs:
        if pair.kept and pair.attempt.assignment.slice == "metal/bar":
            rank = bars.index(pair.attempt.measure("loss")) / len(bars)
            low, high = {"weak": (0.35, 0.9), "easy": (0, 0.45), "uniform": (0, 1)}[
                pair.attempt.assignment.purpose
            ]
            assert low < rank < high or low == 0 <= rank < high


def test_what_a_band_lacks_is_filled_up_and_counted_and_faults_stay_out(stock, pool, tiny_config):
    slices = types_of(stock.targets.values())
    wanted: Quotas = {("metal/bar", "weak"): 40}
    losses = {a.task_id: place / 100 for place, a in enumerate(pool)}
    pairs, beyond = chosen(pool, slices, wanted, losses, Thresholds(()), tiny_config, seed=0)
    assert sum(pair.kept for pair in pairs) == 40
    assert 12 <= beyond <= 15  # 45 % of the some sixty valid are in the band
    faint = Thresholds((("visible", "metal/bar", 2.0),))
    pairs, _ = chosen(pool, slices, wanted, losses, faint, tiny_config, 0)
    assert {p.reason for p in pairs} == {"not visible"}


def test_a_slice_without_a_quota_still_says_what_is_hard_for_its_type(stock, pool, tiny_config):
    """Cracks of one slice are all easier than those of the other, which alone gets pairs: the highest ranks of the type are its own."""
    pits = next(w for w in types_of(stock.targets.values()) if w.slice.type == "pit")
    pieces = [Slice("metal", "pit", size, "") for size in ("small", "large")]
    halves = [replace(pits, slice=p, targets=pits.targets[n::2]) for n, p in enumerate(pieces)]
    easy = set(halves[0].targets)
    losses = {
        a.task_id: place / 1000 + (a.assignment.task.reference not in easy) for place, a in enumerate(pool)
    }
    wanted: Quotas = {(halves[1].slice.name, "weak"): 15}
    pairs, beyond = chosen(pool, halves, wanted, losses, Thresholds(()), tiny_config, seed=0)
    assert sum(pair.kept for pair in pairs) == 15
    assert beyond == 0  # ranks of 0.45 to 0.85 of the type; among themselves some would be under 0.4


def test_no_slice_of_a_pool_stops(stock, pool, tiny_config):
    """Two thirds invalid would stop a slice of a round; a pool is made already."""
    spoiled = [
        replace(a, measures=tuple(sorted({**dict(a.measures), "visible": 0.0 if n % 3 else 1.0}.items())))
        for n, a in enumerate(pool)
    ]
    slices = types_of(stock.targets.values())
    limits = Thresholds((("visible", "", 0.5),))
    pairs, _ = chosen(spoiled, slices, {("metal/pit", "uniform"): 15}, {}, limits, tiny_config, seed=0)
    assert sum(pair.kept for pair in pairs) == 15
    assert {pair.reason for pair in pairs} == {"", "not visible", "budget full"}


def test_a_seed_has_an_order_of_its_own_and_repeats(stock, pool, tiny_config):
    slices = types_of(stock.targets.values())
    wanted = undirected_quotas(slices, 20)

    def kept(seed):
        pairs, _ = chosen(pool, slices, wanted, {}, Thresholds(()), tiny_config, seed)
        return [pair.task_id for pair in pairs if pair.kept]

    assert kept(0) == kept(0) != kept(1)
    assert len(kept(0)) == 20


def test_further_waves_are_other_candidates(stock, tiny_config):
    waves = [plan_pool(stock, tiny_config, 12, REVISIONS, wave) for wave in (0, 0, 1)]
    ids = [{a.task_id for a in wave} for wave in waves]
    assert ids[0] == ids[1] and not ids[0] & ids[2]


def test_how_hard_a_candidate_counts_does_not_depend_on_which_slices_get_pairs(stock, pool, tiny_config):
    (pits,) = (w for w in types_of(stock.targets.values()) if w.slice.type == "pit")
    small, large = (
        replace(pits, slice=replace(pits.slice, size=size), targets=targets)
        for size, targets in (("small", pits.targets[:3]), ("large", pits.targets[3:]))
    )
    losses = {
        a.task_id: float(a.assignment.task.reference in large.targets) + n / 1000 for n, a in enumerate(pool)
    }

    def kept(wanted: Quotas) -> set[str]:
        pairs, _ = chosen(pool, [small, large], wanted, losses, Thresholds(()), tiny_config, seed=0)
        return {p.task_id for p in pairs if p.kept and p.attempt.assignment.slice == small.slice.name}

    alone: Quotas = {(small.slice.name, "easy"): 8}
    assert len(kept(alone)) == 8
    assert kept(alone) == kept({**alone, (large.slice.name, "weak"): 5})
