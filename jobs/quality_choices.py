"""Which pairs each arm of a quality benchmark trains on: all choose from the pool of the split, through the same gate."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from actors.crew import Crew
from actors.downstream import Evaluation, Fit, FitRequest
from cdiff.config import Config
from cdiff.data.carriers import from_json
from cdiff.data.ledger import Ledger
from cdiff.types import Arm, Attempt, Gain, Knowledge, Outcome, Pair, Purpose, Revisions, Weakness
from cdiff.wasm.budget import largest_remainder, quotas
from cdiff.wasm.gains import measured_gains
from cdiff.wasm.pool import dealt, types_of, undirected_quotas
from cdiff.wasm.quality import Thresholds, counts, judge, survival_bounds
from cdiff.wasm.weakness import rank

Key = tuple[str, int]  # arm and seed

CHANCE = "again"
# Arms that are one round of the loop for each seed, plan and top-up included, under a mining arm each.
MINED: dict[str, Arm] = {
    "mined_B0": "B0",
    "mined_B1": "B1",
    "mined_B2": "B2",
    "mined_B3": "B3",
    "mined_B4": "B4",
    "mined_B3_B1": "B3+B1",
}
MADE = ("copy_paste", "undirected", "wasm", *MINED)  # arms whose pairs are made and judged


@dataclass(frozen=True)
class Choice:
    """What one arm of one seed trains on beside the real photos."""

    pairs: tuple[Pair, ...] = ()  # kept ones
    perlin: int = 0
    again: int = 0
    counts: tuple[tuple[str, str, int], ...] = ()  # (slice, reason or "kept", how many)


def choices(
    crew: Crew, ledger: Ledger, revisions: Revisions | None, base: Mapping[int, str], arms: Sequence[str]
) -> tuple[dict[Key, Choice], dict[int, list[Weakness]]]:
    """The choice of every arm and seed, and each seed's slices, weakest first.

    Args:
        base: revision of each seed's model of real photos alone.
    """
    config, pairs = crew.config, crew.config.wasm.pairs
    chosen: dict[Key, Choice] = {}
    for arm in arms:
        for seed in base:
            chosen[arm, seed] = Choice(again=int(arm == CHANCE), perlin=pairs if arm == "perlin" else 0)
    if revisions is None:
        return chosen, {}
    found = ledger.milestone("extractor") or {}
    thresholds = from_json(Thresholds, found["thresholds"])
    types = types_of(crew.dataset.all_targets(crew.train))
    uniform = undirected_quotas(types, pairs)
    if "copy_paste" in arms:
        copies = crew.pool(2 * max(uniform.values()), revisions, copying(config), "pasting copies")
        for seed in base:
            chosen["copy_paste", seed] = choose(copies, types, uniform, {}, thresholds, config, seed)
    outcomes = _outcomes(crew, ledger, list(base)) if {"wasm", *MINED} & set(arms) else {}
    ranked = {seed: rank(rows, config.wasm.min_targets) for seed, rows in outcomes.items()}
    for arm in (arm for arm in arms if arm in MINED):
        for seed, rows in outcomes.items():
            chosen[arm, seed] = _mined(crew, ledger, revisions, base[seed], ranked[seed], rows, arm, seed)
    if {"undirected", "wasm"} & set(arms):
        began = time.perf_counter()
        pool = crew.pool(config.wasm.pool, revisions, unjudged(config), "making candidates")
        if ledger.milestone("pool") is None:
            taken = (time.perf_counter() - began) * config.resources.generators / len(pool)
            ledger.record("pool", seconds_per_pair=taken, candidates=len(pool))
        for seed in base if "undirected" in arms else ():
            chosen["undirected", seed] = choose(pool, types, uniform, {}, thresholds, config, seed)
        if "wasm" in arms:
            losses = _losses(crew, ledger, base, pool)
            gains = _probed(crew, ledger, base, pool, ranked, outcomes, thresholds)
            for seed, slices in ranked.items():
                wanted = quotas(config.model_copy(update={"seed": seed}), slices, gains.get(seed, ()), 1)
                chosen["wasm", seed] = choose(pool, slices, wanted, losses[seed], thresholds, config, seed)
    return chosen, ranked


def _mined(
    crew: Crew,
    ledger: Ledger,
    revisions: Revisions,
    segmenter: str,
    slices: Sequence[Weakness],
    outcomes: Sequence[Outcome],
    arm: str,
    seed: int,
) -> Choice:
    """A round of the loop under one mining arm. All arms of a seed plan the same references, backgrounds and poses."""
    config = crew.config
    config = config.model_copy(
        update={"seed": seed, "wasm": config.wasm.model_copy(update={"arm": MINED[arm]})}
    )
    known = Knowledge(tuple(slices), bounds=survival_bounds(outcomes, config))
    name = f"adapted:{arm}:{seed}"
    if ledger.milestone(name) is None:
        adapted = crew.adapt(known, outcomes, 1, revisions, segmenter, config)
        ledger.record(name, revisions=adapted)
    found = from_json(Revisions, (ledger.milestone(name) or {})["revisions"])
    pairs = crew.make_pairs(known, 1, found, config)
    return Choice(tuple(pair for pair in pairs if pair.kept), counts=counts(pairs))


def choose(
    pool: Sequence[Attempt],
    slices: Sequence[Weakness],
    wanted: Mapping[tuple[str, Purpose], int],
    losses: Mapping[str, float],
    thresholds: Thresholds,
    config: Config,
    seed: int,
) -> Choice:
    """The pool's candidates that the gate keeps for the quotas of one arm and seed."""
    pairs = judge(dealt(pool, slices, wanted, losses, seed), wanted, thresholds, config, last=True)
    return Choice(tuple(pair for pair in pairs if pair.kept), counts=counts(pairs))


def copying(config: Config) -> Config:
    """The configuration under which a task pastes the real target and its mask as they are."""
    sampling = config.sampling.model_copy(update={"start_strength": 0.0, "mode": "given_mask"})
    return unjudged(config).model_copy(update={"sampling": sampling})


def unjudged(config: Config) -> Config:
    """The configuration under which candidates are random: the pool is the same for all seeds and arms."""
    return config.model_copy(update={"wasm": config.wasm.model_copy(update={"arm": "B0"})})


def _outcomes(crew: Crew, ledger: Ledger, seeds: Sequence[int]) -> dict[int, list[Outcome]]:
    """Outcomes of all training photos under each seed's own fold models."""
    work = {f"fold:{seed}:{fold[-1]}": fold for seed in seeds for fold in crew.folds((), seed)}
    found = crew.each(ledger, "fold", work, list[Outcome], "fitting folds")
    return {
        seed: [row for name in work if name.split(":")[1] == str(seed) for row in found[name]]
        for seed in seeds
    }


def _probed(
    crew: Crew,
    ledger: Ledger,
    base: Mapping[int, str],
    pool: Sequence[Attempt],
    ranked: Mapping[int, list[Weakness]],
    outcomes: Mapping[int, list[Outcome]],
    thresholds: Thresholds,
) -> dict[int, tuple[Gain, ...]]:
    """Short-probe gains by slice, on validation: a fit with pairs spread evenly over the slices, and a matched one without.

    {} without `wasm.probe_steps`.
    """
    config, steps = crew.config, crew.config.wasm.probe_steps
    if not steps:
        return {}
    even: dict[int, Choice] = {}
    work: dict[str, tuple[FitRequest]] = {}
    for seed, revision in base.items():
        slices = ranked[seed]
        parts = largest_remainder(config.wasm.pairs, [1.0] * len(slices))
        wanted: dict[tuple[str, Purpose], int] = {
            (w.slice.name, "uniform"): n for w, n in zip(slices, parts, strict=True)
        }
        even[seed] = choose(pool, slices, wanted, {}, thresholds, config, seed)
        control = FitRequest(tuple(crew.train), steps, seed, revision)
        work[f"probe:control:{seed}"] = (control,)
        work[f"probe:pairs:{seed}"] = (replace(control, pairs=even[seed].pairs),)
    fits = crew.each(ledger, "fit", work, Fit, "probing gains")
    asked = {f"{name}:scores": (fit.revision, list(crew.validation), None) for name, fit in fits.items()}
    found = crew.each(ledger, "evaluate", asked, Evaluation, "scoring probes")
    return {
        seed: measured_gains(
            found[f"probe:control:{seed}:scores"].outcomes,
            found[f"probe:pairs:{seed}:scores"].outcomes,
            outcomes[seed],
            ranked[seed],
            even[seed].pairs,
        )
        for seed in base
    }


def _losses(
    crew: Crew, ledger: Ledger, base: Mapping[int, str], pool: list[Attempt]
) -> dict[int, dict[str, float]]:
    work = {f"losses:{seed}": (revision, pool) for seed, revision in base.items()}
    found = crew.each(ledger, "losses", work, list[float], "judging candidates")
    ids = [attempt.task_id for attempt in pool]
    return {seed: dict(zip(ids, found[f"losses:{seed}"], strict=True)) for seed in base}
