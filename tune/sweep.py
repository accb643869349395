"""Find guidance strengths for a data set, and write them as the overlay of a configuration.

    python tune/sweep.py --config configs/magnetic_tile.yaml --data DIR --best best.yaml
    python jobs/loop.py --config configs/magnetic_tile.yaml --data DIR --overlay best.yaml

A trial makes pairs at a point (tune/space.py), fits the base a little further on them, and gains soft Dice on half A of validation over the same fit on real
photos alone (tune/objective.py); poor trials end early (tune/trials.py). The best point is compared with the configuration's own on half B, with fresh seeds
(tune/confirm.py). The same command goes on where it was stopped. All other options and settings are those of jobs/loop.py.
"""

from __future__ import annotations

import argparse
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

from actors.crew import Crew
from actors.resources import demand_lasting
from cdiff.data.carriers import from_json
from cdiff.data.ledger import Ledger
from cdiff.data.storage import write_durably
from cdiff.errors import ConfigError
from cdiff.tracking import Tracker, may_be_away
from cdiff.types import Revisions
from jobs.measured import how_measured
from jobs.session import Session, open_session
from jobs.session import parser as session_parser
from jobs.stopping import exit_code
from tune.bench import Budget, bench_of, demand_tunable, search_points
from tune.confirm import confirm
from tune.objective import Bench, halves
from tune.outcome import MEASURED, Swept, demand_place, lines, write_json
from tune.report import write_page
from tune.space import Point, here, overlay, read_space
from tune.trials import Search, demand_optuna

PURPOSE = "sweep-"  # begins the names of its runs


def parser() -> argparse.ArgumentParser:
    out = argparse.ArgumentParser(
        prog="python tune/sweep.py",
        description=(__doc__ or "").split("\n", 1)[0],
        epilog="All other options and settings are those of jobs/loop.py.",
        allow_abbrev=False,  # --run is the loop's
    )
    out.add_argument("--space", help="YAML file that narrows, widens or fixes what is searched")
    out.add_argument("--trials", type=int, default=24)
    out.add_argument("--pairs", type=int, default=96, help="of a trial that goes to its end")
    out.add_argument("--steps", type=int, default=0, help="of its last fit; 0: half of downstream.steps")
    out.add_argument(
        "--rungs", type=int, default=3, help="budgets of a trial, each --factor times the one before"
    )
    out.add_argument("--factor", type=int, default=2, help="of the trials at a rung, one in so many goes on")
    out.add_argument(
        "--to-the-end", action="store_true", help="stop no trial early, to judge stopping by its replay"
    )
    out.add_argument("--random", action="store_true", help="points at random: without Optuna")
    out.add_argument("--confirm", type=int, default=5, help="fresh seeds on half B; 0: do not confirm")
    out.add_argument(
        "--look",
        choices=["validation", "test"],
        default="validation",
        help="test: read it once for what is confirmed",
    )
    out.add_argument("--best", type=Path, help="overlay to write, beside that in the run's report")
    out.add_argument(
        "--out",
        type=Path,
        help="JSON file to write: an entry per data set, called after the profile or --run; those of others stay",
    )
    return out


def check(args: argparse.Namespace) -> None:
    """Refuse what would fail after hours, or be lost.

    Raises:
        ConfigError: a number out of range, a folder that is not there or does not last, or no Optuna.
    """
    least = {"trials": 1, "pairs": 1, "steps": 0, "rungs": 1, "factor": 2, "confirm": 0}
    for name, low in least.items():
        if getattr(args, name) < low:
            raise ConfigError(f"--{name} {getattr(args, name)}: at least {low}.")
    demand_lasting(args.best, args.out)
    for path in filter(None, (args.best, args.out)):
        if not path.absolute().parent.is_dir():
            raise ConfigError(f"{path}: its folder is not there. Make it, or name another.")
    if args.look == "test" and not args.confirm:
        raise ConfigError("--look test reads it for what is confirmed: give --confirm some seeds.")
    if not args.random:
        demand_optuna()


def prepare(crew: Crew, ledger: Ledger, budget: Budget) -> Bench:
    """All that trials share, but the names of actors. Whatever is dear is in the ledger afterwards.

    Raises:
        ConfigError: no base of real photos, or no room for the rungs.
    """
    generator, base = crew.prepare(ledger), crew.base(ledger)
    outcomes = crew.outcomes(ledger, ())
    known = crew.rank(outcomes, ledger.gains())
    if (
        ledger.milestone("tune:revisions") is None
    ):  # trials are named by them, whatever resources a restart has
        ledger.record("tune:revisions", revisions=crew.adapt(ledger, 0, known, outcomes, generator, base))
    revisions = from_json(Revisions, (ledger.milestone("tune:revisions") or {})["revisions"])
    return bench_of(crew, ledger, known, revisions, budget)


def run(arguments: list[str], args: argparse.Namespace, about: dict[str, Any]) -> None:
    """The whole command; errors as of `jobs.session.open_session`, and ConfigError where --out has this entry of another split."""
    budget, seeds = Budget(args.pairs, args.steps, args.rungs, args.factor), list(range(1, args.confirm + 1))
    with open_session(arguments, purpose=PURPOSE, program="tune/sweep.py") as session:
        if session is None:
            return
        config, ledger, split = session.config, session.ledger, session.manifest.hash
        name = entry_name(arguments, session.run.name)
        if args.out:  # before hours of trials
            demand_place(args.out, name, split)
        session.demand_same_code("tune")
        demand_tunable(config, session.dataset, session.manifest, budget)
        dimensions = read_space(args.space, config)
        search = Search(args.trials, args.factor, config.seed, not args.to_the_end, not args.random)
        with session.crew() as crew, session.tracker() as tracker:
            bench = prepare(crew, ledger, budget)
            swept = search_points(crew, tracker, bench, dimensions, [here(config, dimensions)], search)
            best = write_overlay(session, swept, args.best)
            arms = {"found": swept.best["point"], "configured": {}}
            if seeds:
                _, second = halves(crew.dataset, crew.manifest, config.data.split_seed)
                swept = replace(swept, half_b=confirm(crew, ledger, bench, arms, second, seeds, "half B"))
            if args.look == "test":
                reads = count_reads(ledger, swept.best["point"])
                photos = session.manifest.ids("test")
                tested = confirm(crew, ledger, bench, arms, photos, seeds, "test")
                swept = replace(swept, tested=tested, test_reads=reads)
            path = write_page(session, swept)
            session.run.publish("report")
            print("\n".join([*lines(swept, best, seeds), f"report     {path}"]), flush=True)
            if args.out:
                write_json(args.out, name, split, swept, about)
            with may_be_away("the sweep's report and its best point"):  # after all that a user asked for
                track(tracker, swept, path)


def entry_name(arguments: list[str], run: str) -> str:
    """What the entry of --out is called: as --run says, else after the profile or the data, without the hash of the run's name."""
    given = session_parser().parse_intermixed_args(arguments).run
    return given or run.removeprefix(PURPOSE).rpartition("-")[0]


def write_overlay(session: Session, swept: Swept, path: Path | None) -> Path:
    """Write the best point to the run's report, and where a user wants it; returns the latter if there is one."""
    text = overlay(session.config, swept.best["point"])
    own = session.run.report_dir / "best.yaml"
    own.parent.mkdir(parents=True, exist_ok=True)
    for place in filter(None, (own, path)):
        write_durably(place, text.encode())
    session.run.publish("report")
    return path or own


def count_reads(ledger: Ledger, point: Point) -> int:
    """Remember that the test split is read for a point; of how many points it was, this one included."""
    known = (ledger.milestone("tune:test-reads") or {"points": []})["points"]
    points = known if point in known else [*known, dict(point)]
    ledger.record("tune:test-reads", points=points)
    return len(points)


def track(tracker: Tracker, swept: Swept, page: Path) -> None:
    """What the parent run of a sweep shows."""
    tracker.artifact(page, "report")
    tracker.metrics({"best": {name: swept.best["rungs"][-1].get(name) for name in MEASURED}})
    for name, found in (("half_b", swept.half_b), ("test", swept.tested)):
        if found is not None:
            tracker.metrics({name: {"gain": found.mean, "low": found.low, "high": found.high}})


def main(arguments: list[str] | None = None) -> int:
    """Command line; the exit code (jobs.stopping)."""
    told = sys.argv[1:] if arguments is None else arguments
    args, rest = parser().parse_known_args(told)

    def work() -> None:
        check(args)
        run(rest, args, how_measured("tune/sweep.py", told))

    return exit_code(work, "the same command goes on from what is measured")


if __name__ == "__main__":
    sys.exit(main())
