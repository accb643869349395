"""Promises about resources: fail with a remedy, within the bound, instead of waiting for ever."""

from __future__ import annotations

import importlib
import os
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest
import ray

from actors.checkup import Node, examine, nodes, shared_home
from actors.places import preflight, stay_reserved
from actors.resources import (
    CODE,
    JOB_VARIABLE,
    SILENT,
    Cluster,
    Role,
    actor_options,
    code_hash,
    demand_data,
    demand_lasting,
    refuse_other_code,
    roles,
    training_gpus,
)
from cdiff.config import Config
from cdiff.config_file import load_config
from cdiff.data.dataset import Dataset
from cdiff.errors import ConfigError, ResourceError
from jobs import doctor

ROOT = Path(__file__).resolve().parents[2]


def _config(**resources: object) -> Config:
    wanted = {"generators": 1, "downstreams": 1, "cpus": 0.5} | resources
    return load_config(None, [f"resources.{key}={value}" for key, value in wanted.items()])


@ray.remote
class Mirror:
    """Says what an actor of a role sees."""

    def variable(self, name: str) -> str | None:
        return os.environ.get(name)

    def threads(self, count: int) -> int:
        import torch

        from actors.resources import set_threads

        set_threads(count)
        return torch.get_num_threads()


@pytest.mark.ray
@pytest.mark.usefixtures("local_ray")
def test_an_impossible_wish_fails_within_the_bound_and_says_what_is_lacking() -> None:
    began = time.monotonic()
    with pytest.raises(ResourceError) as caught:
        preflight(_config(generators=50, cpus=1, wait_seconds=2))
    assert time.monotonic() - began < 5
    message = str(caught.value)
    assert (
        "50 generator (1 CPU each), 1 extractor (1 CPU each), 1 downstream (1 CPU each), 1 coordinator (nothing each)"
        in message
    )
    assert "52 CPU in all" in message
    assert "1 node(s) with 4 CPU in all" in message
    assert "waited 2 s" in message
    assert "Lower resources.generators" in message


@pytest.mark.ray
@pytest.mark.usefixtures("local_ray")
def test_a_local_ray_that_cannot_grow_is_not_waited_for() -> None:
    began = time.monotonic()
    with pytest.raises(ResourceError, match="0 GPU in all"):
        preflight(_config(device="cuda", gpus=0.3, wait_seconds=60), wait=False)
    assert time.monotonic() - began < 30, "not the 60 seconds"


@pytest.mark.ray
@pytest.mark.usefixtures("local_ray")
def test_an_actor_larger_than_any_node_is_told_from_too_many_actors() -> None:
    with pytest.raises(ResourceError, match=r"4\.5 CPU in all.*\n.*at most 4 CPU on one node"):
        preflight(_config(cpus=4.5, wait_seconds=1), actors={"extractor": 1})


@pytest.mark.ray
@pytest.mark.usefixtures("local_ray")
def test_cpus_held_by_others_are_waited_for_within_the_bound_and_named() -> None:
    config = _config(cpus=1, wait_seconds=1.5)
    holder = Mirror.options(num_cpus=2).remote()  # type: ignore[attr-defined]
    ray.get(holder.variable.remote("HOME"))
    try:
        with pytest.raises(ResourceError, match=r"free 2 CPU.*\nOther jobs hold the rest"):
            preflight(config)
    finally:
        ray.kill(holder)
    preflight(_config(cpus=1, wait_seconds=20))


@pytest.mark.ray
@pytest.mark.usefixtures("local_ray")
def test_preflight_gives_back_what_it_tried_and_leaves_room_for_the_actors() -> None:
    config = _config(generators=2, cpus=1, wait_seconds=20)
    preflight(config)
    preflight(config)
    mirrors = [
        Mirror.options(**actor_options(config, role)).remote()  # type: ignore[attr-defined]
        for role, count in roles(config).items()
        for _ in range(count)
    ]
    calls = [mirror.variable.remote("HOME") for mirror in mirrors]
    assert len(ray.wait(calls, num_returns=len(calls), timeout=30)[0]) == 5
    for mirror in mirrors:
        ray.kill(mirror)


@pytest.mark.ray
@pytest.mark.usefixtures("local_ray")
def test_actors_get_their_threads_and_see_no_gpu_that_they_did_not_reserve() -> None:
    config = _config(threads=3)
    worker = Mirror.options(**actor_options(config, "generator")).remote()  # type: ignore[attr-defined]
    planner = Mirror.options(**actor_options(config, "coordinator")).remote()  # type: ignore[attr-defined]
    assert ray.get(worker.variable.remote("OMP_NUM_THREADS")) == "3"
    assert ray.get(worker.threads.remote(3)) == 3
    assert ray.get([actor.variable.remote("CUDA_VISIBLE_DEVICES") for actor in (worker, planner)]) == ["", ""]
    for actor in (worker, planner):
        ray.kill(actor)


def test_gpus_are_reserved_as_configured_and_never_by_the_coordinator() -> None:
    config = _config(device="cuda", gpus=0.25, cpus=2)
    options = actor_options(config, "downstream")
    assert (options["num_cpus"], options["num_gpus"]) == (2, 0.25)
    assert "CUDA_VISIBLE_DEVICES" not in options["runtime_env"]["env_vars"], (
        "Ray shows the reserved card alone"
    )
    apart = _config(device="cuda", gpus=0.25, generator_gpus=1.0, downstream_gpus=0.5)
    shares = {role: actor_options(apart, role)["num_gpus"] for role in roles(apart)}
    assert shares == {"generator": 1.0, "extractor": 0.25, "downstream": 0.5, "coordinator": 0}
    assert actor_options(_config(gpus=0.25, generator_gpus=1.0), "generator")["num_gpus"] == 0, "device=cpu"
    trained = load_config(None, ["train.workers=2", "train.gpus=1"])
    assert training_gpus(trained) == 0, "device=cpu"
    assert (
        training_gpus(load_config(None, ["train.gpus=1", "resources.device=cuda", "resources.gpus=1"])) == 1
    )
    growing = _config(generators=8, least_generators=2)
    assert roles(growing)["generator"] == 2, "the others join as nodes come"
    with pytest.raises(ConfigError, match=r"resources.least_generators=3 is above resources.generators=2"):
        _config(generators=2, least_generators=3)
    options = actor_options(config, "coordinator")
    assert (options["num_cpus"], options["num_gpus"]) == (0, 0)
    assert options["runtime_env"]["env_vars"]["CUDA_VISIBLE_DEVICES"] == ""


def test_unlike_shares_of_cards_stay_where_they_are_reserved() -> None:
    """Ray spreads small shares over cards first: on two nodes of one card each no generator would ever find a whole one."""
    assert stay_reserved(_config(device="cuda", gpus=0.3, generator_gpus=1.0, downstreams=2, generators=1))
    assert stay_reserved(_config(generators=8, least_generators=2))
    assert not stay_reserved(_config(device="cuda", gpus=0.25, generators=2))
    assert not stay_reserved(_config(gpus=0.3, generator_gpus=1.0)), "device=cpu"


def test_files_that_end_with_a_job_are_refused_in_one(tmp_path, monkeypatch) -> None:
    monkeypatch.delenv(JOB_VARIABLE, raising=False)
    demand_lasting(Path("best.yaml"), None)
    monkeypatch.setenv(JOB_VARIABLE, "{}")
    demand_lasting(tmp_path / "best.yaml", None)
    with pytest.raises(ConfigError, match=r"best\.yaml: within a Ray job .* absolute"):
        demand_lasting(None, Path("best.yaml"))


def test_actors_tell_nobody_anything_unless_the_environment_says_so(monkeypatch) -> None:
    for name in SILENT:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HF_HUB_OFFLINE", "0")
    variables = actor_options(_config(), "generator")["runtime_env"]["env_vars"]
    assert variables["HF_HUB_DISABLE_TELEMETRY"] == "1" and variables["DO_NOT_TRACK"] == "true"
    assert variables["HF_HUB_OFFLINE"] == "0", "who wants the hub gets it"


def test_cuda_without_a_reserved_gpu_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"set resources\.gpus"):
        preflight(_config(device="cuda"))


def test_a_node_with_other_code_is_refused() -> None:
    refuse_other_code(code_hash())
    with pytest.raises(ResourceError, match="other code"):
        refuse_other_code("0123456789abcdef")


@pytest.mark.ray
@pytest.mark.usefixtures("local_ray")
@pytest.mark.parametrize(
    ("role", "name", "arguments"),
    [
        ("coordinator", "CoordinatorActor", 8),
        ("generator", "GeneratorActor", 3),
        ("extractor", "ExtractorActor", 3),
        ("downstream", "DownstreamActor", 3),
    ],
)
def test_an_actor_on_a_node_with_other_code_does_not_start(role: Role, name: str, arguments: int) -> None:
    options = actor_options(_config(), role)
    assert options["runtime_env"]["env_vars"][CODE] == code_hash()
    options["runtime_env"]["env_vars"][CODE] = "0123456789abcdef"
    kind = getattr(importlib.import_module(f"actors.{role}"), name)
    actor = kind.options(**options).remote(*[{}] * arguments)
    with pytest.raises(ray.exceptions.RayActorError, match="this node runs other code"):
        ray.get(actor.__ray_ready__.remote(), timeout=60)


CONNECT = """
import importlib.util, os, ray
from actors.resources import SILENT, connect
cluster = connect()
assert cluster.local and cluster.cpus >= 1, cluster
seen = ray.get(ray.remote(lambda: __import__("actors.resources").resources.code_hash()).remote())
from actors.resources import SILENT, code_hash
assert seen == code_hash()
# Ray Train's watch over its controller asks a dashboard that is not there, and would warn every second
watch = "ray.train.v2._internal.execution.controller.placement_group_cleaner"
assert ray.get(ray.remote(lambda: __import__("logging").getLogger(watch).level).remote()) == 40
assert importlib.util.find_spec(watch), "Ray has renamed it: actors/quiet.py names another logger"
print(cluster)
"""


@pytest.mark.ray
def test_connect_starts_a_local_ray_whose_workers_import_the_project_from_any_folder(tmp_path: Path) -> None:
    keep = {key: value for key, value in os.environ.items() if not key.startswith("RAY_")}
    done = subprocess.run(
        [sys.executable, "-c", CONNECT],
        cwd=tmp_path,
        env=keep | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=90,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip().splitlines()[-1].startswith("local Ray, ")


@pytest.mark.ray
def test_connect_to_a_cluster_that_is_not_there_says_what_to_do() -> None:
    script = "from actors.resources import connect\nconnect('127.0.0.1:1')"
    done = subprocess.run(
        [sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, timeout=120, check=False
    )
    assert "ResourceError: cannot reach Ray at 127.0.0.1:1" in done.stderr
    assert "unset RAY_ADDRESS" in done.stderr


@pytest.mark.ray
def test_a_node_that_cannot_read_the_photos_is_named_before_anything_starts(
    local_ray, photos, tmp_path, tiny_config
) -> None:
    demand_data(photos)
    moved = [replace(sample, image=str(tmp_path / "elsewhere.png")) for sample in photos.samples]
    with pytest.raises(ResourceError, match=r"1 of 1 nodes cannot read the photos:\n  .*: .*elsewhere\.png"):
        demand_data(Dataset(moved, tiny_config.data))


# The doctor's questions, here because they need a Ray, which takes seconds to start.
ALONE = Cluster(local=True, nodes=1, cpus=4, gpus=0)


@pytest.mark.ray
@pytest.mark.usefixtures("local_ray")
def test_a_good_cluster_is_told_check_by_check(tmp_path: Path, photos) -> None:
    folder = Path(photos.samples[0].image).parent
    args = doctor.parser().parse_args(["--home", str(tmp_path / "home"), "--data", str(folder)])
    found = {finding.check: finding for finding in doctor.of_cluster(args, _config(), ALONE)}
    assert set(found) == {"resources", "ray", "versions", "gpus", "room", "token", "home", "data"}
    bad = [finding for finding in found.values() if finding.state == "FAIL"]
    assert not bad, "\n".join(map(str, bad))
    assert not list((tmp_path / "home").iterdir()), "nothing is left behind"


@pytest.mark.ray
@pytest.mark.usefixtures("local_ray")
def test_actors_for_which_there_is_no_gpu_are_refused() -> None:
    found = doctor.enough(_config(device="cuda", gpus=0.5, wait_seconds=1), ALONE)
    assert found.state == "FAIL"
    assert "GPU" in found.text
    assert "knows of no GPU" in found.remedy and "resources.device=cpu" in found.remedy
    assert doctor.enough(_config(), ALONE).state == "ok"
    together = load_config(None, ["train.workers=2", "train.gpus=0.5", "resources.wait_seconds=1"])
    shares = doctor.enough(together, ALONE)
    assert shares.state == "FAIL" and "cannot share a card" in shares.text


@pytest.mark.ray
@pytest.mark.usefixtures("local_ray")
def test_a_home_that_nobody_can_write_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    found = doctor.home(nodes(), str(tmp_path / "file" / "home"))
    assert found.state == "FAIL"
    assert str(tmp_path / "file") in found.text


@pytest.mark.ray
@pytest.mark.usefixtures("local_ray")
def test_a_home_that_is_another_folder_on_each_node_is_found_out(tmp_path: Path, monkeypatch) -> None:
    """A relative path leads driver and node to folders of their own, as an absolute one does where nodes share no disk."""
    of_node, name = Path.cwd() / f"home-{os.getpid()}", f"home-{os.getpid()}"
    monkeypatch.chdir(tmp_path)
    (apart,) = shared_home(nodes(), name, "doctor-test", 60)
    assert "not the same folder" in apart
    for folder in (of_node, tmp_path / name):
        folder.rmdir()  # which refuses where something was left in it


@pytest.mark.ray
@pytest.mark.usefixtures("local_ray")
def test_weights_that_a_node_lacks_are_named(tmp_path: Path) -> None:
    folder, empty = tmp_path / "clip", tmp_path / "empty"
    for made in (folder, empty):
        made.mkdir()
    (folder / "model.safetensors").write_bytes(b"weights")
    for source in (str(folder), str(empty), str(tmp_path / "sd"), "owner/name@main"):
        state = "ok" if source == str(folder) else "FAIL"
        config = load_config(None, ["safe.features=clip", f"safe.weights={source}"])
        found = doctor.weights(nodes(), config)
        assert found.state == state and source in found.text, found


@pytest.mark.ray
@pytest.mark.usefixtures("local_ray")
def test_photos_that_are_not_there_are_named(tmp_path: Path) -> None:
    found = doctor.photos(doctor.parser().parse_args(["--data", str(tmp_path / "nowhere")]), _config())
    assert found.state == "FAIL"
    assert "nowhere" in found.text


@pytest.mark.ray
@pytest.mark.usefixtures("local_ray")
def test_a_node_that_does_not_answer_is_a_finding_and_not_a_wait() -> None:
    gone = Node("a" * 56, "gone", 0.0)
    (answer,) = examine([gone], gpus=False, seconds=5).values()
    assert isinstance(answer, str)
    assert answer
