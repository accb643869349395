"""The trials of a sweep on Ray Tune: a searcher proposes points, each is one trial, a scheduler stops poor ones early.

What is true stands in the run alone (tune.objective: RUN/trials/): a sweep that goes on tells its searcher and its scheduler of earlier trials by giving
them out again, first and in their order; these only read what they measured. So nothing of Tune's own state is needed, and none is read.
"""

from __future__ import annotations

import logging
import os
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import ray
from ray import tune
from ray.tune import Callback
from ray.tune.logger import JsonLoggerCallback
from ray.tune.schedulers import ASHAScheduler, FIFOScheduler
from ray.tune.search.basic_variant import BasicVariantGenerator

from cdiff.data.dataset import Dataset
from cdiff.errors import ConfigError
from tune.objective import Bench, Trial, end, stored
from tune.space import Dimension, Point, domains, whole

log = logging.getLogger(__name__)
Told = Callable[[str, Point, int, dict[str, Any]], None]  # key, point, rung, what was measured


@dataclass(frozen=True, slots=True)
class Search:
    """How points are proposed and stopped."""

    trials: int
    factor: int = 2  # of the trials at a rung, one in so many goes on
    seed: int = 0
    stop: bool = True  # False: every trial goes to its last rung
    model: bool = True  # False: points at random


def run_trials(
    bench: Bench,
    dataset: Any,
    dimensions: Sequence[Dimension],
    first: Sequence[Point],
    search: Search,
    told: Told,
) -> list[dict[str, Any]]:
    """Measure points until there are as many as wanted; those of an earlier try count. Returns all, as `tune.objective.stored`.

    Args:
        dataset: reference to the photos in Ray's object store.
        first: points to begin with, before the searcher proposes any.
        told: called in the driver at every result.
    Raises:
        ConfigError: points are to be modelled, and Optuna is missing.
    """
    mine = [trial for trial in stored(bench.run) if trial["key"] == bench.key(trial["point"])]
    if sum(trial["ended"] for trial in mine) < search.trials:
        wanted = [whole(dimensions, point) for point in [*(trial["point"] for trial in mine), *first]]
        points = list({bench.key(point): point for point in wanted}.values())
        _tune(bench, dataset, dimensions, points, search, told)
    return [trial for trial in stored(bench.run) if trial["key"] == bench.key(trial["point"])]


def _tune(
    bench: Bench,
    dataset: Any,
    dimensions: Sequence[Dimension],
    points: list[Point],
    search: Search,
    told: Told,
) -> None:
    # results go to MLflow and to the driver's bar: no files for TensorBoard, no tables on the console
    os.environ.setdefault("TUNE_DISABLE_AUTO_CALLBACK_LOGGERS", "1")
    os.environ.setdefault("RAY_AIR_NEW_OUTPUT", "0")
    resources = bench.config.resources
    searched = domains(dimensions)
    given = [{name: point[name] for name in searched} for point in points[: search.trials]]
    scheduler = FIFOScheduler()
    if search.stop:
        scheduler = ASHAScheduler(
            time_attr="steps",
            max_t=bench.rungs[-1].steps,
            grace_period=bench.rungs[0].steps,
            reduction_factor=search.factor,
        )
    trainable = tune.with_resources(
        tune.with_parameters(_trial, bench=bench, dataset=dataset, dimensions=tuple(dimensions)),
        {"cpu": resources.cpus, "gpu": resources.gpus},
    )
    with tempfile.TemporaryDirectory(prefix="cdiff-tune-") as folder:  # what Tune writes there, nobody reads
        tuner = tune.Tuner(
            trainable,
            param_space=searched,
            tune_config=tune.TuneConfig(
                metric="gain",
                mode="max",
                num_samples=search.trials,
                max_concurrent_trials=resources.downstreams,
                scheduler=scheduler,
                search_alg=_searcher(given, search),
            ),
            run_config=tune.RunConfig(
                name="sweep",
                storage_path=folder,
                verbose=0,
                callbacks=[_Recorder(bench, dimensions, told), JsonLoggerCallback()],
                failure_config=tune.FailureConfig(max_failures=resources.retries),
            ),
        )
        found = tuner.fit()
    for error in found.errors:
        log.warning("a trial failed and is left out: %s", str(error).strip().splitlines()[-1])


def demand_optuna() -> Any:
    """The module that models points; ConfigError where it is not installed."""
    try:
        import optuna
    except ImportError:
        raise ConfigError(
            "Optuna is not installed: pip install 'cdiff[tune]', or let tune/sweep.py propose points at random with --random."
        ) from None
    return optuna


def _searcher(given: list[dict[str, Any]], search: Search) -> Any:
    if not search.model:
        return BasicVariantGenerator(points_to_evaluate=given, random_state=search.seed)
    optuna = demand_optuna()
    from ray.tune.search.optuna import OptunaSearch

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    return OptunaSearch(points_to_evaluate=given, seed=search.seed)


def _trial(config: dict[str, Any], bench: Bench, dataset: Any, dimensions: tuple[Dimension, ...]) -> None:
    """What Tune runs: a trial's rungs, reported one by one."""
    point = whole(dimensions, config)
    photos: Dataset = ray.get(dataset) if isinstance(dataset, ray.ObjectRef) else dataset
    for found in Trial(bench, photos, point).measure():
        tune.report({name: value for name, value in found.items() if value is not None})


class _Recorder(Callback):
    """Writes the end of trials, and tells the driver of results."""

    def __init__(self, bench: Bench, dimensions: Sequence[Dimension], told: Told) -> None:
        self._bench, self._dimensions, self._told = bench, tuple(dimensions), told

    def on_trial_result(
        self, iteration: int, trials: list[Any], trial: Any, result: dict[str, Any], **info: Any
    ) -> None:
        point = whole(self._dimensions, trial.config)
        self._told(self._bench.key(point), point, int(result["training_iteration"]), result)

    def on_trial_complete(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        end(self._bench.run, self._bench.key(whole(self._dimensions, trial.config)))

    def __reduce__(self) -> Any:
        return (
            Callback,
            (),
        )  # Tune stores its callbacks beside its own state; ours lives in this driver alone
