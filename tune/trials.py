"""The trials of a sweep on Ray Tune: a searcher proposes points, each is one trial, a scheduler stops poor ones early.

What is true stands in the run alone (tune.objective: RUN/trials/): a sweep that goes on tells its searcher and its scheduler of earlier trials by giving
them out again, first and in their order; these only read what they measured. So nothing of Tune's own state is needed, and none is read.
"""

from __future__ import annotations

import logging
import os
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import ray
from ray import cloudpickle, tune
from ray.exceptions import RayTaskError
from ray.tune import Callback
from ray.tune.logger import JsonLoggerCallback
from ray.tune.schedulers import ASHAScheduler, FIFOScheduler
from ray.tune.search.basic_variant import BasicVariantGenerator

from actors.lending import STARTS, make_room
from actors.resources import needs, own_code, refuse_other_code
from cdiff.config import Config
from cdiff.data.dataset import Dataset
from cdiff.errors import ActorError, ConfigError, LoopStalled
from cdiff.types import content_hash
from tune.objective import Bench, Trial, end, stored
from tune.space import Dimension, Point, domains, every_point, whole, within

log = logging.getLogger(__name__)
_TRIES = 3  # of Tune, where trials failed or were proposed twice
_SILENT = 10.0  # seconds without any trial in its place until that is told of
_TOKEN = 0.001  # CPUs of a trial that wants none
_FEW = 20  # a finite space of so many times the trials may be proposed twice, too
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
        ConfigError: points are to be modelled, and Optuna is missing. ActorError: trials fail again and again.
    """
    every = every_point(dimensions, _FEW * search.trials)
    np.random.default_rng([search.seed, 19]).shuffle(every)
    if every:
        search = replace(search, trials=min(search.trials, len(every)))
    reason = ""
    for number in range(_TRIES + 1):
        mine = _mine(bench, dimensions, search)
        ended = [trial for trial in mine if trial["ended"]]
        if len(ended) >= search.trials:
            return ended
        if number < _TRIES:
            known, half = ([t["point"] for t in mine if t["ended"] is ended] for ended in (True, False))
            begun = [whole(dimensions, point) for point in first]
            # what failed half-way comes first once; where points are few, a searcher proposes the same ones again and again
            spare = every if number or len(every) <= search.trials else []
            wanted = [*known, *half, *begun, *spare] if not number else [*known, *begun, *spare, *half]
            points = list({bench.key(point): point for point in wanted}.values())
            reason = _tune(bench, dataset, dimensions, points, search, told)
    raise ActorError(
        f"{len(ended)} of {search.trials} trials came to their end{f'; the last failed with: {reason}' if reason else ''}. What was measured is kept: "
        "mend the cause, and the same command goes on."
    )


def _mine(bench: Bench, dimensions: Sequence[Dimension], search: Search) -> list[dict[str, Any]]:
    """What was measured of this space under this budget; where no trial is stopped, one that was is not ended."""
    found = [
        trial
        for trial in stored(bench.run)
        if trial["key"] == bench.key(trial["point"]) and within(dimensions, trial["point"])
    ]
    for trial in found:
        trial["ended"] &= search.stop or len(trial["rungs"]) == len(bench.rungs)
    return found


def _tune(
    bench: Bench,
    dataset: Any,
    dimensions: Sequence[Dimension],
    points: list[Point],
    search: Search,
    told: Told,
) -> str:
    """Let Tune run as many trials as are wanted, the given points first; why the last failed that did, or ""."""
    # results go to MLflow and to the driver's bar: no files for TensorBoard, no tables on the console
    os.environ.setdefault("TUNE_DISABLE_AUTO_CALLBACK_LOGGERS", "1")
    os.environ.setdefault("RAY_AIR_NEW_OUTPUT", "0")
    os.environ["TUNE_DISABLE_SIGINT_HANDLER"] = "1"  # Ctrl-C ends the job, not its search alone
    resources = bench.config.resources
    searched = domains(dimensions)
    given = [{name: point[name] for name in searched} for point in points[: search.trials]]
    scheduler = FIFOScheduler()
    if search.stop:
        scheduler = _Halving(
            time_attr="budget",
            max_t=search.factor ** (len(bench.rungs) - 1),
            grace_period=1,
            reduction_factor=search.factor,
        )
    trainable = tune.with_resources(
        tune.with_parameters(
            _trial,
            bench=bench,
            dataset=dataset,
            dimensions=tuple(dimensions),
            search=search,
            code=own_code(),
        ),
        place(bench.config),
    )
    recorder = _Recorder(bench, dimensions, told)
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
                search_alg=_searcher(given, search, resources.downstreams, len(bench.rungs)),
            ),
            run_config=tune.RunConfig(
                name="sweep",
                storage_path=folder,
                verbose=0,
                callbacks=[recorder, JsonLoggerCallback()],
                failure_config=tune.FailureConfig(max_failures=resources.retries),
            ),
        )
        found = tuner.fit()
    recorder.demand_movement()  # Tune ends by itself with its last trial
    reasons = [str(error).strip().splitlines()[-1] for error in found.errors]
    for reason in reasons:
        log.warning("a trial failed and is left out: %s", reason)
    return reasons[-1] if reasons else ""


def place(config: Config) -> dict[str, float]:
    """What a trial reserves: the place of a downstream actor, which rests meanwhile."""
    wanted = needs(config, "downstream")
    # Tune refuses a trial that reserves nothing (resources.cpus=0)
    return {"cpu": wanted.get("CPU", 0 if wanted else _TOKEN), "gpu": wanted.get("GPU", 0)}


def demand_optuna() -> Any:
    """The module that models points; ConfigError where it is not installed."""
    try:
        import optuna
    except ImportError:
        raise ConfigError(
            "Optuna is not installed: pip install 'cdiff[tune]', or let tune/sweep.py propose points at random with --random."
        ) from None
    return optuna


def _searcher(given: list[dict[str, Any]], search: Search, at_once: int, rungs: int) -> Any:
    # with the same seed it would propose those again that it proposed before the given ones were known
    seed = int(content_hash([search.seed, len(given)])[:8], 16)
    if not search.model:
        return BasicVariantGenerator(points_to_evaluate=given, random_state=seed, max_concurrent=at_once)
    optuna = demand_optuna()
    from ray.tune.search.optuna import OptunaSearch

    class Model(OptunaSearch):  # type: ignore[misc]  # here: Optuna is an extra
        """Tells Optuna which trials ended early: their last gain is one at a smaller budget, no match for those at the whole."""

        def on_trial_complete(
            self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False
        ) -> None:
            early = result is not None and result["training_iteration"] < rungs
            if early and result is not None:  # Tune keeps the result at which it stops a trial to itself
                number, study = self._ot_trials[trial_id].number, self._ot_study
                assert study is not None
                if result["training_iteration"] not in study.trials[number].intermediate_values:
                    self.on_trial_result(trial_id, result)
            # without a value Optuna takes what was reported rung by rung
            super().on_trial_complete(trial_id, None if early else result, error)

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    return Model(points_to_evaluate=given, seed=seed)


class _Halving(ASHAScheduler):  # type: ignore[misc]  # Ray's is not typed
    """ASHA that lets a trial of an earlier try go as far as it went: in another order it might be stopped before what it measured."""

    def on_trial_result(self, tune_controller: Any, trial: Any, result: dict[str, Any]) -> str:
        decision = super().on_trial_result(tune_controller, trial, result)
        return str(self.CONTINUE if result.get("more_is_known") else decision)


def _trial(
    config: dict[str, Any],
    bench: Bench,
    dataset: Any,
    dimensions: tuple[Dimension, ...],
    search: Search,
    code: str,
) -> None:
    """What Tune runs: a trial's rungs, reported one by one."""
    refuse_other_code(code)
    point = whole(dimensions, config)
    photos: Dataset = ray.get(dataset) if isinstance(dataset, ray.ObjectRef) else dataset
    trial = Trial(bench, photos, point)
    known = trial.known()
    for number, found in enumerate(trial.measure(not search.stop), 1):
        # the rungs of the scheduler, whatever budgets were rounded to
        told = {"budget": search.factor ** (number - 1), "more_is_known": number < known}
        tune.report({name: value for name, value in found.items() if value is not None} | told)


class _Recorder(Callback):
    """Writes the end of trials, and tells the driver of results."""

    def __init__(self, bench: Bench, dimensions: Sequence[Dimension], told: Told) -> None:
        self._bench, self._dimensions, self._told = bench, tuple(dimensions), told
        self._moved, self._warned = time.monotonic(), False
        self._room = self._moved  # when it was made
        self._generators: Sequence[str] = bench.generators
        self._stalled = ""  # what a trial said that waited in vain

    def demand_movement(self) -> None:
        """LoopStalled where a trial waited in vain for the actors that all of them share: tried again, it would wait as long again, and so would the others."""
        if self._stalled:
            raise LoopStalled(self._stalled)

    def on_step_begin(self, iteration: int, trials: list[Any], **info: Any) -> None:
        """Tune itself would wait for ever for a place that another job has."""
        self.demand_movement()  # here, since Tune makes an error of its own of what its other callbacks raise
        # a trial that runs counts as movement, however long its fit takes: none of its own waits is without an end (`actors.borrowing`)
        now = time.monotonic()
        if any(trial.status == "RUNNING" for trial in trials):
            self._moved, self._room, self._warned = now, now, False
        resources = self._bench.config.resources
        patience = max(resources.stall_timeout_s, resources.wait_seconds)
        waited = now - self._moved
        if waited > _SILENT and not self._warned:
            self._warned = True
            log.warning(
                "no trial has its place (%s): waiting at most %.0f s", place(self._bench.config), patience
            )
        if waited > patience:
            raise LoopStalled(
                f"no trial found its place ({place(self._bench.config)}) in {patience:.0f} s: others have it. What was measured is kept; the "
                "same command goes on."
            )
        if now - self._room > resources.wait_seconds + STARTS and len(self._generators) > 1:
            # those that were lost with a node come back wherever there is room, and leave none for trials
            self._room, self._generators = now, make_room(self._generators)
            log.warning("no trial has its place: %d generators go on, to make room", len(self._generators))

    def on_trial_result(
        self, iteration: int, trials: list[Any], trial: Any, result: dict[str, Any], **info: Any
    ) -> None:
        point = whole(self._dimensions, trial.config)
        self._told(self._bench.key(point), point, int(result["training_iteration"]), result)

    def on_trial_recover(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        """Before Tune repeats a trial that failed."""
        # get_pickled_error() looks where Tune copies it later; the file is Tune's own, in this process's folder
        path = trial.pickled_error_file
        error = cloudpickle.loads(Path(path).read_bytes()) if path else None
        if isinstance(error, RayTaskError) and isinstance(error.cause, LoopStalled):
            self._stalled = str(error.cause)

    def on_trial_error(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        self.on_trial_recover(iteration, trials, trial)

    def on_trial_complete(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        end(self._bench.run, self._bench.key(whole(self._dimensions, trial.config)))

    def __reduce__(self) -> Any:
        # Tune stores its callbacks beside its own state; ours lives in this driver alone
        return (Callback, ())
