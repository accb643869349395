"""What the report shows of a finished run."""

import pytest

from jobs.closing import best_and_worst


@pytest.mark.parametrize(
    ("photos", "best", "worst"), [(0, "", ""), (1, "", "a"), (3, "c", "ab"), (9, "ihgf", "abcd")]
)
def test_no_photo_is_both_among_the_best_and_the_worst(photos, best, worst):
    dice = {name: index / 10 for index, name in enumerate("abcdefghi"[:photos])}
    assert best_and_worst(dice) == (list(best), list(worst))
