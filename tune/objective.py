"""What one trial measures: pairs made at a point, gated, a short further fit of the base, and what that gains.

    point -> [plan, generate, judge: the loop's own actors] -> kept pairs -> [fit from the base, in the trial's process] -> half A of validation

    gain   mean over the targets of half A of soft Dice, less that of ONE control: the same fit on real photos alone
    rungs  growing budgets of pairs and steps: each is reported, so that a scheduler stops poor points early

Common random numbers: all trials have the same backgrounds, references, seeds and real batches, and their pairs in the same order; only the point differs. Half A
alone is looked at: half B confirms, and the test split is not touched. What a rung measured is stored in the run (TRIALS), and never measured again.
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import ray

from actors.borrowing import answers
from actors.downstream import Downstream, Evaluation, FitRequest
from cdiff.config import Config
from cdiff.config_file import overridden
from cdiff.data.dataset import Dataset
from cdiff.data.manifest import Manifest
from cdiff.data.run import Run, decisive
from cdiff.errors import ConfigError
from cdiff.types import Assignment, Attempt, Knowledge, Pair, Revisions, content_hash
from cdiff.wasm.quality import INVALID, STOPPED
from tune.space import Point, applied

TRIALS = "trials"  # RUN/trials/KEY/RUNG.json; end.json beside them where nothing more is to come
_ROUND = 0  # of the plans of trials: no round of the loop has it


@dataclass(frozen=True, slots=True)
class Rung:
    """One budget of a trial."""

    pairs: int
    steps: int


@dataclass(frozen=True)
class Bench:
    """What all trials of a sweep share; crosses to them. Actors are looked up by name: handles would not outlive a driver."""

    run: Run
    config: Config
    known: Knowledge
    revisions: Revisions
    base: str  # revision of the model of real photos that every fit goes on from
    seed: int
    train: tuple[str, ...]
    photos: tuple[str, ...]  # of half A, with targets
    targets: tuple[str, ...]  # theirs, for fidelity
    rungs: tuple[Rung, ...]
    control: tuple[Mapping[str, float], ...]  # by rung: soft Dice by target of the fit on real photos alone
    generators: tuple[str, ...] = ()  # names of actors, once they are lent
    coordinator: str = ""
    extractor: str = ""

    def key(self, point: Point) -> str:
        """Name of a point's measurements: equal where everything that decides them is."""
        told = [self.revisions, self.base, self.seed, self.photos, self.rungs, self.known]
        return content_hash([decisive(self.config), told, sorted(point.items())])


def rungs(pairs: int, steps: int, count: int, factor: int) -> tuple[Rung, ...]:
    """Budgets that grow by a factor, the last one whole.

    Raises:
        ConfigError: the first would be empty.
    """
    shares = [factor ** -(count - 1 - number) for number in range(count)]
    out = tuple(Rung(round(pairs * share), round(steps * share)) for share in shares)
    if out[0].pairs < 1 or out[0].steps < 1:
        raise ConfigError(
            f"{count} rungs of {pairs} pairs and {steps} steps begin with {out[0].pairs} and {out[0].steps}: fewer rungs, or a larger budget."
        )
    return out


def halves(dataset: Dataset, manifest: Manifest, seed: int) -> tuple[list[str], list[str]]:
    """The validation photos with targets in two halves, by source object and alike in types: A chooses, B confirms.

    Raises:
        ConfigError: there are fewer than four objects with targets: one alone has no interval.
    """
    objects: dict[str, list[str]] = {}
    for sample_id in manifest.ids("validation"):
        sample = dataset.sample(sample_id)
        if not sample.is_normal:
            objects.setdefault(sample.group, []).append(sample_id)
    if len(objects) < 4:
        raise ConfigError(
            f"a sweep needs validation photos with targets of four source objects, here are {len(objects)}: half of them chooses, the other "
            "confirms. Raise data.validation_share."
        )
    order = list(objects)
    np.random.default_rng([seed, 17]).shuffle(order)
    order.sort(key=lambda group: sorted(t for i in objects[group] for t in dataset.sample(i).types))
    parts = ([i for group in order[side::2] for i in objects[group]] for side in (0, 1))
    first, second = (sorted(part) for part in parts)
    return first, second


def soft_dice(evaluation: Evaluation) -> dict[str, float]:
    """By target."""
    return {row.target_id: row.soft_dice for row in evaluation.outcomes if row.type}


def at_point(config: Config, point: Point, pairs: int) -> Config:
    """The configuration of a trial: its point, its budget; no hard negatives, and nothing learned of start strengths."""
    plain = [f"wasm.pairs={pairs}", "wasm.start_strengths=[]", "wasm.negatives=0"]
    return overridden(applied(config, point), plain)


class Trial:
    """One point's measurements, rung by rung. Made in the process of the trial.

    Args:
        dataset: the photos of the run.
    """

    def __init__(self, bench: Bench, dataset: Dataset, point: Point) -> None:
        self.bench, self.point = bench, point
        self.config = at_point(bench.config, point, bench.rungs[-1].pairs)
        self._key, self._dataset = bench.key(point), dataset
        self._fits = Downstream(bench.run, bench.config, dataset)
        self._plan: list[Assignment] = []
        self._attempts: list[Attempt] = []

    def measure(self, to_the_end: bool = False) -> Iterator[dict[str, float | None]]:
        """What every rung gives, smallest first; those that were measured before are read.

        Args:
            to_the_end: go on with a trial that was stopped.

        Keys: gain, error (its standard error over source objects; None for one), kept, valid_share, kid, coverage, pairs, steps, seconds, fit_seconds (of these).
        """
        storage = self.bench.run.storage
        for number, rung in enumerate(self.bench.rungs, 1):
            path = f"{TRIALS}/{self._key}/{number}.json"
            found = _read(storage, path)
            if found is None:
                began = time.perf_counter()
                found = self._measure(number, rung) | {"seconds": round(time.perf_counter() - began, 2)}
                node = ray.get_runtime_context().get_node_id()
                told = {
                    "point": self.point,
                    "rung": number,
                    "at": time.time(),
                    "node": node,
                    "measured": found,
                }
                storage.create(path, json.dumps(told, allow_nan=False).encode())
            yield found
            ended = not to_the_end and storage.size(f"{TRIALS}/{self._key}/end.json") is not None
            if ended and number >= self.known():
                return

    def known(self) -> int:
        """The last rung that was measured; 0: none."""
        paths = self.bench.run.storage.keys(f"{TRIALS}/{self._key}/")
        names = [path.rsplit("/", 1)[1] for path in paths]
        return max((int(name.split(".")[0]) for name in names if name[0].isdigit()), default=0)

    def _measure(self, number: int, rung: Rung) -> dict[str, float | None]:
        pairs, valid = self._pairs(rung)
        mix = self.config.downstream.synthetic_mix
        bench = self.bench
        request = FitRequest(bench.train, rung.steps, bench.seed, bench.base, tuple(pairs), mix=mix)
        began = time.perf_counter()  # not what the fit says it took: it may have been taken from another run
        fitted = self._fits.fit(request)
        fit_seconds = time.perf_counter() - began
        scored = self._fits.evaluate(fitted.revision, list(bench.photos), 0.5)
        control, mine = bench.control[number - 1], soft_dice(scored)
        gains = [mine[target] - control[target] for target in sorted(control)]
        groups = [self._dataset.target(target).group for target in sorted(control)]
        told: dict[str, float | None] = {"gain": float(np.mean(gains)), "error": _error(gains, groups)}
        told |= {"kept": len(pairs), "valid_share": valid, "pairs": rung.pairs, "steps": rung.steps}
        told["fit_seconds"] = round(fit_seconds, 2)
        return told | self._fidelity(pairs)

    def _pairs(self, rung: Rung) -> tuple[list[Pair], float]:
        """The pairs of a rung, the first of the plan of the last one, and the valid share of what was tried."""
        bench, whole = self.bench, self.bench.rungs[-1].pairs
        if not self._plan:
            about = (bench.known, _ROUND, bench.revisions, self.config)
            (self._plan,) = answers([bench.coordinator], "plan", [about], bench.config)
        wanted = math.ceil(len(self._plan) * rung.pairs / whole)
        size = self.config.wasm.shard
        shards = [self._plan[i : i + size] for i in range(len(self._attempts), wanted, size)]
        first = int(self._key, 16) % max(1, len(bench.generators))  # trials begin with different generators
        makers = bench.generators[first:] + bench.generators[:first]
        made = answers(makers, "generate", [(shard,) for shard in shards], bench.config)
        self._attempts += [attempt for attempts in made for attempt in attempts]
        tried = self._plan[: len(self._attempts)]
        # the rung's own quotas: the difficulty band selects at every budget
        about = (bench.known, _ROUND, bench.revisions, at_point(bench.config, self.point, rung.pairs))
        asked = [(*about, tried, self._attempts, True)]
        ((judged, _),) = answers([bench.coordinator], "judge", asked, bench.config)
        tested = [pair for pair in judged if pair.reason != STOPPED]  # of a stopped slice nobody knows
        valid = sum(pair.reason not in INVALID for pair in tested)
        return [pair for pair in judged if pair.kept], valid / max(1, len(tested))

    def _fidelity(self, pairs: Sequence[Pair]) -> dict[str, float | None]:
        if not pairs:
            return {"kid": None, "coverage": None}
        bench, made = self.bench, [pair.attempt for pair in pairs]
        asked = [(bench.revisions.generator, list(bench.targets), made)]
        (found,) = answers([bench.extractor], "fidelity", asked, bench.config)
        return {name: found[name] for name in ("kid", "coverage")}


def _error(gains: Sequence[float], groups: Sequence[str]) -> float | None:
    """Standard error of a gain over source objects, each the mean of its targets: photos of one object say the same. None for one object."""
    by_object: dict[str, list[float]] = {}
    for gain, group in zip(gains, groups, strict=True):
        by_object.setdefault(group, []).append(gain)
    means = [np.mean(own) for own in by_object.values()]
    return float(np.std(means, ddof=1) / math.sqrt(len(means))) if len(means) > 1 else None


def stored(run: Run) -> list[dict[str, Any]]:
    """All that trials of a run measured: {"key", "point", "at", "node", "last", "ended", "rungs": [measured, ...], "spans": [(from, to), ...]}, in the order of their first rung."""
    found: dict[str, dict[str, Any]] = {}
    ended = set[str]()
    for path in sorted(run.storage.keys(f"{TRIALS}/")):
        _, key, name = path.split("/")
        if name == "end.json":
            ended.add(key)
            continue
        told = _read(run.storage, path, whole=True)
        if told is not None:
            trial = found.setdefault(
                key,
                {
                    "key": key,
                    "point": told["point"],
                    "at": told["at"],
                    "node": told.get("node"),
                    "rungs": [],
                    "spans": [],
                },
            )
            trial["spans"].append((told["at"] - float(told["measured"]["seconds"]), told["at"]))
            trial["rungs"].append(told["measured"])
            trial["last"] = told["at"]
    told_all = [trial | {"ended": key in ended} for key, trial in found.items()]
    return sorted(told_all, key=lambda trial: trial["at"])


def end(run: Run, key: str) -> None:
    """Nothing more is to come of a trial: it is done, or was stopped."""
    run.storage.create(f"{TRIALS}/{key}/end.json", b"{}")


def describe(bench: Bench) -> dict[str, Any]:
    """The budget, as the JSON tells it."""
    return {
        "rungs": [asdict(rung) for rung in bench.rungs],
        "targets": len(bench.targets),
        "seed": bench.seed,
    }


def _read(storage: Any, path: str, whole: bool = False) -> Any:
    try:
        told = json.loads(storage.read(path))
    except (FileNotFoundError, ValueError):
        return None
    return told if whole else told["measured"]
