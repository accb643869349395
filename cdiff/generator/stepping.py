"""The steps of a batch of candidates, told before the first one: between them a card waits for nothing that the CPU knows.

x + (to - time) v with v = (x - x_0-hat) / time is one Euler step of the straight path, from a time to an earlier one: of the noisy value a share of
to / time is left, the rest is x_0-hat. Each candidate counts its own steps and rests when it is done, so that neighbours with another start strength
change nothing.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise

import torch

from cdiff.generator.objective import noised
from cdiff.generator.states import Condition, State

Times = tuple[float, float]  # of image and mask


@dataclass(frozen=True, slots=True)
class Kept:
    """What the candidates of a batch keep on their way, stacked once."""

    known_BKSS: torch.Tensor
    region_B1RR: torch.Tensor
    tokens_BND: torch.Tensor
    background_BCSS: torch.Tensor
    place_B1SS: torch.Tensor
    noise_BCSS: torch.Tensor

    @classmethod
    def of(cls, states: Sequence[State]) -> Kept:
        conditions = [state.condition for state in states]
        scenes = [condition.scene for condition in conditions]
        return cls(
            torch.stack([scene.known_KSS for scene in scenes]),
            torch.stack([condition.region_1RR for condition in conditions]),
            torch.stack([condition.tokens_ND for condition in conditions]),
            torch.stack([scene.background_CSS for scene in scenes]),
            torch.stack([scene.region_1SS for scene in scenes]),
            torch.stack([state.noise_CSS for state in states]),
        )


@dataclass(frozen=True, slots=True)
class Step:
    """What is asked of the network in one step, and numbers [B] on the device."""

    with_guidance: bool  # by one who moves; who rests needs no prediction
    without: bool
    time_image: torch.Tensor
    time_mask: torch.Tensor
    scale: torch.Tensor  # guidance; 1 is none
    to_image: torch.Tensor
    kept_image: torch.Tensor  # share of the noisy value that is left
    new_image: torch.Tensor  # share of x_0-hat; 0 where it rests
    kept_mask: torch.Tensor
    new_mask: torch.Tensor

    def moved(
        self,
        kept: Kept,
        canvas_BCSS: torch.Tensor,
        mask_B1RR: torch.Tensor,
        clean_canvas: torch.Tensor,
        clean_mask: torch.Tensor,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Canvases and masks after the step. Outside the region the path is known: blending it in keeps brightness continuous over the border."""
        canvas = wide(self.kept_image) * canvas_BCSS + wide(self.new_image) * clean_canvas
        mask = wide(self.kept_mask) * mask_B1RR + wide(self.new_mask) * clean_mask
        surroundings = noised(kept.background_BCSS, kept.noise_BCSS, self.to_image)
        canvas = kept.place_B1SS * canvas + (1 - kept.place_B1SS) * surroundings
        # what rests is what it was, whatever the network says of it
        return (
            torch.where(wide(self.new_image) == 0, canvas_BCSS, canvas),
            torch.where(wide(self.new_mask) == 0, mask_B1RR, mask),
        )


def paths(states: Sequence[State], share: float, steps: int, move_image: bool) -> list[list[Times]]:
    """The times of all states, now and after each step, for a share of what they have left."""
    spans = [max(s.time_image if move_image else 0.0, s.time_mask) for s in states]
    counts = [max(1, round(span * share * steps)) if span > 0 else 0 for span in spans]

    def after(state: State, count: int, step: int) -> Times:
        left = 1 - share * min(step, count) / max(1, count)
        return (state.time_image * left if move_image else state.time_image), state.time_mask * left

    return [
        [after(s, count, step) for s, count in zip(states, counts, strict=True)]
        for step in range(max(counts) + 1)
    ]


def steps_of(
    conditions: Sequence[Condition], times: Sequence[Sequence[Times]], device: torch.device
) -> Iterator[Step]:
    """The steps between such times; their numbers come to the device at once."""
    told = [list(map(_numbers, conditions, now, to)) for now, to in pairwise(times)]
    if not told:
        return
    names = list(told[0][0])
    rows = [[[one[name] for one in each] for name in names] for each in told]
    table = torch.tensor(rows, dtype=torch.float64).float()
    for here, there in zip(table, table.to(device), strict=True):
        known = dict(zip(names, here, strict=True))
        moves, guided = (known["new_image"] != 0) | (known["new_mask"] != 0), known["scale"] != 1
        asked = bool((moves & guided).any()), bool((moves & ~guided).any())
        yield Step(*asked, **dict(zip(names, there, strict=True)))


def _numbers(condition: Condition, now: Times, to: Times) -> dict[str, float]:
    image, mask = (1.0 if after == before else after / before for before, after in zip(now, to, strict=True))
    return {
        "time_image": now[0],
        "time_mask": now[1],
        "scale": _guidance(condition, now),
        "to_image": to[0],
        "kept_image": image,
        "new_image": 1 - image,
        "kept_mask": mask,
        "new_mask": 1 - mask,
    }


def _guidance(condition: Condition, now: Times) -> float:
    """Strength of the guidance where what is being drawn stands on its path: the mask while it is noisy, then the image."""
    low, high = condition.guided
    left = (now[1] or now[0]) / (condition.tau or 1.0)
    return condition.guidance if low <= left <= high else 1.0


def wide(number_B: torch.Tensor) -> torch.Tensor:
    """For each of a batch a number, as images take it."""
    return number_B.view(-1, 1, 1, 1)
