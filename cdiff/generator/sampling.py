"""Guided few-step sampling: joint, mask first, given mask, and mask from image, from noise or from a pasted target.

A state holds one candidate; states are denoised in fixed micro-batches, padded when short, each with noise from its own
generator: what a candidate becomes does not depend on its neighbours. On CPUs this is done in float32.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from copy import copy
from dataclasses import dataclass, replace

import torch

from cdiff.generator.denoiser import Denoiser
from cdiff.generator.objective import noised


@dataclass(frozen=True, slots=True)
class Scene:
    """What a denoiser works on of one task's images: canvases (cdiff.generator.denoiser), each encoded once."""

    background_CSS: torch.Tensor
    start_CSS: torch.Tensor
    known_KSS: torch.Tensor
    region_1SS: torch.Tensor
    lost_3RR: (
        torch.Tensor | None
    )  # what encoding and decoding lose of the background's texture; None: nothing


@dataclass(frozen=True, slots=True)
class Condition:
    """What all candidates of one task share. Images in [-1, 1] at the generator's resolution R."""

    background_3RR: torch.Tensor
    region_1RR: torch.Tensor
    tokens_ND: torch.Tensor
    start_image_3RR: torch.Tensor  # the background with the real target pasted in: where tau < 1 starts from
    start_mask_1RR: torch.Tensor
    scene: Scene
    guidance: float  # safe_strength
    tau: float  # start_strength
    guided: tuple[float, float]  # part of the path from tau to 0 on which there is guidance, as shares of tau

    @classmethod
    @torch.no_grad()  # and not in inference mode: miners learn from conditions
    def of(
        cls,
        denoiser: Denoiser,
        background_3RR: torch.Tensor,
        region_1RR: torch.Tensor,
        tokens_ND: torch.Tensor,
        start_image_3RR: torch.Tensor,
        start_mask_1RR: torch.Tensor,
        guidance: float = 1.0,
        tau: float = 1.0,
        guided: tuple[float, float] = (0.0, 1.0),
    ) -> Condition:
        """A condition with its images encoded for a denoiser, one by one: what comes of a task depends on no other."""
        background, region = background_3RR[None], region_1RR[None]
        canvas = denoiser.canvas(background)
        back = denoiser.image(canvas)
        scene = Scene(
            canvas[0],
            denoiser.canvas(start_image_3RR[None])[0],
            denoiser.known(background, region)[0],
            denoiser.place(region)[0],
            None if back is background else (background - back)[0],
        )
        images = background_3RR, region_1RR, tokens_ND, start_image_3RR, start_mask_1RR
        return cls(*images, scene, guidance, tau, guided)


@dataclass(frozen=True, slots=True)
class State:
    """A candidate on its way: noisy canvas and mask at their times; time 0 is finished."""

    condition: Condition
    canvas_CSS: torch.Tensor
    mask_1RR: torch.Tensor
    time_image: float
    time_mask: float
    noise_CSS: torch.Tensor  # of the canvas: the known surroundings are noised with it at every step


# Maps states and their expected canvases [B, C, S, S] to moved ones.
Guide = Callable[[Sequence[State], torch.Tensor], torch.Tensor]


class Sampler:
    """Euler steps on the straight path, with classifier-free guidance on the SAFE tokens (2207.12598), on a part of the
    path if wanted (2404.07724)."""

    def __init__(
        self,
        denoiser: Denoiser,
        null_ND: torch.Tensor,
        steps: int,
        micro_batch: int,
        dtype: str = "float32",
    ) -> None:
        self.denoiser = denoiser
        self.null_ND = null_ND
        self.steps = steps
        self.micro_batch = micro_batch
        self.dtype: torch.dtype = getattr(torch, dtype)

    def of_steps(self, steps: int) -> Sampler:
        """The same with another number of steps."""
        out = copy(self)
        out.steps = steps
        return out

    def start_joint(self, condition: Condition, generator: torch.Generator) -> State:
        """Image and mask start together at tau."""
        noise, noise_mask = self._noise(condition, generator)
        tau = condition.tau
        canvas = (1 - tau) * condition.scene.start_CSS + tau * noise
        mask = (1 - tau) * condition.start_mask_1RR + tau * noise_mask
        return State(condition, canvas, mask, tau, tau, noise)

    def start_mask(self, condition: Condition, generator: torch.Generator) -> State:
        """The mask alone, from tau, while the image is pure noise: the first half of mask first."""
        noise, noise_mask = self._noise(condition, generator)
        mask = (1 - condition.tau) * condition.start_mask_1RR + condition.tau * noise_mask
        return State(condition, noise, mask, 1.0, condition.tau, noise)

    def start_image(self, condition: Condition, mask_1RR: torch.Tensor, generator: torch.Generator) -> State:
        """The image for a given clean mask, from tau."""
        return self.start_image_from(condition, mask_1RR, self._noise(condition, generator)[0])

    def start_image_from(
        self, condition: Condition, mask_1RR: torch.Tensor, noise_CSS: torch.Tensor
    ) -> State:
        """The image for a given clean mask, from tau, with a given noise."""
        canvas = (1 - condition.tau) * condition.scene.start_CSS + condition.tau * noise_CSS
        return State(condition, canvas, mask_1RR, condition.tau, 0.0, noise_CSS)

    def start_mask_from_image(
        self, condition: Condition, image_3RR: torch.Tensor, generator: torch.Generator
    ) -> State:
        """The mask for a clean image, from pure noise: the label check."""
        _, noise_mask = self._noise(condition, generator)
        with torch.inference_mode():
            canvas = self.denoiser.canvas(image_3RR[None])[0]
        return State(condition, canvas, noise_mask, 0.0, 1.0, canvas)

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
            guide: moves the expected canvases of every step.
        """
        out: list[State] = []
        for first in range(0, len(states), self.micro_batch):
            chunk = list(states[first : first + self.micro_batch])
            padded = chunk + [chunk[-1]] * (self.micro_batch - len(chunk))
            out += self._run_chunk(padded, share, move_image, guide)[: len(chunk)]
        return out

    def expected(self, states: Sequence[State]) -> list[torch.Tensor]:
        """x0-hat [C, S, S] of each state: the canvas that it is heading for."""
        out: list[torch.Tensor] = []
        for first in range(0, len(states), self.micro_batch):
            chunk = list(states[first : first + self.micro_batch])
            canvases, _ = self._clean(chunk + [chunk[-1]] * (self.micro_batch - len(chunk)))
            heading = zip(chunk, self.denoiser.bounded(canvases), strict=False)
            out += [canvas if state.time_image > 0 else state.canvas_CSS for state, canvas in heading]
        return out

    def expected_images(self, states: Sequence[State]) -> list[torch.Tensor]:
        """The images [3, R, R] of `expected`, for early judging."""
        heading = zip(states, self.expected(states), strict=True)
        return [self.image(state.condition, canvas) for state, canvas in heading]

    @torch.inference_mode()
    def image(self, condition: Condition, canvas_CSS: torch.Tensor) -> torch.Tensor:
        """The image [3, R, R] of a clean canvas, by itself: it does not depend on others."""
        return shown(self.denoiser, [condition], canvas_CSS[None])[0]

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
            to = []
            for state, (image, mask), count in zip(states, begin, counts, strict=True):
                left = 1 - share * step / max(1, count)
                moved = (image * left if move_image else image, mask * left)
                to.append(moved if step <= count else (state.time_image, state.time_mask))
            states = _moved(states, clean_image, clean_mask, to, move_image)
        return states

    @torch.inference_mode()
    def _clean(self, states: Sequence[State]) -> tuple[torch.Tensor, torch.Tensor]:
        canvas = torch.stack([s.canvas_CSS for s in states])
        mask = torch.stack([s.mask_1RR for s in states])
        time_image = torch.tensor([s.time_image for s in states], device=canvas.device)
        time_mask = torch.tensor([s.time_mask for s in states], device=canvas.device)
        known = torch.stack([s.condition.scene.known_KSS for s in states])
        region = torch.stack([s.condition.region_1RR for s in states])
        tokens = torch.stack([s.condition.tokens_ND for s in states])
        scales = [_guidance(state) for state in states]
        scale = torch.tensor(scales, device=canvas.device).view(-1, 1, 1, 1)
        inputs = (canvas, mask, time_image, time_mask, known, region)
        with_image, with_mask = self._denoised(*inputs, tokens)
        if all(one == 1.0 for one in scales):
            return with_image, with_mask
        null_image, null_mask = self._denoised(*inputs, self.null_ND.expand_as(tokens))
        # without guidance a state has the plain prediction, bit by bit, whatever its neighbours want
        return (
            torch.where(scale == 1, with_image, null_image + scale * (with_image - null_image)),
            torch.where(scale == 1, with_mask, null_mask + scale * (with_mask - null_mask)),
        )

    def _denoised(self, canvas: torch.Tensor, *others: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        with torch.autocast(canvas.device.type, dtype=self.dtype, enabled=self.dtype != torch.float32):
            clean_canvas, clean_mask = self.denoiser(canvas, *others)
        return clean_canvas.float(), clean_mask.float()

    @staticmethod
    def _noise(condition: Condition, generator: torch.Generator) -> tuple[torch.Tensor, torch.Tensor]:
        canvas, mask = condition.scene.start_CSS, condition.start_mask_1RR
        return (
            torch.randn(canvas.shape, generator=generator).to(canvas.device),
            torch.randn(mask.shape, generator=generator).to(mask.device),
        )


def shown(denoiser: Denoiser, conditions: Sequence[Condition], canvases_BCSS: torch.Tensor) -> torch.Tensor:
    """The images [B, 3, R, R] of clean canvases, with the texture of their backgrounds that the canvas cannot hold; differentiable."""
    images = denoiser.image(canvases_BCSS)
    if conditions[0].scene.lost_3RR is None:
        return images
    return images + torch.stack([c.scene.lost_3RR for c in conditions if c.scene.lost_3RR is not None])


def _guidance(state: State) -> float:
    """Strength of the guidance where what is being drawn stands on its path: the mask while it is noisy, then the image."""
    low, high = state.condition.guided
    left = (state.time_mask or state.time_image) / (state.condition.tau or 1.0)
    return state.condition.guidance if low <= left <= high else 1.0


def _moved(
    states: Sequence[State],
    clean_image: torch.Tensor,
    clean_mask: torch.Tensor,
    to: Sequence[tuple[float, float]],
    move_image: bool,
) -> list[State]:
    """One Euler step of each state to its earlier times (image, mask).

    x + (to - time) v with v = (x - x_0-hat) / time. What stays at its time is the very tensor that it was. The batch moves as one: on a card, state by
    state would take as long as the network.
    """
    rows = [
        (_share(image, s.time_image), _share(mask, s.time_mask), image)
        for s, (image, mask) in zip(states, to, strict=True)
    ]
    device = clean_image.device
    kept_image, kept_mask, time = torch.tensor(rows, dtype=torch.float64).T.to(device)
    canvas = _mixed(torch.stack([s.canvas_CSS for s in states]), clean_image, kept_image)
    mask = _mixed(torch.stack([s.mask_1RR for s in states]), clean_mask, kept_mask)
    if move_image:
        canvas = _keep_surroundings(canvas, states, time.float())
    moved = zip(states, to, canvas, mask, strict=True)
    return [
        replace(
            s,
            canvas_CSS=new_canvas if image != s.time_image else s.canvas_CSS,
            mask_1RR=new_mask if masked != s.time_mask else s.mask_1RR,
            time_image=image,
            time_mask=masked,
        )
        for s, (image, masked), new_canvas, new_mask in moved
    ]


def _share(to: float, time: float) -> float:
    """Of a noisy value, what is left at an earlier time."""
    return 1.0 if to == time else to / time


def _mixed(noisy: torch.Tensor, clean: torch.Tensor, share_B: torch.Tensor) -> torch.Tensor:
    share = share_B.view(-1, 1, 1, 1)
    return share.float() * noisy + (1 - share).float() * clean


def _keep_surroundings(
    canvas_BCSS: torch.Tensor, states: Sequence[State], time_B: torch.Tensor
) -> torch.Tensor:
    """Outside the region the path is known: blending it in keeps brightness continuous over the border."""
    scenes = [state.condition.scene for state in states]
    background = torch.stack([scene.background_CSS for scene in scenes])
    region = torch.stack([scene.region_1SS for scene in scenes])
    known = noised(background, torch.stack([state.noise_CSS for state in states]), time_B)
    return region * canvas_BCSS + (1 - region) * known
