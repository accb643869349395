"""What is measured of the latent backbone, and of the pipeline beside it; put together in jobs/backbone.py."""

from __future__ import annotations

import argparse
import contextlib
import resource
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch.utils.flop_counter import FlopCounterMode

from cdiff.config import Config
from cdiff.generator.latent import LatentDenoiser
from cdiff.generator.objective import Clean, flow_loss
from cdiff.generator.pretrained import attend_by
from cdiff.generator.sampling import Sampler
from cdiff.generator.states import Condition, State

_Scene = tuple[torch.Tensor, ...]

GB = 1e9
_TOKENS = 10  # SAFE tokens of a target at the defaults, with the place of a weakness token
_GUIDED = (0.25, 0.75)
_CANDIDATES, _FRACTION = 4, 0.25  # of best-of-K, judged after this share of the steps


def beside(
    denoiser: LatentDenoiser, folder: Path, args: argparse.Namespace, batch: int, found: Mapping[str, Any]
) -> dict[str, Any]:
    """One size of batch: our sampler and, unless the look is a quick one, the pipeline, in turns."""
    pairs = -(-max(args.pairs, batch) // batch) * batch
    scenes = _scenes(denoiser, args, pairs)
    make = partial(_pairs, denoiser, args, batch, scenes)
    evaluations = 2 * args.steps  # of the network, guidance all along
    row: dict[str, Any] = {"batch": batch, "pairs": pairs, "evaluations": evaluations}
    if args.quick:
        made, seconds, peak = _timed(make, args.device)
        row["sampling"] = _rates("pairs", pairs, [seconds], peak)
    else:
        # of the first batch recording and compiling are a part, in time and in memory
        made, first, peak = _timed(partial(_pairs, denoiser, args, batch, scenes[:batch]), args.device)
        held = _reserved(args.device)
        images = _pipeline(folder, args, batch)
        _, _, rival_peak = _timed(lambda: images(batch), args.device)
        ours, theirs = [], []
        for _ in range(args.repeats):
            ours.append(_timed(make, args.device)[1])
            theirs.append(_timed(lambda: images(pairs), args.device)[1])
        row["sampling"] = _rates("pairs", pairs, ours, peak) | {"first_batch_seconds": first}
        row["inpainting_pipeline"] = _rates("images", pairs, theirs, rival_peak - held)
        row["pairs_to_pipeline_images"] = statistics.median(theirs) / statistics.median(ours)
    assert all(bool(torch.isfinite(image).all()) for image in made)
    tflops = found["tflop_per_evaluation"] * evaluations * row["sampling"]["pairs_per_second"]
    row["sampling"]["share_of_matrix_rate"] = tflops / found["matrix_tflops"]
    return row


def _rates(what: str, number: int, seconds: Sequence[float], peak: float) -> dict[str, Any]:
    return {
        f"{what}_per_second": number / statistics.median(seconds),
        "range": [number / max(seconds), number / min(seconds)],
        "peak_gb": peak,
    }


def apart(denoiser: LatentDenoiser, args: argparse.Namespace, row: dict[str, Any]) -> dict[str, Any]:
    """What guidance on a part of the path, and rejecting candidates early, bring on top: by how much so many pairs are faster."""
    scenes = _scenes(denoiser, args, row["pairs"])
    make = partial(_pairs, denoiser, args, row["batch"], scenes)
    # steps without guidance pass the network in batches of half the size: those are recorded before anything is timed
    if args.device == "cuda":
        _pairs(denoiser, args, row["batch"], scenes[: row["batch"]], guided=_GUIDED)
    whole, guided, late, early = (
        statistics.median(_timed(work, args.device)[1] for _ in range(args.repeats))
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
    scenes: Sequence[_Scene],
    guided: tuple[float, float] = (0.0, 1.0),
    candidates: int = 1,
    judged_after: float = 1.0,
) -> list[torch.Tensor]:
    """One image for each scene. Of several candidates all are looked at after a share of the steps, and the first is kept: the judge itself is not timed."""
    null = torch.zeros(_TOKENS, denoiser.words.in_features, device=args.device)
    draw, out = Sampler(denoiser, null, args.steps, batch, args.dtype), []
    conditions = [_condition(denoiser, args, scene, guided) for scene in scenes]
    for first in range(0, len(scenes), batch):
        own = conditions[first : first + batch]
        states = [_start(draw, c, 97 * k) for c in own for k in range(candidates)]
        if candidates > 1:
            states = draw.run(states, share=judged_after)
            draw.expected_images(states)
            states = states[::candidates]
        out += [draw.image(s.condition, s.canvas_CSS) for s in draw.run(states)]
    return out


def training(denoiser: LatentDenoiser, config: Config, args: argparse.Namespace) -> dict[str, Any]:
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

    card = args.device == "cuda"
    times = [_timed(step, args.device) for _ in range(1 + 5 * args.repeats if card else 1)]
    seconds = [one for _, one, _ in times[card:]]  # a card's first step chooses its kernels
    return {
        "steps_per_second": 1 / statistics.median(seconds),
        "range": [1 / max(seconds), 1 / min(seconds)],
        "batch": batch,
        "peak_gb": max(peak for _, _, peak in times),
        "loss": losses[-1],
    }


def _pipeline(folder: Path, args: argparse.Namespace, batch: int) -> Callable[[int], None]:
    """diffusers' own inpainting on the same terms: its 4-channel form, as the checkpoint is. Makes so many images when it is called."""
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

    return images


def _scenes(denoiser: LatentDenoiser, args: argparse.Namespace, number: int) -> list[_Scene]:
    """Background, what sampling starts from, and tokens: made before anything is timed."""
    out = []
    for seed in range(number):
        noise = torch.Generator().manual_seed(seed)
        images = torch.rand(2, 3, args.resolution, args.resolution, generator=noise) * 2 - 1
        tokens = torch.randn(_TOKENS, denoiser.words.in_features, generator=noise)
        out.append((*images.to(args.device), tokens.to(args.device)))
    return out


def _condition(
    denoiser: LatentDenoiser, args: argparse.Namespace, scene: _Scene, guided: tuple[float, float]
) -> Condition:
    background, start, tokens = scene
    region = _region(args)[0]
    return Condition.of(denoiser, background, region, tokens, start, region * 2 - 1, 2.0, 1.0, guided)


def _start(sampler: Sampler, condition: Condition, seed: int) -> State:
    return sampler.start_joint(condition, torch.Generator().manual_seed(seed))


def _region(args: argparse.Namespace) -> torch.Tensor:
    region = torch.zeros(1, 1, args.resolution, args.resolution, device=args.device)
    quarter = args.resolution // 4
    region[:, :, quarter : 3 * quarter, quarter : 3 * quarter] = 1
    return region


@torch.inference_mode()
def flops(denoiser: LatentDenoiser, args: argparse.Namespace) -> float:
    """Of one evaluation of the network for one pair."""
    condition = _condition(denoiser, args, _scenes(denoiser, args, 1)[0], (0.0, 1.0))
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


def matrix_rate(device: str, dtype: str, side: int = 0) -> float:
    """TFLOP/s that a large matrix product reaches here: what a network could, at best."""
    side = side or (8192 if device == "cuda" else 2048)
    a, b = (torch.randn(side, side, device=device, dtype=getattr(torch, dtype)) for _ in range(2))
    rounds = 20 if device == "cuda" else 3
    _timed(lambda: a @ b, device)
    _, seconds, _ = _timed(lambda: [a @ b for _ in range(rounds)][-1], device)
    return 2 * side**3 * rounds / seconds / 1e12


def _timed(work: Callable[[], Any], device: str) -> tuple[Any, float, float]:
    """What work gives, its seconds, and the most gigabytes that were held meanwhile: of the card, recordings included, or by this process."""
    if device == "cuda":
        torch.cuda.synchronize()
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
    else:
        with contextlib.suppress(OSError):  # where the kernel lets a process forget its peak
            Path("/proc/self/clear_refs").write_text("5")
    began = time.perf_counter()
    out = work()
    if device == "cuda":
        torch.cuda.synchronize()
    seconds = time.perf_counter() - began
    return out, seconds, torch.cuda.max_memory_reserved() / GB if device == "cuda" else _peak()


def _reserved(device: str) -> float:
    """Gigabytes that are held on a card before something else comes; a process's own are not told apart."""
    if device != "cuda":
        return 0.0
    torch.cuda.empty_cache()
    return torch.cuda.memory_reserved() / GB


def _peak() -> float:
    """Most memory that this process held, gigabytes; since it was told to forget, where the kernel can."""
    status = Path("/proc/self/status").read_text() if Path("/proc/self/status").exists() else ""
    told = [line.split()[1] for line in status.splitlines() if line.startswith("VmHWM")]
    most = int(told[0]) if told else resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return most * 1024 / GB
