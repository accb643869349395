"""Crops that are encoded once: the same every time, and no frozen network works in a step."""

import numpy as np
import pytest
import torch

from cdiff.config_file import load_config
from cdiff.generator.model import Generator
from cdiff.generator.patches import cut_patches
from cdiff.generator.training import train_generator
from cdiff.generator.views import KeptViews
from cdiff.workers import Part


@pytest.fixture(scope="module")
def config(tiny_overrides, checkpoint, clip_encoder):
    return load_config(
        None,
        [
            *tiny_overrides,
            "generator.backbone=latent",
            f"generator.weights={checkpoint}",
            "generator.resolution=64",
            "generator.views=3",
            "safe.features=clip",
            f"safe.weights={clip_encoder}",
            "safe.layers=[1,-1]",
            "safe.side=28",
        ],
    )


@pytest.fixture
def known(photos, config, tmp_path, monkeypatch):
    monkeypatch.setenv("CDIFF_CACHE", str(tmp_path))
    torch.manual_seed(0)
    generator = Generator(config.generator, config.safe)
    ids = [sample.sample_id for sample in photos.samples]
    normals = [sample.sample_id for sample in photos.samples if sample.is_normal]
    targets = photos.all_targets(ids)
    patches = cut_patches(photos, targets, normals, config.generator, np.random.default_rng(0))
    return generator, patches, targets, normals


def test_a_step_runs_no_frozen_network_and_draws_the_same_again(known, config) -> None:
    generator, patches, *_ = known
    told: list[tuple[int, int]] = []
    views = KeptViews(generator, patches, config, generator.feature_cache(), lambda *done: told.append(done))
    assert told[-1] == (3 * len(patches.kinds), 3 * len(patches.kinds))
    runs: list[str] = []
    for name, part in (("safe", generator.safe.encoder), ("vae", generator.denoiser.vae.encoder)):
        part.register_forward_hook(lambda *_, name=name: runs.append(name))
    batch, again = (views.draw(5, Part()) for _ in range(2))
    assert not runs
    assert torch.equal(batch.clean.canvas_BCSS, again.clean.canvas_BCSS)
    assert batch.clean.canvas_BCSS.shape == (4, 4, 8, 8) and batch.clean.mask_B1RR.shape == (4, 1, 64, 64)
    assert batch.elsewhere_BND is not None and batch.tokens_BND.requires_grad
    halves = [views.draw(5, Part(number, 2)) for number in range(2)]
    assert torch.equal(halves[1].clean.canvas_BCSS, batch.clean.canvas_BCSS[1::2])
    assert torch.allclose(halves[0].tokens_BND, batch.tokens_BND[::2], atol=1e-6)
    generator.safe.encoder.register_forward_pre_hook(lambda *_: pytest.fail("looked at again"))
    KeptViews(generator, patches, config, generator.feature_cache())  # from the cache


def test_it_trains_on_them_and_resumes_to_the_same_weights(known, config, photos, tmp_path) -> None:
    _, _, targets, normals = known
    folders = [tmp_path / name for name in ("whole", "cut")]
    whole = train_generator(photos, targets, normals, config, folders[0])

    def cut(step, *_) -> None:
        if step == 4:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train_generator(photos, targets, normals, config, folders[1], cut)
    assert train_generator(photos, targets, normals, config, folders[1]) == whole
    assert Generator.load(folders[0] / whole.revision).pretrained.keys() == {"generator", "safe"}


def test_an_encoder_that_is_trained_cannot_be_kept(photos, tiny_config, tiny_generator) -> None:
    with pytest.raises(ValueError, match="cannot be kept"):
        KeptViews(tiny_generator, None, tiny_config, None)  # type: ignore[arg-type]
