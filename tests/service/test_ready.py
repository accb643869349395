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
        self.seconds, self.asked = seconds, 0
        self.ready = self.describe = self

    def remote(self) -> "Asked":
        self.asked += 1
        return self

    def __await__(self) -> Any:
        return asyncio.sleep(self.seconds, []).__await__()

    def cancel(self) -> None:
        """Of a question that nobody waits for any more."""


def test_a_generator_that_is_at_work_is_there_and_one_that_never_answered_is_not(monkeypatch) -> None:
    monkeypatch.setattr(endpoint, "_SOON", 0.05)
    asked: Any = Asked(5.0)

    async def run() -> None:
        handle: DeploymentHandle[Any] = asked
        behind = endpoint.Behind(handle, {}, Limits(1, 1))
        found = await asyncio.gather(*(behind.ready() for _ in range(30)), return_exceptions=True)
        assert [type(one) for one in found] == [TimeoutError] * 30
        assert asked.asked == 1, "whoever asks without a token takes one place of those who want pairs"
        asked.seconds = 0.0
        await behind.models()
        await behind.ready()
        assert asked.asked == 2, "it answered a moment ago"
        await asyncio.sleep(0.06)
        asked.seconds = 5.0
        await behind.ready()
        monkeypatch.setattr(endpoint, "_LATELY", 0.0)
        time.sleep(0.06)
        with pytest.raises(TimeoutError):
            await behind.ready()

    asyncio.run(run())
