"""Segment a folder of photos with a run's best segmenter.

    python jobs/predict.py RUN FOLDER [--out OUT] [--threshold T] [--device auto|cpu|cuda] [--home HOME]

Writes OUT/masks/NAME.png (0 or 255), OUT/scores/NAME.png (grey: score x 255) and OUT/scores.csv (image score, share of
the photo that is target). Photos keep their own size; OUT must be new or empty. Of photos that differ in their extension alone
the names keep it: 7.jpg.png and 7.png.png. Hidden files and folders (.thumbs, ._7.png) are no photos. All photos are read once
before the first is segmented, so that what cannot be read is named at the start.
"""

from __future__ import annotations

import argparse
import csv
import sys
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from tqdm import tqdm

from cdiff.config import DataConfig
from cdiff.config_file import load_config
from cdiff.data.assembly import in_parallel, walk
from cdiff.data.images import Limits, encode_png, probe, read_image, tell_dark
from cdiff.data.ledger import Ledger
from cdiff.data.run import Run, find_run
from cdiff.downstream.scoring import image_score, score_photo
from cdiff.downstream.segmenter import load_segmenter, segmenter_config
from cdiff.errors import ConfigError, DataError, ResourceError, offenders
from jobs.stopping import exit_code


def predict(run: Run, folder: Path, out: Path, threshold: float | None, device: str = "auto") -> int:
    """Segment every photo under a folder; returns how many.

    Args:
        device: where the segmenter computes: "cpu", "cuda", or "auto", a GPU where there is one.
    Raises:
        RunError: the run has no segmenter yet.
        DataError: no photo, unreadable ones, or an output folder that holds files.
        ConfigError: "cuda" on a machine without a GPU. ResourceError: its memory is too small, or taken.
    """
    where = _device(device)
    revision, chosen = Ledger(run).best_segmenter()
    level = chosen if threshold is None else threshold
    photos = sorted(path for _, images in walk(folder) for path in images)
    if not photos:
        raise DataError(f"no PNG, JPEG or BMP under {folder}. Give a folder of photos.")
    if out.exists() and any(out.iterdir()):
        raise DataError(f"{out} holds files already. Choose a new or empty folder with --out.")
    config_path = run.local("config.yaml", anew=True)
    limits = Limits.of(load_config(config_path).data if config_path.exists() else DataConfig())
    _check(photos, folder, limits)
    checkpoint = run.checkpoint(revision)
    model, config = load_segmenter(checkpoint).to(where), segmenter_config(checkpoint)
    names, rows = [path.relative_to(folder) for path in photos], []
    places = zip(names, _places(names), strict=True)
    for name, place in tqdm(places, total=len(names), desc=f"segmenting on {where}", unit="photo"):
        try:
            scores = score_photo(model, read_image(folder / name, limits), config)
        except torch.OutOfMemoryError:
            raise ResourceError(
                f"{name}: the GPU has no room to segment it. Free it, or say --device cpu."
            ) from None
        _write(out / "masks" / place, encode_png(scores >= level, "L"))
        _write(out / "scores" / place, encode_png((scores * 255).round().astype(np.uint8), "L"))
        rows.append((name.as_posix(), f"{image_score(scores):.4f}", f"{(scores >= level).mean():.6f}"))
    with (out / "scores.csv").open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([("photo", "image_score", "target_share"), *rows])
    return len(rows)


def _device(wanted: str) -> str:
    there = torch.cuda.is_available()
    if wanted == "cuda" and not there:
        raise ConfigError(
            "--device cuda: torch finds no GPU on this machine. Leave --device out, or say --device cpu."
        )
    return ("cuda" if there else "cpu") if wanted == "auto" else wanted


def _check(photos: Sequence[Path], folder: Path, limits: Limits) -> None:
    """DataError that names all photos which cannot be read. Decoding them twice takes little beside segmenting them."""
    found = in_parallel(lambda path: probe(path, limits), photos)
    damaged = [str(item) for item in found if isinstance(item, DataError)]
    if damaged:
        remedy = "Replace or remove them."
        raise DataError(offenders(damaged, len(photos), f"photos under {folder} cannot be used", remedy))
    tell_dark([item for item in found if not isinstance(item, DataError)], folder)


def _places(names: Sequence[Path]) -> list[Path]:
    """Where each photo's mask lies: under its name as PNG; its extension stays in that where two would share it."""
    whole: set[Path] = set()
    while True:
        places = [Path(f"{name}.png") if name in whole else name.with_suffix(".png") for name in names]
        shared = {place for place, count in Counter(places).items() if count > 1}
        if not shared:
            return places
        # again: a name with its extension may be another photo's (7.jpg and 7.png beside 7.jpg.png)
        whole |= {name for name, place in zip(names, places, strict=True) if place in shared}


def _write(path: Path, data: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)


def main(arguments: list[str] | None = None) -> int:
    """Command line; the exit code (jobs.stopping)."""
    parser = argparse.ArgumentParser(prog="python jobs/predict.py", description=__doc__.split("\n", 1)[0])
    parser.add_argument("run", help="run folder, or its name under the home")
    parser.add_argument("--home", help="where runs lie (default: CDIFF_HOME, else ~/cdiff)")
    parser.add_argument("folder", type=Path, help="photos, searched below too")
    parser.add_argument(
        "--out",
        type=Path,
        help="new folder for masks and scores (default: RUN/predictions/FOLDER, where the run is on this machine)",
    )
    parser.add_argument(
        "--threshold", type=float, help="score from which a pixel is target (default: from validation)"
    )
    parser.add_argument(
        "--device",
        choices=("auto", "cpu", "cuda"),
        default="auto",
        help="where the segmenter computes (auto: a GPU where there is one)",
    )
    args = parser.parse_args(arguments)

    def work() -> None:
        run = find_run(args.run, args.home)
        if args.out is None and run.remote:
            raise DataError(
                f"{run.url} is in a bucket: name a folder of this machine for the masks with --out."
            )
        out = args.out or run.path / "predictions" / args.folder.resolve().name
        print(f"{predict(run, args.folder, out, args.threshold, args.device)} photos segmented: {out}")

    return exit_code(work, "the folder of masks is not whole: empty it before the next try", resumable=False)


if __name__ == "__main__":
    sys.exit(main())
