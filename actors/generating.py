"""A replica that makes pairs: what many requests want, in common batches."""

from __future__ import annotations

import asyncio
import copy
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from functools import cached_property, partial
from typing import Any, TypeVar

import numpy as np
from ray import serve
from ray.serve import metrics

from actors.batching import Batching
from actors.door import NotYet
from actors.resources import set_threads
from cdiff.config import Config
from cdiff.data.dataset import Dataset
from cdiff.data.run import Run
from cdiff.data.store import ShardRow
from cdiff.errors import RequestError
from cdiff.service.adoption import demand_unseen, human_pair
from cdiff.service.requests import MaskRequest, ModelAnswer, PairRequest, SegmentRequest, TypeAnswer
from cdiff.service.studio import Studio, Ticket, standing

_Found = TypeVar("_Found")
_Made = tuple[ShardRow, str]  # a pair with what the gate has against it


class Wish:
    """A request to a studio; what it comes to is planned once, on the thread that makes it."""

    def __init__(self, studio: Studio, request: PairRequest) -> None:
        self.studio, self._request = studio, request

    @property
    def tickets(self) -> list[Ticket]:
        planned = self._planned
        if isinstance(planned, RequestError):
            raise RequestError(*planned.args)
        return planned

    @cached_property
    def _planned(self) -> list[Ticket] | RequestError:
        """What is wrong with a request is found once, too, however many pairs of it are asked for."""
        try:
            return self.studio.tickets(self._request)
        except RequestError as error:
            return RequestError(*error.args)  # without the frames of the first, which hold the request


def _made_of(wishes: Sequence[tuple[Wish, int]]) -> list[_Made | Exception]:
    """Pairs of one model's wishes, each by its number. One by one where they fail together: nobody pays for another's."""
    studio = wishes[0][0].studio
    try:
        rows = studio.make([wish.tickets[number] for wish, number in wishes])
        return [(row, studio.reason(row)) for row in rows]
    except Exception as error:  # noqa: BLE001  # raised where its own request waits
        if len(wishes) == 1:
            return [error]
        return [one for wish in wishes for one in _made_of([wish])]


class Generating:
    """A replica that holds the studios of the runs, and makes what many requests want in common batches."""

    def __init__(
        self,
        runs: dict[str, Run],
        datasets: dict[str, Dataset],
        config: Config,
        models_at_once: int,
        settings: Sequence[str],
    ) -> None:
        set_threads(config.resources.threads)
        self._runs = runs
        # one thread does all the work: a studio is not for several, and this process's loop stays free to answer
        self._thread = ThreadPoolExecutor(1)
        keys: Any = ("model", "verdict")  # Ray's stubs know of one key
        self._made = metrics.Counter("cdiff_pairs", description="Pairs made.", tag_keys=keys)
        self._seconds = metrics.Histogram(
            "cdiff_batch_seconds",
            description="Seconds of a batch of pairs.",
            boundaries=[0.1, 0.3, 1, 3, 10, 30],
            tag_keys=("model",),
        )

        async def studio(model: str) -> Studio:
            own = copy.copy(datasets[model])  # its cache of photos goes when the studio goes
            return await self._on_thread(lambda: Studio(runs[model], own, settings))

        # Serve sends requests to the replicas that have their model, and lets the one asked for least recently go
        self._loaded = serve.multiplexed(studio, max_num_models_per_replica=models_at_once)
        # photos by the thousand: one comparison at a time, though who asked for it has left
        self._comparing = ThreadPoolExecutor(1)
        self._batches = Batching(self._make, config.sampling.micro_batch, self._thread)

    async def pairs(self, model: str, request: PairRequest) -> tuple[list[ShardRow], list[str]]:
        wish = Wish(await self._studio(model), request)
        made = await asyncio.gather(*(self._batches.one((model, wish, i)) for i in range(request.n)))
        for _, reason in made:
            self._made.inc(tags={"model": model, "verdict": reason or "valid"})
        return [row for row, _ in made], [reason for _, reason in made]

    async def human(self, model: str, request: PairRequest, task_id: str) -> ShardRow:
        """A pair that was made before, once more, to be trained on."""
        studio = await self._studio(model)
        seen = partial(demand_unseen, request, studio.dataset, studio.manifest, studio.config.data)
        await asyncio.get_running_loop().run_in_executor(self._comparing, seen)
        return await self._on_thread(lambda: human_pair(studio, request, task_id))

    async def mask(self, model: str, request: MaskRequest) -> np.ndarray:
        studio = await self._studio(model)
        return await self._on_thread(lambda: studio.read_mask(request))

    async def segment(self, model: str, request: SegmentRequest) -> tuple[np.ndarray, float, float]:
        studio = await self._studio(model)

        def segmented() -> tuple[np.ndarray, float, float]:
            if not studio.has_segmenter:
                raise NotYet("this model has no segmenter: its loop fitted none yet")
            return studio.segment(request)

        return await self._on_thread(segmented)  # in one go: each turn waits for a batch of pairs

    async def ready(self) -> None:
        """Nothing is loaded for this."""

    async def types(self, model: str) -> list[TypeAnswer]:
        studio = await self._studio(model)
        return [TypeAnswer(category=c, type=t, targets=n) for (c, t), n in studio.types.items()]

    async def describe(self) -> list[ModelAnswer]:
        """All models, loaded or not."""
        return await asyncio.to_thread(lambda: [_about(name, run) for name, run in self._runs.items()])

    def _make(self, items: list[tuple[str, Wish, int]]) -> list[_Made | Exception]:
        """Pairs of several requests, each as it would be alone: on the thread."""
        made: dict[int, _Made | Exception] = {}
        for model in dict.fromkeys(model for model, _, _ in items):
            began, places = time.perf_counter(), [i for i, (own, *_) in enumerate(items) if own == model]
            made |= dict(zip(places, _made_of([items[place][1:] for place in places]), strict=True))
            self._seconds.observe(time.perf_counter() - began, tags={"model": model})
        return [made[place] for place in range(len(items))]

    async def _studio(self, model: str) -> Studio:
        """A model's studio. Who asked may leave while it is loaded: it is there for the next."""
        found: Studio = await asyncio.shield(asyncio.ensure_future(self._loaded(model)))
        return found

    async def _on_thread(self, work: Callable[[], _Found]) -> _Found:
        return await asyncio.get_running_loop().run_in_executor(self._thread, work)


def _about(name: str, run: Run) -> ModelAnswer:
    config, revisions, _ = standing(run)
    sampling = config.sampling
    strengths = {"safe_strength": sampling.safe_strength, "start_strength": sampling.start_strength}
    return ModelAnswer(
        model=name,
        revisions={key: value for key, value in asdict(revisions).items() if value},
        resolution=config.generator.resolution,
        mode=sampling.mode,
        strengths=strengths,
    )
