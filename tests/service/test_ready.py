"""A service is ready where a generator answers, or did a moment ago; one that is at work lets the question wait."""

import asyncio
import time
from typing import Any

import pytest
from ray.serve.handle import DeploymentHandle

from actors import endpoint
from cdiff.data.images import Limits


class Asked:
    """Answers as the handle of a deployment does, after some seconds."""

    def __init__(self, seconds: float) -> None:
        self.seconds, self.cancelled = seconds, 0
        self.ready = self.describe = self

    def remote(self) -> "Asked":
        return self

    def __await__(self) -> Any:
        return asyncio.sleep(self.seconds, []).__await__()

    def cancel(self) -> None:
        self.cancelled += 1


def test_a_generator_that_is_at_work_is_there_and_one_that_never_answered_is_not(monkeypatch) -> None:
    monkeypatch.setattr(endpoint, "_SOON", 0.05)
    asked: Any = Asked(5.0)

    async def run() -> None:
        handle: DeploymentHandle[Any] = asked
        behind = endpoint.Behind(handle, {}, Limits(1, 1))
        with pytest.raises(TimeoutError):
            await behind.ready()
        assert asked.cancelled == 1, "the question does not stay in the queue"
        asked.seconds = 0.0
        await behind.models()
        asked.seconds = 5.0
        await behind.ready()
        monkeypatch.setattr(endpoint, "_LATELY", 0.0)
        time.sleep(0.01)
        with pytest.raises(TimeoutError):
            await behind.ready()

    asyncio.run(run())
