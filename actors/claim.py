"""A name that one driver of a cluster has as long as it lives: the actor that bears it is ended by Ray with its driver, however that ended.

For what is detached, as all of Serve is: it outlives a driver that is killed, and does not tell whether one still stands behind it.
"""

from __future__ import annotations

from typing import Any

import ray

_NAMESPACE = "cdiff"  # drivers have one each, unless they name it


@ray.remote(num_cpus=0, max_restarts=-1)  # the name must outlive the node on which the actor happens to be
class _Bearer:
    """Does nothing."""


def claimed(name: str) -> Any:
    """Take a name until this driver ends; None where another has it. Keep what is returned: Ray ends an actor that nobody refers to."""
    try:
        return _Bearer.options(name=name, namespace=_NAMESPACE).remote()  # type: ignore[attr-defined]  # Ray's stubs
    except ValueError:  # ActorAlreadyExistsError, and what Ray raised before there was that
        return None
