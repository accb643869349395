"""What the actors need and what the cluster has: connect, compare, and fail with a remedy instead of waiting for ever."""

from __future__ import annotations

import hashlib
import logging
import os
import socket
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, Literal

import ray
from ray.exceptions import RayError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

import cdiff
from cdiff.config import Config
from cdiff.data.dataset import Dataset
from cdiff.errors import CdiffError, ConfigError, ResourceError

Role = Literal["generator", "extractor", "downstream", "coordinator"]
Resources = dict[str, float]  # "CPU", "GPU"

ROOT = Path(cdiff.__file__).resolve().parents[1]
# Nothing is told to anybody, and nothing fetched, unless the environment says otherwise.
SILENT = {"HF_HUB_OFFLINE": "1", "HF_HUB_DISABLE_TELEMETRY": "1", "DO_NOT_TRACK": "true"}
CODE = "CDIFF_CODE"  # variable by which the driver tells actors the hash of its code
# Set by Ray for the entry point of a job; such a driver inherits the job's runtime environment.
JOB_VARIABLE = "RAY_JOB_CONFIG_JSON_ENV_VAR"


@dataclass(frozen=True, slots=True)
class Cluster:
    """What a run is connected to."""

    local: bool  # started for this run alone: it cannot grow, and nobody else uses it
    nodes: int
    cpus: float
    gpus: float

    def __str__(self) -> str:
        where = "local Ray" if self.local else f"Ray cluster of {self.nodes} node(s)"
        return f"{where}, {self.cpus:g} CPUs, {self.gpus:g} GPUs"


def demand_lasting(*files: Path | None) -> None:
    """Refuse, in a job of Ray, files that end with it.

    Raises:
        ConfigError: a relative path lies in the copy of the repository that the job alone sees.
    """
    for file in filter(None, files):
        if JOB_VARIABLE in os.environ and not file.is_absolute():
            raise ConfigError(
                f"{file}: within a Ray job a relative path lies in a copy that is deleted. Give an absolute one, on a disk that stays."
            )


def connect(address: str | None = None) -> Cluster:
    """Start a local Ray, or join the running cluster that `address`, RAY_ADDRESS or a job's environment names.

    Raises:
        ResourceError: the cluster cannot be reached, or refuses the token.
    """
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    # keeps GPU visibility to actor_options; Ray warns about the change of its default otherwise
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    address = address or os.environ.get("RAY_ADDRESS")
    local = not address and JOB_VARIABLE not in os.environ
    options: dict[str, Any] = {"logging_level": logging.WARNING, "log_to_driver": True}
    if local:
        # "local", since no address would join whatever cluster happens to run on this machine
        options |= {"address": "local", "include_dashboard": False, "runtime_env": _same_folder()}
    elif JOB_VARIABLE in os.environ:
        options |= {"address": address or "auto"}  # code and variables come with the job
    else:
        options |= {"address": address, "runtime_env": {"working_dir": str(ROOT)}}
    if address and address.startswith(("http://", "https://")):
        raise ResourceError(
            f"{address} is the address of Ray's job server, which `ray job submit` takes. Set RAY_ADDRESS to HOST:6379 to join the cluster, or unset it "
            "to run on this machine alone."
        )
    try:
        _knock(address)
        ray.init(**options)
    except (OSError, RayError, RuntimeError, ValueError) as error:
        where = "start Ray on this machine" if local else f"reach Ray at {options['address']}"
        remedy = (
            "Its logs are in /tmp/ray/session_latest/logs; free memory and space in /tmp and /dev/shm, and try again."
            if local
            else "Start it (RAY_AUTH_MODE=token ray start --head), mend RAY_ADDRESS and the token, or unset RAY_ADDRESS "
            "to run on this machine alone."
        )
        raise ResourceError(f"cannot {where}: {error}\n{remedy}") from None
    total = ray.cluster_resources()
    return Cluster(local, len(living_nodes()), total.get("CPU", 0.0), total.get("GPU", 0.0))


def actor_options(config: Config, role: Role) -> dict[str, Any]:
    """Arguments of `.options()` for an actor of a role: resources, thread variables, visible GPUs.

    Ray's restarts and retries stay off: `actors.group` replaces actors and retries items, once.
    """
    resources = needs(config, role)
    variables = silent() | {CODE: own_code()}
    if role != "coordinator":
        # Ray sets 1 for actors without a whole CPU, and libraries read it when they are imported
        variables["OMP_NUM_THREADS"] = str(config.resources.threads)
        # waiting threads sleep: where actors and other programs share cores, spinning ones slow everybody manifold
        variables["OMP_WAIT_POLICY"] = "PASSIVE"
    if not resources.get("GPU"):
        variables["CUDA_VISIBLE_DEVICES"] = ""  # an actor with num_gpus=0 sees every GPU otherwise
    return {
        "num_cpus": resources.get("CPU", 0),
        "num_gpus": resources.get("GPU", 0),
        "max_restarts": 0,
        "max_task_retries": 0,
        "runtime_env": {"env_vars": variables},
    }


def silent() -> dict[str, str]:
    """Variables under which nothing is fetched or told, as far as the environment does not say otherwise."""
    return {name: os.environ.get(name, value) for name, value in SILENT.items()}


def photos_of(given: Dataset | list[Any]) -> Dataset:
    """The photos that an actor was given: themselves, or a reference to them in a list. Those that Ray restarts need the latter: it does not keep
    what it resolved for the first start."""
    found: Dataset = ray.get(given[0]) if isinstance(given, list) else given
    return found


def join_driver(config: Config) -> None:
    """For actors that compute, before anything else: the driver's code, and threads.

    Raises:
        ResourceError: this node has other code.
    """
    demand_drivers_code()
    set_threads(config.resources.threads)


def set_threads(threads: int) -> None:
    """Torch threads of this process; what Ray derives from num_cpus is too few where phases take turns on the cores."""
    import torch  # here, since the driver and the coordinator do without it

    torch.set_num_threads(threads)


def roles(config: Config) -> dict[Role, int]:
    """How many actors of each role must be alive at once."""
    return {
        "generator": config.resources.least_generators or config.resources.generators,
        "extractor": 1,
        "downstream": config.resources.downstreams,
        "coordinator": 1,
    }


def demand_data(dataset: Dataset, seconds: float = 300.0) -> None:
    """Have every node read one photo and its mask, before actors anywhere fail on it.

    Raises:
        ResourceError: a node that cannot, with the reason, or that did not answer in time.
    """
    sample_id = min(dataset.samples, key=lambda sample: sample.is_normal).sample_id  # one with a mask
    nodes = {node["NodeID"]: node["NodeManagerHostname"] for node in ray.nodes() if node["Alive"]}
    shared = ray.put(dataset)
    asked = {
        _read_one.options(scheduling_strategy=NodeAffinitySchedulingStrategy(node, soft=False)).remote(
            shared, sample_id
        ): node
        for node in nodes
    }
    done, late = ray.wait(list(asked), num_returns=len(asked), timeout=seconds)
    found = {asked[reference]: _reason(reference) for reference in done}
    found |= {asked[reference]: f"no answer within {seconds:.0f} s" for reference in late}
    told = sorted(f"{nodes[node]}: {reason}" for node, reason in found.items() if reason)
    if told:
        raise ResourceError(
            f"{len(told)} of {len(nodes)} nodes cannot read the photos:\n  "
            + "\n  ".join(told)
            + "\nGive --data a path that all "
            "nodes share, or s3://BUCKET/FOLDER with credentials in every node's environment."
        )


@ray.remote(num_cpus=0, max_retries=0)
def _read_one(dataset: Dataset, sample_id: str) -> str:
    """What keeps this node from reading a photo; "" when nothing does."""
    try:
        dataset.image(sample_id)
        dataset.mask(sample_id)
    except (CdiffError, OSError, ImportError) as error:
        return str(error)
    return ""


def _reason(reference: Any) -> str:
    try:
        return str(ray.get(reference))
    except RayError as error:
        return " ".join(str(error).split())


@cache
def own_code() -> str:
    """`code_hash` of this process, as it was when it was first asked."""
    return code_hash()


def code_hash(*folders: str) -> str:
    """Hash of the project's Python files as this process imports them; of all of them, or of the named folders."""
    digest = hashlib.sha256()
    for package in folders or ("actors", "cdiff"):
        for path in sorted((ROOT / package).rglob("*.py")):
            digest.update(path.relative_to(ROOT).as_posix().encode() + b"\0" + path.read_bytes())
    return digest.hexdigest()[:16]


def refuse_other_code(expected: str) -> None:
    """For actors: ResourceError when this node imports other code than the driver, whose `code_hash` is expected."""
    here = code_hash()
    if here != expected:
        raise ResourceError(
            f"this node runs other code ({here}, in {ROOT}) than the driver ({expected}): results would mix two versions. "
            "Submit with --working-dir ., or install the same commit on all nodes."
        )


def demand_drivers_code() -> None:
    """For actors: as `refuse_other_code`, where the driver told its own."""
    if expected := os.environ.get(CODE):
        refuse_other_code(expected)


def needs(config: Config, role: Role) -> Resources:
    """What one actor of a role reserves; no GPU where it would compute on the CPU."""
    settings = config.resources
    own = {"generator": settings.generator_gpus, "downstream": settings.downstream_gpus}.get(role)
    share = settings.gpus if own is None else own
    wanted = {"CPU": settings.cpus, "GPU": share if settings.device == "cuda" else 0.0}
    # the coordinator only sorts and draws numbers
    return {kind: amount for kind, amount in wanted.items() if amount and role != "coordinator"}


def training_gpus(config: Config) -> float:
    """Cards of each worker of a training; none where workers would compute on the CPU."""
    return config.train.gpus if config.resources.device == "cuda" else 0.0


def _knock(address: str | None) -> None:
    """OSError when nobody listens at host:port: ray.init would try for minutes."""
    host, _, port = (address or "").removeprefix("ray://").rpartition(":")
    if host and port.isdigit():
        socket.create_connection((host.strip("[]"), int(port)), timeout=10).close()


def _same_folder() -> dict[str, Any]:
    """Workers of this machine import the project from where the driver does, installed or not."""
    path = [str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]
    return {
        "env_vars": {"PYTHONPATH": os.pathsep.join(path)},
        "worker_process_setup_hook": "actors.quiet.quiet",
    }


def living_nodes() -> list[Resources]:
    """What each node that is alive has."""
    return [node["Resources"] for node in ray.nodes() if node["Alive"]]
