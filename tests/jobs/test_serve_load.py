"""What the load benchmark calls throughput at saturation."""

import pytest

from jobs.serve_load import saturated


def test_the_ramp_and_the_tail_do_not_count() -> None:
    steady = [10 + 0.1 * number for number in range(100)]
    ramp, tail = [1.0, 4.0, 9.0], [25.0, 30.0, 40.0]
    assert saturated([*ramp, *steady, *tail], 4) == pytest.approx(10)
