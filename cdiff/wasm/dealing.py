"""Deals a round's tasks: real targets to start from, photos to paint on, poses and seeds, for as many pairs as each slice is given.

Everything is a pure function of its arguments and of (seed, round); a slice's cycle over its targets goes on from wave to wave.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Mapping, Sequence, Set
from dataclasses import dataclass, replace
from itertools import count
from typing import TypeVar

import numpy as np

from cdiff.config import Config
from cdiff.types import (
    Assignment,
    GenerationTask,
    Pose,
    Purpose,
    Recipe,
    Revisions,
    Strengths,
    Target,
    Weakness,
    content_hash,
)

# (target_id of the reference, sample_id of the background, source of randomness) -> where and how the target lies
Propose = Callable[[str, str, np.random.Generator], Pose]
# the same two, and a pose -> share of the target that could be seen there, in [0, 1]
Room = Callable[[str, str, Pose], float]

_ROOM = 0.9  # share of a target that could be seen: on polyps 81 % of those that had it were true, of the others 37 %
_PHOTOS = 8  # looked at for it
# streams of randomness within a round; cdiff.wasm.budget has a fifth
_REFERENCES, _BACKGROUNDS, _POSES, _DIFFICULTIES = (1, 2, 3, 4)
_Key = TypeVar("_Key")


@dataclass(frozen=True)
class Stock:
    """What a round's tasks are dealt from; the same in all rounds."""

    targets: Mapping[str, Target]  # by target_id: every target of the slices
    # sample_ids by category, as of `cdiff.data.backdrops`
    backgrounds: Mapping[str, Sequence[str]]
    groups: Mapping[str, str]  # source object by sample_id, of every background
    propose: Propose  # draws the pose; asked for a target on its own photo, it repaints the target
    cut_off: Set[str] = frozenset()  # target_ids that are no references while they are few in their slice
    room: Room = lambda reference, background, pose: 1.0  # asked of photos that show targets


class Dealer:
    """Deals references, backgrounds and poses to a list of wanted tasks."""

    def __init__(
        self,
        weaknesses: Sequence[Weakness],
        stock: Stock,
        config: Config,
        round: int,
        revisions: Revisions,
        start: Mapping[str, float],
    ) -> None:
        self.slices = {weakness.slice.name: weakness for weakness in weaknesses}
        self.stock, self.config, self.round, self.revisions = stock, config, round, revisions
        self.recipe = recipe_of(config)
        self.strengths, self.start = strengths_of(config), start
        self._photos: dict[str, tuple[list[str], dict[str, set[str]]]] = {}

    def assign(
        self, wanted: Mapping[tuple[str, Purpose], int], earlier: Sequence[Assignment]
    ) -> list[Assignment]:
        """One assignment per wanted task, after the earlier ones."""
        used = {name: sum(assignment.slice == name for assignment in earlier) for name in self.slices}
        references = {name: self._references(name) for name in sorted({name for name, _ in wanted})}
        first = 1 + max((assignment.index for assignment in earlier), default=-1)
        decks: dict[str, list[str]] = {}
        out = []
        for index, (name, purpose) in zip(count(first), interleaved(wanted), strict=False):
            cycle = references[name]
            reference = self.stock.targets[cycle[used[name] % len(cycle)]]
            start = self.start[name]
            used[name] += 1
            rng = self._rng(_POSES, index)
            background, pose = self._placed(reference, decks, index, rng)
            task = GenerationTask(
                recipe=_negative(self.recipe) if purpose == "negative" else self.recipe,
                reference=reference.target_id,
                background=background,
                pose=pose,
                strengths=replace(self.strengths, start_strength=start),
                seed=task_seed(self.config.seed, self.round, index),
                revisions=self.revisions,
                difficulty=float(self._rng(_DIFFICULTIES, index).uniform(*band(purpose, self.config))),
            )
            out.append(Assignment(task=task, slice=name, purpose=purpose, index=index))
        return out

    def _references(self, name: str) -> list[str]:
        """The slice's targets in the round's order: the same for every wave."""
        targets = set(self.slices[name].targets)
        whole = targets - self.stock.cut_off
        ids = sorted(whole if 2 * len(whole) >= len(targets) else targets)
        return [ids[i] for i in self._rng(_REFERENCES, zlib.crc32(name.encode())).permutation(len(ids))]

    def _placed(
        self, reference: Target, decks: dict[str, list[str]], index: int, rng: np.random.Generator
    ) -> tuple[str, Pose]:
        """Photo and pose. Photos whose own targets leave no room are passed over until they are dealt again."""
        passed: list[tuple[float, str, Pose]] = []
        while len(passed) < _PHOTOS:
            background = self._background(reference, decks, index, rng, {name for _, name, _ in passed})
            if background is None:
                break
            pose = self.stock.propose(reference.target_id, background, rng)
            repainted = background == reference.sample_id
            room = 1.0 if repainted else self.stock.room(reference.target_id, background, pose)
            passed.append((room, background, pose))
            if room >= _ROOM:
                break
        return max(passed, key=lambda found: found[0])[1:]

    def _background(
        self,
        reference: Target,
        decks: dict[str, list[str]],
        index: int,
        rng: np.random.Generator,
        passed: Set[str],
    ) -> str | None:
        """Deal the category's photos in turn, passing over those of the reference's own object; None where all were passed.

        Where photos with targets have to serve (the reference's own is among them), the share `sampling.repaint` of tasks
        repaints the reference where it is.
        """
        photos = self.stock.backgrounds.get(reference.category, ())
        if not photos:
            raise ValueError(f"category {reference.category!r} has no photo to paint on")
        if reference.type and reference.sample_id in photos:
            repaints = (
                rng.random() < self.config.sampling.repaint
            )  # drawn each time, as plans were; but a task asks once
            if repaints and not passed:
                return reference.sample_id
        ordered, of_object = self._ordered(reference.category, photos)
        barred = of_object.get(reference.group, set())
        if len(barred) == len(
            ordered
        ):  # all are of the reference's own object: another photo of it, or the very one
            barred = {reference.sample_id} if ordered != [reference.sample_id] else set()
        barred = barred | passed
        if barred.issuperset(ordered):
            return None
        deck = decks.setdefault(reference.category, [])
        place = next((i for i, photo in enumerate(deck) if photo not in barred), None)
        if place is None:
            deck.extend(ordered[i] for i in self._rng(_BACKGROUNDS, index).permutation(len(ordered)))
            place = next(i for i, photo in enumerate(deck) if photo not in barred)
        return deck.pop(place)

    def _ordered(self, category: str, photos: Sequence[str]) -> tuple[list[str], dict[str, set[str]]]:
        """A category's photos in their order, and by source object: of thousands, found once and not for every task."""
        if category not in self._photos:
            of_object: dict[str, set[str]] = {}
            for photo in photos:
                of_object.setdefault(self.stock.groups[photo], set()).add(photo)
            self._photos[category] = sorted(photos), of_object
        return self._photos[category]

    def _rng(self, *stream: int) -> np.random.Generator:
        return np.random.default_rng(np.random.SeedSequence([self.config.seed, self.round, *stream]))


def _negative(recipe: Recipe) -> Recipe:
    """A look-alike is not mined: it was hard already."""
    return replace(recipe, mode="negative", arm="B0", candidates=1, fraction=1.0)


def band(purpose: Purpose, config: Config) -> tuple[float, float]:
    """Wanted difficulty, as a rank in [0, 1] among the valid pairs of a type; both ends belong to it."""
    low, high = config.wasm.band
    return {"uniform": (0.0, 1.0), "easy": (0.0, low), "weak": (low, high), "negative": (0.0, 1.0)}[purpose]


def recipe_of(config: Config) -> Recipe:
    """How pairs are computed under a configuration."""
    best_of_k = config.wasm.arm.endswith("B1")
    return Recipe(
        mode=config.sampling.mode,
        arm=config.wasm.arm,
        candidates=config.wasm.candidates if best_of_k else 1,
        fraction=config.wasm.fraction if best_of_k else 1.0,
        steps=config.sampling.steps,
        sampler="euler, compiled" if config.resources.compile else "euler",
        dtype=config.sampling.dtype,
        micro_batch=config.sampling.micro_batch,
        threads=config.resources.threads,
        guided_from=config.sampling.guidance_interval[0],
        guided_to=config.sampling.guidance_interval[1],
    )


def strengths_of(config: Config) -> Strengths:
    """The configured strengths; those of other arms are 0."""
    sampling, arm = config.sampling, config.wasm.arm
    return Strengths(
        safe_strength=sampling.safe_strength,
        start_strength=sampling.start_strength,
        weakness_strength=sampling.weakness_strength if arm.startswith("B3") else 0.0,
        gradient_strength=sampling.gradient_strength if arm == "B4" else 0.0,
    )


def task_seed(seed: int, round: int, index: int) -> int:
    """63 bits that depend on run, round and place in the plan alone."""
    return int(content_hash([seed, round, index]), 16) >> 1


def interleaved(wanted: Mapping[_Key, int]) -> list[_Key]:
    """Spread each slice's tasks evenly over the whole list, so that every stretch of it serves all slices."""
    placed = [
        ((i + 0.5) / number, order, key)
        for order, (key, number) in enumerate(wanted.items())
        for i in range(number)
    ]
    return [key for _, _, key in sorted(placed)]
