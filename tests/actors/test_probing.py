"""Budgets learn from a probe before the first round, where they can learn at all."""

import dataclasses
from typing import Any

import pytest

from actors import probing
from actors.downstream import Evaluation, Fit
from actors.probing import probed
from cdiff.config import Config
from cdiff.config_file import load_config
from cdiff.data.ledger import Ledger
from cdiff.data.store import Run
from cdiff.types import Decision, Gain, Knowledge, Outcome, Revisions, RoundResult, Slice, Weakness
from tests.bare_run import bare_run

KNOWN = Knowledge((Weakness(Slice("metal", "pit"), ("a#0",), 0.5, 0.5, 0.5, 0.5),))
GAIN = Gain("metal/pit", 0.3, 4, 2, 0.1, 0.02)


class Crew:
    """Answers as actors would, and remembers what it was asked for."""

    def __init__(self, config: Config, pairs: list[Any]) -> None:
        self.config, self.train, self.validation, self.pairs = config, ["a"], ["v"], pairs
        self.asked: list[Any] = []

    def make_pairs(self, known: Knowledge, number: int, revisions: Revisions, config: Config) -> list[Any]:
        self.asked.append((number, revisions.segmenter, config.wasm.arm, config.wasm.uniform))
        return self.pairs

    def base(self, ledger: Any) -> str:
        return "base"

    def each(self, ledger: Any, method: str, work: Any, kind: Any, label: str) -> dict[str, Any]:
        self.asked.append((method, list(work.values())))
        if method == "fit":
            return {name: Fit(name, (), 0.0) for name in work}
        return {name: Evaluation({}, {}, 0.5, (name,)) for name in work}  # type: ignore[arg-type]  # told apart by name


@pytest.fixture
def learned(monkeypatch, judged_run) -> list[Any]:
    """What gains were measured from."""
    found: list[Any] = []

    def gains(before: Any, after: Any, training: Any, slices: Any, pairs: Any) -> tuple[Gain, ...]:
        found.append((before, after, len(pairs)))
        return (GAIN,)

    monkeypatch.setattr(probing, "measured_gains", gains)
    return found


@pytest.fixture
def run(tmp_path) -> Run:
    return bare_run(tmp_path)


def _probed(crew: Any, ledger: Ledger) -> Knowledge:
    """As in the loop: what is known was ranked with the ledger's gains."""
    known, outcomes = dataclasses.replace(KNOWN, gains=tuple(ledger.gains())), list[Outcome]()
    return probed(crew, ledger, known, outcomes, Revisions("generator", "bank"), "best")


def _result(number: int, *gains: Gain) -> RoundResult:
    decision = Decision(True, "", 0.1, 0.0, 0.2, 0.9)
    return RoundResult(number, (), (), 0, (), "rev", (), decision, (), gains)


def test_what_a_probe_gains_over_its_matched_control_is_known_to_the_first_plan(
    learned, judged_run, run
) -> None:
    pairs = [pair for pair in Ledger(judged_run).pairs(1) if pair.kept]
    crew = Crew(load_config(None, ["wasm.probe_steps=9", "wasm.arm=B3+B2"]), pairs)
    assert _probed(crew, Ledger(run)).gains == (GAIN,)
    ((before,), (after,), count), *_ = learned
    assert before == "probe:control:scores" and after != before and count == len(pairs) > 0
    made, (_, fits), _ = crew.asked
    assert made == (0, "best", "B0", 1.0), "no arm that learns anew in each round, no slice by its weakness"
    (control,), (probe,) = fits
    assert (control.pairs, len(probe.pairs)) == ((), len(pairs))
    assert {(fit.steps, fit.seed, fit.start) for fit in (control, probe)} == {(9, crew.config.seed, "base")}


@pytest.mark.parametrize(
    ("settings", "rounds"),
    [
        (["wasm.probe_steps=0"], 0),
        (["wasm.probe_steps=9"], 1),
        (["wasm.probe_steps=9", "wasm.budget=prior"], 0),
    ],
)
def test_nothing_is_spent_where_no_budget_would_learn_from_it(learned, run, settings, rounds) -> None:
    crew, ledger = Crew(load_config(None, settings), []), Ledger(run)
    for number in range(rounds):
        ledger.commit_round(_result(number + 1), [])
    assert _probed(crew, ledger) == KNOWN and not crew.asked
    assert ledger.milestone("probed") is None


def test_later_rounds_know_what_the_probe_gained_and_a_restart_does_not_probe_again(learned, run) -> None:
    settings = load_config(None, ["wasm.probe_steps=9"])
    ledger = Ledger(run)
    first = _probed(Crew(settings, []), ledger)
    ledger.close()
    ledger, again = Ledger(run), Crew(settings, [])  # killed in the first round
    assert _probed(again, ledger) == first and not again.asked
    own = dataclasses.replace(GAIN, gain=-0.3)
    ledger.commit_round(_result(1, own), [])
    assert ledger.gains() == [GAIN, own]
    assert _probed(again, ledger).gains == (GAIN, own) and not again.asked
