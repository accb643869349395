"""Batches of what waits: full under load, without those who left, and one's error is not another's."""

from __future__ import annotations

import asyncio
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest

from actors.batching import Batching


def _run(scenario) -> list[list[int]]:
    """Run a scenario on a batching of squares that is held until `gate` opens; the batches that were made."""
    batches: list[list[int]] = []
    gate = threading.Event()

    def make(items: list[int]) -> list[int | Exception]:
        batches.append(items)
        gate.wait(5)
        return [ValueError(f"{item}") if item < 0 else item * item for item in items]

    async def main() -> None:
        with ThreadPoolExecutor(1) as thread:
            await scenario(Batching(make, 4, thread), gate)

    asyncio.run(main())
    return batches


def test_what_comes_while_a_batch_runs_makes_the_next_ones_full() -> None:
    async def scenario(batching, gate) -> None:
        first = asyncio.create_task(batching.one(1))
        await asyncio.sleep(0.1)  # it runs alone
        others = [asyncio.create_task(batching.one(number)) for number in range(2, 8)]
        await asyncio.sleep(0.05)
        gate.set()
        assert await first == 1 and await asyncio.gather(*others) == [n * n for n in range(2, 8)]

    assert _run(scenario) == [[1], [2, 3, 4, 5], [6, 7]]


def test_an_error_is_raised_where_its_item_waits_and_nowhere_else() -> None:
    async def scenario(batching, gate) -> None:
        gate.set()
        found = await asyncio.gather(*(batching.one(n) for n in (2, -3, 4)), return_exceptions=True)
        assert found[0] == 4 and found[2] == 16 and isinstance(found[1], ValueError)

    assert _run(scenario) == [[2, -3, 4]]


def test_for_who_left_nothing_is_made() -> None:
    async def scenario(batching, gate) -> None:
        first = asyncio.create_task(batching.one(1))
        await asyncio.sleep(0.1)
        left, stays = asyncio.create_task(batching.one(2)), asyncio.create_task(batching.one(3))
        await asyncio.sleep(0.05)
        left.cancel()
        gate.set()
        assert await first == 1 and await stays == 9
        with pytest.raises(asyncio.CancelledError):
            await left
        assert await batching.one(5) == 25, "it begins anew after a rest"

    assert _run(scenario) == [[1], [3], [5]]


def test_a_batch_that_fails_as_a_whole_fails_for_each() -> None:
    async def main() -> None:
        def make(items: list[int]) -> list[int | Exception]:
            raise RuntimeError("no memory")

        with ThreadPoolExecutor(1) as thread:
            batching = Batching(make, 4, thread)
            found = await asyncio.gather(batching.one(1), batching.one(2), return_exceptions=True)
        assert [str(error) for error in found] == ["no memory", "no memory"]

    asyncio.run(main())
