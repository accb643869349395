"""What the benchmark of the latent backbone tells, on a small checkpoint."""

import argparse
import json
from typing import Any

import pytest
import torch
from diffusers import AutoencoderKL, UNet2DConditionModel

from jobs import backbone


def measured(checkpoint, *more: str) -> dict:
    parser = argparse.ArgumentParser()
    backbone.add_options(parser)
    told = [
        "--checkpoint",
        str(checkpoint),
        "--resolution",
        "64",
        "--batch",
        "2",
        "--pairs",
        "2",
        "--steps",
        "4",
    ]
    found, line = backbone.run(parser.parse_args([*told, "--device", "cpu", *more]))
    assert line.startswith("at most")
    return found


def test_memory_speed_and_the_rival_are_told_on_equal_terms(checkpoint) -> None:
    found = measured(checkpoint)
    json.dumps(found, allow_nan=False)
    sampling, rival = found["sampling"], found["inpainting_pipeline"]
    assert sampling["evaluations_per_pair"] == rival["evaluations_per_image"] == 8
    assert found["pairs_to_pipeline_images"] == pytest.approx(
        sampling["pairs_per_second"] / rival["images_per_second"]
    )
    assert 0 < sampling["share_of_matrix_rate"] < 1
    weights = found["weights_gb"]
    assert 0 < weights["learned"] < weights["unet"] and weights["training_adds"] == 4 * weights["learned"]
    assert sampling["guidance_interval"]["times_faster"] > 0 and found["training"]["peak_gb"] > 0


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_quick_look_compares_nothing(checkpoint, dtype) -> None:
    found = measured(checkpoint, "--quick", "--gradient-checkpointing", "--dtype", dtype)
    assert "inpainting_pipeline" not in found and "guidance_interval" not in found["sampling"]


def test_the_shapes_are_those_of_the_real_checkpoint() -> None:
    """The published counts of SD 1.5's networks, without their gigabytes."""
    with torch.device("meta"):
        unet: Any = UNet2DConditionModel.from_config(backbone.UNET)
        vae: Any = AutoencoderKL.from_config(backbone.VAE)
    assert sum(p.numel() for p in unet.parameters()) == 859_520_964
    assert sum(p.numel() for p in vae.parameters()) == 83_653_863
