"""Foreground, object frames and poses."""

import math

import numpy as np
import pytest
from scipy import ndimage

from cdiff.config import SamplingConfig
from cdiff.generator.paste import warp
from cdiff.generator.placement import _laid, cut_off, draw_pose, foreground, frame_of, repaint_pose, room
from cdiff.types import Pose, Target


def _bolt(angle: float, side: int = 200) -> np.ndarray:
    """A dark bolt with a thick head on a light ground, turned counter-clockwise on the screen."""
    rng = np.random.default_rng(0)
    image = np.full((side, side), 200.0)
    image[92:108, 40:160] = 60
    image[80:120, 40:60] = 60
    turned = ndimage.rotate(image, angle, reshape=False, order=1, mode="nearest")
    noisy = turned + rng.normal(0, 3, turned.shape)
    return np.repeat(noisy.clip(0, 255).astype(np.uint8)[..., None], 3, axis=2)


def _disc(radius: int) -> np.ndarray:
    """A dark nut without any axis amid a photo of 200 x 200."""
    y, x = np.mgrid[:200, :200] - 100
    grey = np.where(x**2 + y**2 <= radius**2, 60, 200) + np.random.default_rng(0).normal(0, 3, (200, 200))
    return np.repeat(grey.clip(0, 255).astype(np.uint8)[..., None], 3, axis=2)


def test_an_object_on_plain_ground_is_found_and_a_texture_is_all_foreground() -> None:
    mask = foreground(_bolt(0))
    assert mask[100, 100] and not mask[10, 10]
    texture = np.random.default_rng(0).integers(60, 200, (150, 150, 3)).astype(np.uint8)
    assert foreground(texture).all()


def test_black_corners_and_boxes_are_no_place_for_a_target_and_dark_spots_are() -> None:
    photo = np.random.default_rng(0).integers(60, 200, (150, 150, 3)).astype(np.uint8)
    photo[100:, :60] = 3  # a box over the frame's corner
    photo[60:80, 70:90] = 3  # a lumen
    mask = foreground(photo)
    assert not mask[110:, :50].any()
    assert mask[:90].all()
    beside, far = np.zeros((2, 150, 150), bool)
    beside[80:99, 20:50] = far[30:60, 90:120] = True
    assert cut_off(photo, [beside, far, np.zeros_like(far)]) == [True, False, False]
    frame = frame_of(photo)
    assert (frame.cx, frame.cy) == (75, 75)  # places still refer to the whole photo
    box, lumen, lit, off = frame.covered(np.array([25, 80, 120, 160]), np.array([125, 70, 30, 30]))
    assert box < 0.1 and off == 0 and lit > 0.9
    assert lumen < 0.4  # nobody sees a target there
    assert foreground(photo // 16).all()  # dark all over


def test_on_a_large_photo_all_is_found_as_on_one_that_was_averaged_down() -> None:
    """At full size it took most of a start's time: 12 megapixels are three seconds each."""
    small = _bolt(30)
    large = small.repeat(10, 0).repeat(10, 1)  # 2,000 pixels: averaged down by two
    near, far = frame_of(small), frame_of(large)
    assert (far.width, far.height) == (2000, 2000) and far.oriented and abs(far.angle - near.angle) < 1
    assert far.cx == pytest.approx(10 * near.cx + 4.5, abs=8) and far.cy == pytest.approx(
        10 * near.cy + 4.5, abs=8
    )
    assert far.length == pytest.approx(10 * near.length, rel=0.03)
    found = foreground(large)
    assert (
        found.shape == large.shape[:2]
        and (found != foreground(small).repeat(10, 0).repeat(10, 1)).mean() < 0.01
    )
    texture = (
        np.random.default_rng(0).integers(60, 200, (300, 401, 3)).astype(np.uint8).repeat(6, 0).repeat(6, 1)
    )
    texture[1200:, :400] = 3  # a box over the corner
    whole = frame_of(texture)
    assert (whole.cx, whole.cy, whole.length, whole.breadth) == (
        1203,
        900,
        2406,
        1800,
    ) and not whole.stands_out
    lit = foreground(texture)
    assert not lit[1300:, :300].any() and lit[:1100].all() and lit[1300:, 500:].all()
    beside = np.zeros(lit.shape, bool)
    beside[1000:1190, 100:300] = True
    assert cut_off(texture, [beside, ~lit & False]) == [True, False]


def test_an_objects_soft_shadow_is_no_part_of_it() -> None:
    photo = _bolt(0).astype(float)
    shadow = np.zeros((200, 200))
    shadow[100:122, 44:166] = 1
    shade = 70 * ndimage.gaussian_filter(shadow, 4)[..., None]
    shaded = np.where(photo > 150, photo - shade, photo).clip(0, 255).astype(np.uint8)
    mask = foreground(shaded)
    assert mask[100, 60:150].all()
    assert not mask[114, 80:150].any()
    photo[92:108, 130:160] = 115  # a bolt of two metals: the light one is no shadow, it has an edge
    assert foreground(photo.astype(np.uint8))[95:105, 135:155].all()
    plain, dark = frame_of(_bolt(0)), frame_of(shaded)
    assert abs(plain.cy - dark.cy) < 2 and abs(plain.length - dark.length) < 6


@pytest.mark.parametrize("angle", [0, 35, 90, 140, -60])
def test_a_place_on_the_object_turns_with_the_object(angle: float) -> None:
    still, turned = frame_of(_bolt(0)), frame_of(_bolt(angle))
    head = still.to_object(50, 100)
    x, y = turned.to_photo(*head)
    radians = math.radians(-angle)  # y points down on the screen
    wanted = (100 + (50 - 99.5) * math.cos(radians), 100 + (50 - 99.5) * math.sin(radians))
    assert math.hypot(x - wanted[0], y - wanted[1]) < 8


def test_poses_keep_to_the_object_and_near_the_real_place() -> None:
    target = Target("a#0", "a", "bolt", "scratch", "g", (130, 95, 146, 105), 100)
    reference, background = frame_of(_bolt(0)), frame_of(_bolt(70))
    rng = np.random.default_rng(0)
    poses = [
        draw_pose(target, reference, background, (), SamplingConfig(), (1.3, 2.2), rng) for _ in range(40)
    ]
    on_object = background.covered(np.array([p.x for p in poses]), np.array([p.y for p in poses]))
    assert np.mean(on_object > 0.3) > 0.9
    along = [background.to_object(p.x, p.y)[0] for p in poses]
    assert abs(np.mean(along) - reference.to_object(138, 100)[0]) < 0.08


@pytest.mark.parametrize(("size", "wanted"), [("pixels", 30), ("share", 60)])
def test_a_target_keeps_its_pixels_or_its_share_of_a_photo_of_another_size(size: str, wanted: float) -> None:
    texture = np.random.default_rng(0).integers(60, 200, (300, 200, 3)).astype(np.uint8)
    target = Target("a#0", "a", "tissue", "polyp", "g", (60, 60, 90, 90), 700)
    config, rng = SamplingConfig(size=size, scale=(1, 1)), np.random.default_rng(0)
    reference, background = frame_of(texture[::2, ::2]), frame_of(texture)
    pose = draw_pose(target, reference, background, (), config, (1.3, 2.2), rng)
    assert pose.scale * 30 == pytest.approx(wanted)
    bolts = frame_of(_bolt(0)), frame_of(np.repeat(np.repeat(_bolt(40), 2, 0), 2, 1))
    pose = draw_pose(target, *bolts, (), config, (1.3, 2.2), rng)
    assert pose.scale * 30 == pytest.approx(wanted, rel=0.1)
    discs = frame_of(_disc(25)), frame_of(_disc(50))  # one camera, nearer and further
    pose = draw_pose(target, *discs, (), config, (1.3, 2.2), rng)
    assert pose.scale * 30 == pytest.approx(wanted, rel=0.1)
    pose = draw_pose(target, discs[0], frame_of(texture[:200, :200]), (), config, (1.3, 2.2), rng)
    assert pose.scale == pytest.approx(1), "nothing stands out there: photos are compared, which are equal"


@pytest.mark.parametrize("angle", [0, 70])
def test_a_target_at_the_objects_end_comes_to_lie_at_the_end(angle: float) -> None:
    # half on the tip, half on the ground
    target = Target("a#0", "a", "bolt", "bent", "g", (150, 92, 170, 108), 200)
    reference, background = frame_of(_bolt(0)), frame_of(_bolt(angle))
    rng = np.random.default_rng(0)
    config = SamplingConfig(jitter=0.2)
    poses = [draw_pose(target, reference, background, (), config, (1.3, 2.2), rng) for _ in range(40)]
    tip = reference.to_object(160, 100)[0]
    away = [abs(background.to_object(p.x, p.y)[0] - tip) * background.length for p in poses]
    assert np.quantile(away, 0.9) < 8  # the jitter alone gives 20


def test_a_new_target_keeps_clear_of_the_photos_own_where_there_is_room() -> None:
    texture = np.random.default_rng(0).integers(60, 200, (150, 150, 3)).astype(np.uint8)
    frame = frame_of(texture)
    target = Target("a#0", "a", "tissue", "polyp", "g", (60, 60, 90, 90), 700)
    rng = np.random.default_rng(0)
    config = SamplingConfig(jitter=0.5)
    poses = [draw_pose(target, frame, frame, [(60, 60, 90, 90)], config, (1.3, 2.2), rng) for _ in range(30)]
    clear = [max(abs(p.x - 75), abs(p.y - 75)) >= 15 + 15 * p.scale for p in poses]
    assert np.mean(clear) > 0.8
    assert np.median([p.scale for p in poses]) > 0.9  # there is room at full size


def test_room_is_what_is_lit_and_not_covered_by_the_photos_own_targets() -> None:
    image = np.random.default_rng(0).integers(60, 200, (120, 120, 3)).astype(np.uint8)
    image[:, :40] = 0  # a black frame
    frame = frame_of(image)
    target = Target("a#0", "a", "tissue", "polyp", "g", (60, 60, 90, 80), 400)

    def at(x: float, y: float, *occupied: tuple[int, int, int, int]) -> float:
        pose = Pose(x, y, angle=0.0, scale=1.0, flip=False, elastic=0.0, margin=1.5)
        return room(target, pose, frame, list(occupied))

    assert at(80, 60) > 0.98
    assert at(40, 60) == pytest.approx(0.5, abs=0.1), "half of it lies on the frame"
    assert at(15, 60) < 0.02
    assert at(80, 60, (50, 30, 110, 90)) == 0, "the photo's own target hides it"
    assert at(80, 60, (65, 50, 95, 70)) < 0.02, "an own one of its size and place does"
    assert at(80, 40, (50, 60, 110, 110)) > 0.98


def test_where_there_is_no_room_beside_the_photos_own_a_new_target_is_smaller() -> None:
    texture = np.random.default_rng(0).integers(60, 200, (150, 150, 3)).astype(np.uint8)
    frame = frame_of(texture)
    target = Target("a#0", "a", "tissue", "polyp", "g", (40, 40, 110, 110), 700)
    rng = np.random.default_rng(0)
    config, occupied = SamplingConfig(jitter=0.7, scale=(1, 1)), [(100, 0, 150, 150), (0, 0, 50, 150)]

    def overlap(poses: list[Pose]) -> float:
        spans = [(p.x - 35 * p.scale, p.x + 35 * p.scale) for p in poses]
        return float(np.mean([(max(0, 50 - low) + max(0, high - 100)) / (high - low) for low, high in spans]))

    poses = [draw_pose(target, frame, frame, occupied, config, (1.3, 2.2), rng) for _ in range(30)]
    first = [draw_pose(target, frame, frame, occupied, config, (1.3, 2.2), rng, tries=1) for _ in range(30)]
    assert np.median([p.scale for p in poses]) < 0.7
    assert overlap(poses) < 0.2 < 0.28 < overlap(first)


def test_where_targets_may_meet_a_new_one_keeps_its_size() -> None:
    texture = np.random.default_rng(0).integers(60, 200, (150, 150, 3)).astype(np.uint8)
    frame = frame_of(texture)
    target = Target("a#0", "a", "tissue", "polyp", "g", (40, 40, 110, 110), 700)
    config, occupied = SamplingConfig(crowded=1, scale=(1, 1)), [(40, 40, 110, 110)]
    poses = [
        draw_pose(target, frame, frame, occupied, config, (1.3, 2.2), np.random.default_rng(seed))
        for seed in range(9)
    ]
    assert {pose.scale for pose in poses} == {1.0}
    assert all(abs(p.x - 75) < 70 and abs(p.y - 75) < 70 for p in poses)  # there is no place beside it


@pytest.mark.parametrize("flip", [False, True])
def test_places_around_a_target_go_where_the_paste_puts_them(flip: bool) -> None:
    mask = np.zeros((80, 90), bool)
    mask[30:33, 52:55] = True  # a dot beside the target's centre, which is at (40, 35)
    target = Target("a#0", "a", "metal", "pit", "g", (30, 25, 50, 45), 400)
    pose = Pose(x=64.0, y=50.0, angle=50.0, scale=1.4, flip=flip, elastic=0.0, margin=2.0)
    image = np.zeros((80, 90, 3), np.uint8)
    _, coverage = warp(image, mask, target, pose, (0, 0, 120, 120), np.random.default_rng(0))
    rows, columns = np.nonzero(coverage > 0.5)
    (x,), (y,) = _laid([pose], np.array(53.5 - 40), np.array(31.5 - 35))
    assert abs(x - columns.mean() - 0.5) < 1 and abs(y - rows.mean() - 0.5) < 1


def test_a_repaint_stays_in_place() -> None:
    pose = repaint_pose(
        Target("a#0", "a", "t", "p", "g", (10, 20, 30, 60), 9), (1.3, 2.2), np.random.default_rng(0)
    )
    assert (pose.x, pose.y, pose.angle, pose.scale, pose.flip) == (20, 40, 0, 1, False)


def test_poses_that_are_weighed_together_are_laid_as_each_alone_to_the_last_bit() -> None:
    """Which pose wins decides a task's id: a run that was planned before must be planned again alike."""
    rng = np.random.default_rng(4)
    steps = np.linspace(-1, 1, 9)
    dx, dy = (17.3 * grid for grid in np.meshgrid(steps, steps))
    places, angles, scales = (
        rng.uniform(0, 128, (200, 2)),
        rng.uniform(-180, 180, 200),
        rng.uniform(0.5, 2, 200),
    )
    drawn = [
        Pose(x, y, angle, scale, number % 2 > 0, 0.0, 1.7)
        for number, ((x, y), angle, scale) in enumerate(
            zip(places.tolist(), angles.tolist(), scales.tolist(), strict=True)
        )
    ]
    found = np.stack(_laid(drawn, dx, dy), axis=1)
    for pose, together in zip(drawn, found, strict=True):
        cos, sin = math.cos(math.radians(pose.angle)), math.sin(math.radians(pose.angle))
        down = -dy if pose.flip else dy
        alone = pose.x + pose.scale * (dx * cos - down * sin), pose.y + pose.scale * (dx * sin + down * cos)
        assert np.array_equal(together, np.stack(alone))
        assert (
            np.abs(together[0]).mean() == np.abs(found[:, 0]).reshape(200, -1).mean(axis=1)[drawn.index(pose)]
        )
