"""What other runs of one home made already and this one would make again: generators, fits, and candidates that nobody judged.

    HOME/generators/KEY/      a generator's revision folder and seconds.json
    HOME/shelf/fits/KEY/      a segmenter's revision folder and fit.json
    HOME/shelf/shards/KEY/    Parquet shards with their COMMIT

A key holds what decides the result: the code (of a generator its own and SAFE's), photos and masks, the settings, the request, PyTorch and its threads. So a benchmark that is
run again with another budget fits anew only what the budget changes. The folders can be deleted at any time.
"""

from __future__ import annotations

import hashlib
import json
import logging
import shutil
import uuid
from collections.abc import Iterable, Sequence
from dataclasses import asdict, replace
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from actors.resources import code_hash
from cdiff.config import Config, DownstreamConfig
from cdiff.data.dataset import Dataset
from cdiff.data.run import decisive
from cdiff.data.storage import rename_durably
from cdiff.data.store import Run, copy_shard, shard_committed
from cdiff.errors import StorageError
from cdiff.generator.model import pretrained_sums
from cdiff.types import Assignment, Sample, content_hash

if TYPE_CHECKING:
    from actors.downstream import Fit, FitRequest

log = logging.getLogger(__name__)

BUILT_IN = DownstreamConfig().factory
_CODE = code_hash()  # at import: the files may change while this process lives


def fit_key(request: FitRequest, dataset: Dataset, config: Config) -> str:
    """Name of a fit on the shelf; "" for one with a user's own network or weights, whose code no key knows.

    A pair is more than its task: the region's reach and kappa decide its pixels, too.
    """
    if config.downstream.factory != BUILT_IN or config.downstream.weights:
        return ""
    pairs: list[Any] = sorted(pair.task_id for pair in request.pairs)
    if pairs:
        pairs = [pairs, config.generator.model_dump(), config.wasm.kappa]
    asked = asdict(replace(request, sample_ids=(), pairs=()))
    # the request names its steps
    settings = config.downstream.model_dump(exclude={"base_steps", "steps", "fold_share"})
    return content_hash([_made_by(config), data_key(dataset, request.sample_ids), pairs, asked, settings])


def data_key(dataset: Dataset, sample_ids: Iterable[str]) -> str:
    """Hash of photos, masks and types: whoever corrects an annotation gets nothing that was made before."""
    samples = [dataset.sample(sample_id) for sample_id in sample_ids]
    # outlines came with the sample
    return content_hash(
        [_content(s, tuple(dataset.here(f.path) for f in s.masks if not f.drawn)) for s in samples]
    )


@cache
def _content(sample: Sample, paths: tuple[str, ...]) -> list[Any]:
    masks = [hashlib.sha256(Path(path).read_bytes()).hexdigest() for path in paths]
    masks += [file.checksum for file in sample.masks if file.drawn]
    return [
        sample.sample_id,
        sample.checksum,
        sample.types,
        sample.group,
        masks,
        [f.types for f in sample.masks],
    ]


def _made_by(config: Config) -> list[Any]:
    """Code as this process imported it, and what else rounds otherwise."""
    resources = config.resources
    return [_CODE, torch.__version__, resources.threads, resources.device, resources.compile]


def taken_fit(run: Run, key: str) -> dict[str, Any] | None:
    """What an equal fit left, with its weights brought into the run; None where there is none."""
    folder = run.home / "shelf" / "fits" / key
    if not key or not (folder / "fit.json").is_file():
        return None
    found: dict[str, Any] = json.loads((folder / "fit.json").read_text(encoding="utf-8"))
    _brought(folder, found["revision"], run)
    return found


def shelve_fit(run: Run, key: str, fit: Fit) -> None:
    """Put a fit on the shelf, whole or not at all."""
    if key:
        _shelve(run, run.home / "shelf" / "fits" / key, fit.revision, "fit.json", asdict(fit))


def generator_key(
    dataset: Dataset, train: Sequence[str], targets: Sequence[str], photos: Sequence[str], config: Config
) -> str:
    """Name of a trained generator on the shelf."""
    settings = config.generator.model_dump(), config.safe.model_dump()
    about: list[Any] = [data_key(dataset, train), list(targets), list(photos), *settings]
    about += [sums] if (sums := pretrained_sums(config.generator, config.safe)) else []
    about += [config.train.workers, config.train.gpus] if config.train.workers > 1 else []
    made_of = content_hash([*about, *_made_by(config)[1:]])
    return f"{made_of}-{code_hash('cdiff/generator', 'cdiff/safe')}"


def taken_generator(run: Run, key: str) -> tuple[str, float] | None:
    """Revision of an equal generator, brought into the run, and the seconds that it took; None where there is none."""
    folder = run.home / "generators" / key
    if not folder.is_dir():
        return None
    (revision,) = (found.name for found in folder.glob("generator-*"))
    _brought(folder, revision, run)
    return revision, float(json.loads((folder / "seconds.json").read_text(encoding="utf-8")))


def shelve_generator(run: Run, key: str, revision: str, seconds: float) -> None:
    """Put a trained generator on the shelf, whole or not at all."""
    _shelve(run, run.home / "generators" / key, revision, "seconds.json", seconds)


def take_shard(run: Run, name: str, shard: Sequence[Assignment], dataset: Dataset, config: Config) -> None:
    """Bring a shard of candidates into the run, if an equal one was made in another."""
    if not _unjudged(shard) or shard_committed(run, name):
        return
    source = Run(_shards(run, shard, dataset, config))
    if shard_committed(source, name):
        copy_shard(source, run, name)


def shelve_shard(run: Run, name: str, shard: Sequence[Assignment], dataset: Dataset, config: Config) -> None:
    """Put a shard of candidates on the shelf; its COMMIT last."""
    shelf = Run(_shards(run, shard, dataset, config))
    if not _unjudged(shard) or shard_committed(shelf, name):
        return
    try:
        copy_shard(run, shelf, name)
    except (OSError, StorageError) as error:
        log.warning("shard %s is not kept for other runs: %s", name, error)


def _unjudged(shard: Iterable[Assignment]) -> bool:
    return all(a.task.recipe.arm == "B0" and not a.task.revisions.segmenter for a in shard)


def _shards(run: Run, shard: Sequence[Assignment], dataset: Dataset, config: Config) -> Path:
    """Tasks name the weights and tokens that they depend on; how crops are cut stands in the settings, what they show in the photos."""
    settings = config.generator.model_dump(), config.safe.model_dump(), decisive(config)["data"]
    tasks = [assignment.task for assignment in shard]
    shown = {task.background for task in tasks} | {dataset.target(task.reference).sample_id for task in tasks}
    made_of = content_hash([_made_by(config), data_key(dataset, sorted(shown)), *settings])
    return run.home / "shelf" / "shards" / made_of


def _shelve(run: Run, folder: Path, revision: str, note: str, told: Any) -> None:
    """Copy a revision and a note to the shelf. A shelf that cannot be written, as on a full disk, costs nobody what is done."""
    if folder.exists():
        return
    temporary = folder.with_name(f".{folder.name}.{uuid.uuid4().hex}")
    try:
        shutil.copytree(run.checkpoint(revision), temporary / revision)
        (temporary / note).write_text(json.dumps(told), encoding="utf-8")
        _renamed(temporary, folder)
    except (OSError, StorageError) as error:
        log.warning("%s is not kept for other runs: %s", revision, error)
        shutil.rmtree(temporary, ignore_errors=True)


def _brought(folder: Path, revision: str, run: Run) -> None:
    """A revision from the shelf into the run."""
    target = run.checkpoint(revision)
    if not target.exists():
        temporary = target.with_name(f".{target.name}.{uuid.uuid4().hex}")
        shutil.copytree(folder / revision, temporary)
        _renamed(temporary, target)
    # also where it is here already: an earlier try may have ended in between
    run.publish(f"checkpoints/{revision}")


def _renamed(temporary: Path, target: Path) -> None:
    try:
        rename_durably(temporary, target)
    except OSError:
        if not target.exists():  # otherwise another actor was first
            raise
        shutil.rmtree(temporary, ignore_errors=True)
