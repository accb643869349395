"""Does SAFE know targets that it never saw? Called by `jobs/benchmark.py safe`.

One generator is trained on all categories but the unseen ones. Then, without training anything:

    seen       two objects of every type were held out, one where there are but three: their targets, on their own photo and pasted
               elsewhere, described by SAFE and by plain pooling of the same encoder (cdiff.evaluation.scenes)
    unseen     the same for the targets of each unseen category, and pairs made with their tokens on that category's photos:
               share that the gate finds valid, and how well each mask agrees with the one read from its image
"""

from __future__ import annotations

import argparse
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tqdm import tqdm

from actors.resources import code_hash
from cdiff.config import Config, DataConfig
from cdiff.config_file import dump_config, load_config
from cdiff.data.backdrops import backdrops
from cdiff.data.dataset import Dataset
from cdiff.data.formats import read_sources
from cdiff.data.leaks import drop_copies, join_groups, near_duplicates
from cdiff.data.origin import brought
from cdiff.data.retention import forget_file
from cdiff.data.store import Run, create_run, home_of
from cdiff.errors import DataError
from cdiff.evaluation.scenes import describe_scenes
from cdiff.generator.model import Generator
from cdiff.generator.placement import cut_off, draw_pose, frame_of, repaint_pose
from cdiff.generator.training import TRAINING_STATE, train_generator
from cdiff.types import Attempt, Pose, Revisions, Target, content_hash
from cdiff.wasm.calibration import calibrate
from cdiff.wasm.dealing import Stock
from cdiff.wasm.mining import Miners
from cdiff.wasm.pool import plan_pool
from cdiff.wasm.production import produce_shard
from cdiff.wasm.quality import validity_reasons

log = logging.getLogger(__name__)

ENOUGH = 3  # objects of a type from which one is held out; two of more: types are told apart between objects


def run(arguments: Sequence[str], unseen: Sequence[str], pairs: int) -> tuple[dict[str, Any], str]:
    """One object and one line for a person.

    Args:
        arguments: `--data` (repeated), `--config`, `--home` and settings, as of jobs/loop.py.
        unseen: categories that the generator does not see. pairs: candidates per type of these.
    Raises:
        DataError: a category that is not in the data, or nothing is left to train on; LeakError as of the loop.
    """
    args = _parser().parse_intermixed_args(list(arguments))
    config = load_config(args.config, [*args.overrides, "wasm.arm=B0"])
    torch.set_num_threads(config.resources.threads)
    dataset = _photos(args.data, args.groups, config.data)
    known = {sample.category for sample in dataset.samples}
    if missing := sorted(set(unseen) - known):
        raise DataError(
            f"no category {', '.join(missing)} in the data; there are {', '.join(sorted(known))}."
        )
    learned, held = _divided(dataset, unseen)
    if not learned:
        raise DataError("every category is unseen: nothing is left to train the generator on.")
    home = home_of(args.home)
    made_of = dump_config(config), [t.target_id for t in learned], code_hash("actors", "cdiff", "jobs")
    name = f"safe-{content_hash(list(made_of))[:8]}"  # other code has a generator and pairs of its own
    run_folder = create_run(home, name, dump_config(config), _Splits(dataset))
    generator = _trained(dataset, learned, config, run_folder)
    rng = np.random.default_rng([config.seed, 51])
    photos = [sample.sample_id for sample in dataset.samples if sample.category not in unseen]
    result: dict[str, Any] = {
        "run": name,
        "trained_on": {"categories": sorted(known - set(unseen)), "targets": len(learned)},
        "generator_steps": config.generator.steps,
        "seen": describe_scenes(generator, dataset, held, photos, rng).summary() if len(held) > 1 else None,
        "held_out_targets": len(held),
        "unseen": {c: _unseen(generator, dataset, c, config, run_folder, pairs, rng) for c in unseen},
    }
    told = {c: found["pairs"] for c, found in result["unseen"].items()}
    return result, "; ".join(
        f"{c}, never seen: {v['valid_share']:.0%} of {v['made']} valid, label IoU {v['label_iou']:.2f}"
        for c, v in told.items()
    )


def _photos(data: Sequence[str], groups: str | None, config: DataConfig) -> Dataset:
    """Near-identical photos are of one object, as for the loop: what is held out has no copy that trains."""
    sources, origins = brought(data)
    samples = read_sources(sources, groups, config)
    near = near_duplicates(samples, config)
    samples, left_out = drop_copies(samples, near, config)
    samples, joined = join_groups(samples, near)
    for note in left_out + joined:
        log.warning(note)
    return Dataset(samples, config, origins)


class _Splits:
    """The identity of the data, for the run folder."""

    def __init__(self, dataset: Dataset) -> None:
        self.hash = content_hash(sorted({sample.category for sample in dataset.samples}))
        shown = [[s.sample_id, s.checksum, [mask.checksum for mask in s.masks]] for s in dataset.samples]
        self.photos = content_hash(shown)


def _parser() -> argparse.ArgumentParser:
    out = argparse.ArgumentParser(prog="python jobs/benchmark.py safe")
    out.add_argument("overrides", nargs="*", metavar="section.key=value")
    out.add_argument("--config")
    out.add_argument("--data", action="append", required=True)
    out.add_argument("--groups")
    out.add_argument("--home")
    return out


def _divided(dataset: Dataset, unseen: Sequence[str]) -> tuple[list[Target], list[Target]]:
    """Targets that train, and those of the held-out objects of every type with enough objects."""
    objects: dict[tuple[str, ...], list[str]] = {}
    # by object, not by photo: one may stand in several categories
    away = {s.group for s in dataset.samples if s.category in unseen}
    shown = [s for s in dataset.samples if not s.is_normal and s.group not in away]
    for sample in shown:
        own = objects.setdefault((sample.category, *sample.types), [])
        if sample.group not in own:
            own.append(sample.group)
    out = {
        group
        for own in objects.values()
        if len(own) >= ENOUGH
        for group in own[-2 if len(own) > ENOUGH else -1 :]
    }
    held = [s.sample_id for s in shown if s.group in out]
    rest = [s.sample_id for s in shown if s.group not in out]
    return dataset.all_targets(rest), dataset.all_targets(held)


def _trained(dataset: Dataset, targets: list[Target], config: Config, run_folder: Run) -> Generator:
    """The generator of this run; a run that was stopped goes on from its last checkpoint."""
    mark = run_folder.local("generator.txt")
    if not mark.exists():
        photos = sorted({target.sample_id for target in targets})
        with tqdm(total=config.generator.steps, desc="training the generator", unit="step") as bar:
            found = train_generator(
                dataset,
                targets,
                photos,
                config,
                run_folder.checkpoints,
                lambda at, _, __: bar.update(at - bar.n),
                config.resources.device,
            )
        run_folder.publish(f"checkpoints/{found.revision}")
        run_folder.storage.write("generator.txt", found.revision.encode())
        forget_file(run_folder, f"checkpoints/{TRAINING_STATE}")
    revision = run_folder.storage.read("generator.txt").decode()
    return Generator.load(run_folder.checkpoint(revision), config.resources.device)


def _unseen(
    generator: Generator,
    dataset: Dataset,
    category: str,
    config: Config,
    run_folder: Run,
    pairs: int,
    rng: np.random.Generator,
) -> dict[str, Any]:
    own = [sample for sample in dataset.samples if sample.category == category]
    painted = [sample.sample_id for sample in backdrops(own)]
    ids = [sample.sample_id for sample in own]
    targets = dataset.all_targets(ids)
    if len(targets) < 2 or len(painted) < 2:
        raise DataError(
            f"{category}: two targets and two photos to paint on are the least that can be compared."
        )
    scenes = describe_scenes(generator, dataset, targets, painted, rng).summary()
    attempts = _made(generator, dataset, targets, painted, config, run_folder, pairs)
    limits = calibrate(generator, dataset, [], [target.target_id for target in targets], config)
    reasons = [reason or "valid" for reason in validity_reasons(attempts, limits, config)]
    return {
        "targets": len(targets),
        **scenes,
        "pairs": {
            "made": len(reasons),
            "valid_share": reasons.count("valid") / len(reasons),
            "label_iou": float(np.mean([attempt.measure("label_iou") for attempt in attempts])),
            "reasons": {reason: reasons.count(reason) for reason in sorted(set(reasons))},
        },
    }


def _made(
    generator: Generator,
    dataset: Dataset,
    targets: Sequence[Target],
    photos: Sequence[str],
    config: Config,
    run_folder: Run,
    pairs: int,
) -> list[Attempt]:
    """`pairs` candidates for each type of one category, on its photos."""
    bank = generator.bank(dataset, list(targets))
    by_id = {target.target_id: target for target in targets}
    frames = {name: frame_of(dataset.image(name)) for name in {*photos, *(t.sample_id for t in targets)}}
    ends = {
        t.target_id
        for t in targets
        if cut_off(dataset.image(t.sample_id), [dataset.target_mask(t.target_id)])[0]
    }

    def propose(reference: str, background: str, rng: np.random.Generator) -> Pose:
        target, margin = by_id[reference], config.generator.margin
        if background == target.sample_id:
            return repaint_pose(target, margin, rng)
        occupied = [other.box for other in dataset.targets(background)]
        places = frames[target.sample_id], frames[background]
        return draw_pose(target, *places, occupied, config.sampling, margin, rng)

    groups = {name: dataset.sample(name).group for name in photos}
    stock = Stock(by_id, {targets[0].category: list(photos)}, groups, propose, ends)
    plan = plan_pool(stock, config, pairs, Revisions(generator.revision, bank.revision))
    size, out = config.wasm.shard, []
    for first in tqdm(range(0, len(plan), size), desc=f"making {targets[0].category}", unit="shard"):
        shard = plan[first : first + size]
        out += produce_shard(shard, run_folder, generator, bank, Miners(), dataset, config)
    return out


def add_options(parser: argparse.ArgumentParser) -> None:
    """Options of `jobs/benchmark.py safe`, beside those of every benchmark."""
    parser.add_argument(
        "--unseen", nargs="+", required=True, metavar="CATEGORY", help="categories that do not train"
    )
    parser.add_argument("--pairs", type=int, default=40, help="candidates per type of an unseen category")
    parser.add_argument("--out", type=Path, required=True, help="JSON file to write")
