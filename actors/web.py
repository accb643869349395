"""The service's face: routes, the token, limits and errors. It knows a `Backend` and nothing of Ray.

    request -> Guard (size, token, request id, headers) -> route -> Backend

Errors have a generic body with a request id; what went wrong inside stands in the log under the same id.
"""

from __future__ import annotations

import asyncio
import contextlib
import hmac
import logging
import uuid
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Protocol

import numpy as np
from fastapi import FastAPI, Query, Request, Response
from fastapi import Path as PathParameter
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from fastapi_offline import FastAPIOffline
from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from cdiff.data.images import encode_png
from cdiff.data.store import ShardRow
from cdiff.errors import CdiffError, RequestError
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

log = logging.getLogger(__name__)
PAGE = Path(__file__).with_name("page")
_PARTS = {
    "/": ("index.html", "text/html"),
    "/page.css": ("page.css", "text/css"),
    "/page.js": ("page.js", "text/javascript"),
}
_DOCS = ("/docs", "/openapi.json", "/static-offline-docs/")  # of the API; what it says is no secret
_OPEN = {*_PARTS, "/healthz", "/readyz"}  # without a token; the page asks for it
_HEADERS = {
    "x-content-type-options": "nosniff",
    "x-frame-options": "DENY",
    "referrer-policy": "no-referrer",
    "cache-control": "no-store",
    "content-security-policy": "default-src 'none'; img-src 'self' blob: data:; style-src 'self'; "
    "script-src 'self'; connect-src 'self' data:; form-action 'none'; base-uri 'none'; frame-ancestors 'none'",
}
_DOCS_CSP = (
    "default-src 'self'; img-src 'self' data:; style-src 'self' 'unsafe-inline'; script-src 'self' 'unsafe-inline'; "
    + ("frame-ancestors 'none'")
)
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


class Busy(Exception):
    """So many requests wait that this one is not taken."""


class NoModel(Exception):
    """A model that is not served."""


class Away(Exception):
    """No generator answers: one has died, and its successor is not there yet."""


class NotYet(Exception):
    """A part of a model that its run has not made."""


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


@dataclass(frozen=True, slots=True)
class Door:
    """Who may come in, and with how much."""

    token: str = ""  # "" on loopback alone
    max_bytes: int = 32_000_000  # of a body
    timeout_s: float = 120.0
    retry_after_s: int = 2


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
    _add_errors(app)

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
        """Accept or reject a kept pair: the next round trains without those that are rejected."""
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


class Guard:
    """What holds for every request, before FastAPI sees it: a bounded body, the token, a request id, and headers."""

    def __init__(self, app: ASGIApp, door: Callable[[], Door]) -> None:
        self._app, self._door = app, door

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        door, request_id = self._door(), uuid.uuid4().hex
        scope.setdefault("state", {})["request_id"] = request_id
        headers = {name.lower(): value for name, value in scope["headers"]}

        async def told(message: Message) -> None:
            if message["type"] == "http.response.start":
                known = {name.lower() for name, _ in message["headers"]}
                ours = {**_HEADERS, "x-request-id": request_id}
                if scope["path"].startswith(_DOCS):
                    ours["content-security-policy"] = _DOCS_CSP
                message["headers"] += [
                    (k.encode(), v.encode()) for k, v in ours.items() if k.encode() not in known
                ]
            await send(message)

        if not _may_enter(scope["path"], headers.get(b"authorization", b""), door.token):
            answer = refusal(401, "give the token: Authorization: Bearer TOKEN", request_id)
            answer.headers["www-authenticate"] = "Bearer"
            await answer(scope, receive, told)
            return
        if not door.token and not _is_loopback(headers.get(b"host", b"")):
            await refusal(403, "without a token this service answers on loopback alone", request_id)(
                scope, receive, told
            )
            return
        length = headers.get(b"content-length", b"0")
        if not length.isdigit() or int(length) > door.max_bytes:
            await _too_large(door, request_id)(scope, receive, told)
            return
        taken = 0

        async def bounded() -> Message:
            nonlocal taken
            message = await receive()
            taken += len(message.get("body", b""))
            if taken > door.max_bytes:  # a body whose length was not told
                raise HTTPException(413, _TOO_LARGE.format(door.max_bytes))
            return message

        begun = False

        async def sent(message: Message) -> None:
            nonlocal begun
            begun = True
            await told(message)

        try:
            await self._app(scope, bounded, sent)
        except Exception as error:
            if begun:
                raise
            await _unexpected(error, request_id)(scope, receive, told)


_TOO_LARGE = "the body is larger than {} bytes"


def _too_large(door: Door, request_id: str) -> Response:
    return refusal(413, _TOO_LARGE.format(door.max_bytes), request_id)


def _is_loopback(host: bytes) -> bool:
    """By the name that was asked for: a page of another site that leads its name to this machine is no loopback."""
    name = host.decode("latin-1").rpartition(":")[0] or host.decode("latin-1")
    return name in ("127.0.0.1", "localhost", "[::1]", "testserver")


def _may_enter(path: str, authorization: bytes, token: str) -> bool:
    if not token or path in _OPEN or path.startswith(_DOCS):
        return True
    scheme, _, given = authorization.partition(b" ")
    return scheme.lower() == b"bearer" and hmac.compare_digest(given.strip(), token.encode())


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


def refusal(code: int, message: str, request_id: str, where: Sequence[str] = ()) -> JSONResponse:
    """The body of every error."""
    return JSONResponse({"error": message, "where": list(where), "request_id": request_id}, status_code=code)


def _add_errors(app: FastAPI) -> None:
    """Each kind of error as an answer; what nobody expected is logged, and told as no more than that."""

    def answer(code: int, message: str, request: Request, where: Sequence[str] = ()) -> JSONResponse:
        return refusal(code, message, request.scope["state"]["request_id"], where)

    @app.exception_handler(RequestValidationError)
    async def invalid(request: Request, error: RequestValidationError) -> Response:
        first = error.errors()[0]
        code = 400 if first["type"] == "json_invalid" else 422
        # what was given is not told again: it may be megabytes
        return answer(code, first["msg"], request, [str(part) for part in first["loc"]])

    @app.exception_handler(RequestError)
    async def unusable(request: Request, error: RequestError) -> Response:
        return answer(422, str(error), request)

    @app.exception_handler(NoModel)
    async def unknown(request: Request, error: NoModel) -> Response:
        return answer(404, "no such model: see /v1/models", request)

    @app.exception_handler(NotYet)
    async def not_yet(request: Request, error: NotYet) -> Response:
        return answer(409, str(error), request)

    @app.exception_handler(Busy)
    async def busy(request: Request, error: Busy) -> Response:
        out = answer(429, "too many requests wait", request)
        out.headers["retry-after"] = "2"
        return out

    @app.exception_handler(Away)
    async def away(request: Request, error: Away) -> Response:
        log.warning("request=%s no generator: %s", request.scope["state"]["request_id"], error.__cause__)
        out = answer(503, "no generator answers: ask again", request)
        out.headers["retry-after"] = "5"
        return out

    @app.exception_handler(TimeoutError)
    async def late(request: Request, error: TimeoutError) -> Response:
        out = answer(503, "the answer took too long", request)
        out.headers["retry-after"] = "10"
        return out

    @app.exception_handler(HTTPException)
    async def plain(request: Request, error: HTTPException) -> Response:
        return answer(error.status_code, str(error.detail), request)


def _unexpected(error: Exception, request_id: str) -> Response:
    """What nobody foresaw is logged, and told as no more than that."""
    log.error("request=%s failed", request_id, exc_info=error)
    if not isinstance(error, CdiffError):
        return refusal(500, "something went wrong", request_id)
    out = refusal(503, "the service cannot do this now", request_id)
    out.headers["retry-after"] = "30"
    return out


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
