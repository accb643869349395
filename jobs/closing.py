"""The end of a loop: a rival for its pairs, the test split, read once, and the report; this one after each round as well, as far as it goes."""

from __future__ import annotations

import json
import resource
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import psutil

from actors.crew import Assessed, Crew
from actors.downstream import Evaluation
from actors.resources import code_hash
from cdiff.config_file import overridden
from cdiff.data.carriers import from_json
from cdiff.data.ledger import Ledger
from cdiff.data.run import flat
from cdiff.evaluation.pictures import (
    PAIR_HEADER,
    PREDICTION_HEADER,
    prediction_tiles,
    strip,
)
from cdiff.evaluation.report import Picture, ReportContent, write_report
from cdiff.tracking import Tracker, may_be_away
from cdiff.types import Revisions
from cdiff.wasm.pool import types_of, undirected_quotas
from cdiff.wasm.quality import INVALID, STOPPED, Thresholds
from jobs.caveats import caveats, reads
from jobs.grids import grids
from jobs.quality_pool import Pools, Wanted, copying, enough
from jobs.telling import bracketed, log_missed

if TYPE_CHECKING:
    from jobs.session import Session

PAGE = "report.html"
_PREDICTIONS = 4  # best and worst ones
_SIDE = 128


def close(
    session: Session, crew: Crew, ledger: Ledger, tracker: Tracker, real_only: Assessed, best: Assessed
) -> None:
    """Read the test split for the first and only time, then report. A run that is closed reports again from the ledger; one that
    was asked for more rounds afterwards reads it again, and says so."""
    finished = ledger.closing()
    if finished is None:
        if ledger.last("finished"):
            print(
                "note       the test split was read before these rounds: what was chosen since is no clean test",
                flush=True,
            )
        began = time.perf_counter()
        rivals = {"real_only": real_only} | rival(crew, ledger, real_only)
        copied = time.perf_counter()
        tested = _tested(session, crew, ledger, rivals, best)
        took = {"copies": copied - began, "test": time.perf_counter() - copied}
        ledger.append("finished", **tested, **_told(ledger, real_only, took))
        finished = ledger.closing() or {}
    content = _content(session, ledger, real_only)
    good, bad = _predictions(session, crew, best, finished["dice"])
    path = write_report(session.run.report_dir / PAGE, _closed(content, finished, good, bad))
    session.run.publish("report")
    _tell(session, finished, path, real_only_stands=best.revision == real_only.revision)
    log_missed(session, tracker, told=True)
    with may_be_away("the scores on the test split, the report and the model that stands"):
        tracker.metrics({"test": finished["test"], "best": best.scores})
        tracker.artifact(path, "report")
        for file in sorted(session.run.checkpoint(best.revision).iterdir()):
            tracker.artifact(file, "model")


def show(session: Session, ledger: Ledger, real_only: Assessed) -> None:
    """Write the report as far as it goes: all but what the test split says, which is read after the last round.

    Of a run that was closed and goes on, the page of its end stays until there is another.
    """
    if ledger.last("finished"):
        return
    write_report(session.run.report_dir / PAGE, _content(session, ledger, real_only))
    session.run.publish("report")


def rival(crew: Crew, ledger: Ledger, real_only: Assessed) -> dict[str, Assessed]:
    """The model of as many pasted copies of real targets as the kept model has pairs: same base, steps, real batches and gate.

    Kept by a round's rule, too: where validation does not favour it, the model of real photos alone stands in. Of a model of real photos
    alone there is none, nor where not one copy passes the gate. The copies are spread over the types as the real targets are: nothing aims
    them.
    """
    pairs = _trained_on(ledger)
    if crew.config.control == "none" or not pairs:
        return {}
    known = {name: ledger.milestone(name) or {} for name in ("generator", "extractor")}
    generator = Revisions(generator=known["generator"]["revision"], bank=known["extractor"]["bank"])
    thresholds = from_json(Thresholds, known["extractor"]["thresholds"])
    types = types_of(crew.dataset.all_targets(crew.train))
    quotas = undirected_quotas(types, pairs)
    key, wanted = ("copy_paste", crew.config.seed), Wanted(types, quotas, crew.config)
    pools = Pools(crew, ledger, generator, thresholds)
    found = pools.choose([copying(crew.config)], enough(quotas), {key: wanted}, "copies")[key]
    if not found.pairs:
        return {}
    kept_as = (ledger.milestone(f"round-{ledger.best_round()}") or {}).get(
        "mix", 0.0
    )  # a search between rounds may have found another
    mixed = overridden(crew.config, [f"downstream.synthetic_mix={kept_as}"]) if kept_as else crew.config
    copies = crew.assess(ledger, "copy_paste", found.pairs, mixed)
    # A round's model stands only where validation favoured it. Copies without that choice would lose to equal pairs by the choice alone.
    decision = crew.decide(copies, real_only, real_only, crew.config.seed + ledger.best_round())
    ledger.record("copies", pairs=len(found.pairs), decision=decision)
    return {"copy_paste": copies if decision.stands else real_only}


def _trained_on(ledger: Ledger) -> int:
    """How many pairs the kept model was fitted on; of a model of real photos alone none.

    What people turned away since still counts: the model has it. Ledgers from before this was noted have the present count.
    """
    best = ledger.best_round()
    noted = (ledger.milestone(f"round-{best}") or {}).get("pairs") if best else 0
    return len(ledger.kept_pairs(until=best)) if noted is None else int(noted)


def _tested(
    session: Session, crew: Crew, ledger: Ledger, rivals: dict[str, Assessed], best: Assessed
) -> dict[str, Any]:
    """What the test split says of the kept model and of its rivals."""
    test = session.manifest.ids("test")
    found: dict[str, Evaluation] = {}
    for name, model in {**rivals, "loop": best}.items():
        same = "real_only" in found and model.revision == rivals["real_only"].revision
        found[name] = found["real_only"] if same else crew.evaluate(model.revision, test, model.threshold)
    ahead = {}
    for name, model in rivals.items():
        mine, theirs = found["loop"].scores["pixel_ap"], found[name].scores["pixel_ap"]
        if model.revision != best.revision and mine is not None and theirs is not None:
            told = crew.ahead(best.revision, model.revision, test, mine - theirs)
            ahead[name] = {"gain": told.gain, "low": told.low, "high": told.high}
    return {
        "test": {name: evaluation.scores for name, evaluation in found.items()},
        "copies": (ledger.milestone("copies") or {}).get("pairs") if "copy_paste" in rivals else None,
        # None: there are no copies
        "copies_stand": rivals["copy_paste"].revision != rivals["real_only"].revision
        if "copy_paste" in rivals
        else None,
        # the kept model's pixel AP less each rival's, 95 % over the test split's source objects; one alone has no interval
        "ahead": ahead,
        "dice": found["loop"].dice,
    }


def _told(ledger: Ledger, real_only: Assessed, took: Mapping[str, float]) -> dict[str, Any]:
    """What the ledger says of the run; `took`: seconds of what comes after its rounds."""
    return {
        "test_reads": 1 + len([event for event in ledger.events() if event["kind"] == "finished"]),
        "pairs": _trained_on(ledger),
        "pairs_accepted": len(ledger.kept_pairs()),
        "valid_share": _valid_share(ledger),
        "accepted_rounds": [result.round for result in ledger.rounds() if result.decision.accepted],
        "best_round": ledger.best_round(),
        "seconds": _seconds(ledger, real_only)
        | {name: round(value, 2) for name, value in took.items() if value >= 0.01},
        "peak_memory_gb": peak_memory_gb(),
        "code": code_hash(),
    }


def peak_memory_gb() -> float:
    """Largest resident memory that this process and each of its living children reached, summed, GB (10^9 bytes)."""
    own = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    total = float(own)
    for child in psutil.Process().children(recursive=True):
        try:
            with open(f"/proc/{child.pid}/status", encoding="ascii") as file:
                total += next((int(line.split()[1]) * 1024 for line in file if line.startswith("VmHWM")), 0)
        except (OSError, psutil.Error):
            continue
    return round(total / 1e9, 3)


def _tell(session: Session, finished: dict[str, Any], path: Any, real_only_stands: bool) -> None:
    columns = {"real_only": "real photos alone", "loop": "with the loop's pairs"}
    if "copy_paste" in finished["test"]:
        columns["copy_paste"] = f"with {finished.get('copies')} pasted copies"
    reads = "read once" if finished.get("test_reads", 1) == 1 else f"read {finished['test_reads']}x"
    print("\n" + "   ".join([f"test split, {reads}", *columns.values()]))
    for name in ("pixel_ap", "f1_max", "iou", "mdice"):
        values = [(finished["test"][arm][name], len(label)) for arm, label in columns.items()]
        if all(value is not None for value, _ in values):
            print(f"  {name:20s}" + "".join(f"  {value:{width + 1}.4f}" for value, width in values))
    for arm, told in _ahead(finished).items():
        label = f"over {columns[arm].removeprefix('with ')}"
        print(f"  pixel_ap {label}: {told['gain']:+.4f} {bracketed(told['low'], told['high'])}")
    if not _copies_stand(finished):
        print("copies not kept on validation: real photos alone stand in")
    if real_only_stands:
        print(
            "no round's model was kept on validation: the model of real photos alone stands, in both columns"
        )
    print(f"report     {path}")
    if session.demo:
        print("your data  python jobs/loop.py --config configs/mvtec.yaml --data FOLDER   (MVTec tree)")
        print(
            "           python jobs/loop.py --config configs/polyp.yaml --data FOLDER   (image + mask folders)"
        )
    sys.stdout.flush()


def _copies_stand(finished: dict[str, Any]) -> bool:
    """Whether the rival's numbers are of copies, not of real photos alone. Earlier versions did not put copies to a round's rule."""
    return finished.get("copies_stand") is not False


def _ahead(finished: dict[str, Any]) -> dict[str, Any]:
    """How far the kept model is ahead of what was measured: where real photos alone stand in for copies, there is nothing more to tell."""
    told: dict[str, Any] = finished.get("ahead", {})
    return told if _copies_stand(finished) else {arm: own for arm, own in told.items() if arm != "copy_paste"}


def _content(session: Session, ledger: Ledger, real_only: Assessed) -> ReportContent:
    """All that is known before the test split is read."""
    rounds, manifest = ledger.rounds(), session.manifest
    kept, away = grids(session.run, session, [pair for r in rounds for pair in ledger.pairs(r.round)])
    legend = ", ".join(PAIR_HEADER)
    return ReportContent(
        title=session.run.name,
        real_only=dict(real_only.headline()),
        probed=tuple(ledger.probed()),
        rounds=tuple(rounds),
        asked=session.config.rounds,
        kept=() if kept is None else (Picture(kept, f"Kept pairs: {legend}"),),
        turned_away=() if away is None else (Picture(away, f"Turned away, with the reason: {legend}"),),
        data={
            split: manifest.count(split).removeprefix(f"{split}: ")
            for split in ("train", "validation", "test")
        }
        | {"split hash": manifest.hash},
        config={name: as_given(v) for name, v in flat(session.config.model_dump(mode="json")).items()},
        seconds=_seconds(ledger, real_only),
        reproduce=(session.command,),
        notes=(*manifest.notes, *caveats(ledger)),
    )


def as_given(value: object) -> str:
    """A setting as YAML and the command line take it."""
    return value if isinstance(value, str) and value else json.dumps(value)


def _closed(
    content: ReportContent, finished: dict[str, Any], best: Sequence[Picture], worst: Sequence[Picture]
) -> ReportContent:
    """With what the test split said."""
    test = finished["test"]
    return replace(
        content,
        before=test["real_only"],
        after=test["loop"],
        rival=test.get("copy_paste", {}),
        pairs=finished.get("pairs", 0),
        copies=finished.get("copies") or 0,
        copies_stand=_copies_stand(finished),
        ahead=_ahead(finished),
        best=tuple(best),
        worst=tuple(worst),
        seconds=finished["seconds"],
        notes=(*content.notes, *reads(finished)),
    )


def _predictions(
    session: Session, crew: Crew, best: Assessed, dice: dict[str, float]
) -> tuple[tuple[Picture, ...], tuple[Picture, ...]]:
    """The kept model's best and worst test photos with targets."""
    good, worst = best_and_worst(dice)
    maps = crew.score(best.revision, sorted({*worst, *good}))

    def picture(sample_id: str) -> Picture:
        image, mask = session.dataset.image(sample_id), session.dataset.mask(sample_id)
        tiles = prediction_tiles(image, mask, maps[sample_id], best.threshold)
        return Picture(
            strip(tiles), f"{sample_id}, soft Dice {dice[sample_id]:.2f}: {', '.join(PREDICTION_HEADER)}"
        )

    return tuple(map(picture, good)), tuple(map(picture, worst))


def best_and_worst(dice: dict[str, float]) -> tuple[list[str], list[str]]:
    """The photos of highest and of lowest Dice, the extreme ones first; none is in both, a photo alone counts as worst."""
    shown = sorted(dice, key=lambda i: (dice[i], i))
    count = min(_PREDICTIONS, (len(shown) + 1) // 2)
    return shown[count:][-count:][::-1], shown[:count]


def _valid_share(ledger: Ledger) -> float | None:
    """Share of the judged candidates that passed every validity check, whether they were needed or not."""
    pairs = [pair for result in ledger.rounds() for pair in ledger.pairs(result.round)]
    judged = [pair for pair in pairs if pair.reason != STOPPED]
    valid = [pair for pair in judged if pair.reason not in INVALID]
    return len(valid) / len(judged) if judged else None


def _seconds(ledger: Ledger, real_only: Assessed) -> dict[str, float]:
    """Wall-clock seconds by phase, over all rounds; a phase that was cut off counts from its last start, all but the generator's."""
    trained = ledger.milestone("generator") or {}
    # `trained_in` counts what starts that were cut off had done, too
    earlier = 0.0 if trained.get("reused") else float(trained.get("trained_in", 0))
    out = {
        "generator": max(float(trained.get("seconds", 0)), earlier),
        "extractor": float((ledger.milestone("extractor") or {}).get("seconds", 0)),
        "base": float((ledger.milestone("base") or {}).get("seconds", 0)),
        "real_only": real_only.seconds,
    }
    for result in ledger.rounds():
        for name, taken in result.seconds:
            out[name] = out.get(name, 0.0) + taken
    return {name: round(value, 2) for name, value in out.items()}
