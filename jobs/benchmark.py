"""Measure what pairs are worth, over seeds, and write one JSON object.

    python jobs/benchmark.py quality --config configs/mvtec.yaml --data DIR --seeds 0 1 2 3 4 --splits 0 1 --out FILE
    python jobs/benchmark.py loop --config configs/mvtec.yaml --data DIR --seeds 0 1 2 --out FILE

quality   control arms (real only, copy-paste, Perlin, undirected, aimed) at equal pairs and steps, with intervals and a page
safe      what SAFE makes of categories that the generator never saw, against plain pooling
serve     the service against the bare sampler, and under too much load
backbone  the latent backbone beside diffusers' own inpainting: memory by role, training, pairs per second
scale     what a million pairs cost in metadata, memory and time, and how many workers one driver keeps busy
loop      the whole loop against real photos alone; --oracle adds fresh samples (demo data only)

Everything else is as for jobs/loop.py: --config, --data, --groups, --home, settings. The same command goes on where it was
stopped. While anything is still being chosen, `quality --look validation` leaves the test split unread.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

from actors.resources import demand_lasting
from cdiff.data.storage import write_durably
from jobs import backbone, loop_gain, quality, quality_report, safe_check, scale, serve_load
from jobs.measured import how_measured
from jobs.quality_choices import MINED
from jobs.stopping import exit_code


def parser() -> argparse.ArgumentParser:
    out = argparse.ArgumentParser(
        prog="python jobs/benchmark.py",
        description=__doc__.split("\n", 1)[0],
        epilog="All other options and settings are those of jobs/loop.py.",
    )
    kinds = out.add_subparsers(dest="kind", required=True)
    loop = kinds.add_parser("loop", help="the whole loop against real photos alone")
    loop.add_argument("--oracle", action="store_true", help="add the oracle arm (demo data only)")
    pays = kinds.add_parser("quality", help="control arms at equal pairs and steps")
    pays.add_argument(
        "--splits",
        type=int,
        nargs="+",
        help="split seeds; seeds take turns on them (default: 0 1, for a single seed 0)",
    )
    pays.add_argument("--arms", nargs="+", choices=[*quality.ARMS, *MINED], default=list(quality.ARMS))
    pays.add_argument(
        "--variant",
        nargs="+",
        action="append",
        default=[],
        metavar=("NAME", "KEY=VALUE"),
        help="a further arm wasm_NAME that chooses under other settings, as often as wanted: hard wasm.band=[0.7,1]",
    )
    pays.add_argument(
        "--equal-compute",
        type=int,
        nargs="+",
        default=[],
        metavar="SEED",
        help="seeds whose real-only and copy-paste arms run on for as long as the aimed arm takes in all",
    )
    pays.add_argument("--most-fits", type=int, default=0, help="bound of such an arm's fits; 0: none")
    pays.add_argument("--look", choices=["test", "validation"], default="test", help="photos that are scored")
    serve_load.add_options(
        kinds.add_parser("serve", help="the service against the bare sampler, and under load")
    )
    speed = kinds.add_parser("backbone", help="memory and speed of the latent backbone")
    backbone.add_options(speed)
    speed.add_argument("--out", type=Path, required=True, help="JSON file to write")
    safe_check.add_options(kinds.add_parser("safe", help="SAFE on categories that the generator never saw"))
    scale.add_options(
        kinds.add_parser("scale", help="cost of very many pairs and workers, without a generator")
    )
    for kind in (loop, pays):
        kind.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2, 3, 4])
        kind.add_argument("--out", type=Path, required=True, help="JSON file to write")
    return out


def main(arguments: list[str] | None = None) -> int:
    """Command line; the exit code (jobs.stopping)."""
    told = sys.argv[1:] if arguments is None else arguments
    args, rest = parser().parse_known_args(told)
    if args.kind == "backbone" and rest:
        parser().error(f"unrecognized arguments: {' '.join(rest)}")

    def work() -> None:
        demand_lasting(args.out)
        about = how_measured("jobs/benchmark.py", told)
        if args.kind == "loop":
            found, line = loop_gain.run(rest, args.seeds, args.oracle)
            result = about | found
        elif args.kind == "safe":
            found, line = safe_check.run(rest, args.unseen, args.pairs)
            result = about | found
        elif args.kind == "backbone":
            found, line = backbone.run(args, lambda found: _write(args.out, about | found))
            result = about | found
        elif args.kind == "scale":
            found, line = scale.run(rest, args, about)
            result = about | found
        elif args.kind == "serve":
            found, line = serve_load.run(rest, args.run, args.requests)
            result = about | found
        else:
            result, line = quality_report.run(rest, args, about, lambda found: _write(args.out, found))
        _write(args.out, result)
        print(f"{line}\nwritten    {args.out}")

    return exit_code(work, "the same command goes on from what is measured")


def _write(file: Path, result: dict[str, Any]) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    write_durably(file, (json.dumps(result, indent=1, allow_nan=False) + "\n").encode())


if __name__ == "__main__":
    sys.exit(main())
