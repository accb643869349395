"""A name that one driver of a cluster has as long as it lives: the actor that bears it is ended by Ray with its driver, however that ended.

For what is detached, as all of Serve is: it outlives a driver that is killed, and does not tell whether one still stands behind it.
"""

from __future__ import annotations

import time
import uuid
from typing import Any

import ray
from ray.exceptions import RayError

_NAMESPACE = "cdiff"  # drivers have one each, unless they name it
_TRIES, _SECONDS = 5, 30.0  # to take a name; for an answer of its bearer


@ray.remote(num_cpus=0, max_restarts=-1)  # the name must outlive the node on which the actor happens to be
class _Bearer:
    """Knows who made it."""

    def __init__(self, mark: str) -> None:
        self._mark = mark

    def mark(self) -> str:
        return self._mark


def claimed(name: str) -> Any:
    """Take a name until this driver ends; None where another has it. Keep what is returned: Ray ends an actor that nobody refers to.

    While Ray clears up after the last bearer, a new one may be made and lose the name at once: so it is asked for by the name.
    """
    mark = uuid.uuid4().hex
    for _ in range(_TRIES):
        try:
            bearer = _Bearer.options(name=name, namespace=_NAMESPACE).remote(mark)  # type: ignore[attr-defined]  # Ray's stubs
        except ValueError:  # ActorAlreadyExistsError, and what Ray raised before there was that
            return None
        try:
            ray.get(bearer.mark.remote(), timeout=_SECONDS)  # it lives, so the last one is gone
            found: Any = ray.get_actor(name, namespace=_NAMESPACE)
            return bearer if ray.get(found.mark.remote(), timeout=_SECONDS) == mark else None
        except (ValueError, RayError):  # nobody has it
            ray.kill(bearer)
            time.sleep(0.5)
    return None
