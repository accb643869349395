"""Common batches of what many callers want: whatever waits while the worker thread is busy makes the next batch.

Not `serve.batch`: that closes a batch a moment after its first item, even while an earlier batch runs, so that under load batches of two or three items
queue where one of eight would do; padded micro-batches cost the same whatever they hold, and the service made a third of what the sampler can.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from concurrent.futures import Executor
from typing import Generic, TypeVar

Item = TypeVar("Item")
Made = TypeVar("Made")

LINGER = 0.01  # seconds for which a first item waits for company


class Batching(Generic[Item, Made]):
    """Of one event loop.

    Args:
        make: called on the thread with 1 to `most` items; a result for each, in their order; an exception among them is raised where its item waits.
        thread: runs one batch at a time.
    """

    def __init__(
        self, make: Callable[[list[Item]], list[Made | Exception]], most: int, thread: Executor
    ) -> None:
        self._make, self._most, self._thread = make, most, thread
        self._waiting: list[tuple[Item, asyncio.Future[Made]]] = []
        self._running: asyncio.Task[None] | None = None

    async def one(self, item: Item) -> Made:
        """The result of one item. Who leaves while it waits is not made anything for."""
        future: asyncio.Future[Made] = asyncio.get_running_loop().create_future()
        self._waiting.append((item, future))
        if self._running is None or self._running.done():
            self._running = asyncio.create_task(self._run())
        return await future

    async def _run(self) -> None:
        await asyncio.sleep(LINGER)
        while self._waiting:
            batch = [(item, future) for item, future in self._waiting if not future.done()]
            batch, self._waiting = batch[: self._most], batch[self._most :]
            if batch:
                await self._finish(batch)

    async def _finish(self, batch: list[tuple[Item, asyncio.Future[Made]]]) -> None:
        loop, items = asyncio.get_running_loop(), [item for item, _ in batch]
        found: list[Made | Exception]
        try:
            found = await loop.run_in_executor(self._thread, self._make, items)
        except Exception as error:  # noqa: BLE001  # raised where each item waits
            found = [error] * len(batch)
        for (_, future), result in zip(batch, found, strict=True):
            if future.done():  # its caller left
                continue
            if isinstance(result, Exception):
                future.set_exception(result)
            else:
                future.set_result(result)
