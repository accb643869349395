"""Generators made ready to be sampled from: LoRA in the weights, one type, recorded on a card, compiled."""

import copy
import dataclasses
import gc
import shutil
import weakref
from typing import Any

import pytest
import torch

from cdiff.config_file import load_config
from cdiff.data.run import Run
from cdiff.downstream.segmenter import build_segmenter, save_segmenter
from cdiff.errors import ConfigError
from cdiff.generator.compiling import Compiled
from cdiff.generator.denoiser import Denoiser, PixelDenoiser
from cdiff.generator.latent import LatentDenoiser
from cdiff.generator.recorded import Recorded
from cdiff.generator.sampling import Sampler
from cdiff.generator.states import Condition
from cdiff.safe.tokens import TokenBank
from cdiff.types import Revisions
from cdiff.wasm.dealing import recipe_of
from cdiff.wasm.models import KEPT, Models

SIDE = 64
on_a_card = pytest.mark.skipif(not torch.cuda.is_available(), reason="no NVIDIA GPU")


def latent(tiny_overrides, checkpoint, *more) -> LatentDenoiser:
    """As if it had been trained: what is silent at first speaks."""
    told = ["generator.backbone=latent", f"generator.weights={checkpoint}", f"generator.resolution={SIDE}"]
    config = load_config(None, [*tiny_overrides, *told, "generator.lora_rank=2", *more])
    torch.manual_seed(0)
    out = LatentDenoiser(config.generator, config.safe, checkpoint).eval()
    with torch.no_grad():
        for name, part in out.named_parameters():
            if part.requires_grad:
                part.add_(torch.randn_like(part), alpha=0.2 if "lora_" in name else 0.05)
    return out


def scene(device="cpu", seed=0, batch=2) -> Any:
    noise = torch.Generator().manual_seed(seed)
    canvas, known = torch.randn(2, batch, 4, SIDE // 8, SIDE // 8, generator=noise)
    mask = torch.randn(batch, 1, SIDE, SIDE, generator=noise)
    region = torch.zeros(batch, 1, SIDE, SIDE)
    region[:, :, 20:44, 16:40] = 1
    time = torch.rand(2, batch, generator=noise)
    tokens = torch.randn(batch, 9, 32, generator=noise)
    return [part.to(device) for part in (canvas, mask, *time, known, region, tokens)]


def sampled(denoiser: Denoiser, device: str, dtype: str = "float32", batch: int = 2) -> torch.Tensor:
    """Three candidates, of other strengths, in batches of two: the last one is padded."""
    draw = Sampler(denoiser, torch.zeros(9, 32, device=device), 4, batch, dtype)
    states = []
    for seed, tau in enumerate((1.0, 0.6, 0.3)):
        noise = torch.Generator().manual_seed(seed)
        image, start = (torch.rand(2, 3, SIDE, SIDE, generator=noise) * 2 - 1).to(device)
        region = torch.zeros(1, SIDE, SIDE, device=device)
        region[:, 20:44, 16:40] = 1
        tokens = torch.randn(9, 32, generator=noise).to(device)
        condition = Condition.of(denoiser, image, region, tokens, start, region * 2 - 1, 2.0, tau)
        states.append(draw.start_joint(condition, noise))
    return torch.stack([draw.image(s.condition, s.canvas_CSS) for s in draw.run(states)])


@torch.inference_mode()
def test_merging_lora_changes_nothing(tiny_overrides, checkpoint) -> None:
    learned = latent(tiny_overrides, checkpoint)
    ready = copy.deepcopy(learned)
    ready.for_sampling(torch.float32, compiled=False)
    assert "lora" not in str(ready.unet) and not any(p.requires_grad for p in ready.parameters())
    silent = copy.deepcopy(learned)
    for name, part in silent.named_parameters():
        if "lora_" in name:
            part.zero_()
    for a, b, without in zip(ready(*scene()), learned(*scene()), silent(*scene()), strict=True):
        assert (a - b).abs().max() < 1e-4
        assert (b - without).abs().max() > 1e-2, "LoRA itself does more than that"


@pytest.mark.parametrize("kept", ["float32", "bfloat16"])
@torch.inference_mode()
def test_one_type_is_as_near_to_float32_as_autocast(tiny_overrides, checkpoint, kept) -> None:
    exact = latent(tiny_overrides, checkpoint)
    told = [f"generator.weights_dtype={kept}", "sampling.dtype=bfloat16", "generator.bfloat16=true"]
    ready = latent(tiny_overrides, checkpoint, *told)
    ready.for_sampling(torch.bfloat16, compiled=False)
    assert {part.dtype for part in ready.unet.parameters()} == {torch.bfloat16}
    with torch.autocast("cpu", torch.bfloat16):
        auto, ours = exact(*scene()), ready(*scene())
    for a, b, right in zip(ours, auto, exact(*scene()), strict=True):
        assert a.dtype == torch.float32
        assert (a - right).square().mean() < 4 * (b.float() - right).square().mean()


def test_gradients_still_reach_what_is_denoised(tiny_overrides, checkpoint) -> None:
    """Arm B4 asks for them."""
    ready = latent(tiny_overrides, checkpoint)
    ready.for_sampling(torch.float32, compiled=False)
    canvas, *others = scene()
    ready(canvas.requires_grad_(), *others)[0].square().sum().backward()
    assert canvas.grad is not None and canvas.grad.abs().max() > 0


def test_a_float16_autoencoder_moves_images_by_a_fraction_of_a_grey_level(tiny_overrides, checkpoint) -> None:
    exact = latent(tiny_overrides, checkpoint)
    half = latent(tiny_overrides, checkpoint, "generator.vae_dtype=float16")
    image = torch.rand(1, 3, SIDE, SIDE, generator=torch.Generator().manual_seed(0)) * 2 - 1
    with torch.inference_mode():
        canvas = exact.canvas(image)
        assert half.canvas(image).dtype == torch.float32
        assert 0 < (half.image(canvas) - exact.image(canvas)).abs().mean() < 0.25 / 127.5
        for part in half.vae.parameters():
            part.mul_(100)
        with pytest.raises(ConfigError, match="vae_dtype=float32"):
            half.image(canvas)


def test_a_run_loads_its_generator_ready_to_be_sampled_from(tiny_config, tiny_generator, tmp_path) -> None:
    """As the tasks' recipe says, and once for each way."""
    run = Run(tmp_path / "run")
    revision = tiny_generator.save(run.checkpoints)
    TokenBank({}, "bank-0").save(run.checkpoint("bank-0").with_suffix(".safetensors"))
    models, named = Models(run, tiny_config), Revisions(revision, "bank-0")
    plain = recipe_of(tiny_config)
    first, _ = models.generator(named, plain)
    assert not any(part.requires_grad for part in first.denoiser.parameters())
    assert models.generator(named, plain)[0] is first
    other, _ = models.generator(named, dataclasses.replace(plain, sampler="euler, compiled"))
    assert isinstance(other.denoiser.unet, Compiled) and not isinstance(first.denoiser.unet, Compiled)
    kept = first.denoiser._recorded = Recorded()
    held: Any = object()
    kept._known[8] = held, (torch.zeros(8, 3),), (torch.zeros(8, 3),)
    models.draw_at_most(4)
    assert kept._known, "guidance draws twice as many at once"
    models.draw_at_most(2)
    assert not kept._known


def test_models_that_no_round_asks_for_any_more_are_let_go(tmp_path, tiny_config, tiny_generator) -> None:
    """Each round has a segmenter that stands, and a run may have hundreds."""
    run = Run(tmp_path / "run")
    models = Models(run, tiny_config)
    segmenters = [build_segmenter(tiny_config.downstream, seed) for seed in range(4)]
    judges = [save_segmenter(model, run.checkpoints, tiny_config.downstream) for model in segmenters]
    named = [Revisions("", "", segmenter=judge) for judge in judges]
    held = [weakref.ref(models.miners(revisions).segmenter) for revisions in named[:2]]
    models.miners(named[0])
    assert models.miners(named[0]).segmenter is held[0](), "loaded once"
    models.miners(named[2])
    gc.collect()
    assert held[0]() is not None and held[1]() is None, "who was asked for longest ago goes"
    models.miners(named[3])
    gc.collect()
    assert held[0]() is None


def test_a_generator_that_is_let_go_gives_its_recordings_back(tmp_path, tiny_config, tiny_generator) -> None:
    run, plain = Run(tmp_path / "run"), recipe_of(tiny_config)
    models, revision = Models(run, tiny_config), tiny_generator.save(run.checkpoints)
    TokenBank({}, "bank-0").save(run.checkpoint("bank-0").with_suffix(".safetensors"))
    first, _ = models.generator(Revisions(revision, "bank-0"), plain)
    kept = first.denoiser._recorded = Recorded()
    held: Any = object()
    kept._known[8] = held, (torch.zeros(8, 3),), (torch.zeros(8, 3),)
    for number in range(KEPT):
        assert models.generator(Revisions(revision, "bank-0"), plain)[0] is first and kept._known
        shutil.copytree(run.checkpoints / revision, run.checkpoints / f"later-{number}")
    for number in range(KEPT):
        models.generator(Revisions(f"later-{number}", "bank-0"), plain)
    assert not kept._known and models.generator(Revisions(revision, "bank-0"), plain)[0] is not first


def test_compiled_pairs_are_told_apart_from_others(tiny_config) -> None:
    wanted = tiny_config.resources.model_copy(update={"compile": True})
    recipe = recipe_of(tiny_config.model_copy(update={"resources": wanted}))
    assert recipe.compiled and not recipe_of(tiny_config).compiled


def test_without_a_compiler_the_remedy_is_named(tiny_config, monkeypatch) -> None:
    monkeypatch.setenv("PATH", "/nowhere")
    with pytest.raises(ConfigError, match=r"resources\.compile=false"):
        _pixels(tiny_config).for_sampling(torch.float32, compiled=True)


def test_a_dropped_generator_is_freed_at_once(tiny_config) -> None:
    """Its memory is a card's, which Python's collector does not see."""
    ready = _pixels(tiny_config)
    ready.for_sampling(torch.float32, compiled=False)
    ready._recorded = Recorded()
    gone = weakref.ref(ready)
    gc.disable()
    try:
        del ready
        assert gone() is None
    finally:
        gc.enable()


def test_what_is_sampled_from_keeps_no_gradients(tiny_overrides, checkpoint) -> None:
    ready = latent(tiny_overrides, checkpoint)
    ready(*scene())[0].square().sum().backward()
    ready.for_sampling(torch.bfloat16, compiled=False)
    assert all(part.grad is None for part in ready.parameters())


@pytest.mark.long
def test_a_compiled_generator_makes_the_same_pictures(tiny_overrides, checkpoint) -> None:
    """Also of one that comes from its training, with gradients."""
    plain = latent(tiny_overrides, checkpoint)
    ready = copy.deepcopy(plain)
    ready(*scene())[0].square().sum().backward()
    ready.for_sampling(torch.float32, compiled=True)
    assert (sampled(ready, "cpu") - sampled(plain, "cpu")).abs().max() < 1e-3


@pytest.mark.gpu
@on_a_card
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_recorded_network_gives_the_same_bits(tiny_overrides, checkpoint, dtype) -> None:
    ready = latent(tiny_overrides, checkpoint).to("cuda")
    ready.for_sampling(dtype, compiled=False)
    for batch in (2, 3, 2):
        for seed in range(2):
            given = scene("cuda", seed, batch)
            with torch.inference_mode(), torch.autocast("cuda", dtype, enabled=dtype != torch.float32):
                pairs = zip(ready(*given), ready.evaluate(*given), strict=True)
            assert all(torch.equal(a, b) for a, b in pairs)
    assert ready._recorded is not None and len(ready._recorded._known) == 2


@pytest.mark.gpu
@on_a_card
def test_on_a_card_a_candidate_does_not_depend_on_its_neighbours(tiny_overrides, checkpoint) -> None:
    """Who is guided and who is not pass the network in batches of other sizes."""
    ready = latent(tiny_overrides, checkpoint).to("cuda")
    ready.for_sampling(torch.bfloat16, compiled=False)

    def drawn(*wanted: tuple[int, float, float, tuple[float, float]]) -> list[torch.Tensor]:
        draw, states = Sampler(ready, torch.zeros(9, 32, device="cuda"), 4, 3, "bfloat16"), []
        for seed, guidance, tau, guided in wanted:
            _, mask, *_, region, tokens = (part[0] for part in scene("cuda", seed))
            image = torch.rand(3, SIDE, SIDE, generator=torch.Generator().manual_seed(seed)).to("cuda")
            condition = Condition.of(ready, image, region, tokens, image, mask, guidance, tau, guided)
            states.append(draw.start_joint(condition, torch.Generator().manual_seed(seed)))
        return [torch.cat([s.canvas_CSS.flatten(), s.mask_1RR.flatten()]) for s in draw.run(states)]

    all_along, partly, never = (1, 3.0, 1.0, (0.0, 1.0)), (2, 3.0, 0.5, (0.4, 0.8)), (3, 1.0, 0.7, (0.0, 1.0))
    among = drawn(all_along, partly, never)
    for one, expected in zip((all_along, partly, never), among, strict=True):
        assert torch.equal(drawn(one)[0], expected)


@pytest.mark.gpu
@on_a_card
def test_a_card_draws_what_a_cpu_draws(tiny_overrides, checkpoint, tiny_config, monkeypatch) -> None:
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)
    for plain in (latent(tiny_overrides, checkpoint), _pixels(tiny_config)):
        ready = copy.deepcopy(plain).to("cuda")
        ready.for_sampling(torch.float32, compiled=False)
        here, there = sampled(plain, "cpu"), sampled(ready, "cuda").cpu()
        assert (here - there).abs().max() < 1e-2
        assert torch.equal(there, sampled(ready, "cuda").cpu())


def _pixels(config) -> PixelDenoiser:
    torch.manual_seed(0)
    settings = config.generator.model_copy(update={"resolution": SIDE})
    return PixelDenoiser(settings, config.safe).eval()
