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
    assert [(row["batch"], row["pairs"]) for row in found["batches"]] == [(1, 3), (2, 4)]
    for row in found["batches"]:
        sampling, rival = row["sampling"], row["inpainting_pipeline"]
        assert sampling["evaluations_per_pair"] == rival["evaluations_per_image"] == 8
        assert row["pairs_to_pipeline_images"] == pytest.approx(
            sampling["pairs_per_second"] / rival["images_per_second"]
        )
        assert sampling["range"][0] <= sampling["pairs_per_second"] <= sampling["range"][1]
        assert 0 < sampling["share_of_matrix_rate"] < 1
    assert found["apart"]["batch"] == 2
    assert (
        found["apart"]["guidance_interval"]["times_faster"]
        > 1
        < found["apart"]["early_rejection"]["times_faster"]
    )
    weights = found["weights_gb"]
    assert 0 < weights["learned"] < weights["unet"] and weights["training_adds"] == 4 * weights["learned"]
    assert found["training"]["peak_gb"] > 0


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_quick_look_compares_nothing(checkpoint, dtype) -> None:
    found = measured(checkpoint, "--quick", "--gradient-checkpointing", "--dtype", dtype)
    (row,) = found["batches"]
    assert "inpainting_pipeline" not in row and "apart" not in found


def test_it_runs_by_itself_where_ray_is_not_installed(checkpoint, tmp_path) -> None:
    """The result names its command and machine, and lies there after each size of batch."""
    told = ["--quick", "--device", "cpu", "--resolution", "64", "--steps", "1", "--batch", "1", "2"]
    backbone.main([*told, "--checkpoint", str(checkpoint), "--out", str(tmp_path / "found.json")])
    found = json.loads((tmp_path / "found.json").read_text())
    assert found["command"].startswith("python -m jobs.backbone --quick")
    assert str(checkpoint.parent) not in found["command"]
    assert {"commit", "date", "machine", "versions"} <= set(found) and len(found["batches"]) == 2


def test_the_shapes_are_those_of_the_real_checkpoint() -> None:
    """The published counts of SD 1.5's networks, without their gigabytes."""
    with torch.device("meta"):
        unet: Any = UNet2DConditionModel.from_config(backbone.UNET)
        vae: Any = AutoencoderKL.from_config(backbone.VAE)
    assert sum(p.numel() for p in unet.parameters()) == 859_520_964
    assert sum(p.numel() for p in vae.parameters()) == 83_653_863
