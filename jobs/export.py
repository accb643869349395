"""Write the pairs that a run's models trained on: as an MVTec AD tree, with a COCO file, as image + mask folders, or as Parquet. Or the model itself.

    python jobs/export.py ~/cdiff/runs/NAME pairs/
    python jobs/export.py ~/cdiff/runs/NAME pairs/ --format coco
    python jobs/export.py ~/cdiff/runs/NAME pairs/ --regenerate --data /photos/screw
    python jobs/export.py ~/cdiff/runs/NAME model/ --format model

    OUT/CATEGORY/test/TYPE/NNN.png                  the photo with the new target, in the photo's own mode
    OUT/CATEGORY/ground_truth/TYPE/NNN_mask.png     all targets on that photo
    OUT/CATEGORY/test/good/NNN.png                  a photo without a target: a hard negative
    OUT/images/CATEGORY-TYPE-NNN.png, OUT/annotations.json      ... as COCO
    OUT/CATEGORY/images/TYPE-NNN.png, masks/TYPE-NNN.png        ... as folders: 0 and 255, black without a target
    OUT/pairs.parquet                               ... as parquet: a row per pair, photo and mask as PNG bytes, how it was made
    OUT/provenance.parquet, provenance.csv          how each was made (as parquet, in the CSV alone); written last: an export
                                                    without provenance.csv is not whole
    OUT/model.safetensors, OUT/config.json          ... as model: the segmenter that stands, its settings, and the score from which a
                                                    pixel is target; `cdiff.downstream.segmenter.load_segmenter` reads the folder

An MVTec tree has one type for a photo, the pair's, also where its background showed another before; a COCO file has both, where that
photo showed no more than one, and export says how many photos had several. Folders have types in the names of files alone: who
reads them back has one type, "target".

Reads the ledger, the shards and, for COCO, the split manifest: neither the original photos nor any model is needed. With
--regenerate the pixels are not read but made again from each pair's row, by the models that it names, and compared with what is
stored.
"""

from __future__ import annotations

import argparse
import json
import shutil
import sys
from collections.abc import Callable, Iterator, Sequence
from itertools import chain
from pathlib import Path

import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet as pq
import torch
from tqdm import tqdm

from cdiff.config_file import load_config
from cdiff.data.ledger import Ledger
from cdiff.data.manifest import read_manifest
from cdiff.data.photos import photos_of
from cdiff.data.store import Run, find_run, read_pair, read_provenance
from cdiff.data.trees import CocoTree, Files, FolderTree, MvtecTree, ParquetTree, Tree, with_files
from cdiff.downstream.segmenter import load_segmenter
from cdiff.errors import ConfigError, RunError
from cdiff.service.adoption import human_pair_again
from cdiff.service.studio import Studio
from cdiff.types import Attempt, Pair
from cdiff.wasm.again import made_again
from jobs.stopping import exit_code

FORMATS = ("mvtec", "coco", "folders", "parquet")  # of pairs
MODEL = "model"
Pixels = Callable[[list[Attempt]], Iterator[tuple[bytes, bytes]]]  # photo and mask of each, PNG bytes


def export(
    run: Run, out: Path, all_kept: bool = False, pixels: Pixels | None = None, format: str = "mvtec"
) -> int:
    """Write the kept pairs of a run's accepted rounds to an empty or new folder; returns how many.

    Args:
        all_kept: also the kept pairs of rejected rounds, that no accepted model trained on.
        pixels: where they come from; None: from the shards.
        format: one of FORMATS, as in cdiff/data/trees.py.
    Raises:
        RunError: the folder is not empty, there is nothing to write, or a shard is damaged.
        DataError: the split manifest is, which tells COCO the types of the backgrounds.
    """
    _demand_empty(out)
    found = _pairs(run, all_kept)
    if not found:
        raise RunError(
            f"{run.url} has no pairs of accepted rounds yet. --all-kept also takes those of rejected ones."
        )
    provenance = _provenance(run, found)
    places: list[Files] = []
    attempts = [pair.attempt for _, pair in found]
    images = pixels(attempts) if pixels else (read_pair(run, attempt) for attempt in attempts)
    try:
        tree = _tree(run, out, format, provenance)
        for attempt in tqdm(attempts, desc="writing pairs", unit="pair", leave=False):
            places.append(tree.add(attempt, *next(images)))
        note = tree.close()
        if format != "parquet":
            images_at, masks_at = ([files[name] for files in places] for name in ("image", "mask"))
            provenance = with_files(provenance, images_at, masks_at, pa.string())
            pq.write_table(provenance, out / "provenance.parquet")
        pa.csv.write_csv(provenance, out / "provenance.csv")
    except OSError as error:
        raise RunError(
            f"cannot write {error.filename or out}: {error.strerror or error}. Empty the folder and try again."
        ) from None
    if note:
        print(f"note: {note}")
    return len(found)


def export_model(run: Run, out: Path) -> str:
    """Write the segmenter that stands to an empty or new folder; returns its revision.

    Beside `downstream`, the settings that it was fitted with, config.json has `threshold`, the score that was best for IoU on validation.

    Raises:
        RunError: the folder is not empty, the run has no segmenter yet, or it is damaged.
    """
    _demand_empty(out)
    revision, threshold = Ledger(run).best_segmenter()
    folder = run.checkpoint(revision)
    load_segmenter(folder)  # that it is whole
    told = json.loads((folder / "config.json").read_text(encoding="utf-8")) | {"threshold": threshold}
    try:
        out.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(folder / "model.safetensors", out / "model.safetensors")
        (out / "config.json").write_text(json.dumps(told, indent=2, sort_keys=True), encoding="utf-8")
    except OSError as error:
        raise RunError(
            f"cannot write {error.filename or out}: {error.strerror or error}. Empty the folder and try again."
        ) from None
    return revision


def _demand_empty(out: Path) -> None:
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise RunError(
            f"{out} is not an empty folder. Give a new one: an export never mixes with other files."
        )


class Regenerated:
    """Pixels made again, and how many pairs are equal to what is stored."""

    def __init__(self, run: Run, data: Sequence[str], groups: str | None) -> None:
        self._run, self._config = run, load_config(run.local("config.yaml", anew=True))
        device = self._config.resources.device
        if device == "cuda" and not torch.cuda.is_available():
            raise ConfigError(
                f"the pairs of {run.url} were made on a GPU, and this machine has none: make them again where there is one."
            )
        (self._dataset,) = photos_of([run], data, groups)
        self.equal = 0

    def __call__(self, attempts: list[Attempt]) -> Iterator[tuple[bytes, bytes]]:
        human = [attempt for attempt in attempts if attempt.assignment.purpose == "human"]
        theirs = self._of_people(human)  # they come last
        ours = made_again(self._run, attempts[: len(attempts) - len(human)], self._dataset, self._config)
        for attempt, made in zip(attempts, chain(ours, theirs), strict=True):
            self.equal += made == read_pair(self._run, attempt)
            yield made

    def _of_people(self, attempts: list[Attempt]) -> Iterator[tuple[bytes, bytes]]:
        studio = Studio(self._run, self._dataset) if attempts else None
        for attempt in attempts:
            assert studio is not None
            yield human_pair_again(studio, attempt)


def _tree(run: Run, out: Path, format: str, provenance: pa.Table) -> Tree:
    if format == "parquet":
        return ParquetTree(out, provenance)
    if format == "mvtec":
        return MvtecTree(out)
    if format == "folders":
        return FolderTree(out)
    manifest = read_manifest(run.local("splits.parquet", anew=True))
    return CocoTree(out, {row.sample_id: row.types for row in manifest.rows})


def _pairs(run: Run, all_kept: bool) -> list[tuple[int, Pair]]:
    """Kept pairs with their round, in the order of the ledger; those that people made, and that these rounds trained on, come last."""
    ledger = Ledger(run)
    rounds = [result for result in ledger.rounds() if all_kept or result.decision.accepted]
    away = set() if all_kept else ledger.rejected(also_new=True)
    pairs = [(result.round, pair) for result in rounds for pair in ledger.pairs(result.round)]
    numbers = {result.round for result in rounds}
    pairs += [(number, pair) for number, pair in ledger.human_pairs() if number in numbers]
    return [(number, pair) for number, pair in pairs if pair.kept and pair.task_id not in away]


def _provenance(run: Run, pairs: list[tuple[int, Pair]]) -> pa.Table:
    """A row per pair, in their order: task_id, round, and how it was made."""
    shards = dict.fromkeys(pair.attempt.shard for _, pair in pairs)
    rows = pa.concat_tables([read_provenance(run, shard) for shard in shards]).drop_columns(["fingerprint"])
    order = {task_id: row for row, task_id in enumerate(rows["task_id"].to_pylist())}
    rows = rows.take([order[pair.task_id] for _, pair in pairs])
    return rows.add_column(1, "round", pa.array([number for number, _ in pairs], pa.int64()))


def main(arguments: list[str] | None = None) -> int:
    """Command line; the exit code (jobs.stopping)."""
    parser = argparse.ArgumentParser(
        prog="python jobs/export.py",
        description="Write a run's pairs as an MVTec AD tree, with a COCO file, as image + mask folders, or as one Parquet file; or its model.",
    )
    parser.add_argument("run", metavar="RUN", help="run folder, or its name under the home")
    parser.add_argument("out", metavar="OUT", type=Path, help="new or empty folder")
    parser.add_argument(
        "--format",
        choices=(*FORMATS, MODEL),
        default="mvtec",
        help="an MVTec AD tree (the default), photos with a COCO file, image + mask folders, or one Parquet file with the bytes; "
        "or, in place of pairs, the segmenter that stands",
    )
    parser.add_argument("--all-kept", action="store_true", help="also the kept pairs of rejected rounds")
    parser.add_argument("--regenerate", action="store_true", help="make the pixels again; needs --data")
    parser.add_argument(
        "--data", action="append", default=[], help="the run's photos, as the loop was given them"
    )
    parser.add_argument("--groups", help="as the loop was given it")
    parser.add_argument("--home", help="where runs lie (default: CDIFF_HOME, else ~/cdiff)")
    args = parser.parse_args(arguments)
    if args.regenerate != bool(args.data):
        parser.error(
            "--regenerate needs the run's photos: --data FOLDER, as the loop was given them; without it no photos are read."
        )
    if args.format == MODEL and (args.regenerate or args.all_kept):
        parser.error("--format model writes no pairs: leave out --all-kept and --regenerate.")

    def work() -> None:
        run = find_run(args.run, args.home)
        if args.format == MODEL:
            print(f"segmenter {export_model(run, args.out)} in {args.out}, with its threshold")
            return
        again = Regenerated(run, args.data, args.groups) if args.regenerate else None
        count = export(run, args.out, args.all_kept, again, args.format)
        told = "provenance.csv" if args.format == "parquet" else "provenance.parquet and provenance.csv"
        print(f"{count} pairs in {args.out}, with {told}")
        if again:
            print(
                f"made again, {again.equal} of {count} are equal to what is stored, byte for byte", flush=True
            )
        if again and again.equal < count:
            raise RunError(
                f"{count - again.equal} pairs in {args.out} differ from those that were trained on: other photos, another PyTorch, or a "
                "processor that rounds otherwise."
            )

    return exit_code(work, f"{args.out} is not whole: empty it before the next try", resumable=False)


if __name__ == "__main__":
    sys.exit(main())
