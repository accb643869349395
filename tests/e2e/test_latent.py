"""A small Stable Diffusion 1.5 through the whole loop: read, adapted, sampled, stopped, gone on, and served."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from cdiff.config_file import load_config
from cdiff.data.dataset import Dataset
from cdiff.data.formats import read_sources
from cdiff.data.ledger import Ledger
from cdiff.data.run import open_run
from cdiff.generator.training import TRAINING_STATE
from cdiff.service.requests import PairRequest
from cdiff.service.studio import Studio

pytestmark = [pytest.mark.ray, pytest.mark.long, pytest.mark.timeout(500)]

ROOT = Path(__file__).resolve().parents[2]


def test_a_checkpoint_goes_through_loop_stop_and_service(
    tmp_path, tiny_loop, checkpoint, clip_encoder
) -> None:
    settings = [
        *tiny_loop,
        "rounds=1",
        "generator.backbone=latent",
        f"generator.weights={checkpoint}",
        "generator.resolution=64",
        "generator.prompt=a defect",
        "generator.views=2",
        "generator.lora_rank=2",
        "generator.steps=24",
        "generator.checkpoint_every=4",
        "safe.features=clip",
        f"safe.weights={clip_encoder}",
        "safe.layers=[1,-1]",
        "safe.side=28",
        "sampling.mode=joint",
        "wasm.arm=B0",
        "wasm.pairs=4",
    ]
    environment = {k: v for k, v in os.environ.items() if not k.startswith(("RAY_", "MLFLOW_", "CDIFF_"))}
    environment |= {"CDIFF_HOME": str(tmp_path), "CDIFF_CACHE": str(tmp_path / "cache")}
    command = [sys.executable, str(ROOT / "jobs" / "loop.py"), "--run", "latent", *settings]
    log = tmp_path / "log"
    with log.open("w") as out:
        first = subprocess.Popen(command, env=environment, cwd=tmp_path, stdout=out, stderr=out)
        state = tmp_path / "runs" / "latent" / "checkpoints" / TRAINING_STATE
        end = time.monotonic() + 200
        while not state.exists() and first.poll() is None and time.monotonic() < end:
            time.sleep(0.05)
        assert first.poll() is None, log.read_text()[-3000:]
        first.send_signal(signal.SIGTERM)
        assert first.wait(60) == 75, log.read_text()[-3000:]
    assert state.exists(), "stopped in mid-training"
    done = subprocess.run(
        command, env=environment, cwd=tmp_path, capture_output=True, text=True, check=False, timeout=300
    )
    assert done.returncode == 0, done.stderr[-3000:]
    run = open_run(tmp_path / "runs" / "latent")
    ledger = Ledger(run)
    assert len(ledger.rounds()) == 1 and ledger.pairs(1)
    revision = (ledger.milestone("generator") or {})["revision"]
    told = json.loads((run.checkpoints / revision / "config.json").read_text())
    assert told["pretrained"].keys() == {"generator", "safe"} and told["generator"]["prompt"] == "a defect"
    assert list((tmp_path / "cache" / "features").rglob("*.parquet")), "features are kept"
    assert not list((run.path / "checkpoints").glob(TRAINING_STATE))
    # what the service's replicas hold; tests/service/test_endpoint.py is about HTTP
    place = next((tmp_path / "data").glob("demo-*"))
    config = load_config(run.path / "config.yaml")
    categories = [str(folder) for folder in sorted(place.iterdir()) if folder.is_dir()]
    studio = Studio(run, Dataset(read_sources(categories, None, config.data), config.data))
    category, kind = next(iter(studio.types))
    request = PairRequest.model_validate({"category": category, "type": kind, "seed": 1})
    pairs = [studio.make(studio.tickets(request))[0] for _ in range(2)]
    assert pairs[0].image_png == pairs[1].image_png
