"""What Ray's worker processes on this machine do first: silence a warning that is none.

Ray Train watches over its controller by the dashboard's interface, which a Ray of one machine does not have here: it warns every second, as long as a
training by several workers lasts. Such a Ray ends with its driver, so that there is nothing to watch over. Imports nothing: each worker waits for it.
"""

import logging

_WATCH = "ray.train.v2._internal.execution.controller.placement_group_cleaner"


def quiet() -> None:
    logging.getLogger(_WATCH).setLevel(logging.ERROR)
