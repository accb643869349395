"""Checkpoints that nothing names go, on disk and on S3; the whole loop keeps what it needs (tests/e2e)."""

import dataclasses

import pytest

from cdiff.config import Config
from cdiff.config_file import dump_config
from cdiff.data.ledger import Ledger
from cdiff.data.retention import forget_checkpoints
from cdiff.data.store import create_run


@dataclasses.dataclass
class Splits:
    hash: str = "abc"
    photos: str = "def"


@pytest.fixture(params=["folder", "bucket"])
def home(request, tmp_path, monkeypatch) -> str:
    monkeypatch.setenv("CDIFF_CACHE", str(tmp_path / "cache"))
    return (
        f"{request.getfixturevalue('bucket')}/{tmp_path.name}" if request.param == "bucket" else str(tmp_path)
    )


def test_what_a_step_names_stays_and_the_rest_goes_whole(home) -> None:
    run = create_run(home, "one", dump_config(Config()), Splits())
    for name in ("generator-a", "fold-b", "fold-c"):
        (run.checkpoints / name).mkdir()
        (run.checkpoints / name / "model.safetensors").write_bytes(b"weights")
        run.publish(f"checkpoints/{name}")
    for name in ("bank-d", "miner-e", "miner-ef"):
        (run.checkpoints / f"{name}.safetensors").write_bytes(b"tokens")
        run.publish(f"checkpoints/{name}.safetensors")
    ledger = Ledger(run)
    ledger.record("generator", revision="generator-a")
    ledger.record("extractor", bank="bank-d", thresholds={"any": [["miner-ef"]]})
    ledger.record("round-1", assessed={"revision": "fold-c"})  # a round that is not committed
    cut_off = run.checkpoints / ".fold-b.gone"  # of an earlier removal of a folder of this name
    cut_off.mkdir()
    (cut_off / "model.safetensors").write_bytes(b"weights")
    assert forget_checkpoints(run, ledger) == ["fold-b", "miner-e"]
    left = {path.name for path in run.checkpoints.iterdir()}
    stay = {"generator-a", "fold-c", "bank-d.safetensors", "miner-ef.safetensors"}
    assert left == stay
    kept = {key.split("/")[1] for key in run.storage.keys("checkpoints/")}
    assert kept - {"generator-a.COMMIT", "fold-c.COMMIT"} == stay
    assert forget_checkpoints(run, ledger) == []
    ledger.close()
