"""The page of a quality benchmark: arms at equal pairs and steps, and which differences can be told."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from cdiff.data.storage import write_durably
from cdiff.evaluation import charts, page
from cdiff.evaluation.comparison import TYPE
from cdiff.evaluation.quality_words import doubts, listed, said, verdict
from cdiff.evaluation.report import Picture

WHAT = {
    "real_only": "further crops of real targets where the other arms see pairs",
    "again": "the same with other such crops: what chance does",
    "copy_paste": "real targets pasted on other photos",
    "perlin": "textures blended in by Perlin noise",
    "undirected": "generated pairs in proportion to the real targets",
    "wasm": "generated pairs aimed at weaknesses",
    "mined_B0": "a round of the loop: random seeds",
    "mined_B1": "a round of the loop: best of K",
    "mined_B2": "a round of the loop: noise miner",
    "mined_B3": "a round of the loop: difficulty token",
    "mined_B4": "a round of the loop: gradient",
    "mined_B3_B1": "a round of the loop: difficulty token and best of K",
}
NAMES = {
    "pixel_ap": "pixel AP",
    "mdice": "mean Dice",
    "f1_max": "F1-max",
    "iou": "IoU",
    "image_auroc": "image AUROC",
}

OF_A_GENERATOR = ("kid", "coverage")  # in its own features: splits have generators of their own
MEASURES = {
    "valid_share": "share of the judged candidates that pass all checks of the gate",
    "visible_share": "share of them in whose mask something can be seen",
    "kid": "distance of made to real targets, kernel inception distance in the generator's own features; lower is nearer, 0 is equal",
    "coverage": "share of real targets that have a made one among their nearest five, in [0, 1]; higher is better",
    "label_iou": "IoU of the mask and of one found in the image alone, mean over kept pairs",
    "visibility": "how far the target differs from the ring around it, mean over kept pairs, in the gate's units",
    "reference_distance": "distance of the target to the real one that it started from, mean over kept pairs, in the gate's units",
}


def write_page(path: Path, title: str, result: Mapping[str, Any], pictures: Sequence[Picture]) -> Path:
    """Write the page, whole or not at all; returns where it is.

    Args:
        result: the object that the benchmark writes as JSON.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    write_durably(path, render(title, result, pictures).encode())
    return path


def render(title: str, result: Mapping[str, Any], pictures: Sequence[Picture] = ()) -> str:
    """The page as HTML; it needs no other file, no script and no network."""
    told = "".join(page.paragraph(f"{doubt[0].upper()}{doubt[1:]}") for doubt in doubts(result))
    figures = "".join(page.figure(picture.pixels, picture.caption) for picture in pictures)
    body = [
        f"<header><h1>{page.text(title)}</h1>{page.paragraph(verdict(result))}{told}</header>",
        page.section("Arms", _arms(result), page.paragraph(_setting(result), soft=True)),
        page.section(
            "Differences",
            _differences(result),
            page.details("By split", _splits(result)),
            page.details("By type", _types(result)),
        ),
        page.section("At equal computing", _equal_compute(result)),
        page.section("What can be told", _curve(result), _power(result), _negative(result)),
        page.section("Pairs", _fidelity(result), f'<div class="pictures">{figures}</div>' if figures else ""),
        page.section(
            "How to do it again", f"<pre>{page.text(result['command'])}</pre>", page.facts(_facts(result))
        )
        if "command" in result
        else "",
    ]
    return page.document(title, body)


def _arms(result: Mapping[str, Any]) -> str:
    known = result["arms"].values()
    names = {n: said for n, said in NAMES.items() if any(v is not None for arm in known for v in arm[n])}
    about = {**WHAT, **{arm: f"wasm under {told}" for arm, told in result.get("variants", {}).items()}}
    rows = []
    for arm, values in result["arms"].items():
        numbers = [_mean(values[name]) for name in names]
        gain = _find(result, "pixel_ap", arm, "real_only")
        pairs = result["pairs"][arm]
        shown = page.Markup(f"<b>{page.text(said(arm))}</b><small>{page.text(about.get(arm, ''))}</small>")
        rows.append(
            (shown, round(statistics.mean(pairs)), *numbers, page.signed(gain["mean"] if gain else None))
        )
    header = ("arm", "pairs", *names.values(), "gain, pixel AP")
    return page.table(header, rows)


def _setting(result: Mapping[str, Any]) -> str:
    splits = sorted(set(result["splits"]))
    return (
        f"Means over seeds {listed(result['seeds'])} on split{'s' if len(splits) > 1 else ''} {listed(splits)}, "
        f"± their standard deviation. A seed redraws {result['a_seed_redraws']}. "
        f"All arms go on from the seed's {result.get('base_steps', '')} steps on real photos for {result.get('steps', '')} more."
    )


def _differences(result: Mapping[str, Any]) -> str:
    parts, lines = [], []
    for metric in ("pixel_ap", "mdice"):
        own = [c for c in result["comparisons"] if c["metric"] == metric]
        rows = [(f"{said(c['arm'])} − {said(c['minus'])}", c["mean"], c["low"], c["high"]) for c in own]
        if rows:
            title = f"Difference in {NAMES[metric]}"
            parts.append(
                page.chart(
                    title, charts.forest(rows, f"{title}, with 95 % intervals: a table below has the numbers")
                )
            )
        for c, (arms, mean, low, high) in zip(own, rows, strict=True):
            lines.append((arms, NAMES[metric], page.signed(mean), f"[{low:+.3f}, {high:+.3f}]", c["objects"]))
    note = "Filled: the interval excludes zero, green for the better, grey for the worse; the dashed line is no difference."
    if result.get("gain_ratio") is not None:
        note += f" Aimed pairs gain {result['gain_ratio']:.1f} times what undirected ones gain."
    told = page.table(("arms", "metric", "difference", "95 %", "objects"), lines, prose=(0, 1))
    return page.columns(*parts) + page.paragraph(note, soft=True) + page.details("As a table", told)


def _splits(result: Mapping[str, Any]) -> str:
    """Each difference on each split: what an interval that takes the splits as given cannot tell."""
    names = [str(split) for split in dict.fromkeys(result["splits"])]
    if len(names) < 2:
        return ""
    rows = [
        (
            f"{said(c['arm'])} − {said(c['minus'])}",
            NAMES[c["metric"]],
            *(page.signed(c["by_split"].get(split)) for split in names),
        )
        for c in result["comparisons"]
        if c["metric"] in NAMES
    ]
    return page.table(("arms", "metric", *(f"split {name}" for name in names)), rows, prose=(0, 1))


def _types(result: Mapping[str, Any]) -> str:
    rows = [
        (
            c["metric"].removeprefix(TYPE),
            f"{said(c['arm'])} − {said(c['minus'])}",
            page.signed(c["mean"]),
            f"[{c['low']:+.3f}, {c['high']:+.3f}]" if c["objects"] > 1 else "–",
            str(c["objects"]),
        )
        for c in result["comparisons"]
        if c["metric"].startswith(TYPE)
    ]
    return page.table(("type", "arms", "difference in pixel AP", "95 %", "objects"), rows, prose=(1,))


def _equal_compute(result: Mapping[str, Any]) -> str:
    found = result.get("equal_compute")
    if not found:
        return ""
    rows = [
        (said(arm), *(_mean(v[n]) for n in ("pixel_ap", "mdice", "f1_max")))
        for arm, v in found["arms"].items()
    ]
    told = page.table(("arm", "pixel AP", "mean Dice", "F1-max"), rows)
    differences = [
        (f"{said(c['arm'])} − {said(c['minus'])}", c["mean"], c["low"], c["high"])
        for c in found["comparisons"]
        if c["metric"] == "pixel_ap"
    ]
    chart = page.chart("Difference in pixel AP", charts.forest(differences, "pixel AP at equal computing"))
    fits, equal = (listed(sorted(set(found[name].values()))) for name in ("fits", "fits_of_equal_time"))
    note = (
        f"Arms without a generator ran on, {fits} fits one after the other in all; generator, candidates, fold models and fit of "
        f"the aimed arm take as long as {equal}. {'Seeds' if len(found['seeds']) > 1 else 'Seed'} {listed(found['seeds'])}."
    )
    return told + chart + page.paragraph(note, soft=True)


def _curve(result: Mapping[str, Any]) -> str:
    """Real photos alone over steps; a line that still rises says that the base is too short."""
    lines = result.get("curve") or []
    if not lines:
        return ""
    shown = []
    for metric in ("pixel_ap", "mdice"):
        known = [
            (f"seed {row['seed']}", row["steps"], row[metric]) for row in lines if None not in row[metric]
        ]
        if known:
            title = f"Real photos alone on validation: change of {NAMES[metric]} by steps"
            shown.append(page.chart(title, charts.curves(known, metric)))
    note = (
        "A line per seed, from its base on over the fit that is compared to those that ran on (--equal-compute), where there are any. Where "
        "lines still rise at the compared fit, a gain may vanish with longer training. Fits differ from bases in the crops beside their batches."
    )
    return page.columns(*shown) + page.paragraph(note, soft=True)


def _power(result: Mapping[str, Any]) -> str:
    if not result.get("power"):
        return ""
    rows = []
    for metric, found in result["power"].items():
        smallest = found["smallest_detectable"]
        rows.append(
            (NAMES[metric], _number(found["sd_of_real_only"]), *(_number(smallest[n]) for n in smallest))
        )
    counts = list(next(iter(result["power"].values()))["smallest_detectable"])
    table = page.table(("metric", "sd of real only", *(f"{n} seeds" for n in counts)), rows)
    return (
        page.paragraph(
            "Two fits on real photos alone that differ in nothing but the crops beside their batches: from their differences follows "
            "the smallest true difference between two arms that so many seeds find on these very photos with a chance of 80 % (level 5 %). "
            "The intervals above hold for photos of other objects, too: with few objects they are wider than this."
        )
        + table
    )


def _negative(result: Mapping[str, Any]) -> str:
    found = result.get("negative_control")
    if not found:
        return ""
    level, chance = found["level"]["real_only"], found["level_at_random"]
    if not found["says_something"]:
        return page.paragraph(
            f"Negative control: against the masks of other photos of the same types real photos alone reach {level:.4f} pixel AP, scores at "
            f"random {chance:.4f}, and no arm is clear of these: it says nothing here."
        )
    end = (
        "includes zero"
        if found["holds_zero"]
        else "excludes zero: part of the gain may be place and size of targets rather than finding them"
    )
    rows = [
        (
            said(c["arm"]),
            _number(found["level"][c["arm"]]),
            page.signed(c["mean"]),
            f"[{c['low']:+.3f}, {c['high']:+.3f}]",
        )
        for c in (found, *found["others"])
    ]
    return page.paragraph(
        f"Negative control: against the masks of other photos of the same types, where real photos alone reach {level:.3f} pixel AP and scores at "
        f"random {chance:.3f}, aimed pairs gain {found['mean']:+.3f} [{found['low']:+.3f}, {found['high']:+.3f}]. The interval {end}."
    ) + page.table(("arm", "pixel AP against other masks", "less real only", "95 %"), rows)


def _fidelity(result: Mapping[str, Any]) -> str:
    known = {
        arm: values
        for arm, values in result["fidelity"].items()
        if any(v is not None for v in values.values())
    }
    if not known:
        return ""
    names = [name for name in next(iter(known.values())) if any(v[name] is not None for v in known.values())]
    beyond, by_split = result.get("beyond_band", {}), result.get("fidelity_by_split", {})

    def cell(arm: str, name: str) -> str:
        apart = by_split.get(arm, {}).values() if name in OF_A_GENERATOR else ()
        return " · ".join(_number(own[name]) for own in apart) or _number(known[arm][name])

    rows = [(said(arm), *(cell(arm, name) for name in names), listed(beyond.get(arm, ()))) for arm in known]
    header = ("arm", *(name.replace("_", " ") for name in names), "pairs beyond the band, by seed")
    told = page.listing([f"{name.replace('_', ' ')}: {MEASURES[name]}" for name in names if name in MEASURES])
    about = page.details(
        "What these numbers are",
        told,
        page.paragraph(
            "Means over seeds. a · b: a number for each split, in its own generator's features.", True
        ),
    )
    return page.table(header, rows) + about + page.details("What the gate said", _verdicts(result))


def _verdicts(result: Mapping[str, Any]) -> str:
    """Candidates by verdict, means over seeds."""
    known = {arm: told for arm, told in result.get("verdicts", {}).items() if told}
    reasons = sorted({reason for told in known.values() for reason in told})
    rows = [
        (said(arm), *(round(statistics.mean(told[r])) if r in told else 0 for r in reasons))
        for arm, told in known.items()
    ]
    return page.table(("arm, candidates per seed", *reasons), rows) if rows else ""


def _facts(result: Mapping[str, Any]) -> dict[str, object]:
    told = {key: result[key] for key in ("commit", "date") if key in result}
    told |= {f"split {split}": found for split, found in result["split_hashes"].items()}
    return told | dict(result.get("versions", {}))


def _find(result: Mapping[str, Any], metric: str, arm: str, minus: str) -> Mapping[str, Any] | None:
    return next(
        (c for c in result["comparisons"] if (c["metric"], c["arm"], c["minus"]) == (metric, arm, minus)),
        None,
    )


def _mean(values: Sequence[float | None]) -> str:
    known = [value for value in values if value is not None]
    if not known:
        return "–"
    spread = f" ± {statistics.stdev(known):.3f}" if len(known) > 1 else ""
    return f"{statistics.mean(known):.3f}{spread}"


def _number(value: float | None) -> str:
    return "–" if value is None or value != value else f"{value:.3f}"
