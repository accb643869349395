"""The doctor's questions to the nodes of a real Ray."""

from __future__ import annotations

from pathlib import Path

import pytest

from actors.checkup import Node, examine, nodes, shared_home
from actors.resources import Cluster
from cdiff.config import Config
from cdiff.config_file import load_config
from jobs.doctor import enough, home, of_cluster, parser, photos

pytestmark = [pytest.mark.ray, pytest.mark.usefixtures("local_ray")]


@pytest.fixture
def config() -> Config:
    return load_config(None, ["resources.wait_seconds=1"])


def test_a_good_cluster_is_told_check_by_check(tmp_path: Path, photos, config) -> None:
    folder = Path(photos.samples[0].image).parent
    args = parser().parse_args(["--home", str(tmp_path / "home"), "--data", str(folder)])
    found = {finding.check: finding for finding in of_cluster(args, config, Cluster(True, 1, 4, 0))}
    assert set(found) == {"resources", "ray", "versions", "gpus", "room", "token", "home", "data"}
    bad = [finding for finding in found.values() if finding.state == "FAIL"]
    assert not bad, "\n".join(map(str, bad))
    assert not list((tmp_path / "home").iterdir()), "nothing is left behind"


def test_actors_for_which_there_is_no_gpu_are_refused(config) -> None:
    alone = Cluster(True, 1, 4, 0)
    wanted = load_config(None, ["resources.device=cuda", "resources.gpus=0.5", "resources.wait_seconds=1"])
    found = enough(wanted, alone)
    assert found.state == "FAIL"
    assert "GPU" in found.text
    assert "resources.gpus" in found.remedy
    assert enough(config, alone).state == "ok"


def test_a_home_that_nobody_can_write_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    found = home(nodes(), str(tmp_path / "file" / "home"))
    assert found.state == "FAIL"
    assert str(tmp_path / "file") in found.text


def test_a_home_that_is_another_folder_on_each_node_is_found_out(tmp_path: Path, monkeypatch) -> None:
    """Each process goes to its own folder behind the same relative path, as nodes do that share no disk."""
    monkeypatch.chdir(tmp_path)
    (apart,) = shared_home(nodes(), "home", "doctor-test", 60)
    assert "not the same folder" in apart
    assert not list((tmp_path / "home").iterdir())


def test_photos_that_are_not_there_are_named(tmp_path: Path, config) -> None:
    found = photos(parser().parse_args(["--data", str(tmp_path / "nowhere")]), config)
    assert found.state == "FAIL"
    assert "nowhere" in found.text


def test_a_node_that_does_not_answer_is_a_finding_and_not_a_wait() -> None:
    gone = Node("a" * 56, "gone", 0.0)
    (answer,) = examine([gone], gpus=False, seconds=5).values()
    assert isinstance(answer, str)
    assert answer
