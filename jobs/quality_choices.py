"""Which pairs each arm of a quality benchmark trains on: all choose from the pool of the split, through the same gate."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from actors.crew import Crew
from actors.downstream import Evaluation, Fit, FitRequest
from cdiff.config import Config
from cdiff.config_file import build_config, overridden
from cdiff.data.carriers import from_json
from cdiff.data.ledger import Ledger
from cdiff.data.store import pool_seconds
from cdiff.errors import ConfigError
from cdiff.types import (
    Arm,
    Attempt,
    Gain,
    Knowledge,
    Outcome,
    Pair,
    Purpose,
    Revisions,
    Weakness,
    content_hash,
)
from cdiff.wasm.budget import largest_remainder, quotas
from cdiff.wasm.gains import measured_gains
from cdiff.wasm.pool import chosen as pool_choice
from cdiff.wasm.pool import types_of, undirected_quotas
from cdiff.wasm.quality import Thresholds, beyond_band, counts, survival_bounds
from cdiff.wasm.weakness import rank

Key = tuple[str, int]  # arm and seed

WAVES = 4  # of a pool, at most
_JUDGED = 200  # candidates per call
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
# What a variant of the aimed arm may set: what is read anew at each choice from a pool.
VARIED = (
    "wasm.uniform",
    "wasm.easy",
    "wasm.band",
    "wasm.kappa",
    "wasm.budget",
    "gate.checks",
    "gate.duplicate",
)
LONG = "_long"  # what arms that run on are called
MADE = ("copy_paste", "undirected", "wasm", *MINED)  # arms whose pairs are made and judged


@dataclass(frozen=True)
class Choice:
    """What one arm of one seed trains on beside the real photos."""

    pairs: tuple[Pair, ...] = ()  # kept ones
    perlin: int = 0
    again: int = 0
    counts: tuple[tuple[str, str, int], ...] = ()  # (slice, reason or "kept", how many)
    beyond_band: int = 0  # kept pairs whose difficulty lies outside the band that was wanted


@dataclass(frozen=True)
class Wanted:
    """What an arm and seed ask of a pool."""

    slices: Sequence[Weakness]
    quotas: Mapping[tuple[str, Purpose], int]
    config: Config
    judge: str = ""  # revision of the segmenter whose loss is difficulty; "": nobody judges


def variants(config: Config, told: Sequence[Sequence[str]]) -> dict[str, Config]:
    """Configurations of further aimed arms, by arm: each chooses from the same pool under other settings.

    Args:
        told: for each, a name and its settings: ["hard", "wasm.band=[0.7,1]"] is the arm `wasm_hard`.
    Raises:
        ConfigError: a name twice or of other signs, no setting, one that is not read anew at each choice, or all as before.
    """
    found: dict[str, Config] = {}
    for name, *settings in told:
        arm = f"wasm_{name}"
        if not re.fullmatch("[a-z0-9_]+", name) or arm.endswith(LONG) or arm in found or not settings:
            raise ConfigError(
                f"--variant {name}: give each a name of its own (small letters, digits, underscores; not ending in 'long') and "
                "its settings."
            )
        for setting in settings:
            if (key := setting.partition("=")[0]) not in VARIED:
                raise ConfigError(
                    f"--variant {name}: {key} cannot be varied within a run: compare it by a run of its own. "
                    f"A variant sets {', '.join(VARIED)}; other settings stand before --variant."
                )
        found[arm] = overridden(config, settings)
        if _decisive(found[arm]) == _decisive(config):
            raise ConfigError(
                f"--variant {name}: would choose as wasm does. Give settings that differ from the run's; wasm.budget=prior differs from "
                "thompson only where wasm.probe_steps measures gains first."
            )
    return found


def _decisive(config: Config) -> Config:
    """Without probes a benchmark's budget learns nothing, and Thompson sampling is the prior."""
    learns = config.wasm.probe_steps or config.wasm.budget != "thompson"
    return config if learns else overridden(config, ["wasm.budget=prior"])


def choices(
    crew: Crew,
    ledger: Ledger,
    revisions: Revisions | None,
    base: Mapping[int, str],
    arms: Sequence[str],
    varied: Mapping[str, Config],
) -> dict[Key, Choice]:
    """The choice of every arm and seed.

    Args:
        base: revision of each seed's model of real photos alone.
        varied: further aimed arms and their configurations.
    """
    config, pairs = crew.config, crew.config.wasm.pairs
    chosen: dict[Key, Choice] = {}
    for arm in (*arms, *varied):
        for seed in base:
            chosen[arm, seed] = Choice(again=int(arm == CHANCE), perlin=pairs if arm == "perlin" else 0)
    if revisions is None:
        return chosen
    found = ledger.milestone("extractor") or {}
    thresholds = from_json(Thresholds, found["thresholds"])
    types = types_of(crew.dataset.all_targets(crew.train))
    uniform = undirected_quotas(types, pairs)
    seeds = list(base)
    if "copy_paste" in arms:
        wanted = {("copy_paste", seed): Wanted(types, uniform, config) for seed in seeds}
        own, per_type = copying(config), 2 * max(uniform.values())
        chosen |= _from_pool(crew, ledger, revisions, own, per_type, wanted, thresholds, "copies")
    outcomes = _outcomes(crew, ledger, list(base)) if {"wasm", *MINED} & set(arms) else {}
    ranked = {seed: rank(rows, config.wasm.min_targets) for seed, rows in outcomes.items()}
    for arm in (arm for arm in arms if arm in MINED):
        for seed, rows in outcomes.items():
            chosen[arm, seed] = _mined(crew, ledger, revisions, base[seed], ranked[seed], rows, arm, seed)
    wanted = {("undirected", seed): Wanted(types, uniform, config) for seed in seeds if "undirected" in arms}
    own, per_type = unjudged(config), config.wasm.pool
    # apart: what a variant lacks must not change the pool of the arms it is compared with
    further: dict[Key, Wanted] = {}
    if "wasm" in arms:
        gains = _probed(crew, ledger, revisions, base, ranked, outcomes, thresholds)
        for arm, aimed in {"wasm": config, **varied}.items():
            for seed, slices in ranked.items():
                quota = quotas(aimed.model_copy(update={"seed": seed}), slices, gains.get(seed, ()), 1)
                asked = Wanted(slices, quota, aimed, judge=base[seed])
                (wanted if arm == "wasm" else further)[arm, seed] = asked
    if wanted:
        chosen |= _from_pool(crew, ledger, revisions, own, per_type, wanted, thresholds, "candidates")
    if further:
        label = "candidates of variants"
        chosen |= _from_pool(crew, ledger, revisions, own, per_type, further, thresholds, label)
    return chosen


def _from_pool(
    crew: Crew,
    ledger: Ledger,
    revisions: Revisions,
    config: Config,
    per_type: int,
    wanted: Mapping[Key, Wanted],
    thresholds: Thresholds,
    label: str,
) -> dict[Key, Choice]:
    """What each arm and seed takes from one pool. While one lacks pairs, the pool gets a further wave, WAVES at most."""
    pool: list[Attempt] = []
    found: dict[Key, Choice] = {}
    for wave in range(WAVES):
        pool += crew.pool(per_type, revisions, config, wave, f"making {label}, wave {wave + 1}")
        found = {}
        for (arm, seed), asked in wanted.items():
            losses = _losses(crew, ledger, asked.judge, pool, label) if asked.judge else {}
            pairs = pool_choice(pool, asked.slices, asked.quotas, losses, thresholds, asked.config, seed)
            found[arm, seed] = _kept(pairs, asked.config)
        if all(len(found[key].pairs) >= sum(asked.quotas.values()) for key, asked in wanted.items()):
            break
    told = {"candidates": len(pool), "seconds": pool_seconds(crew.run, pool)}
    if ledger.milestone(f"pool:{label}") != told:
        ledger.record(f"pool:{label}", **told)
    return found


def _kept(pairs: Sequence[Pair], config: Config) -> Choice:
    kept = tuple(pair for pair in pairs if pair.kept)
    return Choice(kept, counts=counts(pairs), beyond_band=sum(beyond_band(pairs, config).values()))


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
    values = config.model_dump()
    config = build_config({**values, "seed": seed, "wasm": {**values["wasm"], "arm": MINED[arm]}})
    known = Knowledge(tuple(slices), bounds=survival_bounds(outcomes, config))
    name = f"adapted:{arm}:{seed}"
    if ledger.milestone(name) is None:
        adapted = crew.adapt(known, outcomes, 1, revisions, segmenter, config)
        ledger.record(name, revisions=adapted)
    found = from_json(Revisions, (ledger.milestone(name) or {})["revisions"])
    return _kept(crew.make_pairs(known, 1, found, config), config)


def copying(config: Config) -> Config:
    """The configuration under which a task pastes the real target and its mask as they are."""
    sampling = config.sampling.model_copy(update={"start_strength": 0.0, "mode": "given_mask"})
    wasm = unjudged(config).wasm.model_copy(update={"start_strengths": ()})
    return config.model_copy(update={"sampling": sampling, "wasm": wasm})


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
    revisions: Revisions,
    base: Mapping[int, str],
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
    wanted: dict[Key, Wanted] = {}
    for seed, slices in ranked.items():
        parts = largest_remainder(config.wasm.pairs, [1.0] * len(slices))
        named = zip(slices, parts, strict=True)
        wanted["probe", seed] = Wanted(slices, {(w.slice.name, "uniform"): n for w, n in named}, config)
    own = unjudged(config)
    even = _from_pool(crew, ledger, revisions, own, config.wasm.pool, wanted, thresholds, "candidates")
    work: dict[str, tuple[FitRequest]] = {}
    for seed, revision in base.items():
        control = FitRequest(tuple(crew.train), steps, seed, revision)
        work[f"probe:control:{seed}"] = (control,)
        work[f"probe:pairs:{seed}"] = (replace(control, pairs=even["probe", seed].pairs),)
    fits = crew.each(ledger, "fit", work, Fit, "probing gains")
    asked = {f"{name}:scores": (fit.revision, list(crew.validation), None) for name, fit in fits.items()}
    found = crew.each(ledger, "evaluate", asked, Evaluation, "scoring probes")
    return {
        seed: measured_gains(
            found[f"probe:control:{seed}:scores"].outcomes,
            found[f"probe:pairs:{seed}:scores"].outcomes,
            outcomes[seed],
            ranked[seed],
            even["probe", seed].pairs,
        )
        for seed in base
    }


def _losses(crew: Crew, ledger: Ledger, segmenter: str, pool: list[Attempt], label: str) -> dict[str, float]:
    """By task_id the loss of a segmenter on every candidate."""
    parts = [pool[first : first + _JUDGED] for first in range(0, len(pool), _JUDGED)]
    work = {
        f"losses:{segmenter}:{content_hash([a.task_id for a in part])}": (segmenter, part) for part in parts
    }
    found = crew.each(ledger, "losses", work, list[float], f"judging {label}")
    values = [value for name in work for value in found[name]]
    return dict(zip([attempt.task_id for attempt in pool], values, strict=True))
