"""The driver's side of trials: what they share is measured once, actors are lent to them, and every result goes to MLflow."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from tqdm import tqdm

from actors.crew import Crew
from actors.downstream import Evaluation, Fit, FitRequest
from actors.lending import lent
from cdiff.config import Config
from cdiff.data.dataset import Dataset
from cdiff.data.ledger import Ledger
from cdiff.data.manifest import Manifest
from cdiff.errors import ConfigError
from cdiff.tracking import Tracker, may_be_away
from cdiff.types import Knowledge, Revisions
from tune.objective import Bench, Rung, halves, rungs, soft_dice
from tune.outcome import MEASURED, Swept
from tune.space import Dimension, Point
from tune.trials import Search, run_trials


@dataclass(frozen=True, slots=True)
class Budget:
    """Of a trial that goes to its end, and how many smaller ones come before."""

    pairs: int = 96
    steps: int = 0  # of the last fit; 0: half of `downstream.steps`
    rungs: int = 3
    factor: int = 2


def demand_tunable(config: Config, dataset: Dataset, manifest: Manifest, budget: Budget) -> None:
    """ConfigError for what a sweep would fail of after hours: no base of real photos, no room for the rungs, too few validation photos."""
    if not config.downstream.base_steps:
        raise ConfigError("trials go on from one base of real photos: set downstream.base_steps.")
    budgets(config, budget)
    halves(dataset, manifest, config.data.split_seed)


def budgets(config: Config, budget: Budget) -> tuple[Rung, ...]:
    """Of the rungs; errors as of `rungs`."""
    steps = budget.steps or max(1, config.downstream.steps // 2)
    return rungs(budget.pairs, steps, budget.rungs, budget.factor)


def bench_of(crew: Crew, ledger: Ledger, known: Knowledge, revisions: Revisions, budget: Budget) -> Bench:
    """What all trials share, but the names of actors; the controls are fitted and scored here, once.

    Raises:
        ConfigError: as `demand_tunable`.
    """
    config, ladder = crew.config, budgets(crew.config, budget)
    first, _ = halves(crew.dataset, crew.manifest, config.data.split_seed)
    base, seed, train = crew.base(ledger), config.downstream.seed + config.seed, tuple(crew.train)
    plain = {f"tune:control:{r.steps}": (FitRequest(train, r.steps, seed, base),) for r in ladder}
    fits = crew.each(ledger, "fit", plain, Fit, "fitting controls")
    asked = {f"tune:scored:{name}": (fit.revision, first, 0.5) for name, fit in fits.items()}
    scored = crew.each(ledger, "evaluate", asked, Evaluation, "scoring controls")
    control = tuple(soft_dice(scored[f"tune:scored:{name}"]) for name in plain)
    targets = tuple(target.target_id for target in crew.dataset.all_targets(first))
    photos = tuple(first)
    return Bench(crew.run, config, known, revisions, base, seed, train, photos, targets, ladder, control)


def search_points(
    crew: Crew,
    tracker: Tracker,
    bench: Bench,
    dimensions: Sequence[Dimension],
    first: Sequence[Point],
    search: Search,
    label: str = "",
) -> Swept:
    """Run trials on a crew's actors, from the first points on; one MLflow run each.

    Args:
        label: before the names of these runs, where a run has several sweeps.
    """
    with lent(crew) as names, tqdm(total=search.trials, desc="trials", unit="trial") as bar:
        bench = replace(
            bench, generators=names.generators, extractor=names.extractor, coordinator=names.coordinator
        )
        begun: dict[str, int] = {}

        def told(key: str, point: Point, rung: int, measured: dict[str, Any]) -> None:
            number = begun.setdefault(key, len(begun) + 1)
            bar.n = len(begun) - 1
            bar.set_postfix_str(f"trial {number}, rung {rung}: {measured['gain']:+.4f}")
            shown = {name: measured.get(name) for name in MEASURED}
            with (
                may_be_away(f"trial {number}", "what was measured lies in the run's folder"),
                tracker.trial(f"{label}trial {number}", key, point) as run,
            ):
                run.metrics(shown, step=bench.rungs[rung - 1].steps)

        found = run_trials(bench, crew.shared, dimensions, first, search, told)
        bar.n = len(found)
        bar.refresh()
    return Swept(bench, tuple(dimensions), tuple(found))
