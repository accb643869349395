"""What the loop tells of each round: a line for a person, and all of it for MLflow."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING

import pandas as pd

from actors.crew import Assessed
from cdiff.data.carriers import from_json
from cdiff.data.ledger import Ledger
from cdiff.tracking import Tracker, may_be_away
from cdiff.types import Decision, Pair, RoundResult
from cdiff.wasm.quality import INVALID, STOPPED
from jobs.grids import grids

if TYPE_CHECKING:
    from jobs.session import Session

_DECISION = ("gain", "low", "high", "chance", "accepted", "stands")  # as metrics


def log_start(tracker: Tracker, ledger: Ledger, real_only: Assessed) -> None:
    """What stands before the first round, as step 0; at every start, since MLflow may have been away at the last."""
    generator = ledger.milestone("generator") or {}
    with may_be_away("what stands before the first round"):
        for number, loss in enumerate(generator.get("losses", [])):
            tracker.metrics({"generator/loss": loss}, step=number)
        tracker.metrics({"validation": real_only.scores, "seconds/fit": real_only.seconds}, step=0)
    print(
        "rounds     gain: validation pixel AP less that of the best model so far, with its 95 % interval over validation objects; "
        "chance: share of the bootstrap in which the round is better",
        flush=True,
    )


def log_round(
    session: Session, tracker: Tracker, result: RoundResult, pairs: Sequence[Pair], fitted: Assessed
) -> None:
    """One line for a person, and everything of the round for MLflow; the ledger then knows that it is there."""
    _tell(session, result, len(pairs))
    _tracked(session, tracker, result, pairs, fitted)


def log_missed(session: Session, tracker: Tracker, told: bool = False) -> None:
    """Log the committed rounds that this MLflow run lacks: an earlier start ended before it came to that or logged to another one,
    or MLflow was away.

    Args:
        told: they were told to a person before.
    """
    ledger = session.ledger
    for result in ledger.rounds():
        logged = ledger.milestone(f"logged-{result.round}") or {}
        if logged.get("run_id") != tracker.run_id:
            pairs = ledger.pairs(result.round)
            if not told:
                _tell(session, result, len(pairs))
            found = (ledger.milestone(f"round-{result.round}") or {})["assessed"]
            if not _tracked(session, tracker, result, pairs, from_json(Assessed, found)):
                return


def _tell(session: Session, result: RoundResult, judged: int) -> None:
    told = " ".join(
        f"{name.replace(' ', '_')}={count}"
        for name, count in sorted(_reasons(result).items())
        if name != "kept"
    )
    human, decision = _by_people(session.ledger, result.round), result.decision
    merged = sorted({w.slice.category for w in result.weaknesses if not w.slice.type})
    if result.round == 1 and merged:
        fewest = session.config.wasm.min_targets
        print(
            f"note       {', '.join(merged)}: types of fewer than {fewest} training targets are ranked together "
            "(wasm.min_targets)"
        )
    by_people = f"by_people={human} " if human else ""
    print(
        f"round={result.round} kept={result.kept} {by_people}turned_away={judged - result.kept} ({told or 'none'}) "
        f"gain={decision.gain:+.4f} {bracketed(decision.low, decision.high)} chance={decision.chance:.3f} "
        f"{_verdict(decision)}",
        flush=True,
    )
    for line in stopped_slices(result.counts):
        print(f"note       {line}", flush=True)


def bracketed(low: float | None, high: float | None) -> str:
    """An interval for a person; a dash where one object alone has none."""
    return "[–]" if low is None or high is None else f"[{low:+.4f}, {high:+.4f}]"


def stopped_slices(counts: Sequence[tuple[str, str, int]]) -> list[str]:
    """A line for each slice that stopped in a round: why, and what was lost with it.

    Args:
        counts: (slice, verdict, how many), as in `RoundResult`.
    """
    lines = []
    for name in sorted({name for name, verdict, _ in counts if verdict == STOPPED}):
        own = {verdict: number for slice, verdict, number in counts if slice == name}
        unused = own.pop(STOPPED)
        reasons = sorted((number, verdict) for verdict, number in own.items() if verdict in INVALID)[::-1]
        told = ", ".join(f"{verdict} {number}" for number, verdict in reasons)
        lines.append(
            f"{name} stopped: {sum(number for number, _ in reasons)} of {sum(own.values())} were no true pairs ({told}); "
            f"{unused} more went unused (gate.stop_invalid)"
        )
    return lines


def _tracked(
    session: Session, tracker: Tracker, result: RoundResult, pairs: Sequence[Pair], fitted: Assessed
) -> bool:
    """Whether MLflow has the round now. It is committed: where MLflow is away, the loop goes on."""
    later = "it is logged at the end, or by the same command, run again"
    with may_be_away(f"round {result.round}", later):
        _track(session, tracker, result, pairs, fitted)
        session.ledger.record(f"logged-{result.round}", run_id=tracker.run_id)
        return True
    return False


def _track(
    session: Session, tracker: Tracker, result: RoundResult, pairs: Sequence[Pair], fitted: Assessed
) -> None:
    judged = {**_reasons(result), "human": _by_people(session.ledger, result.round)}
    with tracker.round(result.round) as run:
        run.metrics({"validation": fitted.scores, "pairs": judged, "seconds": dict(result.seconds)})
        decided = {name: getattr(result.decision, name) for name in _DECISION}
        run.metrics({"decision": {name: float(v) for name, v in decided.items() if v is not None}})
        run.metrics({"fit": {"loss": fitted.losses[-1]}})
        run.table("weakness", _weakness_table(result))
        run.table("gains", pd.DataFrame([asdict(gain) for gain in result.gains]))
        run.table("counts", pd.DataFrame(result.counts, columns=["slice", "verdict", "count"]))
        kept, away = grids(session.run, session, pairs)
        for name, pixels in (("pairs_kept", kept), ("pairs_turned_away", away)):
            if pixels is not None:
                run.picture(name, pixels)


def _reasons(result: RoundResult) -> dict[str, int]:
    """Verdicts over all slices."""
    found: Counter[str] = Counter()
    for _, reason, count in result.counts:
        found[reason] += count
    return dict(found)


def _verdict(decision: Decision) -> str:
    if not decision.accepted:
        return f"rejected: {decision.reason}"
    return "accepted, its model is kept" if decision.stands else "accepted, but the model before stays"


def _by_people(ledger: Ledger, until: int) -> int:
    """Pairs that people made and nobody rejected since, of those that the rounds up to this one train on."""
    away = ledger.rejected()
    return sum(number <= until and pair.task_id not in away for number, pair in ledger.human_pairs())


def _weakness_table(result: RoundResult) -> pd.DataFrame:
    named = [(w.slice.name, w) for w in result.weaknesses]
    named += [(f"{w.slice.name} (no target)", w) for w in result.alarms]
    rows = [(name, len(w.targets), w.score, w.loss, w.soft_dice, w.missed) for name, w in named]
    return pd.DataFrame(rows, columns=["slice", "targets", "score", "loss", "soft_dice", "missed"])
