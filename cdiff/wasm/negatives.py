"""Hard negatives: what the segmenter takes for a target where there is none, shown again elsewhere, with an empty mask.

An alarm is the place of the highest score on a normal photo, under a model that never saw the photo. Its texture is laid onto
another normal photo, noised and denoised without tokens like the pairs, and trains with an empty mask.
Source: online hard example mining (Shrivastava et al., 1604.03540), here with scenes that no photo shows.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace

import numpy as np

from cdiff.config import Config
from cdiff.data.dataset import place_of
from cdiff.types import Alarm, Outcome, Sample, Slice, Target, Weakness
from cdiff.wasm.budget import Quotas, largest_remainder
from cdiff.wasm.dealing import Stock

_SURE = 0.5  # score from which an alarm counts


def alarms_of(
    outcomes: Iterable[Outcome], normals: Mapping[str, Sample], targets: Iterable[Target]
) -> tuple[Alarm, ...]:
    """Places where fold models were sure of a target on a normal photo, surest first.

    Args:
        normals: normal training photos by sample_id. targets: real ones; a place is as large as their median, by category.
    """
    sides: dict[str, list[int]] = {}
    for target in targets:
        sides.setdefault(target.category, []).append(target.longer_side)
    photos = Counter(sample.category for sample in normals.values())  # one alone has no elsewhere
    found = []
    for row in outcomes:
        if not row.type and row.confidence >= _SURE and row.sample_id in normals and photos[row.category] > 1:
            side = max(8, int(np.median(sides.get(row.category, [8]))))
            name = f"{row.sample_id}@{row.peak[0]}-{row.peak[1]}-{side}"
            found.append(Alarm(place_of(normals[row.sample_id], name), row.confidence))
    return tuple(sorted(found, key=lambda alarm: (-alarm.score, alarm.place.target_id)))


def slices_of(alarms: Sequence[Alarm]) -> list[Weakness]:
    """One slice per category with alarms; its members are places."""
    by_category: dict[str, list[Alarm]] = {}
    for alarm in alarms:
        by_category.setdefault(alarm.place.category, []).append(alarm)
    return [
        Weakness(
            Slice(f"{category} (no target)"),
            tuple(sorted(alarm.place.target_id for alarm in own)),
            0.0,
            0.0,
            0.0,
            float(np.mean([alarm.score for alarm in own])),
        )
        for category, own in sorted(by_category.items())
    ]


def negative_quotas(alarms: Sequence[Alarm], config: Config) -> Quotas:
    """Hard negatives by category, `wasm.negatives` times as many as pairs, shared out by the alarms and how sure they are."""
    slices = slices_of(alarms)
    parts = largest_remainder(
        round(config.wasm.negatives * config.wasm.pairs), [w.score * len(w.targets) for w in slices] or [1.0]
    )
    return {(w.slice.name, "negative"): n for w, n in zip(slices, parts, strict=False) if n}


def stocked(stock: Stock, alarms: Sequence[Alarm]) -> Stock:
    """A stock from which places without a target are dealt as well."""
    return replace(stock, targets={**stock.targets, **{a.place.target_id: a.place for a in alarms}})
