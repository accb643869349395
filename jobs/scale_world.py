"""What `jobs/benchmark.py scale` measures on: the demo photos, the real coordinator, and attempts that nobody generated.

Everything that planner, gate, ledger and store look at is there in its usual form and variety: poses by the real planner, thumbnails cut from
the real photos at these poses, a value for every measure of the gate. Only the pixels of the pairs are missing: their five PNG files are
8 pixels wide, so that metadata dominates.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from actors.coordinator import CoordinatorActor
from cdiff.config import Config
from cdiff.config_file import load_config
from cdiff.data.dataset import Dataset
from cdiff.data.demo import make_demo
from cdiff.data.formats import read_sources
from cdiff.data.images import encode_png
from cdiff.data.store import ShardRow, shard_name
from cdiff.generator.placement import draw_pose, frame_of, repaint_pose
from cdiff.types import Assignment, Attempt, Knowledge, Outcome, Pose, Revisions, Target
from cdiff.wasm.measures import THUMBNAIL
from cdiff.wasm.quality import Thresholds

REVISIONS = Revisions("1" * 16, "2" * 16, "3" * 16)
_PICTURES = 64  # different tiny PNG files
_SIDE = 8  # of these, pixels
_NOISE = 1.0  # grey levels: standard deviation by which two seeds' thumbnails of one place differ
# The gate turns some away, too few to stop a slice.
_BOUNDS = (("label_iou", "", 0.52), ("visible", "", 0.055))
# What a row of the store tells, uniform in these ranges; sorted by name, as everywhere.
_MEASURES = {
    "area": (40.0, 900.0),
    "changed": (0.05, 0.4),
    "crop_left": (0.0, 64.0),
    "crop_top": (0.0, 64.0),
    "label_iou": (0.5, 1.0),
    "loss": (0.0, 2.5),
    "on_object": (0.9, 1.0),
    "outside": (0.0, 0.0),
    "own_mask": (0.0, 1.0),
    "reference_distance": (0.02, 0.3),
    "sharpness": (0.7, 1.3),
    "survives": (0.5, 1.0),
    "visible": (0.05, 0.4),
}


class World:
    """The demo photos with a coordinator that plans a number of pairs.

    Args:
        home: where the demo data lie, or are written.
        pairs: tasks of a plan; none is planned beyond the wanted pairs (`wasm.oversample` is 1), so that sizes are comparable.
        overrides: settings, over the defaults.
    """

    def __init__(self, home: Path, pairs: int, overrides: Sequence[str] = ()) -> None:
        told = [*overrides, "wasm.oversample=1", f"wasm.pairs={pairs}"]
        self.config: Config = load_config(None, told)
        sources = make_demo(home / "data", self.config.data, self.config.data.split_seed)
        dataset = Dataset(read_sources(sources, None, self.config.data), self.config.data)
        samples = dataset.samples
        self.targets = {t.target_id: t for t in dataset.all_targets([s.sample_id for s in samples])}
        photos = {sample.sample_id: dataset.image(sample.sample_id) for sample in samples}
        self._grey = {name: photo.mean(axis=2, dtype=np.float32) for name, photo in photos.items()}
        self._frames = {name: frame_of(photo) for name, photo in photos.items()}
        backgrounds = {
            category: [s.sample_id for s in samples if s.category == category and s.is_normal]
            or [s.sample_id for s in samples if s.category == category]
            for category in sorted({sample.category for sample in samples})
        }
        normals = {sample.sample_id: sample for sample in samples if sample.is_normal}
        groups = {sample.sample_id: sample.group for sample in samples}
        thresholds = Thresholds(_BOUNDS)
        plain: Any = CoordinatorActor.__ray_metadata__.modified_class  # type: ignore[attr-defined]  # the class itself, without an actor
        self.coordinator = plain(
            self.config, self.targets, groups, backgrounds, self._frames, set(), thresholds, normals
        )
        self.known: Knowledge = self.coordinator.rank(self.outcomes(len(self.targets)), [])
        self._noise = np.random.default_rng(7).normal(0, _NOISE, (256, THUMBNAIL, THUMBNAIL))

    def plan(self, quick: bool = False) -> list[Assignment]:
        """The coordinator's plan of one round.

        Args:
            quick: poses are the first drawn, not the best of 24: where planning itself isn't measured.
        """
        if quick:
            self.coordinator.stock = replace(self.coordinator.stock, propose=self._first_pose)
        told: list[Assignment] = self.coordinator.plan(self.known, 1, REVISIONS, self.config)
        return told

    def outcomes(self, count: int) -> list[Outcome]:
        """Outcomes of so many targets: the real ones over and over under names of their own, with random values."""
        rng, own = np.random.default_rng(11), list(self.targets.values())
        values = rng.random((count, 5))
        return [
            _outcome(own[number % len(own)], number // len(own), [float(v) for v in values[number]])
            for number in range(count)
        ]

    def attempts(self, plan: Sequence[Assignment]) -> Iterator[Attempt]:
        """An attempt for each assignment, in shards of `wasm.shard` as the crew cuts them."""
        low, high = np.array(list(_MEASURES.values())).T
        for first in range(0, len(plan), self.config.wasm.shard):
            shard = plan[first : first + self.config.wasm.shard]
            name = shard_name(shard)
            values = np.random.default_rng([13, first]).uniform(low, high, (len(shard), len(low)))
            for row, assignment in enumerate(shard):
                yield self._attempt(assignment, name, row, [float(value) for value in values[row]])

    def _attempt(self, assignment: Assignment, shard: str, row: int, values: list[float]) -> Attempt:
        task = assignment.task
        target = self.targets[task.reference]
        half = target.longer_side * task.pose.scale / 2
        box = tuple(round(value) for value in _square(task.pose.x, task.pose.y, half))
        return Attempt(
            assignment=assignment,
            shard=shard,
            row=row,
            category=target.category,
            type=target.type,
            box=(box[0], box[1], box[2], box[3]),
            measures=tuple(zip(_MEASURES, values, strict=True)),
            fingerprint=self._thumbnail(target, task.background, task.pose, task.seed),
        )

    def _thumbnail(self, target: Target, background: str, pose: Pose, seed: int) -> bytes:
        """The crop at the pose, its middle half covered by the reference's, with the noise of a seed."""
        crop = _sampled(
            self._grey[background], _square(pose.x, pose.y, pose.margin * target.longer_side * pose.scale / 2)
        )
        own = _sampled(self._grey[target.sample_id], tuple(map(float, target.box)))
        middle = slice(THUMBNAIL // 4, -THUMBNAIL // 4)
        crop[middle, middle] = own[::2, ::2]
        crop += np.roll(self._noise[seed % 256], seed // 256 % (THUMBNAIL * THUMBNAIL))
        return np.clip(np.rint(crop), 0, 255).astype(np.uint8).tobytes()

    def _first_pose(self, reference: str, background: str, rng: np.random.Generator) -> Pose:
        target, margin = self.targets[reference], self.config.generator.margin
        if background == target.sample_id:
            return repaint_pose(target, margin, rng)
        frames = self._frames[target.sample_id], self._frames[background]
        return draw_pose(target, *frames, [], self.config.sampling, margin, rng, tries=1)


def with_pictures(attempts: Iterator[Attempt]) -> Iterator[ShardRow]:
    """Rows of shards: every attempt with five tiny PNG files."""
    rng = np.random.default_rng(17)
    grey = rng.integers(0, 256, (_PICTURES, _SIDE, _SIDE), dtype=np.uint8)
    pictures = [encode_png(np.repeat(picture[..., None], 3, axis=2), "RGB") for picture in grey]
    masks = [encode_png(picture > 127, "L") for picture in grey]
    for attempt in attempts:
        place = attempt.assignment.index % _PICTURES
        picture, mask = pictures[place], masks[place]
        yield ShardRow(attempt, picture, mask, picture, picture, mask)


def _outcome(target: Target, lap: int, values: list[float]) -> Outcome:
    loss, dice, missed, size, contrast = values
    return Outcome(
        target_id=f"{target.target_id}.{lap}" if lap else target.target_id,
        sample_id=target.sample_id,
        category=target.category,
        type=target.type,
        group=target.group,
        fold=0,
        loss=2 * loss,
        soft_dice=dice,
        missed=missed,
        false_area=0.1,
        confidence=dice,
        boundary_error=0.1,
        size=size,
        contrast=contrast,
    )


def _square(x: float, y: float, half: float) -> tuple[float, float, float, float]:
    return x - half, y - half, x + half, y + half


def _sampled(grey: np.ndarray, box: Sequence[float]) -> np.ndarray:
    """A photo, float32 [H, W], at 24 x 24 places of a box; beyond the border its last pixel goes on."""
    columns, rows = (
        np.linspace(box[i], box[i + 2] - 1, THUMBNAIL).round().astype(int).clip(0, grey.shape[1 - i] - 1)
        for i in (0, 1)
    )
    sampled: np.ndarray = grey[rows][:, columns]
    return sampled
