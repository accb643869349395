"""Short probes before a loop's first budget: what pairs bring to each slice, measured before any round has told.

    control  base -> `wasm.probe_steps` on real photos alone                    -> validation, target by target
    probe    base -> as many, the same real batches, pairs of all slices beside -> the same targets

Both differ in the pairs alone, so that their difference by slice is what `cdiff.wasm.gains` learns from, as after a round. The gains stay
in the ledger: later rounds know them beside those of the rounds, and take them for as sure, though short fits may mislead (docs/decisions.md).
"""

from __future__ import annotations

from dataclasses import replace

from actors.crew import Crew
from actors.downstream import Evaluation, Fit, FitRequest
from cdiff.config_file import overridden
from cdiff.data.ledger import Ledger
from cdiff.types import Knowledge, Outcome, Revisions, content_hash
from cdiff.wasm.gains import measured_gains

_EVEN = ["wasm.uniform=1", "wasm.easy=0"]  # no difficulty is sought, and no slice by its weakness
_ROUND = 0  # of the probe's tasks: no round of the loop has it


def probed(
    crew: Crew,
    ledger: Ledger,
    known: Knowledge,
    outcomes: list[Outcome],
    generator: Revisions,
    segmenter: str,
) -> Knowledge:
    """What is known, before the first round with short-probe gains, where `wasm.probe_steps` asks for them and a budget learns from any.

    The probe's pairs are spread over the slices by their targets, each slice at one of the start strengths; the round's own are
    made afterwards. A restart reads its fits from the ledger, or its gains, which `known` has then.
    """
    steps, wasm = crew.config.wasm.probe_steps, crew.config.wasm
    learns = wasm.budget == "thompson" or len(wasm.start_strengths) > 1
    if not steps or not learns or ledger.rounds() or ledger.milestone("probed"):
        return known
    config = overridden(crew.config, _EVEN)
    revisions = replace(generator, segmenter=segmenter)
    if config.wasm.arm.startswith("B3") or config.wasm.arm.endswith("B2"):
        config = overridden(config, ["wasm.arm=B0"])  # what these learn, they learn anew in each round
    pairs = [p for p in crew.make_pairs(replace(known, alarms=()), _ROUND, revisions, config) if p.kept]
    seed = crew.config.downstream.seed + crew.config.seed
    control = FitRequest(tuple(crew.train), steps, seed, crew.base(ledger))
    name = f"probe:{content_hash(sorted(pair.task_id for pair in pairs))}"
    work = {"probe:control": (control,), name: (replace(control, pairs=tuple(pairs)),)}
    fits = crew.each(ledger, "fit", work, Fit, "probing gains")
    asked = {f"{of}:scores": (fit.revision, list(crew.validation), None) for of, fit in fits.items()}
    found = crew.each(ledger, "evaluate", asked, Evaluation, "scoring probes")
    before, after = (found[f"{of}:scores"].outcomes for of in work)
    ledger.record("probed", gains=measured_gains(before, after, outcomes, known.weaknesses, pairs))
    return replace(known, gains=tuple(ledger.gains()))
