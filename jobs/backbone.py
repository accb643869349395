"""What the latent backbone takes and gives on this machine: memory by role, training, pairs per second, beside diffusers' own inpainting.

Runs where Ray and MLflow are not installed, as `python -m jobs.backbone --out FILE`; elsewhere it is `jobs/benchmark.py backbone`. Without --checkpoint
the networks have the shapes of Stable Diffusion 1.5 and random weights: what is measured does not depend on them.

Equal terms: both sides have the same device, dtype, attention kernel, batch, resolution and number of evaluations of the network. Three things differ to our
cost: a pair is an image with its mask; our autoencoder works in a type of at least float16's digits, one image after the other, where the pipeline's has its
dtype and batch; and it runs five times for a pair, three for an image of the pipeline. To our gain are recorded kernels on a card, and --compile.
Gains that are not the sampler's own (guidance on a part of the path, rejecting candidates early) are apart.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import resource
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
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
from jobs.measured import how_measured

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
    out.add_argument("--batch", type=int, nargs="+", default=[1], help="sizes of the sampler's batch")
    out.add_argument("--steps", type=int, default=4, help="sampling steps")
    out.add_argument(
        "--pairs", type=int, default=1, help="pairs that are timed, in whole batches, after one that is not"
    )
    out.add_argument(
        "--repeats", type=int, default=1, help="how often they are; medians are told, and the range"
    )
    out.add_argument(
        "--compile", action="store_true", help="as resources.compile: takes minutes for each size of batch"
    )
    out.add_argument("--dtype", choices=["float32", "bfloat16", "float16"], default="float32")
    out.add_argument("--attention", default="auto", choices=["auto", "flash", "efficient", "math", "sliced"])
    out.add_argument("--gradient-checkpointing", action="store_true")
    out.add_argument(
        "--quick", action="store_true", help="memory and one batch alone: nothing is repeated or compared"
    )
    out.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")


def run(
    args: argparse.Namespace, so_far: Callable[[dict[str, Any]], None] = lambda _: None
) -> tuple[dict[str, Any], str]:
    """The whole measurement, and a line that says it; `so_far` gets what there is after each size of batch."""
    with contextlib.ExitStack() as stack:
        folder = args.checkpoint or stack.enter_context(_random_checkpoint())
        config = _configured(args, folder)
        torch.manual_seed(0)
        denoiser = LatentDenoiser(config.generator, config.safe, folder).to(args.device)
        told = ("resolution", "steps", "dtype", "attention", "device", "gradient_checkpointing", "compile")
        found: dict[str, Any] = {
            "settings": {name: getattr(args, name) for name in (*told, "repeats")}
            | {
                "vae_dtype": config.generator.vae_dtype,
                "weights": "given" if args.checkpoint else "random, of SD 1.5's shapes",
                "device_name": torch.cuda.get_device_name() if args.device == "cuda" else "cpu",
            },
            "weights_gb": weights_by_role(denoiser),
            "matrix_tflops": _matrix_rate(args.device, args.dtype),
            "tflop_per_evaluation": _flops(denoiser, args) / 1e12,
        }
        found["training"] = _training(denoiser.train(), config, args)
        denoiser.for_sampling(getattr(torch, args.dtype), args.compile)
        found["batches"] = []
        for batch in args.batch:
            found["batches"].append(_beside(denoiser, folder, args, batch, found))
            so_far(found)
        if not args.quick:
            found["apart"] = _apart(denoiser, args, max(found["batches"], key=lambda row: row["batch"]))
    rows = found["batches"]
    peaks = max(row["sampling"]["peak_gb"] for row in rows), found["training"]["peak_gb"]
    line = "at most {:.1f} GB in sampling, {:.1f} GB in training".format(*peaks)
    for row in rows if not args.quick else []:
        line += f"\nbatch {row['batch']}: {row['pairs_to_pipeline_images']:.2f} pairs for each image of the pipeline"
    return found, line


def _configured(args: argparse.Namespace, folder: Path) -> Config:
    return Config(
        sampling=SamplingConfig(dtype=args.dtype),
        generator=GeneratorConfig(
            backbone="latent",
            weights=str(folder),
            resolution=args.resolution,
            attention=args.attention,
            weights_dtype="bfloat16" if args.dtype == "bfloat16" else "float32",
            vae_dtype="float32" if args.dtype == "float32" else "float16",
            gradient_checkpointing=args.gradient_checkpointing,
            batch=max(2, *args.batch, args.batch[0]),
        ),
    )


def _beside(
    denoiser: LatentDenoiser, folder: Path, args: argparse.Namespace, batch: int, found: Mapping[str, Any]
) -> dict[str, Any]:
    """One size of batch: our sampler and, unless the look is a quick one, the pipeline."""
    pairs = -(-max(args.pairs, batch) // batch) * batch
    row: dict[str, Any] = {"batch": batch, "pairs": pairs}
    row["sampling"] = _sampling(denoiser, args, batch, pairs)
    tflops = (
        found["tflop_per_evaluation"]
        * row["sampling"]["evaluations_per_pair"]
        * row["sampling"]["pairs_per_second"]
    )
    row["sampling"]["share_of_matrix_rate"] = tflops / found["matrix_tflops"]
    if args.quick:
        return row
    row["inpainting_pipeline"] = _pipeline(folder, args, batch, pairs)
    ratio = row["sampling"]["pairs_per_second"] / row["inpainting_pipeline"]["images_per_second"]
    return row | {"pairs_to_pipeline_images": ratio}


def weights_by_role(denoiser: LatentDenoiser) -> dict[str, float]:
    """Gigabytes of weights, and what training adds for those that are learned: gradients, two moments and an average."""
    parts = {"unet": denoiser.unet, "vae": denoiser.vae}
    held = {
        name: sum(p.numel() * p.element_size() for p in part.parameters()) / _GB
        for name, part in parts.items()
    }
    learned = sum(p.numel() * p.element_size() for p in denoiser.parameters() if p.requires_grad) / _GB
    return held | {"learned": learned, "training_adds": 4 * learned}


def _sampling(denoiser: LatentDenoiser, args: argparse.Namespace, batch: int, pairs: int) -> dict[str, Any]:
    make = partial(_pairs, denoiser, args, batch, pairs)
    began = time.perf_counter()
    if not args.quick:
        _pairs(denoiser, args, batch, batch)
    first = time.perf_counter() - began
    base, seconds, peak = _timed(make, None, args.device, args.repeats)
    assert all(bool(torch.isfinite(image).all()) for image in base)
    middle = statistics.median(seconds)
    out = {
        "pairs_per_second": pairs / middle,
        "range": [pairs / max(seconds), pairs / min(seconds)],
        "evaluations_per_pair": 2 * args.steps,  # guidance all along
        "peak_gb": peak,
    }
    return out | {"first_batch_seconds": first}  # recording and compiling included


def _apart(denoiser: LatentDenoiser, args: argparse.Namespace, row: dict[str, Any]) -> dict[str, Any]:
    """What guidance on a part of the path, and rejecting candidates early, bring on top: by how much so many pairs are faster."""
    make = partial(_pairs, denoiser, args, row["batch"], row["pairs"])
    whole, guided, late, early = (
        statistics.median(_timed(work, None, args.device, args.repeats)[1])
        for work in (
            make,
            partial(make, guided=_GUIDED),
            partial(make, candidates=_CANDIDATES, judged_after=1.0),
            partial(make, candidates=_CANDIDATES, judged_after=_FRACTION),
        )
    )
    rejection = {"candidates": _CANDIDATES, "judged_after": _FRACTION, "times_faster": late / early}
    return {
        "batch": row["batch"],
        "guidance_interval": {"guided": list(_GUIDED), "times_faster": whole / guided},
        "early_rejection": rejection,
    }


def _pairs(
    denoiser: LatentDenoiser,
    args: argparse.Namespace,
    batch: int,
    number: int,
    guided: tuple[float, float] = (0.0, 1.0),
    candidates: int = 1,
    judged_after: float = 1.0,
) -> list[torch.Tensor]:
    """Images of so many pairs. Of several candidates all are looked at after a share of the steps, and the first is kept: the judge itself is not timed."""
    null = torch.zeros(_TOKENS, denoiser.words.in_features, device=args.device)
    draw, out = Sampler(denoiser, null, args.steps, batch, args.dtype), []
    conditions = [_condition(denoiser, args, guided, seed) for seed in range(number)]
    for first in range(0, number, batch):
        own = conditions[first : first + batch]
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
    batch = max(args.batch)
    shape = (batch, 3, args.resolution, args.resolution)
    image = torch.rand(shape, device=args.device) * 2 - 1
    region = _region(args).expand(batch, -1, -1, -1)
    clean = Clean.of(denoiser, image, region, region)
    tokens = torch.randn(batch, _TOKENS, denoiser.words.in_features, device=args.device)
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

    warm, repeats = (step, 5 * args.repeats) if args.device == "cuda" else (None, 1)
    _, seconds, peak = _timed(step, warm, args.device, repeats)
    return {
        "steps_per_second": 1 / statistics.median(seconds),
        "range": [1 / max(seconds), 1 / min(seconds)],
        "batch": batch,
        "peak_gb": peak,
        "loss": losses[-1],
    }


def _pipeline(folder: Path, args: argparse.Namespace, batch: int, pairs: int) -> dict[str, Any]:
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
        batch, _TOKENS, pipeline.unet.config.cross_attention_dim, device=args.device, dtype=kind
    )
    image = torch.rand(batch, 3, args.resolution, args.resolution, device=args.device, dtype=kind)
    hole = _region(args).expand(batch, -1, -1, -1).to(kind)

    def images(number: int) -> None:
        for _ in range(0, number, batch):
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

    _, seconds, peak = _timed(lambda: images(pairs), lambda: images(batch), args.device, args.repeats)
    return {
        "images_per_second": pairs / statistics.median(seconds),
        "range": [pairs / max(seconds), pairs / min(seconds)],
        "evaluations_per_image": 2 * args.steps,
        "peak_gb": peak,
    }


def _condition(
    denoiser: LatentDenoiser, args: argparse.Namespace, guided: tuple[float, float], seed: int
) -> Condition:
    noise = torch.Generator().manual_seed(seed)
    image, start = (torch.rand(2, 3, args.resolution, args.resolution, generator=noise) * 2 - 1).to(
        args.device
    )
    tokens = torch.randn(_TOKENS, denoiser.words.in_features, generator=noise).to(args.device)
    region = _region(args)[0]
    return Condition.of(denoiser, image, region, tokens, start, region * 2 - 1, 2.0, 1.0, guided)


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
    _, (seconds,), _ = _timed(lambda: [a @ b for _ in range(rounds)][-1], lambda: a @ b, device)
    return 2 * side**3 * rounds / seconds / 1e12


def _timed(
    work: Callable[[], Any], warm: Callable[[], Any] | None, device: str, repeats: int = 1
) -> tuple[Any, list[float], float]:
    """What work gives, seconds of each time, and the peak of memory in gigabytes: the card's, or this process's so far."""
    if warm is not None:
        warm()
    if device == "cuda":
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
    else:
        with contextlib.suppress(OSError):  # where the kernel lets a process forget its peak
            Path("/proc/self/clear_refs").write_text("5")
    seconds = []
    for _ in range(repeats):
        began = time.perf_counter()
        out = work()
        if device == "cuda":
            torch.cuda.synchronize()
        seconds.append(time.perf_counter() - began)
    return out, seconds, torch.cuda.max_memory_allocated() / _GB if device == "cuda" else _peak()


def _peak() -> float:
    """Most memory that this process held, gigabytes; since it was told to forget, where the kernel can."""
    status = Path("/proc/self/status").read_text() if Path("/proc/self/status").exists() else ""
    told = [line.split()[1] for line in status.splitlines() if line.startswith("VmHWM")]
    most = int(told[0]) if told else resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return most * 1024 / _GB


@contextlib.contextmanager
def _random_checkpoint() -> Iterator[Path]:
    """The shapes of Stable Diffusion 1.5 with random weights, as a diffusers folder."""
    from diffusers import AutoencoderKL, DDIMScheduler, UNet2DConditionModel, __version__

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
            "_diffusers_version": __version__,  # newer than what the pipeline warns of
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
    told = sys.argv[1:] if arguments is None else arguments
    args = parser.parse_args(told)
    about = how_measured("-m jobs.backbone", told)

    def write(found: dict[str, Any]) -> None:
        args.out.write_text(json.dumps(about | found, indent=1) + "\n", encoding="utf-8")

    found, line = run(args, write)
    write(found)
    print(line)


if __name__ == "__main__":
    main()
