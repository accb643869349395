"""The segmenter contract, start weights, and weights on disk."""

import json

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from cdiff.config import DownstreamConfig
from cdiff.downstream.segmenter import build_segmenter, load_segmenter, save_segmenter, segmenter_config, unet
from cdiff.errors import ConfigError, RunError


def tiny(in_channels):
    return nn.Conv2d(in_channels, 1, 3, padding=1)


def half_size(in_channels):
    return nn.Conv2d(in_channels, 1, 3, padding=1, stride=2)


def two_channels(in_channels):
    return nn.Conv2d(in_channels, 2, 3, padding=1)


def grey_only(in_channels):
    return nn.Conv2d(1, 1, 3, padding=1)


def no_module(in_channels):
    return "a network"


def failing(in_channels):
    raise RuntimeError("no licence")


class Endless(nn.Module):
    def forward(self, batch):
        return batch[:, :1] / 0


def endless(in_channels):
    return Endless()


def config_of(function, **values):
    return DownstreamConfig(factory=f"{__name__}:{function}", **values)


def same_weights(one, other):
    pairs = zip(one.state_dict().items(), other.state_dict().items(), strict=True)
    return all(a == b and torch.equal(x, y) for (a, x), (b, y) in pairs)


def test_the_default_network_keeps_its_size_promise_and_takes_any_multiple_of_16_from_32_on():
    model = unet(3).eval()
    assert 0.5e6 < sum(parameter.numel() for parameter in model.parameters()) < 1.5e6
    for shape in ((32, 32), (48, 160), (112, 32)):
        assert model(torch.zeros(2, 3, *shape)).shape == (2, 1, *shape)


def test_start_weights_depend_on_the_seed_alone_and_leave_the_global_generator_alone():
    torch.manual_seed(5)
    first = build_segmenter(DownstreamConfig(), seed=1)
    drawn = torch.rand(3)
    torch.manual_seed(5)
    assert torch.equal(torch.rand(3), drawn)
    assert same_weights(first, build_segmenter(DownstreamConfig(), seed=1))
    assert not same_weights(first, build_segmenter(DownstreamConfig(), seed=2))


@pytest.mark.parametrize(
    ("function", "told"),
    [
        ("half_size", r"\[1, 1, 32, 32\]"),
        ("two_channels", r"\[1, 2, 64, 64\]"),
        ("grey_only", "failed on a"),
        ("no_module", "returned a str"),
        ("failing", "no licence"),
        ("endless", "not finite"),
        ("missing", "cannot be imported"),
    ],
)
def test_a_factory_that_breaks_the_contract_is_named_with_what_is_wrong(function, told):
    with pytest.raises(ConfigError, match=told):
        build_segmenter(config_of(function), seed=0)


@pytest.mark.parametrize("name", ["no_colon", "no.such.package:unet", ":unet", "json:"])
def test_a_factory_that_cannot_be_found_is_named(name):
    with pytest.raises(ConfigError, match=r"downstream\.factory"):
        build_segmenter(DownstreamConfig(factory=name), seed=0)


def test_the_users_own_weights_are_where_the_fit_starts(tmp_path):
    weights = {"weight": torch.full((1, 3, 3, 3), 0.25), "bias": torch.tensor([-1.0])}
    save_file(weights, tmp_path / "mine.safetensors")
    model = build_segmenter(config_of("tiny", weights=str(tmp_path / "mine.safetensors")), seed=3)
    assert all(torch.equal(model.state_dict()[name], value) for name, value in weights.items())


def test_weights_that_do_not_fit_are_named(tmp_path):
    save_file({"weight": torch.zeros(1, 3, 5, 5), "bias": torch.zeros(1)}, tmp_path / "shape.safetensors")
    save_file({"weight": torch.zeros(1, 3, 3, 3)}, tmp_path / "missing.safetensors")
    (tmp_path / "text.safetensors").write_text("not weights")
    for name in ("shape", "missing", "text", "absent"):
        with pytest.raises(ConfigError, match=f"{name}.safetensors"):
            build_segmenter(config_of("tiny", weights=str(tmp_path / f"{name}.safetensors")), seed=0)


def test_a_saved_segmenter_comes_back_with_weights_and_settings(tmp_path):
    config = DownstreamConfig(longest_side=99)
    model = build_segmenter(config, seed=4)
    revision = save_segmenter(model, tmp_path, config, {"round": 2})
    assert same_weights(model, load_segmenter(tmp_path / revision))
    assert not load_segmenter(tmp_path / revision).training
    assert segmenter_config(tmp_path / revision) == config
    assert json.loads((tmp_path / revision / "config.json").read_text())["round"] == 2
    assert [path.name for path in tmp_path.iterdir()] == [revision]


def test_a_revision_names_the_weights(tmp_path):
    config = config_of("tiny")
    model = build_segmenter(config, seed=4)
    first = save_segmenter(model, tmp_path, config)
    assert save_segmenter(build_segmenter(config, seed=4), tmp_path, config) == first
    assert save_segmenter(build_segmenter(config, seed=5), tmp_path, config) != first


def test_a_segmenter_loads_after_its_start_weights_are_gone(tmp_path):
    save_file({"weight": torch.zeros(1, 3, 3, 3), "bias": torch.zeros(1)}, tmp_path / "start.safetensors")
    config = config_of("tiny", weights=str(tmp_path / "start.safetensors"))
    revision = save_segmenter(build_segmenter(config, seed=0), tmp_path / "models", config)
    (tmp_path / "start.safetensors").unlink()
    assert load_segmenter(tmp_path / "models" / revision).state_dict()["bias"].item() == 0


def test_a_missing_or_damaged_revision_is_a_run_error(tmp_path):
    with pytest.raises(RunError, match="nowhere"):
        load_segmenter(tmp_path / "nowhere")
    config = config_of("tiny")
    revision = save_segmenter(build_segmenter(config, seed=0), tmp_path, config)
    file = tmp_path / revision / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-8])
    with pytest.raises(RunError, match="cannot read"):
        load_segmenter(tmp_path / revision)
