"""Sweeps between the rounds of a loop: strengths that suit what the segmenter lacks now.

    round 1 .. N as configured; sweep; N+1 .. 2N with what it found; sweep; ...        --retune-every N

A sweep begins with the configured point and with those that earlier sweeps found. The loop's actors are lent to its trials, and the trials run in the places of
the downstream actors: no more is reserved than by the loop alone. What a sweep found is in the ledger: a restart takes it from there.
"""

from __future__ import annotations

from dataclasses import dataclass

from actors.crew import Crew
from cdiff.config import Config
from cdiff.data.ledger import Ledger
from cdiff.tracking import Tracker
from cdiff.types import Knowledge, Outcome, Revisions
from tune.bench import Budget, bench_of, demand_base, search_points
from tune.space import Dimension, Point, applied, here, space
from tune.trials import Search, demand_optuna


@dataclass(frozen=True)
class Retuning:
    """When and how strengths are searched within a loop."""

    every: int  # rounds
    trials: int


def demand_tunable(config: Config) -> None:
    """ConfigError where a sweep would fail for its settings or for want of Optuna."""
    demand_base(config)
    demand_optuna()
    space(config)


def retuned(
    crew: Crew,
    ledger: Ledger,
    tracker: Tracker,
    number: int,
    known: Knowledge,
    outcomes: list[Outcome],
    generator: Revisions,
    wanted: Retuning,
) -> Config:
    """The configuration of a round: with the strengths of the last sweep, after one where it is time.

    Args:
        known, outcomes: of this round. generator: revisions of generator and token bank.
    """
    due = (number - 1) // wanted.every * wanted.every + 1  # the round before which the last sweep was due
    if due == 1:
        return crew.config
    if ledger.milestone(f"retuned-{due}") is None:
        dimensions = space(crew.config)
        revisions = crew.adapt(known, outcomes, number, generator, crew.base(ledger))
        budget = Budget(pairs=min(Budget().pairs, crew.config.wasm.pairs))
        bench = bench_of(crew, ledger, known, revisions, budget)
        search = Search(wanted.trials, budget.factor, crew.config.seed + due)
        first = [here(crew.config, dimensions), *_earlier(ledger, dimensions, due, wanted.every)]
        best = search_points(crew, tracker, bench, dimensions, first, search).best
        ledger.record(f"retuned-{due}", point=dict(best["point"]), gain=best["rungs"][-1]["gain"])
    found = ledger.milestone(f"retuned-{due}") or {}
    return applied(crew.config, found["point"])


def _earlier(ledger: Ledger, dimensions: tuple[Dimension, ...], due: int, every: int) -> list[Point]:
    told = [ledger.milestone(f"retuned-{number}") for number in range(1, due, every)]
    names = {dimension.name for dimension in dimensions}
    return [found["point"] for found in told if found and set(found["point"]) == names]
