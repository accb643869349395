"""A wait for room on the cluster is told of, however long it is."""

from __future__ import annotations

import logging
from typing import Any

import pytest

from actors.places import Wait


class Late:
    """Stands in for a placement group that has its places after so many seconds; nobody sleeps for them."""

    def __init__(self, comes: float) -> None:
        self.comes, self.waited = comes, 0.0

    def wait(self, timeout_seconds: float) -> bool:
        assert timeout_seconds > 0
        self.waited += timeout_seconds
        return self.waited >= self.comes


def _told(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.getMessage() for record in caplog.records]


def _wait(there: Any = lambda: "The cluster has 4 CPU, free 0 CPU") -> Wait:
    return Wait("2 generator, 1 extractor: 6 CPU in all", 1800, there)


def test_a_long_wait_says_what_for_and_how_long_and_then_a_line_each_minute(caplog) -> None:
    caplog.set_level(logging.WARNING)
    sizes = iter((4, 4, 6))
    assert _wait(lambda: f"The cluster has {next(sizes)} CPU").for_(Late(150), 1800)  # type: ignore[arg-type]
    assert _told(caplog) == [
        "waiting for room for 2 generator, 1 extractor: 6 CPU in all. The cluster has 4 CPU; at most 1800 s (resources.wait_seconds)",
        "waiting for room after 70 s of at most 1800. The cluster has 4 CPU",
        "waiting for room after 130 s of at most 1800. The cluster has 6 CPU",
    ]


def test_what_comes_at_once_or_fails_soon_is_not_told_of(caplog) -> None:
    caplog.set_level(logging.WARNING)
    assert _wait().for_(Late(3), 1800)  # type: ignore[arg-type]
    never = Late(99)
    assert not _wait().for_(never, 10)  # type: ignore[arg-type]
    assert never.waited == 10 and not _told(caplog), "its error says the same"


def test_short_waits_one_after_another_are_told_of_like_a_long_one(caplog) -> None:
    """Eight workers, then seven, ...: each is waited for a little while."""
    caplog.set_level(logging.WARNING)
    wait, groups = _wait(), [Late(99) for _ in range(4)]
    assert not any(wait.for_(group, 5) for group in groups)  # type: ignore[arg-type]
    assert [group.waited for group in groups] == [5, 5, 5, 5]
    assert len(_told(caplog)) == 1
