"""What the latent backbone takes and gives on this machine: memory by role, training, pairs per second, beside diffusers' own inpainting.

Runs where Ray and MLflow are not installed, as `python -m jobs.backbone --out FILE`; elsewhere it is `jobs/benchmark.py backbone`. Without --checkpoint
the networks have the shapes of Stable Diffusion 1.5 and random weights: what is measured does not depend on them.

Equal terms: both sides have the same device, dtype, attention kernel, batch, resolution and number of evaluations of the network. Three things differ to our
cost: a pair is an image with its mask; our autoencoder works in a type of at least float16's digits, and a few images at a time at most, where the pipeline's has its
dtype and batch; and five images pass it for a pair, three for an image of the pipeline. To our gain are recorded kernels on a card, and --compile.
Gains that are not the sampler's own (guidance on a part of the path, rejecting candidates early) are apart.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch

from cdiff.config import Config, GeneratorConfig, SamplingConfig
from cdiff.generator.latent import LatentDenoiser
from jobs.backbone_steps import GB, apart, beside, flops, matrix_rate, training
from jobs.measured import how_measured

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
        "--compile",
        action="store_true",
        help="as resources.compile: takes minutes for each size of batch; what is apart is left out",
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
            "matrix_tflops": matrix_rate(args.device, args.dtype),
            "tflop_per_evaluation": flops(denoiser, args) / 1e12,
        }
        found["training"] = training(denoiser.train(), config, args)
        denoiser.for_sampling(getattr(torch, args.dtype), args.compile)
        found["batches"] = []
        for batch in args.batch:
            denoiser.forget_recordings()
            found["batches"].append(beside(denoiser, folder, args, batch, found))
            so_far(found)
        # compiled, steps without guidance would be another size of batch to compile
        if not (args.quick or args.compile):
            found["apart"] = apart(denoiser, args, max(found["batches"], key=lambda row: row["batch"]))
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
            batch=max(2, *args.batch),
        ),
    )


def weights_by_role(denoiser: LatentDenoiser) -> dict[str, float]:
    """Gigabytes of weights, and what training adds for those that are learned: gradients, two moments and an average."""
    parts = {"unet": denoiser.unet, "vae": denoiser.vae}
    held = {
        name: sum(p.numel() * p.element_size() for p in part.parameters()) / GB
        for name, part in parts.items()
    }
    learned = sum(p.numel() * p.element_size() for p in denoiser.parameters() if p.requires_grad) / GB
    return held | {"learned": learned, "training_adds": 4 * learned}


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
