"""What a run stands on, opened before the loop and closed after it: arguments, home, data, splits, run folder, Ray."""

from __future__ import annotations

import argparse
import logging
import math
import os
import re
import shlex
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import ray

from actors.crew import Crew
from actors.resources import ROOT, Cluster, code_hash, connect, demand_data, living_nodes
from cdiff.config import Config
from cdiff.config_file import dump_config, load_config
from cdiff.data.dataset import Dataset
from cdiff.data.demo import make_demo
from cdiff.data.formats import read_sources
from cdiff.data.ledger import Ledger, lease_of
from cdiff.data.origin import Origin, brought
from cdiff.data.run import NAME, decisive, run_of
from cdiff.data.splits import Manifest, make_splits, write_manifest
from cdiff.data.store import Run, create_run, home_folder, home_of
from cdiff.errors import ConfigError, DataError, RunError, shown_uri
from cdiff.evaluation.protocol import scoring_bytes
from cdiff.tracking import Tracker, may_be_away
from cdiff.types import Knowledge, Outcome, Revisions, Sample, content_hash
from jobs.stopping import heed_sigterm, meanwhile

DEMO = ROOT / "configs" / "demo.yaml"


# What a round knows when its strengths are chosen: weaknesses, outcomes, generator and token bank, the segmenter that stands.
Situation = tuple[Knowledge, list[Outcome], Revisions, str]


@dataclass(frozen=True)
class Session:
    """One run's configuration, data and folder."""

    config: Config
    run: Run
    home: Path
    dataset: Dataset
    manifest: Manifest
    ledger: Ledger
    cluster: Cluster
    tracking_uri: str | None
    command: str  # how to start the same run again
    demo: bool
    retune_every: int = 0  # rounds between sweeps of the strengths; 0: none
    retune_trials: int = 0  # of each

    def strengths(
        self,
        crew: Crew,
        tracker: Tracker,
        number: int,
        now: Situation,
    ) -> Config:
        """The configuration of a round: the run's, or with the strengths that a sweep between rounds found."""
        if not self.retune_every:
            return self.config
        from tune.retune import Retuning, retuned  # here: a loop that does not tune needs nothing of it

        wanted = Retuning(self.retune_every, self.retune_trials)
        return retuned(crew, self.ledger, tracker, number, now, wanted)

    def demand_same_code(self, *folders: str) -> None:
        """What is measured in one run is measured by one state of the code.

        Args:
            folders: whose code decides it, beside actors/ and cdiff/.
        Raises:
            RunError: the run was begun by another.
        """
        known, mine = self.ledger.milestone("code"), code_hash("actors", "cdiff", *folders)
        if known is None:
            self.ledger.record("code", code=mine)
        elif known["code"] != mine:
            raise RunError(
                f"{self.run.url} was measured by other code than this. Give another --home, or go back to its commit."
            )

    def crew(self) -> Crew:
        return Crew(self.run, self.config, self.dataset, self.manifest, self.cluster.local)

    @contextmanager
    def tracker(self) -> Iterator[Tracker]:
        """The MLflow run of this loop; a resumed loop goes on in the same one."""
        known = self.ledger.milestone("tracking") or {}
        tracker = Tracker(self.run, self.config, self.tracking_uri, resume=known.get("run_id"))
        if known.get("run_id") != tracker.run_id:
            self.ledger.record("tracking", run_id=tracker.run_id)
        counts = {split: len(self.manifest.ids(split)) for split in ("train", "validation", "test")}
        tracker.start(self.config, {"split_hash": self.manifest.hash, "command": self.command, **counts})
        print(f"MLflow     {shown_uri(tracker.uri)}", flush=True)
        try:
            yield tracker
        except BaseException as end:
            # a full disk ends both: the first reason is the one to tell
            with may_be_away("the end of this run"):
                tracker.finish("KILLED" if isinstance(end, KeyboardInterrupt) else "FAILED")
            raise
        with may_be_away("the end of this run"):
            tracker.finish("FINISHED")


def parser() -> argparse.ArgumentParser:
    out = argparse.ArgumentParser(
        prog="python jobs/loop.py",
        description="The closed loop from a folder of images and masks to a better segmenter. "
        "Without arguments it runs on the built-in demo data.",
    )
    out.add_argument(
        "overrides", nargs="*", metavar="section.key=value", help="settings, over the configuration file"
    )
    out.add_argument("--config", help="YAML file of settings (see configs/)")
    out.add_argument("--overlay", help="YAML file of settings over those, as tune/sweep.py writes it")
    out.add_argument(
        "--data",
        action="append",
        default=[],
        help="folder of photos and masks, or s3://BUCKET/FOLDER; repeat for several",
    )
    out.add_argument(
        "--groups", help="JSON or CSV: photo -> source object; photos of one object never cross a split"
    )
    out.add_argument(
        "--home",
        help="where runs and MLflow's files lie, a folder or s3://BUCKET/PREFIX (default: CDIFF_HOME, else ~/cdiff)",
    )
    out.add_argument(
        "--run", help="name of the run folder; an existing one is resumed (default: made from the config)"
    )
    out.add_argument(
        "--retune-every",
        type=int,
        default=0,
        metavar="N",
        help="search guidance strengths anew after every N rounds (tune/sweep.py); 0: never",
    )
    out.add_argument("--retune-trials", type=int, default=12, metavar="M", help="trials of each such search")
    out.add_argument("--tracking-uri", help="MLflow tracking server or database")
    out.add_argument("--dry-run", action="store_true", help="print the resolved configuration and stop")
    return out


@contextmanager
def open_session(
    arguments: list[str] | None = None, purpose: str = "", program: str = "jobs/loop.py"
) -> Iterator[Session | None]:
    """Open everything that a run needs; None after --dry-run.

    Args:
        purpose: begins the name of the run folder where it is no loop's.
        program: what was started, for the command that is told.
    Raises:
        CdiffError: of the kind that fits: configuration, data, resources, run folder.
    """
    args = parser().parse_intermixed_args(arguments)  # settings may stand between the options
    if args.retune_every and purpose:
        raise ConfigError(f"--retune-every is for jobs/loop.py alone, not for {program}.")
    config, demo = configured(args)
    if args.dry_run:
        print(dump_config(config), end="")
        yield None
        return
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    place = home_of(args.home)
    home = home_folder(place)
    print(f"home       {place}", flush=True)
    samples, manifest, origins = read(args, config, home, demo)
    demand_targets(samples, manifest)
    run = run_of(place, purpose + args.run if args.run else _name(args, config, manifest, purpose))
    # the lease before anything of the run is read: another driver may be writing it
    with lease_of(run) as lease, meanwhile(lease.release):
        create_run(place, run.name, dump_config(config), manifest)
        write_manifest(manifest, run.splits_path)
        run.publish("splits.parquet")
        ledger = Ledger(run, lease)
        _announce(run, manifest)
        if ledger.events() and not purpose:
            print(f"resumed    with {len(ledger.rounds())} of {config.rounds} rounds committed", flush=True)
        told = shlex.join(arguments if arguments is not None else sys.argv[1:])
        command = f"python {program} {told}"
        dataset = Dataset(samples, config.data, origins)
        if args.retune_every:
            # here: a loop that does not tune needs nothing of it
            from tune.retune import Retuning, demand_retunable

            demand_retunable(config, dataset, manifest, Retuning(args.retune_every, args.retune_trials))
        with _connected() as cluster:
            print(f"cluster    {cluster}", flush=True)
            cached = cached_bytes(config, samples, cluster.nodes)
            if told_memory := memory_note(samples, manifest, max(_memory(), default=0), cached):
                print(f"note       {told_memory}", flush=True)
            if cluster.nodes > 1:
                demand_data(dataset)
            yield Session(
                config,
                run,
                home,
                dataset,
                manifest,
                ledger,
                cluster,
                args.tracking_uri,
                shown_uri(command.strip()),  # it is told in MLflow and the report
                demo,
                args.retune_every,
                args.retune_trials,
            )


def cached_bytes(config: Config, samples: Sequence[Sample], nodes: int) -> float:
    """What the actors of one node hold of decoded photos and masks, at most: each up to `data.cache_megabytes`."""
    decoded = sum(4 * sample.width * sample.height for sample in samples)
    resources = config.resources
    actors = math.ceil((resources.generators + 1 + resources.downstreams) / max(nodes, 1))
    return actors * min(config.data.cache_megabytes * 1e6, decoded)


def memory_note(samples: Sequence[Sample], manifest: Manifest, largest: float, cached: float = 0.0) -> str:
    """What to tell of photos that are many and large for the memory of the cluster's largest node; "" where they are not.

    Hours of training come before the first split is scored, and an actor that the system ends for its memory says little.

    Args:
        largest: bytes that Ray may use there; 0: unknown.
        cached: bytes of decoded photos that actors hold there.
    """
    known = {sample.sample_id: sample for sample in samples}
    needs = {
        split: scoring_bytes([known[i] for i in manifest.ids(split)]) for split in ("validation", "test")
    }
    split = max(needs, key=needs.__getitem__)
    if not largest or needs[split] + cached < largest / 2:
        return ""
    if needs[split] < largest / 2:
        return (
            f"actors hold up to {cached / 1e9:.1f} GB of decoded photos on one node, scoring takes {needs[split] / 1e9:.1f} GB beside, and the largest "
            f"has {largest / 1e9:.1f} GB for Ray: if memory runs short, the same command goes on with data.cache_megabytes=300 or fewer actors "
            "(resources.generators, resources.downstreams)"
        )
    return (
        f"scoring the {len(manifest.ids(split))} {split} photos at native size takes up to {needs[split] / 1e9:.1f} GB at once, and the largest "
        f"node has {largest / 1e9:.1f} GB for Ray: scale the photos down, cut them into tiles, or take a larger machine"
    )


def _memory() -> list[float]:
    """What each node has for Ray, bytes."""
    return [float(node.get("memory", 0)) for node in living_nodes()]


def _announce(run: Run, manifest: Manifest) -> None:
    print(f"run        {run.url}", flush=True)
    for split in ("train", "validation", "test"):
        print(f"split      {manifest.count(split)}", flush=True)
    for note in manifest.notes:
        print(f"note       {note}", flush=True)


def read(
    args: argparse.Namespace, config: Config, home: Path, demo: bool
) -> tuple[list[Sample], Manifest, list[Origin]]:
    """The photos that are meant, their splits, and where those of a bucket come from; errors as of the readers."""
    sources, origins = brought(args.data)
    if demo:
        sources = make_demo(home / "data", config.data, config.data.split_seed)
    found = read_sources(sources, args.groups, config.data)
    return *make_splits(found, config.data, config.wasm.folds), origins


def configured(args: argparse.Namespace) -> tuple[Config, bool]:
    """The resolved configuration, and whether the demo data are meant."""
    demo = not args.data and (args.config is None or Path(args.config).name == DEMO.name)
    config = load_config(args.config or (DEMO if demo else None), args.overrides, args.overlay)
    if not (args.data or args.dry_run or demo or config.data.demo):
        raise ConfigError(
            "no data: give --data FOLDER (it repeats), or no --config either for the built-in demo."
        )
    return config, demo or config.data.demo


def demand_targets(samples: Sequence[Sample], manifest: Manifest) -> None:
    """Nothing can be learned, decided or proved without a target on each side of the split."""
    shown = {sample.sample_id for sample in samples if not sample.is_normal}
    empty = [
        split for split in ("train", "validation", "test") if not shown.intersection(manifest.ids(split))
    ]
    if empty:
        raise DataError(
            f"no photo with a target in the {' and the '.join(empty)} split: each side needs some, and a type needs photos "
            "of at least four source objects to reach all three. Give more photos, or split folders of your own "
            "(train/, validation/, test/)."
        )
    objects = {sample.group for sample in samples if sample.sample_id in set(manifest.ids("train"))}
    if len(objects) < 2:
        raise DataError(
            "all training photos show one source object: weaknesses are found on folds that share none. Give photos of more objects, "
            "or correct the groups file."
        )


def _name(args: argparse.Namespace, config: Config, manifest: Manifest, purpose: str) -> str:
    """A name that the same configuration and data give again, so that the same command resumes; with more rounds, too."""
    stem = "demo"
    if args.config:
        stem = Path(args.config).stem
    elif args.data:
        stem = Path(os.path.abspath(args.data[0])).name  # of "." and "..", too; of a link, its own
    ending = content_hash([decisive(config), manifest.hash])[:8]
    name = f"{purpose}{stem}-{ending}"
    if stem and NAME.fullmatch(name):
        return name
    # a folder may be called anything; 60 leave room for purpose and hash
    plain = re.sub(r"[^A-Za-z0-9._-]+", "-", stem).strip("-._")[:60] or "run"
    return f"{purpose}{plain}-{ending}"


@contextmanager
def _connected() -> Iterator[Cluster]:
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    cluster = connect()
    heed_sigterm()  # Ray took the signal for itself
    try:
        yield cluster
    finally:
        ray.shutdown()
