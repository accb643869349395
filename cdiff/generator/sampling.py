"""Guided few-step sampling: joint, mask first, given mask, and mask from image, from noise or from a pasted target.

A state holds one candidate; states are denoised in fixed micro-batches, padded when short, each with noise from its own
generator: what a candidate becomes does not depend on its neighbours. On CPUs this is done in float32.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from copy import copy
from dataclasses import replace

import torch

from cdiff.generator.denoiser import Denoiser
from cdiff.generator.states import Condition, State
from cdiff.generator.stepping import Kept, Step, paths, steps_of, wide

# Maps conditions and their expected canvases [B, C, S, S] to moved ones.
Guide = Callable[[Sequence[Condition], torch.Tensor], torch.Tensor]


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
        # predictions with and without the tokens in one batch: on a card twice the size takes less than two of it
        self.joined = null_ND.is_cuda

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
            canvases = self._expected(chunk + [chunk[-1]] * (self.micro_batch - len(chunk)))
            heading = zip(chunk, self.denoiser.bounded(canvases), strict=False)
            out += [canvas if state.time_image > 0 else state.canvas_CSS for state, canvas in heading]
        return out

    def expected_images(self, states: Sequence[State]) -> list[torch.Tensor]:
        """The images [3, R, R] of `expected`, for early judging."""
        heading = zip(states, self.expected(states), strict=True)
        return [self.image(state.condition, canvas) for state, canvas in heading]

    @torch.inference_mode()
    def image(self, condition: Condition, canvas_CSS: torch.Tensor) -> torch.Tensor:
        """The image [3, R, R] of a clean canvas, by itself: it does not depend on others.

        From start strength 0 nothing is drawn: it is the pasted target itself, and not what an autoencoder leaves of it.
        """
        if condition.tau == 0 and condition.scene.lost_3RR is not None:
            return condition.start_image_3RR
        return shown(self.denoiser, [condition], canvas_CSS[None])[0]

    @torch.inference_mode()
    def _run_chunk(
        self, states: list[State], share: float, move_image: bool, guide: Guide | None
    ) -> list[State]:
        times = paths(states, share, self.steps, move_image)
        kept, canvas, mask = Kept.of(states), *_stacked(states)
        conditions = [s.condition for s in states]
        for step in steps_of(conditions, times, canvas.device):
            clean_canvas, clean_mask = self._clean(kept, canvas, mask, step)
            clean_canvas = guide(conditions, clean_canvas) if guide else clean_canvas
            canvas, mask = step.moved(kept, canvas, mask, clean_canvas, clean_mask)
        return [
            replace(
                s,  # what stays at its time is the very tensor that it was
                canvas_CSS=new_canvas if image != s.time_image else s.canvas_CSS,
                mask_1RR=new_mask if masked != s.time_mask else s.mask_1RR,
                time_image=image,
                time_mask=masked,
            )
            for s, (image, masked), new_canvas, new_mask in zip(states, times[-1], canvas, mask, strict=True)
        ]

    @torch.inference_mode()
    def _expected(self, states: Sequence[State]) -> torch.Tensor:
        times = [[(s.time_image, s.time_mask) for s in states], [(0.0, 0.0)] * len(states)]
        canvas, mask = _stacked(states)
        (step,) = steps_of([s.condition for s in states], times, canvas.device)
        return self._clean(Kept.of(states), canvas, mask, step)[0]

    @torch.inference_mode()
    def _clean(
        self, kept: Kept, canvas: torch.Tensor, mask: torch.Tensor, step: Step
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Canvases and masks that are behind noisy ones, guided where that is wanted."""
        inputs = canvas, mask, step.time_image, step.time_mask, kept.known_BKSS, kept.region_B1RR
        if not step.with_guidance:
            return self._denoised(*inputs, kept.tokens_BND)
        told, untold = self._with_and_without(inputs, kept.tokens_BND)
        # who is not guided has the prediction of a batch that nobody guides, bit by bit, whatever its neighbours want
        plain = self._denoised(*inputs, kept.tokens_BND) if self.joined and step.without else told
        scale = wide(step.scale)
        canvas, mask = (
            torch.where(scale == 1, alone, null + scale * (known - null))
            for alone, known, null in zip(plain, told, untold, strict=True)
        )
        return canvas, mask

    def _with_and_without(
        self, inputs: Sequence[torch.Tensor], tokens_BND: torch.Tensor
    ) -> tuple[tuple[torch.Tensor, torch.Tensor], tuple[torch.Tensor, torch.Tensor]]:
        """Predictions that are told the tokens, and that are not."""
        null = self.null_ND.expand_as(tokens_BND)
        if not self.joined:
            return self._denoised(*inputs, tokens_BND), self._denoised(*inputs, null)
        both = self._denoised(*(torch.cat([part, part]) for part in inputs), torch.cat([tokens_BND, null]))
        (canvas, canvas_null), (mask, mask_null) = (part.chunk(2) for part in both)
        return (canvas, mask), (canvas_null, mask_null)

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


def _stacked(states: Sequence[State]) -> tuple[torch.Tensor, torch.Tensor]:
    return torch.stack([s.canvas_CSS for s in states]), torch.stack([s.mask_1RR for s in states])
