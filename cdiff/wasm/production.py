"""From tasks to stored attempts: make the pairs, measure them, write their shard. What an actor calls."""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import torch

from cdiff.config import Config
from cdiff.data.dataset import Dataset
from cdiff.data.images import encode_png
from cdiff.data.store import Run, ShardRow, read_attempts, shard_committed, shard_name, write_shard
from cdiff.generator.crops import cut, put, square_around
from cdiff.generator.model import Generator
from cdiff.generator.placement import foreground
from cdiff.safe.tokens import TokenBank
from cdiff.types import Assignment, Attempt, Box, GenerationTask
from cdiff.wasm.arms import Judge
from cdiff.wasm.layout import Layout
from cdiff.wasm.measures import fingerprint, measure_pair, visibility
from cdiff.wasm.mining import Miners, Produced, make_pairs
from cdiff.wasm.survival import survival
from cdiff.wasm.view import local_loss

AT_ONCE = 16_000_000  # pixels of crops, a photo's own counted as a sixth, that are laid out together
_INVISIBLE = 0.01  # below this visibility (share of full scale) a candidate of best-of-K is struck out


def produce_shard(
    assignments: list[Assignment],
    run: Run,
    generator: Generator,
    bank: TokenBank,
    miners: Miners,
    dataset: Dataset,
    config: Config,
) -> list[Attempt]:
    """Make, measure and store one shard's pairs; a shard that is committed already is read, not made again.

    Args:
        miners: what the recipe's arm needs. With its segmenter the loss of pairs is measured; without, they have none.
    """
    name = shard_name(assignments)
    if not shard_committed(run, name):
        began, rows = time.perf_counter(), list[ShardRow]()
        for places in portions([laid_pixels(assignment.task, dataset, config) for assignment in assignments]):
            own = [assignments[place] for place in places]
            produced = produce(
                [assignment.task for assignment in own], generator, bank, miners, dataset, config
            )
            rows += [
                row_of(assignment, name, place, pair, miners.segmenter, dataset, config)
                for place, assignment, pair in zip(places, own, produced, strict=True)
            ]
        write_shard(run, name, rows, time.perf_counter() - began)
    return read_attempts(run, name)


def produce(
    tasks: list[GenerationTask],
    generator: Generator,
    bank: TokenBank,
    miners: Miners,
    dataset: Dataset,
    config: Config,
) -> list[Produced]:
    """As `cdiff.wasm.mining.make_pairs`, with candidates judged by the miners' segmenter where they have one."""
    if miners.segmenter is not None:
        miners = replace(miners, judge=loss_judge(miners.segmenter, config))
    return make_pairs(generator, bank, tasks, dataset, config, miners)


def laid_pixels(task: GenerationTask, dataset: Dataset, config: Config) -> int:
    """About what laying out a task holds, in pixels of its two crops, which are floats, several times; its photo is bytes.

    Cut by photos alone, portions of large ones had a single pair, and a sampler fills its batch up: seven times the work at 12 megapixels.
    """
    target, margin = dataset.target(task.reference), task.pose.margin
    photo, own = dataset.sample(task.background), dataset.sample(target.sample_id)
    # turned, a target's box is longer
    crops = (photo, math.sqrt(2) * target.longer_side * task.pose.scale), (own, target.longer_side)
    held = 0
    for shown, extent in crops:
        box = square_around(0, 0, extent, margin, config.generator.min_side, max(shown.width, shown.height))
        held += (box[2] - box[0]) ** 2
    return held // 2 + photo.width * photo.height // 6


def portions(pixels: Sequence[int], at_once: int | None = None) -> list[range]:
    """Places of tasks, cut so that few large crops are laid out at once.

    No pair's bytes depend on its neighbours.

    Args:
        pixels: of each task, as of `laid_pixels`. at_once: of a portion, unless it is a single task; None: AT_ONCE.
    """
    most, first, held = at_once or AT_ONCE, 0, 0
    out = []
    for place, own in enumerate(pixels):
        if place > first and held + own > most:
            out.append(range(first, place))
            first, held = place, 0
        held += own
    return [*out, range(first, len(pixels))]


def with_half_batches(config: Config) -> Config:
    """The configuration under which half as many images go through the networks at once."""
    half = max(1, config.sampling.micro_batch // 2)
    return config.model_copy(update={"sampling": config.sampling.model_copy(update={"micro_batch": half})})


def loss_judge(segmenter: torch.nn.Module, config: Config) -> Judge:
    """Difficulty of a composite: min(kappa, loss of the segmenter around the new target); invisible ones are invalid."""

    def judge(image: np.ndarray, target: np.ndarray, layout: Layout) -> float:
        if not target.any() or visibility(image, target) < _INVISIBLE:
            return -np.inf
        return min(config.wasm.kappa, local_loss(segmenter, image, target | layout.kept, target, config))

    return judge


def row_of(
    assignment: Assignment,
    name: str,
    number: int,
    pair: Produced,
    segmenter: torch.nn.Module | None,
    dataset: Dataset,
    config: Config,
) -> ShardRow:
    """A pair measured and encoded, in its place in a shard."""
    layout = pair.layout
    background = dataset.sample(layout.task.background)
    reference = dataset.target(layout.task.reference)
    region = np.zeros(pair.target.shape, bool)
    put(region, layout.canvas.region, layout.box)
    crop = cut(pair.image, layout.box)
    own = layout.canvas.reference
    measures = measure_pair(pair.image, layout.photo, pair.target, region, foreground(layout.photo))
    measures |= {"crop_left": layout.box[0], "crop_top": layout.box[1]}
    measures["label_iou"] = pair.label_iou
    measures["own_mask"] = float(pair.own_mask)
    if config.sampling.micro_batch < layout.task.recipe.micro_batch:  # memory was short
        measures["micro_batch"] = config.sampling.micro_batch
    if segmenter is not None:
        shown = pair.image, pair.mask, pair.target, config
        measures["loss"] = local_loss(segmenter, *shown)
        measures["survives"] = survival(segmenter, *shown)
        if pair.treated:  # of arms that climb the loss alone
            measures["survives_look"] = survival(segmenter, *shown, pair.treated)
    measures["reference_distance"] = _distance(
        fingerprint(crop), fingerprint(np.clip(own, 0, 255).astype(np.uint8))
    )
    attempt = Attempt(
        assignment=assignment,
        shard=name,
        row=number,
        category=background.category,
        type=reference.type,
        box=_box_of(region if layout.negative else pair.target),
        measures=tuple(sorted((key, float(value)) for key, value in measures.items())),
        fingerprint=fingerprint(crop),
    )
    return ShardRow(
        attempt=attempt,
        image_png=encode_png(pair.image, background.mode),
        mask_png=encode_png(pair.mask, "L"),
        crop_png=encode_png(crop, "RGB"),
        reference_png=encode_png(np.clip(own, 0, 255).astype(np.uint8), "RGB"),
        region_png=encode_png(layout.canvas.region, "L"),
    )


def _distance(first: bytes, second: bytes) -> float:
    a, b = (np.frombuffer(value, np.uint8).astype(float) for value in (first, second))
    return float(np.abs(a - b).mean() / 255)


def _box_of(mask: np.ndarray) -> Box:
    """The bounding box; a mask without a pixel gives (0, 0, 0, 0) and is turned away by the gate."""
    rows, columns = np.nonzero(mask)
    if not rows.size:
        return 0, 0, 0, 0
    return int(columns.min()), int(rows.min()), int(columns.max()) + 1, int(rows.max()) + 1
