"""What so many pairs cost at each step that the driver and the coordinator do: time, peak memory, bytes. Called by `jobs/scale.py`, for each
size in a process of its own. CPU seconds stand beside those of the clock: other programs on the machine lengthen the latter alone.

    plan       the coordinator's plan of one round              hash       task_id of every task
    json       carriers to JSON text and back                   rank       slices of as many outcomes
    judge      the gate's verdicts on one round                 write      shards and their COMMIT, tiny pictures
    resume     which shards are committed, as a restart asks    commit     the round's event
    replay     the ledger opened anew                           read       attempts of all shards
    pairs      the round's pairs, shards read before            kept       what is trained on, as each round begins
    verdicts   whether people said something of pairs
"""

from __future__ import annotations

import itertools
import json
import signal
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psutil
import ray

from cdiff.config_file import dump_config
from cdiff.data.carriers import from_json, to_json
from cdiff.data.ledger import Ledger
from cdiff.data.store import Run, create_run, read_attempts, shard_committed, write_shard
from cdiff.types import Assignment, Attempt, Decision, Pair, RoundResult
from cdiff.wasm.budget import quotas
from cdiff.wasm.quality import counts, judge
from cdiff.wasm.weakness import false_positives, rank
from jobs.scale_world import World, with_pictures

STEPS = (
    "plan",
    "hash",
    "json",
    "rank",
    "judge",
    "write",
    "resume",
    "commit",
    "replay",
    "read",
    "pairs",
    "kept",
    "verdicts",
)
_SAMPLING = 0.05  # seconds between two looks at the memory
Tell = Callable[[str, dict[str, Any]], None]


class OverLimit(Exception):
    """A step took more CPU time than it may."""


class Splits:
    """No photo is divided here; a run wants to know of which split it is."""

    hash = "scale"
    photos = ""


class Steps:
    """The steps at one size; each result is told as it comes.

    Args:
        home: where the demo data lie and the run is made. limit: CPU seconds that a step may take.
        wanted: steps that are measured; what they need is made, measured or not. overrides: settings, as of `World`.
    """

    def __init__(
        self,
        home: Path,
        pairs: int,
        limit: float,
        wanted: Sequence[str],
        tell: Tell,
        overrides: Sequence[str] = (),
    ) -> None:
        self.pairs, self.limit, self.wanted, self.tell = pairs, limit, wanted, tell
        self.world = World(home, pairs, overrides)
        self.run: Run = create_run(home, f"scale-{pairs}", dump_config(self.world.config), Splits())

    def all(self) -> None:
        """Every wanted step, in the order of a round and then of a restart."""
        pairs = self._round()
        if set(self.wanted) & set(STEPS[STEPS.index("write") :]):
            self._stored(pairs)
            names = list(dict.fromkeys(pair.attempt.shard for pair in pairs))
            self.step("resume", lambda: sum(shard_committed(self.run, name) for name in names))
            self._commit(pairs)
            del pairs  # a restart has none of them
            self._restart(names)

    def _round(self) -> list[Pair]:
        """Plan and judge; the plan itself is gone afterwards."""
        plan = self.step("plan", self.world.plan, _of_plan) or self.world.plan(quick=True)
        self.step("hash", lambda: [assignment.task_id for assignment in plan])
        self.step("json", lambda: _there_and_back(plan), lambda found: found)
        self._rank()
        return self._judge(list(self.world.attempts(plan)))

    def _stored(self, pairs: list[Pair]) -> None:
        write = lambda: _write(self.run, [pair.attempt for pair in pairs])  # noqa: E731
        self.step("write", write, lambda found: found)

    def step(
        self, name: str, work: Callable[[], Any], also: Callable[[Any], dict[str, Any]] | None = None
    ) -> Any:
        """The result of a step, measured; None where it isn't wanted or took longer than it may.

        Args:
            also: what else is told of the result; it isn't timed.
        """
        if name not in self.wanted:
            return None
        memory = Memory()
        began, used = time.perf_counter(), time.process_time()
        try:
            with memory, limited(self.limit):
                result = work()
        except OverLimit:
            spent = {"stopped_after_s": time.perf_counter() - began, "cpu_s": time.process_time() - used}
            self.tell(name, {key: round(value, 1) for key, value in spent.items()})
            return None
        taken, used = time.perf_counter() - began, time.process_time() - used
        told = {"seconds": round(taken, 4), "cpu_s": round(used, 4)}
        told |= {"us_per_pair": round(1e6 * taken / self.pairs, 2)}
        told |= {"grown_mb": round(memory.grown / 1e6, 1), "peak_rss_mb": round(memory.peak / 1e6, 1)}
        self.tell(name, told | (also(result) if also else {}))
        return result

    def _rank(self) -> None:
        outcomes = self.world.outcomes(self.pairs) if "rank" in self.wanted else []
        least = self.world.config.wasm.min_targets
        self.step("rank", lambda: rank(outcomes, least), lambda found: {"slices": len(found)})

    def _judge(self, attempts: list[Attempt]) -> list[Pair]:
        world = self.world
        wanted = quotas(world.config, world.known.weaknesses)
        work = lambda: judge(attempts, wanted, world.coordinator.thresholds, world.config, last=True)  # noqa: E731
        found: list[Pair] | None = self.step("judge", work, _of_pairs)
        return found or [Pair(attempt, "") for attempt in attempts]

    def _commit(self, pairs: list[Pair]) -> None:
        """The round's event; a restart needs it, so that it is written, measured or not."""
        ledger, result = Ledger(self.run), _result(self.world, pairs)
        self.step("commit", lambda: ledger.commit_round(result, pairs))
        if not ledger.rounds():
            ledger.commit_round(result, pairs)
        ledger.close()

    def _restart(self, names: Sequence[str]) -> None:
        """What a restart and a next round ask of the ledger."""
        size = self.run.storage.size("ledger.jsonl") or 0
        about = {"bytes_per_pair": round(size / self.pairs, 2)}
        ledger = self.step("replay", lambda: Ledger(self.run), lambda _: about) or Ledger(self.run)
        shards: dict[str, dict[str, Attempt]] = {}

        def read() -> int:
            for name in names:
                shards[name] = {attempt.task_id: attempt for attempt in read_attempts(self.run, name)}
            return len(shards)

        if self.step("read", read):
            ledger = Ledger(self.run, shards=shards)
            self.step("pairs", lambda: len(ledger.pairs(1)))
            self.step("kept", lambda: len(ledger.kept_pairs()))
        self.step("verdicts", ledger.fold_verdicts)


class Memory:
    """The resident memory of this process during a block, bytes: its `peak`, and by how much it had `grown` there.

    What earlier steps freed is used again before the process grows: the peak says what a machine needs.
    """

    def __init__(self) -> None:
        self._process, self._over = psutil.Process(), threading.Event()
        self._before = self.peak = 0

    def __enter__(self) -> Memory:
        self._before = self.peak = self._process.memory_info().rss
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join()
        self.peak = max(self.peak, self._process.memory_info().rss)

    @property
    def grown(self) -> int:
        return self.peak - self._before

    def _watch(self) -> None:
        while not self._over.wait(_SAMPLING):
            self.peak = max(self.peak, self._process.memory_info().rss)


@contextmanager
def limited(seconds: float) -> Iterator[None]:
    """OverLimit, in the main thread, for a block that takes more CPU time: what others do on the machine does not count."""

    def over(*_: object) -> None:
        raise OverLimit

    before = signal.signal(signal.SIGPROF, over)
    signal.setitimer(signal.ITIMER_PROF, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
        signal.signal(signal.SIGPROF, before)


def _of_plan(plan: Sequence[Assignment]) -> dict[str, Any]:
    """What a plan weighs as it travels from the coordinator to the driver."""
    return {"tasks": len(plan), "bytes_per_pair": round(len(ray.cloudpickle.dumps(plan)) / len(plan), 1)}


def _of_pairs(pairs: Sequence[Pair]) -> dict[str, Any]:
    reasons: dict[str, int] = {}
    for pair in pairs:
        reasons[pair.reason or "kept"] = reasons.get(pair.reason or "kept", 0) + 1
    return {"verdicts": dict(sorted(reasons.items()))}


def _there_and_back(plan: Sequence[Assignment]) -> dict[str, Any]:
    began = time.perf_counter()
    texts = [json.dumps(to_json(assignment)) for assignment in plan]
    written = time.perf_counter()
    again = [from_json(Assignment, json.loads(text)) for text in texts]
    read = time.perf_counter()
    assert len(again) == len(plan)
    return {
        "to_us_per_pair": round(1e6 * (written - began) / len(plan), 2),
        "from_us_per_pair": round(1e6 * (read - written) / len(plan), 2),
        "bytes_per_pair": round(sum(map(len, texts)) / len(plan), 1),
    }


def _write(run: Run, attempts: Sequence[Attempt]) -> dict[str, Any]:
    """Write all shards; bytes on disk, those of pictures and all others apart."""
    pictures = shards = on_disk = 0
    for name, rows in itertools.groupby(with_pictures(iter(attempts)), lambda row: row.attempt.shard):
        shard = list(rows)
        write_shard(run, name, shard)
        pictures += sum(len(picture) for row in shard for picture in _pictures(row))
        on_disk += sum(run.storage.size(key) or 0 for key in (name, f"{name}.COMMIT"))
        shards += 1
    return {
        "shards": shards,
        "files": 2 * shards,
        "picture_bytes_per_pair": round(pictures / len(attempts), 1),
        "metadata_bytes_per_pair": round((on_disk - pictures) / len(attempts), 1),
    }


def _pictures(row: Any) -> tuple[bytes, ...]:
    return row.image_png, row.mask_png, row.crop_png, row.reference_png, row.region_png


def _result(world: World, pairs: Sequence[Pair]) -> RoundResult:
    decision = Decision(True, "not significantly worse", 0.0, -0.1, 0.1, 0.5)
    scores: Mapping[str, float] = {"pixel_ap": 0.5}
    return RoundResult(
        round=1,
        weaknesses=world.known.weaknesses,
        alarms=tuple(false_positives(world.outcomes(len(world.targets)))),
        kept=sum(pair.kept for pair in pairs),
        counts=counts(pairs),
        candidate="4" * 16,
        validation=tuple(scores.items()),
        decision=decision,
        seconds=(),
    )
