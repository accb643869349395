"""What jobs/doctor.py asks of every node of a cluster, and how the answers are judged.

    examine(...)      one NodeReport per node: versions, code, GPUs, room, the token
    shared_home(...)  every node writes under the home what the driver reads, and reads what the driver wrote

Judging is pure: a function from reports to findings. A node that does not answer in time is a finding, too.
"""

from __future__ import annotations

import os
import platform
import shutil
import socket
import stat
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, Literal

import ray
from ray.exceptions import RayError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from actors.resources import code_hash, silent
from cdiff.data.run import cache_folder
from cdiff.data.storage import storage_at
from cdiff.data.weights import demand_weights
from cdiff.errors import CdiffError

State = Literal["ok", "warning", "FAIL"]
PACKAGES = ("ray", "torch", "diffusers", "transformers", "peft", "numpy")  # what pixels and pickles depend on
SCRATCH = Path("/tmp")  # Ray's sessions, packages and spilled objects
SHM = Path("/dev/shm")  # Ray's object store
_GB = 1e9
_PATIENCE = 20.0  # seconds for a bucket that cannot be reached


@dataclass(frozen=True, slots=True)
class Finding:
    """What one check came to."""

    check: str
    state: State
    text: str
    remedy: str = ""

    def __str__(self) -> str:
        return f"{self.state:<8} {self.check:<10} {self.text}{f' -> {self.remedy}' if self.remedy else ''}"


@dataclass(frozen=True, slots=True)
class Token:
    """How a process comes by Ray's token; never the token itself."""

    mode: str  # RAY_AUTH_MODE; "" when unset
    source: str  # "environment", or the path of a file
    permissions: int | None  # of the file; None without one


@dataclass(frozen=True, slots=True)
class NodeReport:
    """What a node says of itself."""

    host: str
    versions: tuple[tuple[str, str], ...]
    code: str
    gpus: int | None  # that PyTorch sees; None where nobody asked
    gpu_fault: str  # why it cannot compute on them; "" when it can
    room: tuple[tuple[str, int], ...]  # free bytes by place
    token: Token


@dataclass(frozen=True, slots=True)
class Node:
    """A node as Ray lists it."""

    id: str
    host: str
    gpus: float


def nodes() -> list[Node]:
    """The nodes that are alive, by name."""
    alive = [node for node in ray.nodes() if node["Alive"]]
    found = [Node(n["NodeID"], n["NodeManagerHostname"], n["Resources"].get("GPU", 0.0)) for n in alive]
    return sorted(found, key=lambda node: (node.host, node.id))


def report(gpus: bool) -> NodeReport:
    """This process's node. PyTorch is imported only to ask for GPUs."""
    seen, fault = _gpus() if gpus else (None, "")
    room = {str(place): _free(place) for place in (SCRATCH, SHM, cache_folder())}
    return NodeReport(
        socket.gethostname(), versions(), code_hash(), seen, fault, tuple(room.items()), token(os.environ)
    )


def versions() -> tuple[tuple[str, str], ...]:
    """Of Python and of what results depend on, in this process."""
    return (("python", platform.python_version()), *((name, _version(name)) for name in PACKAGES))


def token(environment: Mapping[str, str]) -> Token:
    """How a process of this environment comes by Ray's token: RAY_AUTH_TOKEN, RAY_AUTH_TOKEN_PATH, ~/.ray/auth_token, in Ray's order."""
    mode = environment.get("RAY_AUTH_MODE", "")
    if environment.get("RAY_AUTH_TOKEN"):
        return Token(mode, "environment", None)
    path = Path(environment.get("RAY_AUTH_TOKEN_PATH") or "~/.ray/auth_token").expanduser()
    return Token(mode, str(path), stat.S_IMODE(path.stat().st_mode) if path.is_file() else None)


def examine(found: Iterable[Node], gpus: bool, seconds: float) -> dict[Node, NodeReport | str]:
    """Each node's report, or why there is none.

    Args:
        gpus: have PyTorch look for GPUs also on nodes where Ray has none.
    """
    return _everywhere({node: (_report, (gpus or node.gpus > 0,)) for node in found}, seconds)


def shared_home(found: Iterable[Node], home: str, mark: str, seconds: float) -> list[str]:
    """What keeps nodes from writing and reading under the home what others read and write, with their names; empty when nothing does.

    Every node writes a file, the driver reads all of them; the driver writes one, every node reads it; then they are removed.

    Args:
        mark: a name that nothing else has; the files are called MARK and MARK-0, MARK-1 ...
    Raises:
        StorageError: the driver itself cannot write, read or delete there.
    """
    listed, storage, said = list(found), storage_at(home, _PATIENCE), mark.encode()
    keys = {node: f"{mark}-{number}" for number, node in enumerate(listed)}
    storage.write(mark, said)
    try:
        answers = _everywhere({n: (_exchange, (home, mark, key)) for n, key in keys.items()}, seconds)
        for node, key in keys.items():
            try:
                if not answers[node] and storage.read(key) != key.encode():
                    answers[node] = "the driver reads something else than was written here"
            except FileNotFoundError:
                answers[node] = "the driver does not find what was written here: not the same folder"
    finally:
        storage.delete(mark)
        _everywhere({node: (_remove, (home, key)) for node, key in keys.items()}, seconds)
    return [f"{node.host}: {answer}" for node, answer in answers.items() if answer]


def without_weights(found: Iterable[Node], sources: Sequence[str], seconds: float) -> list[str]:
    """What keeps nodes from reading pretrained weights, with their names; empty when nothing does. Nothing is fetched."""
    answers = _everywhere({node: (_lacking, (tuple(sources), silent())) for node in found}, seconds)
    return [f"{node.host}: {answer}" for node, answer in answers.items() if answer]


def judge_versions(reports: Mapping[Node, NodeReport], mine: NodeReport) -> Finding:
    """Every node has the driver's Python, packages and code."""
    expected, odd = dict(mine.versions) | {"code": mine.code}, []
    for node, its in reports.items():
        theirs = dict(its.versions) | {"code": its.code}
        # +cpu, +cu130: a head has no use for the GPU build; nodes that do are asked for their GPUs
        odd += [
            f"{node.host}: {name} {theirs[name]}, driver {value}"
            for name, value in expected.items()
            if theirs[name].partition("+")[0] != value.partition("+")[0]
        ]
    if odd:
        remedy = "one image or environment for all nodes (pip install -r requirements.lock), and code by --working-dir ."
        return Finding("versions", "FAIL", "; ".join(odd), remedy)
    return Finding("versions", "ok", ", ".join(f"{name} {value}" for name, value in expected.items()))


def judge_gpus(reports: Mapping[Node, NodeReport], device: str) -> Finding:
    """What PyTorch sees is what Ray hands out, and what the configuration asks for."""
    odd = []
    for node, its in reports.items():
        seen = its.gpus or 0
        if its.gpu_fault and (node.gpus or its.gpus):
            odd.append(f"{node.host}: {its.gpu_fault}")
        elif its.gpus is not None and seen < node.gpus:
            odd.append(f"{node.host}: Ray hands out {node.gpus:g} GPUs, PyTorch sees {seen}")
    total = sum(node.gpus for node in reports)
    if odd:
        return Finding(
            "gpus",
            "FAIL",
            "; ".join(odd),
            "mend the driver, or the container's access to the cards (--gpus=all)",
        )
    if device == "cuda" and not total:
        remedy = "add GPU nodes, start them with ray start --num-gpus=N, or set resources.device=cpu"
        return Finding("gpus", "FAIL", "resources.device=cuda, and no node of the cluster has a GPU", remedy)
    if device == "cpu" and total:
        text = f"{total:g} GPUs lie idle: resources.device=cpu"
        return Finding(
            "gpus",
            "warning",
            text,
            "set resources.device=cuda resources.gpus=0.2 (five actors on one card; docs/gpus.md has more), or leave them to others",
        )
    return Finding(
        "gpus",
        "ok",
        f"{total:g} handed out by Ray, and seen by PyTorch" if total else "none, and none asked for",
    )


def judge_room(reports: Mapping[Node, NodeReport]) -> Finding:
    """Disk for Ray's sessions and the mirror of what lies on S3; shared memory for Ray's objects."""
    lacking: list[str] = []
    scarce: list[str] = []
    for node, its in reports.items():
        for place, free in its.room:
            least, wanted = (0.05, 1.0) if place == str(SHM) else (1.0, 5.0)
            told = f"{node.host}: {free / _GB:.1f} GB free under {place}"
            (lacking if free < least * _GB else scarce if free < wanted * _GB else []).append(told)
    state: State = "FAIL" if lacking else "warning" if scarce else "ok"
    if state != "ok":
        remedy = f"free the disk, name another by CDIFF_CACHE or ray start --temp-dir; a container's {SHM} grows by --shm-size"
        return Finding("room", state, "; ".join(lacking + scarce), remedy)
    least_room = {
        place: min(dict(its.room)[place] for its in reports.values())
        for place, _ in next(iter(reports.values())).room
    }
    return Finding(
        "room",
        "ok",
        ", ".join(f"{place} {free / _GB:.0f} GB" for place, free in least_room.items()) + " free at least",
    )


def judge_tokens(tokens: Iterable[tuple[str, Token]], local: bool) -> Finding:
    """Ray asks for a token, everybody has it, and nobody else can read it. Where Ray is local, that is advice."""
    odd = []
    for host, its in tokens:
        if its.mode.lower() != "token":
            odd.append(f"{host}: RAY_AUTH_MODE is {its.mode or 'not set'}")
        elif its.source != "environment" and its.permissions is None:
            odd.append(f"{host}: no token at {its.source}")
        elif its.permissions is not None and its.permissions & 0o077:
            odd.append(f"{host}: others can read {its.source} (mode {its.permissions:04o})")
    if odd:
        remedy = "set RAY_AUTH_MODE=token for every ray start, submission and driver, with one token in a file of mode 0600 (chmod 600)"
        return Finding("token", "warning" if local else "FAIL", "; ".join(odd), remedy)
    return Finding("token", "ok", "Ray asks for it, and it is kept to its owner")


def _everywhere(calls: Mapping[Node, tuple[Any, tuple[Any, ...]]], seconds: float) -> dict[Node, Any]:
    """A remote function's answer from each node; text that says why where there is none."""
    asked = {
        task.options(scheduling_strategy=NodeAffinitySchedulingStrategy(node.id, soft=False)).remote(
            *arguments
        ): node
        for node, (task, arguments) in calls.items()
    }
    done, late = ray.wait(list(asked), num_returns=len(asked), timeout=seconds) if asked else ([], [])
    answers: dict[Node, Any] = {asked[reference]: f"no answer within {seconds:.0f} s" for reference in late}
    for reference in done:
        try:
            answers[asked[reference]] = ray.get(reference)
        except RayError as error:
            answers[asked[reference]] = " ".join(str(error).split())[-300:]
    return answers


# max_calls: a process that has looked at GPUs keeps memory on them until it ends. The variable: older Rays hide GPUs from what reserves none.
@ray.remote(
    num_cpus=0,
    max_retries=0,
    max_calls=1,
    runtime_env={"env_vars": {"RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0"}},
)
def _report(gpus: bool) -> NodeReport:
    return report(gpus)


@ray.remote(num_cpus=0, max_retries=0)
def _exchange(home: str, mark: str, key: str) -> str:
    """What keeps this node from writing its file, or from reading the driver's; "" when nothing does."""
    storage = storage_at(home, _PATIENCE)
    try:
        storage.write(key, key.encode())
        return (
            "" if storage.read(mark) == mark.encode() else "something else is read here than the driver wrote"
        )
    except FileNotFoundError:
        return "what the driver wrote is not found here: not the same folder"
    except (CdiffError, OSError) as error:
        return str(error)


# max_calls: nobody else is to have these variables
@ray.remote(num_cpus=0, max_retries=0, max_calls=1)
def _lacking(sources: Sequence[str], variables: Mapping[str, str]) -> str:
    os.environ.update(variables)  # as an actor would have them
    try:
        for source in sources:
            demand_weights(source)
    except (CdiffError, OSError) as error:
        return str(error)
    return ""


@ray.remote(num_cpus=0, max_retries=0)
def _remove(home: str, key: str) -> str:
    try:
        storage_at(home, _PATIENCE).delete(key)
    except (CdiffError, OSError) as error:
        return str(error)
    return ""


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "missing"


def _gpus() -> tuple[int, str]:
    """How many PyTorch sees, and why it cannot compute on one."""
    try:
        import torch  # here: nodes without GPUs are spared its seconds
    except ImportError as error:
        return 0, f"PyTorch cannot be imported: {error}"
    if torch.version.cuda is None and torch.version.hip is None:
        return 0, f"PyTorch {torch.__version__} is built for CPUs: install its build for the cards"
    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    try:
        for number in range(count):
            torch.ones(8, device=f"cuda:{number}").sum().item()
    except RuntimeError as error:
        # a driver, or a card, that this build of PyTorch does not know; or one that is full
        return count, f"GPU {number}: {str(error).splitlines()[0]}"
    return count, ""


def _free(place: Path) -> int:
    return shutil.disk_usage(next(path for path in (place, *place.parents) if path.exists())).free
