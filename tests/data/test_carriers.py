"""Carriers: every one of them comes back from JSON as it was, and its hash stays that of runs on disk."""

import dataclasses
import hashlib
import json
import math
import typing

import numpy as np
import pytest

from cdiff import types
from cdiff.data.carriers import from_json, to_json
from cdiff.types import (
    Alarm,
    Assignment,
    Gain,
    Knowledge,
    MaskFile,
    Outcome,
    Pair,
    Sample,
    Target,
)
from tests.data.test_ledger import attempts, result, task

CARRIERS = [
    MaskFile("a.png", ((-1, "crack"), (2, "pit"))),
    Sample(
        "c/t/1", "c", ("t",), "g", "a.png", (MaskFile("m.png", ((-1, "t"),)),), 3, 4, "L", "f" * 64, "train"
    ),
    Target("c/t/1#0", "c/t/1", "c", "t", "g", (1, 2, 3, 4), 9),
    Outcome("c/t/1#0", "c/t/1", "c", "t", "g", 0, 0.1, 0.2, 0.3, math.inf, 0.5, 0.6, 1e-300, 1 / 3),
    attempts(range(1))[0],
    Pair(attempts(range(1))[0], "near-duplicate"),
    result(1),
    Knowledge(
        result(1).weaknesses,
        (Gain("c/t", 0.3, 12, 4, 0.02, 0.01),),
        (Alarm(Target("c/good/2@5-6-8", "c/good/2", "c", "", "g", (1, 2, 9, 10), 64), 0.75),),
        (("survives", "c/t", 0.6),),
    ),
]


@pytest.mark.parametrize("carrier", CARRIERS, ids=lambda carrier: type(carrier).__name__)
def test_carriers_come_back_from_json_exactly(carrier):
    again = from_json(type(carrier), json.loads(json.dumps(to_json(carrier))))
    assert again == carrier
    assert type(again) is type(carrier)
    assert types.content_hash(again) == types.content_hash(carrier)


@pytest.mark.parametrize("carrier", CARRIERS, ids=lambda carrier: type(carrier).__name__)
def test_hashes_are_those_of_runs_that_lie_on_disk(carrier):
    plain = dataclasses.asdict(carrier)
    text = json.dumps(plain, default=str, sort_keys=True, separators=(",", ":"))
    assert types.content_hash(carrier) == hashlib.sha256(text.encode()).hexdigest()[:16]
    assert types.content_hash([carrier, 1]) == types.content_hash([plain, 1])


def test_every_carrier_of_types_is_covered():
    def inside(kind: object, seen: set[type]) -> set[type]:
        if isinstance(kind, type) and dataclasses.is_dataclass(kind) and kind not in seen:
            seen.add(kind)
            for hint in typing.get_type_hints(kind).values():
                inside(hint, seen)
        for part in typing.get_args(kind):
            inside(part, seen)
        return seen

    covered: set[type] = set()
    for carrier in CARRIERS:
        inside(type(carrier), covered)
    declared = {
        kind for kind in vars(types).values() if isinstance(kind, type) and dataclasses.is_dataclass(kind)
    }
    assert declared == covered


def test_optional_fields_mappings_and_numpy_numbers_travel():
    @dataclasses.dataclass(frozen=True)
    class Box:
        value: float | None
        by_name: dict[str, tuple[float, ...]]
        default: int = 3

    box = Box(None, {"a": (float(np.float64(0.1)), 2.0)})
    assert from_json(Box, to_json(box)) == box
    assert from_json(Box, {"value": 1.5, "by_name": {}}) == Box(1.5, {})
    assert to_json({"n": np.float32(0.5), "i": np.int64(3), "b": np.bool_(True)}) == {
        "n": 0.5,
        "i": 3,
        "b": True,
    }


@pytest.mark.parametrize("change", [{"area": "9"}, {"box": [1, 2, 3]}, {"extra": 1}])
def test_json_that_does_not_fit_a_carrier_is_refused(change):
    plain = to_json(Target("c/t/1#0", "c/t/1", "c", "t", "g", (1, 2, 3, 4), 9))
    with pytest.raises(ValueError, match=r"expected|unknown"):
        from_json(Target, plain | change)
    with pytest.raises(ValueError, match="missing"):
        from_json(Target, {key: value for key, value in plain.items() if key != "area"})
    with pytest.raises(ValueError, match="expected"):
        from_json(Assignment, to_json(Assignment(task(1), "s", "weak", 0)) | {"purpose": "other"})
