"""What is painted on: one forgotten mask must not make one photo the scene of every pair."""

import dataclasses

import pytest

from cdiff.data.backdrops import ENOUGH, backdrops, plain, scarce


@pytest.fixture
def shown(photos):
    """Twelve photos with targets of one category, each of its own object."""
    sample = next(s for s in photos.samples if not s.is_normal)
    return [dataclasses.replace(sample, sample_id=f"c/t/{n}", category="c", group=f"t{n}") for n in range(12)]


def _normals(sample, count: int, objects: int, category: str = "c"):
    return [
        dataclasses.replace(
            sample, sample_id=f"{category}/n/{n}", category=category, types=(), group=f"n{n % objects}"
        )
        for n in range(count)
    ]


def test_enough_normal_photos_are_painted_on_alone(shown):
    normals = _normals(shown[0], 20, ENOUGH)
    assert backdrops([*shown, *normals]) == normals and scarce([*shown, *normals]) == {}


@pytest.mark.parametrize(("count", "objects"), [(1, 1), (30, ENOUGH - 1)])
def test_beside_a_few_normal_scenes_photos_with_targets_serve_as_well(shown, count, objects):
    photos = [*shown, *_normals(shown[0], count, objects)]
    assert backdrops(photos) == photos and scarce(photos) == {"c": objects}


def test_photos_with_targets_serve_where_there_is_nothing_else(shown):
    assert backdrops(shown) == shown and scarce(shown) == {}, "nothing to tell: that is how polyps are"
    assert backdrops([]) == []


def test_each_category_has_its_own(shown):
    many, lone = _normals(shown[0], ENOUGH, ENOUGH), _normals(shown[0], 1, 1, "d")
    others = [dataclasses.replace(s, category="d") for s in shown]
    assert backdrops([*shown, *many, *others, *lone]) == [*many, *others, *lone]
    assert scarce([*shown, *many, *others, *lone]) == {"d": 1}
    assert plain([*shown, *many, *others, *lone]) == many and plain([*others, *lone]) == []
