"""The service's door: who comes in, with how much, and how errors are told.

    request -> Guard (token, size, request id, headers) -> the application

Errors have a generic body with a request id; what went wrong inside stands in the log under the same id.
"""

from __future__ import annotations

import hmac
import ipaddress
import logging
import uuid
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass

from fastapi import FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from cdiff.errors import CdiffError, RequestError

log = logging.getLogger(__name__)
_LOOPBACK = ("127.0.0.1", "localhost", "[::1]")
_DOCS = ("/docs", "/openapi.json", "/static-offline-docs/")  # of the API; what it says is no secret
_OPEN = {"/", "/page.css", "/page.js", "/healthz", "/readyz"}  # without a token; the page asks for it
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


class Busy(Exception):
    """So many requests wait that this one is not taken."""


class NoModel(Exception):
    """A model that is not served."""


class Away(Exception):
    """No generator answers: one has died, and its successor is not there yet."""


class NotYet(Exception):
    """A part of a model that its run has not made."""


# What passes by itself: code, message, and when to ask again.
_AGAIN: dict[type[Exception], tuple[int, str, int]] = {
    Busy: (429, "too many requests wait", 2),
    Away: (503, "no generator answers: ask again", 5),
    TimeoutError: (503, "the answer took too long", 10),
}


@dataclass(frozen=True, slots=True)
class Door:
    """Who may come in, and with how much."""

    token: str = ""  # "" on loopback alone
    max_bytes: int = 32_000_000  # of a body
    # of all bodies that are held at once: a request keeps its own while it waits
    most_bytes: int = 1_000_000_000
    timeout_s: float = 120.0


class Guard:
    """What holds for every request, before FastAPI sees it: a bounded body, the token, a request id, and headers."""

    def __init__(self, app: ASGIApp, door: Callable[[], Door]) -> None:
        self._app, self._door = app, door
        self._held = 0  # bytes of bodies

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        door, request_id = self._door(), uuid.uuid4().hex
        scope.setdefault("state", {})["request_id"] = request_id
        headers = {name.lower(): value for name, value in scope["headers"]}
        # beside other applications a service has a route_prefix, which Serve leaves in the path
        path = scope["path"].removeprefix(scope.get("root_path", "").rstrip("/")) or "/"

        async def told(message: Message) -> None:
            if message["type"] == "http.response.start":
                known = {name.lower() for name, _ in message["headers"]}
                ours = {**_HEADERS, "x-request-id": request_id}
                if path.startswith(_DOCS):
                    ours["content-security-policy"] = _DOCS_CSP
                message["headers"] += [
                    (k.encode(), v.encode()) for k, v in ours.items() if k.encode() not in known
                ]
            await send(message)

        if not _may_enter(path, headers.get(b"authorization", b""), door.token):
            answer = refusal(401, "give the token: Authorization: Bearer TOKEN", request_id)
            answer.headers["www-authenticate"] = "Bearer"
            await answer(scope, receive, told)
            return
        if not door.token and not (_is_near(scope) and _is_loopback(headers.get(b"host", b""))):
            await refusal(403, "without a token this service answers on loopback alone", request_id)(
                scope, receive, told
            )
            return
        length = headers.get(b"content-length", b"0")
        if not length.isdigit() or int(length) > door.max_bytes:
            await _too_large(door, request_id)(scope, receive, told)
            return
        if _is_open(path) and (int(length) or b"transfer-encoding" in headers):
            await refusal(400, "no body is taken here", request_id)(scope, receive, told)
            return
        if self._held + int(length) > door.most_bytes:
            await _full(request_id)(scope, receive, told)
            return
        taken = 0

        async def bounded() -> Message:
            nonlocal taken
            message = await receive()
            new = len(message.get("body", b""))
            taken += new
            self._held += new
            if new and self._held > door.most_bytes:
                # no other error: FastAPI would take it for a body that is no JSON
                code, words, seconds = _AGAIN[Busy]
                raise HTTPException(code, words, {"retry-after": str(seconds)})
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
        finally:
            self._held -= taken


def _full(request_id: str) -> Response:
    """As where too many requests wait."""
    code, message, seconds = _AGAIN[Busy]
    out = refusal(code, message, request_id)
    out.headers["retry-after"] = str(seconds)
    return out


_TOO_LARGE = "the body is larger than {} bytes"


def _too_large(door: Door, request_id: str) -> Response:
    return refusal(413, _TOO_LARGE.format(door.max_bytes), request_id)


def _is_loopback(host: bytes) -> bool:
    """By the name that was asked for: a page of another site that leads its name to this machine is no loopback."""
    name = host.decode("latin-1")
    return (name.rpartition(":")[0] if name.rpartition(":")[2].isdigit() else name) in _LOOPBACK


def _is_near(scope: Scope) -> bool:
    """By the address of whoever asks: anybody can write a name into the header."""
    try:
        address = ipaddress.ip_address((scope.get("client") or ("",))[0])
        return (getattr(address, "ipv4_mapped", None) or address).is_loopback
    except ValueError:
        return False


def _is_open(path: str) -> bool:
    return path in _OPEN or path.startswith(_DOCS)


def _may_enter(path: str, authorization: bytes, token: str) -> bool:
    if not token or _is_open(path):
        return True
    scheme, _, given = authorization.partition(b" ")
    return scheme.lower() == b"bearer" and hmac.compare_digest(given.strip(), token.encode())


def refusal(code: int, message: str, request_id: str, where: Sequence[str] = ()) -> JSONResponse:
    """The body of every error."""
    return JSONResponse({"error": message, "where": list(where), "request_id": request_id}, status_code=code)


def add_errors(app: FastAPI) -> None:
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

    for kind, (code, message, seconds) in _AGAIN.items():
        app.add_exception_handler(kind, _again(code, message, seconds))

    @app.exception_handler(HTTPException)
    async def plain(request: Request, error: HTTPException) -> Response:
        out = answer(error.status_code, str(error.detail), request)
        out.headers.update(error.headers or {})
        return out


def _again(code: int, message: str, seconds: int) -> Callable[[Request, Exception], Awaitable[Response]]:
    async def handler(request: Request, error: Exception) -> Response:
        request_id = request.scope["state"]["request_id"]
        log.warning("request=%s %s: %s", request_id, message, error.__cause__ or type(error).__name__)
        out = refusal(code, message, request_id)
        out.headers["retry-after"] = str(seconds)
        return out

    return handler


def _unexpected(error: Exception, request_id: str) -> Response:
    """What nobody foresaw is logged, and told as no more than that."""
    log.error("request=%s failed", request_id, exc_info=error)
    if not isinstance(error, CdiffError):
        return refusal(500, "something went wrong", request_id)
    out = refusal(503, "the service cannot do this now", request_id)
    out.headers["retry-after"] = "30"
    return out
