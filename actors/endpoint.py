"""The service on Ray Serve: gateways that speak HTTP, and generators that make pairs.

    client -> Serve's proxy -> Gateway (actors.web: token, limits, errors) -> Generating.pairs -> batches of tickets -> cdiff.service.studio

Tickets of different requests share a batch; nobody's bytes depend on it (`Studio`). What waits is bounded: beyond `max_queued` a request gets 429
at once. Where a client leaves, Serve cancels its request, and what of it has not begun is not made.

    serve run actors.endpoint:application run=NAME data=/photos/screw       # the token in CDIFF_TOKEN
"""

from __future__ import annotations

import asyncio
import copy
import os
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from functools import cached_property
from typing import Any, Self, TypeVar

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator
from ray import serve
from ray.exceptions import RayError
from ray.serve import metrics
from ray.serve.config import BackpressureConfig
from ray.serve.exceptions import BackPressureError, DeploymentUnavailableError
from ray.serve.handle import DeploymentHandle

from actors import web
from actors.batching import Batching
from actors.door import Away, Busy, Door, NoModel, NotYet
from actors.resources import needs, set_threads
from cdiff.config import Config
from cdiff.config_file import load_config
from cdiff.data.dataset import Dataset
from cdiff.data.images import Limits
from cdiff.data.photos import photos_of
from cdiff.data.run import Run, find_run
from cdiff.data.store import ShardRow
from cdiff.errors import ConfigError
from cdiff.service.adoption import demand_unseen, human_pair
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
from cdiff.service.studio import Studio, Ticket, limits_of, standing
from cdiff.service.uploads import check_pictures

TOKEN = "CDIFF_TOKEN"
_LEAST = 16  # characters of a token
_SPARE = 64  # requests beside those to generators that a gateway takes at once
_Found = TypeVar("_Found")
_Made = tuple[ShardRow, str]  # a pair with what the gate has against it


class Served(BaseModel):
    """What is served, and how: arguments of `serve run`, of a Serve config file, and of jobs/serve.py."""

    model_config = ConfigDict(extra="forbid")
    run: str | list[str] = Field(
        description="Runs whose generators are served: folders, URLs, names under the home, or checkpoints of generators in them."
    )
    data: str | list[str] = Field(description="Photos of the runs, as the loop was given them.")
    groups: str | None = None
    home: str | None = None
    replicas: int = Field(1, ge=1, description="Generator replicas.")
    most_replicas: int = Field(0, ge=0, description="Serve adds replicas up to so many under load; 0: none.")
    models_at_once: int = Field(2, ge=1, description="Models that one replica keeps in memory.")
    max_queued: int = Field(32, ge=1, description="Requests that may wait; more get 429.")
    insecure_loopback: bool = Field(False, description="Serve without a token; on 127.0.0.1 alone.")
    settings: list[str] = Field(
        [], description="resources.key=value, as where the run was made with a GPU and is served without."
    )

    @model_validator(mode="after")
    def _whole(self) -> Self:
        if 0 < self.most_replicas < self.replicas:
            raise ValueError(f"most_replicas={self.most_replicas} is under replicas={self.replicas}")
        if other := [setting for setting in self.settings if not setting.startswith("resources.")]:
            raise ValueError(f"{other[0]}: a run is served as it was made, but for resources.key=value")
        return self


class Wish:
    """A request to a studio; what it comes to is planned once, on the thread that makes it."""

    def __init__(self, studio: Studio, request: PairRequest) -> None:
        self.studio, self._request = studio, request

    @cached_property
    def tickets(self) -> list[Ticket]:
        return self.studio.tickets(self._request)


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
        self._comparing = asyncio.Lock()
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
        async with self._comparing:  # photos by the thousand: one comparison at a time
            await asyncio.to_thread(
                demand_unseen, request, studio.dataset, studio.manifest, studio.config.data
            )
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


class Behind:
    """The backend of a gateway: the generators by their handle, and the runs' own pairs."""

    def __init__(self, generators: DeploymentHandle, runs: dict[str, Run], limits: Limits) -> None:
        self._generators, self._names, self._limits = generators, list(runs), limits
        self._decoding = asyncio.Semaphore(2)
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
        async with self._decoding:
            await asyncio.to_thread(check_pictures, request, self._limits)

    def _named(self, model: str | None) -> str:
        if model is not None and model not in self._names:
            raise NoModel
        return model or self._names[0]

    @staticmethod
    async def _ask(response: Any) -> Any:
        try:
            return await response
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
        ConfigError: no token, a field that there is not, or two runs of one name. RunError, DataError: a run or its photos are missing.
    """
    served = checked(wanted)
    token = os.environ.get(TOKEN, "")
    if len(token) < _LEAST and not served.insecure_loopback:
        raise ConfigError(
            f"set {TOKEN} to a secret of at least {_LEAST} characters, as of: openssl rand -hex 32. It is read where the service is built, which "
            "on a cluster is a node: it belongs into the environment of `ray start` there. Without a token the service starts with "
            "--insecure-loopback alone."
        )
    named = _by_name([run_of_model(name, served.home) for name in _listed(served.run)])
    runs = list(named.values())
    configs = [settings_of(run, served) for run in runs]
    datasets = photos_of(runs, _listed(served.data), served.groups)
    wanted_by_one = needs(configs[0], "generator")
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
        ray_actor_options={"num_cpus": wanted_by_one.get("CPU", 0), "num_gpus": wanted_by_one.get("GPU", 0)},
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


def checked(wanted: Served | Mapping[str, Any]) -> Served:
    """The arguments of the service; ConfigError with what is wrong with them."""
    try:
        return Served.model_validate(wanted)
    except ValidationError as error:
        told = "; ".join(f"{'.'.join(map(str, e['loc']))}: {e['msg']}".lstrip(": ") for e in error.errors())
        raise ConfigError(f"arguments of the service: {told}") from None


def settings_of(run: Run, served: Served) -> Config:
    """A run's configuration, as it is served."""
    return load_config(run.local("config.yaml", anew=True), list(served.settings))


def _by_name(runs: Sequence[Run]) -> dict[str, Run]:
    """Runs as requests name them: ConfigError where two have one name, as of different homes."""
    named: dict[str, Run] = {}
    for run in runs:
        if (other := named.setdefault(run.name, run)) is not run:
            raise ConfigError(
                f"two runs are called {run.name}: {other.url} and {run.url}. A request names a model by its run: serve each by a "
                "service of its own, and no run twice."
            )
    return named


def run_of_model(name: str, home: str | None = None) -> Run:
    """The run that a user names, or in which a generator's checkpoint lies (RUN/checkpoints/REVISION): its photos, types and gate belong to it.

    Raises:
        RunError: no such run. ConfigError: a checkpoint that is not the run's generator.
    """
    folder, _, revision = name.rstrip("/").rpartition("/checkpoints/")
    run = find_run(folder or name, home)
    if folder and revision != (own := standing(run)[1].generator):
        raise ConfigError(f"{name} is not the generator of its run: that is {folder}/checkpoints/{own}.")
    return run


def _listed(value: str | list[str]) -> list[str]:
    return [value] if isinstance(value, str) else value
