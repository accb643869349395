"""Serve a run's generator over HTTP: pairs on demand, masks read from photos, photos segmented, and a page to try it by hand.

    export CDIFF_TOKEN=$(openssl rand -hex 32)
    python jobs/serve.py --run NAME --data /photos/screw                # http://127.0.0.1:8000, its API at /docs

Starts a Ray of its own, or joins the cluster that RAY_ADDRESS names: one at a time there, as Serve is one per cluster. SIGTERM and Ctrl-C let requests that
have begun end. Killed before that is done, as by `ray job stop` after 3 seconds, it leaves Serve behind; the next start ends what was left and begins anew.
Whether the one before still lives is told by an actor that ends with it (actors/claim.py).
"""

from __future__ import annotations

import argparse
import ipaddress
import logging
import sys
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Any

import ray
from ray.exceptions import RayError

from actors.claim import claimed
from actors.places import preflight
from actors.resources import Cluster, connect, needs
from cdiff.config_file import overridden
from cdiff.errors import CdiffError, ConfigError, ResourceError
from jobs.stopping import exit_code, heed_sigterm

if TYPE_CHECKING:
    from actors.served import Served

_NAME = "cdiff-job"  # not that of deploy/serve.yaml: what is left under this one is taken over
_GATEWAY = 1  # CPU, as Serve reserves where nothing is said
LOOPBACK = "127.0.0.1"
_DRAIN = 60.0  # seconds for which requests that have begun may go on after SIGTERM


def parser() -> argparse.ArgumentParser:
    out = argparse.ArgumentParser(prog="python jobs/serve.py", description=(__doc__ or "").split("\n", 1)[0])
    out.add_argument(
        "--run",
        action="append",
        required=True,
        help="run folder, URL, name under the home, or RUN/checkpoints/GENERATOR; repeat for several models",
    )
    out.add_argument(
        "--data", action="append", required=True, help="the runs' photos, as the loop was given them"
    )
    out.add_argument("--groups", help="as the loop was given it")
    out.add_argument("--home", help="where runs lie (default: CDIFF_HOME, else ~/cdiff)")
    out.add_argument("--host", default=LOOPBACK, help=f"address to listen at (default: {LOOPBACK})")
    out.add_argument("--port", type=int, default=8000)
    out.add_argument("--replicas", type=int, default=1, help="generator replicas")
    out.add_argument(
        "--most-replicas", type=int, default=0, help="replicas that Serve may add up to under load"
    )
    out.add_argument("--max-queued", type=int, default=32, help="requests that may wait; more get 429")
    out.add_argument("--insecure-loopback", action="store_true", help="without a token, on loopback alone")
    out.add_argument(
        "settings",
        nargs="*",
        help="resources.key=value instead of the run's, as resources.device=cpu",
    )
    return out


@contextmanager
def serving(wanted: Mapping[str, Any], host: str, port: int) -> Iterator[None]:
    """Serve until the block ends, then let requests that have begun end.

    Args:
        wanted: fields of `actors.served.Served`.
    Raises:
        ConfigError: no token, --insecure-loopback at another address, or another field that cannot be. ResourceError: the address is
            taken, or there is no room for the replicas; the cluster's Serve has other applications, or another jobs/serve.py.
    """
    from ray import serve
    from ray.serve.schema import LoggingConfig

    from actors.endpoint import application
    from actors.served import checked

    served = checked(wanted)
    if served.insecure_loopback and not _is_loopback(host):
        raise ConfigError(
            f"--insecure-loopback listens at {LOOPBACK}, ::1 or localhost alone, not at {host!r}: set CDIFF_TOKEN instead."
        )
    service = application(served)
    cluster = connect()
    print(f"cluster    {cluster}", flush=True)
    heed_sigterm()  # Ray took the signal for itself
    try:
        alive = claimed(_NAME)  # kept to the end: it tells the next start that this one lives
        if alive is None:
            raise ResourceError(
                "another jobs/serve.py serves on this cluster, or is just ending (which takes up to a minute). Stop it, or serve its runs and "
                "these by one service: --run and --data repeat."
            )
        _take_over()
        _demand_room(served, cluster)  # Serve itself would wait for ever
    except CdiffError:
        ray.shutdown()
        raise
    quiet = LoggingConfig(log_level="WARNING")
    try:
        try:
            http = {"host": host, "port": port, "request_timeout_s": 130}
            serve.start(http_options=http, logging_config=quiet)
            serve.run(service, name=_NAME, route_prefix="/", logging_config=quiet)
        except (RuntimeError, TimeoutError) as error:
            raise ResourceError(
                f"cannot serve at {host}:{port}: {error}\nIf another program listens there, end it, or name another --port."
            ) from None
        print(f"serving    http://{host}:{port}/   API at /docs", flush=True)
        yield
    finally:
        _end()
        ray.shutdown()


def _take_over() -> None:
    """End what a jobs/serve.py left that was killed: it holds the address and the places of its replicas. Only for whoever has the claim.

    A Serve without any application is taken, too: so it looks when its proxies alone were left.

    Raises:
        ResourceError: others have applications there, or it does not answer, or not end.
    """
    from ray import serve

    if not _serves():
        return
    try:
        found = serve.status().applications
    except RayError as error:
        raise ResourceError(
            f"this cluster has a Serve that does not answer, as where it just ends: start this again in a minute. ({error})"
        ) from None
    if others := sorted(set(found) - {_NAME}):
        raise ResourceError(
            f"this cluster's Serve has other applications, at an address of its own: {', '.join(others)}. Deploy beside them: add the application of "
            "deploy/serve.yaml to their config file, with a route_prefix of its own, and give that file to `serve deploy`. Or, where nobody "
            "needs them, end them with `serve shutdown -y` on that cluster, and start this again."
        )
    print(
        "note       Serve is here already, with nothing but what a killed service left: it is ended first",
        flush=True,
    )
    with suppress(RayError):  # it may end by itself meanwhile
        _end()
    if _serves():
        raise ResourceError(
            "what a killed service left on this cluster does not end. Run `serve shutdown -y` there, and start this again in a minute."
        )


def _serves() -> bool:
    """Whether anything of Serve is alive on the cluster: its own status tells nothing of one that is just ending."""
    return any(actor["namespace"] == "serve" for actor in ray.util.list_named_actors(all_namespaces=True))


def _end() -> None:
    """End Serve, after what its own application has begun."""
    from ray import serve

    with suppress(Exception):  # it may never have been there
        serve.delete(_NAME)  # while the proxies live: what has begun is answered
    serve.shutdown()


def _demand_room(served: Served, cluster: Cluster) -> None:
    from actors.served import listed, run_of_model, settings_of, wanted_by_one

    configs = [settings_of(run_of_model(name, served.home), served) for name in listed(served.run)]
    one = wanted_by_one(configs)
    config = overridden(
        configs[0], [f"resources.cpus={one['CPU']}", f"resources.generator_gpus={one['GPU']}"]
    )
    try:
        preflight(config, wait=not cluster.local, actors={"generator": served.replicas})
    except (ConfigError, ResourceError) as error:
        raise type(error)(
            f"{error}\nOf generators the service takes --replicas, not resources.generators. The rest is the run's: resources.key=value at the end of "
            "the command says otherwise, as resources.device=cpu on a machine without a GPU."
        ) from None
    taken = served.replicas * needs(config, "generator").get("CPU", 0) + _GATEWAY
    if cluster.local and taken > cluster.cpus:  # another cluster may grow for the gateway
        raise ResourceError(
            f"{served.replicas} replicas and the gateway take {taken:g} CPUs of {cluster.cpus:g}: fewer --replicas, or less resources.cpus."
        )


def _is_loopback(host: str) -> bool:
    """Of names localhost alone: where another one leads is not known before it is looked up."""
    try:
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def serve_forever(args: argparse.Namespace) -> None:
    """Deploy, say where, and wait for the end; errors as in `serving`."""
    wanted = {key: value for key, value in vars(args).items() if key not in ("host", "port")}
    with serving(wanted, args.host, args.port):
        threading.Event().wait()


def main(arguments: list[str] | None = None) -> int:
    """Command line; the exit code (jobs.stopping)."""
    args = parser().parse_args(arguments)
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    return exit_code(
        lambda: serve_forever(args), "nothing is served any more", resumable=False, patience=_DRAIN
    )


if __name__ == "__main__":
    sys.exit(main())
