"""The page of a quality benchmark: arms at equal pairs and steps, and which differences can be told."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from cdiff.data.storage import write_durably
from cdiff.evaluation import charts, page
from cdiff.evaluation.comparison import TYPE, excludes_zero
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


def verdict(result: Mapping[str, Any]) -> str:
    """Which rivals the aimed pairs beat, in sentences."""
    found = [c for c in result["comparisons"] if c["arm"] == "wasm" and c["metric"] == "pixel_ap"]
    if not found:
        return "No aimed arm was measured."
    beaten = [_said(c["minus"]) for c in found if excludes_zero(c["low"], c["high"]) and c["low"] > 0]
    worse = [_said(c["minus"]) for c in found if excludes_zero(c["low"], c["high"]) and c["high"] < 0]
    open_ = [_said(c["minus"]) for c in found if not excludes_zero(c["low"], c["high"])]
    where = "test" if result["looked_at"] == "test" else "validation"
    parts = [
        f"better than {', '.join(beaten)}" if beaten else "",
        f"worse than {', '.join(worse)}" if worse else "",
        f"not told apart from {', '.join(open_)}" if open_ else "",
    ]
    told = "; ".join(part for part in parts if part)
    return (
        f"In pixel AP on {where} photos, over {len(result['seeds'])} seeds, aimed pairs are {told} "
        "(95 % intervals over seeds and source objects)."
    )


def doubts(result: Mapping[str, Any]) -> list[str]:
    """What a reader must know before believing a difference, in sentences."""
    told = []
    if result["splits_to_come"]:
        told.append(f"not all is measured yet: split {_listed(result['splits_to_come'])} is still to come.")
    told += _short_of_pairs(result)
    if alike := result.get("splits_of_equal_photos"):
        told.append(
            f"splits {_listed(alike)} have the same photos, since split folders fix them: they count as one. Draw with data.train_images, or give "
            "photos without split folders."
        )
    found = (result["rise"] or {}).get("pixel_ap") or {"compared": None, "further": None}
    compared, further = found["compared"], found["further"]
    rising = [change for change in (compared, further) if change and _rises(change)]
    if compared and rising:
        more = (
            f" and by {further['mean']:+.3f} over all fits after it (seeds {_listed(further['seeds'])})"
            if further
            else ""
        )
        told.append(
            f"real photos alone still rise on validation, by {compared['mean']:+.3f} pixel AP over the fit that is compared{more}"
            f"{'' if any(change['low'] is not None for change in rising) else ' (one seed: it may be chance)'}: a gain may "
            "vanish with longer training. Raise downstream.base_steps, or see how far they go with --equal-compute."
        )
    split = [
        f"{_said(c['arm'])} − {_said(c['minus'])} ({_listed([f'{v:+.3f}' for v in c['by_split'].values()])})"
        for c in result["comparisons"]
        if c["metric"] == "pixel_ap" and c["splits_differ"]
    ]
    if split:
        told.append(
            f"splits differ by more than seeds do in {', '.join(split)}; intervals take the splits as given."
        )
    if any(c["metric"] == "pixel_ap" and c["objects"] == 1 for c in result["comparisons"]):
        told.append(
            "all targets are of one source object: intervals are over seeds alone, and say nothing of other objects. "
            "Give photos of more objects, or name what the photos are of (--groups)."
        )
    return told


def _short_of_pairs(result: Mapping[str, Any]) -> list[str]:
    """Arms whose pairs ran out: what they lack, no method is to blame for."""
    wanted, without = result.get("pairs_wanted", 0), ("real_only", "again")
    aimed_or_not = [arm for arm in result["pairs"] if arm not in without and not arm.startswith("mined_")]
    short = {arm: min(result["pairs"][arm]) for arm in aimed_or_not if min(result["pairs"][arm]) < wanted}
    if not short:
        return []
    each = _listed([f"{_said(arm)} {least}" for arm, least in short.items()])
    bare = " Without any, an arm is real photos alone." if 0 in short.values() else ""
    return [
        f"arms do not have equal pairs: {wanted} are wanted, and the least that a seed has is {each}, since the gate turned the others away.{bare} "
        "Ask for fewer (wasm.pairs), or for more candidates (wasm.pool)."
    ]


def _rises(change: Mapping[str, Any]) -> bool:
    """A rise beyond chance, or of one seed any at all."""
    return bool((change["mean"] if change["low"] is None else change["low"]) > 0)


def _arms(result: Mapping[str, Any]) -> str:
    known = result["arms"].values()
    names = {n: said for n, said in NAMES.items() if any(v is not None for arm in known for v in arm[n])}
    about = {**WHAT, **{arm: f"wasm under {told}" for arm, told in result.get("variants", {}).items()}}
    rows = []
    for arm, values in result["arms"].items():
        numbers = [_mean(values[name]) for name in names]
        gain = _find(result, "pixel_ap", arm, "real_only")
        pairs = result["pairs"][arm]
        shown = page.Markup(f"<b>{page.text(_said(arm))}</b><small>{page.text(about.get(arm, ''))}</small>")
        rows.append(
            (shown, round(statistics.mean(pairs)), *numbers, page.signed(gain["mean"] if gain else None))
        )
    header = ("arm", "pairs", *names.values(), "gain, pixel AP")
    return page.table(header, rows)


def _setting(result: Mapping[str, Any]) -> str:
    splits = sorted(set(result["splits"]))
    return (
        f"Means over seeds {_listed(result['seeds'])} on split{'s' if len(splits) > 1 else ''} {_listed(splits)}, "
        f"± their standard deviation. A seed redraws {result['a_seed_redraws']}. "
        f"All arms go on from the seed's {result.get('base_steps', '')} steps on real photos for {result.get('steps', '')} more."
    )


def _differences(result: Mapping[str, Any]) -> str:
    parts = []
    for metric in ("pixel_ap", "mdice"):
        own = [c for c in result["comparisons"] if c["metric"] == metric]
        rows = [(f"{_said(c['arm'])} − {_said(c['minus'])}", c["mean"], c["low"], c["high"]) for c in own]
        if rows:
            parts.append(page.chart(f"Difference in {NAMES[metric]}", charts.forest(rows, metric)))
    note = "Filled: the interval excludes zero."
    if result.get("gain_ratio") is not None:
        note += f" Aimed pairs gain {result['gain_ratio']:.1f} times what undirected ones gain."
    return page.columns(*parts) + page.paragraph(note, soft=True)


def _splits(result: Mapping[str, Any]) -> str:
    """Each difference on each split: what an interval that takes the splits as given cannot tell."""
    names = [str(split) for split in dict.fromkeys(result["splits"])]
    if len(names) < 2:
        return ""
    rows = [
        (
            f"{_said(c['arm'])} − {_said(c['minus'])}",
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
            f"{_said(c['arm'])} − {_said(c['minus'])}",
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
        (_said(arm), *(_mean(v[n]) for n in ("pixel_ap", "mdice", "f1_max")))
        for arm, v in found["arms"].items()
    ]
    told = page.table(("arm", "pixel AP", "mean Dice", "F1-max"), rows)
    differences = [
        (f"{_said(c['arm'])} − {_said(c['minus'])}", c["mean"], c["low"], c["high"])
        for c in found["comparisons"]
        if c["metric"] == "pixel_ap"
    ]
    chart = page.chart("Difference in pixel AP", charts.forest(differences, "pixel AP at equal computing"))
    fits, equal = (_listed(sorted(set(found[name].values()))) for name in ("fits", "fits_of_equal_time"))
    note = (
        f"Arms without a generator ran on, {fits} fits one after the other in all; generator, candidates, fold models and fit of "
        f"the aimed arm take as long as {equal}. {'Seeds' if len(found['seeds']) > 1 else 'Seed'} {_listed(found['seeds'])}."
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
            _said(c["arm"]),
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
    beyond = result.get("beyond_band", {})
    rows = [
        (_said(arm), *(_number(values[name]) for name in names), _listed(beyond.get(arm, ())))
        for arm, values in known.items()
    ]
    header = ("arm", *(name.replace("_", " ") for name in names), "pairs beyond the band, by seed")
    return page.table(header, rows) + page.details("What the gate said", _verdicts(result))


def _verdicts(result: Mapping[str, Any]) -> str:
    """Candidates by verdict, means over seeds."""
    known = {arm: told for arm, told in result.get("verdicts", {}).items() if told}
    reasons = sorted({reason for told in known.values() for reason in told})
    rows = [
        (_said(arm), *(round(statistics.mean(told[r])) if r in told else 0 for r in reasons))
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


def _said(arm: str) -> str:
    return arm.replace("_", " ")


def _listed(values: Sequence[object]) -> str:
    return ", ".join(str(value) for value in values)


def _number(value: float | None) -> str:
    return "–" if value is None or value != value else f"{value:.3f}"
