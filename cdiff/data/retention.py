"""Which checkpoints of a run stay (`resources.keep`), and the removal of the others.

Never removed: what a kept pair names, be its round accepted or not, so that it can be made again; and what a step of the run names that may be
asked for once more: generator, token bank, the base, the model of real photos alone, the best model, and whatever belongs to a round that is not
committed. What goes are the fold models, the fits of probes once a round is committed, the candidates that did not become the best, and the miners of rounds without a kept pair.
"""

from __future__ import annotations

import contextlib
import re
import shutil
from collections.abc import Iterator, Mapping
from dataclasses import astuple
from typing import Any

from cdiff.data.ledger import Ledger
from cdiff.data.run import Run

_CANDIDATE = re.compile(r"(?:round|adapted)-(\d+)(?::.*)?")


def needed(ledger: Ledger) -> set[str]:
    """Names of the revisions that stay; and any other text of the same events, which harms nothing."""
    begun = bool(ledger.rounds())
    done = {result.round for result in ledger.rounds()} - {ledger.best_round()}
    names = set[str]()
    for event in ledger.events():
        candidate = _CANDIDATE.fullmatch(event.get("name", "")) if event["kind"] == "milestone" else None
        probe = begun and event.get("name", "").startswith("probe:")  # of the first budget
        if event["kind"] != "round" and not probe and not (candidate and int(candidate[1]) in done):
            names |= set(_texts(event))
    for pair in ledger.kept_pairs(accepted_only=False):
        names |= {part for part in astuple(pair.attempt.assignment.task.revisions) if part}
    return names


def forget_checkpoints(run: Run, ledger: Ledger) -> list[str]:
    """Remove the checkpoints that nothing needs, right after a round was committed; their names.

    A revision vanishes as a whole: its folder is renamed, or its COMMIT removed, first.
    """
    stay, gone = needed(ledger), []
    for name in sorted(_revisions(run) - stay):
        gone.append(name)
        if run.remote:
            run.storage.delete(f"checkpoints/{name}.COMMIT")
            for key in run.storage.keys(f"checkpoints/{name}"):
                if key.split("/")[1].split(".")[0] == name:
                    run.storage.delete(key)
        for path in (run.checkpoints / name, run.checkpoints / f"{name}.safetensors"):
            doomed = path.with_name(f".{path.name}.gone")
            shutil.rmtree(doomed, ignore_errors=True)  # of an earlier removal that was cut off
            with contextlib.suppress(FileNotFoundError):
                path.rename(doomed)
            shutil.rmtree(doomed, ignore_errors=True)
            doomed.unlink(missing_ok=True)
    return gone


def forget_file(run: Run, key: str) -> None:
    """Remove a file of the run from where the run is, and from this machine; one that is not there is as good as removed."""
    run.storage.delete(key)
    (run.path / key).unlink(missing_ok=True)


def _revisions(run: Run) -> set[str]:
    """Everything under checkpoints/ that has a revision's name."""
    here = {path.name for path in run.checkpoints.iterdir()} if run.checkpoints.is_dir() else set()
    there = {key.split("/")[1] for key in run.storage.keys("checkpoints/")} if run.remote else set()
    return {name.split(".")[0] for name in here | there if not name.startswith(".")}


def _texts(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, Mapping):
        for part in value.values():
            yield from _texts(part)
    elif isinstance(value, list):
        for part in value:
            yield from _texts(part)
