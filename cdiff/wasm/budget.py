"""How a round's budget is spent: which slices get how many pairs, from which real targets, on which photos.

    uniform   20 %  over slices by their targets, any difficulty: keeps the estimates of strong slices honest
    easy      20 %  over slices by their prior, below the difficulty band
    weak      60 %  over slices by what they have gained so far (cdiff.wasm.gains), at first by their prior, inside the band

Everything is a pure function of its arguments and of (seed, round): a coordinator that dies loses nothing.
"""

from __future__ import annotations

import math
import zlib
from collections.abc import Callable, Mapping, Sequence, Set
from dataclasses import dataclass, replace
from itertools import count
from typing import TypeVar

import numpy as np

from cdiff.config import Config
from cdiff.types import (
    Assignment,
    Gain,
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
from cdiff.wasm.gains import Option, beliefs, prior, thompson

# (target_id of the reference, sample_id of the background, source of randomness) -> where and how the target lies
Propose = Callable[[str, str, np.random.Generator], Pose]
# the same two, and a pose -> share of the target that could be seen there, in [0, 1]
Room = Callable[[str, str, Pose], float]
Quotas = dict[tuple[str, Purpose], int]  # wanted pairs by slice name and purpose

_PURPOSES: tuple[Purpose, ...] = ("uniform", "easy", "weak")
_Key = TypeVar("_Key")
_ROOM = 0.9  # share of a target that could be seen: on polyps 81 % of those that had it were true, of the others 37 %
_PHOTOS = 8  # looked at for it
_DRAWS = 500  # of a slice's start strengths against each other
# streams of randomness within a round
_REFERENCES, _BACKGROUNDS, _POSES, _DIFFICULTIES, _THOMPSON = (1, 2, 3, 4, 5)


@dataclass(frozen=True)
class Stock:
    """What a round's tasks are dealt from; the same in all rounds."""

    targets: Mapping[str, Target]  # by target_id: every target of the slices
    # sample_ids by category: normals, or the training photos without any
    backgrounds: Mapping[str, Sequence[str]]
    groups: Mapping[str, str]  # source object by sample_id, of every background
    propose: Propose  # draws the pose; asked for a target on its own photo, it repaints the target
    cut_off: Set[str] = frozenset()  # target_ids that are no references while they are few in their slice
    room: Room = lambda reference, background, pose: 1.0  # asked of photos that show targets


def plan(
    weaknesses: Sequence[Weakness],
    stock: Stock,
    config: Config,
    *,
    round: int,
    revisions: Revisions,
    gains: Sequence[Gain] = (),
    negatives: Sequence[Weakness] = (),
    further: Mapping[tuple[str, Purpose], int] | None = None,
) -> list[Assignment]:
    """Turn a ranking into the round's ordered tasks, `oversample` times as many as pairs are wanted.

    Args:
        negatives, further: slices of hard negatives and their quotas (cdiff.wasm.negatives).
    Returns:
        Assignments with index 0, 1, 2, ...; slices and purposes are interleaved, each slice's targets are used evenly, and
        no background is of the reference's own group where there are others.
    Raises:
        ValueError: no slices, or a category without a photo to paint on.
    """
    wanted = _oversampled({**quotas(config, weaknesses, gains, round), **(further or {})}, config)
    return deal(
        wanted, [*weaknesses, *negatives], stock, config, round=round, revisions=revisions, gains=gains
    )


def top_up(
    assignments: Sequence[Assignment],
    lacking: Mapping[tuple[str, Purpose], int],
    weaknesses: Sequence[Weakness],
    stock: Stock,
    config: Config,
    *,
    round: int,
    revisions: Revisions,
    gains: Sequence[Gain] = (),
) -> list[Assignment]:
    """The next wave: further tasks for what slices lack, with fresh indexes and seeds.

    Args:
        assignments: all of the round so far; the cycle over a slice's targets goes on where they end.
        lacking: missing pairs by slice and purpose, as `quality.shortfall` gives them.
    """
    return deal(
        _oversampled(lacking, config),
        weaknesses,
        stock,
        config,
        round=round,
        revisions=revisions,
        gains=gains,
        earlier=assignments,
    )


def deal(
    wanted: Mapping[tuple[str, Purpose], int],
    weaknesses: Sequence[Weakness],
    stock: Stock,
    config: Config,
    *,
    round: int,
    revisions: Revisions,
    gains: Sequence[Gain] = (),
    earlier: Sequence[Assignment] = (),
) -> list[Assignment]:
    """Exactly the wanted number of tasks by slice and purpose, in an interleaved order, after the earlier ones."""
    strengths = start_strengths(config, weaknesses, gains, round)
    return _Planner(weaknesses, stock, config, round, revisions, strengths).assign(wanted, earlier)


def quotas(
    config: Config, weaknesses: Sequence[Weakness], gains: Sequence[Gain] = (), round: int = 0
) -> Quotas:
    """Wanted pairs by slice and purpose; they sum to `config.wasm.pairs` exactly, entries of zero are left out.

    Args:
        gains: what earlier rounds brought; with `wasm.budget=thompson` the weak share is sampled from them. With
            `wasm.budget=targets` neither they nor weakness count.
    Raises:
        ValueError: no slices.
    """
    if not weaknesses:
        raise ValueError("no slices to spend a budget on: the training split shows no target")
    wasm = config.wasm
    shares = largest_remainder(wasm.pairs, [wasm.uniform, wasm.easy, max(0.0, 1 - wasm.uniform - wasm.easy)])
    sizes = [float(len(weakness.targets)) for weakness in weaknesses]
    if wasm.budget == "targets":
        return _by_targets(weaknesses, config)
    priors = [prior(weakness.score) for weakness in weaknesses]
    won = _won(config, weaknesses, gains, round)
    sampled = [float(sum(n for (name, _), n in won.items() if name == w.slice.name)) for w in weaknesses]
    weights = {"uniform": sizes, "easy": priors, "weak": sampled if gains and sum(sampled) else priors}
    wanted: Quotas = {}
    for purpose, share in zip(_PURPOSES, shares, strict=True):
        for weakness, number in zip(weaknesses, largest_remainder(share, weights[purpose]), strict=True):
            if number:
                wanted[weakness.slice.name, purpose] = number
    return wanted


def _by_targets(weaknesses: Sequence[Weakness], config: Config) -> Quotas:
    """As many pairs for each target, whatever the ranking: not even the unit of a rounding goes by it."""
    wasm = config.wasm
    named = sorted(weaknesses, key=lambda weakness: weakness.slice.name)
    shares = [wasm.uniform, wasm.easy, max(0.0, 1 - wasm.uniform - wasm.easy)]
    numbers = largest_remainder(wasm.pairs, [float(len(weakness.targets)) for weakness in named])
    return {
        (weakness.slice.name, purpose): part
        for weakness, number in zip(named, numbers, strict=True)
        for purpose, part in zip(_PURPOSES, largest_remainder(number, shares), strict=True)
        if part
    }


def start_strengths(
    config: Config,
    weaknesses: Sequence[Weakness],
    gains: Sequence[Gain] = (),
    round: int = 0,
    *,
    last: bool = False,
) -> dict[str, float]:
    """The start strength of each slice in this round: one, so that the round's gain is that of this strength.

    Thompson sampling: the one that wins a draw of the slice's own posteriors, however the budget is shared; while nothing is known, one
    at random.

    Args:
        last: no later round learns from this one, so that the one that wins most draws is taken.
    """
    options = config.wasm.start_strengths or (config.sampling.start_strength,)
    believed = beliefs(weaknesses, gains, options, config.wasm) if gains else {}
    out = {}
    for weakness in weaknesses:
        name = weakness.slice.name
        rng = np.random.default_rng([config.seed, round, _THOMPSON, zlib.crc32(name.encode())])
        shuffled = [options[i] for i in rng.permutation(len(options))]
        own = {option: belief for option, belief in believed.items() if option[0] == name}
        won = thompson(own, _DRAWS if last else 1, rng) if own else {}
        out[name] = max(shuffled, key=lambda strength: won.get((name, strength), 0))
    return out


def _won(
    config: Config, weaknesses: Sequence[Weakness], gains: Sequence[Gain], round: int
) -> dict[Option, int]:
    """Draws that each slice and start strength won, of as many as pairs are wanted."""
    if config.wasm.budget != "thompson" or not gains:
        return {}
    options = config.wasm.start_strengths or (config.sampling.start_strength,)
    believed = beliefs(weaknesses, gains, options, config.wasm)
    rng = np.random.default_rng(np.random.SeedSequence([config.seed, round, _THOMPSON]))
    return thompson(believed, config.wasm.pairs, rng)


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


def largest_remainder(total: int, weights: Sequence[float]) -> list[int]:
    """Split `total` in proportion to weights >= 0 so that the parts sum to it; ties go to the earlier part.

    Weights that are all zero count as equal.
    """
    if sum(weights) <= 0:
        weights = [1.0] * len(weights)
    exact = [total * weight / sum(weights) for weight in weights]
    parts = [math.floor(value + 1e-9) for value in exact]  # 0.2 * 5 must not lose its unit to rounding
    by_remainder = sorted(range(len(parts)), key=lambda i: (-round(exact[i] - parts[i], 9), i))
    for i in by_remainder[: total - sum(parts)]:
        parts[i] += 1
    return parts


def task_seed(seed: int, round: int, index: int) -> int:
    """63 bits that depend on run, round and place in the plan alone."""
    return int(content_hash([seed, round, index]), 16) >> 1


class _Planner:
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
        if reference.type and reference.sample_id in photos and rng.random() < self.config.sampling.repaint:
            return reference.sample_id
        others = {photo for photo in photos if self.stock.groups[photo] != reference.group}
        eligible = (others or set(photos) - {reference.sample_id} or set(photos)) - passed
        if not eligible:
            return None
        deck = decks.setdefault(reference.category, [])
        if not eligible.intersection(deck):
            order = self._rng(_BACKGROUNDS, index).permutation(len(photos))
            deck.extend(sorted(photos)[i] for i in order)
        place = next(i for i, photo in enumerate(deck) if photo in eligible)
        return deck.pop(place)

    def _rng(self, *stream: int) -> np.random.Generator:
        return np.random.default_rng(np.random.SeedSequence([self.config.seed, self.round, *stream]))


def _negative(recipe: Recipe) -> Recipe:
    """A look-alike is not mined: it was hard already."""
    return replace(recipe, mode="negative", arm="B0", candidates=1, fraction=1.0)


def _oversampled(wanted: Mapping[tuple[str, Purpose], int], config: Config) -> Quotas:
    # The epsilon: 1.1 * 10 is 11.000000000000002, and no twelfth task.
    return {
        key: math.ceil(config.wasm.oversample * number - 1e-9) for key, number in wanted.items() if number > 0
    }


def interleaved(wanted: Mapping[_Key, int]) -> list[_Key]:
    """Spread each slice's tasks evenly over the whole list, so that every stretch of it serves all slices."""
    placed = [
        ((i + 0.5) / number, order, key)
        for order, (key, number) in enumerate(wanted.items())
        for i in range(number)
    ]
    return [key for _, _, key in sorted(placed)]
