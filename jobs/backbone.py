"""What the latent backbone takes and gives on this machine: memory by role, training, pairs per second, beside diffusers' own inpainting.

Runs where Ray and MLflow are not installed, as `python -m jobs.backbone --out FILE`; elsewhere it is `jobs/benchmark.py backbone`. Without --checkpoint
the networks have the shapes of Stable Diffusion 1.5 and random weights: what is measured does not depend on them.

Equal terms: both sides have the same device, dtype, attention kernel, batch, resolution and number of evaluations of the network. Two things differ, both to our
cost: a pair is an image with its mask, and our autoencoder works in float32, one image after the other, where the pipeline's has its dtype and batch.
Gains that are not the sampler's own (guidance on a part of the path, rejecting candidates early) are apart.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import resource
import tempfile
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch.utils.flop_counter import FlopCounterMode

from cdiff.config import Config, GeneratorConfig, SamplingConfig
from cdiff.generator.latent import LatentDenoiser
from cdiff.generator.objective import Clean, flow_loss
from cdiff.generator.pretrained import attend_by
from cdiff.generator.sampling import Condition, Sampler, State

_GB = 1e9
# Of Stable Diffusion 1.5, as its configuration files have them.
UNET = {
    "sample_size": 64,
    "cross_attention_dim": 768,
    "attention_head_dim": 8,
    "block_out_channels": (320, 640, 1280, 1280),
    "down_block_types": (*("CrossAttnDownBlock2D",) * 3, "DownBlock2D"),
    "up_block_types": ("UpBlock2D", *("CrossAttnUpBlock2D",) * 3),
}
VAE = {
    "block_out_channels": (128, 256, 512, 512),
    "down_block_types": ("DownEncoderBlock2D",) * 4,
    "up_block_types": ("UpDecoderBlock2D",) * 4,
    "layers_per_block": 2,
    "latent_channels": 4,
    "sample_size": 512,
}
_TOKENS = 10  # SAFE tokens of a target at the defaults, with the place of a weakness token
_GUIDED = (0.25, 0.75)
_CANDIDATES, _FRACTION = 4, 0.25  # of best-of-K, judged after this share of the steps


def add_options(out: argparse.ArgumentParser) -> None:
    out.add_argument(
        "--checkpoint", type=Path, help="diffusers folder; without one, random weights of SD 1.5's shapes"
    )
    out.add_argument("--resolution", type=int, default=512)
    out.add_argument("--batch", type=int, default=1)
    out.add_argument("--steps", type=int, default=4, help="sampling steps")
    out.add_argument("--pairs", type=int, default=1, help="pairs that are timed, after one batch that is not")
    out.add_argument("--dtype", choices=["float32", "bfloat16", "float16"], default="float32")
    out.add_argument("--attention", default="auto", choices=["auto", "flash", "efficient", "math", "sliced"])
    out.add_argument("--gradient-checkpointing", action="store_true")
    out.add_argument(
        "--quick", action="store_true", help="memory and one batch alone: nothing is repeated or compared"
    )
    out.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")


def run(args: argparse.Namespace) -> tuple[dict[str, Any], str]:
    """The whole measurement, and a line that says it."""
    with contextlib.ExitStack() as stack:
        folder = args.checkpoint or stack.enter_context(_random_checkpoint())
        config = Config(
            sampling=SamplingConfig(dtype=args.dtype),
            generator=GeneratorConfig(
                backbone="latent",
                weights=str(folder),
                resolution=args.resolution,
                attention=args.attention,
                weights_dtype="bfloat16" if args.dtype == "bfloat16" else "float32",
                gradient_checkpointing=args.gradient_checkpointing,
                batch=max(2, args.batch),
            ),
        )
        torch.manual_seed(0)
        denoiser = LatentDenoiser(config.generator, config.safe, folder).to(args.device)
        found: dict[str, Any] = {
            "settings": {
                **{
                    k: v
                    for k, v in vars(args).items()
                    if k in ("resolution", "batch", "steps", "pairs", "dtype", "attention", "device")
                },
                "gradient_checkpointing": args.gradient_checkpointing,
                "weights": "given" if args.checkpoint else "random, of SD 1.5's shapes",
                "device_name": torch.cuda.get_device_name() if args.device == "cuda" else "cpu",
            },
            "weights_gb": weights_by_role(denoiser),
        }
        found["matrix_tflops"] = _matrix_rate(args.device, args.dtype)
        found["sampling"] = _sampling(denoiser.eval(), args, found["matrix_tflops"])
        found["training"] = _training(denoiser.train(), config, args)
        del denoiser
        peaks = (found[name]["peak_gb"] for name in ("sampling", "training"))
        line = "at most {:.1f} GB in sampling, {:.1f} GB in training".format(*peaks)
        if args.quick:
            return found, line
        found["inpainting_pipeline"] = _pipeline(folder, args)
    ratio = found["sampling"]["pairs_per_second"] / found["inpainting_pipeline"]["images_per_second"]
    found["pairs_to_pipeline_images"] = ratio
    return found, f"{line}; {ratio:.2f} pairs for each image of the pipeline"


def weights_by_role(denoiser: LatentDenoiser) -> dict[str, float]:
    """Gigabytes of weights, and what training adds for those that are learned: gradients, two moments and an average."""
    parts = {"unet": denoiser.unet, "vae": denoiser.vae}
    held = {
        name: sum(p.numel() * p.element_size() for p in part.parameters()) / _GB
        for name, part in parts.items()
    }
    learned = sum(p.numel() * p.element_size() for p in denoiser.parameters() if p.requires_grad) / _GB
    return held | {"learned": learned, "training_adds": 4 * learned}


def _sampling(denoiser: LatentDenoiser, args: argparse.Namespace, rate: float) -> dict[str, Any]:
    make = partial(_pairs, denoiser, args, args.pairs)
    warm = None if args.quick else lambda: _pairs(denoiser, args, args.batch)
    base, seconds, peak = _timed(make, warm, args.device)
    assert all(bool(torch.isfinite(image).all()) for image in base)
    flops, whole = _flops(denoiser, args), 2 * args.steps  # evaluations per pair, with guidance all along
    out = {
        "pairs_per_second": args.pairs / seconds,
        "evaluations_per_pair": whole,
        "peak_gb": peak,
        "tflop_per_evaluation": flops / 1e12,
        "share_of_matrix_rate": flops * whole * args.pairs / seconds / 1e12 / rate,
    }
    if args.quick:
        return out
    _, guided, _ = _timed(partial(make, guided=_GUIDED), None, args.device)
    late, early = (
        _timed(partial(make, candidates=_CANDIDATES, judged_after=share), None, args.device)[1]
        for share in (1.0, _FRACTION)
    )
    rejection = {"candidates": _CANDIDATES, "judged_after": _FRACTION, "times_faster": late / early}
    interval = {"guided": list(_GUIDED), "times_faster": seconds / guided}
    return out | {"guidance_interval": interval, "early_rejection": rejection}


def _pairs(
    denoiser: LatentDenoiser,
    args: argparse.Namespace,
    number: int,
    guided: tuple[float, float] = (0.0, 1.0),
    candidates: int = 1,
    judged_after: float = 1.0,
) -> list[torch.Tensor]:
    """Images of so many pairs. Of several candidates all are looked at after a share of the steps, and the first is kept: the judge itself is not timed."""
    null = torch.zeros(_TOKENS, denoiser.words.in_features, device=args.device)
    draw, out = Sampler(denoiser, null, args.steps, args.batch, args.dtype), []
    conditions = [_condition(denoiser, args, guided, seed) for seed in range(number)]
    for first in range(0, number, args.batch):
        own = conditions[first : first + args.batch]
        states = [_start(draw, c, 97 * k) for c in own for k in range(candidates)]
        if candidates > 1:
            states = draw.run(states, share=judged_after)
            draw.expected_images(states)
            states = states[::candidates]
        out += [draw.image(s.condition, s.canvas_CSS) for s in draw.run(states)]
    return out


def _training(denoiser: LatentDenoiser, config: Config, args: argparse.Namespace) -> dict[str, Any]:
    learned = [p for p in denoiser.parameters() if p.requires_grad]
    optimiser = torch.optim.AdamW(learned, lr=1e-5)
    shape = (args.batch, 3, args.resolution, args.resolution)
    image = torch.rand(shape, device=args.device) * 2 - 1
    region = _region(args).expand(args.batch, -1, -1, -1)
    clean = Clean.of(denoiser, image, region, region)
    tokens = torch.randn(args.batch, _TOKENS, denoiser.words.in_features, device=args.device)
    losses: list[float] = []

    def step() -> None:
        kind: torch.dtype = getattr(torch, args.dtype)
        with torch.autocast(args.device, dtype=kind, enabled=kind != torch.float32):
            loss = flow_loss(
                denoiser, clean, tokens, config.generator, torch.Generator().manual_seed(len(losses))
            )
        optimiser.zero_grad(set_to_none=True)
        loss.backward()
        optimiser.step()
        losses.append(loss.item())

    warm = step if args.device == "cuda" else None
    _, seconds, peak = _timed(step, warm, args.device)
    return {"steps_per_second": 1 / seconds, "batch": args.batch, "peak_gb": peak, "loss": losses[-1]}


def _pipeline(folder: Path, args: argparse.Namespace) -> dict[str, Any]:
    """diffusers' own inpainting on the same terms: its 4-channel form, as the checkpoint is."""
    from diffusers import DDIMScheduler, StableDiffusionInpaintPipeline
    from diffusers.utils import logging as told

    told.disable_progress_bar()
    kind = getattr(torch, args.dtype)
    parts: dict[str, Any] = {
        "text_encoder": None,
        "tokenizer": None,
        "safety_checker": None,
        "feature_extractor": None,
    }
    pipeline = StableDiffusionInpaintPipeline.from_pretrained(
        folder,
        dtype=kind,
        local_files_only=True,
        use_safetensors=True,
        requires_safety_checker=False,
        **parts,
    ).to(args.device)
    pipeline.scheduler = DDIMScheduler.from_config(pipeline.scheduler.config)
    pipeline.set_progress_bar_config(disable=True)
    attend_by(pipeline.unet, args.attention)
    words = torch.randn(
        args.batch, _TOKENS, pipeline.unet.config.cross_attention_dim, device=args.device, dtype=kind
    )
    image = torch.rand(args.batch, 3, args.resolution, args.resolution, device=args.device, dtype=kind)
    hole = _region(args).expand(args.batch, -1, -1, -1).to(kind)

    def images(number: int) -> None:
        for _ in range(0, number, args.batch):
            pipeline(
                prompt_embeds=words,
                negative_prompt_embeds=torch.zeros_like(words),
                image=image,
                mask_image=hole,
                height=args.resolution,
                width=args.resolution,
                num_inference_steps=args.steps,
                guidance_scale=2.0,
                strength=1.0,
                output_type="pt",
            )

    _, seconds, peak = _timed(lambda: images(args.pairs), lambda: images(args.batch), args.device)
    return {
        "images_per_second": args.pairs / seconds,
        "evaluations_per_image": 2 * args.steps,
        "peak_gb": peak,
    }


def _condition(
    denoiser: LatentDenoiser, args: argparse.Namespace, guided: tuple[float, float], seed: int
) -> Condition:
    noise = torch.Generator().manual_seed(seed)
    image = (torch.rand(3, args.resolution, args.resolution, generator=noise) * 2 - 1).to(args.device)
    tokens = torch.randn(_TOKENS, denoiser.words.in_features, generator=noise).to(args.device)
    region = _region(args)[0]
    return Condition.of(denoiser, image, region, tokens, image, region * 2 - 1, 2.0, 1.0, guided)


def _start(sampler: Sampler, condition: Condition, seed: int) -> State:
    return sampler.start_joint(condition, torch.Generator().manual_seed(seed))


def _region(args: argparse.Namespace) -> torch.Tensor:
    region = torch.zeros(1, 1, args.resolution, args.resolution, device=args.device)
    quarter = args.resolution // 4
    region[:, :, quarter : 3 * quarter, quarter : 3 * quarter] = 1
    return region


@torch.inference_mode()
def _flops(denoiser: LatentDenoiser, args: argparse.Namespace) -> float:
    """Of one evaluation of the network for one pair."""
    condition = _condition(denoiser, args, (0.0, 1.0), 0)
    time = torch.tensor([0.5], device=args.device)
    scene = condition.scene
    inputs = scene.start_CSS[None], condition.start_mask_1RR[None], time, time, scene.known_KSS[None]
    kind = getattr(torch, args.dtype)
    with (
        FlopCounterMode(display=False) as counter,
        torch.autocast(args.device, dtype=kind, enabled=kind != torch.float32),
    ):
        denoiser(*inputs, condition.region_1RR[None], condition.tokens_ND[None])
    return float(counter.get_total_flops())


def _matrix_rate(device: str, dtype: str, side: int = 0) -> float:
    """TFLOP/s that a large matrix product reaches here: what a network could, at best."""
    side = side or (8192 if device == "cuda" else 2048)
    a, b = (torch.randn(side, side, device=device, dtype=getattr(torch, dtype)) for _ in range(2))
    rounds = 20 if device == "cuda" else 3
    _, seconds, _ = _timed(lambda: [a @ b for _ in range(rounds)][-1], lambda: a @ b, device)
    return 2 * side**3 * rounds / seconds / 1e12


def _timed(work: Callable[[], Any], warm: Callable[[], Any] | None, device: str) -> tuple[Any, float, float]:
    """What work gives, seconds, and the peak of memory in gigabytes: the card's, or this process's so far."""
    if warm is not None:
        warm()
    if device == "cuda":
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
    else:
        with contextlib.suppress(OSError):  # where the kernel lets a process forget its peak
            Path("/proc/self/clear_refs").write_text("5")
    began = time.perf_counter()
    out = work()
    if device == "cuda":
        torch.cuda.synchronize()
        return out, time.perf_counter() - began, torch.cuda.max_memory_allocated() / _GB
    seconds = time.perf_counter() - began
    return out, seconds, _peak()


def _peak() -> float:
    """Most memory that this process held, gigabytes; since it was told to forget, where the kernel can."""
    status = Path("/proc/self/status").read_text() if Path("/proc/self/status").exists() else ""
    told = [line.split()[1] for line in status.splitlines() if line.startswith("VmHWM")]
    most = int(told[0]) if told else resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return most * 1024 / _GB


@contextlib.contextmanager
def _random_checkpoint() -> Iterator[Path]:
    """The shapes of Stable Diffusion 1.5 with random weights, as a diffusers folder."""
    from diffusers import AutoencoderKL, DDIMScheduler, UNet2DConditionModel

    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        for name, kind, shapes in (("unet", UNet2DConditionModel, UNET), ("vae", AutoencoderKL, VAE)):
            network: Any = kind.from_config(shapes)
            network.save_pretrained(folder / name)
            del network
        noise: Any = DDIMScheduler(
            beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", steps_offset=1
        )
        noise.save_pretrained(folder / "scheduler")
        index = {
            "_class_name": "StableDiffusionPipeline",
            "unet": ["diffusers", "UNet2DConditionModel"],
            "vae": ["diffusers", "AutoencoderKL"],
            "scheduler": ["diffusers", "DDIMScheduler"],
        }
        (folder / "model_index.json").write_text(json.dumps(index))
        yield folder


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m jobs.backbone", description=__doc__.split("\n", 1)[0])
    add_options(parser)
    parser.add_argument("--out", type=Path, required=True, help="JSON file to write")
    args = parser.parse_args(arguments)
    found, line = run(args)
    args.out.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    print(line)


if __name__ == "__main__":
    main()
