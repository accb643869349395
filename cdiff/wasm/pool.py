"""A pool of candidate pairs that several arms and seeds choose from: what differs between arms is then the choice alone.

    plan_pool   as many tasks for every type, whatever its share of the targets; nobody judges while they are made
    dealt       a seed's view of the pool: each candidate serves a slice and a purpose, in an order of the seed's own
    judge       the gate of a round (cdiff.wasm.quality) keeps what the quotas ask for

An undirected arm deals the pool to quotas in proportion to the targets; an aimed arm to the quotas of ranked slices, with
losses of the seed's own segmenter.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace

import numpy as np

from cdiff.config import Config
from cdiff.types import Assignment, Attempt, Purpose, Revisions, Slice, Target, Weakness
from cdiff.wasm.budget import Quotas, Stock, deal, interleaved, largest_remainder


def types_of(targets: Iterable[Target]) -> list[Weakness]:
    """One slice per category and type, unranked: every target of the type."""
    members: dict[Slice, list[str]] = {}
    for target in targets:
        members.setdefault(Slice(target.category, target.type), []).append(target.target_id)
    ordered = sorted(members.items(), key=lambda item: item[0].name)
    return [Weakness(piece, tuple(sorted(ids)), 0.0, 0.0, 0.0, 0.0) for piece, ids in ordered]


def plan_pool(stock: Stock, config: Config, per_type: int, revisions: Revisions) -> list[Assignment]:
    """`per_type` tasks for each category and type, interleaved; every target of a type is used about as often."""
    slices = types_of(stock.targets.values())
    wanted: Quotas = {(weakness.slice.name, "uniform"): per_type for weakness in slices}
    return deal(wanted, slices, stock, config, round=0, revisions=revisions)


def undirected_quotas(slices: Sequence[Weakness], pairs: int) -> Quotas:
    """Pairs by slice in proportion to its targets: what a generator makes that knows no weakness."""
    parts = largest_remainder(pairs, [float(len(weakness.targets)) for weakness in slices])
    return {(w.slice.name, "uniform"): n for w, n in zip(slices, parts, strict=True) if n}


def dealt(
    pool: Sequence[Attempt],
    slices: Sequence[Weakness],
    quotas: Mapping[tuple[str, Purpose], int],
    losses: Mapping[str, float],
    seed: int,
) -> list[Attempt]:
    """The pool as one seed's attempts: slice, purpose and index are given anew, and the loss is the seed's.

    The candidates of a slice are shared out among its purposes in proportion to the quotas. Those of slices without a quota
    are left out.

    Args:
        losses: by task_id, the loss of the seed's segmenter; {} where nothing judges.
    """
    owner = {target_id: weakness.slice.name for weakness in slices for target_id in weakness.targets}
    order = np.random.default_rng([seed, 23]).permutation(len(pool))
    mine: dict[str, list[Attempt]] = {}
    for place in order:
        attempt = pool[place]
        mine.setdefault(owner.get(attempt.assignment.task.reference, ""), []).append(attempt)
    out: list[Attempt] = []
    for name in sorted(mine):
        own = {key: number for key, number in quotas.items() if key[0] == name and number}
        if not own:
            continue
        parts = largest_remainder(len(mine[name]), [float(number) for number in own.values()])
        purposes = interleaved(dict(zip(own, parts, strict=True)))
        for (_, purpose), attempt in zip(purposes, mine[name], strict=True):
            out.append(_relabelled(attempt, name, purpose, len(out), losses.get(attempt.task_id, 0.0)))
    return out


def _relabelled(attempt: Attempt, name: str, purpose: Purpose, index: int, loss: float) -> Attempt:
    measures = dict(attempt.measures) | {"loss": loss}
    return replace(
        attempt,
        assignment=replace(attempt.assignment, slice=name, purpose=purpose, index=index),
        measures=tuple(sorted(measures.items())),
    )
