"""What the service costs against the bare sampler, and what it does under too much load; called by `jobs/benchmark.py serve`.

    offline     pairs per second of `Studio.make` in this process, at the best of several batch sizes, before anything is served; and at that size once
                more afterwards, since machines drift: the mean of both counts
    saturated   as many clients at once as fill two batches, a bounded number of requests of one pair each: pairs per second while all clients are at
                work (from the first answer of the last client to begin to the last of the first to end), latencies, and how many answers are not
                the bytes that the bare sampler makes of the same request
    overload    many more clients than may wait: how many requests are shed (429), and that the others are answered

Everything runs on one machine, over loopback, with the threads that the run's configuration gives an actor.
"""

from __future__ import annotations

import argparse
import base64
import http.client
import json
import os
import secrets
import time
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tqdm import tqdm

from cdiff.data.photos import photos_of
from cdiff.data.run import find_run
from cdiff.errors import ConfigError
from cdiff.service.requests import PairRequest
from cdiff.service.studio import Studio
from jobs.serve import serving

BATCHES = (1, 2, 4, 8, 16)
_PORT = 18742
_SAMPLE = 96  # requests by which a batch size of the bare sampler is timed


@dataclass(frozen=True, slots=True)
class Answer:
    """What came back to one request."""

    code: int
    seconds: float
    image: bytes
    after: str  # Retry-After
    at: float  # when it came, seconds


def add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--run", required=True, help="the run whose generator is served")
    parser.add_argument("--out", type=Path, required=True, help="JSON file to write")
    parser.add_argument("--requests", type=int, default=240, help="of one pair each, at saturation")


def run(arguments: Sequence[str], name: str, requests: int) -> tuple[dict[str, Any], str]:
    """One object and one line for a person.

    Args:
        arguments: `--data` (repeated), `--groups` and `--home`, as of jobs/loop.py. name: of the run.
    """
    parser = argparse.ArgumentParser()
    parser.add_argument("--data", action="append", required=True)
    parser.add_argument("--groups")
    parser.add_argument("--home")
    args = parser.parse_args(list(arguments))
    found = find_run(name, args.home)
    (photos,) = photos_of([found], args.data, args.groups)
    studio = Studio(found, photos)
    torch.set_num_threads(studio.config.resources.threads)
    clients = 2 * studio.config.sampling.micro_batch
    if requests < 4 * clients:
        raise ConfigError(
            f"--requests {requests} are too few for {clients} clients at once (two batches of sampling.micro_batch): at least {4 * clients}."
        )
    wanted = _wanted(studio, requests)
    expected, offline = _offline(studio, wanted)
    size = max(offline, key=lambda size: offline[size])
    os.environ["CDIFF_TOKEN"] = token = secrets.token_hex(16)
    options = {"run": [name], "data": args.data, "groups": args.groups, "home": args.home, "max_queued": 24}
    with serving(options, "127.0.0.1", _PORT):
        _crowd(wanted[:clients], clients, token)  # the first call loads the model
        answers = _crowd(wanted, clients, token)
        crowd = _crowd(wanted, 8 * clients, token)
    again, _ = _rate(studio, wanted[:_SAMPLE], size)
    best = (offline[size] + again) / 2
    right = [answer for answer in answers if answer.code == 200]
    wrong = sum(
        answer.image != own for answer, own in zip(answers, expected, strict=True) if answer.code == 200
    )
    wrong += sum(
        answer.image != own for answer, own in zip(crowd, expected, strict=True) if answer.code == 200
    )
    rate, times = saturated(sorted(a.at for a in right), clients), [1000 * answer.seconds for answer in right]
    result = {
        "offline_pairs_per_s": {str(size): round(value, 3) for size, value in offline.items()},
        "offline_again_pairs_per_s": round(again, 3),
        "served_pairs_per_s": round(rate, 3),
        "throughput_ratio": round(rate / best, 3),
        "clients": clients,
        "p50_ms": round(float(np.percentile(times, 50)), 1),
        "p99_ms": round(float(np.percentile(times, 99)), 1),
        "completed": len(right),
        "codes": _codes(answers),
        "wrong": wrong,
        "overload": {
            "clients": 8 * clients,
            "codes": _codes(crowd),
            "shed": sum(answer.code == 429 for answer in crowd),
            "completed": sum(answer.code == 200 for answer in crowd),
            "all_shed_say_when": all(answer.after for answer in crowd if answer.code == 429),
        },
        "shed": sum(answer.code == 429 for answer in crowd),
    }
    return (
        result,
        f"served {rate:.2f} pairs/s, {rate / best:.2f} of the bare sampler's best; {wrong} wrong answers",
    )


def _wanted(studio: Studio, count: int) -> list[dict[str, Any]]:
    """Requests of one pair each, over all types and many seeds."""
    types = list(studio.types)
    chosen = [types[number % len(types)] for number in range(count)]
    return [{"category": c, "type": t, "seed": number} for number, (c, t) in enumerate(chosen)]


def _offline(studio: Studio, wanted: Sequence[dict[str, Any]]) -> tuple[list[bytes], dict[int, float]]:
    """The image that each request comes to, and pairs per second by batch size, planning included."""
    micro = studio.config.sampling.micro_batch
    rates: dict[int, float] = {}
    images: list[bytes] = []
    for size in tqdm(sorted({*BATCHES, micro}), desc="bare sampler", unit="batch size"):
        rates[size], found = _rate(studio, wanted if size == micro else wanted[:_SAMPLE], size)
        images = found if size == micro else images
    return images, rates


def _rate(studio: Studio, wanted: Sequence[dict[str, Any]], size: int) -> tuple[float, list[bytes]]:
    """Pairs per second at a batch size, and the images."""
    own = studio.with_batches_of(size)
    own.generator.denoiser.forget_recordings()
    own.make(own.tickets(PairRequest.model_validate(wanted[0])))  # warm
    began, images = time.perf_counter(), []
    for first in range(0, len(wanted), size):
        part = [PairRequest.model_validate(fields) for fields in wanted[first : first + size]]
        made = own.make([ticket for request in part for ticket in own.tickets(request)])
        images += [row.image_png for row in made]
    return len(images) / (time.perf_counter() - began), images


def saturated(at: Sequence[float], clients: int) -> float:
    """Answers per second between the first and the last moment at which all clients wait for one.

    Args:
        at: when answers came, ascending.
    """
    inner = at[clients - 1 : len(at) - clients + 1]
    return (len(inner) - 1) / (inner[-1] - inner[0])


def _crowd(wanted: Sequence[dict[str, Any]], clients: int, token: str) -> list[Answer]:
    with ThreadPoolExecutor(clients) as crowd:
        return list(crowd.map(lambda fields: _ask(fields, token), wanted))


def _ask(fields: dict[str, Any], token: str) -> Answer:
    connection = http.client.HTTPConnection("127.0.0.1", _PORT, timeout=300)
    began = time.perf_counter()
    headers = {"authorization": f"Bearer {token}", "content-type": "application/json"}
    connection.request("POST", "/v1/pairs", json.dumps(fields), headers)
    answer = connection.getresponse()
    body = answer.read()
    took = time.perf_counter() - began
    connection.close()
    image = base64.b64decode(json.loads(body)["pairs"][0]["image"]) if answer.status == 200 else b""
    return Answer(answer.status, took, image, answer.getheader("retry-after") or "", time.perf_counter())


def _codes(answers: Sequence[Answer]) -> dict[str, int]:
    return {str(code): count for code, count in sorted(Counter(a.code for a in answers).items())}
