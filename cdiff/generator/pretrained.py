"""A Stable-Diffusion-class checkpoint in a diffusers folder, read and made ready to learn masks.

SD 1.x, 2.x and their inpainting variants: UNet2DConditionModel with 4 latent channels (or those, the hole and the photo with the hole),
AutoencoderKL, and a scheduler whose settings say how noise grows and what is predicted.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKL, DDPMScheduler, UNet2DConditionModel
from diffusers.models.attention_processor import AttnProcessor2_0
from diffusers.models.embeddings import TimestepEmbedding
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from cdiff.config import GeneratorConfig
from cdiff.errors import ConfigError

# Learned whole: what is new, and what reads the SAFE tokens.
_WHOLE = ("conv_in.", "conv_out.", "class_embedding.", "attn2.to_k.", "attn2.to_v.")
# Changed by LoRA: the rest of the attention.
_LORA = r".*(attn1\.(to_q|to_k|to_v|to_out\.0)|attn2\.(to_q|to_out\.0))"
_KERNELS = {
    "flash": SDPBackend.FLASH_ATTENTION,
    "efficient": SDPBackend.EFFICIENT_ATTENTION,
    "math": SDPBackend.MATH,
}
_PREDICTIONS = ("epsilon", "v_prediction", "sample")


def adapted_unet(folder: Path, mask_channels: int, config: GeneratorConfig) -> Any:
    """The checkpoint's UNet with room for mask, region and second time, and with LoRA; what is learned requires gradients.

    Its settings say by `cdiff_inpaints` whether the checkpoint is one of inpainting, which is shown hole and photo already.

    Raises:
        ConfigError: the folder holds none, or one of another class.
    """
    unet = _part(UNet2DConditionModel, folder, "unet")
    known = unet.config
    if known.in_channels not in (4, 9) or known.out_channels != 4:
        raise ConfigError(
            f"{folder}/unet takes {known.in_channels} channels and gives {known.out_channels}: only checkpoints of 4 or, for inpainting, 9 and "
            "4 are known, as SD 1.5, 2.1 and their inpainting variants."
        )
    if known.class_embed_type or known.addition_embed_type or not isinstance(known.cross_attention_dim, int):
        raise ConfigError(
            f"{folder}/unet is conditioned on more than text and time: SDXL and unCLIP are not known."
        )
    inpaints = known.in_channels == 9
    more = 2 * mask_channels + (0 if inpaints else 4)
    unet.conv_in = _wider(unet.conv_in, more, 0)
    unet.conv_out = _wider(unet.conv_out, 0, mask_channels)
    second = TimestepEmbedding(known.block_out_channels[0], known.block_out_channels[0] * 4)
    nn.init.zeros_(second.linear_2.weight)
    nn.init.zeros_(second.linear_2.bias)
    unet.class_embedding = second
    unet.register_to_config(
        in_channels=unet.conv_in.in_channels,
        out_channels=unet.conv_out.out_channels,
        class_embed_type="timestep",
        cdiff_inpaints=inpaints,
    )
    _learning(unet, config)
    return unet


def merged(unet: Any, dtype: torch.dtype) -> Any:
    """A UNet of `adapted_unet`, changed for sampling alone: LoRA is part of the weights, and all are of one type."""
    from peft.tuners.tuners_utils import BaseTunerLayer

    for module in list(unet.modules()):
        for name, child in list(module.named_children()):
            if isinstance(child, BaseTunerLayer):
                child.merge()
                setattr(module, name, child.get_base_layer())
    return _in(dtype, unet)


class InOneType(nn.Module):
    """A merged UNet that is given float32, whatever autocast says.

    Autocast would leave norms in float32, whose traffic costs a card more than their arithmetic; diffusers' own pipelines compute in one type, too.
    """

    def __init__(self, unet: nn.Module, dtype: torch.dtype) -> None:
        super().__init__()
        self.unet, self._dtype = unet, dtype

    def forward(
        self,
        codes: torch.Tensor,
        step_B: torch.Tensor,
        encoder_hidden_states: torch.Tensor,
        class_labels: torch.Tensor,
    ) -> Any:
        with torch.autocast(codes.device.type, enabled=False):
            return self.unet(
                codes.to(self._dtype),
                step_B,
                encoder_hidden_states=encoder_hidden_states.to(self._dtype),
                class_labels=class_labels,
            )


def autoencoder(folder: Path, dtype: torch.dtype) -> Any:
    """The checkpoint's autoencoder, frozen."""
    return _in(dtype, _part(AutoencoderKL, folder, "vae").requires_grad_(False).eval())


def _in(dtype: torch.dtype, model: Any) -> Any:
    """The same with weights of this type; diffusers' own `to` warns of parts that should not be cast, even where there are none."""
    for part in (*model.parameters(), *model.buffers()):
        part.data = part.data.to(dtype)
    return model


def noise_levels(folder: Path) -> tuple[torch.Tensor, str]:
    """Share of the signal's variance at each of the checkpoint's steps, [T], falling; and what it predicts.

    Raises:
        ConfigError: no scheduler, or a prediction that is not known.
    """
    scheduler = _part(DDPMScheduler, folder, "scheduler")
    predicts = scheduler.config.prediction_type
    if predicts not in _PREDICTIONS:
        raise ConfigError(f"{folder}/scheduler predicts {predicts!r}: known are {', '.join(_PREDICTIONS)}.")
    return scheduler.alphas_cumprod.float(), predicts


@torch.inference_mode()
def prompt_tokens(folder: Path, prompt: str) -> torch.Tensor:
    """What the checkpoint's text encoder makes of a prompt, [1, T, D].

    Raises:
        ConfigError: transformers is not installed, or the folder has no text encoder.
    """
    try:
        from transformers import CLIPTextModel, CLIPTokenizer  # here: only who gives a prompt needs it
    except ImportError:
        raise ConfigError("generator.prompt needs transformers: pip install 'cdiff[latent]'.") from None
    tokenizer = _part(CLIPTokenizer, folder, "tokenizer")
    encoder = _part(CLIPTextModel, folder, "text_encoder").eval()
    length = tokenizer.model_max_length
    ids = tokenizer(prompt, padding="max_length", max_length=length, truncation=True, return_tensors="pt")
    return encoder(ids.input_ids).last_hidden_state.clone()


def attend_by(unet: Any, name: str) -> None:
    """Choose the kernel of the UNet's attention; "auto" leaves it to torch."""
    if name == "sliced":
        unet.set_attention_slice("auto")
    elif name in _KERNELS:
        unet.set_attn_processor(_Attention(name))


class _Attention(AttnProcessor2_0):
    """As diffusers' own, with one kernel; chosen in the call, so that it holds where activations are computed again."""

    def __init__(self, name: str) -> None:
        super().__init__()
        self.name = name

    def __call__(self, *arguments: Any, **options: Any) -> torch.Tensor:
        try:
            with sdpa_kernel(_KERNELS[self.name]):
                out: torch.Tensor = super().__call__(*arguments, **options)
                return out
        except RuntimeError as error:
            if "No available kernel" not in str(error) and "No viable backend" not in str(error):
                raise
            raise ConfigError(
                f"generator.attention={self.name}: this device has no such kernel for these numbers. Take auto; flash also wants sampling.dtype=bfloat16."
            ) from None


def _part(kind: Any, folder: Path, name: str) -> Any:
    """One part of a pipeline's folder, from this machine alone."""
    safe = {"use_safetensors": True} if issubclass(kind, nn.Module) else {}
    try:
        return kind.from_pretrained(folder, subfolder=name, local_files_only=True, **safe)
    except (OSError, ValueError, KeyError) as error:
        raise ConfigError(
            f"{folder} holds no {kind.__name__} in {name}/: {error}\nGive a folder that diffusers' save_pretrained wrote, with safetensors."
        ) from None


def _wider(conv: nn.Conv2d, more_in: int, more_out: int) -> nn.Conv2d:
    """A convolution with further channels, which take and give nothing at first."""
    sides: Any = {"kernel_size": conv.kernel_size, "padding": conv.padding}
    wide = nn.Conv2d(conv.in_channels + more_in, conv.out_channels + more_out, **sides)
    assert wide.bias is not None and conv.bias is not None
    with torch.no_grad():
        wide.weight.zero_()
        wide.bias.zero_()
        wide.weight[: conv.out_channels, : conv.in_channels] = conv.weight
        wide.bias[: conv.out_channels] = conv.bias
    return wide.to(conv.weight.dtype)


def _learning(unet: Any, config: GeneratorConfig) -> None:
    """Freeze all but what is learned; keep what is frozen as the configuration says."""
    try:
        from peft import LoraConfig
    except ImportError:
        raise ConfigError("generator.backbone=latent needs peft: pip install 'cdiff[latent]'.") from None
    rank = config.lora_rank
    unet.add_adapter(LoraConfig(r=rank, lora_alpha=rank, target_modules=_LORA), adapter_name="cdiff")
    for name, parameter in unet.named_parameters():
        parameter.requires_grad_(".lora_" in name or any(part in name for part in _WHOLE))
    if config.weights_dtype == "bfloat16":
        for module in unet.modules():  # norms are small, and stay exact
            if isinstance(module, nn.Linear | nn.Conv2d) and not module.weight.requires_grad:
                module.to(torch.bfloat16)
    if config.gradient_checkpointing:
        unet.enable_gradient_checkpointing()
