"""Training by several workers under Ray Train: the losses of one worker, and a worker that dies costs only its last steps."""

import os
import signal
import time
from functools import partial

import pytest
import ray
import torch

from actors.generator import trained
from actors.together import train_together
from cdiff.config_file import load_config
from cdiff.data.run import Run
from cdiff.errors import ConfigError, ResourceError
from cdiff.generator.model import Generator
from cdiff.generator.training import TRAINING_STATE
from cdiff.workers import ALONE, Part

pytestmark = [pytest.mark.ray, pytest.mark.long, pytest.mark.timeout(400)]


@pytest.fixture
def told(local_ray, photos, tiny_overrides, tmp_path):
    more = [
        "generator.batch=8",
        "generator.bfloat16=false",
        "generator.steps=12",
        "generator.checkpoint_every=2",
    ]
    config = load_config(None, [*tiny_overrides, *more, "train.workers=2", "resources.wait_seconds=5"])
    ids = [sample.sample_id for sample in photos.samples]
    targets = [target.target_id for target in photos.all_targets(ids)]
    normals = [sample.sample_id for sample in photos.samples if sample.is_normal]
    work = partial(trained, target_ids=targets, photo_ids=normals)
    return Run(tmp_path / "run"), config, work


def once_killed(work, mark, run, config, dataset, workers, device, progress):
    """A training whose second worker dies once, in its seventh step."""

    def step(done, total, loss):
        progress(done, total, loss)
        if done == 7 and workers.own == Part(1, 2) and not mark.exists():
            mark.touch()
            os.kill(os.getpid(), signal.SIGKILL)

    return work(run, config, dataset, workers, device, step)


def test_a_worker_that_dies_is_replaced_and_the_losses_are_those_of_one(told, photos, tmp_path) -> None:
    run, config, work = told
    alone = work(Run(tmp_path / "alone"), config, photos, ALONE, "cpu", lambda *_: None)
    seen: list[tuple[int, int]] = []
    mark = tmp_path / "killed"
    result = train_together(
        run,
        config,
        ray.put(photos),
        config.generator.batch,
        partial(once_killed, work, mark),
        lambda steps: seen.extend(steps),
        local=True,
    )
    assert mark.exists(), "the blow has to hit"
    assert result.losses == pytest.approx(alone.losses, rel=2e-3)
    assert seen[-1] == (12, 12)
    assert Generator.load(run.checkpoints / result.revision).config == config.generator
    left = {path.name for path in run.checkpoints.iterdir()}
    assert left == {result.revision, TRAINING_STATE}, (
        "its last state stays until the ledger knows its generator"
    )


def refused(_, __, ___, workers, *____):
    """By one worker alone, as where a node lacks the weights: the other waits for it in a collective."""
    if workers.first:
        workers.sum(torch.zeros(1))
    raise ConfigError("weights /models/sd: no such folder.")


def test_what_the_user_must_mend_is_told_at_once(told, photos) -> None:
    run, config, _ = told
    began = time.monotonic()
    with pytest.raises(ConfigError, match="no such folder"):
        train_together(run, config, ray.put(photos), 8, refused, lambda _: None, local=True)
    assert time.monotonic() - began < 200, "not after the half hour that a collective waits"


def told_of(run, config, dataset, workers, device, progress):
    return workers.count, float(workers.sum(torch.ones(1)))


def test_a_worker_too_many_for_the_batch_is_idle(told, photos) -> None:
    run, config, _ = told
    three = config.model_copy(update={"train": config.train.model_copy(update={"workers": 3})})
    assert train_together(run, three, ray.put(photos), 8, told_of, lambda _: None, local=True) == (2, 2.0)


def test_cards_that_no_worker_would_have_are_refused(told, photos) -> None:
    run, config, work = told
    cuda = config.model_copy(update={"resources": config.resources.model_copy(update={"device": "cuda"})})
    with pytest.raises(ConfigError, match=r"would train on CPUs: set train\.gpus=1"):
        train_together(run, cuda, ray.put(photos), 8, work, lambda _: None, local=True)


def test_workers_that_find_no_place_are_told_before_anything_waits(told, photos) -> None:
    run, config, work = told
    large = config.model_copy(update={"train": config.train.model_copy(update={"cpus": 40.0})})
    with pytest.raises(ResourceError, match=r"40 CPU each, and the cluster has 4 CPU"):
        train_together(run, large, ray.put(photos), 8, work, lambda _: None, local=True)
