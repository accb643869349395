"""The report's numbers: metrics before and after, beside those of a rival, per type, and how far ahead the kept model is.

Scores are those of `cdiff.evaluation.protocol.evaluate` on the test split: of the model of real photos alone (before), of the one kept last (after).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from cdiff.evaluation import charts, page

Scores = Mapping[str, Any]

METRICS = {
    "pixel_ap": ("Pixel AP", "mean over types of the average precision of pixels, at native size"),
    "f1_max": ("F1-max", "best F1 of pixels over all thresholds, mean over types"),
    "auroc": ("Pixel AUROC", "area under the pixels' ROC curve, mean over types"),
    "aupro": ("AUPRO", "per-region overlap up to a false-positive rate of 0.3, mean over types"),
    "iou": ("IoU", "pixels pooled per type, at a threshold chosen on validation"),
    "mdice": ("mDice", "mean Dice of photos with targets, at threshold 0.5"),
    "miou": ("mIoU", "mean IoU of photos with targets, at threshold 0.5"),
    "image_auroc": ("Image AUROC", "photos with targets told from normals"),
}
PER_TYPE = ("pixel_ap", "f1_max", "aupro", "iou", "mdice")


def cards(before: Scores, after: Scores) -> str:
    """The headline metrics, large."""
    drawn = []
    for name, kind in (("pixel_ap", "card first"), ("f1_max", "card"), ("iou", "card"), ("mdice", "card")):
        old, new = before.get(name), after.get(name)
        drawn.append(
            f'<div class="{kind}"><b>{METRICS[name][0]}</b><div class="now">{number(new)}</div>'
            f"<small>{number(old)} before, {page.signed(_change(old, new))}</small></div>"
        )
    return f'<div class="cards">{"".join(drawn)}</div>'


def metrics(
    before: Scores, after: Scores, rival: Scores, ahead: Mapping[str, Mapping[str, float | None]]
) -> str:
    """The section of all metrics.

    Args:
        rival: scores of the model of as many pasted copies; {} where there is none.
        ahead: by rival ("real_only", "copy_paste"), the kept model's pixel AP less its own: {"gain", "low", "high"}, the latter
            None where one source object shows all targets.
    """
    rows = []
    for name, (label, meaning) in METRICS.items():
        old, new = before.get(name), after.get(name)
        copies = [number(rival.get(name))] if rival else []
        rows.append((label, number(old), number(new), page.signed(_change(old, new)), *copies, meaning))
    header = ("metric", "before", "after", "change", *(["copies"] if rival else []), "what it is")
    types = sorted(set(before.get("per_type", {})) | set(after.get("per_type", {})))
    return page.section(
        "Before and after",
        page.paragraph(
            "Before: the segmenter fitted on the real photos alone. After: the one kept last, same start weights, same steps."
            + (
                " Copies: one fitted on pasted copies of real targets instead; where validation did not keep it, as before."
                if rival
                else ""
            ),
            True,
        ),
        page.table(header, rows, prose=(len(header) - 1,)),
        _ahead(ahead),
        _per_type(before, after, types) if types else "",
        page.details("Undefined values", page.listing(_undefined(before, after))),
    )


def _ahead(ahead: Mapping[str, Mapping[str, float | None]]) -> str:
    """How far the kept model is ahead of its rivals."""
    labels = {"real_only": "real photos alone", "copy_paste": "pasted copies of real targets"}
    rows = [
        (labels[name], page.signed(told["gain"]), between(told["low"], told["high"]))
        for name, told in ahead.items()
    ]
    if not rows:
        return ""
    explained = page.paragraph(
        "The interval is over source objects of the test split, and an interval that includes zero says that chance alone may be behind it; "
        "one object alone has none. Other seeds would move these numbers as well.",
        True,
    )
    header = ("the kept model, less", "pixel AP", "95 % interval")
    return "<h3>How far the kept model is ahead</h3>" + page.table(header, rows) + explained


def _per_type(before: Scores, after: Scores, types: Sequence[str]) -> str:
    old_ones, new_ones = before.get("per_type", {}), after.get("per_type", {})
    pairs = [(key, old_ones.get(key, {}), new_ones.get(key, {})) for key in types]
    rows = [
        (
            key,
            new.get("photos", old.get("photos")),
            *(_arrow(old.get(name), new.get(name)) for name in PER_TYPE),
        )
        for key, old, new in pairs
    ]
    drawn = [
        page.chart(
            f"{METRICS[name][0]} per type",
            charts.dumbbells(
                [(key, old.get(name), new.get(name)) for key, old, new in pairs],
                f"{METRICS[name][0]} per type",
            ),
            "Grey before, green after; the line runs from 0 to 1.",
        )
        for name in ("pixel_ap", "f1_max")
    ]
    header = ("type", "photos", *(METRICS[name][0] for name in PER_TYPE))
    return page.columns(*drawn) + "<h3>All metrics per type</h3>" + page.table(header, rows)


def _undefined(before: Scores, after: Scores) -> list[str]:
    reasons = {**before.get("undefined", {}), **after.get("undefined", {})}
    return [f"{name}: {reason}" for name, reason in sorted(reasons.items())]


def number(value: float | None) -> str:
    """A metric to three digits; a dash where it is undefined."""
    return "–" if value is None else f"{value:.3f}"


def between(low: float | None, high: float | None) -> str:
    """An interval to three digits; a dash where there is none."""
    return "–" if low is None or high is None else f"{low:+.3f} to {high:+.3f}"


def _change(before: float | None, after: float | None) -> float | None:
    return None if before is None or after is None else after - before


def _arrow(before: float | None, after: float | None) -> page.Markup:
    change = _change(before, after)
    kind = "soft" if not change else "up" if change > 0 else "down"
    return page.Markup(
        f'<span class="soft">{number(before)} →</span> <span class="{kind}">{number(after)}</span>'
    )
