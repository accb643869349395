"""Small SVG charts for the report: no script, readable at phone width, values also as text."""

from __future__ import annotations

import math
from collections.abc import Sequence
from html import escape

from cdiff.evaluation.comparison import excludes_zero

WIDTH = 360  # units; the page scales charts to their column
LEFT, RIGHT = 40, 12


def bars(rows: Sequence[tuple[str, float, str]], label: str) -> str:
    """Horizontal bars in [0, 1], longest first as given: (name, value, note at the right end)."""
    parts = []
    for number, (name, value, note) in enumerate(rows):
        y = 4 + number * 34
        length = (WIDTH - 8) * min(max(value, 0.0), 1.0)
        parts.append(
            f'<text x="4" y="{y + 11}">{escape(_short(name))}</text>'
            f'<text x="{WIDTH - 4}" y="{y + 11}" text-anchor="end" class="soft">{escape(note)}</text>'
            f'<rect x="4" y="{y + 16}" width="{WIDTH - 8}" height="8" rx="2" class="track"/>'
            f'<rect x="4" y="{y + 16}" width="{length:.1f}" height="8" rx="2" class="weak"/>'
        )
    return _svg(4 + len(rows) * 34, parts, label)


def dumbbells(rows: Sequence[tuple[str, float | None, float | None]], label: str) -> str:
    """Before and after per name, on one axis from 0 to 1."""
    parts = []
    for number, (name, before, after) in enumerate(rows):
        y = 4 + number * 38
        parts.append(f'<text x="4" y="{y + 11}">{escape(_short(name))}</text>')
        parts.append(f'<line x1="10" x2="{WIDTH - 10}" y1="{y + 23}" y2="{y + 23}" class="axis"/>')
        at = [10 + (WIDTH - 20) * value if value is not None else None for value in (before, after)]
        if at[0] is not None and at[1] is not None:
            kind = "gain" if at[1] >= at[0] else "loss"
            parts.append(
                f'<line x1="{at[0]:.1f}" x2="{at[1]:.1f}" y1="{y + 23}" y2="{y + 23}" class="{kind}"/>'
            )
        for where, kind, value in zip(at, ("before", "after"), (before, after), strict=True):
            if where is not None:
                parts.append(
                    f'<circle cx="{where:.1f}" cy="{y + 23}" r="5" class="{kind}"><title>{kind}: {value:.3f}</title></circle>'
                )
        note = " → ".join("–" if value is None else f"{value:.3f}" for value in (before, after))
        parts.append(f'<text x="{WIDTH - 4}" y="{y + 11}" text-anchor="end" class="soft">{note}</text>')
    return _svg(8 + len(rows) * 38, parts, label)


def rounds(baseline: float | None, points: Sequence[tuple[int, float, bool]], label: str) -> str:
    """A value by round, with the baseline as round 0; rounds whose model was not kept are hollow."""
    values = [value for _, value, _ in points] + ([baseline] if baseline is not None else [])
    axis = _Axis(values, [0, *(number for number, _, _ in points)])
    parts = axis.frame()
    if baseline is not None:
        y = axis.y(baseline)
        parts.append(f'<line x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{y:.1f}" y2="{y:.1f}" class="base"/>')
        parts.append(
            f'<circle cx="{axis.x(0):.1f}" cy="{y:.1f}" r="4.5" class="before"><title>real only: {baseline:.3f}</title></circle>'
        )
    path = " ".join(f"{axis.x(number):.1f},{axis.y(value):.1f}" for number, value, _ in points)
    start = f"{axis.x(0):.1f},{axis.y(baseline):.1f} " if baseline is not None else ""
    parts.append(f'<polyline points="{start}{path}" class="line"/>')
    for number, value, kept in points:
        kind = "after" if kept else "hollow"
        title = f"round {number}: {value:.3f}{', kept' if kept else ''}"
        parts.append(
            f'<circle cx="{axis.x(number):.1f}" cy="{axis.y(value):.1f}" r="4.5" class="{kind}"><title>{title}</title></circle>'
            f'<text x="{axis.x(number):.1f}" y="{axis.y(value) - 9:.1f}" text-anchor="middle">{value:.3f}</text>'
        )
    return _svg(axis.height, parts, label)


def intervals(points: Sequence[tuple[int, float, float | None, float | None, bool]], label: str) -> str:
    """Differences by round with their intervals (round, mean, low, high, kept), against a line at zero; one without ends is a dot."""
    values = [value for point in points for value in point[1:4] if value is not None]
    axis = _Axis([0.0, *values], [number for number, *_ in points])
    parts = axis.frame()
    zero = axis.y(0)
    parts.append(f'<line x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{zero:.1f}" y2="{zero:.1f}" class="base"/>')
    for number, mean, low, high, kept in points:
        x, kind = axis.x(number), "after" if kept else "hollow"
        title = f"round {number}: {mean:+.3f}"
        if low is not None and high is not None:
            ends = [axis.y(low), axis.y(high)]
            drawn = [(x, x, *ends), *((x - 5, x + 5, y, y) for y in ends)]
            parts += [
                f'<line x1="{a:.1f}" x2="{b:.1f}" y1="{y:.1f}" y2="{z:.1f}" class="whisker"/>'
                for a, b, y, z in drawn
            ]
            title += f" [{low:+.3f}, {high:+.3f}]"
        parts.append(
            f'<circle cx="{x:.1f}" cy="{axis.y(mean):.1f}" r="4.5" class="{kind}"><title>{title}</title></circle>'
            f'<text x="{x + 9:.1f}" y="{axis.y(mean) + 4:.1f}">{mean:+.3f}</text>'
        )
    return _svg(axis.height, parts, label)


def forest(rows: Sequence[tuple[str, float, float, float]], label: str) -> str:
    """Differences by name with their intervals (name, mean, low, high), lying, against a line at zero; sure ones filled."""
    ends = [0.0, *(value for row in rows for value in row[1:])]
    low, high = min(ends), max(ends)
    room = max(high - low, 1e-3)

    def x(value: float) -> float:
        return 10 + (WIDTH - 20) * (value - low) / room

    bottom = 8 + len(rows) * 38
    parts = [f'<line x1="{x(0):.1f}" x2="{x(0):.1f}" y1="0" y2="{bottom}" class="base"/>']
    for number, (name, mean, least, most) in enumerate(rows):
        y = 27 + number * 38
        sure = excludes_zero(least, most)
        kind = "hollow" if not sure else "after" if mean > 0 else "before"
        parts.append(f'<text x="4" y="{y - 12}">{escape(_short(name))}</text>')
        parts.append(
            f'<text x="{WIDTH - 4}" y="{y - 12}" text-anchor="end" class="soft">'
            f"{mean:+.3f} [{least:+.3f}, {most:+.3f}]</text>"
        )
        parts.append(f'<line x1="{x(least):.1f}" x2="{x(most):.1f}" y1="{y}" y2="{y}" class="whisker"/>')
        parts.append(f'<circle cx="{x(mean):.1f}" cy="{y}" r="4.5" class="{kind}"/>')
    return _svg(bottom, parts, label)


def curves(lines: Sequence[tuple[str, Sequence[int], Sequence[float]]], label: str) -> str:
    """How values change over steps from where each line begins (name, steps, values); the last change stands at its end.

    Lines begin at levels of their own: on one axis these would hide whether any still rises.
    """
    changes = [(name, steps, [value - values[0] for value in values]) for name, steps, values in lines]
    axis = _Axis([v for _, _, values in changes for v in values], [n for _, steps, _ in lines for n in steps])
    parts = axis.frame(most=6)
    ends: list[tuple[float, float, float]] = []  # x, y and change
    for (name, steps, values), (_, _, levels) in zip(changes, lines, strict=True):
        places = [(axis.x(n), axis.y(value)) for n, value in zip(steps, values, strict=True)]
        path = " ".join(f"{x:.1f},{y:.1f}" for x, y in places)
        parts.append(f'<polyline points="{path}" class="line"><title>{escape(name)}</title></polyline>')
        for (x, y), n, level in zip(places, steps, levels, strict=True):
            title = f"{escape(name)}, {n:,} steps: {level:.3f}"
            parts.append(
                f'<circle cx="{x:.1f}" cy="{y:.1f}" r="3" class="before"><title>{title}</title></circle>'
            )
        ends.append((*places[-1], values[-1]))
    for x in sorted({x for x, _, _ in ends}):
        own = sorted((y, change) for at, y, change in ends if at == x)
        for y, (_, change) in zip(_apart([y for y, _ in own]), own, strict=True):
            shown = f"{change:+.3f}" if round(change, 3) else "0"
            parts.append(f'<text x="{x + 6:.1f}" y="{y + 4:.1f}">{shown}</text>')
    return _svg(axis.height, parts, label)


def _apart(heights: Sequence[float], least: float = 12.0) -> list[float]:
    """Heights of labels, in order, moved as little down, then up as keeps them from covering each other."""
    out = list(heights)
    for i in range(1, len(out)):
        out[i] = max(out[i], out[i - 1] + least)
    lift = max(0.0, out[-1] - heights[-1]) / 2 if out else 0.0  # half of the push goes up
    return [y - lift for y in out]


class _Axis:
    """Maps rounds or steps and values to the drawing: the former evenly, values over a range of round numbers."""

    height, top, bottom = 190, 22, 162

    def __init__(self, values: Sequence[float], numbers: Sequence[int]) -> None:
        low, high = min(values), max(values)
        span = max(high - low, 0.02)
        self.step = _round_step(span / 3)
        self.low = math.floor((low - span * 0.08) / self.step) * self.step
        self.high = math.ceil((high + span * 0.08) / self.step) * self.step
        self.numbers = sorted(set(numbers))

    def x(self, number: int) -> float:
        room = (WIDTH - LEFT - RIGHT) / len(self.numbers)
        return LEFT + room * (self.numbers.index(number) + 0.5)

    def y(self, value: float) -> float:
        return self.bottom - (self.bottom - self.top) * (value - self.low) / (self.high - self.low)

    def frame(self, most: int = 12) -> list[str]:
        """Grid lines with their values, rounds or steps under them; `most` labels of these."""
        parts = []
        digits = max(0, -math.floor(math.log10(self.step)))
        for tick in range(round((self.high - self.low) / self.step) + 1):
            value = self.low + tick * self.step
            y = self.y(value)
            parts.append(f'<line x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{y:.1f}" y2="{y:.1f}" class="axis"/>')
            parts.append(
                f'<text x="{LEFT - 6}" y="{y + 4:.1f}" text-anchor="end" class="soft">{value:.{digits}f}</text>'
            )
        every = math.ceil(len(self.numbers) / most)
        for number in self.numbers[::every]:
            name = "real only" if number == 0 else str(number)
            parts.append(
                f'<text x="{self.x(number):.1f}" y="182" text-anchor="middle" class="soft">{name}</text>'
            )
        return parts


def _round_step(step: float) -> float:
    """1, 2 or 5 times a power of ten, at least the given step."""
    power = 10.0 ** math.floor(math.log10(step))
    return next(factor * power for factor in (1, 2, 5, 10) if factor * power >= step * 0.999)


def _short(name: str, letters: int = 40) -> str:
    return name if len(name) <= letters else "…" + name[1 - letters :]


def _svg(height: float, parts: Sequence[str], label: str) -> str:
    inner = "".join(parts)
    return f'<svg viewBox="0 0 {WIDTH} {height}" role="img" aria-label="{escape(label)}">{inner}</svg>'
