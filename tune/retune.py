"""Sweeps between the rounds of a loop: strengths that suit what the segmenter lacks now.

    round 1 .. N as configured; sweep; N+1 .. 2N with what it found; sweep; ...        --retune-every N

Trials gain over real photos alone, with pairs of their own and none of earlier rounds: what strengths are worth, not what a round adds.
A sweep begins with the configured point and with those that earlier sweeps found. The loop's actors are lent to its trials, and the trials run in the places of
the downstream actors: no more is reserved than by the loop alone. What a sweep found is in the ledger: a restart takes it from there.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass, replace

import pandas as pd

from actors.crew import Crew
from cdiff.config import Config
from cdiff.data.carriers import from_json
from cdiff.data.dataset import Dataset
from cdiff.data.ledger import Ledger
from cdiff.data.manifest import Manifest
from cdiff.errors import ConfigError
from cdiff.tracking import Tracker, may_be_away
from cdiff.types import Knowledge, Revisions
from jobs.session import Situation
from tune.bench import Budget, bench_of, demand_tunable, search_points
from tune.space import Dimension, Point, applied, here, space
from tune.trials import Search, demand_optuna

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Retuning:
    """When and how strengths are searched within a loop."""

    every: int  # rounds
    trials: int


def demand_retunable(config: Config, dataset: Dataset, manifest: Manifest, wanted: Retuning) -> None:
    """ConfigError where a sweep would fail for its settings, its photos, or for want of Optuna, or would never come: at the start, not rounds later."""
    if wanted.trials < 1:
        raise ConfigError(f"--retune-trials {wanted.trials}: at least 1.")
    if not 1 <= wanted.every < config.rounds:
        raise ConfigError(
            f"--retune-every {wanted.every} with rounds={config.rounds}: no round would come after a sweep. Give 1 or more, and more rounds."
        )
    demand_optuna()
    space(config)
    demand_tunable(config, dataset, manifest, _budget(config))


def _budget(config: Config) -> Budget:
    return Budget(pairs=min(Budget().pairs, config.wasm.pairs))


def retuned(
    crew: Crew,
    ledger: Ledger,
    tracker: Tracker,
    number: int,
    now: Situation,
    wanted: Retuning,
) -> Config:
    """The configuration of a round: with the strengths of the last sweep, after one where it is time.

    Args:
        now: what this round knows.
    """
    known = now[0]
    due = (number - 1) // wanted.every * wanted.every + 1  # the round before which the last sweep was due
    if due == 1:
        return crew.config
    if ledger.milestone(f"retuned-{due}") is None:
        dimensions, budget = space(crew.config), _budget(crew.config)
        if ledger.milestone(f"retuning-{due}") is None:  # what trials are named by must outlive a restart
            revisions = crew.adapt(ledger, number, *now)
            # gains were measured at one start strength: they would plan trials there otherwise than anywhere else
            ledger.record(f"retuning-{due}", known=replace(known, gains=()), revisions=revisions)
        begun = ledger.milestone(f"retuning-{due}") or {}
        known, revisions = from_json(Knowledge, begun["known"]), from_json(Revisions, begun["revisions"])
        bench = bench_of(crew, ledger, known, revisions, budget)
        search = Search(wanted.trials, budget.factor, crew.config.seed + due)
        first = [here(crew.config, dimensions), *_earlier(ledger, dimensions, due, wanted.every)]
        best = search_points(crew, tracker, bench, dimensions, first, search, f"round {due}: ").best
        ledger.record(f"retuned-{due}", point=dict(best["point"]), gain=best["rungs"][-1]["gain"])
        _tell(ledger, tracker, due, wanted.every)
    found = ledger.milestone(f"retuned-{due}") or {}
    return applied(crew.config, found["point"])


def _tell(ledger: Ledger, tracker: Tracker, due: int, every: int) -> None:
    """What was found: a line on the console, and a row of the MLflow run's table for every sweep."""
    rows = [
        {"from round": number, "gain on half A": found["gain"], **found["point"]}
        for number in range(1 + every, due + 1, every)
        if (found := ledger.milestone(f"retuned-{number}"))
    ]
    told = " ".join(f"{name.split('.', 1)[1]}={value}" for name, value in rows[-1].items() if "." in name)
    log.info("retuned    from round %d on: %s", due, told)
    with may_be_away(f"the sweep before round {due}", "the ledger has it, and the next sweep logs it, too"):
        tracker.table("retuned", pd.DataFrame(rows))  # all rows: a later sweep brings what this one could not


def _earlier(ledger: Ledger, dimensions: tuple[Dimension, ...], due: int, every: int) -> list[Point]:
    told = [ledger.milestone(f"retuned-{number}") for number in range(1, due, every)]
    names = {dimension.name for dimension in dimensions}
    return [found["point"] for found in told if found and set(found["point"]) == names]
