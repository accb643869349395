"""Crop, paste and paste back."""

import numpy as np
import pytest
import torch
from scipy import ndimage

from cdiff.generator import paste
from cdiff.generator.blend import smoothed
from cdiff.generator.crops import cut, square_around, to_resolution
from cdiff.generator.paste import feathered, lay_out, paste_back, settle, warp
from cdiff.types import Pose, Target
from cdiff.wasm.measures import sharpness


def _photos(side: int = 160) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    rng = np.random.default_rng(0)
    background = rng.integers(90, 140, (side, side, 3)).astype(np.uint8)
    reference = rng.integers(90, 140, (side + 20, side - 10, 3)).astype(np.uint8)
    mask = np.zeros(reference.shape[:2], bool)
    mask[40:60, 30:80] = True
    reference[mask] = 20
    return background, reference, mask


TARGET = Target("a#0", "a", "metal", "pit", "g", (30, 40, 80, 60), 1000)
POSE = Pose(x=90.0, y=70.0, angle=30.0, scale=1.1, flip=True, elastic=0.05, margin=1.6)


def _canvas(pose: Pose = POSE, repaint: bool = False):
    background, reference, mask = _photos()
    rng = np.random.default_rng(1)
    photo = reference if repaint else background
    return photo, lay_out(
        photo, reference, mask, TARGET, pose, min_side=24, dilation=0.12, repaint=repaint, rng=rng
    )


@pytest.mark.parametrize("resolution", [32, 64, 128])
def test_start_strength_zero_is_exactly_copy_paste_at_full_resolution(resolution: int) -> None:
    photo, canvas = _canvas()
    generated = to_resolution(canvas.pasted, resolution) / 127.5 - 1
    mask = to_resolution(canvas.mask, resolution) * 2 - 1
    image, target = paste_back(photo, canvas, generated, mask, resolution=resolution, detail=1.0)
    inside = canvas.mask > 0.9
    assert np.abs(cut(image, canvas.box)[inside].astype(float) - canvas.pasted[inside]).max() <= 1.0
    assert np.array_equal(cut(target, canvas.box), canvas.mask > 0.5)


@pytest.mark.parametrize("level", [6, 60, 200, 252])
def test_a_target_pasted_on_its_own_surroundings_keeps_its_colours(level: int) -> None:
    photo = np.full((120, 120, 3), level, np.uint8)
    photo[50:70, 50:70] = (level + 90) % 256
    mask = (photo != level).all(axis=2)
    target = Target("a#0", "a", "metal", "pit", "g", (50, 50, 70, 70), 400)
    pose = Pose(x=60.0, y=60.0, angle=0.0, scale=1.0, flip=False, elastic=0.0, margin=2.0)
    rng = np.random.default_rng(0)
    canvas = lay_out(photo, photo, mask, target, pose, min_side=24, dilation=0.12, repaint=False, rng=rng)
    assert np.abs(canvas.pasted - cut(photo, canvas.box)).max() < 1


def test_a_bright_target_on_a_brighter_surface_does_not_burn_out() -> None:
    reference = np.full((120, 120, 3), 90, np.uint8)
    reference[45:75, 45:75] = 180
    reference[55:65, 55:65] = 210
    mask = np.zeros((120, 120), bool)
    mask[45:75, 45:75] = True
    target = Target("a#0", "a", "tissue", "polyp", "g", (45, 45, 75, 75), 900)
    pose = Pose(x=60.0, y=60.0, angle=0.0, scale=1.0, flip=False, elastic=0.0, margin=2.0)
    rng = np.random.default_rng(0)
    bright = np.full((120, 120, 3), 170, np.uint8)
    canvas = lay_out(
        bright, reference, mask, target, pose, min_side=24, dilation=0.12, repaint=False, rng=rng
    )
    left, top = canvas.box[:2]
    rim, core = (canvas.pasted[60 - top, x - left].mean() for x in (49, 60))
    assert 180 < rim < core - 5 < 250  # a gain of 170 / 90 would make white of both


def test_pixels_outside_the_region_equal_the_background_photo() -> None:
    photo, canvas = _canvas()
    noise = torch.rand(3, 64, 64, generator=torch.Generator().manual_seed(0)) * 2 - 1
    image, target = paste_back(photo, canvas, noise, torch.ones(1, 64, 64), resolution=64, detail=1.0)
    region = np.zeros(photo.shape[:2], bool)
    left, top, right, bottom = canvas.box
    region[top:bottom, left:right] = canvas.region
    assert (image != photo).any()
    assert np.array_equal(image[~region], photo[~region])
    assert not target[~region].any()


def test_a_tint_that_the_generator_adds_is_taken_back_and_its_light_is_kept() -> None:
    photo, canvas = _canvas()
    plain = to_resolution(canvas.pasted, 64) / 127.5 - 1
    tinted = (plain + torch.tensor([-0.1, 0.0, 0.1]).view(3, 1, 1)).clamp(-1, 1)
    darker = (plain - 0.1).clamp(-1, 1)
    mask = to_resolution(canvas.mask, 64) * 2 - 1
    inside = canvas.mask > 0.9

    def painted(generated: torch.Tensor, detail: float) -> np.ndarray:
        image, _ = paste_back(photo, canvas, generated, mask, resolution=64, detail=detail)
        return cut(image, canvas.box)[inside].astype(float).mean(axis=0)

    wanted = painted(plain, 1.0)
    assert np.abs(painted(tinted, 1.0) - wanted).max() < 3
    assert painted(tinted, 0.0)[2] - painted(plain, 0.0)[2] > 6  # from pure noise its colours are its own
    assert (painted(darker, 1.0) < wanted - 6).all()


@pytest.mark.parametrize("kept", [0.0, 0.4])
def test_a_target_that_the_generator_fades_is_given_its_contrast_back(kept: float) -> None:
    photo, canvas = _canvas()
    background, pasted = (
        to_resolution(array, 64) / 127.5 - 1 for array in (canvas.background, canvas.pasted)
    )
    faded = background + kept * (pasted - background)
    mask = to_resolution(canvas.mask, 64) * 2 - 1
    inside = canvas.mask > 0.9

    def painted(generated: torch.Tensor, detail: float) -> np.ndarray:
        image, _ = paste_back(photo, canvas, generated, mask, resolution=64, detail=detail)
        return cut(image, canvas.box)[inside].astype(float)

    assert np.abs(painted(faded, 1.0) - painted(pasted, 1.0)).max() <= 2  # of about 70 grey levels
    lost = painted(faded, 0.0).mean() - painted(pasted, 0.0).mean()  # the paste is dark
    assert lost > 0.5 * (1 - kept) * (canvas.background - canvas.pasted)[inside].mean()


def test_grain_and_outline_that_the_generator_smooths_are_those_of_the_real_target() -> None:
    """A scratch of the right mean whose grain is gone, under a mask whose outline is a little soft: as small generators draw them."""
    grain = np.random.default_rng(3).integers(-1, 2, (20, 20)).repeat(8, 0).repeat(8, 1) * 25
    photo = np.full((160, 160, 3), 120, np.uint8)
    reference, mask = photo.copy(), np.zeros((160, 160), bool)
    mask[48:112, 48:112] = True
    reference[mask] = (70 + grain)[mask][:, None].astype(np.uint8)
    target = Target("a#0", "a", "metal", "scratch", "g", (48, 48, 112, 112), 4096)
    pose = Pose(x=80.0, y=80.0, angle=0.0, scale=1.0, flip=False, elastic=0.0, margin=2.0)
    rng = np.random.default_rng(0)
    canvas = lay_out(photo, reference, mask, target, pose, min_side=24, dilation=0.12, repaint=False, rng=rng)
    pasted, drawn = to_resolution(canvas.pasted, 64) / 127.5 - 1, to_resolution(canvas.mask, 64) * 2 - 1
    smooth, soft = (
        torch.from_numpy(ndimage.gaussian_filter(part.numpy(), (0, sigma, sigma)))
        for part, sigma in ((pasted, 4.0), (drawn, 0.9))
    )

    def grain_of(crop: np.ndarray) -> float:
        grey = crop.astype(float).mean(axis=2)
        grey = ndimage.gaussian_filter(grey, 1.5)  # without the finest band, which is real anyway
        fine = grey - ndimage.gaussian_filter(grey, 8.0)
        return float(fine[ndimage.binary_erosion(canvas.mask > 0.5, iterations=8)].std())

    def outline_of(crop: np.ndarray) -> float:
        return sharpness(crop.round().astype(np.uint8), canvas.mask > 0.5)

    image, _ = paste_back(photo, canvas, smooth, soft, resolution=64, detail=1.0)
    assert grain_of(cut(image, canvas.box)) > 0.9 * grain_of(canvas.pasted)
    assert outline_of(cut(image, canvas.box)) > 0.7 * outline_of(canvas.pasted)


def test_the_change_fades_out_towards_the_border_of_the_region() -> None:
    photo, canvas = _canvas()
    bright = torch.ones(3, 64, 64)
    image, _ = paste_back(photo, canvas, bright, torch.ones(1, 64, 64), resolution=64, detail=0.0)
    change = np.abs(cut(image, canvas.box).astype(float) - canvas.background).mean(axis=2)
    from scipy import ndimage

    depth = ndimage.distance_transform_edt(canvas.region)
    rim = change[(depth > 0) & (depth <= 1)].mean()
    assert rim < 0.25 * change[canvas.mask > 0.9].mean()


@pytest.mark.parametrize(("strength", "own"), [(-60, True), (-4, False)])
def test_a_bold_target_keeps_its_texture_and_a_faint_one_lets_the_new_surface_through(
    strength: int, own: bool
) -> None:
    stripes = 14.0 * (np.arange(160) % 4 < 2)
    background = np.repeat((110 + np.tile(stripes, (160, 1)))[..., None], 3, 2).astype(np.uint8)
    reference = np.ascontiguousarray(background.transpose(1, 0, 2))  # the same grain, turned by a quarter
    mask = np.zeros((160, 160), bool)
    mask[40:80, 30:80] = True
    if own:  # a target with a checkered texture of its own
        checks = (np.indices((160, 160)) // 2).sum(0) % 2
        reference[mask] = np.clip(reference.astype(int) + strength * checks[..., None], 0, 255)[mask]
    else:
        reference[mask] = (reference.astype(int) + strength)[mask]
    target = Target("a#0", "a", "metal", "stain", "g", (30, 40, 80, 80), 2000)
    pose = Pose(x=80.0, y=80.0, angle=0.0, scale=1.0, flip=False, elastic=0.0, margin=1.8)
    rng = np.random.default_rng(0)
    canvas = lay_out(
        background, reference, mask, target, pose, min_side=24, dilation=0.12, repaint=False, rng=rng
    )
    middle = canvas.pasted[canvas.mask.shape[0] // 2 - 12 :, canvas.mask.shape[0] // 2 - 12 :][:24, :24, 0]
    along, across = np.abs(np.diff(middle, axis=0)).mean(), np.abs(np.diff(middle, axis=1)).mean()
    if own:
        assert along > 5 and across > 5
    else:
        assert across > 3 * along  # the background's stripes, not the reference's


@pytest.mark.parametrize("width", [1, 2, 4, 10])
def test_a_thin_crack_at_start_strength_zero_is_copy_paste_too(width: int) -> None:
    """Thinner than a pixel of the generator, it covers none whole; nothing of it may be given back twice."""
    background, reference = np.full((512, 512, 3), 120, np.uint8), np.full((512, 512, 3), 120, np.uint8)
    mask = np.zeros((512, 512), bool)
    mask[250 : 250 + width, 150:350] = True
    reference[mask] = 40
    target = Target("a#0", "a", "metal", "crack", "g", (150, 250, 350, 250 + width), int(mask.sum()))
    pose = Pose(x=256.0, y=256.0, angle=20.0, scale=1.0, flip=False, elastic=0.0, margin=1.6)
    rng = np.random.default_rng(0)
    canvas = lay_out(
        background, reference, mask, target, pose, min_side=24, dilation=0.12, repaint=False, rng=rng
    )
    crop, covered = to_resolution(canvas.pasted, 64) / 127.5 - 1, to_resolution(canvas.mask, 64) * 2 - 1
    image, _ = paste_back(background, canvas, crop, covered, resolution=64, detail=1.0)
    inner = canvas.feather() > 0.999
    difference = np.abs(cut(image, canvas.box).astype(float) - canvas.pasted)[inner]
    assert inner.sum() > 100 and difference.max() <= 1.5


@pytest.mark.parametrize("angle", [0.0, 45.0, 80.0, 180.0])
@pytest.mark.parametrize("flip", [False, True])
def test_a_turned_target_lies_in_the_middle_of_its_crop_and_meets_no_border(angle: float, flip: bool) -> None:
    background, reference = np.full((2, 512, 512, 3), 120, np.uint8)
    mask = np.zeros((512, 512), bool)
    for step in range(120):  # a diagonal scratch: turned by 45 degrees it is longer than its box
        mask[200 + step : 206 + step, 200 + step : 206 + step] = True
    target = Target("a#0", "a", "metal", "crack", "g", (200, 200, 325, 325), int(mask.sum()))
    pose = Pose(x=256.0, y=256.0, angle=angle, scale=1.0, flip=flip, elastic=0.0, margin=1.3)
    rng = np.random.default_rng(0)
    canvas = lay_out(
        background, reference, mask, target, pose, min_side=24, dilation=0.12, repaint=False, rng=rng
    )
    rows, columns = np.nonzero(canvas.mask > 0.5)
    side = canvas.mask.shape[0]
    longer = max(np.ptp(rows), np.ptp(columns)) + 1
    assert side == pytest.approx(1.3 * longer, abs=3), "as wide around it as around real targets in training"
    assert rows.min() + rows.max() == pytest.approx(side - 1, abs=4)
    assert columns.min() + columns.max() == pytest.approx(side - 1, abs=4)
    weights = canvas.feather()
    assert max(weights[[0, -1]].max(), weights[:, [0, -1]].max()) < 0.05


def test_no_weight_falls_where_the_photo_ends() -> None:
    region = np.zeros((40, 40), bool)
    region[:, :20] = True
    ends, within = feathered(region, 8.0, (True, True, False, True)), feathered(region, 8.0, (False,) * 4)
    assert (ends[:, :8] == 1).all() and ends[0, 0] == 1
    assert within[0].max() < 0.15 and within[:, 0].max() < 0.15 and within[20, 10] == 1
    assert (feathered(np.ones((40, 40), bool), 8.0, (True,) * 4) == 1).all()


def test_the_pose_carries_the_target_to_its_place() -> None:
    _, canvas = _canvas(Pose(x=90.0, y=70.0, angle=0.0, scale=1.0, flip=False, elastic=0.0, margin=1.6))
    rows, columns = np.nonzero(canvas.mask > 0.5)
    x, y = columns.mean() + 0.5 + canvas.box[0], rows.mean() + 0.5 + canvas.box[1]
    # The pose settles by at most 0.35 of the longer side (50 px), towards like surroundings.
    assert abs(x - 90) <= 0.35 * 50 + 1 and abs(y - 70) <= 0.35 * 50 + 1
    assert abs((canvas.mask > 0.5).sum() - 1000) < 60


@pytest.mark.parametrize("sigma", [3.0, 9.0, 40.0])
def test_wide_smoothing_gives_the_means_of_full_size(sigma: float) -> None:
    light = np.repeat(np.linspace(40, 220, 300, dtype=np.float32)[None], 300, 0)
    ring = np.zeros((300, 300), np.float32)
    ring[100:104, 60:220] = ring[100:200, 60:64] = 1
    seen = np.stack([ring, ring * light], -1)
    (weight, total), (rough_weight, rough_total) = (
        np.moveaxis(smoothed, -1, 0)
        for smoothed in (ndimage.gaussian_filter(seen, (sigma, sigma, 0)), smoothed(seen, sigma))
    )
    near = weight > 0.1 * weight.max()
    means, rough_means = total[near] / weight[near], rough_total[near] / rough_weight[near]
    assert np.abs(rough_means - means).max() < 3  # grey levels, of 180 from left to right


def test_a_pose_settles_where_its_surroundings_continue() -> None:
    """A target above an edge of light comes to lie above the edge of the other photo, however large the photos are."""
    for side in (80, 640):
        reference = np.full((side, side, 3), 60, np.uint8)
        reference[side // 2 :] = 170
        background = np.full((side, side, 3), 60, np.uint8)
        background[round(side * 0.55) :] = 170
        mask = np.zeros((side, side), bool)
        box = (round(side * 0.4), round(side * 0.4), round(side * 0.6), side // 2)
        mask[box[1] : box[3], box[0] : box[2]] = True
        target = Target("a#0", "a", "metal", "pit", "g", box, int(mask.sum()))
        pose = Pose(x=side / 2, y=side * 0.45, angle=0.0, scale=1.0, flip=False, elastic=0.0, margin=1.6)
        settled = settle(background, reference, mask, target, pose, np.random.default_rng(0))
        assert abs(settled.y - side * 0.5) <= 0.03 * side and abs(settled.x - pose.x) <= 0.03 * side


def test_repainting_leaves_the_photo_as_start_and_the_mask_in_place() -> None:
    photo, canvas = _canvas(
        Pose(x=55.0, y=50.0, angle=0.0, scale=1.0, flip=False, elastic=0.0, margin=1.6), True
    )
    assert np.array_equal(canvas.pasted, cut(photo, canvas.box).astype(np.float32))
    assert (canvas.mask > 0.5).sum() == 1000


def test_a_crop_beyond_the_border_is_mirrored_and_its_mask_empty() -> None:
    image = np.arange(16, dtype=np.uint8).reshape(4, 4)
    assert cut(image, (-1, -1, 2, 2)).tolist() == [[0, 0, 1], [0, 0, 1], [4, 4, 5]]
    assert cut(image > 99, (-1, -1, 2, 2)).tolist() == [[False] * 3] * 3


def test_tiny_targets_get_surroundings_and_large_ones_fit() -> None:
    left, _, right, _ = square_around(50, 50, 4, 1.3, 24, 400)
    assert right - left == 24
    left, _, right, _ = square_around(50, 50, 390, 2.2, 24, 400)
    assert right - left == 400


@pytest.mark.parametrize(
    ("x", "y", "scale", "angle"),
    [(300, 200, 1.0, 30), (20, 15, 1.4, -50), (560, 380, 0.5, 0), (300, 200, 9.0, 10)],
)
def test_a_target_is_cut_from_what_the_grid_reaches_as_from_the_whole_photo(
    x, y, scale, angle, monkeypatch
) -> None:
    """On photos of megapixels, whose other parts took most of the time; beyond a border all is mirrored."""
    rng = np.random.default_rng(0)
    image, mask = rng.integers(0, 256, (400, 600, 3)).astype(np.uint8), np.zeros((400, 600), bool)
    mask[150:190, 260:330] = True
    target = Target("a#0", "a", "c", "t", "g", (260, 150, 330, 190), 2800)
    pose = Pose(x, y, angle, scale, True, 0.05, 1.6)
    box = square_around(x, y, 70 * scale, 1.6, 32, 600)
    near = warp(image, mask, target, pose, box, np.random.default_rng(1))
    whole = np.concatenate([image.astype(np.float32), mask[..., None].astype(np.float32)], axis=2)
    monkeypatch.setattr(paste, "_reached", lambda *_: whole)
    for one, other in zip(near, warp(image, mask, target, pose, box, np.random.default_rng(1)), strict=True):
        assert np.array_equal(one, other)
