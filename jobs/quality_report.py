"""What a quality benchmark leaves: the JSON object, a page, and an MLflow run for every arm and seed."""

from __future__ import annotations

import argparse
import logging
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from cdiff.errors import ConfigError
from cdiff.evaluation.quality_page import write_page
from cdiff.evaluation.quality_words import doubts, verdict
from cdiff.evaluation.report import Picture
from cdiff.tracking import Tracker, may_be_away
from jobs.grids import pair_grid
from jobs.quality import PLAIN, SplitResult, Wishes, measure_split
from jobs.quality_choices import LONG, variants
from jobs.quality_summary import summary
from jobs.session import Session, open_session

log = logging.getLogger(__name__)
SPLITS = [0, 1]  # where none are named; as many as there are seeds at most


def run(
    arguments: list[str],
    args: argparse.Namespace,
    about: dict[str, Any],
    so_far: Callable[[dict[str, Any]], None],
) -> tuple[dict[str, Any], str]:
    """All splits and seeds, as one object and some lines for a person.

    Args:
        arguments: those of jobs/loop.py. args: seeds, splits, arms, look and out of `jobs/benchmark.py quality`.
        about: how, where and when, for the object and the page.
        so_far: told the object as it is after every split but the last; its `splits_to_come` names those that it lacks.
    Raises:
        CdiffError: of the kind that fits; what is measured stays in the runs.
    """
    splits = args.splits or SPLITS[: len(args.seeds)]
    _check(arguments, args, splits)
    results, pictures = [], []
    about |= {"variants": {f"wasm_{name}": " ".join(settings) for name, *settings in args.variant}}
    for number, split in enumerate(splits):
        result, shown = _run_split(arguments, split, args.seeds[number :: len(splits)], args)
        results.append(result)
        pictures += shown if not number else []  # a megabyte each; MLflow has those of the others
        to_come = splits[number + 1 :]
        about |= {"splits_to_come": to_come}
        found, lines = publish(results, pictures, about, args.seeds, args.out)
        if to_come:
            so_far(found)
    return found, lines


def _run_split(
    arguments: list[str], split: int, seeds: list[int], args: Any
) -> tuple[SplitResult, list[Picture]]:
    """Open the split's run, measure, and track it in MLflow."""
    with open_session(
        [*arguments, f"data.split_seed={split}"],
        purpose=f"quality-split{split}-",
        program="jobs/benchmark.py quality",
    ) as session:
        if session is None:
            raise ConfigError("--dry-run is of jobs/loop.py: it prints the same configuration.")
        if session.config.wasm.probe_steps and args.look == "validation":
            raise ConfigError("wasm.probe_steps aims by the validation photos: --look test scores on others.")
        varied = variants(session.config, args.variant)
        session.demand_same_code("jobs")
        with session.tracker() as tracker:  # first: a store that does not answer is told before hours of fits
            with session.crew() as crew:
                wishes = Wishes(args.arms, args.look, args.equal_compute, args.most_fits, varied)
                result = measure_split(crew, session.ledger, split, seeds, wishes)
            shown = _pictures(session, result)
            with may_be_away(f"the arms of split {split}"):
                track(tracker, result, shown)
        return result, list(shown.values())


def _check(arguments: Sequence[str], args: argparse.Namespace, splits: Sequence[int]) -> None:
    """Refuse wishes that would be lost in silence, before anything is fitted."""
    if any(word.startswith("data.split_seed=") for word in arguments):
        raise ConfigError("data.split_seed is this benchmark's to set: give --splits.")
    plain = [arm for arm in PLAIN if arm in args.arms]
    if len(set(args.seeds)) < len(args.seeds):
        raise ConfigError(f"--seeds {args.seeds}: each seed once.")
    if len(set(splits)) < len(splits) or len(splits) > len(args.seeds):
        raise ConfigError(
            f"--splits {splits}: each split once, and no more of them than of --seeds {args.seeds}, which take turns on them."
        )
    if stray := sorted(set(args.equal_compute) - set(args.seeds)):
        raise ConfigError(f"--equal-compute {stray}: not among --seeds {args.seeds}.")
    if args.equal_compute and not ("wasm" in args.arms and plain):
        raise ConfigError(f"--equal-compute compares wasm with {' and '.join(PLAIN)}: name them in --arms.")
    if args.variant and "wasm" not in args.arms:
        raise ConfigError("--variant compares with wasm: name it in --arms.")
    if args.most_fits and args.most_fits < 2:
        raise ConfigError("--most-fits: at least 2, or 0 for no bound; one fit is what every arm has.")
    if args.most_fits and not args.equal_compute:
        log.warning(
            "--most-fits bounds arms that run on: without --equal-compute there are none, and it does nothing"
        )


def track(tracker: Tracker, result: SplitResult, pictures: Mapping[str, Picture]) -> None:
    """Log every arm and seed as a run of its own, and pictures by arm."""
    for (arm, seed), evaluation in result.scores.items():
        with tracker.arm(arm, seed) as log:
            log.metrics({result.look: evaluation.scores, "validation": result.validation[arm, seed].scores})
            choice = result.choices[arm, seed]
            log.metrics({"pairs": {"kept": len(choice.pairs), **choice.verdicts}})
    for arm, picture in pictures.items():
        tracker.picture(f"pairs {arm}", picture.pixels)


def _pictures(session: Session, result: SplitResult) -> dict[str, Picture]:
    """Some kept pairs of the first seed, by arm."""
    out = {}
    for (arm, seed), choice in result.choices.items():
        shown = seed == result.seeds[0] and not arm.endswith(LONG)
        grid = pair_grid(session, choice.pairs) if shown else None
        if grid is not None:
            out[arm] = Picture(grid, f"split {result.split}, {arm.replace('_', ' ')}, seed {seed}")
    return out


def publish(
    results: Sequence[SplitResult],
    pictures: Sequence[Picture],
    about: dict[str, Any],
    seeds: Sequence[int],
    out: Path,
) -> tuple[dict[str, Any], str]:
    """Sum up and write the page, under the home; returns the object and lines for a person."""
    result = about | summary(results, [s for s in seeds if any(s in r.seeds for r in results)], seed=0)
    path = write_page(results[0].run.home / "reports" / f"{out.stem}.html", out.stem, result, pictures)
    return result, "\n".join([*_lines(result), f"page       {path}"])


def _lines(result: Mapping[str, Any]) -> list[str]:
    lines = [verdict(result)]
    for found in result["comparisons"]:
        if found["metric"] in ("pixel_ap", "mdice"):
            each = " ".join(f"{mean:+.4f}" for mean in found["by_split"].values())
            told = f"  by split {each}" if len(found["by_split"]) > 1 else ""
            lines.append(
                f"{found['metric']:8s}  {found['arm']:10s} - {found['minus']:10s}  {found['mean']:+.4f} "
                f"[{found['low']:+.4f}, {found['high']:+.4f}]{told}"
            )
    return [*lines, *(f"note       {told}" for told in doubts(result))]
