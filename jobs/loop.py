"""The closed loop: find where the segmenter is weak, make pairs aimed there, retrain, measure it.

    python jobs/loop.py                                         the built-in demo
    python jobs/loop.py --config configs/mvtec.yaml --data DIR  your photos
    ray job submit --working-dir . -- python jobs/loop.py       on a cluster

jobs/session.py opens run folder, data and Ray; actors/crew.py fans work out; jobs/telling.py tells of each round;
jobs/closing.py writes the report after each and, at the end, reads the test split once.
"""

from __future__ import annotations

import sys
import time

from actors.crew import Crew
from actors.probing import probed
from cdiff.data.ledger import Ledger
from cdiff.tracking import Tracker
from cdiff.types import RoundResult
from cdiff.wasm.quality import counts
from cdiff.wasm.weakness import false_positives
from jobs.closing import close, show
from jobs.session import Session, open_session
from jobs.stopping import exit_code
from jobs.telling import log_missed, log_round, log_start


def loop(session: Session, crew: Crew, ledger: Ledger, tracker: Tracker) -> None:
    """Rounds of rank, probe, tune, adapt, plan, generate, gate, fit, commit. The ledger alone knows what is done; a restart goes on from it."""
    config = session.config
    generator = crew.prepare(ledger)  # trained once: SAFE, joint denoiser, token bank, the gate's thresholds
    real_only = crew.assess(ledger, "real_only", pairs=[])
    best = crew.best(ledger, default=real_only)
    log_start(tracker, ledger, real_only)
    log_missed(session, tracker)  # of an earlier start that was cut off between commit and log
    for number in ledger.remaining(config.rounds):
        seconds = Stopwatch()
        ledger.fold_verdicts()  # what people said of earlier pairs: what they turned away is trained on no more
        accepted = ledger.kept_pairs()
        unseen = ledger.kept_pairs(since=ledger.best_round())  # by the best model
        outcomes = seconds("outcomes", crew.outcomes, ledger, accepted)
        known = seconds("rank", crew.rank, outcomes, ledger.gains())
        known = seconds("probe", probed, crew, ledger, known, outcomes, generator, best.revision)
        now = known, outcomes, generator, best.revision
        strengths = seconds("tune", session.strengths, crew, tracker, number, now)
        revisions = seconds("adapt", crew.adapt, ledger, number, *now, strengths)
        pairs = seconds("generate", crew.make_pairs, known, number, revisions, strengths)
        kept = [pair for pair in pairs if pair.kept]
        candidate = seconds("fit", crew.assess, ledger, f"round-{number}", accepted + kept, strengths)
        decision = seconds("decide", crew.decide, candidate, best, real_only, config.seed + number)
        result = RoundResult(
            round=number,
            weaknesses=known.weaknesses,
            alarms=tuple(false_positives(outcomes)),
            kept=len(kept),
            counts=counts(pairs, crew.quarantined),
            candidate=candidate.revision,
            validation=candidate.headline(),
            decision=decision,
            seconds=seconds.all(),
            gains=crew.gains(outcomes, known, best, candidate, unseen + kept),
        )
        ledger.commit_round(result, pairs)
        crew.tidy(ledger)
        best = candidate if decision.stands else best
        log_round(session, tracker, result, pairs, candidate)
        show(session, ledger, real_only)
    close(session, crew, ledger, tracker, real_only, best)


class Stopwatch:
    """Calls a step and remembers how long it took."""

    def __init__(self) -> None:
        self.taken: dict[str, float] = {}

    def __call__(self, name, step, *args):  # type: ignore[no-untyped-def]  # returns whatever the step returns
        began = time.perf_counter()
        out = step(*args)
        self.taken[name] = round(time.perf_counter() - began, 2)
        return out

    def all(self) -> tuple[tuple[str, float], ...]:
        return tuple(sorted(self.taken.items()))


def main(arguments: list[str] | None = None) -> int:
    """Command line; the exit code (jobs.stopping)."""

    def work() -> None:
        with open_session(arguments) as session:
            if session is not None:
                with session.crew() as crew, session.tracker() as tracker:
                    loop(session, crew, session.ledger, tracker)

    return exit_code(work, "the same command goes on from the last committed round")


if __name__ == "__main__":
    sys.exit(main())
