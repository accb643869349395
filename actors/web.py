"""The service's face: its routes and its page. It knows a `Backend` and nothing of Ray.

request -> actors.door.Guard -> route -> Backend
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Annotated, Any, Protocol

import numpy as np
from fastapi import FastAPI, Query, Request, Response
from fastapi import Path as PathParameter
from fastapi_offline import FastAPIOffline
from starlette.exceptions import HTTPException

from actors.door import Busy, Door, Guard, add_errors
from cdiff.data.images import encode_png
from cdiff.data.store import ShardRow
from cdiff.service.packing import JSON, PARQUET, ZIP, as_json, as_parquet, as_zip, b64
from cdiff.service.requests import (
    KeptPairs,
    MaskAnswer,
    MaskRequest,
    ModelAnswer,
    PairRequest,
    PairsAnswer,
    SegmentAnswer,
    SegmentRequest,
    TypeAnswer,
    VerdictRequest,
)
from cdiff.service.review import Part

PAGE = Path(__file__).with_name("page")
_PARTS = {
    "/": ("index.html", "text/html"),
    "/page.css": ("page.css", "text/css"),
    "/page.js": ("page.js", "text/javascript"),
}
_ERRORS: dict[int | str, dict[str, Any]] = {
    code: {"description": what, "content": {JSON: {"schema": {"$ref": "#/components/schemas/Refusal"}}}}
    for code, what in {
        400: "The body is no JSON.",
        401: "No token, or a wrong one.",
        404: "No such model.",
        406: "No form of the answer that this service has.",
        409: "The model has no such part yet.",
        413: "The body is too large.",
        422: "A field or a picture cannot be used; the message names it.",
        429: "Too many wait already; Retry-After says when to ask again.",
        503: "Not ready, or the answer took too long: ask again.",
    }.items()
}


class Backend(Protocol):
    """What the routes stand on."""

    async def pairs(self, model: str | None, request: PairRequest) -> tuple[str, list[ShardRow], list[str]]:
        """Name of the model, the pairs, and what the gate has against each."""

    async def mask(self, model: str | None, request: MaskRequest) -> tuple[str, np.ndarray]: ...

    async def segment(
        self, model: str | None, request: SegmentRequest
    ) -> tuple[str, np.ndarray, float, float]: ...

    async def ready(self) -> None:
        """Return once a generator answers; it need load nothing for that."""

    async def types(self, model: str | None) -> list[TypeAnswer]: ...

    async def models(self) -> list[ModelAnswer]: ...

    async def kept(self, model: str | None, offset: int, limit: int) -> KeptPairs: ...

    async def picture(self, model: str | None, task_id: str, part: Part) -> bytes: ...

    async def judge(self, model: str | None, request: VerdictRequest) -> None: ...


def build_app(backend: Callable[[], Backend], door: Callable[[], Door]) -> FastAPI:
    """The application. Both arguments are asked at each request: Serve builds the application before its replica knows them."""
    app = FastAPIOffline(  # its page of the API fetches nothing from elsewhere
        docs_url="/docs",
        redoc_url=None,
        title="cdiff",
        summary="Pairs of photo and mask on demand.",
        version="1",
        responses=_ERRORS,
    )
    app.openapi = _openapi(app)  # type: ignore[method-assign]
    add_errors(app)

    async def answered(work: Awaitable[Any]) -> Any:
        return await asyncio.wait_for(work, door().timeout_s)

    @app.post(
        "/v1/pairs",
        response_model=PairsAnswer,
        responses={200: {"content": {ZIP: {}, PARQUET: {}}, "description": "JSON, or what Accept asks for."}},
    )
    async def pairs(request: Request, wanted: PairRequest) -> Response:
        """Make pairs of photo and mask: as JSON, as a ZIP in MVTec AD's layout, or as Parquet."""
        form = accepted(request.headers.get("accept", ""))
        model, rows, reasons = await answered(backend().pairs(wanted.model, wanted))
        return await asyncio.to_thread(_packed, form, rows, reasons, model)

    @app.post("/v1/masks")
    async def masks(wanted: MaskRequest) -> MaskAnswer:
        """Read the mask of a target from a photo."""
        model, mask = await answered(backend().mask(wanted.model, wanted))
        return MaskAnswer(model=model, mask=await asyncio.to_thread(_png, mask))

    @app.post("/v1/segment")
    async def segment(wanted: SegmentRequest) -> SegmentAnswer:
        """Segment a photo with the model that stands."""
        model, scores, threshold, image_score = await answered(backend().segment(wanted.model, wanted))
        grey = (scores * 255).round().astype(np.uint8)
        return SegmentAnswer(
            model=model,
            mask=await asyncio.to_thread(_png, scores >= threshold),
            scores=await asyncio.to_thread(_png, grey),
            threshold=threshold,
            image_score=image_score,
        )

    @app.get("/v1/types")
    async def types(model: str | None = None) -> list[TypeAnswer]:
        """The types of target that a model knows."""
        found: list[TypeAnswer] = await answered(backend().types(model))
        return found

    @app.get("/v1/models")
    async def models() -> list[ModelAnswer]:
        """The models that are served."""
        found: list[ModelAnswer] = await answered(backend().models())
        return found

    @app.get("/v1/kept")
    async def kept(
        model: str | None = None,
        offset: Annotated[int, Query(ge=0, le=10_000_000)] = 0,
        limit: Annotated[int, Query(ge=1, le=100)] = 12,
    ) -> KeptPairs:
        """Pairs that the run has kept, the latest round first."""
        found: KeptPairs = await answered(backend().kept(model, offset, limit))
        return found

    @app.get(
        "/v1/kept/{task_id}/{part}", response_class=Response, responses={200: {"content": {"image/png": {}}}}
    )
    async def picture(
        task_id: Annotated[str, PathParameter(pattern="^[0-9a-f]{16}$")], part: Part, model: str | None = None
    ) -> Response:
        """Photo or mask of a kept pair, PNG."""
        return Response(await answered(backend().picture(model, task_id, part)), media_type="image/png")

    @app.post("/v1/verdicts", status_code=201)
    async def judge(wanted: VerdictRequest) -> dict[str, str]:
        """Accept or reject a pair. The next round trains without the run's that are rejected, and with the service's that are accepted."""
        await answered(backend().judge(wanted.model, wanted))
        return {"status": "written"}

    @app.get("/healthz")
    async def healthz() -> dict[str, str]:
        """The process answers."""
        return {"status": "ok"}

    @app.get("/readyz")
    async def readyz() -> dict[str, str]:
        """A generator answers, too."""
        with contextlib.suppress(Busy):  # who is busy works
            await asyncio.wait_for(backend().ready(), 5)
        return {"status": "ready"}

    for path, (name, kind) in _PARTS.items():
        app.add_api_route(path, _part(name, kind), include_in_schema=False)
    app.add_middleware(Guard, door=door)
    return app


_installed: dict[str, Any] = {}


def install(backend: Backend, door: Door) -> None:
    """Say what this process's application (`installed`) stands on."""
    _installed.update(backend=backend, door=door)


def installed() -> FastAPI:
    """The application of this process, on what `install` was given."""
    return build_app(lambda: _installed["backend"], lambda: _installed["door"])


def accepted(header: str) -> str:
    """The form of the answer that an Accept header asks for; JSON where it asks for none.

    Raises:
        HTTPException: 406, for forms that there are not.
    """
    asked = [part.split(";")[0].strip().lower() for part in header.split(",") if part.strip()]
    for form in asked:
        if form in (JSON, ZIP, PARQUET):
            return form
        if form in ("*/*", "application/*"):
            return JSON
    if asked:
        raise HTTPException(406, f"accept one of {JSON}, {ZIP}, {PARQUET}")
    return JSON


def _part(name: str, kind: str) -> Callable[[], Awaitable[Response]]:
    """A file of the page."""

    async def part() -> Response:
        return Response((PAGE / name).read_bytes(), media_type=kind)

    return part


def _packed(form: str, rows: list[ShardRow], reasons: list[str], model: str) -> Response:
    if form == ZIP:
        return _file(as_zip(rows, reasons, model), ZIP, "pairs.zip")
    if form == PARQUET:
        return _file(as_parquet(rows), PARQUET, "pairs.parquet")
    return Response(as_json(rows, reasons, model).model_dump_json(), media_type=JSON)


def _png(pixels: np.ndarray) -> str:
    return b64(encode_png(pixels, "L"))


def _file(data: bytes, form: str, name: str) -> Response:
    return Response(data, media_type=form, headers={"content-disposition": f'attachment; filename="{name}"'})


def _openapi(app: FastAPI) -> Callable[[], dict[str, Any]]:
    """OpenAPI with the form of errors and the token."""

    def made() -> dict[str, Any]:
        if not app.openapi_schema:
            found = FastAPI.openapi(app)
            parts = found.setdefault("components", {})
            parts.setdefault("schemas", {})["Refusal"] = {
                "type": "object",
                "required": ["error", "where", "request_id"],
                "properties": {
                    "error": {"type": "string"},
                    "where": {"type": "array", "items": {"type": "string"}},
                    "request_id": {"type": "string"},
                },
            }
            parts["securitySchemes"] = {"token": {"type": "http", "scheme": "bearer"}}
            found["security"] = [{"token": []}]
            app.openapi_schema = found
        return app.openapi_schema or {}

    return made
