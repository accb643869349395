"""What the loop tells of each round: a line for a person, and all of it for MLflow."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING

import pandas as pd

from actors.crew import Assessed
from cdiff.data.carriers import from_json
from cdiff.data.ledger import Ledger
from cdiff.errors import TrackingError
from cdiff.tracking import Tracker
from cdiff.types import Decision, Pair, RoundResult
from jobs.grids import grids

if TYPE_CHECKING:
    from jobs.session import Session

_DECISION = ("gain", "low", "high", "chance", "accepted", "stands")  # as metrics
log = logging.getLogger(__name__)


def log_start(tracker: Tracker, ledger: Ledger, real_only: Assessed) -> None:
    """What stands before the first round, as step 0."""
    generator = ledger.milestone("generator") or {}
    for number, loss in enumerate(generator.get("losses", [])):
        tracker.metrics({"generator/loss": loss}, step=number)
    tracker.metrics({"validation": real_only.scores, "seconds/fit": real_only.seconds}, step=0)
    print(
        "rounds     gain: validation pixel AP less that of the best model so far, with 95 % of a bootstrap; "
        "chance: share of it in which the round is better",
        flush=True,
    )


def log_round(
    session: Session, tracker: Tracker, result: RoundResult, pairs: Sequence[Pair], fitted: Assessed
) -> None:
    """One line for a person, and everything of the round for MLflow; the ledger then knows that it is there."""
    reasons: dict[str, int] = {}
    for _, reason, count in result.counts:
        reasons[reason] = reasons.get(reason, 0) + count
    told = " ".join(
        f"{name.replace(' ', '_')}={count}" for name, count in sorted(reasons.items()) if name != "kept"
    )
    human = len(human_pairs(session.ledger, result.round))
    decision = result.decision
    merged = sorted({w.slice.category for w in result.weaknesses if not w.slice.type})
    if result.round == 1 and merged:
        fewest = session.config.wasm.min_targets
        print(
            f"note       {', '.join(merged)}: types of fewer than {fewest} training targets are ranked together "
            "(wasm.min_targets)"
        )
    by_people = f"by_people={human} " if human else ""
    print(
        f"round={result.round} kept={result.kept} {by_people}turned_away={len(pairs) - result.kept} ({told or 'none'}) "
        f"gain={decision.gain:+.4f} [{decision.low:+.4f}, {decision.high:+.4f}] chance={decision.chance:.3f} "
        f"{_verdict(decision)}",
        flush=True,
    )
    try:
        _track_round(session, tracker, result, pairs, fitted, reasons, human)
    except TrackingError as error:  # the round is committed: MLflow may be back at the next one
        log.warning("round %d is not in MLflow yet: %s", result.round, error)
    else:
        session.ledger.record(f"logged-{result.round}", run_id=tracker.run_id)


def _track_round(
    session: Session,
    tracker: Tracker,
    result: RoundResult,
    pairs: Sequence[Pair],
    fitted: Assessed,
    reasons: Mapping[str, int],
    human: int,
) -> None:
    with tracker.round(result.round) as log:
        log.metrics(
            {
                "validation": fitted.scores,
                "pairs": {**reasons, "human": human},
                "seconds": dict(result.seconds),
            }
        )
        log.metrics({"decision": {name: float(getattr(result.decision, name)) for name in _DECISION}})
        log.metrics({"fit": {"loss": fitted.losses[-1]}})
        log.table("weakness", _weakness_table(result))
        log.table("gains", pd.DataFrame([asdict(gain) for gain in result.gains]))
        log.table("counts", pd.DataFrame(result.counts, columns=["slice", "verdict", "count"]))
        kept, away = grids(session.run, session, pairs)
        for name, pixels in (("pairs_kept", kept), ("pairs_turned_away", away)):
            if pixels is not None:
                log.picture(name, pixels)


def log_missed(session: Session, tracker: Tracker) -> None:
    """Log the committed rounds that this MLflow run may lack: an earlier start ended before it came to that, or logged to another one."""
    ledger = session.ledger
    for result in ledger.rounds():
        logged = ledger.milestone(f"logged-{result.round}") or {}
        if logged.get("run_id") != tracker.run_id:
            found = (ledger.milestone(f"round-{result.round}") or {})["assessed"]
            log_round(session, tracker, result, ledger.pairs(result.round), from_json(Assessed, found))


def _verdict(decision: Decision) -> str:
    if not decision.accepted:
        return f"rejected: {decision.reason}"
    return "accepted, its model is kept" if decision.stands else "accepted, but the model before stays"


def human_pairs(ledger: Ledger, until: int | None = None) -> list[tuple[int, Pair]]:
    """Pairs that people made and nobody rejected since, with the first round that trains on each."""
    away = ledger.rejected()
    made = [(number, pair) for number, pair in ledger.human_pairs() if pair.task_id not in away]
    return [(number, pair) for number, pair in made if until is None or number <= until]


def _weakness_table(result: RoundResult) -> pd.DataFrame:
    named = [(w.slice.name, w) for w in result.weaknesses]
    named += [(f"{w.slice.name} (no target)", w) for w in result.alarms]
    rows = [(name, len(w.targets), w.score, w.loss, w.soft_dice, w.missed) for name, w in named]
    return pd.DataFrame(rows, columns=["slice", "targets", "score", "loss", "soft_dice", "missed"])
