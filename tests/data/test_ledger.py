"""The ledger: what was confirmed is there after a crash, in order, and written by one process alone."""

import dataclasses
import json
import multiprocessing

import numpy as np
import pytest

from cdiff.data.ledger import Ledger
from cdiff.data.store import Run, ShardRow, shard_name, write_shard
from cdiff.data.verdicts import Verdict, write_verdict
from cdiff.errors import DataError, RunError
from cdiff.types import (
    Assignment,
    Attempt,
    Decision,
    Gain,
    GenerationTask,
    Pair,
    Pose,
    Recipe,
    Revisions,
    RoundResult,
    Slice,
    Strengths,
    Weakness,
)
from tests.bare_run import bare_run


@pytest.fixture
def run(tmp_path) -> Run:
    return bare_run(tmp_path)


def task(seed: int) -> GenerationTask:
    recipe = Recipe("joint", "B0", 1, 0.25, 16, "euler", "float32", 8, 2)
    pose = Pose(1.5, 2.5, 0.0, 1.0, False, 0.05, 1.7)
    return GenerationTask(recipe, "c/t/1#0", "c/good/2", pose, Strengths(2.0, 0.4), seed, Revisions("g", "b"))


def attempts(seeds: range) -> list[Attempt]:
    plan = [Assignment(task(seed), "c/t", "uniform", number) for number, seed in enumerate(seeds)]
    name = shard_name(plan)
    return [
        Attempt(item, name, number, "c", "t", (0, 1, 2, 3), (("loss", 0.5),), b"\x00\xff")
        for number, item in enumerate(plan)
    ]


def store(run: Run, found: list[Attempt]) -> None:
    write_shard(run, found[0].shard, [ShardRow(item, b"i", b"m", b"c", b"r", b"g") for item in found])


def result(number: int, accepted: bool = True, gain: float = 0.1) -> RoundResult:
    weakness = Weakness(Slice("c", "t", "small"), ("c/t/1#0",), 0.7, 0.3, 0.9, 0.8)
    decision = Decision(accepted, "because", gain, -0.1, 0.3, 0.6 if gain > 0 else 0.2)
    counts = (("c/t", "kept", 2), ("c/t", "blurred", 1))
    return RoundResult(
        number, (weakness,), (), 2, counts, "rev", (("pixel_ap", 0.4),), decision, (("fit", 1.5),)
    )


def commit(run: Run, ledger: Ledger, number: int, accepted: bool, gain: float = 0.1) -> list[Pair]:
    found = attempts(range(10 * number, 10 * number + 3))
    store(run, found)
    pairs = [Pair(item, reason) for item, reason in zip(found, ["", "blurred", ""], strict=True)]
    ledger.commit_round(result(number, accepted, gain), pairs)
    return pairs


def test_the_best_round_is_the_last_that_gained_and_pairs_may_be_counted_up_to_it(run):
    ledger = Ledger(run)
    assert ledger.best_round() == 0
    for number, accepted, gain in ((1, True, 0.02), (2, True, -0.01), (3, False, -0.2)):
        commit(run, ledger, number, accepted, gain)
    assert ledger.best_round() == 1
    assert [len(ledger.kept_pairs(until=number)) for number in (0, 1, 2, 3)] == [0, 2, 4, 4]
    assert len(ledger.kept_pairs()) == 4


@pytest.mark.parametrize(
    ("accepted", "gain", "told"),
    [(True, 0.1, [1, 2, 3, 4, 5]), (False, -0.1, [1, 2, 3, 4, 5]), (True, -0.1, [2, 3, 4, 5])],
    ids=["stands", "rejected", "accepted, but does not stand"],
)
def test_pairs_that_the_next_round_measures_again_count_once(run, accepted, gain, told):
    """Those of a round that was accepted and does not stand: the best model has not seen them yet."""
    ledger = Ledger(run)
    commit(run, ledger, 1, True, 0.1)
    measured = {
        2: (Gain("c/t", 0.3, 9, 5, 1.0, 0.1), Gain("c/u", 0.3, 9, 5, 2.0, 0.1)),
        3: (Gain("c/t", 0.3, 18, 5, 3.0, 0.1), Gain("c/t", 0.6, 9, 5, 4.0, 0.1)),
        4: (Gain("c/t", 0.3, 9, 5, 5.0, 0.1),),
    }
    for number, gains in measured.items():
        found = result(number, *((accepted, gain) if number == 2 else (True, 0.1)))
        again = len(ledger.kept_pairs(since=ledger.best_round()))
        assert again == (2 if number == 3 and accepted and gain < 0 else 0), "of what the best has not seen"
        pairs = attempts(range(10 * number, 10 * number + 2))
        store(run, pairs)
        ledger.commit_round(dataclasses.replace(found, gains=gains), [Pair(attempt, "") for attempt in pairs])
    assert [found.gain for found in ledger.gains()] == told, "what was not measured again stays"


def test_a_decision_without_an_interval_is_read_as_it_was_written(run):
    """Of one validation object; ledgers from before have numbers there always."""
    ledger = Ledger(run)
    bare = dataclasses.replace(result(1).decision, low=None, high=None)
    ledger.commit_round(dataclasses.replace(result(1), decision=bare), [])
    ledger.commit_round(result(2), [])
    first, second = (done.decision for done in Ledger(run).rounds())
    assert first == bare and (second.low, second.high) == (-0.1, 0.3)
    assert '"low": null' in (run.path / "ledger.jsonl").read_text()


def test_what_people_turn_away_is_trained_on_no_more_and_may_come_back(run):
    ledger = Ledger(run)
    first, _, third = commit(run, ledger, 1, True)
    assert ledger.fold_verdicts() == 0
    write_verdict(run, Verdict(first.task_id, False, "Ada", 5.0))
    assert ledger.kept_pairs() == [first, third], "the driver takes verdicts in when a round begins"
    assert ledger.fold_verdicts() == 1 and ledger.fold_verdicts() == 0
    assert ledger.kept_pairs() == [third] and Ledger(run).kept_pairs() == [third]
    assert ledger.kept_pairs(accepted_only=False) == [first, third]
    write_verdict(run, Verdict(first.task_id, True, "Grace", 6.0))
    (run.path / "verdicts" / "0123456789abcdef-00000000.json").write_text("{}")
    (run.path / "verdicts" / "note (copy).json").write_text("{}")
    assert ledger.fold_verdicts() == 1 and ledger.kept_pairs() == [first, third]
    with pytest.raises(DataError, match="16 digits"):
        Verdict("../../etc", True, "Ada", 1.0)


def test_what_people_made_is_trained_on_from_the_next_round(run):
    ledger = Ledger(run)
    ours = commit(run, ledger, 1, True)
    (made,) = attempts(range(900, 901))
    made = dataclasses.replace(made, assignment=dataclasses.replace(made.assignment, purpose="human"))
    store(run, [made])
    write_verdict(run, Verdict(made.task_id, True, "Ada", 5.0, made.shard))
    absent = "pairs/0123456789abcdef.parquet"
    write_verdict(run, Verdict("0123456789abcdef", True, "Eve", 5.5, absent))  # nothing lies there
    write_verdict(run, Verdict("0123456789abcdef", True, "Eve", 5.6, made.shard))  # something else does
    assert not ledger.human_pairs() and [n for n, _ in ledger.human_pairs(also_new=True)] == [2]
    assert ledger.fold_verdicts() == 1
    (human,) = (pair for _, pair in Ledger(run).human_pairs())
    assert human.attempt == made and human.kept
    assert ledger.kept_pairs() == [ours[0], ours[2], human]
    assert ledger.kept_pairs(until=1) == [ours[0], ours[2]] and ledger.kept_pairs(since=1) == [human]
    commit(run, ledger, 2, True)
    assert human in ledger.kept_pairs(until=2) and human not in ledger.kept_pairs(since=2)
    write_verdict(run, Verdict(made.task_id, False, "Grace", 6.0))
    ledger.fold_verdicts()
    assert human not in ledger.kept_pairs() and human in ledger.kept_pairs(accepted_only=False)
    write_verdict(run, Verdict(made.task_id, True, "Grace", 7.0))
    ledger.fold_verdicts()
    assert human in ledger.kept_pairs(until=2), "it came back where it was"
    with pytest.raises(DataError, match="shard"):
        Verdict(made.task_id, True, "Ada", 1.0, "../elsewhere.parquet")


def test_a_rejected_round_takes_the_pairs_that_people_made_for_it_along(run):
    ledger = Ledger(run)
    (made,) = attempts(range(900, 901))
    made = dataclasses.replace(made, assignment=dataclasses.replace(made.assignment, purpose="human"))
    store(run, [made])
    write_verdict(run, Verdict(made.task_id, True, "Ada", 5.0, made.shard))
    ledger.fold_verdicts()
    assert len(ledger.kept_pairs()) == 1
    commit(run, ledger, 1, accepted=False)
    assert ledger.kept_pairs() == [] and len(ledger.kept_pairs(accepted_only=False)) == 3
    write_verdict(run, Verdict(made.task_id, True, "Ada", 6.0))
    ledger.fold_verdicts()
    ((first, human),) = ledger.human_pairs()
    assert first == 2 and ledger.kept_pairs() == [human], "who accepts it again gives it to the next round"


def test_a_verdict_cannot_make_a_pair_human_that_the_gate_turned_away(run):
    ledger = Ledger(run)
    pairs = commit(run, ledger, 1, True)
    turned_away = pairs[1].attempt
    write_verdict(run, Verdict(turned_away.task_id, True, "Eve", 5.0, turned_away.shard))
    assert ledger.fold_verdicts() == 0 and not ledger.human_pairs() and len(ledger.kept_pairs()) == 2


def test_what_cannot_come_back_is_refused_before_it_is_written(run):
    ledger = Ledger(run)
    with pytest.raises(TypeError, match="ndarray"):
        ledger.append("started", values=np.zeros(3))
    with pytest.raises(ValueError, match="own names"):
        ledger.append("started", seq=3)
    assert Ledger(run).events() == []


def test_events_are_there_in_order_after_reopening(run):
    ledger = Ledger(run, clock=lambda: 5.0)
    ledger.append("started", command="x")
    ledger.record("generator", revision="r1")
    ledger.append("milestone", name="generator", revision="r2")
    again = Ledger(run)
    assert again.events() == ledger.events()
    assert [(event["seq"], event["at"], event["kind"]) for event in again.events()] == [
        (0, 5.0, "started"),
        (1, 5.0, "milestone"),
        (2, 5.0, "milestone"),
    ]
    assert again.milestone("generator") == {"revision": "r2"}
    assert again.milestone("bank") is None
    assert again.last("started") == {"command": "x"}
    assert again.last("finished") is None


@pytest.mark.parametrize(
    "torn", [b'{"seq": 1, "kind": "mile', b'{"seq": 1, "kind": "x"}', b"\x00" * 40, b"\n"]
)
def test_a_torn_last_line_is_ignored_and_cut_off_by_the_next_append(run, torn):
    before = Ledger(run)
    before.append("started")
    before.close()
    with (run.path / "ledger.jsonl").open("ab") as file:
        file.write(torn)
    ledger = Ledger(run)
    assert [event["kind"] for event in ledger.events()] == ["started"]
    ledger.append("finished")
    assert [event["kind"] for event in Ledger(run).events()] == ["started", "finished"]
    assert len((run.path / "ledger.jsonl").read_bytes().splitlines()) == 2


def test_what_another_process_appends_is_read_without_what_is_known(run):
    writer, reader = Ledger(run), Ledger(run)
    writer.record("one")
    reader.refresh()
    path = run.path / "ledger.jsonl"
    path.write_bytes(b" " * len(path.read_bytes()))  # as if it were dear to read
    with path.open("ab") as file:
        file.write(json.dumps({"seq": 1, "kind": "milestone", "name": "two"}).encode() + b"\n{torn")
    reader.refresh()
    assert [event["name"] for event in reader.events()] == ["one", "two"]
    reader.refresh()
    assert len(reader.events()) == 2
    with path.open("ab") as file:
        file.write(b"\nafter it\n")
    with pytest.raises(RunError, match="damaged at line 3"):
        reader.refresh()
    writer.close()


def test_every_prefix_of_the_file_is_a_ledger(run):
    ledger = Ledger(run)
    for number in range(3):
        ledger.append("milestone", name=f"step {number}", text="ü\u2028\r\n")
    whole = (run.path / "ledger.jsonl").read_bytes()
    ledger.close()
    for length in range(len(whole) + 1):
        (run.path / "ledger.jsonl").write_bytes(whole[:length])
        assert len(Ledger(run).events()) == whole[:length].count(b"\n")


def test_rounds_of_another_version_are_refused_by_name(run):
    ledger = Ledger(run)
    ledger.commit_round(result(1), [])
    ledger.close()
    text = (run.path / "ledger.jsonl").read_text(encoding="utf-8")
    (run.path / "ledger.jsonl").write_text(text.replace('"chance":', '"luck":'), encoding="utf-8")
    with pytest.raises(RunError, match=r"ledger\.jsonl was written by another version of cdiff .*chance"):
        Ledger(run).rounds()


def test_damage_before_the_last_line_stops(run):
    ledger = Ledger(run)
    ledger.append("started")
    ledger.append("finished")
    (run.path / "ledger.jsonl").write_bytes((run.path / "ledger.jsonl").read_bytes()[5:])
    with pytest.raises(RunError, match="line 1"):
        Ledger(run)


def test_rounds_and_their_kept_pairs_come_back(run):
    ledger = Ledger(run)
    assert ledger.remaining(3) == [1, 2, 3]
    first = commit(run, ledger, 1, accepted=True)
    second = commit(run, ledger, 2, accepted=False)
    again = Ledger(run)
    assert again.rounds() == [result(1), result(2, accepted=False)]
    assert again.remaining(3) == [3]
    assert again.remaining(2) == []
    assert again.pairs(1) == first
    assert again.pairs(2) == second
    assert again.kept_pairs() == [first[0], first[2]]
    assert again.kept_pairs(accepted_only=False) == [first[0], first[2], second[0], second[2]]


def test_a_round_is_committed_once(run):
    ledger = Ledger(run)
    commit(run, ledger, 1, accepted=True)
    with pytest.raises(ValueError, match="round 1"):
        commit(run, ledger, 1, accepted=True)


def test_a_committed_round_whose_shard_is_gone_stops(run):
    ledger = Ledger(run)
    pairs = commit(run, ledger, 1, accepted=True)
    (run.path / pairs[0].attempt.shard).unlink()
    with pytest.raises(RunError, match="COMMIT"):
        Ledger(run).kept_pairs()


def _append_elsewhere(run, queue):
    try:
        ledger = Ledger(run)
        ledger.append("started")
        ledger.close()
        queue.put("written")
    except RunError as error:
        queue.put(str(error))


def test_a_second_process_cannot_write_but_can_read(run):
    ledger = Ledger(run)
    ledger.append("started")
    context = multiprocessing.get_context("fork")
    queue = context.Queue()
    for wanted in ("is written by process", "written"):
        other = context.Process(target=_append_elsewhere, args=(run, queue))
        other.start()
        assert wanted in queue.get(timeout=20)
        other.join()
        ledger.close()
    assert len(Ledger(run).events()) == 2


def test_events_of_a_later_version_are_refused_by_name(run):
    ledger = Ledger(run)
    ledger.append("started")
    ledger.close()
    text = (run.path / "ledger.jsonl").read_text(encoding="utf-8")
    (run.path / "ledger.jsonl").write_text(
        text.replace('"schema_version": 1', '"schema_version": 2'), encoding="utf-8"
    )
    with pytest.raises(RunError, match="schema version 2; this cdiff knows 1"):
        Ledger(run)


def test_a_driver_that_was_overtaken_cannot_write_again(run):
    clock = [1000.0]
    first = Ledger(run, clock=lambda: clock[0])
    first.append("started")
    clock[0] += 61  # it fell silent: its machine slept
    second = Ledger(run, clock=lambda: clock[0])
    second.append("milestone", name="a")
    with pytest.raises(RunError, match="meanwhile"):
        first.append("milestone", name="b")  # before its next beat: its place is taken
    commit(run, second, 1, accepted=True)
    second.close()
    first._lease.renew()
    for _ in range(2):  # after it: for good, though the other is gone
        with pytest.raises(RunError, match="taken over"):
            commit(run, first, 1, accepted=True)
    assert [event["kind"] for event in Ledger(run).events()] == ["started", "milestone", "round"]


def test_a_run_that_is_extended_is_no_longer_finished(run):
    ledger = Ledger(run)
    commit(run, ledger, 1, accepted=True)
    assert ledger.closing() is None
    ledger.append("finished", pairs=2)
    ledger.record("tracking", run_id="x")
    assert ledger.closing() == {"pairs": 2}
    commit(run, ledger, 2, accepted=True)
    assert Ledger(run).closing() is None
    assert Ledger(run).last("finished") == {"pairs": 2}
