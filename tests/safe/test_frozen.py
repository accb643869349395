"""SAFE on frozen encoders: any size of crop, several layers, and nothing is looked at twice."""

from typing import Any

import pytest
import torch
from transformers import Dinov2Config, Dinov2Model

from cdiff.config import SafeConfig
from cdiff.errors import ConfigError
from cdiff.safe.cache import FeatureCache, keys_of
from cdiff.safe.frozen import FrozenEncoder
from cdiff.safe.tokens import Safe


@pytest.fixture(scope="module")
def dino_encoder(tmp_path_factory):
    torch.manual_seed(2)
    sizes: Any = {"hidden_size": 16, "num_hidden_layers": 3, "num_attention_heads": 2}
    folder = tmp_path_factory.mktemp("dino")
    Dinov2Model(Dinov2Config(image_size=28, patch_size=14, **sizes)).save_pretrained(folder)
    return folder


def config(kind, folder, **more) -> SafeConfig:
    return SafeConfig(
        features=kind, weights=str(folder), **({"layers": (1, -1), "side": 56, "dim": 32} | more)
    )


def crop(side: int, corner: int, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    image = torch.rand(1, 3, side, side, generator=torch.Generator().manual_seed(seed)) * 0.2
    mask = torch.zeros(1, 1, side, side)
    quarter = side // 4
    mask[:, :, corner * quarter : (corner + 1) * quarter, corner * quarter : (corner + 1) * quarter] = 1
    return image, mask


@pytest.mark.parametrize("kind", ["clip", "dino"])
@torch.inference_mode()
def test_maps_lie_where_the_crop_shows_it(kind, request) -> None:
    """What changes in one corner of a crop changes that corner's patch most, in the first layer."""
    encoder = FrozenEncoder(
        config(
            "dinov2" if kind == "dino" else kind, request.getfixturevalue(f"{kind}_encoder"), layers=(1, 2)
        ),
        request.getfixturevalue(f"{kind}_encoder"),
    )
    image, mask = crop(112, 3)
    before, after = encoder(image), encoder(image + mask)
    assert [level.shape for level in before] == [(1, 16, 4, 4)] * 2 and encoder.widths == (16, 16)
    change = (after[0] - before[0]).abs().mean(dim=1)[0]
    assert divmod(int(change.argmax()), 4) == (3, 3)


@pytest.mark.parametrize("side", [32, 100, 256])
def test_crops_of_any_size_have_tokens(clip_encoder, side) -> None:
    safe = Safe(config("clip", clip_encoder), clip_encoder)
    image, mask = crop(side, 1)
    tokens = safe(image, mask, ["metal/pit"])
    assert tokens.shape == (1, 2 + 4, 32) and torch.isfinite(tokens).all()
    tokens.sum().backward()
    assert all(p.grad is None for p in safe.encoder.parameters()), "frozen"
    assert safe.spatial.weight.grad is not None


def test_it_never_trains(clip_encoder) -> None:
    safe = Safe(config("clip", clip_encoder), clip_encoder).train()
    assert safe.frozen and not any(module.training for module in safe.encoder.modules())


@pytest.mark.parametrize(
    ("kind", "layers", "says"),
    [
        ("clip", (1, 9), "layers 1 to 3"),
        ("clip", (0, 1), "layers 1 to 3"),
        ("dinov2", (1, -1), "not dinov2|no dinov2"),
    ],
)
def test_what_is_no_such_encoder_is_refused(clip_encoder, kind, layers, says) -> None:
    with pytest.raises(ConfigError, match=says):
        FrozenEncoder(config(kind, clip_encoder, layers=layers), clip_encoder)


@torch.inference_mode()
def test_a_crop_is_looked_at_once_by_whoever_comes(clip_encoder, tmp_path) -> None:
    safe = Safe(config("clip", clip_encoder), clip_encoder).eval()
    looked = []
    safe.encoder.register_forward_hook(lambda _, given, __: looked.append(len(given[0])))
    images, masks = (torch.cat(parts) for parts in zip(crop(64, 0), crop(64, 2, 1), strict=True))
    plain = safe(images, masks, ["a", "b"])
    cache = FeatureCache(tmp_path)
    first = safe.tokens(safe.remembered(images, masks, cache))
    assert torch.equal(first, plain) and looked == [2, 2]
    cache.flush()
    (tmp_path / "torn.parquet").write_bytes(b"PAR1 torn")  # by a full disk: passed over
    again = FeatureCache(tmp_path)
    assert len(again) == 2
    assert torch.equal(safe.tokens(safe.remembered(images, masks, again)), plain) and looked == [2, 2]
    assert not again._new, "what is read is not written again"
    other = masks.roll(8, 2)
    safe.remembered(torch.cat([images, images[:1]]), torch.cat([masks, other[:1]]), again)
    assert looked == [2, 2, 1], "another mask is another content"
    assert keys_of(images, masks) != keys_of(images, other)


def test_what_lies_on_disk_is_not_held_in_memory(tmp_path, monkeypatch) -> None:
    for name, value in (("_PART", 4), ("_GROUP", 2), ("_GROUPS", 3)):
        monkeypatch.setattr(f"cdiff.safe.cache.{name}", value)
    cache = FeatureCache(tmp_path)
    vectors = {f"key {number}": torch.full((5,), float(number)) for number in range(18)}
    for key, vector in vectors.items():
        cache.put(key, vector)
    cache.flush()
    for found in (cache, FeatureCache(tmp_path)):
        assert len(found) == 18
        assert all(torch.equal(torch.as_tensor(found.get(key)), vector) for key, vector in vectors.items())
        assert len(found._read) == 3 and not found._new, "the three groups that were read last"
    part, *_ = found._where["key 0"]
    part.write_bytes(part.read_bytes()[:40])  # damaged since: looked at anew
    assert found.get("key 0") is None
    lent = FeatureCache(tmp_path, writes=False)
    lent.put("own", torch.ones(5))
    lent.flush()
    assert lent.get("own") is not None and FeatureCache(tmp_path).get("own") is None
