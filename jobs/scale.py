"""What pairs cost in metadata, memory and time, and how many calls a driver hands out; called by `jobs/benchmark.py scale`.

    pairs       every step of planner, gate, store and ledger at each size (jobs.scale_steps), in a process of its own
    exponents   slope of log CPU seconds over log pairs: 1 is linear, 2 quadratic
    dispatch    the actor group with ever more workers (jobs.scale_dispatch)

A step that takes longer than the limit is given up, and the file says so. What is measured is kept beside the file until all is: the same
command at the same commit goes on.
"""

from __future__ import annotations

import argparse
import functools
import json
import multiprocessing
import shutil
from collections.abc import Callable, Mapping, Sequence
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import ray

from actors.resources import connect
from cdiff.data.run import home_folder, home_of
from cdiff.errors import RunError
from jobs import scale_dispatch
from jobs.scale_steps import STEPS, Steps

IN_PROCESS = (64, 256, 1024, 4096)
_TELLING = 0.01  # CPU seconds; of less, what else the process did is a part
Found = dict[str, Any]


def add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--pairs", type=int, nargs="*", default=[10_000, 100_000, 1_000_000], help="sizes")
    parser.add_argument("--steps", nargs="+", choices=STEPS, default=list(STEPS), help="of each size")
    parser.add_argument(
        "--limit", type=float, default=3600.0, help="CPU seconds after which a step is given up"
    )
    parser.add_argument("--workers", type=int, nargs="*", default=[1, 4, 16, 64], help="real actors")
    parser.add_argument(
        "--in-process", type=int, nargs="*", default=list(IN_PROCESS), help="workers that are futures"
    )
    parser.add_argument(
        "--service", type=float, nargs="+", default=[0.01, 0.1, 1.0], help="seconds of a call"
    )
    parser.add_argument("--seconds", type=float, default=5.0, help="length of each dispatch measurement")
    parser.add_argument("--before", type=Path, help="file of an earlier commit, to stand beside this one")
    parser.add_argument("--out", type=Path, required=True, help="JSON file to write")


def run(arguments: Sequence[str], args: argparse.Namespace, about: Found) -> tuple[Found, str]:
    """One object and one line for a person.

    Args:
        arguments: `--home`, as of jobs/loop.py. args: as `add_options` says. about: how it is measured (jobs.measured.how_measured).
    Raises:
        RunError: a process ended before it had told everything.
    """
    parser = argparse.ArgumentParser()
    parser.add_argument("--home")
    home = home_folder(home_of(parser.parse_args(list(arguments)).home))
    kept = Kept(args.out, about)
    sizes: dict[str, Found] = {}
    for pairs in args.pairs:
        wanted = [step for step in args.steps if step not in kept.of(f"{pairs}")]
        if wanted:
            _measured(home, pairs, args.limit, wanted, functools.partial(kept.tell, str(pairs)))
        sizes[str(pairs)] = kept.of(str(pairs))
    result: Found = {"pairs": sizes, "exponents": exponents(sizes)}
    result["dispatch"] = _dispatch(args, kept)
    if args.before:
        result["before"] = json.loads(args.before.read_text(encoding="utf-8"))
    kept.forget()
    return result, _line(result)


class Kept:
    """What was measured so far, in a file beside the result's; that of another commit does not count."""

    def __init__(self, out: Path, about: Found) -> None:
        self._path = out.with_suffix(".partial.json")
        self._told: Found = {"commit": about["commit"], "found": {}}
        if self._path.exists():
            told = json.loads(self._path.read_text(encoding="utf-8"))
            self._told = told if told["commit"] == about["commit"] else self._told

    def of(self, section: str) -> Found:
        """The results of a section by name."""
        found: Found = self._told["found"].setdefault(section, {})
        return found

    def tell(self, section: str, name: str, result: Any) -> None:
        """Keep one result."""
        self.of(section)[name] = result
        print(f"{section:>8s}  {name:10s} {json.dumps(result)}", flush=True)
        self._path.parent.mkdir(parents=True, exist_ok=True)
        self._path.write_text(json.dumps(self._told), encoding="utf-8")

    def forget(self) -> None:
        """All of it stands in the result."""
        self._path.unlink(missing_ok=True)


def exponents(sizes: Mapping[str, Found]) -> dict[str, float]:
    """How the time of each step grows with the pairs, over the sizes at which it ended and took long enough to tell; steps of two or more."""
    out = {}
    for step in STEPS:
        ended = [
            (int(n), told[step]["cpu_s"]) for n, told in sizes.items() if "seconds" in told.get(step, {})
        ]
        points = [point for point in ended if point[1] >= _TELLING]
        if len(points) > 1:
            pairs, seconds = np.log(np.array(points, dtype=float)).T
            out[step] = round(float(np.polyfit(pairs, seconds, 1)[0]), 3)
    return out


def _measured(
    home: Path, pairs: int, limit: float, wanted: Sequence[str], tell: Callable[[str, Found], None]
) -> None:
    """The steps at one size, in a fresh process: what one size leaves in memory does not count for the next."""
    shutil.rmtree(home / "runs" / f"scale-{pairs}", ignore_errors=True)
    context = multiprocessing.get_context("spawn")
    here, there = context.Pipe(duplex=False)
    process = context.Process(target=_child, args=(home, pairs, limit, list(wanted), there))
    process.start()
    there.close()
    try:
        while True:
            tell(*here.recv())
    except EOFError:
        process.join()
    finally:
        process.kill()
        shutil.rmtree(home / "runs" / f"scale-{pairs}", ignore_errors=True)
    if process.exitcode:
        raise RunError(
            f"the process of {pairs} pairs ended with {process.exitcode} (-9: memory ran out). Free memory, or give fewer --pairs."
        )


def _child(home: Path, pairs: int, limit: float, wanted: list[str], connection: Connection) -> None:
    steps = Steps(home, pairs, limit, wanted, lambda step, told: connection.send((step, told)))
    connection.send(("start_rss_mb", round(psutil.Process().memory_info().rss / 1e6, 1)))
    steps.all()


def _dispatch(args: argparse.Namespace, kept: Kept) -> dict[str, list[Found]]:
    real, futures = kept.of("real"), kept.of("in process")
    for count in args.workers:
        if str(count) not in real:
            connect()
            try:
                kept.tell("real", str(count), scale_dispatch.real(count, args.service, args.seconds))
            finally:
                ray.shutdown()
    served = _served(real)
    for count in args.in_process:
        if str(count) not in futures:
            points = [(service, served.get(service, service)) for service in args.service]
            kept.tell("in process", str(count), scale_dispatch.in_process(count, points, args.seconds))
    return {
        "real": [point for count in args.workers for point in real[str(count)]],
        "in_process": [point for count in args.in_process for point in futures[str(count)]],
    }


def _served(real: Mapping[str, list[Found]]) -> dict[float, float]:
    """What a call took in the smallest real group, by the service time that was asked for: nobody disturbs anybody there."""
    smallest = min(real, key=int, default=None)
    return {} if smallest is None else {point["service_s"]: point["served_s"] for point in real[smallest]}


def _line(result: Found) -> str:
    told = []
    if result["exponents"]:
        step = max(result["exponents"], key=lambda name: result["exponents"][name])
        told.append(f"{step} grows fastest, with pairs to the power of {result['exponents'][step]:.2f}")
    points = result["dispatch"]["real"] + result["dispatch"]["in_process"]
    if points:
        told.append(f"at most {max(point['calls_per_s'] for point in points):.0f} calls/s are handed out")
    return "; ".join(told) or "nothing was asked for"
