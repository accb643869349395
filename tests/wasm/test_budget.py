"""The plan: exact shares, even use of references, fresh wave after wave, the same for the same seed."""

import dataclasses
from collections import Counter, defaultdict

import numpy as np
import pytest

from cdiff.config import Config
from cdiff.config_file import load_config
from cdiff.types import Gain, Pose, Revisions, Slice, Target, Weakness
from cdiff.wasm.budget import Quotas, largest_remainder, plan, quotas, start_strengths, top_up
from cdiff.wasm.dealing import Stock, band, recipe_of

REVISIONS = Revisions("g", "b", "s")
SIZES = {"crack": (12, 0.5), "stain": (9, 0.97), "chip": (30, 0.1)}  # targets and score by type


def target(type: str, number: int) -> Target:
    sample = f"tile/{type}/{number:02d}"
    return Target(f"{sample}#0", sample, "tile", type, f"object-{type}-{number // 2}", (10, 10, 20, 20), 80)


TARGETS = {
    t.target_id: t for type, (count, _) in SIZES.items() for t in (target(type, i) for i in range(count))
}
NORMALS = {"tile": [f"tile/good/{i:02d}" for i in range(7)]}
GROUPS = {photo: f"good-{photo}" for photo in NORMALS["tile"]} | {
    t.sample_id: t.group for t in TARGETS.values()
}
WEAKNESSES = [
    Weakness(
        Slice("tile", type), tuple(t for t in sorted(TARGETS) if f"/{type}/" in t), 1.0, 1 - score, 0.5, score
    )
    for type, (_, score) in SIZES.items()
]


def propose(reference: str, background: str, rng: np.random.Generator) -> Pose:
    x, y, angle = (float(value) for value in rng.uniform(0, 100, 3))
    return Pose(x, y, angle, scale=1.0, flip=bool(rng.random() < 0.5), elastic=0.0, margin=1.5)


def config(*overrides: str) -> Config:
    return load_config(None, list(overrides))


def stock(backgrounds=NORMALS) -> Stock:
    return Stock(TARGETS, backgrounds, GROUPS, propose)


def planned(settings: Config, number: int = 0, backgrounds=NORMALS):
    return plan(WEAKNESSES, stock(backgrounds), settings, round=number, revisions=REVISIONS)


@pytest.mark.parametrize("pairs", [1, 2, 5, 37, 48, 64, 1000])
def test_shares_are_exact(pairs: int) -> None:
    wanted = quotas(config(f"wasm.pairs={pairs}"), WEAKNESSES)
    assert sum(wanted.values()) == pairs
    by_purpose: Counter[str] = Counter()
    for (_, purpose), number in wanted.items():
        by_purpose[purpose] += number
    for purpose, share in (("uniform", 0.2), ("easy", 0.2), ("weak", 0.6)):
        assert abs(by_purpose[purpose] - share * pairs) < 1


def test_aimed_pairs_go_to_weak_slices_that_are_not_hopeless_and_uniform_ones_by_targets() -> None:
    wanted = quotas(config("wasm.pairs=1000"), WEAKNESSES)
    for purpose in ("weak", "easy"):
        assert wanted["tile/crack", purpose] > 2 * wanted["tile/stain", purpose] > 0
        assert wanted["tile/crack", purpose] > 50 * wanted.get(("tile/chip", purpose), 0)
    assert wanted["tile/chip", "uniform"] == round(200 * 30 / 51)


def test_the_largest_remainder_is_exact_and_ties_go_to_the_earlier() -> None:
    assert largest_remainder(5, [0.2, 0.2, 0.6]) == [1, 1, 3]
    assert largest_remainder(2, [1, 1, 1]) == [1, 1, 0]
    assert largest_remainder(3, [0, 0]) == [2, 1]
    assert largest_remainder(0, [1, 2]) == [0, 0]


def test_a_plan_repeats_and_another_round_or_seed_differs() -> None:
    settings = config()
    assert planned(settings) == planned(settings)
    ids = {assignment.task_id for assignment in planned(settings)}
    assert not ids & {assignment.task_id for assignment in planned(settings, 1)}
    assert not ids & {assignment.task_id for assignment in planned(config("seed=1"))}


def test_each_slice_and_purpose_gets_its_oversampled_share_spread_over_the_plan() -> None:
    settings = config("wasm.pairs=100")
    tasks = planned(settings)
    assert [assignment.index for assignment in tasks] == list(range(len(tasks)))
    found = Counter((assignment.slice, assignment.purpose) for assignment in tasks)
    assert found == {key: int(np.ceil(1.5 * number)) for key, number in quotas(settings, WEAKNESSES).items()}
    half = Counter((a.slice, a.purpose) for a in tasks[: len(tasks) // 2])
    assert all(abs(half[key] - number / 2) <= 1.5 for key, number in found.items())


def test_task_seeds_are_distinct_and_fit_63_bits() -> None:
    seeds = [assignment.task.seed for assignment in planned(config("wasm.pairs=200"))]
    assert len(set(seeds)) == len(seeds)
    assert all(0 <= seed < 2**63 for seed in seeds)


def test_cut_off_targets_are_no_references_unless_most_of_their_slice_are() -> None:
    cracks, chips = ([t for t in sorted(TARGETS) if f"/{type}/" in t] for type in ("crack", "chip"))
    less = dataclasses.replace(stock(), cut_off={*cracks[1:], *chips[:4]})
    tasks = plan(WEAKNESSES, less, config("wasm.pairs=100"), round=0, revisions=REVISIONS)
    used = {a.task.reference for a in tasks}
    assert used & set(chips) and not used & set(chips[:4])
    assert used & set(cracks) == set(cracks)


def test_references_of_a_slice_are_used_evenly_across_waves() -> None:
    settings = config("wasm.pairs=60")
    first = planned(settings)
    lacking: Quotas = {("tile/crack", "weak"): 7, ("tile/chip", "easy"): 2}
    more = top_up(first, lacking, WEAKNESSES, stock(), settings, round=0, revisions=REVISIONS)
    assert Counter((a.slice, a.purpose) for a in more) == {
        ("tile/crack", "weak"): 11,
        ("tile/chip", "easy"): 3,
    }
    assert [a.index for a in more] == list(range(len(first), len(first) + len(more)))
    assert not {a.task_id for a in first} & {a.task_id for a in more}
    used: dict[str, Counter[str]] = defaultdict(Counter)
    for assignment in first + more:
        used[assignment.slice][assignment.task.reference] += 1
    for weakness in WEAKNESSES:
        times = [used[weakness.slice.name][reference] for reference in weakness.targets]
        assert max(times) - min(times) <= 1


def test_slices_of_which_little_is_true_get_more_tasks_for_what_they_lack() -> None:
    lacking: Quotas = {("tile/crack", "weak"): 10, ("tile/stain", "weak"): 10, ("tile/chip", "weak"): 10}
    valid = {"tile/crack": 0.4, "tile/stain": 0.9, "tile/chip": 0.0}
    settings = config("wasm.pairs=60")
    more = top_up([], lacking, WEAKNESSES, stock(), settings, round=0, revisions=REVISIONS, valid=valid)
    assert Counter(a.slice for a in more) == {"tile/crack": 30, "tile/stain": 15, "tile/chip": 60}


def test_nothing_lacking_means_no_further_wave() -> None:
    settings = config()
    more = top_up([], {}, WEAKNESSES, stock(), settings, round=0, revisions=REVISIONS)
    assert more == []


def test_normal_photos_are_used_in_turn() -> None:
    used = Counter(assignment.task.background for assignment in planned(config("wasm.pairs=100")))
    assert set(used) == set(NORMALS["tile"])
    assert max(used.values()) - min(used.values()) <= 1


def test_without_normals_the_background_is_another_object_or_the_own_photo_repainted() -> None:
    photos = {"tile": [t.sample_id for t in TARGETS.values()]}
    for share, low, high in ((0.0, 0, 0), (1.0, 1, 1), (0.5, 0.35, 0.65)):
        tasks = planned(config("wasm.pairs=100", f"sampling.repaint={share}"), backgrounds=photos)
        own = 0
        for assignment in tasks:
            reference = TARGETS[assignment.task.reference]
            repainted = assignment.task.background == reference.sample_id
            own += repainted
            assert repainted or GROUPS[assignment.task.background] != reference.group
        assert low <= own / len(tasks) <= high


def test_photos_without_room_are_passed_over_and_serve_smaller_targets() -> None:
    """A polyp on a photo that another one fills is hidden: nothing would be painted, and its task is lost."""
    photos = [t.sample_id for t in TARGETS.values()]
    full = set(photos[::2])

    def room(reference: str, background: str, pose: Pose) -> float:
        return 0.2 if background in full and "/crack/" in reference else 1.0

    tight = dataclasses.replace(stock({"tile": photos}), room=room)
    settings = config("wasm.pairs=100", "sampling.repaint=0")
    tasks = plan(WEAKNESSES, tight, settings, round=0, revisions=REVISIONS)
    cracks = [a.task.background for a in tasks if "/crack/" in a.task.reference]
    others = Counter(a.task.background for a in tasks if "/crack/" not in a.task.reference)
    assert cracks and sum(name in full for name in cracks) <= 0.02 * len(cracks)
    assert sum(others[name] for name in full) > sum(others.values()) / 3, "they serve those that fit"
    nowhere = dataclasses.replace(tight, room=lambda *_: 0.2)
    assert len(plan(WEAKNESSES, nowhere, settings, round=0, revisions=REVISIONS)) == len(tasks)


@pytest.mark.parametrize("lacking", [0.5, 1.0])
def test_the_share_of_repaints_is_of_tasks_however_many_photos_lack_room(lacking: float) -> None:
    photos = {"tile": [t.sample_id for t in TARGETS.values()]}
    rng = np.random.default_rng(0)
    tight = dataclasses.replace(stock(photos), room=lambda *_: 0.2 if rng.random() < lacking else 1.0)
    tasks = plan(
        WEAKNESSES, tight, config("wasm.pairs=400", "sampling.repaint=0.25"), round=0, revisions=REVISIONS
    )
    own = sum(a.task.background == TARGETS[a.task.reference].sample_id for a in tasks)
    assert 0.2 < own / len(tasks) < 0.3


def test_where_there_is_room_everywhere_the_plan_is_as_without_asking() -> None:
    photos = {"tile": [t.sample_id for t in TARGETS.values()]}
    settings = config("wasm.pairs=100", "sampling.repaint=0.3")
    asked = dataclasses.replace(stock(photos), room=lambda *_: 1.0)
    assert plan(WEAKNESSES, asked, settings, round=0, revisions=REVISIONS) == planned(
        settings, backgrounds=photos
    )


def test_normals_are_never_repainted() -> None:
    tasks = planned(config("sampling.repaint=1"))
    assert {assignment.task.background for assignment in tasks} <= set(NORMALS["tile"])


def test_an_only_photo_serves_as_its_own_background() -> None:
    (weakness,) = [w for w in WEAKNESSES if w.slice.type == "crack"]
    one = Weakness(weakness.slice, weakness.targets[:1], 1.0, 0.5, 0.5, 0.5)
    photo = TARGETS[one.targets[0]].sample_id
    tasks = plan(
        [one],
        stock({"tile": [photo]}),
        config("wasm.pairs=4"),
        round=0,
        revisions=REVISIONS,
    )
    assert {assignment.task.background for assignment in tasks} == {photo}


def test_missing_slices_and_missing_photos_are_refused_by_name() -> None:
    with pytest.raises(ValueError, match="no slices"):
        quotas(config(), [])
    with pytest.raises(ValueError, match="'tile' has no photo"):
        planned(config(), backgrounds={})


def test_the_recipe_of_the_control_has_one_candidate() -> None:
    control, mined = recipe_of(config("wasm.arm=B0")), recipe_of(config("wasm.arm=B1", "wasm.candidates=4"))
    assert (control.arm, control.candidates, control.fraction) == ("B0", 1, 1.0)
    assert (mined.arm, mined.candidates, mined.sampler, mined.dtype) == ("B1", 4, "euler", "float32")


def test_bands_follow_the_purpose() -> None:
    settings = config("wasm.band=[0.3,0.8]")
    assert [band(p, settings) for p in ("uniform", "easy", "weak")] == [(0, 1), (0, 0.3), (0.3, 0.8)]


def test_a_slice_that_has_paid_gets_the_weak_share_and_shares_stay_exact() -> None:
    settings = config("wasm.pairs=100")
    paid = [Gain("tile/chip", 0.4, 40, 12, 0.2, 0.01), Gain("tile/crack", 0.4, 40, 12, -0.1, 0.01)]
    before, after = quotas(settings, WEAKNESSES), quotas(settings, WEAKNESSES, paid, 1)
    assert sum(after.values()) == 100
    assert after["tile/chip", "weak"] > 55 > 10 > before.get(("tile/chip", "weak"), 0)
    assert quotas(settings, WEAKNESSES, paid, 1) == after  # a restart samples the same
    assert quotas(config("wasm.pairs=100", "wasm.budget=prior"), WEAKNESSES, paid, 1) == before


def test_a_start_strength_that_a_sweep_has_moved_leaves_the_weak_share_where_it_paid() -> None:
    paid = [Gain("tile/chip", 0.4, 40, 12, 0.2, 0.01), Gain("tile/crack", 0.4, 40, 12, -0.1, 0.01)]
    shares = []
    for number in range(20):
        settings = config("wasm.pairs=100", "sampling.start_strength=0.1869", f"seed={number}")
        shares.append(quotas(settings, WEAKNESSES, paid, 1))
    weak = {t: np.mean([share.get((f"tile/{t}", "weak"), 0) for share in shares]) for t in SIZES}
    assert weak["chip"] > 45 and weak["crack"] < 2


def parts(wanted, name):
    return wanted.get((name, "uniform"), 0), wanted.get((name, "easy"), 0), wanted.get((name, "weak"), 0)


def test_without_ranking_every_target_counts_alike():
    even = quotas(config("wasm.pairs=1000", "wasm.budget=targets"), WEAKNESSES)
    total = sum(len(weakness.targets) for weakness in WEAKNESSES)
    for weakness in WEAKNESSES:
        for share, found in zip((200, 200, 600), parts(even, weakness.slice.name), strict=True):
            assert found == pytest.approx(share * len(weakness.targets) / total, abs=1)


def test_without_ranking_not_even_the_rounding_goes_by_it():
    settings = config("wasm.pairs=61", "wasm.budget=targets")
    assert quotas(settings, WEAKNESSES[::-1]) == quotas(settings, WEAKNESSES)
    assert sum(quotas(settings, WEAKNESSES).values()) == 61


def test_a_slice_has_one_start_strength_a_round_and_learns_which_pays() -> None:
    settings = config("wasm.start_strengths=[0.2,0.6]")
    tried = [start_strengths(settings, WEAKNESSES, (), number)["tile/crack"] for number in range(20)]
    assert set(tried) == {0.2, 0.6}  # nothing is known yet
    paid = [Gain("tile/crack", 0.2, 40, 12, -0.2, 0.01), Gain("tile/crack", 0.6, 40, 12, 0.3, 0.01)]
    assert start_strengths(settings, WEAKNESSES, paid, 1)["tile/crack"] == 0.6
    assignments = plan(WEAKNESSES, stock(), settings, round=1, revisions=REVISIONS, gains=paid)
    used: dict[str, set[float]] = {a.slice: set() for a in assignments}
    for assignment in assignments:
        used[assignment.slice].add(assignment.task.strengths.start_strength)
    assert used["tile/crack"] == {0.6} and all(len(strengths) == 1 for strengths in used.values())


@pytest.mark.parametrize("budget", ["thompson", "prior", "targets"])
def test_what_pays_in_a_slice_is_decided_among_its_own_strengths(budget) -> None:
    """However little of the budget the slice wins, and not by the option that is merely less known."""
    settings = config("wasm.start_strengths=[0.2,0.6]", f"wasm.budget={budget}")
    others = [
        Gain(w.slice.name, strength, 40, 12, 0.06, 0.02)
        for w in WEAKNESSES
        if w.slice.name != "tile/crack"
        for strength in (0.2, 0.6)
    ]
    own = [Gain("tile/crack", 0.2, 40, 12, 0.02, 0.01), Gain("tile/crack", 0.6, 40, 12, -0.02, 0.04)]
    gains = [*others, *own]
    found = [start_strengths(settings, WEAKNESSES, gains, number, last=True) for number in range(8)]
    assert {strengths["tile/crack"] for strengths in found} == {0.2}


def test_rounds_that_others_follow_go_on_trying_what_may_pay_as_well() -> None:
    settings = config("wasm.start_strengths=[0.2,0.6]")
    near = [Gain("tile/crack", 0.2, 40, 12, 0.03, 0.02), Gain("tile/crack", 0.6, 40, 12, 0.01, 0.02)]
    rounds = [start_strengths(settings, WEAKNESSES, near, number)["tile/crack"] for number in range(60)]
    assert 0.5 < rounds.count(0.2) / 60 < 0.95
    assert {start_strengths(settings, WEAKNESSES, near, n, last=True)["tile/crack"] for n in range(20)} == {
        0.2
    }
