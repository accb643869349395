"""A pretrained checkpoint's folder: refused by name when it is not one, and brought from a bucket."""

import shutil
from typing import Any

import pytest
from diffusers import UNet2DConditionModel

from cdiff.config_file import load_config
from cdiff.data import origin
from cdiff.data.weights import demand_weights, local_weights, weights_sum
from cdiff.errors import ConfigError, RunError
from cdiff.generator.model import Generator
from tests.generator.test_latent import settings


def test_other_weights_under_the_same_name_are_refused(tmp_path, checkpoint, tiny_overrides) -> None:
    moved = tmp_path / "sd"
    shutil.copytree(checkpoint, moved)
    config = settings(tiny_overrides, moved)
    revision = Generator(config.generator, config.safe).save(tmp_path)
    Generator.load(tmp_path / revision)
    unet = moved / "unet" / "diffusion_pytorch_model.safetensors"
    data = bytearray(unet.read_bytes())
    data[-1] ^= 1
    unet.write_bytes(data)
    weights_sum.cache_clear()
    with pytest.raises(RunError, match="Put the former back, or train anew"):
        Generator.load(tmp_path / revision)


def _third_level(folder) -> None:
    """A UNet that halves four times."""
    unet: Any = UNet2DConditionModel.from_config(
        UNet2DConditionModel.load_config(folder, subfolder="unet")
        | {
            "block_out_channels": (32,) * 5,
            "down_block_types": ("CrossAttnDownBlock2D",) + ("DownBlock2D",) * 4,
            "up_block_types": ("UpBlock2D",) * 4 + ("CrossAttnUpBlock2D",),
        }
    )
    unet.save_pretrained(folder / "unet")


@pytest.mark.parametrize(
    ("broken", "says"),
    [
        (lambda f: shutil.rmtree(f / "scheduler"), "holds no DDPMScheduler in scheduler/"),
        (lambda f: _third_level(f), r"resolution=64: this checkpoint takes multiples of 128"),
        (lambda f: (f / "unet" / "diffusion_pytorch_model.safetensors").rename(f / "unet" / "x.bin"), "unet"),
    ],
)
def test_a_folder_that_is_no_checkpoint_is_refused_by_name(
    broken, says, checkpoint, tmp_path, tiny_overrides
) -> None:
    shutil.copytree(checkpoint, tmp_path / "sd")
    broken(tmp_path / "sd")
    config = settings(tiny_overrides, tmp_path / "sd")
    with pytest.raises(ConfigError, match=says):
        Generator(config.generator, config.safe)


def test_what_cannot_work_is_refused_before_anything_is_loaded(tiny_overrides, checkpoint) -> None:
    for more, says in (
        ("generator.accumulate=3", "must be a multiple"),
        ("generator.backbone=pixel", "give both or none"),
        ("generator.views=2", "frozen encoder"),
        ("generator.weights_dtype=bfloat16", "sampling.dtype=bfloat16"),
    ):
        with pytest.raises(ConfigError, match=says):
            settings(tiny_overrides, checkpoint, more)
    for name in ("attention=math", "vae_dtype=float16"):
        with pytest.raises(ConfigError, match=r"only generator\.backbone=latent has it"):
            load_config(None, [*tiny_overrides, f"generator.{name}"])
    for arm in ("B2", "B3+B2", "B4"):
        with pytest.raises(ConfigError, match="goes back through the autoencoder"):
            settings(tiny_overrides, checkpoint, "generator.vae_dtype=float16", f"wasm.arm={arm}")
    with pytest.raises(ConfigError, match="learns its token through the network"):
        settings(tiny_overrides, checkpoint, "sampling.dtype=float16", "wasm.arm=B3+B1")
    with pytest.raises(ConfigError, match="no commit"):
        local_weights("owner/name@main")
    with pytest.raises(ConfigError, match="no such folder"):
        local_weights("/nowhere/at/all")
    with pytest.raises(RunError, match="hf download owner/name"):
        local_weights("owner/name@" + "0" * 40)


def test_weights_are_brought_from_a_bucket(bucket, checkpoint, tmp_path, monkeypatch) -> None:
    from cdiff.data.storage import storage_at

    monkeypatch.setenv("CDIFF_CACHE", str(tmp_path))
    storage = storage_at(f"{bucket}/models/sd")
    for path in checkpoint.rglob("*"):
        if path.is_file():
            storage.send(path.relative_to(checkpoint).as_posix(), path)
    unread = (
        "unet/diffusion_pytorch_model.fp16.safetensors",
        "v1-5-pruned.safetensors",
        "safety_checker/model.safetensors",
    )
    for name in unread:  # as repositories hold them beside
        storage.write(name, b"gigabytes")
    demand_weights(f"{bucket}/models/sd/")  # with or without the slash
    assert not list(tmp_path.rglob("*.safetensors")), "asked for, not fetched"
    found = local_weights(f"{bucket}/models/sd")
    parts = ("unet", "vae", "scheduler", "tokenizer")
    assert found.is_relative_to(tmp_path) and weights_sum(found, parts) == weights_sum(checkpoint, parts)
    assert not any((found / name).exists() for name in unread)
    damaged = found / "unet" / "diffusion_pytorch_model.safetensors"
    right = damaged.read_bytes()
    damaged.write_bytes(b"half of it")
    monkeypatch.setattr(origin, "_checked", {})  # as in another process
    local_weights(f"{bucket}/models/sd")
    assert damaged.read_bytes() == right
    for ask in (local_weights, demand_weights):
        with pytest.raises(RunError, match="nothing lies under"):
            ask(f"{bucket}/models/none")
