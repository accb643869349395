"""What the loop tells: each round to MLflow, and at the end the test split, read once, and the report."""

from __future__ import annotations

import resource
import sys
from collections.abc import Iterable, Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import psutil

from actors.crew import Assessed, Crew
from actors.resources import code_hash
from cdiff.data.carriers import from_json
from cdiff.data.images import Limits, decode_mask_png, decode_png
from cdiff.data.ledger import Ledger
from cdiff.data.run import Run
from cdiff.data.store import read_crops, read_pair
from cdiff.evaluation.pictures import (
    PAIR_HEADER,
    PREDICTION_HEADER,
    folded,
    pair_tiles,
    prediction_tiles,
    strip,
)
from cdiff.evaluation.report import Picture, ReportContent, write_report
from cdiff.generator.crops import cut
from cdiff.tracking import Tracker
from cdiff.types import Decision, Pair, RoundResult
from cdiff.wasm.quality import INVALID, STOPPED

if TYPE_CHECKING:
    from jobs.session import Session

_SHOWN = 12  # pairs per grid
_PREDICTIONS = 4  # best and worst ones
_SIDE = 128
_DECISION = ("gain", "low", "high", "chance", "accepted", "stands")  # as metrics


def log_round(
    session: Session, tracker: Tracker, result: RoundResult, pairs: Sequence[Pair], fitted: Assessed
) -> None:
    """One line for a person, and everything of the round for MLflow; the ledger then knows that it is there."""
    reasons: dict[str, int] = {}
    for _, reason, count in result.counts:
        reasons[reason] = reasons.get(reason, 0) + count
    told = " ".join(
        f"{name.replace(' ', '_')}={count}" for name, count in sorted(reasons.items()) if name != "kept"
    )
    human = len(_human(session.ledger, result.round))
    decision = result.decision
    merged = sorted({w.slice.category for w in result.weaknesses if not w.slice.type})
    if result.round == 1 and merged:
        fewest = session.config.wasm.min_targets
        print(
            f"note       {', '.join(merged)}: types of fewer than {fewest} training targets are ranked together "
            "(wasm.min_targets)"
        )
    by_people = f"by_people={human} " if human else ""
    print(
        f"round={result.round} kept={result.kept} {by_people}turned_away={len(pairs) - result.kept} ({told or 'none'}) "
        f"gain={decision.gain:+.4f} [{decision.low:+.4f}, {decision.high:+.4f}] chance={decision.chance:.3f} "
        f"{_verdict(decision)}",
        flush=True,
    )
    with tracker.round(result.round) as log:
        log.metrics(
            {
                "validation": fitted.scores,
                "pairs": {**reasons, "human": human},
                "seconds": dict(result.seconds),
            }
        )
        log.metrics({"decision": {name: float(getattr(decision, name)) for name in _DECISION}})
        log.metrics({"fit": {"loss": fitted.losses[-1]}})
        log.table("weakness", _weakness_table(result))
        log.table("gains", pd.DataFrame([asdict(gain) for gain in result.gains]))
        log.table("counts", pd.DataFrame(result.counts, columns=["slice", "verdict", "count"]))
        kept, away = _grids(session.run, session, pairs)
        for name, pixels in (("pairs_kept", kept), ("pairs_turned_away", away)):
            if pixels is not None:
                log.picture(name, pixels)
    session.ledger.record(f"logged-{result.round}", run_id=tracker.run_id)


def log_missed(session: Session, tracker: Tracker) -> None:
    """Log the committed rounds that this MLflow run may lack: an earlier start ended before it came to that, or logged to another one."""
    ledger = session.ledger
    for result in ledger.rounds():
        logged = ledger.milestone(f"logged-{result.round}") or {}
        if logged.get("run_id") != tracker.run_id:
            found = (ledger.milestone(f"round-{result.round}") or {})["assessed"]
            log_round(session, tracker, result, ledger.pairs(result.round), from_json(Assessed, found))


def _verdict(decision: Decision) -> str:
    if not decision.accepted:
        return f"rejected: {decision.reason}"
    return "accepted, its model is kept" if decision.stands else "accepted, but the model before stays"


def log_start(tracker: Tracker, ledger: Ledger, real_only: Assessed) -> None:
    """What stands before the first round, as step 0."""
    generator = ledger.milestone("generator") or {}
    for number, loss in enumerate(generator.get("losses", [])):
        tracker.metrics({"generator/loss": loss}, step=number)
    tracker.metrics({"validation": real_only.scores, "seconds/fit": real_only.seconds}, step=0)
    print(
        "rounds     gain: validation pixel AP less that of the best model so far, with 95 % of a bootstrap; "
        "chance: share of it in which the round is better",
        flush=True,
    )


def close(
    session: Session, crew: Crew, ledger: Ledger, tracker: Tracker, real_only: Assessed, best: Assessed
) -> None:
    """Read the test split for the first and only time, then report. A run that is closed reports again from the ledger; one that
    was asked for more rounds afterwards reads it again, and says so."""
    test = session.manifest.ids("test")
    finished = ledger.closing()
    if finished is None:
        if ledger.last("finished"):
            print(
                "note       the test split was read before these rounds: what was chosen since is no clean test",
                flush=True,
            )
        before = crew.evaluate(real_only.revision, test, real_only.threshold)
        same = best.revision == real_only.revision
        after = before if same else crew.evaluate(best.revision, test, best.threshold)
        ledger.append(
            "finished",
            test_reads=1 + len([event for event in ledger.events() if event["kind"] == "finished"]),
            test={"real_only": before.scores, "loop": after.scores},
            dice=after.dice,
            pairs=len(ledger.kept_pairs(until=ledger.best_round())),
            pairs_accepted=len(ledger.kept_pairs()),
            valid_share=_valid_share(ledger),
            accepted_rounds=[result.round for result in ledger.rounds() if result.decision.accepted],
            best_round=ledger.best_round(),
            seconds=_seconds(ledger, real_only),
            peak_memory_gb=peak_memory_gb(),
            code=code_hash(),
        )
        finished = ledger.closing() or {}
    path = write_report(
        session.run.report_dir / "report.html", _content(session, crew, ledger, finished, real_only, best)
    )
    session.run.publish("report")
    tracker.metrics({"test": finished["test"], "best": best.scores})
    tracker.artifact(path, "report")
    _tell(session, finished, path, real_only_stands=best.revision == real_only.revision)


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
    before, after = finished["test"]["real_only"], finished["test"]["loop"]
    reads = "read once" if finished.get("test_reads", 1) == 1 else f"read {finished['test_reads']}x"
    print(f"\ntest split, {reads}   real photos alone   with the loop's pairs")
    for name in ("pixel_ap", "f1_max", "iou", "mdice"):
        if before[name] is not None:
            print(f"  {name:20s}  {before[name]:17.4f}   {after[name]:21.4f}")
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


def _by_people(ledger: Ledger) -> list[str]:
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


def _human(ledger: Ledger, until: int | None = None) -> list[tuple[int, Pair]]:
    """Pairs that people made and nobody rejected since, with the first round that trains on each."""
    away = ledger.rejected()
    made = [(number, pair) for number, pair in ledger.human_pairs() if pair.task_id not in away]
    return [(number, pair) for number, pair in made if until is None or number <= until]


def _reads(finished: dict[str, Any]) -> list[str]:
    """What a reader must know where the test split is no longer clean."""
    reads = finished.get("test_reads", 1)
    if reads == 1:
        return []
    return [
        f"the test split was read {reads} times, after which rounds were added: it may have served to decide how many"
    ]


def _content(
    session: Session,
    crew: Crew,
    ledger: Ledger,
    finished: dict[str, Any],
    real_only: Assessed,
    best: Assessed,
) -> ReportContent:
    rounds = ledger.rounds()
    manifest = session.manifest
    pairs = [pair for result in rounds for pair in ledger.pairs(result.round)]
    kept, away = _grids(session.run, session, pairs)
    good, bad = _predictions(session, crew, best, finished["dice"])
    legend = ", ".join(PAIR_HEADER)
    return ReportContent(
        title=session.run.name,
        before=finished["test"]["real_only"],
        after=finished["test"]["loop"],
        real_only=dict(real_only.headline()),
        rounds=tuple(rounds),
        best=good,
        worst=bad,
        kept=() if kept is None else (Picture(kept, f"Kept pairs: {legend}"),),
        turned_away=() if away is None else (Picture(away, f"Turned away, with the reason: {legend}"),),
        data={split: manifest.count(split) for split in ("train", "validation", "test")}
        | {"split hash": manifest.hash},
        config=session.config.model_dump(mode="json"),
        seconds=finished["seconds"],
        reproduce=(session.command,),
        notes=(*manifest.notes, *_reads(finished), *_by_people(ledger)),
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


def _grids(run: Run, session: Session, pairs: Sequence[Pair]) -> tuple[np.ndarray | None, np.ndarray | None]:
    """Grids of kept and of turned-away pairs, spread evenly over slices and reasons."""
    kept = [pair for pair in pairs if pair.kept]
    invalid = [pair for pair in pairs if pair.reason in INVALID]
    selected = [pair for pair in pairs if not pair.kept and pair.reason not in INVALID]
    away = _spread(invalid, _SHOWN) or _spread(selected, _SHOWN)
    return _grid(run, session, _spread(kept, _SHOWN)), _grid(run, session, away)


def _spread(pairs: Sequence[Pair], count: int) -> list[Pair]:
    ordered = sorted(
        pairs, key=lambda pair: (pair.attempt.category, pair.attempt.type, pair.reason, pair.task_id)
    )
    places = np.unique(np.linspace(0, len(ordered) - 1, min(count, len(ordered))).round().astype(int))
    return [ordered[i] for i in places]


def pair_grid(session: Session, pairs: Sequence[Pair]) -> np.ndarray | None:
    """Some of the pairs as tiles, spread evenly over types; None without any."""
    return _grid(session.run, session, _spread(pairs, _SHOWN))


def _grid(run: Run, session: Session, pairs: Iterable[Pair]) -> np.ndarray | None:
    limits = Limits.of(session.config.data)
    rows, captions = [], []
    for pair in pairs:
        crop, reference, region = read_crops(run, pair.attempt)
        result = decode_png(crop, limits)
        mask = decode_mask_png(read_pair(run, pair.attempt)[1], limits)
        box = _box(session, pair, result.shape[0])
        background = cut(session.dataset.image(pair.attempt.assignment.task.background), box)
        inside = decode_mask_png(region, limits)
        rows.append(
            pair_tiles(decode_png(reference, limits), background, inside, result, cut(mask, box), _SIDE)
        )
        loss = dict(pair.attempt.measures).get("loss")
        told = "" if loss is None else f"loss {loss:.2f}  "
        captions.append(f"{pair.attempt.category}/{pair.attempt.type}  {told}{pair.reason or 'kept'}")
    return folded(rows, captions, PAIR_HEADER) if rows else None


def _box(session: Session, pair: Pair, side: int) -> tuple[int, int, int, int]:
    left, top = (int(pair.attempt.measure(name)) for name in ("crop_left", "crop_top"))
    return left, top, left + side, top + side


def _weakness_table(result: RoundResult) -> pd.DataFrame:
    named = [(w.slice.name, w) for w in result.weaknesses]
    named += [(f"{w.slice.name} (no target)", w) for w in result.alarms]
    rows = [(name, len(w.targets), w.score, w.loss, w.soft_dice, w.missed) for name, w in named]
    return pd.DataFrame(rows, columns=["slice", "targets", "score", "loss", "soft_dice", "missed"])


def _valid_share(ledger: Ledger) -> float | None:
    """Share of the judged candidates that passed every validity check, whether they were needed or not."""
    pairs = [pair for result in ledger.rounds() for pair in ledger.pairs(result.round)]
    judged = [pair for pair in pairs if pair.reason != STOPPED]
    valid = [pair for pair in judged if pair.reason not in INVALID]
    return len(valid) / len(judged) if judged else None


def _seconds(ledger: Ledger, real_only: Assessed) -> dict[str, float]:
    """Wall-clock seconds by phase, over all rounds."""
    out = {
        "generator": float((ledger.milestone("generator") or {}).get("seconds", 0)),
        "base": float((ledger.milestone("base") or {}).get("seconds", 0)),
        "real_only": real_only.seconds,
    }
    for result in ledger.rounds():
        for name, taken in result.seconds:
            out[name] = out.get(name, 0.0) + taken
    return {name: round(value, 2) for name, value in out.items()}
