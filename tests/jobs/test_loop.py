"""What jobs/loop.py does before it starts a Ray."""

import pytest
import ray
import yaml

from actors.resources import ROOT
from jobs.loop import main


@pytest.fixture(autouse=True)
def home(tmp_path, monkeypatch):
    monkeypatch.setenv("CDIFF_HOME", str(tmp_path / "home"))
    yield tmp_path / "home"
    assert not ray.is_initialized()


def test_a_missing_folder_is_named_with_the_remedy(tmp_path, capsys):
    wanted = ["--config", str(ROOT / "configs" / "mvtec.yaml"), "--data", str(tmp_path / "nowhere")]
    assert main(wanted) == 2
    told = capsys.readouterr().err
    assert told.startswith(f"DataError: {tmp_path / 'nowhere'} does not exist. Give the folder")


def test_dry_run_prints_the_resolved_configuration_and_makes_nothing(home, capsys):
    assert main(["generator.steps=7", "--dry-run", "rounds=3"]) == 0
    printed = yaml.safe_load(capsys.readouterr().out)
    assert (printed["generator"]["steps"], printed["rounds"]) == (7, 3)
    assert printed["downstream"]["lr"] > 0
    assert not home.exists()


def test_dry_run_of_a_profile_needs_no_data(capsys):
    assert main(["--config", str(ROOT / "configs" / "polyp.yaml"), "--dry-run"]) == 0
    assert "longest_side: 128" in capsys.readouterr().out
