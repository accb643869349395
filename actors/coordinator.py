"""The WASM coordinator: ranks weaknesses, plans generation, applies the gate. Pure on what it is given: if it dies,
nothing is lost."""

from __future__ import annotations

from collections.abc import Mapping, Sequence, Set

import numpy as np
import ray

from actors.resources import demand_drivers_code
from cdiff.config import Config
from cdiff.data.dataset import place_of
from cdiff.generator.placement import Frame, draw_pose, repaint_pose, room
from cdiff.types import (
    Assignment,
    Attempt,
    Box,
    Gain,
    Knowledge,
    Outcome,
    Pair,
    Pose,
    Revisions,
    Sample,
    Target,
)
from cdiff.wasm.budget import plan, quotas, top_up
from cdiff.wasm.dealing import Stock
from cdiff.wasm.negatives import alarms_of, negative_quotas, slices_of, stocked
from cdiff.wasm.pool import plan_pool
from cdiff.wasm.quality import Thresholds, judge, shortfall, survival_bounds, valid_shares
from cdiff.wasm.weakness import rank


@ray.remote
class CoordinatorActor:
    """A thin shell over cdiff.wasm; keeps only what the driver gave it at the start."""

    def __init__(
        self,
        config: Config,
        targets: Mapping[str, Target],
        groups: Mapping[str, str],
        backgrounds: Mapping[str, Sequence[str]],
        frames: Mapping[str, Frame],
        cut_off: Set[str],
        thresholds: Thresholds,
        normals: Mapping[str, Sample],
    ) -> None:
        demand_drivers_code()
        self.config, self.targets, self.frames, self.thresholds = config, targets, frames, thresholds
        self.normals = normals
        self.stock = Stock(targets, backgrounds, groups, self._propose, cut_off, self._room)
        self.own: dict[str, list[Target]] = {}
        for target in targets.values():
            self.own.setdefault(target.sample_id, []).append(target)

    def rank(self, outcomes: list[Outcome], gains: list[Gain]) -> Knowledge:
        """Slices of the real targets, weakest first, with what earlier rounds gained and what the gate may expect."""
        ranked = rank(outcomes, self.config.wasm.min_targets)
        alarms = (
            alarms_of(outcomes, self.normals, self.targets.values()) if self.config.wasm.negatives else ()
        )
        return Knowledge(tuple(ranked), tuple(gains), alarms, survival_bounds(outcomes, self.config))

    def plan(self, known: Knowledge, number: int, revisions: Revisions, config: Config) -> list[Assignment]:
        """The round's ordered tasks; the configuration may be another arm's than the run's."""
        return plan(
            known.weaknesses,
            stocked(self.stock, known.alarms),
            config,
            round=number,
            revisions=revisions,
            gains=known.gains,
            negatives=slices_of(known.alarms),
            further=negative_quotas(known.alarms, config),
        )

    def plan_pool(
        self, config: Config, per_type: int | Mapping[str, int], revisions: Revisions, wave: int
    ) -> list[Assignment]:
        """Candidates for every type, that several arms choose from."""
        return plan_pool(self.stock, config, per_type, revisions, wave)

    def judge(
        self,
        known: Knowledge,
        number: int,
        revisions: Revisions,
        config: Config,
        assignments: list[Assignment],
        attempts: list[Attempt],
        last: bool,
    ) -> tuple[list[Pair], list[Assignment]]:
        """The gate's verdicts, and further tasks for what slices still lack (none after the last wave)."""
        wanted = quotas(config, known.weaknesses, known.gains, number)
        wanted |= negative_quotas(known.alarms, config)
        thresholds = self.thresholds.joined(known.bounds)
        pairs = judge(attempts, wanted, thresholds, config, last=last)
        lacking = {} if last else shortfall(pairs, wanted, config)
        if not lacking:  # no wave follows, so that slices that stopped are filled up now
            return pairs if last else judge(attempts, wanted, thresholds, config, last=True), []
        more = top_up(
            assignments,
            lacking,
            [*known.weaknesses, *slices_of(known.alarms)],
            stocked(self.stock, known.alarms),
            config,
            round=number,
            revisions=revisions,
            gains=known.gains,
            valid=valid_shares(pairs),
        )
        return pairs, more

    def _propose(self, reference: str, background: str, rng: np.random.Generator) -> Pose:
        """A pose near the target's own place on the object; on its own photo the target is repainted where it is."""
        target, margin = self._target(reference), self.config.generator.margin
        if background == target.sample_id:
            return repaint_pose(target, margin, rng)
        frames = self.frames[target.sample_id], self.frames[background]
        return draw_pose(target, *frames, self._occupied(background), self.config.sampling, margin, rng)

    def _room(self, reference: str, background: str, pose: Pose) -> float:
        occupied = self._occupied(background)
        return room(self._target(reference), pose, self.frames[background], occupied) if occupied else 1.0

    def _occupied(self, background: str) -> list[Box]:
        return [target.box for target in self.own.get(background, [])]

    def _target(self, reference: str) -> Target:
        known = self.targets.get(reference)
        return known or place_of(self.normals[reference.rpartition("@")[0]], reference)
