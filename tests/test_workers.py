"""Training by several processes: losses are those of one, at equal batches."""

import json
import os
import pickle
import socket
import subprocess
import sys

import pytest

from cdiff.config_file import load_config
from cdiff.errors import ConfigError
from cdiff.generator.training import train_generator
from cdiff.types import Part
from cdiff.workers import Workers, usable

# What a process of a training does; its number and how many there are come from the environment.
PROCESS = """
import json, os, pathlib, pickle, sys
import torch
from cdiff.downstream.segmenter import build_segmenter
from cdiff.downstream.training import fit, real_items
from cdiff.generator.training import train_generator
from cdiff.types import Part
from cdiff.workers import Workers
torch.set_num_threads(1)
folder = pathlib.Path(sys.argv[1])
photos, config, targets, normals = pickle.loads((folder / "told").read_bytes())
number, count = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
torch.distributed.init_process_group("gloo")
workers = Workers(Part(number, count))
losses = []
train_generator(
    photos, targets, normals, config, folder / f"made-{count}", lambda _, __, loss: losses.append(loss), workers=workers
)
model = build_segmenter(config.downstream, 0)
items = real_items(photos, [s.sample_id for s in photos.samples], config.downstream)
fitted = fit(model, items, items[:2], config.downstream, steps=4, seed=0, workers=workers)["loss"]
if number == 0:
    (folder / f"losses-{count}").write_text(json.dumps([losses, fitted]))
torch.distributed.destroy_process_group()
"""


def train(folder, count: int) -> list[list[float]]:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    place = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "WORLD_SIZE": str(count)}
    running = [
        subprocess.Popen(
            [sys.executable, "-c", PROCESS, str(folder)],
            env=os.environ | place | {"RANK": str(number), "PYTHONPATH": os.pathsep.join(sys.path)},
            stderr=subprocess.PIPE,
            text=True,
        )
        for number in range(count)
    ]
    for process in running:
        told = process.communicate(timeout=150)[1]
        assert process.returncode == 0, told[-3000:]
    return json.loads((folder / f"losses-{count}").read_text())


@pytest.mark.slow
def test_two_processes_learn_what_one_learns(photos, tiny_overrides, tmp_path) -> None:
    """With the contrastive term, a cut batch, batch norm, and pairs apart from real photos."""
    more = [
        "generator.batch=8",
        "generator.accumulate=2",
        "generator.bfloat16=false",
        "safe.contrast_weight=0.5",
    ]
    fits = [
        "downstream.crop=32",
        "downstream.batch=4",
        "downstream.bfloat16=false",
        "downstream.longest_side=96",
    ]
    config = load_config(None, [*tiny_overrides, *more, *fits])
    ids = [sample.sample_id for sample in photos.samples]
    normals = [sample.sample_id for sample in photos.samples if sample.is_normal]
    (tmp_path / "told").write_bytes(pickle.dumps((photos, config, photos.all_targets(ids), normals)))
    alone, together = (train(tmp_path, count) for count in (1, 2))
    assert together[0] == pytest.approx(alone[0], rel=1e-3), "generator"
    assert together[1][:2] == pytest.approx(alone[1][:2], rel=2e-4), (
        "segmenter, before Adam makes much of rounding"
    )
    assert together[1] == pytest.approx(alone[1], rel=1e-2), "segmenter"
    assert len(alone[0]) == config.generator.steps and alone[0][0] != alone[0][-1]
    assert [p.name[:10] for p in (tmp_path / "made-2").iterdir()] == ["generator-"], (
        "written once, by the first"
    )


def test_a_batch_that_cannot_be_cut_is_refused(photos, tiny_config, tmp_path) -> None:
    targets = photos.all_targets([sample.sample_id for sample in photos.samples])
    with pytest.raises(ConfigError, match=r"batch=4 cannot be cut into 1 parts .* for 3 workers"):
        train_generator(photos, targets, [], tiny_config, tmp_path, workers=Workers(Part(0, 3)))


def test_as_many_work_as_a_batch_can_be_cut_among() -> None:
    assert [usable(16, count) for count in (1, 2, 3, 7, 16, 40)] == [1, 2, 2, 4, 16, 16]
