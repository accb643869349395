"""The generator of a run, at the service of requests: from what is asked to tickets, from tickets of many requests to pairs.

    PairRequest --tickets--> Ticket (one pair each) --make: of many requests together--> ShardRow

A ticket's bytes depend on the ticket alone: the sampler pads its fixed micro-batches, and each image has its own noise. So requests may
share a batch without knowing of each other.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch

from cdiff.config import Config
from cdiff.config_file import load_config
from cdiff.data.backdrops import backdrops
from cdiff.data.carriers import from_json
from cdiff.data.dataset import Dataset
from cdiff.data.images import Limits
from cdiff.data.ledger import Ledger
from cdiff.data.manifest import Manifest, read_manifest
from cdiff.data.run import Run
from cdiff.data.store import ShardRow
from cdiff.downstream.scoring import image_score, score_photo
from cdiff.downstream.segmenter import load_segmenter, segmenter_config
from cdiff.errors import RequestError, RunError
from cdiff.generator.crops import cut, put, to_resolution, to_side
from cdiff.generator.model import square_of
from cdiff.generator.placement import Frame, draw_pose, frame_of, repaint_pose
from cdiff.generator.sampling import Sampler
from cdiff.generator.states import Condition
from cdiff.safe.tokens import TokenBank
from cdiff.service.requests import MaskRequest, PairRequest, SegmentRequest
from cdiff.service.uploads import Upload, WithUploads, known_as, upload_of
from cdiff.types import UPLOAD, Assignment, Box, GenerationTask, Pose, Recipe, Revisions, Sample, Target
from cdiff.wasm.dealing import recipe_of, strengths_of
from cdiff.wasm.labels import READ_STEPS
from cdiff.wasm.layout import coverage, noise_of
from cdiff.wasm.mining import Miners
from cdiff.wasm.models import Models
from cdiff.wasm.production import laid_pixels, portions, produce, row_of
from cdiff.wasm.quality import Thresholds, validity_reason

MOST_PIXELS = 16_000_000  # of a picture that comes with a request
MOST_SCALE = 8.0  # of a target, to fill a region
_OWN = "own"  # category and type of a reference that the run does not know


def standing(
    run: Run, settings: Sequence[str] = (), ledger: Ledger | None = None
) -> tuple[Config, Revisions, Thresholds]:
    """Settings, generator and token bank, and the gate's thresholds of a run.

    Args:
        settings: "resources.key=value", instead of the run's.
        ledger: of the run, where it was read already.
    Raises:
        RunError: the run has no generator yet.
    """
    ledger = ledger or Ledger(run)
    trained, extracted = ledger.milestone("generator"), ledger.milestone("extractor")
    if trained is None or extracted is None:
        raise RunError(
            f"{run.url} has no generator yet. Run the loop on it first: python jobs/loop.py --run {run.name}"
        )
    revisions = Revisions(trained["revision"], extracted["bank"])
    config = load_config(run.local("config.yaml", anew=True), list(settings))
    return config, revisions, from_json(Thresholds, extracted["thresholds"])


@dataclass(frozen=True, slots=True)
class Ticket:
    """One pair that a request wants, with all that it depends on; crosses to whoever makes it."""

    task: GenerationTask
    tokens_of: str  # target_id whose SAFE tokens condition it
    uploads: tuple[Upload, ...]


class Studio:
    """Of one run. Not for several threads at once.

    Args:
        dataset: the photos of the run, as its loop split them (`cdiff.data.photos`).
        settings: as of `standing`.
    Raises:
        RunError: the run has no generator yet.
    """

    def __init__(self, run: Run, dataset: Dataset, settings: Sequence[str] = ()) -> None:
        self.run, self.dataset = run, dataset
        self._ledger = Ledger(run)  # kept: on S3 each event that is read is a request
        self.config, self.revisions, self._thresholds = standing(run, settings, self._ledger)
        self._limits = limits_of(self.config)
        self.manifest: Manifest = read_manifest(run.local("splits.parquet", anew=True))
        self._models = Models(run, self.config)
        self.generator, self._bank = self._models.generator(self.revisions, recipe_of(self.config))
        self._segmenter: tuple[str, Any, Any] = ("", None, None)  # revision, network, settings
        self._targets: dict[tuple[str, str], list[Target]] = {}
        for target_id in sorted(self._bank.tokens):
            target = dataset.target(target_id)
            self._targets.setdefault((target.category, target.type), []).append(target)
        self._frames: dict[str, Frame] = {}

    def with_batches_of(self, size: int) -> Studio:
        """The same studio with another micro-batch."""
        other = copy.copy(self)
        sampling = self.config.sampling.model_copy(update={"micro_batch": size})
        other.config = self.config.model_copy(update={"sampling": sampling})
        return other

    @property
    def types(self) -> dict[tuple[str, str], int]:
        """Number of training targets by category and type."""
        return {key: len(targets) for key, targets in sorted(self._targets.items())}

    @property
    def has_segmenter(self) -> bool:
        """Whether the run has fitted a segmenter yet; one that has will always have."""
        if self._ledger.milestone("real_only") is None:
            self._ledger.refresh()
        return self._ledger.milestone("real_only") is not None

    def tickets(self, request: PairRequest) -> list[Ticket]:
        """What a request comes to, pair by pair.

        Raises:
            RequestError: the photos cannot be used, or the type is unknown.
        """
        if request.type:
            category, kind = self._named(request.category, request.type)
        else:
            known = sorted({category for category, _ in self._targets})
            category, kind = request.category or (known[0] if len(known) == 1 else _OWN), _OWN
        uploads: list[Upload] = []
        references = self._targets.get((category, kind), [])
        if request.reference:
            own = upload_of(request.reference.image, request.reference.mask, category, kind, self._limits)
            uploads.append(own)
            references = list(WithUploads(self.dataset, [own], self.config.data).targets(own.sample_id))[:1]
        if request.background and not request.mask:
            uploads.append(upload_of(request.background, None, category, "", self._limits))
        painted = None
        if request.background and request.mask:  # decoded once, for all pairs
            painted = upload_of(request.background, request.mask, category, kind, self._limits)
        out = []
        for number in range(request.n):
            rng = np.random.default_rng([request.seed, number])
            reference = references[int(rng.integers(len(references)))]
            out.append(self._ticket(request, reference, tuple(uploads), painted, rng))
        return out

    def make(self, tickets: Sequence[Ticket]) -> list[ShardRow]:
        """The pairs of tickets, of one request or of many, in their order. Each has the bytes that it would have alone."""
        rows: dict[int, ShardRow] = {}
        recipes: dict[Recipe, list[int]] = {}
        for place, ticket in enumerate(tickets):
            recipes.setdefault(ticket.task.recipe, []).append(place)
        for recipe, places in recipes.items():
            torch.set_num_threads(recipe.threads)
            for portion in portions([self._laid_pixels(tickets[place]) for place in places]):
                own = places[portion.start : portion.stop]
                rows |= zip(own, self._made([tickets[place] for place in own]), strict=True)
        return [rows[place] for place in range(len(tickets))]

    def _laid_pixels(self, ticket: Ticket) -> int:
        return laid_pixels(
            ticket.task, WithUploads(self.dataset, ticket.uploads, self.config.data), self.config
        )

    def _made(self, tickets: Sequence[Ticket]) -> list[ShardRow]:
        """Pairs of one recipe, in a batch."""
        uploads = [upload for ticket in tickets for upload in ticket.uploads]
        dataset = WithUploads(self.dataset, uploads, self.config.data)
        tasks, tokens = [ticket.task for ticket in tickets], self._tokens(tickets, dataset)
        rows = []
        for task, pair in zip(
            tasks, produce(tasks, self.generator, tokens, Miners(), dataset, self.config), strict=True
        ):
            target = dataset.target(task.reference)
            assignment = Assignment(task, f"{target.category}/{target.type}", "uniform", 0)
            rows.append(row_of(assignment, "", 0, pair, None, dataset, self.config))
        return rows

    def reason(self, row: ShardRow) -> str:
        """What the quality gate has against a pair; "" for a valid one."""
        attempt = row.attempt
        return validity_reason(
            dict(attempt.measures), f"{attempt.category}/{attempt.type}", self._thresholds, self.config
        )

    def read_mask(self, request: MaskRequest) -> np.ndarray:
        """The mask that the generator reads from a photo, bool [H, W]; nothing outside of the region.

        Raises:
            RequestError: the photo cannot be used, the region lies off it, or the type is unknown.
        """
        category, kind = self._named(request.category, request.type)
        photo = upload_of(request.image, None, category, "", self._limits)
        region = _inside(request.region.corners, photo.sample)
        settings, shape = self.generator.config, photo.mask.shape
        box = np.zeros(shape, bool)
        left, top, right, bottom = region
        box[top:bottom, left:right] = True
        square = square_of(region, shape, sum(settings.margin) / 2, settings)
        image = to_resolution(cut(photo.image, square).astype("float32"), settings.resolution) / 127.5 - 1
        covered = to_resolution(cut(box, square), settings.resolution)
        device = self.generator.safe.idle.device
        tokens = torch.stack([self._bank[target.target_id] for target in self._targets[category, kind]]).mean(
            dim=0
        )
        fused = self.generator.safe.fused(tokens[None].to(device))[0].detach()
        condition = Condition.of(
            self.generator.denoiser,
            image.to(device),
            (covered > 0.25).float().to(device),
            fused,
            image.to(device),
            covered.to(device),
        )
        null = self.generator.safe.fused(self.generator.safe.null)[0].detach()
        sampling = self.config.sampling
        sampler = Sampler(self.generator.denoiser, null, READ_STEPS, sampling.micro_batch, sampling.dtype)
        start = sampler.start_mask_from_image(condition, image.to(device), noise_of(request.seed, 2))
        (state,) = sampler.run([start], move_image=False)
        found = np.zeros(shape, bool)
        put(found, to_side(coverage(state.mask_1RR).cpu(), square[2] - square[0]) > 0.5, square)
        return found & box

    def _named(self, category: str | None, kind: str) -> tuple[str, str]:
        """A type that the run knows; its category may be left out where one alone has it."""
        found = [key for key in self._targets if key[1] == kind and category in (None, key[0])]
        if len(found) != 1:
            known = ", ".join(f"{c}/{k}" for c, k in sorted(self._targets))
            what = "several categories have" if found else "there is no"
            raise RequestError(
                f"{what} type {kind!r}{f' of {category!r}' if category else ''}: name category and type of {known}."
            )
        return found[0]

    def _ticket(
        self,
        request: PairRequest,
        reference: Target,
        uploads: tuple[Upload, ...],
        painted: Upload | None,
        rng: np.random.Generator,
    ) -> Ticket:
        config, category, kind = self.config, reference.category, reference.type
        tokens_of, margin = reference.target_id, config.generator.margin
        if painted is not None:
            # the drawn shape is repainted in place, with the reference's tokens
            assert request.background is not None
            drawn = known_as(painted, request.background, request.mask, kind, also=tokens_of)
            uploads = (*uploads, drawn)
            (target,) = WithUploads(self.dataset, [drawn], config.data).targets(drawn.sample_id)
            background, pose = drawn.sample_id, repaint_pose(target, margin, rng)
        else:
            dataset, target = WithUploads(self.dataset, uploads, config.data), reference
            background = (
                uploads[-1].sample_id if request.background else self._background(category, reference, rng)
            )
            pose = self._pose(request, target, background, dataset, rng)
        mode = request.mode or ("given_mask" if request.mask else config.sampling.mode)
        recipe = replace(recipe_of(config), mode=mode, arm="B0", candidates=1, fraction=1.0)
        wanted = {k: float(v) for k, v in request.strengths.model_dump().items() if v is not None}
        strengths = replace(strengths_of(config), weakness_strength=0.0, gradient_strength=0.0, **wanted)
        seed = int(rng.integers(2**53))  # JSON readers keep no more digits
        task = GenerationTask(recipe, target.target_id, background, pose, strengths, seed, self.revisions)
        return Ticket(task, tokens_of, uploads)

    def _pose(
        self,
        request: PairRequest,
        target: Target,
        background: str,
        dataset: Dataset,
        rng: np.random.Generator,
    ) -> Pose:
        sampling, margin = self.config.sampling, self.config.generator.margin
        if request.region is None:
            frames = self._frame(target.sample_id, dataset), self._frame(background, dataset)
            occupied = [other.box for other in dataset.targets(background)]
            return draw_pose(target, *frames, occupied, sampling, margin, rng)
        photo = dataset.sample(background)
        left, top, right, bottom = _inside(request.region.corners, photo)
        scale = max(right - left, bottom - top) / target.longer_side
        if not 1 / MOST_SCALE <= scale <= MOST_SCALE:
            raise RequestError(
                f"region: a target of {target.longer_side} pixels would be scaled by {scale:.3g}; {MOST_SCALE} times is the most, either way."
            )
        flip = bool(sampling.flip and rng.random() < 0.5)
        x, y = (left + right) / 2, (top + bottom) / 2
        return Pose(x, y, 0.0, scale, flip, sampling.elastic, float(rng.uniform(*margin)))

    def _background(self, category: str, reference: Target, rng: np.random.Generator) -> str:
        """A photo of the category to paint on, of another object than the reference's where there is one."""
        photos = [self.dataset.sample(i) for i in self.manifest.ids("train")]
        photos = [photo for photo in photos if photo.category == category]
        photos = backdrops(photos)
        photos = [photo for photo in photos if photo.group != reference.group] or photos
        if not photos:
            raise RequestError("give a background: the run has no photo of this category to paint on.")
        return photos[int(rng.integers(len(photos)))].sample_id

    def _frame(self, sample_id: str, dataset: Dataset) -> Frame:
        if sample_id not in self._frames:
            found = frame_of(dataset.image(sample_id))
            if sample_id.startswith(UPLOAD):
                return found
            self._frames[sample_id] = found
        return self._frames[sample_id]

    def _tokens(self, tickets: Sequence[Ticket], dataset: Dataset) -> TokenBank:
        """The tokens of each ticket's reference, under its id."""
        found: dict[str, torch.Tensor] = {}
        for ticket in tickets:
            if ticket.tokens_of in self._bank.tokens:
                found[ticket.task.reference] = self._bank[ticket.tokens_of]
            else:
                target = dataset.target(ticket.tokens_of)
                found[ticket.task.reference] = self.generator.bank(dataset, [target])[target.target_id]
        return TokenBank(found, self._bank.revision)

    def segment(self, request: SegmentRequest) -> tuple[np.ndarray, float, float]:
        """Scores of the best segmenter, float32 [H, W] in [0, 1], the threshold, and the image score.

        Raises:
            RequestError: the photo cannot be used. RunError: nothing was fitted yet.
        """
        self._ledger.refresh()  # a loop may be going on
        revision, chosen = self._ledger.best_segmenter()
        if self._segmenter[0] != revision:
            folder = self.run.checkpoint(revision)
            network = load_segmenter(folder).to(self.generator.safe.idle.device)
            self._segmenter = revision, network, segmenter_config(folder)
        photo = upload_of(request.image, None, _OWN, "", self._limits)
        scores = score_photo(self._segmenter[1], photo.image, self._segmenter[2])
        return scores, request.threshold or chosen, image_score(scores)


def _inside(box: Box, photo: Sample) -> Box:
    """RequestError for a region that reaches beyond its photo."""
    if box[2] > photo.width or box[3] > photo.height:
        raise RequestError(f"region: it reaches beyond the photo of {photo.width} x {photo.height} pixels.")
    return box


def limits_of(config: Config) -> Limits:
    """What is refused of a request's pictures before it is decoded."""
    limits = Limits.of(config.data)
    return replace(limits, max_pixels=min(limits.max_pixels, MOST_PIXELS))
