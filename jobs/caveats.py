"""What a reader of a run's report must know before trusting its numbers, in sentences: what the ledger has that went otherwise."""

from __future__ import annotations

from typing import Any

from cdiff.data.ledger import Ledger
from jobs.telling import stopped_slices


def caveats(ledger: Ledger) -> list[str]:
    """Of all rounds: pairs of people, slices that stopped, pairs made in smaller batches, trainings that lost workers."""
    return [*by_people(ledger), *_stopped(ledger), *_halved(ledger), *_fewer_workers(ledger)]


def by_people(ledger: Ledger) -> list[str]:
    """What a reader must know of pairs that no round made."""
    last = max((result.round for result in ledger.rounds()), default=0)
    made = [(number, pair) for number, pair in ledger.human_pairs() if number <= last]
    if not made:
        return []
    brought = sum(pair.attempt.assignment.task.brought for _, pair in made)
    told = f"people made {len(made)} of the pairs with the service, which were trained on from round {min(n for n, _ in made)} on"
    if brought:
        told += f"; {brought} rest on photos that they brought, of objects that nobody could compare with those of the test split"
    return [told]


def reads(finished: dict[str, Any]) -> list[str]:
    """What a reader must know where the test split is no longer clean."""
    number = finished.get("test_reads", 1)
    if number == 1:
        return []
    return [
        f"the test split was read {number} times, after which rounds were added: it may have served to decide how many"
    ]


def _stopped(ledger: Ledger) -> list[str]:
    """Slices whose candidates were turned away too often."""
    return [
        f"round {result.round}: {line}"
        for result in ledger.rounds()
        for line in stopped_slices(result.counts)
    ]


def _halved(ledger: Ledger) -> list[str]:
    """Candidates that were made in half of the batch: rounded otherwise in the last digits, and slower."""
    pairs = [pair for result in ledger.rounds() for pair in ledger.pairs(result.round)]
    few = sum("micro_batch" in dict(pair.attempt.measures) for pair in pairs)
    if not few:
        return []
    return [
        f"memory was short: {few} of {len(pairs)} candidates were made in half of the batch (sampling.micro_batch)"
    ]


def _fewer_workers(ledger: Ledger) -> list[str]:
    """Trainings that went on with fewer workers than were asked for."""
    fewest: dict[str, tuple[int, int]] = {}
    for event in ledger.events():
        if event["kind"] == "workers" and event["had"] < event["wanted"]:
            least = min(event["had"], fewest.get(event["training"], (event["had"], 0))[0])
            fewest[event["training"]] = least, event["wanted"]
    return [
        f"{training} was trained by {had} of {wanted} workers for a while: sums are rounded otherwise, and it took longer"
        for training, (had, wanted) in fewest.items()
    ]
