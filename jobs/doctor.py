"""Look a cluster over before a run: one line per check, ok, warning or FAIL, with the remedy.

    python jobs/doctor.py                                                        # this machine, for the demo
    python jobs/doctor.py --config configs/mvtec.yaml --data s3://BUCKET/FOLDER --home s3://BUCKET/HOME resources.device=cuda ...
    ray job submit --working-dir . -- python jobs/doctor.py ...                  # on a cluster, from where the loop will run

Takes the loop's arguments and joins the same Ray; of the home it leaves the folder alone. Exit code 1 when a check failed, 2 when the
settings are refused.
"""

from __future__ import annotations

import argparse
import logging
import os
import sys
import uuid
from collections.abc import Iterator
from pathlib import Path

import ray

from actors.checkup import (
    Finding,
    Node,
    NodeReport,
    examine,
    judge_gpus,
    judge_room,
    judge_tokens,
    judge_versions,
    nodes,
    report,
    shared_home,
    token,
    without_weights,
)
from actors.places import preflight, preflight_workers
from actors.resources import ROOT, Cluster, connect, demand_data, roles
from cdiff.config import Config
from cdiff.config_file import load_config
from cdiff.data.dataset import Dataset
from cdiff.data.formats import read_sources
from cdiff.data.origin import brought
from cdiff.data.run import home_folder, home_of
from cdiff.errors import CdiffError, shown_uri
from cdiff.tracking import demand_store, tracking_uri
from jobs.session import DEMO
from jobs.stopping import exit_code, heed_sigterm

# Bytes: Ray's job server refuses larger bodies (413), though a driver that joins by RAY_ADDRESS may upload 512 MiB.
PACKAGE_LIMIT = 100 * 2**20
log = logging.getLogger(__name__)
_SECONDS = 120.0  # for all nodes' answers to one question


def parser() -> argparse.ArgumentParser:
    out = argparse.ArgumentParser(prog="python jobs/doctor.py", description=(__doc__ or "").split("\n", 1)[0])
    out.add_argument("overrides", nargs="*", metavar="section.key=value", help="settings, as for the loop")
    out.add_argument("--config", help="YAML file of settings (default without --data: the demo's)")
    out.add_argument("--overlay", help="YAML file of settings over those")
    out.add_argument(
        "--data", action="append", default=[], help="photos, as for the loop; repeat for several"
    )
    out.add_argument("--groups", help="as for the loop")
    out.add_argument("--home", help="where runs will lie (default: CDIFF_HOME, else ~/cdiff)")
    for name, kind in (("--run", str), ("--retune-every", int), ("--retune-trials", int)):
        out.add_argument(
            name, type=kind, help="taken, so that the loop's command line fits, and not looked at"
        )
    out.add_argument("--dry-run", action="store_true", help="likewise: the doctor changes nothing anyway")
    out.add_argument("--tracking-uri", help="MLflow tracking server or database")
    return out


def findings(args: argparse.Namespace) -> Iterator[Finding]:
    """All checks, each as soon as it is done; a failed one hides none of the others that can still be made.

    Raises:
        ConfigError: settings that the loop would refuse, too.
    """
    config = load_config(args.config or (None if args.data else DEMO), args.overrides, args.overlay)
    place = home_of(args.home)
    yield tracking(tracking_uri(home_folder(place), config, args.tracking_uri), place)
    try:
        cluster = connect()
    except CdiffError as error:
        yield package(ROOT, local=False)
        yield _failed("ray", error)
        return
    heed_sigterm()  # Ray took the signal for itself
    try:
        yield package(ROOT, cluster.local)
        yield from of_cluster(args, config, cluster)
    finally:
        ray.shutdown()


def of_cluster(args: argparse.Namespace, config: Config, cluster: Cluster) -> Iterator[Finding]:
    """What takes the cluster that this process is connected to."""
    # first: an autoscaling cluster grows for it, and what comes is looked at
    yield enough(config, cluster)
    found = nodes()
    yield Finding("ray", "ok", f"{cluster}: {', '.join(node.host for node in found)}")
    yield from of_nodes(found, config, cluster.local)
    yield home(found, home_of(args.home))
    if config.generator.weights or config.safe.weights:
        yield weights(found, config)
    yield photos(args, config)


def of_nodes(found: list[Node], config: Config, local: bool) -> Iterator[Finding]:
    """What the nodes say of themselves."""
    answers = examine(found, config.resources.device == "cuda", _SECONDS)
    silent = [f"{node.host}: {answer}" for node, answer in answers.items() if isinstance(answer, str)]
    if silent:
        remedy = "give them this environment; their logs are in /tmp/ray/session_latest/logs"
        yield Finding("nodes", "FAIL", "; ".join(silent), remedy)
    reports = {node: answer for node, answer in answers.items() if isinstance(answer, NodeReport)}
    if reports:
        yield judge_versions(reports, report(gpus=False))
        yield judge_gpus(reports, config.resources.device)
        yield judge_room(reports)
    tokens = [(node.host, its.token) for node, its in reports.items()]
    yield judge_tokens([("driver", token(os.environ)), *tokens], local)


def enough(config: Config, cluster: Cluster) -> Finding:
    """There is, or will come, room for all actors of a loop, and for the workers of its training: in their places, since they rest meanwhile."""
    counts = roles(config)
    told = f"room for {counts['generator']} generators and {counts['downstream']} downstream actors"
    try:
        preflight(config, wait=not cluster.local)
        if config.train.workers > 1:
            told += f", or for {preflight_workers(config, wait=not cluster.local)} workers of a training"
    except CdiffError as error:
        return _failed("resources", error)
    return Finding("resources", "ok", told)


def weights(found: list[Node], config: Config) -> Finding:
    """Every node reads the pretrained weights; driver and actors load them."""
    sources = [source for source in (config.generator.weights, config.safe.weights) if source]
    lacking = without_weights(found, sources, _SECONDS)
    if lacking:
        remedy = "put them at one path on every node, or on S3 with credentials in every node's environment"
        return Finding("weights", "FAIL", "; ".join(" ".join(told.split()) for told in lacking), remedy)
    return Finding("weights", "ok", f"{', '.join(sources)}: on {len(found)} node(s)")


def home(found: list[Node], place: str) -> Finding:
    """Runs can be written from every node, and are the same ones everywhere."""
    try:
        apart = shared_home(found, place, f"doctor-{uuid.uuid4().hex}", _SECONDS)
    except (CdiffError, OSError) as error:
        return _failed("home", error)
    if apart:
        remedy = "give --home a path that all nodes share, or s3://BUCKET/PREFIX with credentials in every node's environment"
        return Finding("home", "FAIL", f"{place}: {'; '.join(apart)}", remedy)
    return Finding("home", "ok", f"{place}: written, read and deleted from {len(found)} node(s)")


def photos(args: argparse.Namespace, config: Config) -> Finding:
    """Every node reads a photo and its mask."""
    if not args.data:
        if not config.data.demo:
            return Finding(
                "data",
                "FAIL",
                "no --data, and these settings are not the demo's",
                "give --data FOLDER; it repeats",
            )
        return Finding("data", "ok", "no --data: the demo's photos are made when a run begins")
    try:
        sources, origins = brought(args.data)
        dataset = Dataset(read_sources(sources, args.groups, config.data), config.data, origins)
        demand_data(dataset)
    except CdiffError as error:
        return _failed("data", error)
    return Finding("data", "ok", f"{len(dataset.samples)} photos, read from every node")


def tracking(uri: str, place: str) -> Finding:
    """MLflow answers; it is asked by the driver alone, as in a run. A database beside a home on S3 goes with the driver's machine."""
    try:
        demand_store(uri)
    except CdiffError as error:
        return _failed(
            "mlflow", error, "start the server, or name another: --tracking-uri or MLFLOW_TRACKING_URI"
        )
    if uri.startswith("sqlite:") and "://" in place:
        remedy = "name a server: --tracking-uri or MLFLOW_TRACKING_URI"
        return Finding(
            "mlflow", "warning", f"{uri} lies on this machine alone, and not under {place}", remedy
        )
    return Finding("mlflow", "ok", shown_uri(uri))


def package(root: Path, local: bool, limit: int = PACKAGE_LIMIT) -> Finding:
    """What `ray job submit --working-dir .` uploads is under Ray's limit; a local Ray uploads nothing."""
    sizes = package_sizes(root)
    total = sum(sizes.values())
    told = f"{total / 2**20:.1f} MiB would be uploaded by ray job submit --working-dir ., {limit / 2**20:.0f} are taken"
    if total < limit:
        return Finding("package", "ok", told)
    largest = sorted(sizes.items(), key=lambda item: -item[1])[:5]
    named = ", ".join(f"{path} {size / 2**20:.1f} MiB" for path, size in largest)
    remedy = "name them in .rayignore, or move them out: data travel by --data"
    return Finding("package", "warning" if local else "FAIL", f"{told}; the largest: {named}", remedy)


def package_sizes(root: Path) -> dict[str, int]:
    """Bytes of every file that Ray would upload of a folder, by its path: .gitignore and .rayignore are honoured."""
    # Ray's own walk, which is not public: what it takes is what counts, and a copy of its rules would drift from them
    from ray._private.ray_constants import get_runtime_env_default_excludes
    from ray._private.runtime_env.packaging import _dir_travel, _get_excludes

    sizes: dict[str, int] = {}

    def note(path: Path) -> None:
        if path.is_file():
            sizes[path.relative_to(root).as_posix()] = path.stat().st_size

    excluded = [_get_excludes(root, get_runtime_env_default_excludes())]
    _dir_travel(root, excluded, note, include_gitignore=True, logger=log)
    return sizes


def _failed(check: str, error: Exception, remedy: str = "") -> Finding:
    """A refusal in the project's words: its last line is the remedy, where it has several."""
    first, *rest = shown_uri(str(error)).splitlines()
    if remedy or not rest:
        return Finding(check, "FAIL", first, remedy)
    return Finding(check, "FAIL", " ".join([first, *(line.strip() for line in rest[:-1])]), rest[-1])


def main(arguments: list[str] | None = None) -> int:
    """Command line; 1 when a check failed, else the exit code (jobs.stopping)."""
    args = parser().parse_intermixed_args(arguments)
    failed: list[Finding] = []

    def work() -> None:
        for finding in findings(args):
            print(finding, flush=True)
            failed.extend([finding] if finding.state == "FAIL" else [])

    code = exit_code(work, "nothing was changed", resumable=False)
    return code or int(bool(failed))


if __name__ == "__main__":
    sys.exit(main())
