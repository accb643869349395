"""Look at your photos as cdiff reads them, before anything is trained: types, targets, splits, and the outlines of masks.

    python jobs/prepare.py --config configs/mvtec.yaml --data /photos/screw [--out data.html]

Takes the arguments of jobs/loop.py. Prints a table of types and what was left out, and writes a page with photos and outlines. No Ray is
started and no run is made. Exit code 2 where the loop would refuse the photos; the page is written all the same if they could be read.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from cdiff.data.dataset import Dataset
from cdiff.data.run import home_folder, home_of
from cdiff.errors import ConfigError
from cdiff.evaluation.data_page import SPLITS, TypeRow, types_of, write_data_page
from jobs.session import configured, demand_targets, read
from jobs.session import parser as loop_parser
from jobs.stopping import exit_code


def parser() -> argparse.ArgumentParser:
    out = loop_parser()
    out.prog = "python jobs/prepare.py"
    out.description = "Look at your photos as cdiff reads them, before anything is trained."
    out.add_argument("--out", type=Path, default=Path("data.html"), help="page to write (default: data.html)")
    return out


def prepare(arguments: list[str]) -> None:
    """The whole command.

    Raises:
        CdiffError: settings or photos that the loop would refuse.
    """
    args = parser().parse_intermixed_args(arguments)
    if args.dry_run:
        raise ConfigError("--dry-run is of jobs/loop.py: nothing is trained here anyway.")
    config, demo = configured(args)
    samples, manifest, origins = read(args, config, home_folder(home_of(args.home)), demo)
    dataset = Dataset(samples, config.data, origins)
    rows = types_of(dataset, manifest)
    for split in SPLITS:
        print(f"split      {manifest.count(split)}")
    print("\n".join(table(rows)))
    for note in manifest.notes:
        print(f"note       {note}")
    title = ", ".join(dict.fromkeys(sample.category for sample in dataset.samples))
    print(f"page       {write_data_page(args.out.absolute(), title, dataset, manifest, rows)}", flush=True)
    demand_targets(samples, manifest)


def table(rows: Sequence[TypeRow]) -> list[str]:
    """The types as lines for a person: photos, objects and targets for train/validation/test."""
    header = ("type", "photos", "objects", "targets", "side", "smallest")
    cells = [
        (
            row.name,
            *("/".join(map(str, part)) for part in (row.photos, row.objects, row.targets)),
            f"{row.side:.0f} px ({row.share:.0%})",
            f"{row.least} px",
        )
        for row in rows
    ]
    widths = [max(len(line[column]) for line in [header, *cells]) for column in range(len(header))]
    return [
        "  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip()
        for line in [header, *cells]
    ]


def main(arguments: list[str] | None = None) -> int:
    """Command line; the exit code (jobs.stopping)."""
    told = sys.argv[1:] if arguments is None else arguments
    return exit_code(lambda: prepare(told), "nothing is left behind", resumable=False)


if __name__ == "__main__":
    sys.exit(main())
