"""The page of a sweep: what was found, whether it holds, every trial, and which settings go with which gains."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

from cdiff.data.storage import write_durably
from cdiff.evaluation import page
from jobs.session import Session
from tune.confirm import Confirmed
from tune.objective import Bench
from tune.outcome import Swept
from tune.space import Dimension, overlay

WIDTH, HEIGHT = 760, 250
_TOP, _BOTTOM = 34, 214


def write_page(session: Session, swept: Swept) -> Path:
    """Write RUN/report/sweep.html; returns where it is."""
    dimensions, trials, rungs = swept.dimensions, swept.trials, len(swept.bench.rungs)
    path = session.run.report_dir / "sweep.html"
    path.parent.mkdir(parents=True, exist_ok=True)
    body = [
        f"<header><h1>Sweep {page.text(session.run.name)}</h1>{page.paragraph(verdict(swept.best, swept.half_b))}</header>",
        page.section("Found", _found(session, swept)),
        page.section("Settings and gains", parallel(dimensions, trials, rungs), _PARALLEL),
        page.section(
            "Gain, validity and fidelity",
            page.columns(
                page.chart(
                    "Gain and valid share",
                    pareto(trials, "valid_share", True, rungs),
                    "share of pairs that the gate finds valid",
                ),
                page.chart(
                    "Gain and KID",
                    pareto(trials, "kid", False, rungs),
                    "distance to real targets; lower is nearer",
                ),
            ),
            page.paragraph(
                "Green: of the trials that came to the last rung, no other is better in both. Small and pale: stopped early, with the pairs and steps of an earlier rung, "
                "and so not compared.",
                True,
            ),
        ),
        page.section("Trials", _table(dimensions, trials, rungs)),
        page.section("Budget", page.facts(_budget(swept.bench)), f"<pre>{page.text(session.command)}</pre>"),
    ]
    write_durably(path, page.document(f"Sweep {session.run.name}", body).encode())
    return path


_PARALLEL = page.paragraph(
    "Every line is a trial, from its settings to its gain at its last rung; strong lines came to the last one, the thick line is the best.",
    True,
)


def verdict(best: Mapping[str, Any], half_b: Confirmed | None) -> str:
    """What a reader may believe, in a sentence."""
    gain = best["rungs"][-1]["gain"]
    said = f"The best trial gains {gain:+.3f} soft Dice on half A of validation over the same fit on real photos alone; it was chosen by that, so expect less."
    if half_b is None:
        return f"{said} Nothing was confirmed on half B."
    where = f"{half_b.mean:+.3f} [{half_b.low:+.3f}, {half_b.high:+.3f}]"
    if half_b.low > 0:
        return f"{said} On half B, with fresh seeds, it is better than the configured strengths: {where}."
    if half_b.high < 0:
        return f"{said} On half B, with fresh seeds, it is worse than the configured strengths: {where}. Keep those."
    return f"{said} On half B, with fresh seeds, it cannot be told from the configured strengths: {where}."


def parallel(dimensions: Sequence[Dimension], trials: Sequence[Mapping[str, Any]], rungs: int) -> str:
    """Parallel coordinates: an axis per setting that was searched, and one for the gain."""
    searched = [dimension for dimension in dimensions if not dimension.fixed]
    gains = [trial["rungs"][-1]["gain"] for trial in trials]
    low, high = min(gains), max(gains)
    room = (WIDTH - 90) / max(1, len(searched))

    def y(share: float) -> float:
        return _BOTTOM - (_BOTTOM - _TOP) * min(max(share, 0.0), 1.0)

    parts = []
    for number, dimension in enumerate(searched):
        x, up = 45 + number * room, number % 2 * 12
        ends = (
            (dimension.choices[0], dimension.choices[-1])
            if dimension.choices
            else (dimension.low, dimension.high)
        )
        parts.append(f'<line x1="{x:.1f}" x2="{x:.1f}" y1="{_TOP}" y2="{_BOTTOM}" class="axis"/>')
        name = escape(dimension.name.split(".", 1)[1])
        parts.append(
            f'<text x="{x:.1f}" y="{_TOP - 20 + up}" text-anchor="middle" class="soft small">{name}</text>'
        )
        for end, at in zip(ends, (_BOTTOM + 14, _TOP - 2 + 8), strict=True):
            shown = end if isinstance(end, str) else f"{end:g}"
            where = (
                f'x="{x + 3:.1f}"'
                if at < _BOTTOM and not dimension.choices
                else f'x="{x:.1f}" text-anchor="middle"'
            )
            parts.append(f'<text {where} y="{at}" class="soft small">{escape(str(shown))}</text>')
    last = WIDTH - 45
    parts.append(f'<line x1="{last}" x2="{last}" y1="{_TOP}" y2="{_BOTTOM}" class="axis"/>')
    parts.append(f'<text x="{last}" y="{_TOP - 20}" text-anchor="middle">gain</text>')
    for value, at in ((low, _BOTTOM + 14), (high, _TOP - 6)):
        parts.append(f'<text x="{last}" y="{at}" text-anchor="middle" class="soft small">{value:+.3f}</text>')
    best = max(trials, key=lambda t: (len(t["rungs"]), t["rungs"][-1]["gain"]))
    for trial in sorted(trials, key=lambda t: t["rungs"][-1]["gain"]):
        gain = trial["rungs"][-1]["gain"]
        share = (gain - low) / (high - low) if high > low else 0.5
        places = [(45 + i * room, y(d.share(trial["point"][d.name]))) for i, d in enumerate(searched)]
        path = " ".join(f"{x:.1f},{at:.1f}" for x, at in [*places, (last, y(share))])
        width = 3.0 if trial is best else 1.4
        opacity = 0.95 if len(trial["rungs"]) == rungs else 0.3
        hue = f"hsl({220 - 200 * share:.0f} 70% 45%)"  # blue is low, red is high
        parts.append(
            f'<polyline points="{path}" fill="none" stroke="{hue}" stroke-width="{width}" stroke-opacity="{opacity}">'
            f"<title>{escape(_line(trial))}</title></polyline>"
        )
    label = "settings of all trials and their gains"
    return f'<div class="wide"><svg viewBox="0 0 {WIDTH} {HEIGHT}" style="min-width:40rem;max-width:none;width:100%" role="img" aria-label="{label}">{"".join(parts)}</svg></div>'


def pareto(trials: Sequence[Mapping[str, Any]], name: str, more_is_better: bool, rungs: int) -> str:
    """Gain against another measure, and the front: what no other trial beats in both, of those that came to the last rung. Earlier ones have other budgets."""
    points = [
        (t["rungs"][-1][name], t["rungs"][-1]["gain"], t)
        for t in trials
        if t["rungs"][-1].get(name) is not None
    ]
    if not points:
        return ""
    sign = 1 if more_is_better else -1
    xs, ys = [x for x, _, _ in points], [y for _, y, _ in points]
    width, left, bottom, top = 360, 46, 190, 10

    def at(value: float, values: Sequence[float], first: float, last: float) -> float:
        span = max(values) - min(values)
        return first + (last - first) * ((value - min(values)) / span if span else 0.5)

    parts = [
        f'<rect x="{left}" y="{top}" width="{width - left - 10}" height="{bottom - top}" fill="none" class="axis"/>'
    ]
    for value, y in ((min(ys), bottom - 2), (max(ys), top + 10)):
        parts.append(f'<text x="{left - 4}" y="{y}" text-anchor="end" class="soft small">{value:+.3f}</text>')
    for value, x, anchor in ((min(xs), left, "start"), (max(xs), width - 10, "end")):
        parts.append(
            f'<text x="{x}" y="{bottom + 14}" text-anchor="{anchor}" class="soft small">{value:.3g}</text>'
        )
    for x, y, trial in points:
        early = len(trial["rungs"]) < rungs
        beaten = early or any(
            sign * a >= sign * x and b >= y and (a, b) != (x, y)
            for a, b, other in points
            if len(other["rungs"]) == rungs
        )
        cx, cy = at(x, xs, left + 8, width - 18), at(y, ys, bottom - 8, top + 8)
        kind = "before" if beaten else "after"
        radius, pale = 3 + len(trial["rungs"]), ' opacity="0.3"' if early else ""
        parts.append(
            f'<circle cx="{cx:.1f}" cy="{cy:.1f}" r="{radius}" class="{kind}"{pale}><title>{escape(_line(trial))}</title></circle>'
        )
    return (
        f'<svg viewBox="0 0 {width} 210" role="img" aria-label="gain against {name}">{"".join(parts)}</svg>'
    )


def _found(session: Session, swept: Swept) -> str:
    rows = []
    for name, found in (("half B of validation", swept.half_b), ("test split", swept.tested)):
        if found is not None:
            seeds = " ".join(f"{value:+.3f}" for value in found.per_seed)
            rows.append((name, page.signed(found.mean), f"[{found.low:+.3f}, {found.high:+.3f}]", seeds))
    header = ("found minus configured strengths", "soft Dice", "95 %", "by seed")
    text = overlay(session.config, swept.best["point"])
    return page.table(header, rows, (0,)) + f"<h3>Overlay</h3><pre>{page.text(text)}</pre>"


def _table(dimensions: Sequence[Dimension], trials: Sequence[Mapping[str, Any]], rungs: int) -> str:
    searched = [dimension for dimension in dimensions if not dimension.fixed]
    names = [d.name.split(".", 1)[1] for d in searched]
    header = ["#", "rung", "gain", "± error", "kept", "valid", "KID", *names]
    rows = []
    order = sorted(
        enumerate(trials, 1), key=lambda pair: (-len(pair[1]["rungs"]), -pair[1]["rungs"][-1]["gain"])
    )
    for number, trial in order:
        last = trial["rungs"][-1]
        rows.append(
            (
                number,
                f"{len(trial['rungs'])} of {rungs}",
                page.signed(last["gain"], 4),
                _number(last.get("error"), 4),
                last["kept"],
                _number(last.get("valid_share"), 2),
                _number(last.get("kid"), 3),
                *(_value(trial["point"][d.name]) for d in searched),
            )
        )
    return page.table(header, rows)


def _budget(bench: Bench) -> dict[str, object]:
    told = [f"{rung.pairs} pairs, {rung.steps} steps" for rung in bench.rungs]
    return {
        "rungs": "; ".join(told),
        "half A": f"{len(bench.photos)} photos with {len(bench.targets)} targets",
        "mining arm": bench.config.wasm.arm,
    }


def _line(trial: Mapping[str, Any]) -> str:
    point = ", ".join(f"{name.split('.', 1)[1]} {_value(value)}" for name, value in trial["point"].items())
    return f"gain {trial['rungs'][-1]['gain']:+.4f}, {len(trial['rungs'])} rungs: {point}"


def _value(value: float | int | str) -> str:
    return value if isinstance(value, str) else f"{value:.3g}"


def _number(value: float | None, digits: int) -> str:
    return "–" if value is None else f"{value:.{digits}f}"
