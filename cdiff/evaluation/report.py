"""The final report: one HTML page that says what a run did, how it is known, and where it fell short.

headline        test metrics before and after
before/after    all metrics, and per type
rounds          validation by round, the gain that decided, its interval
predictions     best and worst
pairs           kept, turned away, and why
weakness        the ranking by round
run             data, time, settings, how to do it again
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cdiff.data.storage import write_durably
from cdiff.evaluation import charts, page
from cdiff.evaluation.comparison import excludes_zero
from cdiff.evaluation.report_metrics import METRICS, between, cards, metrics, number
from cdiff.types import LEAST_CHANCE, QUARANTINED, Decision, Gain, RoundResult

SHOWN_SLICES = 8  # bars per round; the table below has all


@dataclass(frozen=True, slots=True)
class Picture:
    """A picture with what to see in it: uint8 [H, W, 3] or [H, W]."""

    pixels: NDArray[np.uint8]
    caption: str


@dataclass(frozen=True, slots=True)
class ReportContent:
    """Everything that the report shows; it computes nothing of its own.

    Args:
        before, after: `protocol.evaluate` on the test split, of the model of real photos alone and of the one kept last; {} until it is read.
        rival: of the model of as many pasted copies of real targets, or of real photos alone where validation did not keep that; {} where
            there is none.
        ahead: by rival ("real_only", "copy_paste"), the kept model's pixel AP less its own: {"gain", "low", "high"}, the latter
            None where one source object shows all targets.
        pairs, copies: how many pairs the kept model has, and how many copies its rival. copies_stand: whether validation kept that.
        asked: rounds that the run is to have.
        real_only: validation metrics of the model of real photos alone: round 0 of the chart.
        probed: what the probe before the first round found pairs to bring.
        rounds: as in the ledger: weaknesses, counts, decisions, gains and seconds are read from them.
        seconds: phase, seconds, for the whole run.
        reproduce: command lines.
        notes: what the reader must know to judge: unscored types, dropped photos, stopped slices.
    """

    title: str
    before: Mapping[str, Any] = field(default_factory=dict)
    after: Mapping[str, Any] = field(default_factory=dict)
    rival: Mapping[str, Any] = field(default_factory=dict)
    ahead: Mapping[str, Mapping[str, float | None]] = field(default_factory=dict)
    pairs: int = 0
    copies: int = 0
    copies_stand: bool = True
    asked: int = 0
    real_only: Mapping[str, float] = field(default_factory=dict)
    probed: tuple[Gain, ...] = ()
    rounds: tuple[RoundResult, ...] = ()
    best: tuple[Picture, ...] = ()
    worst: tuple[Picture, ...] = ()
    kept: tuple[Picture, ...] = ()
    turned_away: tuple[Picture, ...] = ()
    data: Mapping[str, object] = field(default_factory=dict)
    config: Mapping[str, object] = field(default_factory=dict)
    seconds: Mapping[str, float] = field(default_factory=dict)
    reproduce: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()


def write_report(path: Path, content: ReportContent) -> Path:
    """Write the page, whole or not at all; returns where it is."""
    path.parent.mkdir(parents=True, exist_ok=True)
    write_durably(path, render(content).encode())
    return path


def render(content: ReportContent) -> str:
    """The page as HTML; it needs no other file, no script and no network."""
    body = [
        f"<header><h1>{page.text(content.title)}</h1>{page.paragraph(_verdict(content))}</header>",
        cards(content.before, content.after) if content.before else "",
        _notes(content),
        metrics(content.before, content.after, content.rival, content.ahead) if content.before else "",
        _rounds(content),
        page.section(
            "Predictions on the test split",
            _gallery("Best", content.best),
            _gallery("Worst", content.worst),
        ),
        page.section(
            "Generated pairs",
            _gallery("Kept", content.kept),
            _gallery("Turned away", content.turned_away),
            _counts(content.rounds),
        ),
        _weaknesses(content),
        _run(content),
    ]
    return page.document(content.title, body)


def _verdict(content: ReportContent) -> str:
    stood = [result.round for result in content.rounds if result.decision.stands]
    before, after = content.before.get("pixel_ap"), content.after.get("pixel_ap")
    if not content.before:
        done = len(content.rounds)
        return f"{done} of {max(done, content.asked)} rounds are done. The test split is read after the last one; until then nothing here tells of it."
    if not stood:
        return "No round's model was kept on validation: the model of real photos alone stands."
    accepted = [
        str(result.round)
        for result in content.rounds
        if result.decision.accepted and result.round <= stood[-1]
    ]
    which = f"round{'s' if len(accepted) > 1 else ''} {', '.join(accepted)} of {len(content.rounds)}"
    if before is None or after is None:
        return f"Kept on validation: {which}. Pixel AP is undefined on this test split."
    return (
        f"On the test split pixel AP {_moved(before, after)} with the pairs of {which}{_interval(content)}.{_copies(content)} "
        "This is one run with one seed: only several seeds tell whether the change holds, and jobs/benchmark.py quality measures that."
    )


def _moved(before: float, after: float) -> str:
    """What became of a metric, as it is shown."""
    old, new = f"{before:.3f}", f"{after:.3f}"
    return f"stayed at {new}" if old == new else f"{'rose' if after > before else 'fell'} from {old} to {new}"


def _interval(content: ReportContent) -> str:
    """How sure that change is, where there is an interval."""
    told = content.ahead.get("real_only", {})
    low, high = told.get("low"), told.get("high")
    if low is None or high is None:
        return ""
    doubt = "" if excludes_zero(low, high) else ": chance alone may explain it"
    return f" (95 % interval of the change over source objects {between(low, high)}){doubt}"


def _copies(content: ReportContent) -> str:
    """What stands beside the kept model, as a further sentence."""
    reached = content.rival.get("pixel_ap")
    if reached is None:
        return ""
    told = f" {content.copies} pasted copies of real targets in place of its {content.pairs} pairs"
    if not content.copies_stand:
        return f"{told} were not kept on validation, by the same rule: real photos alone stand in for them."
    return f"{told} reach {reached:.3f}."


def _notes(content: ReportContent) -> str:
    return page.section("Before you trust these numbers", page.listing(content.notes))


def _rounds(content: ReportContent) -> str:
    if not content.rounds:
        return ""
    found = [(r, dict(r.validation), r.decision) for r in content.rounds]
    name = next((name for name in METRICS if all(name in values for _, values, _ in found)), None)
    label = METRICS[name][0] if name else ""
    first = ""
    if name:
        drawn = charts.rounds(
            content.real_only.get(name),
            [(r.round, v[name], d.stands) for r, v, d in found],
            f"validation {label} by round",
        )
        first = page.chart(
            f"Validation {label} by round",
            drawn,
            "Filled: a model that was kept. Dashed: real photos alone.",
        )
    drawn = charts.intervals(
        [(r.round, d.gain, d.low, d.high, d.stands) for r, _, d in found], "gain by round"
    )
    second = page.chart(
        "Gain that decided",
        drawn,
        "Change of validation pixel AP against the best model before, 95 % interval over source objects (one alone has none). "
        "Chance: share of the bootstrap in which it is better than that model, or than real photos alone if that share is "
        f"smaller; a model below {LEAST_CHANCE} is not kept.",
    )
    rows = [
        (
            r.round,
            r.kept,
            number(v.get(name)) if name else "–",
            page.signed(d.gain),
            between(d.low, d.high),
            f"{d.chance:.3f}",
            _badge(d),
            d.reason,
        )
        for r, v, d in found
    ]
    header = (
        "round",
        "pairs kept",
        f"validation {label}",
        "gain",
        "95 % interval",
        "chance",
        "decision",
        "why",
    )
    return page.section("Round by round", page.columns(first, second), page.table(header, rows, prose=(7,)))


def _gallery(title: str, pictures: Sequence[Picture]) -> str:
    if not pictures:
        return ""
    shown = "".join(page.figure(picture.pixels, picture.caption) for picture in pictures)
    return f'<h3>{page.text(title)}</h3><div class="pictures">{shown}</div>'


def _counts(rounds: Sequence[RoundResult]) -> str:
    """Kept and turned away, by slice and reason, all rounds together."""
    sums: dict[tuple[str, str], int] = {}
    for result in rounds:
        for name, reason, count in result.counts:
            sums[name, reason] = sums.get((name, reason), 0) + count
    reasons = sorted({reason for _, reason in sums}, key=lambda reason: (reason != "kept", reason))
    slices = sorted({name for name, _ in sums})
    rows: list[list[object]] = [
        [
            name,
            *(sums.get((name, reason), 0) or "" for reason in reasons),
            sum(sums.get((name, r), 0) for r in reasons if r != QUARANTINED),
        ]
        for name in slices
    ]
    totals = [sum(sums.get((name, reason), 0) for name in slices) for reason in reasons]
    if rows:
        made = sum(total for reason, total in zip(reasons, totals, strict=True) if reason != QUARANTINED)
        rows.append(["all", *totals, made])
    drawn = page.table(("slice", *reasons, "made"), rows, total=True)
    return f"<h3>Counted by slice and reason</h3>{drawn}" if drawn else ""


def _weaknesses(content: ReportContent) -> str:
    parts, tables = [], []
    for result in content.rounds:
        ranked = sorted(result.weaknesses, key=lambda weakness: -weakness.score)
        rows = [
            (w.slice.name, w.score, f"{w.score:.2f} · {len(w.targets)} targets")
            for w in ranked[:SHOWN_SLICES]
        ]
        if rows:
            parts.append(
                page.chart(f"Round {result.round}", charts.bars(rows, f"weakness in round {result.round}"))
            )
        lines = [
            (
                w.slice.name,
                len(w.targets),
                f"{w.score:.3f}",
                f"{w.loss:.3f}",
                f"{w.soft_dice:.3f}",
                f"{w.missed:.0%}",
            )
            for w in ranked
        ]
        drawn = page.table(("slice", "targets", "weakness", "loss", "soft Dice", "area missed"), lines)
        alarms = [
            f"{w.slice.name}: the highest score on a photo without a target is {w.score:.2f}, mean of {len(w.targets)} photos"
            for w in result.alarms
        ]
        told = page.paragraph("False alarms. " + "; ".join(alarms) + ".", True) if alarms else ""
        tables.append(f"<h3>Round {result.round}</h3>{drawn}{told}" if drawn else "")
    explained = page.paragraph(
        "How much cross-fitted models lose on real training targets, weakest first; pairs were aimed here.",
        True,
    )
    return (
        page.section(
            "Where the segmenter was weak",
            explained,
            page.columns(*(parts if len(parts) <= 2 else (parts[0], parts[-1]))),
            page.details("The rounds between", page.columns(*parts[1:-1])) if len(parts) > 2 else "",
            page.details("All slices", *tables),
            _gains(content),
        )
        if parts
        else ""
    )


def _gains(content: ReportContent) -> str:
    found = [("probe", g) for g in content.probed] + [
        (str(r.round), g) for r in content.rounds for g in r.gains
    ]
    rows = [
        (name, g.slice, f"{g.start_strength:g}", g.pairs, g.targets, page.signed(g.gain), f"{g.error:.3f}")
        for name, g in found
    ]
    header = (
        "round",
        "slice",
        "start strength",
        "pairs",
        "validation targets",
        "gain per 100 pairs",
        "± error",
    )
    drawn = page.table(header, rows)
    told = "Change of mean soft Dice on validation targets, by slice: the next budget learned from it."
    return page.details("What pairs brought", page.paragraph(told, True), drawn) if drawn else ""


def _run(content: ReportContent) -> str:
    commands = "".join(f"<pre>{page.text(line)}</pre>" for line in content.reproduce)
    seconds = [(phase, _duration(value)) for phase, value in content.seconds.items() if value]
    if seconds:
        seconds.append(("all of these", _duration(sum(content.seconds.values()))))
    time = page.table(("phase", "time"), seconds, total=True)
    return page.section(
        "The run",
        f"<h3>How to do it again</h3>{commands}" if commands else "",
        page.columns(
            "<h3>Data</h3>" + page.facts(content.data) if content.data else "",
            f"<h3>Time</h3>{time}" if time else "",
        ),
        page.details("Settings", page.facts(content.config)),
    )


def _badge(decision: Decision) -> page.Markup:
    """A rejected round's pairs are not trained on; an accepted one's are, whether its own model was kept or not."""
    told, kind = (
        ("kept", "up") if decision.stands else ("accepted", "") if decision.accepted else ("rejected", "down")
    )
    return page.Markup(f'<span class="badge {kind}">{told}</span>')


def _duration(seconds: float) -> str:
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes:02d} min" if hours else f"{minutes} min {rest:02d} s"
