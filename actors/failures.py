"""What ended a call of an actor, told apart: an error of its own, a death, a lost connection, memory, a lost node."""

from __future__ import annotations

import re
from pathlib import Path

import ray
from ray.exceptions import (
    ActorUnavailableError,
    NodeDiedError,
    OutOfMemoryError,
    RayActorError,
    RayError,
    RayTaskError,
    WorkerCrashedError,
)
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

DEAD = (RayActorError, WorkerCrashedError, OutOfMemoryError, NodeDiedError)
MEMORY_REMEDY = (
    "Give its actors more memory (fewer of them on a node or card: resources.generators, resources.downstreams, resources.gpus), "
    "or lower sampling.micro_batch, generator.batch or downstream.batch."
)
_LINES = 12  # of a dead actor's log that are shown
_SECONDS = 8.0  # for which another node is asked for them


def how(error: RayError) -> str:
    """The kind of end in two or three words, for a message."""
    if out_of_memory(error):
        return "ran out of memory"
    if lost_with_node(error):
        return "was lost with its node"
    if isinstance(error, ActorUnavailableError):
        return "is out of reach"
    if broken(error):
        return "has lost its GPU"
    return "died" if isinstance(error, DEAD) else "failed"


def out_of_memory(error: RayError) -> bool:
    """Whether memory ran out: Ray's monitor killed the process, or PyTorch or NumPy got none."""
    cause = getattr(error, "cause", None)
    if isinstance(error, OutOfMemoryError) or isinstance(cause, MemoryError):
        return True
    names = {kind.__name__ for kind in type(cause).__mro__}  # by name: the driver does without torch
    short = "DefaultCPUAllocator: " in str(cause) or "out of memory" in str(cause)
    return "OutOfMemoryError" in names or (isinstance(cause, RuntimeError) and short)


def broken(error: RayError) -> bool:
    """Whether the process is of no use any more though it lives: after such an error of its GPU every further call fails as well."""
    cause = getattr(error, "cause", None)
    names = {kind.__name__ for kind in type(cause).__mro__}
    return ("AcceleratorError" in names or "CUDA error" in str(cause)) and not out_of_memory(error)


def lost_with_node(error: RayError) -> bool:
    """A node takes all its actors along, whatever they were working on."""
    return isinstance(error, NodeDiedError) or "its node has died" in str(error)


def never_made(error: RayError) -> bool:
    """Its constructor raised: the next actor's would raise it too."""
    return bool(getattr(error, "actor_init_failed", False))


def what(error: RayError) -> str:
    """What happened, without the remote traceback above it."""
    cause = getattr(error, "cause", None)
    if isinstance(error, RayTaskError) and isinstance(cause, Exception):
        return f"{type(cause).__name__}: {cause}"
    text = str(error)
    if never_made(error):
        # Ray keeps the text alone: the exception's own line and all after it, since messages have many lines
        starts = [match.start() for match in re.finditer(r"^[\w.]+(Error|Exception)\b", text, re.MULTILINE)]
        text = text[starts[-1] :] if starts else text
        return text.strip()
    return " ".join(text.split())


def last_words(error: RayError) -> str:
    """The last lines that the process of a dead actor wrote, where its node still lives; "" where there are none."""
    found = re.search(r"\bpid: (\d+)", str(error))
    address = re.search(r"\bip: (\S+)", str(error))
    if not isinstance(error, RayActorError) or not found or never_made(error) or lost_with_node(error):
        return ""
    pid, nodes = int(found[1]), [node for node in ray.nodes() if node["Alive"]]
    hosts = [node["NodeID"] for node in nodes if address and node["NodeManagerAddress"] == address[1]]
    if not hosts or ray.get_runtime_context().get_node_id() in hosts:
        return _tail(pid)
    there = NodeAffinitySchedulingStrategy(hosts[0], soft=False)
    try:
        return str(ray.get(_tail_there.options(scheduling_strategy=there).remote(pid), timeout=_SECONDS))
    except RayError:  # a timeout is one of them
        return ""


def _tail(pid: int) -> str:
    """The end of what a worker process of this node wrote to its error output, or else to its output."""
    context = ray.get_runtime_context()
    logs = Path(context.get_temp_dir()) / context.get_session_name() / "logs"
    for ending in ("err", "out"):
        for path in sorted(logs.glob(f"worker-*-{pid}.{ending}")):
            with path.open("rb") as file:
                file.seek(max(0, path.stat().st_size - 20_000))
                lines = file.read().decode(errors="replace").splitlines()
            own = [line for line in lines if line.strip() and not line.startswith(":")]  # marks of Ray's own
            if own:
                return "\n".join(own[-_LINES:])
    return ""


@ray.remote(num_cpus=0, max_retries=0)
def _tail_there(pid: int) -> str:
    return _tail(pid)
