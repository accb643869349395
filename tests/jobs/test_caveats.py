"""What a reader of the report is told before the numbers."""

from dataclasses import replace
from typing import Any

import pytest

from cdiff.data.ledger import Ledger
from cdiff.types import UPLOAD, Decision, RoundResult
from cdiff.wasm.quality import STOPPED
from jobs.caveats import by_people, caveats, reads


@pytest.fixture
def ledger(judged_run) -> Any:
    ledger = Ledger(judged_run)
    yield ledger
    ledger.close()


def _round(ledger: Ledger, number: int, counts: tuple = ()) -> None:
    """A round of the first one's pairs."""
    pairs = ledger.pairs(1)
    decision = Decision(False, "worse", -0.1, -0.2, -0.05, 0.0)
    ledger.commit_round(RoundResult(number, (), (), 0, counts, f"rev-{number}", (), decision, ()), pairs)


def test_a_plain_run_has_nothing_to_tell(ledger):
    _round(ledger, 2)
    assert caveats(ledger) == [] and reads({}) == [] and reads({"test_reads": 1}) == []


def test_slices_that_stopped_are_told_with_their_round(ledger):
    _round(
        ledger,
        2,
        counts=(("metal/pit", STOPPED, 7), ("metal/pit", "not visible", 12), ("metal/pit", "kept", 4)),
    )
    (told,) = caveats(ledger)
    assert told.startswith("round 2: metal/pit stopped: 12 of 16") and "gate.stop_invalid" in told


def test_candidates_of_halved_batches_are_counted(ledger, monkeypatch):
    first, *others = ledger.pairs(1)
    halved = replace(first, attempt=replace(first.attempt, measures=(("micro_batch", 4),)))
    monkeypatch.setattr(ledger, "pairs", lambda number: [halved, *others])
    (told,) = caveats(ledger)
    assert told.startswith(f"memory was short: 1 of {1 + len(others)} candidates")


def test_a_training_is_told_once_with_the_fewest_workers_that_it_had(ledger):
    for had in (3, 1, 2, 4):
        ledger.append("workers", training="generator", wanted=4, had=had)
    (told,) = caveats(ledger)
    assert told.startswith("generator was trained by 1 of 4 workers")


def test_what_people_made_is_told_and_what_they_brought(ledger, monkeypatch):
    pair = ledger.pairs(1)[0]
    task = pair.attempt.assignment.task
    brought = replace(pair.attempt.assignment, task=replace(task, background=f"{UPLOAD}aa.png"))
    theirs = replace(pair, attempt=replace(pair.attempt, assignment=brought))
    monkeypatch.setattr(ledger, "human_pairs", lambda: [(1, pair), (2, theirs)])
    (told,) = by_people(ledger)
    assert "people made 1 of the pairs" in told and "brought" not in told, "the second round has not been"
    _round(ledger, 2)
    (told,) = by_people(ledger)
    assert "people made 2 of the pairs" in told and "from round 1 on" in told and "; 1 rest on photos" in told


def test_a_test_split_that_was_read_again_is_told():
    (told,) = reads({"test_reads": 3})
    assert "read 3 times" in told
