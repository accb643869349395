"""The whole configuration. Its groups, each setting with default, range, unit and reason: cdiff.settings. How it is read: cdiff.config_file."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from cdiff.settings.base import Settings
from cdiff.settings.cluster import ResourceConfig, TrackingConfig, TrainConfig
from cdiff.settings.data import DataConfig
from cdiff.settings.mining import GateConfig, SamplingConfig, WasmConfig
from cdiff.settings.networks import DownstreamConfig, GeneratorConfig, SafeConfig

__all__ = [
    "Config",
    "DataConfig",
    "DownstreamConfig",
    "GateConfig",
    "GeneratorConfig",
    "ResourceConfig",
    "SafeConfig",
    "SamplingConfig",
    "Settings",
    "TrackingConfig",
    "TrainConfig",
    "WasmConfig",
]


class Config(Settings):
    """The whole configuration of a run."""

    seed: int = Field(0, ge=0, description="Seed of the run: fits, plans and pairs.")
    rounds: int = Field(2, ge=1, description="Rounds of rank, plan, generate, gate, fit, commit.")
    control: Literal["copy_paste", "none"] = Field(
        "copy_paste",
        description="Rival in the report beside real photos alone: a fit with as many pasted copies of real targets as the kept model "
        "has pairs.",
    )
    data: DataConfig = DataConfig()
    safe: SafeConfig = SafeConfig()
    generator: GeneratorConfig = GeneratorConfig()
    sampling: SamplingConfig = SamplingConfig()
    downstream: DownstreamConfig = DownstreamConfig()
    wasm: WasmConfig = WasmConfig()
    gate: GateConfig = GateConfig()
    resources: ResourceConfig = ResourceConfig()
    train: TrainConfig = TrainConfig()
    tracking: TrackingConfig = TrackingConfig()

    @model_validator(mode="after")
    def _pretrained_parts(self) -> Config:
        generator, safe = self.generator, self.safe
        if (generator.backbone == "latent") != bool(generator.weights):
            raise ValueError(
                "generator.weights names the checkpoint of generator.backbone=latent: give both or none"
            )
        if (safe.features != "conv") != bool(safe.weights):
            raise ValueError(
                "safe.weights names the encoder of safe.features=clip or dinov2: give both or none"
            )
        latent_alone = (
            "prompt",
            "weights_dtype",
            "vae_dtype",
            "lora_rank",
            "gradient_checkpointing",
            "attention",
        )
        for name in latent_alone:
            if generator.backbone != "latent" and getattr(generator, name) != getattr(
                GeneratorConfig(), name
            ):
                raise ValueError(f"generator.{name}: only generator.backbone=latent has it")
        if generator.batch % generator.accumulate:
            raise ValueError("generator.accumulate: generator.batch must be a multiple of it")
        if generator.views and safe.features == "conv":
            raise ValueError(
                "generator.views keeps features: take a frozen encoder, safe.features=clip or dinov2"
            )
        if generator.weights_dtype == "bfloat16" and not (
            self.sampling.dtype == "bfloat16" and generator.bfloat16
        ):
            raise ValueError(
                "generator.weights_dtype=bfloat16 computes in bfloat16 alone: set sampling.dtype=bfloat16 and generator.bfloat16=true"
            )
        if generator.vae_dtype == "float16" and self.wasm.arm.endswith(("B2", "B4")):
            raise ValueError(
                f"arm {self.wasm.arm} goes back through the autoencoder, whose gradients float16 loses: set generator.vae_dtype=float32"
            )
        if self.sampling.dtype == "float16" and self.wasm.arm.startswith("B3"):
            raise ValueError(
                "arm B3 learns its token through the network, whose gradients float16 loses: set sampling.dtype=bfloat16"
            )
        return self

    @model_validator(mode="after")
    def _candidates_share_a_mask(self) -> Config:
        if self.sampling.mode == "joint" and self.wasm.arm not in ("B0", "B3"):
            raise ValueError(
                f"sampling.mode=joint draws a mask per candidate, arm {self.wasm.arm} compares or moves images of one mask: "
                "use B0 or B3"
            )
        return self
