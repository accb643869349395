"""The doctor: what is wrong with a cluster is named before a run, with the remedy; what is right is not complained of."""

from __future__ import annotations

import socket
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from actors.checkup import (
    Node,
    NodeReport,
    Token,
    judge_gpus,
    judge_room,
    judge_tokens,
    judge_versions,
    token,
)
from jobs.doctor import main, package, package_sizes, parser, tracking
from jobs.session import parser as loops_parser

ONE, TWO = Node("1", "one", 0.0), Node("2", "two", 2.0)
OWN = Token("token", "/home/me/token", 0o600)
GB = 10**9


def _report(host: str = "one", **changes: Any) -> NodeReport:
    versions = (("python", "3.11.7"), ("ray", "2.60.0"), ("torch", "2.13.0"), ("numpy", "2.4.6"))
    room = (("/tmp", 50 * GB), ("/dev/shm", 8 * GB))
    return replace(NodeReport(host, versions, "code", None, "", room, OWN), **changes)


def test_nodes_that_differ_from_the_driver_are_named_with_both_versions() -> None:
    mine = _report("driver")
    assert judge_versions({ONE: _report()}, mine).state == "ok"
    other = _report(versions=(("python", "3.12.1"), *mine.versions[1:]), code="older")
    found = judge_versions({ONE: _report(), TWO: other}, mine)
    assert found.state == "FAIL"
    assert found.text == "two: python 3.12.1, driver 3.11.7; two: code older, driver code"
    assert "requirements.lock" in found.remedy


def test_a_build_of_torch_for_gpus_is_not_another_version() -> None:
    gpu = tuple((name, f"{value}+cu130" if name == "torch" else value) for name, value in _report().versions)
    assert judge_versions({TWO: _report(versions=gpu)}, _report("driver")).state == "ok"


@pytest.mark.parametrize(
    ("device", "gpus", "fault", "state", "said"),
    [
        ("cuda", 2, "", "ok", "2 handed out"),
        ("cuda", 1, "", "FAIL", "two: Ray hands out 2 GPUs, PyTorch sees 1"),
        ("cuda", 2, "GPU 0: no kernel image", "FAIL", "no kernel image"),
        ("cpu", 2, "", "warning", "2 GPUs lie idle"),
    ],
)
def test_gpus_are_what_ray_hands_out_and_the_run_asks_for(device, gpus, fault, state, said) -> None:
    found = judge_gpus({ONE: _report(), TWO: _report("two", gpus=gpus, gpu_fault=fault)}, device)
    assert (found.state, said in found.text) == (state, True), found


def test_a_run_on_gpus_without_any_is_refused() -> None:
    found = judge_gpus({ONE: _report()}, "cuda")
    assert found.state == "FAIL"
    assert "--num-gpus" in found.remedy
    assert judge_gpus({ONE: _report()}, "cpu").state == "ok"


@pytest.mark.parametrize(
    ("shm", "disk", "state"),
    [(8, 50, "ok"), (0.06, 50, "warning"), (0.01, 50, "FAIL"), (8, 3, "warning"), (8, 0.5, "FAIL")],
)
def test_little_room_is_told_before_it_is_filled(shm: float, disk: float, state: str) -> None:
    room = (("/tmp", int(disk * GB)), ("/dev/shm", int(shm * GB)))
    assert judge_room({ONE: _report(), TWO: _report(room=room)}).state == state


def test_a_token_that_is_missing_or_open_to_others_fails_on_a_cluster(tmp_path: Path) -> None:
    file = tmp_path / "token"
    variables = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN_PATH": str(file)}
    assert "no token at" in judge_tokens([("driver", token(variables))], local=False).text
    file.write_text("x" * 64)
    file.chmod(0o644)
    found = judge_tokens([("driver", token(variables))], local=False)
    assert (found.state, "mode 0644" in found.text, "chmod 600" in found.remedy) == ("FAIL", True, True)
    assert judge_tokens([("driver", token(variables))], local=True).state == "warning"
    file.chmod(0o600)
    assert judge_tokens([("driver", token(variables))], local=False).state == "ok"
    assert judge_tokens([("driver", token(variables | {"RAY_AUTH_MODE": ""}))], local=False).state == "FAIL"
    assert (
        judge_tokens([("pod", token({"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": "secret"}))], False).state
        == "ok"
    )


def test_the_doctor_takes_the_command_line_of_the_loop() -> None:
    loop = [option for action in loops_parser()._actions for option in action.option_strings]
    doctor = [option for action in parser()._actions for option in action.option_strings]
    assert set(loop) == set(doctor)


def test_no_finding_shows_a_token() -> None:
    its = token({"RAY_AUTH_MODE": "", "RAY_AUTH_TOKEN": "do-not-show-me"})
    assert "do-not-show-me" not in f"{its}{judge_tokens([('driver', its)], local=False)}"


def test_the_package_is_what_ray_would_upload_and_its_largest_files_are_named(tmp_path: Path) -> None:
    for name, size in {
        "jobs/loop.py": 10,
        "runs/big.bin": 900,
        "photos/a.png": 500,
        "b.log": 300,
        ".git/x": 999,
    }.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(b"x" * size)
    (tmp_path / ".gitignore").write_text("/runs/\n")
    (tmp_path / ".rayignore").write_text("*.log\n")
    assert {name for name in package_sizes(tmp_path) if name[0] != "."} == {"jobs/loop.py", "photos/a.png"}
    assert package(tmp_path, local=False, limit=1000).state == "ok"
    found = package(tmp_path, local=False, limit=400)
    assert found.state == "FAIL"
    assert found.text.index("photos/a.png") < found.text.index("jobs/loop.py")
    assert package(tmp_path, local=True, limit=400).state == "warning", "a local Ray uploads nothing"


def test_this_checkout_can_be_submitted() -> None:
    assert package(Path(__file__).resolve().parents[2], local=False).state == "ok"


def _closed_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def test_an_mlflow_that_does_not_answer_fails_soon_and_without_its_password(
    tmp_path: Path, monkeypatch
) -> None:
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    home = str(tmp_path)
    found = tracking(f"http://me:secret@127.0.0.1:{_closed_port()}", home)
    assert found.state == "FAIL"
    assert "secret" not in str(found)
    assert "--tracking-uri" in found.remedy
    assert tracking(f"sqlite:///{tmp_path}/mlflow.db", home).state == "ok"
    assert tracking(f"sqlite:///{tmp_path}/mlflow.db", "s3://BUCKET/HOME").state == "warning"
    assert not list(tmp_path.iterdir()), "a look makes no database"
    (tmp_path / "file").touch()
    assert tracking(f"sqlite:///{tmp_path}/file/mlflow.db", home).state == "FAIL"


def test_a_cluster_that_is_not_there_is_one_finding_among_others(monkeypatch, tmp_path: Path, capsys) -> None:
    monkeypatch.setenv("RAY_ADDRESS", f"127.0.0.1:{_closed_port()}")
    assert main(["--home", str(tmp_path)]) == 1
    told = capsys.readouterr().out
    assert "FAIL     ray        cannot reach Ray at 127.0.0.1" in told
    assert "ok       mlflow" in told
    assert main(["--home", str(tmp_path), "rouds=2"]) == 2, "as the loop would refuse it"
