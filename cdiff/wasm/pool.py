"""A pool of candidate pairs that several arms and seeds choose from: what differs between arms is then the choice alone.

    plan_pool   as many tasks for every type, whatever its share of the targets; nobody judges while they are made
    started     those that start at the strength that their slice wants
    chosen      what the quotas of an arm and seed take from the valid ones

An undirected arm has quotas in proportion to the targets; an aimed one those of its ranked slices, within the difficulty
bands, by the losses of the seed's own segmenter.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace

import numpy as np

from cdiff.config import Config
from cdiff.types import Assignment, Attempt, Pair, Purpose, Revisions, Slice, Target, Weakness
from cdiff.wasm.budget import Quotas, deal, largest_remainder
from cdiff.wasm.dealing import Stock, band
from cdiff.wasm.quality import FULL, Thresholds, difficulty_ranks, validity_reasons


def types_of(targets: Iterable[Target]) -> list[Weakness]:
    """One slice per category and type, unranked: every target of the type."""
    members: dict[Slice, list[str]] = {}
    for target in targets:
        members.setdefault(Slice(target.category, target.type), []).append(target.target_id)
    ordered = sorted(members.items(), key=lambda item: item[0].name)
    return [Weakness(piece, tuple(sorted(ids)), 0.0, 0.0, 0.0, 0.0) for piece, ids in ordered]


def plan_pool(
    stock: Stock, config: Config, per_type: int | Mapping[str, int], revisions: Revisions, wave: int = 0
) -> list[Assignment]:
    """Tasks for each category and type, interleaved; every target of a type is used about as often.

    Args:
        per_type: as many for each; or for those that are named, "category/type", and none for others.
        wave: further waves have seeds of their own.
    """
    slices = types_of(stock.targets.values())
    numbers = (
        dict.fromkeys((w.slice.name for w in slices), per_type) if isinstance(per_type, int) else per_type
    )
    wanted: Quotas = {(w.slice.name, "uniform"): numbers.get(w.slice.name, 0) for w in slices}
    return deal(wanted, slices, stock, config, round=wave, revisions=revisions)


def undirected_quotas(slices: Sequence[Weakness], pairs: int) -> Quotas:
    """Pairs by slice in proportion to its targets: what a generator makes that knows no weakness."""
    parts = largest_remainder(pairs, [float(len(weakness.targets)) for weakness in slices])
    return {(w.slice.name, "uniform"): n for w, n in zip(slices, parts, strict=True) if n}


def started(
    pool: Sequence[Attempt], slices: Sequence[Weakness], starts: Mapping[str, float]
) -> list[Attempt]:
    """The candidates that began at the start strength of their reference's slice.

    Args:
        starts: start strength by slice; a slice without one takes any.
    """
    wanted = {target_id: starts.get(w.slice.name) for w in slices for target_id in w.targets}
    tasks = ((attempt, attempt.assignment.task) for attempt in pool)
    return [a for a, task in tasks if wanted.get(task.reference) in (None, task.strengths.start_strength)]


def chosen(
    pool: Sequence[Attempt],
    slices: Sequence[Weakness],
    quotas: Mapping[tuple[str, Purpose], int],
    losses: Mapping[str, float],
    thresholds: Thresholds,
    config: Config,
    seed: int,
) -> tuple[list[Pair], int]:
    """The gate's verdicts on the pool for one arm and seed.

    1. Validity as in a round (cdiff.wasm.quality), in an order of the seed's own. No slice stops: a pool is there already.
    2. Difficulty is the rank of min(kappa, loss) among the valid candidates of the type. Of each slice, the weak share takes the
       first within the band, then the easy share the first below it, then the uniform share the first of what is left.
    3. What a band lacks is filled up with the valid ones nearest to it.

    Args:
        losses: by task_id, the loss of the seed's segmenter; {} where nothing judges.
    Returns:
        A pair for each candidate of a slice with a quota, its slice, purpose, index and loss given anew; and how many were
        taken from outside their band.
    """
    view = _view(pool, slices, losses, seed)
    asked = {name for (name, _), number in quotas.items() if number}
    reasons = validity_reasons(view, thresholds, config)
    valid = [attempt for attempt, reason in zip(view, reasons, strict=True) if not reason]
    ranks = difficulty_ranks(valid, config)
    taken: dict[int, Purpose] = {}
    beyond = 0
    for name in sorted({key[0] for key in quotas}):
        left = [attempt.assignment.index for attempt in valid if attempt.assignment.slice == name]
        for purpose in _TAKING:
            low, high = band(purpose, config)
            wanted = quotas.get((name, purpose), 0)
            near = sorted(left, key=lambda index: max(0.0, low - ranks[index], ranks[index] - high))
            beyond += sum(not low <= ranks[index] <= high for index in near[:wanted])
            taken |= dict.fromkeys(near[:wanted], purpose)
            left = [index for index in left if index not in taken]
    out = []
    for attempt, reason in zip(view, reasons, strict=True):
        index = attempt.assignment.index
        if attempt.assignment.slice not in asked:
            continue  # it took part above: what is hard for a type must not depend on who gets pairs
        told = reason or ("" if index in taken else FULL)
        assignment = replace(attempt.assignment, purpose=taken.get(index, "uniform"))
        out.append(Pair(replace(attempt, assignment=assignment), told))
    return out, beyond


_TAKING: tuple[Purpose, ...] = ("weak", "easy", "uniform")


def _view(
    pool: Sequence[Attempt],
    slices: Sequence[Weakness],
    losses: Mapping[str, float],
    seed: int,
) -> list[Attempt]:
    """The candidates of the slices, in an order of the seed's own."""
    owner = {target_id: weakness.slice.name for weakness in slices for target_id in weakness.targets}
    out: list[Attempt] = []
    for place in np.random.default_rng([seed, 23]).permutation(len(pool)):
        attempt = pool[place]
        name = owner.get(attempt.assignment.task.reference, "")
        if name:
            measures = dict(attempt.measures) | {"loss": losses.get(attempt.task_id, 0.0)}
            assignment = replace(attempt.assignment, slice=name, index=len(out))
            out.append(replace(attempt, assignment=assignment, measures=tuple(sorted(measures.items()))))
    return out
