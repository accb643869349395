"""Pools of candidates: as many as the quotas ask for, and further ones for what is short alone."""

from types import SimpleNamespace
from typing import Any

import pytest

from cdiff.wasm.pool import types_of, undirected_quotas
from jobs import quality_pool
from jobs.quality_pool import Choice, Pools, Wanted, enough


def test_a_rare_types_candidates_are_not_as_many_as_a_frequent_ones(monkeypatch, photos, tiny_config) -> None:
    """A set of thirty types, one of them frequent, had twenty times the candidates that it needed, and all of them again for one that is short."""
    targets = photos.all_targets(sorted(s.sample_id for s in photos.samples))
    few = [t for t in targets if t.type == "pit"][:1] + [t for t in targets if t.type == "bar"]
    types = types_of(few)
    quotas = undirected_quotas(types, 8)
    assert enough(quotas) == {"metal/bar": 12, "metal/pit": 8}
    asked: list[Any] = []

    def pool(per_type, revisions, config, wave, label) -> list[Any]:
        asked.append(dict(per_type))
        return []

    def chosen(pairs) -> Any:
        made: Any = (
            SimpleNamespace(attempt=SimpleNamespace(assignment=SimpleNamespace(slice=n))) for n in pairs
        )
        choice = Choice(tuple(made))
        return lambda self, pool, wanted, seed, label: choice

    monkeypatch.setattr(quality_pool, "pool_seconds", lambda run, pool: 0.0)
    crew: Any = SimpleNamespace(pool=pool, run=None)
    ledger: Any = SimpleNamespace(milestone=lambda name: None, record=lambda name, **told: None)
    none: Any = None
    pools, key = Pools(crew, ledger, none, none), ("copy_paste", 0)
    wanted = {key: Wanted(types, quotas, tiny_config)}
    monkeypatch.setattr(Pools, "_chosen", chosen(["metal/bar"] * 6 + ["metal/pit"]))
    pools.choose([tiny_config], enough(quotas), wanted, "copies")
    assert asked == [{"metal/bar": 12, "metal/pit": 8}] + [{"metal/pit": 8}] * (quality_pool.WAVES - 1)
    asked.clear()
    monkeypatch.setattr(Pools, "_chosen", chosen(["metal/bar"] * 6 + ["metal/pit"] * 2))
    assert len(pools.choose([tiny_config], enough(quotas), wanted, "copies")[key].pairs) == 8
    assert len(asked) == 1


@pytest.mark.parametrize(("quotas", "told"), [({}, {}), ({("a", "weak"): 4, ("a", "easy"): 1}, {"a": 10})])
def test_a_slices_purposes_are_asked_for_together(quotas, told) -> None:
    assert enough(quotas) == told
