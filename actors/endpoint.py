"""The service on Ray Serve: gateways that speak HTTP, and generators that make pairs.

    client -> Serve's proxy -> Gateway (actors.web: token, limits, errors) -> Generating.pairs -> batches of tickets -> cdiff.service.studio

Tickets of different requests share a batch; nobody's bytes depend on it (`Studio`). What waits is bounded: beyond `max_queued` a request gets 429
at once. Where a client leaves, Serve cancels its request, and what of it has not begun is not made.

    serve run actors.endpoint:application run=NAME data=/photos/screw       # the token in CDIFF_TOKEN
"""

from __future__ import annotations

import asyncio
import contextvars
import math
import os
import time
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
from ray import serve
from ray.exceptions import RayError
from ray.serve.config import BackpressureConfig
from ray.serve.exceptions import BackPressureError, DeploymentUnavailableError
from ray.serve.handle import DeploymentHandle

from actors import web
from actors.door import Away, Busy, Door, NoModel
from actors.generating import Generating
from actors.served import Served, by_name, checked, listed, run_of_model, settings_of, wanted_by_one
from cdiff.data.images import Limits
from cdiff.data.photos import photos_of
from cdiff.data.run import Run
from cdiff.data.store import ShardRow
from cdiff.errors import ConfigError
from cdiff.service.requests import (
    KeptPairs,
    MaskRequest,
    ModelAnswer,
    PairRequest,
    SegmentRequest,
    TypeAnswer,
    VerdictRequest,
)
from cdiff.service.review import Part, Review
from cdiff.service.studio import limits_of
from cdiff.service.uploads import check_pictures

TOKEN = "CDIFF_TOKEN"
_LEAST = 16  # characters of a token
# seconds: of a busy generator's answer, and since an answer that shows that there is one
_SOON, _LATELY = 4.0, 60.0
_SPARE = 64  # requests beside those to generators that a gateway takes at once


class Behind:
    """The backend of a gateway: the generators by their handle, and the runs' own pairs."""

    def __init__(self, generators: DeploymentHandle, runs: dict[str, Run], limits: Limits) -> None:
        self._generators, self._names, self._limits = generators, list(runs), limits
        # threads of its own: a decode goes on when whoever asked has left, and decoded pictures are large
        self._decoding = ThreadPoolExecutor(2)
        self._asking: asyncio.Task[None] | None = None  # whether a generator answers
        self._answered = -math.inf  # when a generator did last
        self._reviews = {name: Review(run) for name, run in runs.items()}

    async def pairs(self, model: str | None, request: PairRequest) -> tuple[str, list[ShardRow], list[str]]:
        await self._check(request)  # at once, however many wait
        name = self._named(model)
        rows, reasons = await self._ask(self._of(name).pairs.remote(name, request))
        return name, rows, reasons

    async def mask(self, model: str | None, request: MaskRequest) -> tuple[str, np.ndarray]:
        await self._check(request)
        name = self._named(model)
        return name, await self._ask(self._of(name).mask.remote(name, request))

    async def segment(
        self, model: str | None, request: SegmentRequest
    ) -> tuple[str, np.ndarray, float, float]:
        await self._check(request)
        name = self._named(model)
        scores, threshold, image_score = await self._ask(self._of(name).segment.remote(name, request))
        return name, scores, threshold, image_score

    async def ready(self) -> None:
        """Return where a generator answers, or did a moment ago: those that are at work let this wait, too.

        Anybody may ask: all share one question, so that they take no places from who wants pairs.
        """
        if time.monotonic() - self._answered < _SOON:
            return
        if self._asking is None or self._asking.done():
            # nobody's own: Serve would end it with the request of whoever asked first
            self._asking = asyncio.create_task(self._answers(), context=contextvars.Context())
            self._asking.add_done_callback(lambda asking: asking.cancelled() or asking.exception())
        try:
            await asyncio.wait_for(asyncio.shield(self._asking), _SOON)
        except TimeoutError:
            if time.monotonic() - self._answered > _LATELY:
                raise

    async def _answers(self) -> None:
        await self._ask(self._generators.ready.remote())

    async def types(self, model: str | None) -> list[TypeAnswer]:
        name = self._named(model)
        found: list[TypeAnswer] = await self._ask(self._of(name).types.remote(name))
        return found

    async def models(self) -> list[ModelAnswer]:
        found: list[ModelAnswer] = await self._ask(self._generators.describe.remote())
        return found

    async def kept(self, model: str | None, offset: int, limit: int) -> KeptPairs:
        name = self._named(model)
        return await asyncio.to_thread(self._reviews[name].kept, name, offset, limit)

    async def picture(self, model: str | None, task_id: str, part: Part) -> bytes:
        return await asyncio.to_thread(self._reviews[self._named(model)].picture, task_id, part)

    async def judge(self, model: str | None, request: VerdictRequest) -> None:
        name, made = self._named(model), None
        known = await asyncio.to_thread(self._reviews[name].knows, request.task_id)
        if request.made and request.accepted and not known:
            await self._check(request.made)
            made = await self._ask(self._of(name).human.remote(name, request.made, request.task_id))
        await asyncio.to_thread(self._reviews[name].judge, request, made)

    def _of(self, name: str) -> DeploymentHandle:
        """The generators, those first that have this model; where there is but one, whoever has the least to do."""
        if len(self._names) == 1:
            return self._generators
        return self._generators.options(multiplexed_model_id=name)

    async def _check(self, request: PairRequest | MaskRequest | SegmentRequest) -> None:
        """At once, however many wait for the generators; few at a time, since decoded pictures are large."""
        loop = asyncio.get_running_loop()
        await loop.run_in_executor(self._decoding, check_pictures, request, self._limits)

    def _named(self, model: str | None) -> str:
        if model is not None and model not in self._names:
            raise NoModel
        return model or self._names[0]

    async def _ask(self, response: Any) -> Any:
        try:
            answer = await response
            self._answered = time.monotonic()
            return answer
        except asyncio.CancelledError:  # the client left, or its time is over
            response.cancel()
            raise
        except BackPressureError:
            raise Busy from None
        except (RayError, DeploymentUnavailableError) as error:
            cause = getattr(error, "cause", None)
            if isinstance(cause, Exception):
                raise cause from None  # the generator's own error
            raise Away from error


@serve.deployment(
    max_ongoing_requests=_SPARE,
    max_queued_requests=64,
    graceful_shutdown_timeout_s=60,
    backpressure_config=BackpressureConfig(status_code=429, retry_after_s=2),
)
@serve.ingress(web.installed)
class Gateway:
    """One HTTP face of the service."""

    def __init__(
        self, generators: DeploymentHandle, runs: dict[str, Run], limits: Limits, door: Door
    ) -> None:
        web.install(Behind(generators, runs, limits), door)


def application(wanted: Served | dict[str, Any]) -> serve.Application:
    """The service as Serve deploys it.

    Args:
        wanted: from a Serve config file or `serve run`, a mapping of the fields.
    Raises:
        ConfigError: no token, a field that there is not, two runs of one name, or of unlike devices. RunError, DataError: a run or its photos are missing.
    """
    served = checked(wanted)
    token = os.environ.get(TOKEN, "")
    if len(token) < _LEAST and not served.insecure_loopback:
        raise ConfigError(
            f"set {TOKEN} to a secret of at least {_LEAST} characters, as of: openssl rand -hex 32. It is read where the service is built, which "
            "on a cluster is a node: it belongs into the environment of `ray start` there. Without a token the service starts with "
            "--insecure-loopback alone."
        )
    named = by_name([run_of_model(name, served.home) for name in listed(served.run)])
    runs = list(named.values())
    configs = [settings_of(run, served) for run in runs]
    datasets = photos_of(runs, listed(served.data), served.groups)
    reserved = wanted_by_one(configs)
    scaling: dict[str, Any] = {"num_replicas": served.replicas}
    if served.most_replicas:
        bounds = {"min_replicas": served.replicas, "max_replicas": served.most_replicas}
        scaling = {"autoscaling_config": {**bounds, "target_ongoing_requests": 4}}
    running = 2 * configs[0].sampling.micro_batch
    generators = serve.deployment(Generating).options(  # type: ignore[attr-defined]  # overloads in Ray's stubs
        name="Generating",
        max_ongoing_requests=running,
        max_queued_requests=served.max_queued,
        graceful_shutdown_timeout_s=60,
        ray_actor_options={f"num_{kind.lower()}s": amount for kind, amount in reserved.items()},
        **scaling,
    )
    door = Door(token="" if served.insecure_loopback else token)
    photos = dict(zip(named, datasets, strict=True))
    behind = generators.bind(named, photos, configs[0], served.models_at_once, served.settings)
    gateway: Any = Gateway  # a deployment, which Ray's stubs do not know
    # all that generators work at and let wait passes through it, and what takes none of them beside
    passing = running * max(served.replicas, served.most_replicas) + served.max_queued
    gateway = gateway.options(max_ongoing_requests=passing + _SPARE)
    bound: serve.Application = gateway.bind(behind, named, limits_of(configs[0]), door)
    return bound
