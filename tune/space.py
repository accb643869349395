"""What a sweep may change: guidance strengths and their kin, with ranges, by mining arm.

    sampling.safe_strength            log 1 to 8        guidance on the SAFE tokens
    sampling.guidance_interval.low    0 to 0.4          part of the path on which there is any
    sampling.guidance_interval.high   0.6 to 1
    sampling.start_strength           0.1 to 0.9        noise on the pasted real target
    sampling.weakness_strength        log 0.25 to 4     difficulty token; arm B3
    sampling.gradient_strength        log 0.01 to 0.2   arm B4
    sampling.steps                    log 8 to 32
    sampling.mode                     mask_first, given_mask; joint where the arm bears it
    wasm.band.low                     0 to 0.6          wanted difficulty
    wasm.band.width                   0.2 to 0.6
    wasm.candidates                   2 to 6            K of best-of-K; arm B1
    downstream.synthetic_mix          0.3 to 1          share of pairs among the crops beside a batch

A YAML file narrows, widens or fixes any of them: `sampling.safe_strength: [1.5, 4]`, `sampling.steps: 16`, `sampling.mode: [mask_first]`.
What is not whole is searched, and fixed, in four significant digits.
A point is a flat mapping of these names to plain values; it crosses to trials, and is all that a searcher sees.
"""

from __future__ import annotations

import contextlib
import difflib
import itertools
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import yaml

from cdiff.config import Config
from cdiff.config_file import overridden
from cdiff.errors import ConfigError

Point = dict[str, float | int | str]


@dataclass(frozen=True, slots=True)
class Dimension:
    """One setting that is searched.

    Args:
        low, high: of numbers, both possible. log: even over orders of magnitude. whole: integers alone.
        choices: instead of a range.
        arm: what `wasm.arm` must contain for the setting to do anything.
    """

    name: str
    low: float = 0.0
    high: float = 1.0
    log: bool = False
    whole: bool = False
    choices: tuple[str, ...] = ()
    arm: str = ""

    @property
    def fixed(self) -> bool:
        """Nothing is left to search."""
        return len(self.choices) == 1 if self.choices else self.low == self.high

    def share(self, value: float | int | str) -> float:
        """Where a value lies in the range, 0 to 1, on the scale that is searched."""
        if self.choices:
            return self.choices.index(str(value)) / max(1, len(self.choices) - 1)
        scale: Callable[[float], float] = math.log if self.log else float
        room = scale(self.high) - scale(self.low)
        return (scale(float(value)) - scale(self.low)) / room if room else 0.5


SPACE = (
    Dimension("sampling.safe_strength", 1.0, 8.0, log=True),
    Dimension("sampling.guidance_interval.low", 0.0, 0.4),
    Dimension("sampling.guidance_interval.high", 0.6, 1.0),
    Dimension("sampling.start_strength", 0.1, 0.9),
    Dimension("sampling.weakness_strength", 0.25, 4.0, log=True, arm="B3"),
    Dimension("sampling.gradient_strength", 0.01, 0.2, log=True, arm="B4"),
    Dimension("sampling.steps", 8, 32, log=True, whole=True),
    Dimension("sampling.mode", choices=("mask_first", "given_mask", "joint")),
    Dimension("wasm.band.low", 0.0, 0.6),
    Dimension("wasm.band.width", 0.2, 0.6),
    Dimension("wasm.candidates", 2, 6, whole=True, arm="B1"),
    Dimension("downstream.synthetic_mix", 0.3, 1.0),
)
_KNOWN = {dimension.name: dimension for dimension in SPACE}


def space(config: Config, wanted: Mapping[str, Any] | None = None) -> tuple[Dimension, ...]:
    """The dimensions that the configuration's mining arm has, as a user narrowed them.

    Raises:
        ConfigError: an unknown name, one that the arm does not have, or a range that the settings do not take.
    """
    wanted = wanted or {}
    for name in wanted:
        if name not in _KNOWN:
            near = difflib.get_close_matches(str(name), _KNOWN, n=1, cutoff=0.3)
            hint = f"Did you mean {near[0]}?" if near else f"There are {', '.join(_KNOWN)}."
            raise ConfigError(f"{name} is not searched. {hint}")
        needs = _KNOWN[name].arm
        if needs not in config.wasm.arm:
            raise ConfigError(
                f"{name}: the mining arm {config.wasm.arm} does not have it. Leave it out, or choose an arm with {needs} "
                f"(wasm.arm={needs})."
            )
    found = [_possible(d, config) for d in SPACE if d.arm in config.wasm.arm]
    out = tuple(_narrowed(d, wanted[d.name]) if d.name in wanted else d for d in found)
    corners = [{d.name: _end(d, last) for d in out} for last in (False, True)]
    inward = {d.name: _end(d, d.name.endswith("interval.low")) for d in out}  # intervals at their narrowest
    for corner in [*corners, inward]:
        applied(config, corner)  # tells what is out of range
    if config.wasm.start_strengths:
        raise ConfigError(
            "sampling.start_strength: wasm.start_strengths lets the budget choose it, slice by slice. Search without: wasm.start_strengths=[]."
        )
    if all(dimension.fixed for dimension in out):
        raise ConfigError("every setting is fixed: leave a range to search.")
    return out


def read_space(path: str | Path | None, config: Config) -> tuple[Dimension, ...]:
    """As `space`, from a YAML file; None: the ranges as they are.

    Raises:
        ConfigError: no such file, or no mapping; or as `space`.
    """
    if path is None:
        return space(config)
    try:
        wanted = yaml.safe_load(Path(path).read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise ConfigError(f"cannot read the space {path}: {error}") from None
    if not isinstance(wanted or {}, dict):
        raise ConfigError(f"{path} must hold a mapping of settings to ranges, values or lists of choices.")
    return space(config, wanted)


def applied(config: Config, point: Mapping[str, float | int | str]) -> Config:
    """The configuration at a point; ConfigError where a value is none that the setting takes."""
    return overridden(config, [f"{key}={value}" for key, value in settings(config, point).items()])


def settings(config: Config, point: Mapping[str, float | int | str]) -> dict[str, Any]:
    """A point as dotted settings: the ends of intervals become intervals; the configuration has those that a point lacks."""
    out = {name: value for name, value in point.items() if name.count(".") == 1}
    if any(name.startswith("sampling.guidance_interval.") for name in point):
        low, high = config.sampling.guidance_interval
        low = float(point.get("sampling.guidance_interval.low", low))
        high = float(point.get("sampling.guidance_interval.high", high))
        out["sampling.guidance_interval"] = [low, high]  # type: ignore[assignment]
    if any(name.startswith("wasm.band.") for name in point):
        low, high = config.wasm.band
        width = float(point.get("wasm.band.width", high - low))
        low = float(point.get("wasm.band.low", low))
        out["wasm.band"] = [low, round(min(1.0, low + width), 6)]  # type: ignore[assignment]
    return out


def overlay(config: Config, point: Mapping[str, float | int | str]) -> str:
    """A point as the YAML file that `jobs/loop.py --overlay` takes, with the mining arm that it was found for."""
    nested: dict[str, dict[str, Any]] = {"wasm": {"arm": config.wasm.arm}}
    for key, value in settings(config, point).items():
        section, name = key.split(".")
        nested.setdefault(section, {})[name] = value
    return yaml.safe_dump(nested, sort_keys=True)


def here(config: Config, dimensions: Sequence[Dimension]) -> Point:
    """Where the configuration stands in the space; what lies outside of a range moves to its nearer end."""
    low, high = config.wasm.band
    start, end = config.sampling.guidance_interval
    derived = {
        "wasm.band.low": low,
        "wasm.band.width": high - low,
        "sampling.guidance_interval.low": start,
        "sampling.guidance_interval.high": end,
    }
    out: Point = {}
    for dimension in dimensions:
        section, _, name = dimension.name.partition(".")
        value = derived.get(dimension.name)
        value = getattr(getattr(config, section), name) if value is None else value
        if dimension.choices:
            out[dimension.name] = value if value in dimension.choices else dimension.choices[0]
        else:
            inside = min(max(value, dimension.low), dimension.high)
            out[dimension.name] = int(inside) if dimension.whole else float(inside)
    return out


def domains(dimensions: Sequence[Dimension]) -> dict[str, Any]:
    """As Ray Tune takes a space. What is fixed is left out: searchers have nothing to learn of it."""
    from ray import tune  # here: a space is read without Ray

    found = {}
    for d in dimensions:
        if d.fixed:
            continue
        if d.choices:
            found[d.name] = tune.choice(list(d.choices))
        elif d.whole:
            draw = tune.lograndint if d.log else tune.randint
            found[d.name] = draw(int(d.low), int(d.high) + 1)
        else:
            found[d.name] = tune.loguniform(d.low, d.high) if d.log else tune.uniform(d.low, d.high)
    return found


def every_point(dimensions: Sequence[Dimension], most: int) -> list[Point]:
    """All points of a space that has no more than so many; else none."""
    values: list[list[Any]] = []
    for d in dimensions:
        if not (d.choices or d.whole or d.fixed):
            return []
        values.append(
            list(d.choices) if d.choices else [d.low] if d.fixed else [*range(int(d.low), int(d.high) + 1)]
        )
    if math.prod(map(len, values)) > most:
        return []
    names = [d.name for d in dimensions]
    return [whole(dimensions, dict(zip(names, told, strict=True))) for told in itertools.product(*values)]


def whole(dimensions: Sequence[Dimension], point: Mapping[str, Any]) -> Point:
    """A searcher's point with what is fixed, as plain values in the order of the dimensions."""
    out: Point = {}
    for d in dimensions:
        value = point[d.name] if d.name in point else _end(d, False)
        out[d.name] = str(value) if d.choices else int(value) if d.whole else _four_digits(float(value))
    return out


def within(dimensions: Sequence[Dimension], point: Mapping[str, Any]) -> bool:
    """Whether a point is one of the space."""
    if set(point) != {dimension.name for dimension in dimensions}:
        return False
    for d in dimensions:
        inside = point[d.name] in d.choices if d.choices else d.low <= point[d.name] <= d.high
        if not inside:
            return False
    return True


def _four_digits(value: float) -> float:
    """What is measured is what the overlay says; ends of ranges are rounded likewise, so that no point leaves its range."""
    return float(f"{value:.4g}")


def _end(dimension: Dimension, last: bool) -> float | int | str:
    if dimension.choices:
        return dimension.choices[-1 if last else 0]
    value = dimension.high if last else dimension.low
    return int(value) if dimension.whole else value


def _possible(dimension: Dimension, config: Config) -> Dimension:
    """Without the choices that the mining arm does not bear."""
    left = []
    for choice in dimension.choices:
        with contextlib.suppress(ConfigError):
            applied(config, {dimension.name: choice})
            left.append(choice)
    return replace(dimension, choices=tuple(left)) if dimension.choices else dimension


def _narrowed(dimension: Dimension, wanted: Any) -> Dimension:
    """A range, one value, or a list of choices."""
    told = wanted if isinstance(wanted, list) else [wanted]
    if dimension.choices:
        if not told or not set(told) <= set(dimension.choices):
            raise ConfigError(f"{dimension.name}: {wanted!r} is not among {', '.join(dimension.choices)}.")
        return replace(dimension, choices=tuple(c for c in dimension.choices if c in told))
    numbers = [value for value in told if isinstance(value, int | float) and not isinstance(value, bool)]
    if len(numbers) != len(told) or len(told) not in (1, 2) or told[0] > told[-1]:
        raise ConfigError(f"{dimension.name}: {wanted!r} is neither a number nor [lowest, highest].")
    if dimension.whole and any(value != int(value) for value in numbers):
        raise ConfigError(f"{dimension.name}: {wanted!r} must be whole numbers.")
    if dimension.log and numbers[0] <= 0:
        raise ConfigError(f"{dimension.name}: {wanted!r} must be above 0.")
    if dimension.whole:
        return replace(dimension, low=numbers[0], high=numbers[-1])
    low, high = _four_digits(numbers[0]), _four_digits(numbers[-1])
    if low == high and numbers[0] != numbers[-1]:
        raise ConfigError(
            f"{dimension.name}: {wanted!r} is one value in four digits, in which points are told apart. Give a wider range, or {low:g} alone."
        )
    return replace(dimension, low=low, high=high)
