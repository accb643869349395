"""How a round's budget is spent: which slices get how many pairs; cdiff.wasm.dealing turns them into tasks.

    uniform   20 %  over slices by their targets, any difficulty: keeps the estimates of strong slices honest
    easy      20 %  over slices by their prior, below the difficulty band
    weak      60 %  over slices by what they have gained so far (cdiff.wasm.gains), at first by their prior, inside the band

Everything is a pure function of its arguments and of (seed, round): a coordinator that dies loses nothing.
"""

from __future__ import annotations

import math
import zlib
from collections.abc import Mapping, Sequence
from types import MappingProxyType

import numpy as np

from cdiff.config import Config
from cdiff.types import Assignment, Gain, Purpose, Revisions, Weakness
from cdiff.wasm.dealing import Dealer, Stock
from cdiff.wasm.gains import Option, beliefs, prior, thompson

Quotas = dict[tuple[str, Purpose], int]  # wanted pairs by slice name and purpose

_PURPOSES: tuple[Purpose, ...] = ("uniform", "easy", "weak")
_SPARE = 1.2  # tasks of a further wave for each pair, if as many are true as before
_FEWEST = 0.2  # of the tasks that are reckoned to be true: no wave is longer than six times what is missing
_DRAWS = 500  # of a slice's start strengths against each other
_THOMPSON = 5  # stream of randomness within a round; those of cdiff.wasm.dealing are 1 to 4


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
    valid: Mapping[str, float] = MappingProxyType({}),
) -> list[Assignment]:
    """The next wave: further tasks for what slices lack, with fresh indexes and seeds.

    Args:
        assignments: all of the round so far; the cycle over a slice's targets goes on where they end.
        lacking: missing pairs by slice and purpose, as `quality.shortfall` gives them.
        valid: by slice the share of its attempts so far that were true: where it is low, more tasks are needed for a pair.
    """
    return deal(
        _oversampled(lacking, config, valid),
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
    return Dealer(weaknesses, stock, config, round, revisions, strengths).assign(wanted, earlier)


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


def _oversampled(
    wanted: Mapping[tuple[str, Purpose], int],
    config: Config,
    valid: Mapping[str, float] = MappingProxyType({}),
) -> Quotas:
    def tasks(name: str, number: int) -> int:
        reckoned = _SPARE / max(valid[name], _FEWEST) if name in valid else 1.0
        factor = max(config.wasm.oversample, reckoned)
        # The epsilon: 1.1 * 10 is 11.000000000000002, and no twelfth task.
        return math.ceil(factor * number - 1e-9)

    return {(name, purpose): tasks(name, n) for (name, purpose), n in wanted.items() if n > 0}
