"""All actors of one run behind the loop's verbs. Fans work out, shows progress, keeps nothing that the ledger lacks.

prepare      generator actor trains; extractor builds frames, token bank, thresholds
outcomes     downstream actor: cross-fitted fold models on the training photos
rank         coordinator
adapt        generator actor fits noise miner or difficulty token, where the mining arm has them
make_pairs   coordinator plans, generator actors make shards, coordinator judges, once more for what is missing
assess       downstream actor fits a segmenter and scores it on validation
"""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import astuple, dataclass, replace
from functools import partial
from typing import Any

from tqdm import tqdm

from actors.downstream import Evaluation, Fit, FitRequest, fitted
from actors.generator import trained
from actors.group import Steps, Watch
from actors.shards import Shards
from actors.shelf import BUILT_IN, generator_key, shelve_generator, taken_generator
from actors.staff import Staff
from cdiff.config import Config
from cdiff.data.backdrops import ENOUGH, backdrops, plain
from cdiff.data.carriers import from_json
from cdiff.data.dataset import Dataset
from cdiff.data.ledger import Ledger
from cdiff.data.retention import forget_checkpoints, forget_file
from cdiff.data.splits import Manifest
from cdiff.data.store import Run
from cdiff.downstream.training import crops_of
from cdiff.errors import RunError
from cdiff.generator.placement import Frame
from cdiff.generator.training import TRAINING_STATE, Trained
from cdiff.types import (
    Assignment,
    Attempt,
    Decision,
    Gain,
    Knowledge,
    Outcome,
    Pair,
    Revisions,
    content_hash,
)
from cdiff.wasm.gains import measured_gains
from cdiff.wasm.quality import Thresholds
from cdiff.wasm.weakness import apart

log = logging.getLogger(__name__)

_MINED = 64  # of a round's tasks, that a noise miner learns from


@dataclass(frozen=True, slots=True)
class Assessed:
    """A fitted segmenter and how it does on validation."""

    revision: str
    scores: dict[str, Any]
    threshold: float  # for IoU, chosen on validation
    losses: tuple[float, ...]
    seconds: float
    outcomes: tuple[Outcome, ...]  # of the validation photos

    def headline(self) -> tuple[tuple[str, float], ...]:
        """The scalar validation metrics that are defined."""
        return tuple(sorted((k, float(v)) for k, v in self.scores.items() if isinstance(v, int | float)))


class Crew(Staff):
    """The actors of one run, and what the loop asks of them."""

    def __init__(self, run: Run, config: Config, dataset: Dataset, manifest: Manifest, local: bool) -> None:
        super().__init__(run, config, dataset, local)
        self.manifest = manifest
        self.shards = Shards(run, config, dataset)
        self.train = manifest.ids("train")
        self.validation = manifest.ids("validation")

    @property
    def quarantined(self) -> list[Assignment]:
        """Tasks of the last round that killed their actors."""
        return self.shards.quarantined

    def prepare(self, ledger: Ledger) -> Revisions:
        """Train the generator, build frames, token bank and thresholds; each only if the ledger lacks it."""
        calibration = set(self.manifest.calibration_ids())
        learned = [sample_id for sample_id in self.train if sample_id not in calibration]
        targets = [target.target_id for target in self.dataset.all_targets(learned)]
        held_out = [target.target_id for target in self.dataset.all_targets(sorted(calibration))]
        trained = ledger.milestone("generator")
        if trained is None:
            own = self.config.downstream
            if own.factory != BUILT_IN or own.weights:  # a user's own: nobody waits for an actor otherwise
                self.downstream.call("demand_segmenter")
            bare = [photo for photo in map(self.dataset.sample, learned) if photo.is_normal]
            scenes = len({photo.group for photo in bare})
            normals = [photo.sample_id for photo in bare] if scenes >= ENOUGH else learned
            trained = self._train(targets, normals, ledger)
        forget_file(self.run, f"checkpoints/{TRAINING_STATE}")  # of a training that is noted by now
        extracted = ledger.milestone("extractor")
        if extracted is None:
            began = time.perf_counter()
            bank = self.extractor.call("bank", trained["revision"], targets + held_out)
            thresholds = self.extractor.call("thresholds", trained["revision"], targets, held_out)
            taken = time.perf_counter() - began
            ledger.record("extractor", bank=bank, thresholds=thresholds, seconds=taken)
            extracted = ledger.milestone("extractor") or {}
        self._coordinate(from_json(Thresholds, extracted["thresholds"]))
        return Revisions(generator=trained["revision"], bank=extracted["bank"])

    def assess(
        self, ledger: Ledger, name: str, pairs: Sequence[Pair], config: Config | None = None
    ) -> Assessed:
        """Fit on the training photos and the given pairs, score on validation; from the ledger if done before.

        Args:
            config: of a round with strengths of its own; without it, the run's.
        """
        mix = (config or self.config).downstream.synthetic_mix
        mix = 0.0 if mix == self.config.downstream.synthetic_mix else mix
        told = sorted(pair.task_id for pair in pairs)
        made_of = content_hash([told, mix] if mix else told)
        found = ledger.milestone(name)
        if found is not None and found.get("made_of") == made_of:  # a restarted round may have kept others
            return from_json(Assessed, found["assessed"])
        fitted = self._fit(ledger, name, pairs, self.config.downstream.steps, self.base(ledger), mix=mix)
        evaluation = self.evaluate(fitted.revision, self.validation, None)
        assessed = Assessed(
            fitted.revision,
            evaluation.scores,
            evaluation.threshold,
            fitted.losses,
            fitted.seconds,
            evaluation.outcomes,
        )
        ledger.record(name, assessed=assessed, made_of=made_of, mix=mix, pairs=len(pairs))
        return assessed

    def best(self, ledger: Ledger, default: Assessed) -> Assessed:
        """The candidate that became the best last."""
        number = ledger.best_round()
        if not number:
            return default
        found = ledger.milestone(f"round-{number}")
        if found is None:
            raise RunError(f"{self.run.url} has no model of round {number}: it was cut. Start a new run.")
        return from_json(Assessed, found["assessed"])

    def decide(self, candidate: Assessed, best: Assessed, real_only: Assessed, seed: int) -> Decision:
        """Whether a candidate is accepted, on validation."""
        revisions = candidate.revision, best.revision, real_only.revision
        gain = candidate.scores["pixel_ap"] - best.scores["pixel_ap"]
        return self.downstream.call("decide", *revisions, list(self.validation), gain, seed)

    def ahead(self, model: str, rival: str, sample_ids: Sequence[str], gain: float) -> Decision:
        """How far a segmenter is ahead of another on some photos: pixel AP, with an interval over their source objects, if more than
        one shows targets."""
        return self.downstream.call("decide", model, rival, rival, list(sample_ids), gain, self.config.seed)

    def outcomes(self, ledger: Ledger, pairs: Sequence[Pair]) -> list[Outcome]:
        """Outcomes of all training photos under models that saw neither them nor pairs made from their groups."""
        made_of = content_hash(sorted(pair.task_id for pair in pairs))
        folds = {f"fold-{fold[-1]}:{made_of}": fold for fold in self.folds(pairs, self._seed())}
        found = self.each(ledger, "fold", folds, list[Outcome], f"fitting {len(folds)} folds")
        return [row for rows in found.values() for row in rows]

    def folds(self, pairs: Sequence[Pair], seed: int) -> list[tuple[FitRequest, int, list[str], int]]:
        """What `DownstreamActor.fold` is asked for, fold by fold."""
        config = self.config.downstream
        steps = max(1, round(config.steps * config.fold_share))
        out = []
        for fold in range(self.config.wasm.folds):
            held = [sample_id for sample_id in self.train if self.manifest.fold(sample_id) == fold]
            if not held:  # fewer source objects than folds
                continue
            groups = {self.dataset.sample(sample_id).group for sample_id in held}
            rest = tuple(sample_id for sample_id in self.train if self.manifest.fold(sample_id) != fold)
            allowed = tuple(
                pair for pair in pairs if apart(pair.attempt.assignment.task, groups, self.dataset)
            )
            request = FitRequest(rest, steps, seed, pairs=allowed)
            out.append((request, round(config.base_steps * config.fold_share), held, fold))
        return out

    def rank(self, outcomes: Sequence[Outcome], gains: Sequence[Gain]) -> Knowledge:
        return self.planner.call("rank", list(outcomes), list(gains))

    def adapt(
        self,
        ledger: Ledger,
        number: int,
        known: Knowledge,
        outcomes: Sequence[Outcome],
        generator: Revisions,
        segmenter: str,
        config: Config | None = None,
    ) -> Revisions:
        """Fit what the mining arm learns anew each round (B2, B3); the revisions that the round's tasks depend on.

        Args:
            config: of an arm that is compared; without it, the run's.
        """
        revisions, config = replace(generator, segmenter=segmenter), config or self.config
        arm = config.wasm.arm
        if not (arm.startswith("B3") or arm.endswith("B2")):
            return revisions
        plan = self.planner.call("plan", known, number, revisions, config)
        tasks = [assignment.task for assignment in plan if assignment.purpose != "negative"][:_MINED]
        seed = config.seed + number
        name = f"adapted-{number}:{content_hash([tasks, list(outcomes), seed])}"
        if (found := ledger.milestone(name)) is None:  # learned anew on a GPU it would not be the same again
            with self._bar(f"round {number}: adapting {arm}") as watch:
                learned = self.generators.call("adapt", tasks, list(outcomes), seed, watch=watch)
            ledger.record(name, revisions=learned)
            return learned
        return from_json(Revisions, found["revisions"])

    def gains(
        self,
        outcomes: Sequence[Outcome],
        known: Knowledge,
        before: Assessed,
        after: Assessed,
        pairs: Sequence[Pair],
    ) -> tuple[Gain, ...]:
        """What pairs brought on validation that `after` has seen and `before` has not, by slice; the next budget learns from it."""
        return measured_gains(before.outcomes, after.outcomes, outcomes, known.weaknesses, pairs)

    def make_pairs(
        self, known: Knowledge, number: int, revisions: Revisions, config: Config | None = None
    ) -> list[Pair]:
        """Plan, generate and judge; one more wave for what a slice still lacks. Arguments as for `adapt`."""
        coordinator, about = self.planner, (known, number, revisions, config or self.config)
        plan = coordinator.call("plan", *about)
        self.shards.quarantined = []
        attempts = self._generate(plan, f"round {number}: making pairs")
        pairs, more = coordinator.call("judge", *about, plan, attempts, False)
        if more:
            attempts = attempts + self._generate(more, f"round {number}: topping up")
            pairs, _ = coordinator.call("judge", *about, plan + more, attempts, True)
        return pairs

    def tidy(self, ledger: Ledger) -> None:
        """Remove the checkpoints that nothing names any more, where `resources.keep` says so."""
        if self.config.resources.keep == "needed":
            gone = forget_checkpoints(self.run, ledger)
            log.info("checkpoints removed=%d, as resources.keep=needed says", len(gone))

    def evaluate(self, revision: str, sample_ids: Sequence[str], threshold: float | None) -> Evaluation:
        with self._bar(f"scoring {len(sample_ids)} photos") as watch:
            return self.downstream.call("evaluate", revision, list(sample_ids), threshold, watch=watch)

    def score(self, revision: str, sample_ids: Sequence[str]) -> dict[str, Any]:
        """Score maps of a few photos, for pictures."""
        return self.downstream.call("score", revision, list(sample_ids))

    def _train(self, targets: list[str], photos: list[str], ledger: Ledger) -> dict[str, Any]:
        """Train the generator, or take the one of an earlier run with the same photos, settings and code; recorded."""
        key = generator_key(self.dataset, self.train, targets, photos, self.config)
        if (known := taken_generator(self.run, key)) is not None:
            revision, taken = known
            told: dict[str, Any] = {
                "revision": revision,
                "reused": True,
                "losses": [],
                "seconds": 0.0,
                "trained_in": taken,
            }
            ledger.record("generator", **told)
            return told
        began, settings = time.perf_counter(), self.config.generator
        work = partial(trained, target_ids=targets, photo_ids=photos)

        def keep(result: Trained) -> None:
            """At once: what comes next may fail, and hours of training with it."""
            about = {"reused": False, "losses": list(result.losses), "trained_in": result.seconds}
            about |= {"workers": self.config.train.workers}  # a later start may have others
            ledger.record("generator", revision=result.revision, seconds=time.perf_counter() - began, **about)
            shelve_generator(self.run, key, result.revision, result.seconds)

        with self._bar("training the generator") as watch:
            if self.config.train.workers > 1:
                joined = self._joined(ledger, "generator")
                self.together(settings.batch // settings.accumulate, work, watch, keep, joined)
            else:
                keep(self.generators.call("train", targets, photos, watch=watch))
        return ledger.milestone("generator") or {}

    def each(
        self, ledger: Ledger, method: str, work: Mapping[str, tuple[Any, ...]], kind: Any, label: str
    ) -> dict[str, Any]:
        """One call of the downstream actors per name, side by side. What the ledger has is not done again; each result is
        recorded as it comes.

        Args:
            kind: type of a result, as `cdiff.data.carriers.from_json` takes it.
        """
        missing = [(name, arguments) for name, arguments in work.items() if ledger.milestone(name) is None]
        with tqdm(total=len(work), initial=len(work) - len(missing), desc=label, unit="call") as bar:

            def watch(steps: Sequence[Steps]) -> None:
                under_way = [f"{done}/{total}" for done, total in steps]
                bar.set_postfix_str("steps " + " ".join(under_way) if under_way else "")

            for name, result in self.downstream.stream(method, missing, watch=watch):
                ledger.record(name, result=result)
                bar.update()
        return {name: from_json(kind, (ledger.milestone(name) or {})["result"]) for name in work}

    def pool(
        self,
        per_type: int | Mapping[str, int],
        revisions: Revisions,
        config: Config,
        wave: int,
        label: str,
    ) -> list[Attempt]:
        """A wave of candidates by type (as of `cdiff.wasm.pool.plan_pool`), made as the configuration says; shards that are there are only read."""
        plan = self.planner.call("plan_pool", config, per_type, revisions, wave)
        return self._generate(plan, label)

    def _generate(self, plan: Sequence[Assignment], label: str) -> list[Attempt]:
        return self.shards.make(self.generators, plan, label)

    def base(self, ledger: Ledger) -> str:
        """Revision of the model of real photos that all fits of this run go on from; "" where each starts afresh."""
        steps = self.config.downstream.base_steps
        if not steps:
            return ""
        found = ledger.milestone("base")
        if found is None:
            fitted = self._fit(ledger, "base", [], steps, "", base=True)
            ledger.record("base", revision=fitted.revision, seconds=fitted.seconds)
            return fitted.revision
        return str(found["revision"])

    def _fit(
        self,
        ledger: Ledger,
        name: str,
        pairs: Sequence[Pair],
        steps: int,
        start: str,
        base: bool = False,
        mix: float = 0.0,
    ) -> Fit:
        request = FitRequest(tuple(self.train), steps, self._seed(), start, tuple(pairs), base=base, mix=mix)
        several = self.config.train.workers > 1 and self.config.train.segmenters
        # By several workers it is noted at once: there may be no room for the actors that come back.
        noted = f"{name}:{content_hash([astuple(replace(request, pairs=())), [p.task_id for p in pairs]])}"
        if several and (found := ledger.milestone(noted)) is not None:
            return from_json(Fit, found["fit"])
        with self._bar(f"fitting {name}") as watch:
            if not several:
                return self.downstream.call("fit", request, watch=watch)
            crops, work = crops_of(self.config.downstream, base), partial(fitted, request=request)
            keep, joined = lambda fit: ledger.record(noted, fit=fit), self._joined(ledger, name)
            return self.together(math.gcd(*crops), work, watch, keep, joined)

    def _joined(self, ledger: Ledger, training: str) -> Callable[[int], None]:
        """Records that a training goes on with other workers than were wanted: sums are rounded otherwise, and it takes longer."""
        wanted = self.config.train.workers
        return lambda had: ledger.append("workers", training=training, wanted=wanted, had=had)

    def _seed(self) -> int:
        return self.config.downstream.seed + self.config.seed

    def _coordinate(self, thresholds: Thresholds) -> None:
        photos = [self.dataset.sample(sample_id) for sample_id in self.train]
        frames: dict[str, Frame] = self.extractor.call("frames", self.train)
        cut_off: set[str] = self.extractor.call("cut_off", self.train)
        targets = {target.target_id: target for target in self.dataset.all_targets(self.train)}
        groups = {photo.sample_id: photo.group for photo in photos}
        backgrounds: dict[str, list[str]] = {
            category: [] for category in sorted({p.category for p in photos})
        }
        for photo in backdrops(photos):
            backgrounds[photo.category].append(photo.sample_id)
        # look-alikes of false alarms lie on normal photos alone
        free = {photo.sample_id: photo for photo in plain(photos)}
        self.coordinate((self.config, targets, groups, backgrounds, frames, cut_off, thresholds, free))

    @contextmanager
    def _bar(self, label: str) -> Iterator[Watch]:
        """A progress bar over the steps of the first actor that works: after a failure, another."""
        with tqdm(desc=label, unit="step", leave=False) as bar:

            def watch(steps: Sequence[Steps]) -> None:
                for done, bar.total in steps[:1]:
                    bar.update(done - bar.n)

            yield watch
