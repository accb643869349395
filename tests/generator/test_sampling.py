"""The four uses of the denoiser, and that a candidate does not depend on its neighbours."""

from dataclasses import replace

import pytest
import torch

from cdiff.generator.sampling import Sampler
from cdiff.generator.states import Condition


def _condition(generator, seed: int, guidance: float = 2.0, tau: float = 1.0) -> Condition:
    noise = torch.Generator().manual_seed(seed)
    region = torch.zeros(1, 32, 32)
    region[:, 8:24, 8:24] = 1
    return Condition.of(
        generator.denoiser,
        background_3RR=torch.rand(3, 32, 32, generator=noise) * 2 - 1,
        region_1RR=region,
        tokens_ND=torch.randn(generator.safe.count, 32, generator=noise),
        start_image_3RR=torch.rand(3, 32, 32, generator=noise) * 2 - 1,
        start_mask_1RR=region * 2 - 1,
        guidance=guidance,
        tau=tau,
    )


@pytest.fixture
def sampler(tiny_generator) -> Sampler:
    return Sampler(tiny_generator.denoiser, tiny_generator.safe.null[0].detach(), steps=4, micro_batch=3)


def _seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def test_joint_synthesis_finishes_image_and_mask_together(sampler, tiny_generator) -> None:
    state = sampler.run([sampler.start_joint(_condition(tiny_generator, 0), _seeded(1))])[0]
    assert state.time_image == state.time_mask == 0
    assert torch.isfinite(state.canvas_CSS).all() and torch.isfinite(state.mask_1RR).all()


def test_mask_first_draws_the_mask_while_the_image_stays_noise(sampler, tiny_generator) -> None:
    start = sampler.start_mask(_condition(tiny_generator, 0), _seeded(1))
    state = sampler.run([start], move_image=False)[0]
    assert state.time_mask == 0 and state.time_image == 1
    assert torch.equal(state.canvas_CSS, start.canvas_CSS)
    assert not torch.equal(state.mask_1RR, start.mask_1RR)


def test_a_given_mask_is_left_alone_while_its_image_is_made(sampler, tiny_generator) -> None:
    condition = _condition(tiny_generator, 0)
    state = sampler.run([sampler.start_image(condition, condition.start_mask_1RR, _seeded(1))])[0]
    assert torch.equal(state.mask_1RR, condition.start_mask_1RR)
    assert state.time_image == 0


def test_the_mask_is_read_from_a_finished_image_without_changing_it(sampler, tiny_generator) -> None:
    condition = _condition(tiny_generator, 0)
    image = condition.start_image_3RR
    state = sampler.run([sampler.start_mask_from_image(condition, image, _seeded(1))], move_image=False)[0]
    assert torch.equal(state.canvas_CSS, image)
    assert state.time_mask == 0


def test_a_candidate_does_not_depend_on_its_neighbours(sampler, tiny_generator) -> None:
    def start(seed: int, guidance: float, tau: float):
        return sampler.start_joint(_condition(tiny_generator, seed, guidance, tau), _seeded(seed))

    alone = sampler.run([start(5, 2.0, 0.5)])[0]
    neighbours = [start(1, 1.0, 1.0), start(2, 3.0, 0.25), start(5, 2.0, 0.5), start(3, 0.0, 0.75)]
    among = sampler.run(neighbours)[2]
    assert torch.equal(alone.canvas_CSS, among.canvas_CSS)
    assert torch.equal(alone.mask_1RR, among.mask_1RR)


def test_stopping_on_the_way_and_going_on_is_the_same_as_one_run(sampler, tiny_generator) -> None:
    start = sampler.start_joint(_condition(tiny_generator, 0), _seeded(1))
    halfway = sampler.run([start], share=0.5)
    assert halfway[0].time_image == pytest.approx(0.5)
    once, twice = sampler.run([start])[0], sampler.run(halfway)[0]
    assert torch.allclose(once.canvas_CSS, twice.canvas_CSS, atol=1e-4)


def test_outside_the_region_the_finished_crop_is_the_background(sampler, tiny_generator) -> None:
    condition = _condition(tiny_generator, 0)
    state = sampler.run([sampler.start_joint(condition, _seeded(1))])[0]
    outside = condition.region_1RR.expand(3, -1, -1) == 0
    assert torch.allclose(state.canvas_CSS[outside], condition.background_3RR[outside], atol=1e-6)


def test_start_strength_zero_returns_the_pasted_target(sampler, tiny_generator) -> None:
    condition = _condition(tiny_generator, 0, tau=0.0)
    state = sampler.run([sampler.start_joint(condition, _seeded(1))])[0]
    assert torch.equal(state.canvas_CSS, condition.start_image_3RR)
    assert torch.equal(state.mask_1RR, condition.start_mask_1RR)


def test_guidance_one_is_the_plain_conditional_prediction(sampler, tiny_generator) -> None:
    base, strong = (
        sampler.run([sampler.start_joint(_condition(tiny_generator, 0, guidance), _seeded(1))])[0]
        for guidance in (1.0, 4.0)
    )
    assert not torch.equal(base.canvas_CSS, strong.canvas_CSS)


def test_guidance_on_a_part_of_the_path_costs_two_passes_there_alone(sampler, tiny_generator) -> None:
    passes: list[float] = []
    hook = tiny_generator.denoiser.register_forward_pre_hook(
        lambda _, given: passes.append(float(given[2][0]))
    )

    def made(guidance: float, low: float, high: float, tau: float = 1.0):
        condition = replace(_condition(tiny_generator, 0, guidance, tau), guided=(low, high))
        passes.clear()
        return sampler.run([sampler.start_joint(condition, _seeded(1))])[0], list(passes)

    try:
        some, seen = made(3.0, 0.4, 0.8)
        assert seen == [1.0, 0.75, 0.75, 0.5, 0.5, 0.25]
        _, seen = made(3.0, 0.4, 0.8, tau=0.5)
        assert seen == [0.5, 0.25, 0.25], "shares of the path that is run"
        everywhere, seen = made(3.0, 0.0, 1.0)
        assert len(seen) == 8
        plain, _ = made(1.0, 0.0, 1.0)
        none, seen = made(3.0, 0.1, 0.2)
        assert len(seen) == 4 and torch.equal(none.canvas_CSS, plain.canvas_CSS)
    finally:
        hook.remove()
    assert not torch.equal(some.canvas_CSS, plain.canvas_CSS)
    assert not torch.equal(some.canvas_CSS, everywhere.canvas_CSS)
