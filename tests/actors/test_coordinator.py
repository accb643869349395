"""The coordinator ends a round as the gate says, with or without a further wave."""

from typing import Any

import numpy as np

from actors.coordinator import CoordinatorActor
from cdiff.config_file import build_config
from cdiff.types import (
    Assignment,
    Attempt,
    GenerationTask,
    Knowledge,
    Pose,
    Recipe,
    Revisions,
    Slice,
    Strengths,
    Weakness,
)
from cdiff.wasm.quality import Thresholds

RECIPE = Recipe("joint", "B0", 1, 1.0, 4, "euler", "float32", 4, 1)
GOOD = {"area": 40, "visible": 1, "changed": 1, "on_object": 1, "sharpness": 1, "label_iou": 1}


def _attempt(index: int, *, valid: bool) -> Attempt:
    task = GenerationTask(
        RECIPE,
        f"tile/crack/{index}#0",
        f"tile/good/{index}",
        Pose(5, 5, 0, 1, False, 0, 1.5),
        Strengths(2, 0.4),
        index,
        Revisions("", ""),
    )
    measures: dict[str, Any] = {**GOOD, "loss": index / 100, "visible": float(valid)}
    grey = np.random.default_rng(index).integers(0, 256, 576).astype(np.uint8)
    rows = tuple(sorted((name, float(value)) for name, value in measures.items()))
    return Attempt(
        Assignment(task, "tile/crack", "weak", index),
        "s",
        index,
        "tile",
        "crack",
        (0, 0, 9, 9),
        rows,
        grey.tobytes(),
    )


def test_a_slice_that_stopped_is_filled_up_though_no_wave_follows() -> None:
    """Its budget lapses, so nothing lacks and no wave follows: what is valid outside the band is kept now or never."""
    config = build_config({"wasm": {"pairs": 20, "uniform": 0, "easy": 0}})
    thresholds = Thresholds((("visible", "", 0.5),))
    shell: Any = CoordinatorActor  # the class within; Ray is not needed for it
    coordinator = shell.__ray_metadata__.modified_class(config, {}, {}, {}, {}, set(), thresholds, {})
    known = Knowledge((Weakness(Slice("tile", "crack"), ("a", "b"), 1.0, 0.5, 0.5, 0.5),))
    attempts = [_attempt(n, valid=n % 6 == 0) for n in range(24)]
    about = known, 1, Revisions("", ""), config, [a.assignment for a in attempts], attempts
    pairs, more = coordinator.judge(*about, False)
    assert more == [] and pairs == coordinator.judge(*about, True)[0]
    assert sum(pair.kept for pair in pairs) == 4
