"""The actor that fits and scores segmenters."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import ray
import torch

from actors.resources import join_driver
from actors.shelf import fit_key, shelve_fit, taken_fit
from cdiff.config import Config
from cdiff.data.carriers import from_json
from cdiff.data.dataset import Dataset
from cdiff.data.images import OWN, decode_mask_png, decode_png
from cdiff.data.store import Run, read_pair
from cdiff.downstream.scoring import outcomes, outcomes_of, score_photo, score_photos
from cdiff.downstream.segmenter import build_segmenter, load_segmenter, save_segmenter
from cdiff.downstream.training import Shrunk, TrainingItem, batch_seed, fit, real_items, synthetic_item
from cdiff.evaluation.decision import decide
from cdiff.evaluation.protocol import best_iou_threshold, evaluate, photo_dice
from cdiff.evaluation.tally import Tally, swapped_masks, tally
from cdiff.generator.perlin import perlin_pairs
from cdiff.types import Attempt, Decision, Outcome, Pair
from cdiff.wasm.layout import new_target
from cdiff.wasm.survival import with_survival
from cdiff.wasm.view import local_loss
from cdiff.workers import ALONE, Workers


@dataclass(frozen=True, slots=True)
class FitRequest:
    """One fit: everything that decides its weights, beside the configuration."""

    sample_ids: tuple[str, ...]  # the real photos
    steps: int
    seed: int  # of start weights, where nothing is gone on from, and of batches
    start: str = ""  # revision of the segmenter that is gone on from
    pairs: tuple[Pair, ...] = ()
    perlin: int = 0  # pairs of Perlin noise: they are made on the spot, from the seed
    base: bool = False  # a base of real photos: `downstream.base_share` crops stand beside its batches, to the last step
    cycle: int = 0  # fits that go on from each other differ in this: each sees other batches
    mix: float = 0.0  # instead of `downstream.synthetic_mix`, where above 0
    again: int = 0  # fits that differ in this alone see other crops beside the same real batches


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
    outcomes: tuple[Outcome, ...]  # one per target and normal photo, with fold -1


TALLIES = 4  # kept for decisions to come: a candidate's, the best one's, and two rivals'


class Downstream:
    """Holds the data set; fits segmenters on real photos and pairs, and says how they do. An actor (`DownstreamActor`), or within a trial."""

    def __init__(self, run: Run, config: Config, dataset: Dataset, device: str = "") -> None:
        join_driver(config)
        self.run, self.config, self.dataset = run, config, dataset
        self.device = device or config.resources.device
        self.done = (0, 0)
        self.tell: Callable[[int, int, float], None] | None = None  # beside the actor's own `progress`
        # as fits see them: what one holds, the next ones need
        self.photos: dict[tuple[str, int], Shrunk] = {}
        self.tallies: dict[tuple[str, tuple[str, ...]], Tally] = {}

    def demand_segmenter(self) -> None:
        """ConfigError where the configured segmenter cannot be made: asked before a generator is trained, which takes longer."""
        build_segmenter(self.config.downstream, 0)

    def fit(self, request: FitRequest, workers: Workers = ALONE) -> Fit:
        """Fit a segmenter as requested and store it. Equal requests give equal weights: what another run fitted is taken.

        Args:
            workers: that fit it together; the first stores it, and the others' answers have no revision.
        """
        began = time.perf_counter()
        config = self.config.downstream
        key = fit_key(request, self.dataset, self.config)
        if request.base:
            beside = {"synthetic_share": config.base_share, "synthetic_until": 1.0}
            config = config.model_copy(update=beside)
        if request.mix:
            config = config.model_copy(update={"synthetic_mix": request.mix})
        # workers may stand before different shelves: whether a fit is there is not theirs to say
        known = taken_fit(self.run, key) if workers.count == 1 else None
        if known is not None:
            return from_json(Fit, known)
        start, seed = request.start, request.seed
        model = self._load(start) if start else build_segmenter(config, seed).to(self.device)
        real = real_items(self.dataset, request.sample_ids, config, self.photos)
        # by place in the plan: fits that differ in strengths alone draw the same references side by side
        ordered = sorted(request.pairs, key=lambda pair: (pair.attempt.assignment.task.seed, pair.task_id))
        synthetic = []
        for number, pair in enumerate(ordered):  # large photos by the thousand take a while
            self._progress(number, len(ordered))
            synthetic.append(self._item(pair))
        synthetic += self._perlin(request)
        history = fit(
            model,
            real,
            synthetic,
            config,
            steps=request.steps,
            seed=batch_seed(seed, bool(start), request.cycle),
            again=request.again,
            progress=self._progress,
            workers=workers,
        )
        if not workers.first:
            return Fit("", (), time.perf_counter() - began)
        note = {"steps": request.steps, "pairs": len(synthetic)}
        revision = save_segmenter(model, self.run.checkpoints, config, note)
        self.run.publish(f"checkpoints/{revision}")
        parts = np.array_split(history["loss"], min(10, len(history["loss"])))
        fitted = Fit(revision, tuple(float(part.mean()) for part in parts), time.perf_counter() - began)
        if workers.count == 1:
            shelve_fit(self.run, key, fitted)
        return fitted

    def fold(self, request: FitRequest, base: int, held: list[str], fold: int) -> list[Outcome]:
        """Fit a fold's model without the photos of its fold, and say how it does on them.

        Args:
            base: steps on the request's real photos alone that come first, as with the models that it stands for.
        """
        if base:
            start = self.fit(replace(request, pairs=(), steps=base, base=True)).revision
            request = replace(request, start=start)
        fitted = self.fit(request)
        model = self._load(fitted.revision)
        rows = outcomes(model, self.dataset, held, self.config.downstream, fold)
        return with_survival(rows, model, self.dataset, self.config)

    def evaluate(self, revision: str, sample_ids: list[str], threshold: float | None = None) -> Evaluation:
        """All metrics on a split; without a threshold, the best one for IoU is chosen on this very split."""
        maps = score_photos(
            self._load(revision), self.dataset, sample_ids, self.config.downstream, self._progress
        )
        return self._evaluation(maps, sample_ids, threshold)

    def weigh(self, revision: str, sample_ids: list[str], threshold: float | None, name: str) -> Evaluation:
        """As `evaluate`, with the pixel counts that intervals are computed from stored as `Run.tally(name)`.

        Beside them, as name-swapped, those against the masks of other photos: the negative control.
        """
        maps = score_photos(
            self._load(revision), self.dataset, sample_ids, self.config.downstream, self._progress
        )
        swapped = swapped_masks(self.dataset, sample_ids, self.config.seed)
        for told, masks in ((name, None), (f"{name}-swapped", swapped)):
            key = f"tallies/{told}.npz"
            tally(maps.items(), self.dataset, masks).save(self.run.path / key)
            self.run.publish(key)
        return self._evaluation(maps, sample_ids, threshold)

    def losses(self, revision: str, attempts: list[Attempt]) -> list[float]:
        """The loss of a segmenter around the new target of each stored attempt, nats."""
        model = self._load(revision)
        return [self._loss(model, attempt) for attempt in attempts]

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

    def _progress(self, done: int, total: int, loss: float = 0.0) -> None:
        self.done = (done, total)
        if self.tell:
            self.tell(done, total, loss)

    def _load(self, revision: str) -> torch.nn.Module:
        return load_segmenter(self.run.checkpoint(revision)).to(self.device)

    def _tally(self, revision: str, sample_ids: list[str]) -> Tally:
        """Counted once per actor and segmenter: the rivals stay the same from round to round."""
        key = (revision, tuple(sample_ids))
        if key in self.tallies:
            self.tallies[key] = self.tallies.pop(key)  # the last asked for, at the end
        else:
            model, config = self._load(revision), self.config.downstream

            def scored() -> Iterator[tuple[str, np.ndarray]]:
                for number, sample_id in enumerate(sample_ids, 1):
                    yield sample_id, score_photo(model, self.dataset.image(sample_id), config)
                    self._progress(number, len(sample_ids))

            self.tallies[key] = tally(scored(), self.dataset)
            while len(self.tallies) > TALLIES:  # of thousands of objects each takes tens of megabytes
                del self.tallies[next(iter(self.tallies))]
        return self.tallies[key]

    def _evaluation(
        self, maps: Mapping[str, np.ndarray], sample_ids: list[str], threshold: float | None
    ) -> Evaluation:
        chosen = best_iou_threshold(maps, self.dataset, sample_ids) if threshold is None else threshold
        scores = evaluate(maps, self.dataset, sample_ids, chosen)
        found = outcomes_of(maps, self.dataset, sample_ids, -1)
        return Evaluation(scores, photo_dice(maps, self.dataset, sample_ids), chosen, tuple(found))

    def _item(self, pair: Pair) -> TrainingItem:
        """A kept pair as training photo; its crops are centred on the painted target alone."""
        image, mask = self._pixels(pair.attempt)
        return synthetic_item(image, mask, self.config.downstream, pair.attempt.box)

    def _perlin(self, request: FitRequest) -> list[TrainingItem]:
        if not request.perlin:
            return []
        pairs = perlin_pairs(self.dataset, request.sample_ids, request.perlin, request.seed)
        fit = self.config.downstream
        return [synthetic_item(image, mask, fit, centred_on=new) for image, mask, new in pairs]

    def _loss(self, model: torch.nn.Module, attempt: Attempt) -> float:
        image, mask = self._pixels(attempt)
        return local_loss(model, image, mask, new_target(attempt, mask, self.dataset), self.config)

    def _pixels(self, attempt: Attempt) -> tuple[np.ndarray, np.ndarray]:
        image, mask = read_pair(self.run, attempt)
        return decode_png(image, OWN), decode_mask_png(mask, OWN)


def fitted(
    run: Run,
    config: Config,
    dataset: Dataset,
    workers: Workers,
    device: str,
    progress: Callable[[int, int, float], None],
    *,
    request: FitRequest,
) -> Fit:
    """A fit as one of several workers."""
    downstream = Downstream(run, config, dataset, device)
    downstream.tell = progress
    return downstream.fit(request, workers)


DownstreamActor = ray.remote(concurrency_groups={"status": 1})(Downstream)  # type: ignore[call-overload]  # missing in Ray's stubs
