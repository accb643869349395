"""SAFE tokens and their pooling."""

import pytest
import torch

from cdiff.config import SafeConfig
from cdiff.errors import RunError
from cdiff.safe.features import grid_weights, masked_mean
from cdiff.safe.tokens import Safe, TokenBank, scene_contrast


def test_masked_mean_equals_the_plain_mean_over_the_masked_pixels() -> None:
    features = torch.randn(2, 5, 8, 8, generator=torch.Generator().manual_seed(0))
    mask = torch.zeros(2, 1, 8, 8)
    mask[0, 0, 2:5, 1:3] = 1
    mask[1, 0, 7, 7] = 1
    pooled = masked_mean(features, mask)
    assert torch.allclose(pooled[0], features[0, :, 2:5, 1:3].mean(dim=(1, 2)), atol=1e-5)
    assert torch.allclose(pooled[1], features[1, :, 7, 7], atol=1e-5)
    assert torch.isfinite(masked_mean(features, torch.zeros(2, 1, 8, 8))).all()


def test_grid_weights_cut_the_mask_into_parts_of_its_own_box() -> None:
    mask = torch.zeros(1, 1, 16, 16)
    mask[0, 0, 4:8, 2:12] = 1
    parts = grid_weights(mask, 2)
    assert torch.equal(parts.sum(dim=1), mask[:, 0])
    assert [int(part.sum()) for part in parts[0]] == [10, 10, 10, 10]


def test_the_scene_counts_only_once_alpha_has_left_zero() -> None:
    torch.manual_seed(0)
    safe = Safe(SafeConfig(channels=(16, 32), dim=16, spatial=0))
    pooled_only = [safe.inside[i] for i in range(2)]
    image, mask = torch.randn(1, 3, 32, 32), torch.zeros(1, 1, 32, 32)
    mask[..., 8:24, 8:24] = 1
    features = safe.encoder(image)
    plain = torch.stack(
        [layer(masked_mean(f, mask)) for layer, f in zip(pooled_only, features, strict=True)], 1
    )
    assert torch.allclose(safe(image, mask, ["a"] * len(image)), safe.norm(plain), atol=1e-5)
    with torch.no_grad():
        safe.alpha.fill_(0.5)
    assert not torch.allclose(safe(image, mask, ["a"] * len(image)), safe.norm(plain), atol=1e-3)


def test_contrast_rewards_tokens_that_survive_a_change_of_scene() -> None:
    generator = torch.Generator().manual_seed(0)
    here = torch.nn.functional.normalize(torch.randn(6, 16, generator=generator), dim=1)
    empty = torch.nn.functional.normalize(torch.randn(6, 16, generator=generator), dim=1)
    kinds = ["a", "a", "b", "b", "c", "c"]
    kept = scene_contrast(here, here, empty, kinds, 0.1)
    mixed = scene_contrast(here, here.roll(2, dims=0), empty, kinds, 0.1)
    assert kept < 0.2 < mixed


def test_another_target_of_the_same_type_is_no_negative() -> None:
    one = torch.nn.functional.normalize(torch.ones(2, 8), dim=1)
    empty = -one
    assert scene_contrast(one, one, empty, ["a", "a"], 0.1) < 1e-3
    assert scene_contrast(one, one, empty, ["a", "b"], 0.1) > 0.5


def test_a_bank_round_trips_and_names_a_target_that_it_lacks(tmp_path) -> None:
    bank = TokenBank({"a#0": torch.randn(3, 4)}, "bank-1")
    bank.save(tmp_path / "bank-1.safetensors")
    again = TokenBank.load(tmp_path / "bank-1.safetensors")
    assert torch.equal(again["a#0"], bank["a#0"]) and again.revision == "bank-1"
    with pytest.raises(RunError, match="b#1"):
        again["b#1"]


def test_the_ablation_knows_the_type_and_nothing_else():
    torch.manual_seed(0)
    label = Safe(SafeConfig(channels=(8, 16), dim=32, tokens="label"))
    image, mask = torch.rand(3, 3, 32, 32), torch.ones(3, 1, 32, 32)
    tokens = label(image, mask, ["metal/pit", "metal/pit", "metal/bar"])
    assert tokens.shape == (3, label.count, 32)
    assert torch.equal(tokens[0], tokens[1]) and not torch.allclose(tokens[0], tokens[2])
    assert label.labels is not None and Safe(SafeConfig(channels=(8, 16), dim=32)).labels is None


def test_a_place_without_a_weakness_is_idle_and_a_weakness_joins_it():
    safe = Safe(SafeConfig(channels=(8, 16), dim=32))
    tokens = torch.rand(2, safe.count, 32)
    idle, joined = safe.fused(tokens), safe.fused(tokens, torch.ones(2, 1, 32))
    assert idle.shape == (2, safe.count + 1, 32)
    assert torch.equal(idle[:, :-1], tokens) and torch.equal(joined[:, :-1], tokens)
    assert torch.allclose(joined[:, -1] - idle[:, -1], torch.ones(2, 32))
