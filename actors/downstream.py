"""The actor that fits and scores segmenters."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Any

import numpy as np
import ray
import torch

from actors.resources import set_threads
from cdiff.config import Config
from cdiff.data.dataset import Dataset
from cdiff.data.images import Limits, decode_mask_png, decode_png
from cdiff.data.store import Run, read_pair
from cdiff.downstream.scoring import outcomes, score_photo, score_photos
from cdiff.downstream.segmenter import build_segmenter, load_segmenter, save_segmenter
from cdiff.downstream.training import TrainingItem, batch_seed, fit, real_items, synthetic_item
from cdiff.evaluation.decision import decide
from cdiff.evaluation.protocol import best_iou_threshold, evaluate, photo_dice
from cdiff.evaluation.tally import Tally, tally
from cdiff.types import Decision, Outcome, Pair


@dataclass(frozen=True, slots=True)
class Fit:
    """What a fit leaves: the segmenter's revision, its losses (mean over each tenth of the steps) and seconds."""

    revision: str
    losses: tuple[float, ...]
    seconds: float


@dataclass(frozen=True, slots=True)
class Evaluation:
    """Scores of one segmenter on one split (cdiff.evaluation.protocol.evaluate) and soft Dice by photo with targets."""

    scores: dict[str, Any]
    dice: dict[str, float]
    threshold: float  # for IoU: chosen on this split when none was given


@ray.remote(concurrency_groups={"status": 1})  # type: ignore[call-overload]  # missing in Ray's stubs
class DownstreamActor:
    """Holds the data set; fits segmenters on real photos and pairs, and says how they do."""

    def __init__(self, run: Run, config: Config, dataset: Dataset) -> None:
        set_threads(config.resources.threads)
        self.run, self.config, self.dataset = run, config, dataset
        self.done = (0, 0)
        self.tallies: dict[tuple[str, tuple[str, ...]], Tally] = {}

    def fit(self, sample_ids: list[str], pairs: list[Pair], steps: int, start: str = "") -> Fit:
        """Fit on the given real photos and kept pairs for a fixed number of steps.

        All fits start from the same weights: the segmenter of revision `start`, or without it the seeded ones.
        """
        began = time.perf_counter()
        config = self.config.downstream
        seed = config.seed + self.config.seed
        model = self._load(start) if start else build_segmenter(config, seed)
        real = real_items(self.dataset, sample_ids, config)
        ordered = sorted(pairs, key=lambda pair: pair.task_id)
        synthetic = [self._item(pair) for pair in ordered]
        history = fit(
            model,
            real,
            synthetic,
            config,
            steps=steps,
            seed=batch_seed(seed, bool(start)),
            progress=self._progress,
        )
        revision = save_segmenter(model, self.run.checkpoints, config, {"steps": steps, "pairs": len(pairs)})
        parts = np.array_split(history["loss"], min(10, len(history["loss"])))
        return Fit(revision, tuple(float(part.mean()) for part in parts), time.perf_counter() - began)

    def fold(
        self, sample_ids: list[str], pairs: list[Pair], share: float, held: list[str], fold: int
    ) -> list[Outcome]:
        """Fit a fold's model without the photos of its fold, and say how it does on them.

        It is fitted as the models that it stands for, with a share of their steps: a base of real photos, then with pairs.
        """
        config = self.config.downstream
        base = round(config.base_steps * share)
        start = self.fit(sample_ids, [], base).revision if base else ""
        fitted = self.fit(sample_ids, pairs, max(1, round(config.steps * share)), start)
        return outcomes(self._load(fitted.revision), self.dataset, held, self.config.downstream, fold)

    def evaluate(self, revision: str, sample_ids: list[str], threshold: float | None = None) -> Evaluation:
        """All metrics on a split; without a threshold, the best one for IoU is chosen on this very split."""
        maps = score_photos(
            self._load(revision), self.dataset, sample_ids, self.config.downstream, self._progress
        )
        chosen = best_iou_threshold(maps, self.dataset, sample_ids) if threshold is None else threshold
        scores = evaluate(maps, self.dataset, sample_ids, chosen)
        return Evaluation(scores, photo_dice(maps, self.dataset, sample_ids), chosen)

    def decide(
        self, candidate: str, best: str, real_only: str, sample_ids: list[str], gain: float, seed: int
    ) -> Decision:
        """Compare three segmenters on the validation photos."""
        tallies = [self._tally(revision, sample_ids) for revision in (candidate, best, real_only)]
        return decide(tallies[0], tallies[1], tallies[2], gain, seed)

    def score(self, revision: str, sample_ids: list[str]) -> dict[str, np.ndarray]:
        """Score maps of a few photos, for pictures."""
        return score_photos(self._load(revision), self.dataset, sample_ids, self.config.downstream, None)

    @ray.method(concurrency_group="status")
    def progress(self) -> tuple[int, int]:
        """Steps done and steps in all of the current phase."""
        return self.done

    def _progress(self, done: int, total: int, _: float = 0.0) -> None:
        self.done = (done, total)

    def _load(self, revision: str) -> torch.nn.Module:
        return load_segmenter(self.run.checkpoint(revision))

    def _tally(self, revision: str, sample_ids: list[str]) -> Tally:
        """Counted once per actor and segmenter: the rivals stay the same from round to round."""
        key = (revision, tuple(sample_ids))
        if key not in self.tallies:
            model, config = self._load(revision), self.config.downstream
            scored = ((i, score_photo(model, self.dataset.image(i), config)) for i in sample_ids)
            self.tallies[key] = tally(scored, self.dataset)
        return self.tallies[key]

    def _item(self, pair: Pair) -> TrainingItem:
        """A kept pair as training photo; its crops are centred on the painted target alone."""
        limits = Limits.of(self.config.data)
        attempt = pair.attempt
        image, mask = read_pair(self.run, attempt)
        return synthetic_item(
            decode_png(image, limits), decode_mask_png(mask, limits), self.config.downstream, attempt.box
        )
