"""What the benchmark of the latent backbone tells, on a small checkpoint."""

import argparse
import json
import subprocess
import sys
from typing import Any

import pytest
import torch
from diffusers import AutoencoderKL, UNet2DConditionModel

from cdiff.generator.latent import LatentDenoiser
from jobs import backbone, backbone_steps


def measured(checkpoint, *more: str) -> dict:
    parser = argparse.ArgumentParser()
    backbone.add_options(parser)
    told = [
        "--checkpoint",
        str(checkpoint),
        "--resolution",
        "64",
        "--pairs",
        "3",
        "--steps",
        "4",
    ]
    found, line = backbone.run(parser.parse_args([*told, "--device", "cpu", *more]))
    assert line.startswith("at most")
    return found


def test_memory_speed_and_the_rival_are_told_on_equal_terms(checkpoint) -> None:
    found = measured(checkpoint, "--batch", "1", "2", "--repeats", "2")
    json.dumps(found, allow_nan=False)
    assert [(row["batch"], row["pairs"], row["evaluations"]) for row in found["batches"]] == [
        (1, 3, 8),
        (2, 4, 8),
    ]
    for row in found["batches"]:
        sampling, rival = row["sampling"], row["inpainting_pipeline"]
        assert row["pairs_to_pipeline_images"] == pytest.approx(
            sampling["pairs_per_second"] / rival["images_per_second"]
        )
        assert sampling["range"][0] <= sampling["pairs_per_second"] <= sampling["range"][1]
        assert 0 < sampling["share_of_matrix_rate"] < 1
    assert found["apart"]["batch"] == 2
    assert (
        found["apart"]["guidance_interval"]["times_faster"]
        > 0
        < found["apart"]["early_rejection"]["times_faster"]
    )
    weights = found["weights_gb"]
    assert 0 < weights["learned"] < weights["unet"] and weights["training_adds"] == 4 * weights["learned"]
    assert found["training"]["peak_gb"] > 0


def test_guidance_on_a_part_of_the_path_spares_evaluations(checkpoint) -> None:
    """And candidates that are turned away early theirs."""
    spent = [
        evaluations(checkpoint, **how)
        for how in (
            {},
            {"guided": (0.25, 0.75)},
            {"candidates": 4, "judged_after": 1.0},
            {"candidates": 4, "judged_after": 0.25},
        )
    ]
    assert spent[1] < spent[0] < spent[3] < spent[2]


def evaluations(checkpoint, **how: Any) -> int:
    args = argparse.Namespace(resolution=64, device="cpu", dtype="float32", steps=8)
    config = backbone._configured(
        argparse.Namespace(**vars(args), attention="auto", gradient_checkpointing=False, batch=[1]),
        checkpoint,
    )
    denoiser = LatentDenoiser(config.generator, config.safe, checkpoint).eval()
    counted: list[int] = []
    denoiser.unet.register_forward_hook(lambda *_: counted.append(1))
    backbone_steps._pairs(denoiser, args, 1, backbone_steps._scenes(denoiser, args, 1), **how)
    return len(counted)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_quick_look_compares_nothing(checkpoint, dtype) -> None:
    found = measured(checkpoint, "--quick", "--gradient-checkpointing", "--dtype", dtype)
    (row,) = found["batches"]
    assert "inpainting_pipeline" not in row and "apart" not in found


def test_it_runs_by_itself_where_ray_is_not_installed(checkpoint, tmp_path) -> None:
    """The result names its command and machine."""
    told = ["--quick", "--device", "cpu", "--resolution", "64", "--steps", "1", "--batch", "1", "2"]
    told += ["--checkpoint", str(checkpoint), "--out", str(tmp_path / "found.json")]
    without = "import sys; sys.modules |= dict.fromkeys(['ray', 'mlflow', 'fastapi']); from jobs.backbone import main; main()"
    done = subprocess.run([sys.executable, "-c", without, *told], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    found = json.loads((tmp_path / "found.json").read_text())
    assert found["command"].startswith("python -m jobs.backbone --quick")
    assert str(checkpoint.parent) not in found["command"]
    assert {"commit", "date", "machine", "versions"} <= set(found) and len(found["batches"]) == 2


def test_a_cut_off_measurement_keeps_what_it_had(checkpoint) -> None:
    kept: list[int] = []
    told = ["--quick", "--device", "cpu", "--resolution", "64", "--steps", "1", "--batch", "1", "2"]
    parser = argparse.ArgumentParser()
    backbone.add_options(parser)
    args = parser.parse_args([*told, "--checkpoint", str(checkpoint)])
    backbone.run(args, lambda found: kept.append(len(found["batches"])))
    assert kept == [1, 2]


def test_the_shapes_are_those_of_the_real_checkpoint() -> None:
    """The published counts of SD 1.5's networks, without their gigabytes."""
    with torch.device("meta"):
        unet: Any = UNet2DConditionModel.from_config(backbone.UNET)
        vae: Any = AutoencoderKL.from_config(backbone.VAE)
    assert sum(p.numel() for p in unet.parameters()) == 859_520_964
    assert sum(p.numel() for p in vae.parameters()) == 83_653_863
