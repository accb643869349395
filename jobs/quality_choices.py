"""Which pairs each arm of a quality benchmark trains on: all choose from the pool of the split, through the same gate."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import replace

from actors.crew import Crew
from actors.downstream import Evaluation, Fit, FitRequest
from cdiff.config import Config
from cdiff.config_file import build_config, overridden
from cdiff.data.carriers import from_json
from cdiff.data.ledger import Ledger
from cdiff.errors import ConfigError
from cdiff.types import Arm, Gain, Knowledge, Outcome, Pair, Purpose, Revisions, Weakness
from cdiff.wasm.budget import largest_remainder, quotas, start_strengths
from cdiff.wasm.gains import measured_gains
from cdiff.wasm.pool import types_of, undirected_quotas
from cdiff.wasm.quality import Thresholds, beyond_band, survival_bounds
from cdiff.wasm.weakness import rank
from jobs.quality_pool import Choice, Key, Pools, Wanted, copying, enough, kept, made_of, starting

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
    "wasm.start_strengths",
    "gate.checks",
    "gate.duplicate",
)
LONG = "_long"  # what arms that run on are called
MADE = ("copy_paste", "undirected", "wasm", *MINED)  # arms whose pairs are made and judged


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
        own, offered = found[arm].wasm.start_strengths, config.wasm.start_strengths
        if own != offered and not 0 < len(own) == len(set(own) & set(offered)):
            raise ConfigError(
                f"--variant {name}: wasm.start_strengths={list(own)} must be some of the run's, {list(offered)}: its pool has no others."
            )
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
    pools = Pools(crew, ledger, revisions, from_json(Thresholds, found["thresholds"]))
    types = types_of(crew.dataset.all_targets(crew.train))
    uniform = undirected_quotas(types, pairs)
    if "copy_paste" in arms:
        wanted = {("copy_paste", seed): Wanted(types, uniform, config) for seed in base}
        chosen |= pools.choose([copying(config)], enough(uniform), wanted, "copies")
    outcomes = _outcomes(crew, ledger, list(base)) if {"wasm", *MINED} & set(arms) else {}
    ranked = {seed: rank(rows, config.wasm.min_targets) for seed, rows in outcomes.items()}
    for arm in (arm for arm in arms if arm in MINED):
        for seed, rows in outcomes.items():
            chosen[arm, seed] = _mined(crew, ledger, revisions, base[seed], ranked[seed], rows, arm, seed)
    wanted = {("undirected", seed): Wanted(types, uniform, config) for seed in base if "undirected" in arms}
    plain = [starting(config, config.sampling.start_strength)]
    if config.wasm.start_strengths and wanted:  # the aimed arm has a larger pool than this one
        chosen |= pools.choose(plain, config.wasm.pool, wanted, "undirected candidates")
        wanted = {}
    # apart: what a variant lacks must not change the pool of the arms it is compared with
    further: dict[Key, Wanted] = {}
    if "wasm" in arms:
        gains = _probed(pools, base, ranked, outcomes)
        for arm, aimed in {"wasm": config, **varied}.items():
            for seed, slices in ranked.items():
                asked = _aimed(aimed, slices, gains.get(seed, ()), base[seed], seed)
                (wanted if arm == "wasm" else further)[arm, seed] = asked
    if wanted:
        chosen |= pools.choose(_offered(config), config.wasm.pool, wanted, "candidates")
    least = int((ledger.milestone("pool:candidates") or {"waves": 1})["waves"])
    # each by itself: the waves that another lacks would change what it chooses from
    for (arm, seed), asked in further.items():
        label = f"candidates for {arm}, seed {seed}"
        chosen |= pools.choose(_offered(config), config.wasm.pool, {(arm, seed): asked}, label, least)
    return chosen


def _aimed(
    config: Config, slices: Sequence[Weakness], gains: Sequence[Gain], segmenter: str, seed: int
) -> Wanted:
    """What an aimed arm asks of a pool: pairs by slice and purpose and, where strengths are offered, the one that paid there."""
    own = config.model_copy(update={"seed": seed})
    starts = start_strengths(own, slices, gains, 1, last=True) if config.wasm.start_strengths else {}
    return Wanted(slices, quotas(own, slices, gains, 1), config, segmenter, starts)


def _offered(config: Config) -> list[Config]:
    """How candidates are made, one configuration for each start strength that the budget may choose."""
    strengths = config.wasm.start_strengths or (config.sampling.start_strength,)
    return [starting(config, strength) for strength in strengths]


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
    adapted = crew.adapt(ledger, 1, known, outcomes, revisions, segmenter, config)
    pairs = crew.make_pairs(known, 1, adapted, config)
    return kept(pairs, sum(beyond_band(pairs, config).values()))


def _outcomes(crew: Crew, ledger: Ledger, seeds: Sequence[int]) -> dict[int, list[Outcome]]:
    """Outcomes of all training photos under each seed's own fold models."""
    work = {f"fold:{seed}:{fold[-1]}": fold for seed in seeds for fold in crew.folds((), seed)}
    found = crew.each(ledger, "fold", work, list[Outcome], "fitting folds")
    return {
        seed: [row for name in work if name.split(":")[1] == str(seed) for row in found[name]]
        for seed in seeds
    }


def _probed(
    pools: Pools,
    base: Mapping[int, str],
    ranked: Mapping[int, list[Weakness]],
    outcomes: Mapping[int, list[Outcome]],
) -> dict[int, tuple[Gain, ...]]:
    """Short-probe gains by slice and start strength, on validation: fits with pairs spread evenly over the slices, one for each
    strength, and a matched one without.

    {} without `wasm.probe_steps`.
    """
    crew, ledger, config = pools.crew, pools.ledger, pools.crew.config
    if not (steps := config.wasm.probe_steps):
        return {}
    spread: dict[int, Mapping[tuple[str, Purpose], int]] = {}
    for seed, slices in ranked.items():
        parts = largest_remainder(config.wasm.pairs, [1.0] * len(slices))
        spread[seed] = {(w.slice.name, "uniform"): n for w, n in zip(slices, parts, strict=True)}
    work = {
        f"probe:control:{seed}": (FitRequest(tuple(crew.train), steps, seed, revision),)
        for seed, revision in base.items()
    }
    probes: dict[tuple[int, str], tuple[Pair, ...]] = {}
    for own in _offered(config):
        start = own.sampling.start_strength
        wanted = {("probe", seed): Wanted(ranked[seed], spread[seed], config) for seed in base}
        even = pools.choose([own], config.wasm.pool, wanted, f"candidates from {start:g}")
        for seed in base:
            pairs, (control,) = even["probe", seed].pairs, work[f"probe:control:{seed}"]
            name = f"probe:{start:g}:{seed}:{made_of(pairs)}"
            probes[seed, name], work[name] = pairs, (replace(control, pairs=pairs),)
    fits = crew.each(ledger, "fit", work, Fit, "probing gains")
    asked = {f"{name}:scores": (fit.revision, list(crew.validation), None) for name, fit in fits.items()}
    found = crew.each(ledger, "evaluate", asked, Evaluation, "scoring probes")
    gains: dict[int, tuple[Gain, ...]] = dict.fromkeys(base, ())
    for (seed, name), pairs in probes.items():
        before, after = (found[f"{of}:scores"].outcomes for of in (f"probe:control:{seed}", name))
        gains[seed] += measured_gains(before, after, outcomes[seed], ranked[seed], pairs)
    return gains
