"""Requests made up from the OpenAPI document: whatever is sent, the service answers, and never with a 5xx."""

from __future__ import annotations

from typing import Any

import hypothesis
import pytest
import schemathesis

from actors import web
from actors.door import Door

TOKEN = "a-token-of-some-length"
QUIET = hypothesis.settings(
    max_examples=40,
    deadline=None,
    derandomize=True,
    database=None,
    suppress_health_check=list(hypothesis.HealthCheck),
)


def _codes(operation: Any, headers: dict[str, str]) -> set[int]:
    """Codes of the answers to made-up requests of one operation; an assertion fails on a 5xx."""
    seen: set[int] = set()

    @QUIET
    @hypothesis.given(case=operation.as_strategy())
    def send(case: Any) -> None:
        answer = case.call(headers=headers)
        seen.add(answer.status_code)
        assert answer.status_code < 500, (case.body, answer.text)

    send()
    return seen


@pytest.mark.slow
def test_no_made_up_request_breaks_the_service(backend) -> None:
    headers = {"authorization": f"Bearer {TOKEN}"}
    app = web.build_app(lambda: backend, lambda: Door(token=TOKEN, max_bytes=1_000_000))
    schema = schemathesis.openapi.from_asgi("/openapi.json", app, headers=headers)
    found: list[Any] = list(schema.get_all_operations())
    operations = [one.ok() for one in found]
    codes = {operation.label: _codes(operation, headers) for operation in operations}
    assert codes.keys() >= {"POST /v1/pairs", "POST /v1/masks", "POST /v1/segment", "GET /v1/types"}
    assert 200 in codes["GET /v1/types"] and 422 in codes["POST /v1/pairs"]
