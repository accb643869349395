"""The latent backbone: a pretrained checkpoint begins as it was, learns masks, and goes through every arm."""

import dataclasses

import numpy as np
import pytest
import torch
from diffusers import AutoencoderKL, DDIMScheduler, UNet2DConditionModel

from cdiff.config_file import load_config
from cdiff.generator.latent import LatentDenoiser
from cdiff.generator.model import Generator
from cdiff.generator.objective import Clean
from cdiff.generator.sampling import Sampler
from cdiff.generator.states import Condition
from cdiff.generator.training import train_generator
from cdiff.types import GenerationTask, Outcome, Pose, Revisions, Strengths
from cdiff.wasm.adaptation import adapt
from cdiff.wasm.dealing import recipe_of
from cdiff.wasm.mining import Miners, make_pairs
from cdiff.wasm.noise import NoiseMiner
from tests.conftest import write_checkpoint

SIDE = 64


def settings(tiny_overrides, checkpoint, *more):
    latent = ["generator.backbone=latent", f"generator.weights={checkpoint}", f"generator.resolution={SIDE}"]
    return load_config(None, [*tiny_overrides, *latent, "generator.lora_rank=2", *more])


def denoiser(config) -> LatentDenoiser:
    torch.manual_seed(0)
    return Generator(config.generator, config.safe).denoiser.eval()  # type: ignore[return-value]


def scene(seed=0, batch=2):
    noise = torch.Generator().manual_seed(seed)
    region = torch.zeros(batch, 1, SIDE, SIDE)
    region[:, :, 20:44, 16:40] = 1
    image = torch.rand(batch, 3, SIDE, SIDE, generator=noise) * 2 - 1
    mask = torch.randn(batch, 1, SIDE, SIDE, generator=noise)
    latents = torch.randn(batch, 4, SIDE // 8, SIDE // 8, generator=noise)
    return image, mask, region, latents, torch.randn(batch, 9, 32, generator=noise)


@pytest.mark.parametrize("predicts", ["epsilon", "v_prediction"])  # SD 1.x, SD 2.x
@pytest.mark.parametrize("channels", [4, 9])  # 9: inpainting
@torch.inference_mode()
def test_the_wrapped_network_begins_as_the_original(tmp_path, tiny_overrides, channels, predicts) -> None:
    """Whatever mask, region and second time say, and with LoRA in place: exactly the original's prediction."""
    folder = write_checkpoint(tmp_path, channels, prediction_type=predicts)
    ours = denoiser(settings(tiny_overrides, folder)).double()
    original = UNet2DConditionModel.from_pretrained(folder, subfolder="unet").double().eval()
    _image, mask, region, latents, tokens = (part.double() for part in scene())
    sigma = ours.sigmas[[100, 600]]
    time = sigma / (1 + sigma)
    noisy = latents / ((1 - time).square() + time.square()).sqrt().view(-1, 1, 1, 1)
    known = torch.randn_like(latents)
    hole = torch.nn.functional.max_pool2d(region, 8)
    given = torch.cat([noisy, hole, known], dim=1) if channels == 9 else noisy
    steps = torch.tensor([100.0, 600.0]).double()
    told = original(given, steps, encoder_hidden_states=ours.words(tokens)).sample
    again = DDIMScheduler.from_pretrained(folder, subfolder="scheduler")
    clean, drawn = ours(latents, mask, time, torch.tensor([0.3, 0.9]).double(), known, region, tokens)
    level = again.alphas_cumprod[[100, 600]].double().view(-1, 1, 1, 1)
    expected = (
        level.sqrt() * noisy - (1 - level).sqrt() * told
        if predicts == "v_prediction"
        else (noisy - (1 - level).sqrt() * told) / level.sqrt()
    )
    assert torch.allclose(clean, expected, rtol=1e-4, atol=1e-4)  # the table of levels has float32's digits
    assert torch.equal(drawn, torch.zeros_like(drawn)), "of masks nothing is known yet"
    codes = torch.cat([given, *([] if channels == 9 else [known])], dim=1)
    more = torch.randn(2, 128, SIDE // 8, SIDE // 8).double()
    wide = ours.unet(
        torch.cat([codes, more], dim=1),
        steps,
        encoder_hidden_states=ours.words(tokens),
        class_labels=torch.tensor([300.0, 900.0]).double(),
    ).sample
    assert torch.allclose(wide[:, :4], told, rtol=0, atol=1e-12)


@torch.inference_mode()
def test_a_step_of_the_sampler_is_a_step_of_ddim(tiny_overrides, checkpoint) -> None:
    ours = denoiser(settings(tiny_overrides, checkpoint))
    scheduler = DDIMScheduler.from_pretrained(checkpoint, subfolder="scheduler", clip_sample=False)
    scheduler.set_timesteps(10)
    now, then = int(scheduler.timesteps[3]), int(scheduler.timesteps[4])
    image, _, region, latents, tokens = scene(batch=1)
    everywhere = torch.ones_like(region[0])
    condition = Condition.of(ours, image[0], everywhere, tokens[0], image[0], region[0] * 2 - 1)
    time, to = (float(s / (1 + s)) for s in ours.sigmas[[now, then]])
    sampler = Sampler(ours, tokens[0], steps=1, micro_batch=1)
    start = sampler.start_image(
        dataclasses.replace(condition, tau=time), region[0] * 2 - 1, torch.Generator()
    )
    start = dataclasses.replace(start, canvas_CSS=latents[0])
    (state,) = sampler.run([start], share=1 - to / time)
    scale = ((1 - time) ** 2 + time**2) ** 0.5
    original = UNet2DConditionModel.from_pretrained(checkpoint, subfolder="unet").eval()
    told = original(latents / scale, now, encoder_hidden_states=ours.words(tokens)).sample
    expected = scheduler.step(told, now, latents / scale).prev_sample
    there = state.canvas_CSS / ((1 - to) ** 2 + to**2) ** 0.5
    assert state.time_image == pytest.approx(to)
    assert torch.allclose(there, expected[0], atol=2e-4)


def test_thin_cracks_survive_their_way_into_the_network_and_back(tiny_overrides, checkpoint) -> None:
    ours = denoiser(settings(tiny_overrides, checkpoint))
    crack = -torch.ones(1, 1, SIDE, SIDE)
    crack[:, :, 30, 3:60] = 1
    assert torch.equal(ours.codec.decode(ours.codec.encode(crack)), crack)
    assert ours.codec.encode(crack).shape == (1, 64, SIDE // 8, SIDE // 8)


@torch.no_grad()
def test_a_photo_that_nothing_is_painted_on_comes_back_with_its_texture(tiny_overrides, checkpoint) -> None:
    """The autoencoder blurs; what it loses of the background is given back."""
    ours = denoiser(settings(tiny_overrides, checkpoint))
    image, mask, region, _, tokens = (part[0] for part in scene())
    condition = Condition.of(ours, image, region, tokens, image, mask)
    sampler = Sampler(ours, tokens, steps=2, micro_batch=1)
    blurred = ours.image(condition.scene.background_CSS[None])[0]
    assert (blurred - image).abs().mean() > 0.1
    assert torch.allclose(sampler.image(condition, condition.scene.background_CSS), image, atol=1e-6)


@pytest.fixture(scope="module")
def trained(tmp_path_factory, photos, tiny_overrides, checkpoint):
    folder = tmp_path_factory.mktemp("latent")
    config = settings(tiny_overrides, checkpoint, "generator.prompt=a pit", "generator.steps=4")
    ids = [sample.sample_id for sample in photos.samples]
    normals = [sample.sample_id for sample in photos.samples if sample.is_normal]
    done = train_generator(photos, photos.all_targets(ids), normals, config, folder)
    return config, folder / done.revision, done


def test_training_changes_what_is_learned_and_nothing_else(trained, checkpoint) -> None:
    config, folder, done = trained
    assert all(np.isfinite(done.losses))
    generator = Generator.load(folder)
    torch.manual_seed(config.generator.seed)
    fresh = Generator(config.generator, config.safe).learned()
    after, learned = dict(generator.named_parameters()), generator.learned()
    assert all(not torch.equal(after[name], fresh[name]) for name in learned if ".lora_B." in name)
    for part in ("conv_in", "conv_out", "class_embedding", "attn2.to_k", "attn2.to_v", "words"):
        assert any(part in name and not torch.equal(after[name], fresh[name]) for name in learned), part
    frozen = after.keys() - learned
    original = UNet2DConditionModel.from_pretrained(checkpoint, subfolder="unet").state_dict()
    vae = AutoencoderKL.from_pretrained(checkpoint, subfolder="vae").state_dict()
    compared = 0
    for name in frozen:
        _, part, rest = name.split(".", 2)
        before = (original if part == "unet" else vae)[rest.replace(".base_layer.", ".")]
        assert torch.equal(after[name], before), name
        compared += 1
    assert compared > 30


def test_a_checkpoint_holds_what_was_learned_and_names_the_rest(trained, checkpoint, tmp_path) -> None:
    _config, folder, _ = trained
    generator = Generator.load(folder)
    sizes = {name: p.numel() for name, p in generator.named_parameters()}
    whole = sum(sizes.values()) * 4
    assert (folder / "model.safetensors").stat().st_size < 0.75 * whole  # on a real one, a thirtieth
    again = Generator.load(folder)
    _image, mask, region, latents, tokens = scene()
    time = torch.tensor([0.4, 0.8])
    with torch.inference_mode():
        told = [
            one.denoiser(latents, mask, time, time, latents, region, tokens)[0] for one in (generator, again)
        ]
    assert torch.equal(*told)
    assert again.save(tmp_path) == folder.name


def _tasks(photos, config, mode, arm, tau):
    config = config.model_copy(
        update={
            "sampling": config.sampling.model_copy(update={"mode": mode}),
            "wasm": config.wasm.model_copy(update={"arm": arm, "candidates": 2}),
        }
    )
    normal = next(s for s in photos.samples if s.is_normal)
    shown = photos.all_targets([s.sample_id for s in photos.samples])[:2]
    return [
        GenerationTask(
            recipe=recipe_of(config),
            reference=target.target_id,
            background=normal.sample_id,
            pose=Pose(48, 40, 0.0, 1.0, False, 0.0, 1.6),
            strengths=Strengths(2.0, tau, gradient_strength=0.05),
            seed=number,
            revisions=Revisions("g", "b"),
        )
        for number, target in enumerate(shown)
    ]


@pytest.mark.parametrize(
    ("mode", "arm"),
    [("joint", "B0"), ("mask_first", "B1"), ("given_mask", "B2"), ("given_mask", "B4")],
)
def test_pairs_are_made_by_every_arm_and_the_background_stays(trained, photos, mode, arm) -> None:
    config, folder, _ = trained
    generator = Generator.load(folder)
    bank = generator.bank(photos, photos.all_targets(s.sample_id for s in photos.samples))
    finds = torch.nn.Conv2d(3, 1, 3, padding=1)
    miners = Miners(
        judge=lambda image, target, layout: float(image[target].mean()) if target.any() else -np.inf,
        segmenter=finds,
        noise=NoiseMiner(channels=4),
    )
    tasks = _tasks(photos, config, mode, arm, 0.6)
    together = make_pairs(generator, bank, tasks, photos, config, miners)
    alone = make_pairs(generator, bank, tasks[1:], photos, config, miners)
    assert np.array_equal(together[1].image, alone[0].image), "not by the neighbours"
    for pair in together:
        changed = (pair.image != pair.layout.photo).any(axis=2)
        region = np.zeros(changed.shape, bool)
        left, top, right, bottom = pair.layout.box
        region[top:bottom, left:right] = pair.layout.canvas.region
        assert changed.any() and not (changed & ~region).any()


def test_from_start_strength_0_a_copy_is_the_real_target_itself(trained, photos) -> None:
    """Not what the autoencoder leaves of it: a rival of copies would be weaker than copy-paste is."""
    config, folder, _ = trained
    generator = Generator.load(folder)
    bank = generator.bank(photos, photos.all_targets(s.sample_id for s in photos.samples))
    miners = Miners(judge=lambda image, target, layout: 0.0)
    for pair in make_pairs(
        generator, bank, _tasks(photos, config, "given_mask", "B1", 0.0), photos, config, miners
    ):
        left, top, right, bottom = pair.layout.box
        inside = pair.layout.canvas.mask > 0.99
        made = pair.image[top:bottom, left:right].astype(float)
        assert inside.any() and np.abs(made - pair.layout.canvas.pasted)[inside].max() <= 1


def test_what_mining_learns_is_learned_on_latents(photos, tiny_overrides, checkpoint, tmp_path) -> None:
    """The difficulty token (B3) with weights in bfloat16 and a batch in parts; the noise miner (B2) through the autoencoder."""
    narrow = ["generator.weights_dtype=bfloat16", "sampling.dtype=bfloat16", "generator.accumulate=2"]
    config = settings(
        tiny_overrides, checkpoint, *narrow, "wasm.token_steps=3", "wasm.miner_steps=2", "wasm.arm=B3+B2"
    )
    generator = Generator(config.generator, config.safe).eval()
    targets = photos.all_targets([sample.sample_id for sample in photos.samples])
    rows = [
        Outcome(
            t.target_id,
            t.sample_id,
            t.category,
            t.type,
            t.group,
            0,
            0.1 + n,
            0.5,
            0.2,
            0.1,
            0.5,
            0.1,
            0.1,
            0.2,
        )
        for n, t in enumerate(targets)
    ]
    bank = generator.bank(photos, targets)
    miners = Miners(segmenter=torch.nn.Conv2d(3, 1, 3, padding=1))
    tasks = _tasks(photos, config, "mask_first", "B3+B2", 0.6)
    revisions = adapt(generator, bank, miners, tasks, rows, photos, config, tmp_path, 0)
    miner = NoiseMiner.load(tmp_path / f"{revisions.miner}.safetensors")
    assert miner.out.weight.shape[0] == 8, "mean and spread of four latent channels"
    assert float(miner.out.weight.detach().abs().sum()) > 0, "a gradient came through the autoencoder"
    assert (tmp_path / f"{revisions.token}.safetensors").exists()


def test_memory_is_saved_without_another_result(tiny_overrides, checkpoint) -> None:
    """Activations computed again give the same gradients; the frozen weights take half in bfloat16."""
    plain = settings(tiny_overrides, checkpoint)
    frugal = settings(
        tiny_overrides, checkpoint, "generator.gradient_checkpointing=true", "generator.attention=math"
    )
    slopes, counts = [], []
    for config in (plain, frugal):
        one = denoiser(config).train()
        image, mask, region, latents, tokens = scene()
        time = torch.tensor([0.4, 0.8])
        passes: list[int] = []
        one.unet.down_blocks[0].resnets[0].register_forward_pre_hook(lambda *_, seen=passes: seen.append(1))
        one(latents, mask, time, time, latents, region, tokens)[0].square().mean().backward()
        slopes.append(one.unet.conv_in.weight.grad)
        counts.append(len(passes))
    assert counts == [1, 2], "once, and again in the backward pass"
    kinds = {type(processor).__name__ for processor in one.unet.attn_processors.values()}
    assert kinds == {"_Attention"}
    assert slopes[0] is not None and torch.allclose(slopes[0], slopes[1], atol=1e-5)
    half = settings(tiny_overrides, checkpoint, "generator.weights_dtype=bfloat16", "sampling.dtype=bfloat16")

    def frozen(config):
        unet = denoiser(config).unet
        return sum(p.numel() * p.element_size() for p in unet.parameters() if not p.requires_grad)

    assert frozen(half) < 0.6 * frozen(plain)
    ours, (image, mask, region, _, tokens) = denoiser(half), (part[0] for part in scene())
    condition = Condition.of(ours, image, region, tokens, image, mask)
    sampler = Sampler(ours, tokens, steps=2, micro_batch=1, dtype="bfloat16")
    (state,) = sampler.run([sampler.start_joint(condition, torch.Generator().manual_seed(0))])
    assert state.canvas_CSS.dtype == torch.float32 and torch.isfinite(state.canvas_CSS).all()


@torch.no_grad()
def test_images_may_pass_the_autoencoder_together(tiny_overrides, checkpoint) -> None:
    ours = denoiser(settings(tiny_overrides, checkpoint))
    images = torch.rand(4, 3, SIDE, SIDE, generator=torch.Generator().manual_seed(0)) * 2 - 1
    one_by_one = ours.canvas(images)
    assert torch.equal(one_by_one[2:3], ours.canvas(images[2:3]))
    ours._at_once = 3
    assert torch.allclose(ours.canvas(images), one_by_one, atol=1e-5)
    assert torch.allclose(
        ours.image(one_by_one), torch.cat([ours.image(c[None]) for c in one_by_one]), atol=1e-5
    )


def test_encoded_crops_are_what_is_encoded(tiny_overrides, checkpoint) -> None:
    ours = denoiser(settings(tiny_overrides, checkpoint))
    image, mask, region, *_ = scene()
    clean = Clean.of(ours, image, (mask > 0).float(), region)
    hidden = image * (1 - region)
    vae = AutoencoderKL.from_pretrained(checkpoint, subfolder="vae")
    with torch.no_grad():
        known = vae.encode(hidden).latent_dist.mode() * vae.config.scaling_factor
    assert torch.allclose(clean.known_BKSS, known, atol=1e-5)
    assert clean.canvas_BCSS.shape == (2, 4, SIDE // 8, SIDE // 8)
    assert set(clean.mask_B1RR.unique().tolist()) == {-1.0, 1.0}
