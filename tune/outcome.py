"""What a sweep comes to: the best point, whether it holds, and the JSON object of it all."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from cdiff.data.storage import write_durably
from cdiff.errors import ConfigError, RunError
from tune.confirm import Confirmed
from tune.objective import Bench, describe
from tune.replay import Replay, replay
from tune.space import Dimension

MEASURED = ("gain", "error", "kept", "valid_share", "kid", "coverage", "seconds")


@dataclass(frozen=True)
class Swept:
    """All trials of a sweep, and what was confirmed."""

    bench: Bench
    dimensions: tuple[Dimension, ...]
    trials: tuple[Mapping[str, Any], ...]  # as `tune.objective.stored`
    half_b: Confirmed | None = None
    tested: Confirmed | None = None
    test_reads: int = 0  # best points for which the test split was read

    @property
    def whole(self) -> list[Mapping[str, Any]]:
        """Trials that came to the last rung."""
        return [trial for trial in self.trials if len(trial["rungs"]) == len(self.bench.rungs)]

    @property
    def best(self) -> Mapping[str, Any]:
        """The trial with the highest gain at the last rung.

        Raises:
            RunError: none came so far.
        """
        if not self.whole:
            raise RunError(
                "no trial came to its last rung: see the warnings above; the same command goes on."
            )
        return max(self.whole, key=lambda trial: trial["rungs"][-1]["gain"])

    @property
    def seconds(self) -> float:
        """Wall time in which trials were at work: without the pauses of a sweep that was stopped."""
        total, until = 0.0, -math.inf
        for begun, ended in sorted(span for trial in self.trials for span in trial["spans"]):
            total += max(0.0, ended - max(begun, until))
            until = max(until, ended)
        return total

    def replayed(self) -> Replay | None:
        """What stopping early would have cost; None where trials were stopped."""
        if len(self.whole) < len(self.trials) or len(self.bench.rungs) < 2:
            return None
        curves = [[float(r["gain"]) for r in trial["rungs"]] for trial in self.trials]
        seconds = [[float(r["seconds"]) for r in trial["rungs"]] for trial in self.trials]
        fits = [[float(r["fit_seconds"]) for r in trial["rungs"]] for trial in self.trials]
        return replay(curves, seconds, fits, round(self.bench.rungs[1].steps / self.bench.rungs[0].steps))


def summary(swept: Swept) -> dict[str, Any]:
    """The JSON object."""
    replayed = swept.replayed()
    return {
        "trials": len(swept.trials),
        # of wall time, from the start of the first trial to the end of the last, without the pauses of a sweep that was stopped
        "seconds": round(swept.seconds, 1),
        "actor_seconds": round(sum(float(r["seconds"]) for t in swept.trials for r in t["rungs"]), 1),
        "best": swept.best["point"],
        "budget": describe(swept.bench),
        "validation": asdict(swept.half_b) if swept.half_b else None,
        "test": asdict(swept.tested) | {"reads": swept.test_reads} if swept.tested else None,
        "asha": asdict(replayed) if replayed else None,
        "measured": [{"point": trial["point"], "rungs": trial["rungs"]} for trial in swept.trials],
    }


def demand_place(path: Path, name: str, split: str) -> dict[str, Any]:
    """The object of a file, {} without one, if an entry of this name may be written there.

    Args:
        split: hash of the split that is measured; an entry of another is of other photos, or of other splits of them.
    Raises:
        ConfigError: the file holds something else, or an entry of this name with another split. One that names none is given up.
    """
    try:
        known = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    except ValueError:
        known = None
    if not isinstance(known, dict):
        raise ConfigError(f"{path} holds no JSON object: name another file.")
    found = known.get(name)
    if isinstance(found, dict) and found.get("split", split) != split:
        raise ConfigError(
            f"{path} has an entry {name} of another split ({found['split']}, this is {split}), which would be lost. Give another --out "
            "file; for a run that is still to begin, --run NAME names its entry, too."
        )
    return known


def write_json(path: Path, name: str, split: str, swept: Swept, about: Mapping[str, Any]) -> None:
    """Write a data set's entry into the object of a file; those of other data sets stay. Arguments and errors as of `demand_place`."""
    known = demand_place(path, name, split)  # another sweep may have written meanwhile
    known[name] = {**about, "split": split, **summary(swept)}
    write_durably(path, (json.dumps(known, indent=1, allow_nan=False) + "\n").encode())


def lines(swept: Swept, best: Path, seeds: Sequence[int]) -> list[str]:
    """For a person."""
    gain = swept.best["rungs"][-1]["gain"]
    out = [
        f"trials     {len(swept.trials)}, {len(swept.whole)} of them to the last rung",
        f"best       gain {gain:+.4f} on half A, over real photos alone: {best}",
    ]
    for name, found in (("half B", swept.half_b), ("test", swept.tested)):
        if found is not None:
            where = f"{found.mean:+.4f} [{found.low:+.4f}, {found.high:+.4f}]"
            out.append(f"{name:10s} {where} over the configured strengths, {len(seeds)} fresh seeds")
    if swept.test_reads > 1:
        out.append(
            f"note       the test split was read for {swept.test_reads} best points: it is no clean test any more"
        )
    return out
