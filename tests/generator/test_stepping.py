"""The times of a batch's candidates, who asks the network for what, and both predictions in one batch."""

from dataclasses import replace
from typing import Any

import pytest
import torch

from cdiff.generator.recorded import Recorded
from cdiff.generator.sampling import Sampler
from cdiff.generator.states import Condition, State
from cdiff.generator.stepping import paths, steps_of


def _state(generator: Any, seed: int, guidance: float = 3.0, tau: float = 1.0, **more: Any) -> State:
    noise = torch.Generator().manual_seed(seed)
    region = torch.zeros(1, 32, 32)
    region[:, 8:24, 8:24] = 1
    image, start = torch.rand(2, 3, 32, 32, generator=noise) * 2 - 1
    tokens = torch.randn(generator.safe.count, 32, generator=noise)
    told = image, region, tokens, start, region * 2 - 1, guidance, tau
    condition = Condition.of(generator.denoiser, *told, **more)
    return _sampler(generator).start_joint(condition, noise)


def _sampler(generator: Any, micro_batch: int = 3) -> Sampler:
    return Sampler(generator.denoiser, generator.safe.null[0].detach(), 10, micro_batch)


def test_each_candidate_walks_its_own_way_and_rests(tiny_generator) -> None:
    whole, short, done = (_state(tiny_generator, seed, tau=tau) for seed, tau in ((0, 1.0), (1, 0.2), (2, 0)))
    reading = replace(whole, time_image=0.0)
    times = paths([whole, short, done, reading], share=1.0, steps=10, move_image=True)
    assert len(times) == 11
    assert times[0] == [(1, 1), (0.2, 0.2), (0, 0), (0, 1)] and times[-1] == [(0, 0)] * 4
    assert times[1][1] == pytest.approx((0.1, 0.1)) and times[2][1] == times[10][1] == (0, 0)
    assert times[4][3] == pytest.approx((0, 0.6))
    assert paths([done], share=1.0, steps=10, move_image=True) == [[(0, 0)]]
    half = paths([whole], share=0.5, steps=10, move_image=False)
    assert len(half) == 6 and half[-1] == [(1, 0.5)]


def test_who_rests_asks_for_nothing(tiny_generator) -> None:
    """At its end the short one would stand where nobody is guided."""
    states = [_state(tiny_generator, 0, tau=1.0), _state(tiny_generator, 1, tau=0.3)]
    states = [replace(s, condition=replace(s.condition, guided=(0.15, 1.0))) for s in states]
    times = paths(states, share=1.0, steps=10, move_image=True)
    asked = [
        (step.with_guidance, step.without)
        for step in steps_of([s.condition for s in states], times, torch.device("cpu"))
    ]
    assert asked == [(True, False)] * 9 + [(False, True)]


def test_predictions_with_and_without_tokens_may_pass_in_one_batch(tiny_generator) -> None:
    states = [
        _state(tiny_generator, seed, guidance, tau, guided=guided)
        for seed, guidance, tau, guided in (
            (0, 3.0, 1.0, (0.0, 1.0)),
            (1, 3.0, 0.5, (0.4, 0.8)),
            (2, 1.0, 0.7, (0.0, 1.0)),
        )
    ]
    sizes: list[int] = []
    hook = tiny_generator.denoiser.register_forward_pre_hook(lambda _, given: sizes.append(len(given[0])))
    apart, joined = _sampler(tiny_generator), _sampler(tiny_generator)
    joined.joined = True
    try:
        expected = apart.run(states)
        assert set(sizes) == {3} and len(sizes) == 20
        sizes.clear()
        found = joined.run(states)
        assert sizes == [6, 3] * 7 + [6] * 3, "once more for who is not guided, while it moves"
        for one, other in zip(found, expected, strict=True):
            assert torch.allclose(one.canvas_CSS, other.canvas_CSS, atol=1e-5)
            assert torch.allclose(one.mask_1RR, other.mask_1RR, atol=1e-5)
        for state, among in zip(states, found, strict=True):
            alone = joined.run([state])[0]
            assert torch.equal(alone.canvas_CSS, among.canvas_CSS)
            assert torch.equal(alone.mask_1RR, among.mask_1RR)
    finally:
        hook.remove()


def test_recordings_of_larger_batches_are_forgotten_where_memory_is_short() -> None:
    kept = Recorded()
    held: Any = object()
    for size in (4, 8):
        kept._known[size] = (held, (torch.zeros(size, 3),), (torch.zeros(size, 3),))
    kept.forget(above=8)
    assert len(kept._known) == 2
    kept.forget(above=4)
    assert not kept._known and kept._pool is None
