"""Do the strengths that a sweep found hold? Fresh seeds on half B of validation, which no trial saw, against those of the configuration.

Per seed: a base of real photos of its own, pairs of its own under both strengths, and one whole fit of each from that base, with the same real batches. Half B tells
the difference of soft Dice, paired by target, with an interval over source objects and seeds; the test split, if asked for, is read once for the same fits.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from actors.crew import Crew
from actors.downstream import Evaluation, Fit, FitRequest
from cdiff.data.ledger import Ledger
from cdiff.evaluation.comparison import paired_targets
from cdiff.types import Pair, content_hash
from tune.objective import Bench, soft_dice
from tune.space import Point, applied

_FRESH = 1000  # added to a seed: no trial and no arm of a benchmark has it


@dataclass(frozen=True, slots=True)
class Confirmed:
    """What the found strengths gain over those of the configuration, in soft Dice over targets."""

    mean: float
    low: float
    high: float
    per_seed: tuple[float, ...]
    # by seed, of the photos that were looked at; empty where these are half B's targets alone
    pixel_ap: tuple[float, ...]


def confirm(
    crew: Crew,
    ledger: Ledger,
    bench: Bench,
    arms: Mapping[str, Point],
    photos: Sequence[str],
    seeds: Sequence[int],
    look: str,
) -> Confirmed:
    """Fit and compare two arms.

    Args:
        arms: "found" and "configured", by point; {} is the configuration as it is. photos: that are looked at, under the name `look`: what was measured is not measured again.
        seeds: each gives a base, pairs and fits of its own.
    """
    fits = _fits(crew, ledger, bench, arms, seeds)
    work = {f"tune:{look}:{fit.revision}": (fit.revision, list(photos), 0.5) for fit in fits.values()}
    scored = crew.each(ledger, "evaluate", work, Evaluation, f"scoring on {look}")
    found = {key: scored[f"tune:{look}:{fit.revision}"] for key, fit in fits.items()}
    changes = []
    for seed in seeds:
        after, before = soft_dice(found["found", seed]), soft_dice(found["configured", seed])
        changes.append({target: after[target] - before[target] for target in sorted(before)})
    objects = {target: crew.dataset.target(target).group for target in changes[0]}
    mean, low, high = paired_targets(changes, objects, bench.config.seed)
    aps = [[found[arm, seed].scores["pixel_ap"] for arm in ("found", "configured")] for seed in seeds]
    return Confirmed(
        mean,
        low,
        high,
        tuple(sum(own.values()) / len(own) for own in changes),
        tuple(after - before for after, before in aps if after is not None and before is not None),
    )


def _fits(
    crew: Crew, ledger: Ledger, bench: Bench, arms: Mapping[str, Point], seeds: Sequence[int]
) -> dict[tuple[str, int], Fit]:
    config = crew.config
    base_steps, steps = config.downstream.base_steps, config.downstream.steps
    bases = {
        f"tune:base:{seed}": (FitRequest(bench.train, base_steps, _FRESH + seed, base=True),)
        for seed in seeds
    }
    based = crew.each(ledger, "fit", bases, Fit, "fitting bases")
    work: dict[str, tuple[FitRequest]] = {}
    names: dict[tuple[str, int], str] = {}
    for seed in seeds:
        start = based[f"tune:base:{seed}"].revision
        for arm, point in arms.items():
            pairs, mix = _pairs(crew, bench, point, seed)
            request = FitRequest(bench.train, steps, _FRESH + seed, start, tuple(pairs), mix=mix)
            made_of = content_hash([mix, sorted(pair.task_id for pair in pairs)])
            names[arm, seed] = f"tune:confirm:{seed}:{made_of}"
            work[names[arm, seed]] = (request,)
    fitted = crew.each(ledger, "fit", work, Fit, "confirming")
    return {key: fitted[name] for key, name in names.items()}


def _pairs(crew: Crew, bench: Bench, point: Point, seed: int) -> tuple[list[Pair], float]:
    """A seed's kept pairs at a point, as a round of the loop would make them, and their share beside a batch."""
    config = applied(bench.config, point)
    pairs = crew.make_pairs(bench.known, _FRESH + seed, bench.revisions, config)
    return [pair for pair in pairs if pair.kept], config.downstream.synthetic_mix
