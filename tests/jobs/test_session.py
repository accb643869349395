"""What is looked at before anything long begins."""

import dataclasses
from types import SimpleNamespace
from typing import Any

import pytest

from cdiff.errors import DataError
from jobs.session import _demand_targets


def _split(samples, groups: list[str]) -> tuple[list[Any], Any]:
    """Six photos with targets, two for each split; those that train show these objects."""
    shown = [sample for sample in samples if not sample.is_normal][:6]
    ids = {
        name: [s.sample_id for s in shown[2 * n : 2 * n + 2]]
        for n, name in enumerate(("train", "validation", "test"))
    }
    train = [dataclasses.replace(s, group=group) for s, group in zip(shown, groups, strict=False)]
    return [*train, *shown[2:]], SimpleNamespace(ids=ids.__getitem__)


def test_training_photos_of_one_object_are_refused_before_anything_is_trained(photos):
    _demand_targets(*_split(photos.samples, ["one", "another"]))
    with pytest.raises(DataError, match=r"one source object.*\n?.*groups file"):
        _demand_targets(*_split(photos.samples, ["one", "one"]))


def test_a_split_without_targets_is_named(photos):
    samples, manifest = _split(photos.samples, ["one", "another"])
    with pytest.raises(DataError, match="validation split"):
        _demand_targets([s for s in samples if s.sample_id not in manifest.ids("validation")], manifest)
