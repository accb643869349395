"""Training by several processes: losses are those of one, at equal batches."""

import json
import os
import pickle
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from cdiff.config_file import load_config
from cdiff.downstream.segmenter import build_segmenter
from cdiff.downstream.training import fit, real_items
from cdiff.errors import ConfigError
from cdiff.generator.training import train_generator
from cdiff.workers import ALONE, Part, Workers, usable

# What a process of a training does; its number and how many there are come from the environment.
PROCESS = """
import json, os, pathlib, pickle, sys
import torch
from cdiff.workers import Part, Workers
sys.path.insert(0, sys.argv[2])
from test_workers import learn
torch.set_num_threads(1)
torch.distributed.init_process_group("gloo")
number = int(os.environ["RANK"])
told = learn(pathlib.Path(sys.argv[1]), Workers(Part(number, int(os.environ["WORLD_SIZE"]))))
if number == 0:
    (pathlib.Path(sys.argv[1]) / "losses").write_text(json.dumps(told))
torch.distributed.destroy_process_group()
"""


def learn(folder: Path, workers: Workers) -> list[list[float]]:
    """The losses of a generator and of a segmenter."""
    photos, config, targets, normals = pickle.loads((folder / "told").read_bytes())  # noqa: S301  # our own
    losses: list[float] = []
    made = folder / f"made-{workers.count}"
    train_generator(photos, targets, normals, config, made, lambda *at: losses.append(at[2]), workers=workers)
    model = build_segmenter(config.downstream, 0)
    items = real_items(photos, [sample.sample_id for sample in photos.samples], config.downstream)
    fitted = fit(model, items, items[:2], config.downstream, steps=4, seed=0, workers=workers)
    return [losses, fitted["loss"]]


def learn_in_two(folder: Path) -> list[list[float]]:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    place = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "WORLD_SIZE": "2"}
    running = [
        subprocess.Popen(
            [sys.executable, "-c", PROCESS, str(folder), str(Path(__file__).parent)],
            env=os.environ | place | {"RANK": str(number), "PYTHONPATH": os.pathsep.join(sys.path)},
            stderr=subprocess.PIPE,
            text=True,
        )
        for number in range(2)
    ]
    for process in running:
        told = process.communicate(timeout=150)[1]
        assert process.returncode == 0, told[-3000:]
    found: list[list[float]] = json.loads((folder / "losses").read_text())
    return found


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
    alone, together = learn(tmp_path, ALONE), learn_in_two(tmp_path)
    assert together[0] == pytest.approx(alone[0], rel=1e-3), "generator"
    assert together[1][:2] == pytest.approx(alone[1][:2], rel=2e-4), (
        "segmenter, before Adam makes much of rounding"
    )
    assert together[1] == pytest.approx(alone[1], rel=1e-2), "segmenter"
    assert len(alone[0]) == config.generator.steps and alone[0][0] != alone[0][-1]
    made = sorted(path.name[:10] for path in (tmp_path / "made-2").iterdir())
    assert made == ["generator-", "training-g"], "written once, by the first"


def test_a_batch_that_cannot_be_cut_is_refused(photos, tiny_config, tmp_path) -> None:
    targets = photos.all_targets([sample.sample_id for sample in photos.samples])
    with pytest.raises(ConfigError, match=r"batch=4 cannot be cut into 1 parts .* for 3 workers"):
        train_generator(photos, targets, [], tiny_config, tmp_path, workers=Workers(Part(0, 3)))


def test_as_many_work_as_a_batch_can_be_cut_among() -> None:
    assert [usable(16, count) for count in (1, 2, 3, 7, 16, 40)] == [1, 2, 2, 4, 16, 16]
