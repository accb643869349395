"""Jobs leave the process of the tests as they found it."""

import signal
from collections.abc import Iterator

import pytest


@pytest.fixture(autouse=True)
def _handlers_as_before() -> Iterator[None]:
    before = signal.getsignal(signal.SIGTERM)
    yield
    signal.signal(signal.SIGTERM, before)
