"""What is drawn, and how far it has come: the condition that all candidates of a task share, and one candidate's state."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from cdiff.generator.denoiser import Denoiser, hide


@dataclass(frozen=True, slots=True)
class Scene:
    """What a denoiser works on of one task's images: canvases (cdiff.generator.denoiser), each encoded once."""

    background_CSS: torch.Tensor
    start_CSS: torch.Tensor
    known_KSS: torch.Tensor
    region_1SS: torch.Tensor
    lost_3RR: torch.Tensor | None  # what encoding and decoding lose of the background's texture


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
        """A condition with its images encoded for a denoiser, apart from those of others: what comes of a task depends on no other."""
        hidden = hide(background_3RR, region_1RR)
        canvases = denoiser.canvas(torch.stack([background_3RR, start_image_3RR, hidden]))
        background, start, known = canvases
        lost = background_3RR - denoiser.image(canvases[:1])[0] if denoiser.lossy else None
        scene = Scene(background, start, known, denoiser.place(region_1RR[None])[0], lost)
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
