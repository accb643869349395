"""Training of SAFE and denoiser: it learns, resumes, and its checkpoints load."""

import dataclasses

import numpy as np
import pytest
import torch
from PIL import Image
from scipy import ndimage

from cdiff.config_file import load_config
from cdiff.data.dataset import Dataset
from cdiff.data.formats import read_sources
from cdiff.errors import DataError, RunError
from cdiff.generator.model import Generator
from cdiff.generator.objective import _weighted, draw_times, noised
from cdiff.generator.patches import augmented, cut_patches, regions
from cdiff.generator.training import TRAINING_STATE, train_generator


def _all(photos):
    ids = [sample.sample_id for sample in photos.samples]
    return photos.all_targets(ids), [sample.sample_id for sample in photos.samples if sample.is_normal]


def test_the_loss_falls(photos, tiny_overrides, tmp_path) -> None:
    config = load_config(None, [*tiny_overrides, "generator.steps=120", "generator.lr=2e-3"])
    targets, normals = _all(photos)
    losses = train_generator(photos, targets, normals, config, tmp_path).losses
    assert losses[-1] < 0.7 * losses[0]


class _Killed(Exception):
    pass


def test_a_training_that_was_killed_goes_on_to_the_very_same_weights(
    photos, tiny_config, tiny_generator, tmp_path
) -> None:
    def kill(step: int, steps: int, loss: float) -> None:
        if step == 5:
            raise _Killed

    targets, normals = _all(photos)
    with pytest.raises(_Killed):
        train_generator(photos, targets, normals, tiny_config, tmp_path, kill)
    steps = []
    stored = []
    again = train_generator(
        photos,
        targets,
        normals,
        tiny_config,
        tmp_path,
        lambda step, *_: steps.append(step),
        stored=lambda name: stored.append((name, (tmp_path / TRAINING_STATE).exists())),
    )
    assert steps == [4, 5, 6]  # from the checkpoint of step 3
    assert again.revision == tiny_generator.revision
    assert stored == [(TRAINING_STATE, True), (again.revision, True)], "of the last step, and the weights"


def test_a_training_whose_end_nobody_noted_is_not_done_again(photos, tiny_config, tmp_path) -> None:
    targets, normals = _all(photos)
    steps: list[int] = []
    work = photos, targets, normals, tiny_config, tmp_path, lambda step, *_: steps.append(step)
    first = train_generator(*work)
    assert train_generator(*work) == first and len(steps) == 6
    fewer = photos, targets[:-1], *work[2:]
    other = train_generator(*fewer)  # a training of something else begins anew
    assert len(steps) == 12 and other.revision != first.revision


def test_a_checkpoint_loads_with_its_own_configuration(tiny_generator, tmp_path) -> None:
    revision = tiny_generator.save(tmp_path)
    again = Generator.load(tmp_path / revision)
    assert again.config == tiny_generator.config
    assert all(
        torch.equal(a, b) for a, b in zip(again.parameters(), tiny_generator.parameters(), strict=True)
    )
    with pytest.raises(RunError, match="nowhere"):
        Generator.load(tmp_path / "nowhere")


def test_without_targets_there_is_a_clear_error(photos, tiny_config, tmp_path) -> None:
    with pytest.raises(DataError, match="no target"):
        train_generator(photos, [], [], tiny_config, tmp_path)


def test_all_uses_of_the_network_are_practised() -> None:
    image, mask = draw_times(4000, torch.Generator().manual_seed(0))
    assert ((image == mask).float().mean() - 0.35).abs() < 0.03
    assert ((mask == 0).float().mean() - 0.25).abs() < 0.03
    assert ((image == 0).float().mean() - 0.125).abs() < 0.03
    assert ((image == 1).float().mean() - 0.125).abs() < 0.03


def test_noise_lies_on_the_straight_path() -> None:
    clean, noise = torch.ones(3, 1, 2, 2), torch.zeros(3, 1, 2, 2)
    assert noised(clean, noise, torch.tensor([0.0, 0.25, 1.0])).mean(dim=(1, 2, 3)).tolist() == [1, 0.75, 0]


def test_training_crops_show_the_target_inside_its_region(photos, tiny_config) -> None:
    targets, normals = _all(photos)
    rng = np.random.default_rng(0)
    patches = cut_patches(photos, targets, normals, tiny_config.generator, rng)
    images, masks = augmented(patches, np.arange(len(targets)).repeat(5), 32, rng)
    assert images.shape == (30, 3, 32, 32) and float(images.abs().max()) <= 1
    assert (masks.amax(dim=(1, 2, 3)) > 0.9).all()
    dark = torch.tensor([kind.endswith("pit") for kind in patches.kinds]).repeat_interleave(5)
    inside = (images.mean(1, keepdim=True) * masks).sum((1, 2, 3)) / masks.sum((1, 2, 3))
    assert (inside[dark] < -0.4).all() and (inside[~dark] > 0.2).all()
    region = regions(masks, rng)
    assert ((masks > 0.5) & (region == 0)).sum() == 0
    assert 0 < region.mean() < 0.9
    # no pit and no bar on target-free crops
    assert len(patches.empty) and float(patches.empty.abs().max()) < 0.5


def test_a_hairline_is_hidden_in_training_as_it_is_painted_later() -> None:
    """Shrunk to a crop, a scratch of a pixel is grey: without a region the network would be shown all of it."""
    masks = torch.zeros(3, 1, 64, 64)
    masks[0, 0, 30, 5:60] = 0.08
    masks[1, 0, 20:40, 20:40] = 1
    found = regions(masks, np.random.default_rng(0))
    assert bool((found[0][masks[0] > 0] == 1).all()) and found[0].mean() < 0.6
    assert 0.1 < found[1].mean() < 0.6 and not found[2].any(), "no target, no region"


def test_a_region_is_the_mask_dilated_by_a_square() -> None:
    rng = np.random.default_rng(0)
    masks = torch.from_numpy((rng.random((6, 1, 48, 48)) > 0.995).astype(np.float32))
    found = regions(masks, np.random.default_rng(3))
    drawn = np.random.default_rng(3)
    for mask, region in zip(masks, found, strict=True):
        reach, chance = int(drawn.integers(2, 8)), drawn.random()
        if chance >= 0.2:
            square = ndimage.maximum_filter(mask[0].numpy(), 2 * reach + 1, mode="constant")
            assert np.array_equal(region[0].numpy(), square)


def test_a_crop_in_which_nothing_counts_gives_no_loss_that_is_no_number() -> None:
    error = torch.ones(2, 3, 4, 4)
    weight = torch.stack([torch.zeros(1, 4, 4), torch.ones(1, 4, 4)])
    assert _weighted(error, weight).tolist() == [0, 1]


@pytest.mark.parametrize("corner", [(0, 40), (0, 0), (90, 90), (88, 3)])
def test_no_crop_shows_a_target_without_its_mask(corner, tmp_path, tiny_config):
    """At a photo's border as amid it, where crops are mirrored and where they are not."""
    y, x = corner
    photo, mask = np.full((100, 100), 220, np.uint8), np.zeros((100, 100), np.uint8)
    photo[y : y + 10, x : x + 10], mask[y : y + 10, x : x + 10] = 10, 255
    for kind, pixels in (("images", photo), ("masks", mask)):
        (tmp_path / kind).mkdir()
        Image.fromarray(pixels).save(tmp_path / kind / "a.png")
    dataset = Dataset(read_sources([str(tmp_path)], None, tiny_config.data), tiny_config.data)
    targets, rng = dataset.all_targets(s.sample_id for s in dataset.samples), np.random.default_rng(0)
    patches = cut_patches(dataset, targets, [], tiny_config.generator, rng)
    images, masks = augmented(patches, np.zeros(40, int), 32, rng)
    dark = (images.mean(1, keepdim=True) < 0).float()
    assert (dark - masks).abs().mean() < 0.04 and masks.sum(dim=(1, 2, 3)).min() > 32 * 32 * 0.12


def test_one_network_serves_targets_of_two_kinds(tiny_generator, photos) -> None:
    targets, _ = _all(photos)
    bank = tiny_generator.bank(photos, targets)
    assert set(bank.tokens) == {target.target_id for target in targets}
    first, second = bank.tokens[targets[0].target_id], bank.tokens[targets[1].target_id]
    assert first.shape == (tiny_generator.safe.count, 32) and not torch.equal(first, second)
    changed = dataclasses.replace(targets[0], target_id=targets[0].target_id)
    assert torch.equal(tiny_generator.bank(photos, [changed])[changed.target_id], first)
