"""Guided few-step sampling: joint, mask first, given mask, and mask from image, from noise or from a pasted target.

A state holds one candidate; states are denoised in fixed micro-batches, padded when short, in float32, each with
noise from its own generator: what a candidate becomes does not depend on its neighbours.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch

from cdiff.generator.denoiser import JointDenoiser
from cdiff.generator.objective import noised


@dataclass(frozen=True, slots=True)
class Condition:
    """What all candidates of one task share. Images in [-1, 1] at the generator's resolution R."""

    background_3RR: torch.Tensor
    region_1RR: torch.Tensor
    tokens_ND: torch.Tensor
    start_image_3RR: torch.Tensor  # the background with the real target pasted in: where tau < 1 starts from
    start_mask_1RR: torch.Tensor
    guidance: float  # safe_strength
    tau: float  # start_strength
    guided: tuple[float, float] = (
        0.0,
        1.0,
    )  # part of the path from tau to 0 on which there is guidance, as shares of tau


@dataclass(frozen=True, slots=True)
class State:
    """A candidate on its way: noisy image and mask at their times; time 0 is finished."""

    condition: Condition
    image_3RR: torch.Tensor
    mask_1RR: torch.Tensor
    time_image: float
    time_mask: float
    noise_3RR: torch.Tensor  # of the image: the known surroundings are noised with it at every step


# Maps states and their expected images [B, 3, R, R] to moved ones.
Guide = Callable[[Sequence[State], torch.Tensor], torch.Tensor]


class Sampler:
    """Euler steps on the straight path, with classifier-free guidance on the SAFE tokens (2207.12598), on a part of the
    path if wanted (2404.07724)."""

    def __init__(self, denoiser: JointDenoiser, null_ND: torch.Tensor, steps: int, micro_batch: int) -> None:
        self.denoiser = denoiser
        self.null_ND = null_ND
        self.steps = steps
        self.micro_batch = micro_batch

    def start_joint(self, condition: Condition, generator: torch.Generator) -> State:
        """Image and mask start together at tau."""
        noise, noise_mask = self._noise(condition, generator)
        tau = condition.tau
        image = (1 - tau) * condition.start_image_3RR + tau * noise
        mask = (1 - tau) * condition.start_mask_1RR + tau * noise_mask
        return State(condition, image, mask, tau, tau, noise)

    def start_mask(self, condition: Condition, generator: torch.Generator) -> State:
        """The mask alone, from tau, while the image is pure noise: the first half of mask first."""
        noise, noise_mask = self._noise(condition, generator)
        mask = (1 - condition.tau) * condition.start_mask_1RR + condition.tau * noise_mask
        return State(condition, noise, mask, 1.0, condition.tau, noise)

    def start_image(self, condition: Condition, mask_1RR: torch.Tensor, generator: torch.Generator) -> State:
        """The image for a given clean mask, from tau."""
        return self.start_image_from(condition, mask_1RR, self._noise(condition, generator)[0])

    def start_image_from(
        self, condition: Condition, mask_1RR: torch.Tensor, noise_3RR: torch.Tensor
    ) -> State:
        """The image for a given clean mask, from tau, with a given noise."""
        image = (1 - condition.tau) * condition.start_image_3RR + condition.tau * noise_3RR
        return State(condition, image, mask_1RR, condition.tau, 0.0, noise_3RR)

    def start_mask_from_image(
        self, condition: Condition, image_3RR: torch.Tensor, generator: torch.Generator
    ) -> State:
        """The mask for a clean image, from pure noise: the label check."""
        _, noise_mask = self._noise(condition, generator)
        return State(condition, image_3RR, noise_mask, 0.0, 1.0, image_3RR)

    def run(
        self,
        states: Sequence[State],
        share: float = 1.0,
        move_image: bool = True,
        guide: Guide | None = None,
    ) -> list[State]:
        """Denoise the given share of each state's remaining path.

        Args:
            share: in (0, 1]; 1 finishes.
            move_image: False keeps the image's time (the mask is drawn first, or from the image).
            guide: moves the expected images of every step.
        """
        out: list[State] = []
        for first in range(0, len(states), self.micro_batch):
            chunk = list(states[first : first + self.micro_batch])
            padded = chunk + [chunk[-1]] * (self.micro_batch - len(chunk))
            out += self._run_chunk(padded, share, move_image, guide)[: len(chunk)]
        return out

    def expected_images(self, states: Sequence[State]) -> list[torch.Tensor]:
        """x0-hat [3, R, R] of each state: the image that it is heading for, for early judging."""
        out: list[torch.Tensor] = []
        for first in range(0, len(states), self.micro_batch):
            chunk = list(states[first : first + self.micro_batch])
            images, _ = self._clean(chunk + [chunk[-1]] * (self.micro_batch - len(chunk)))
            heading = zip(chunk, images, strict=False)
            out += [
                image.clamp(-1, 1) if state.time_image > 0 else state.image_3RR for state, image in heading
            ]
        return out

    @torch.inference_mode()
    def _run_chunk(
        self, states: list[State], share: float, move_image: bool, guide: Guide | None
    ) -> list[State]:
        # Each state counts its own steps and rests when done: neighbours with another tau change nothing.
        spans = [max(s.time_image if move_image else 0.0, s.time_mask) for s in states]
        counts = [max(1, round(span * share * self.steps)) if span > 0 else 0 for span in spans]
        begin = [(s.time_image, s.time_mask) for s in states]
        for step in range(1, max(counts) + 1):
            clean_image, clean_mask = self._clean(states)
            clean_image = guide(states, clean_image) if guide else clean_image
            for i, state in enumerate(states):
                if step > counts[i]:
                    continue
                left = 1 - share * step / counts[i]
                to_image = begin[i][0] * left if move_image else state.time_image
                to_mask = begin[i][1] * left
                image = _step(state.image_3RR, clean_image[i], state.time_image, to_image)
                mask = _step(state.mask_1RR, clean_mask[i], state.time_mask, to_mask)
                if move_image:
                    image = _keep_surroundings(image, state, to_image)
                states[i] = replace(
                    state, image_3RR=image, mask_1RR=mask, time_image=to_image, time_mask=to_mask
                )
        return states

    @torch.inference_mode()
    def _clean(self, states: Sequence[State]) -> tuple[torch.Tensor, torch.Tensor]:
        image = torch.stack([s.image_3RR for s in states])
        mask = torch.stack([s.mask_1RR for s in states])
        time_image = torch.tensor([s.time_image for s in states], device=image.device)
        time_mask = torch.tensor([s.time_mask for s in states], device=image.device)
        background = torch.stack([s.condition.background_3RR for s in states])
        region = torch.stack([s.condition.region_1RR for s in states])
        tokens = torch.stack([s.condition.tokens_ND for s in states])
        scales = [_guidance(state) for state in states]
        scale = torch.tensor(scales, device=image.device).view(-1, 1, 1, 1)
        inputs = (image, mask, time_image, time_mask, background, region)
        with_image, with_mask = self.denoiser(*inputs, tokens)
        if all(one == 1.0 for one in scales):
            return with_image, with_mask
        null_image, null_mask = self.denoiser(*inputs, self.null_ND.expand_as(tokens))
        # without guidance a state has the plain prediction, bit by bit, whatever its neighbours want
        return (
            torch.where(scale == 1, with_image, null_image + scale * (with_image - null_image)),
            torch.where(scale == 1, with_mask, null_mask + scale * (with_mask - null_mask)),
        )

    @staticmethod
    def _noise(condition: Condition, generator: torch.Generator) -> tuple[torch.Tensor, torch.Tensor]:
        image, mask = condition.start_image_3RR, condition.start_mask_1RR
        return (
            torch.randn(image.shape, generator=generator).to(image.device),
            torch.randn(mask.shape, generator=generator).to(mask.device),
        )


def _guidance(state: State) -> float:
    """Strength of the guidance where what is being drawn stands on its path: the mask while it is noisy, then the image."""
    low, high = state.condition.guided
    left = (state.time_mask or state.time_image) / (state.condition.tau or 1.0)
    return state.condition.guidance if low <= left <= high else 1.0


def _step(noisy: torch.Tensor, clean: torch.Tensor, time: float, to: float) -> torch.Tensor:
    """One Euler step from a time to an earlier one: x + (to - time) v with v = (x - x_0-hat) / time."""
    if to == time:
        return noisy
    return (to / time) * noisy + (1 - to / time) * clean


def _keep_surroundings(image_3RR: torch.Tensor, state: State, time: float) -> torch.Tensor:
    """Outside the region the path is known: blending it in keeps brightness continuous over the border."""
    known = noised(state.condition.background_3RR[None], state.noise_3RR[None], image_3RR.new_tensor([time]))[
        0
    ]
    region = state.condition.region_1RR
    return region * image_3RR + (1 - region) * known
