"""What the gate's thresholds are measured on."""

from collections import Counter
from types import SimpleNamespace
from typing import Any, cast

import numpy as np

from cdiff.data.dataset import Dataset
from cdiff.wasm.calibration import _some


def _photos(**types: int) -> tuple[Dataset, list[str]]:
    ids = [f"tile/{kind}/{number}#0" for kind, count in types.items() for number in range(count)]
    named = {each: SimpleNamespace(category="tile", type=each.split("/")[1]) for each in ids}
    return cast(Any, SimpleNamespace(target=named.__getitem__)), ids


def test_a_rare_type_keeps_enough_targets_for_a_bound_of_its_own() -> None:
    dataset, ids = _photos(blob=2000, crack=30)
    for seed in range(10):
        chosen = _some(dataset, ids, 400, 10, np.random.default_rng(seed))
        counts = Counter(each.split("/")[1] for each in chosen)
        assert counts == {"blob": 370, "crack": 30} and len(set(chosen)) == len(chosen)


def test_many_types_have_their_least_each() -> None:
    dataset, ids = _photos(**{f"type{n}": 20 for n in range(75)})
    counts = Counter(each.split("/")[1] for each in _some(dataset, ids, 120, 10, np.random.default_rng(0)))
    assert set(counts.values()) == {10} and len(counts) == 75


def test_few_targets_are_all_taken() -> None:
    dataset, ids = _photos(blob=5, crack=3)
    assert _some(dataset, ids, 400, 10, np.random.default_rng(0)) == sorted(ids)
