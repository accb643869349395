"""Training by several workers: Ray Train places them, joins them, and starts them again from the last checkpoint.

    driver: train_together(...) -> TorchTrainer -> on every worker: work(run, config, photos, workers, device, progress) -> the first's result

The checkpoints are the run's own (cdiff.generator.training), where any worker finds them; Ray's are not used. Batches are cut among however many
workers there are, so that a training that lost nodes goes on with fewer, to the same losses.
"""

from __future__ import annotations

import logging
import os
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import ray
from ray.exceptions import RayError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from actors.group import POLL_SECONDS, Steps, Watch
from actors.places import preflight_workers
from actors.resources import CODE, join_driver, own_code, photos_of, silent, training_gpus
from cdiff.config import Config
from cdiff.data.dataset import Dataset
from cdiff.data.run import Run
from cdiff.errors import ActorError, CdiffError, LoopStalled
from cdiff.workers import Part, Workers, usable

log = logging.getLogger(__name__)

# What a worker does: the run, its configuration, the photos, the workers, the device, and whom to tell of steps; the first's result counts.
Training = Callable[[Run, Config, Dataset, Workers, str, Callable[[int, int, float], None]], Any]
_TOLD = 1.0  # seconds between two words of progress


@ray.remote(num_cpus=0)
class _Told:
    """What the first worker says; the driver asks."""

    def __init__(self) -> None:
        self._steps: Steps = (0, 0)
        self._ended: tuple[str, Any] | None = None
        self._workers = 0

    def begin(self, workers: int) -> None:
        self._workers = workers

    def step(self, done: int, total: int) -> None:
        self._steps = (done, total)

    def end(self, how: str, what: Any) -> None:
        self._ended = (how, what)

    def ask(self) -> tuple[Steps, tuple[str, Any] | None, int]:
        return self._steps, self._ended, self._workers


def train_together(
    run: Run,
    config: Config,
    shared: Any,
    batch: int,
    work: Training,
    watch: Watch,
    local: bool,
    grow: bool = True,
    joined: Callable[[int], None] = lambda workers: None,
) -> Any:
    """Have `train.workers` workers do one training; returns what the first's `work` returned.

    Args:
        shared: reference to the photos. batch: what is cut among the workers. local: nobody else can free a place.
        grow: wait for all workers, so that a cluster can grow, before fewer are taken.
        joined: told how many take part where these are not all, and whenever their number changes.
    Raises:
        ResourceError: the cluster has no place for them.
        ActorError: it failed more often than `train.failures`, with the first cause.
        LoopStalled: no step in `resources.stall_timeout_s`.
    """
    from ray.train import (  # here: one worker alone needs nothing of it
        FailureConfig,
        RunConfig,
        ScalingConfig,
    )
    from ray.train.torch import TorchConfig, TorchTrainer

    settings, gpus = config.train, training_gpus(config)
    most = preflight_workers(config, wait=not local, grow=grow)
    # beside the driver: elsewhere it would be lost with a node
    here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
    told = _Told.options(scheduling_strategy=here).remote()  # type: ignore[attr-defined]
    scaling: dict[str, Any] = {
        "num_workers": most,
        "use_gpu": gpus > 0,
        "resources_per_worker": {"CPU": settings.cpus} | ({"GPU": gpus} if gpus else {}),
    }
    if settings.least_workers < most:
        scaling["num_workers"] = (settings.least_workers, most)
    # the controller's own failures, as workers that do not come up, count like the workers'
    limits: dict[str, Any] = dict.fromkeys(("max_failures", "controller_failure_limit"), settings.failures)
    about: dict[str, Any] = {
        "name": f"{run.name}-{time.time_ns()}",
        # of Ray's notes; nothing of ours is there
        "storage_path": str(Path(tempfile.gettempdir()) / f"cdiff-train-{os.getuid()}"),
        "failure_config": FailureConfig(**limits),
        "worker_runtime_env": {"env_vars": silent() | {"OMP_WAIT_POLICY": "PASSIVE", CODE: own_code()}},
    }
    trainer = TorchTrainer(
        _loop,
        train_loop_config={"told": told, "about": (run, config, [shared], batch, work)},
        scaling_config=ScalingConfig(**scaling),
        torch_config=TorchConfig(backend="nccl" if gpus else "gloo"),
        run_config=RunConfig(**about),
    )
    return _followed(trainer, told, config, watch, joined)


def _followed(trainer: Any, told: Any, config: Config, watch: Watch, joined: Callable[[int], None]) -> Any:
    """Run a trainer beside, and look what its first worker says."""
    failed: list[Exception] = []

    def fit() -> None:
        try:
            trainer.fit()
        except Exception as error:  # noqa: BLE001  # whatever it is, the driver tells it
            failed.append(error)

    thread = threading.Thread(target=fit, name="trainer", daemon=True)
    thread.start()
    moved, last, ended, workers = time.monotonic(), (0, 0), None, config.train.workers
    while thread.is_alive() and ended is None:  # others may wait in vain for a worker that has ended
        thread.join(POLL_SECONDS)
        steps, ended, count = ray.get(told.ask.remote())
        if count and count != workers:
            workers = count
            log.warning("the training goes on with %d of %d workers", count, config.train.workers)
            joined(count)
        if steps != last:
            moved, last = time.monotonic(), steps
        watch([steps])
        if time.monotonic() - moved > config.resources.stall_timeout_s:
            raise LoopStalled(
                f"the workers did no step for {config.resources.stall_timeout_s:.0f} s, at {last[0]} of {last[1]}. The same command goes on."
            )
    _, ended, _ = ray.get(told.ask.remote())
    if ended is not None and ended[0] == "done":
        return ended[1]
    if ended is not None:  # the user's to mend
        raise ended[1]
    cause = " ".join(str(failed[0] if failed else "they ended without a word").split())
    raise ActorError(
        f"training by {config.train.workers} workers failed {config.train.failures + 1} times, last: {cause[:2000]}"
    ) from (failed[0] if failed else None)


def _loop(config: dict[str, Any]) -> None:
    """What Ray Train runs on every worker."""
    import ray.train
    import torch

    told, (run, settings, shared, batch, work) = config["told"], config["about"]
    if ray.get(told.ask.remote())[1] is not None:
        return  # started again after the end: nobody waits for it any more
    try:
        join_driver(settings)
    except CdiffError as error:
        ray.get(told.end.remote("refused", error))  # it would be refused again
        return
    context = ray.train.get_context()
    number, count = context.get_world_rank(), usable(batch, context.get_world_size())
    if number == 0:
        told.begin.remote(context.get_world_size())
    group = torch.distributed.new_group(list(range(count)))  # all take part in making it
    if number >= count:
        log.warning(
            "worker=%d of %d is idle: a batch of %d is cut among %d",
            number,
            context.get_world_size(),
            batch,
            count,
        )
        return
    last = 0.0

    def progress(done: int, total: int, _: float = 0.0) -> None:
        nonlocal last
        if number == 0 and (done == total or time.monotonic() - last > _TOLD):
            last = time.monotonic()
            told.step.remote(done, total)

    device = "cuda" if training_gpus(settings) else "cpu"
    try:
        result = work(run, settings, photos_of(shared), Workers(Part(number, count), group), device, progress)
    except CdiffError as error:
        ray.get(told.end.remote("refused", error))  # it would be refused again
        return
    if number == 0:
        try:
            ray.get(told.end.remote("done", result))
        except RayError:
            log.exception("the driver is gone")
            raise
