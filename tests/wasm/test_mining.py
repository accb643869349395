"""Arms B0 and B1, the shared mask, and that a pair's pixels depend on its task alone."""

import copy
import dataclasses
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from cdiff.generator.crops import cut, to_resolution
from cdiff.generator.denoiser import Denoiser
from cdiff.generator.placement import draw_pose, frame_of
from cdiff.generator.sampling import Sampler
from cdiff.generator.states import Condition
from cdiff.types import GenerationTask, Pose, Recipe, Revisions, Strengths
from cdiff.wasm.calibration import label_agreement
from cdiff.wasm.labels import mask_agreement
from cdiff.wasm.layout import detail_share, spell_out
from cdiff.wasm.mining import Miners, Produced, make_pairs


@pytest.fixture(scope="module")
def tasks(photos, tiny_config) -> list[GenerationTask]:
    rng = np.random.default_rng(0)
    targets = photos.all_targets(s.sample_id for s in photos.samples)
    normals = [s.sample_id for s in photos.samples if s.is_normal]
    recipe = Recipe("mask_first", "B0", 1, 0.25, 4, "euler", "float32", 3, 1)
    out = []
    for number, target in enumerate(targets[:5]):
        frames = frame_of(photos.image(target.sample_id)), frame_of(photos.image(normals[number]))
        pose = draw_pose(target, *frames, (), tiny_config.sampling, (1.3, 2.2), rng)
        strengths = Strengths(2.0, (0.25, 0.5, 0.75, 1.0, 0.5)[number])
        out.append(
            GenerationTask(
                recipe, target.target_id, normals[number], pose, strengths, number, Revisions("g", "b")
            )
        )
    return out


@pytest.fixture(scope="module")
def bank(photos, tiny_generator):
    return tiny_generator.bank(photos, photos.all_targets(s.sample_id for s in photos.samples))


@pytest.mark.parametrize("mode", ["joint", "mask_first", "given_mask"])
def test_a_pair_has_the_same_pixels_alone_and_among_others(
    mode, tasks, bank, photos, tiny_config, tiny_generator
) -> None:
    tasks = [dataclasses.replace(t, recipe=dataclasses.replace(t.recipe, mode=mode)) for t in tasks]
    together = make_pairs(tiny_generator, bank, tasks, photos, tiny_config)
    for task, among in list(zip(tasks, together, strict=True))[1:4]:
        alone = make_pairs(tiny_generator, bank, [task], photos, tiny_config)[0]
        assert np.array_equal(alone.image, among.image)
        assert np.array_equal(alone.mask, among.mask)


@pytest.mark.parametrize(("at_once", "threads"), [(1, 1), (3, 2)])
def test_other_batches_and_threads_change_a_pair_by_a_rounding_at_most(
    at_once, threads, tasks, bank, photos, tiny_config, tiny_generator
) -> None:
    sampling = tiny_config.sampling.model_copy(update={"micro_batch": at_once})
    other = tiny_config.model_copy(update={"sampling": sampling})
    before = make_pairs(tiny_generator, bank, tasks, photos, tiny_config)
    torch.set_num_threads(threads)
    try:
        after = make_pairs(tiny_generator, bank, tasks, photos, other)
    finally:
        torch.set_num_threads(1)
    for one, two in zip(before, after, strict=True):
        assert np.abs(one.image.astype(int) - two.image.astype(int)).max() <= 1
        assert (one.mask != two.mask).mean() < 0.001


def test_nothing_changes_outside_the_region(tasks, bank, photos, tiny_config, tiny_generator) -> None:
    for pair in make_pairs(tiny_generator, bank, tasks, photos, tiny_config):
        left, top, right, bottom = pair.layout.box
        outside = np.ones(pair.target.shape, bool)
        outside[max(0, top) : bottom, max(0, left) : right] = False
        assert np.array_equal(pair.image[outside], pair.layout.photo[outside])
        assert not (pair.target & outside).any()


def test_a_given_mask_is_the_real_targets_own(tasks, bank, photos, tiny_config, tiny_generator) -> None:
    task = dataclasses.replace(tasks[1], recipe=dataclasses.replace(tasks[1].recipe, mode="given_mask"))
    pair = make_pairs(tiny_generator, bank, [task], photos, tiny_config)[0]
    left, top, right, bottom = pair.layout.box
    wanted = pair.layout.canvas.mask > 0.5
    if left >= 0 and top >= 0 and right <= pair.target.shape[1] and bottom <= pair.target.shape[0]:
        assert np.array_equal(pair.target[top:bottom, left:right], wanted)
    assert abs(int(pair.target.sum()) - int(wanted.sum())) <= 0.1 * wanted.sum()


def test_best_of_k_finishes_the_candidate_that_the_judge_finds_hardest(
    tasks, bank, photos, tiny_config, tiny_generator
) -> None:
    recipe = dataclasses.replace(tasks[0].recipe, arm="B1", candidates=4, fraction=1.0)
    task = dataclasses.replace(tasks[3], recipe=recipe)  # from pure noise: candidates differ most
    seen: list[float] = []

    def darkness(image, target, layout) -> float:
        seen.append(-float(image[target].mean()) if target.any() else -np.inf)
        return seen[-1]

    pair = make_pairs(tiny_generator, bank, [task], photos, tiny_config, Miners(judge=darkness))[0]
    assert len(seen) == 4 and len(set(seen)) > 1
    assert -float(pair.image[pair.target].mean()) == pytest.approx(max(seen), abs=1.0)


@pytest.mark.parametrize("mode", ["mask_first", "given_mask", "joint"])
def test_start_strength_0_pastes_the_real_target(
    mode, tasks, bank, photos, tiny_config, tiny_generator
) -> None:
    """As `sampling.start_strength=0` does, under the mining arm of the profiles as well."""
    arm = "B0" if mode == "joint" else "B1"
    recipe = dataclasses.replace(tasks[1].recipe, mode=mode, arm=arm, candidates=2, fraction=0.5)
    strengths = dataclasses.replace(tasks[1].strengths, start_strength=0.0)
    task = dataclasses.replace(tasks[1], recipe=recipe, strengths=strengths)
    miners = Miners(judge=lambda image, target, layout: 0.0)
    pair = make_pairs(tiny_generator, bank, [task], photos, tiny_config, miners)[0]
    left, top, right, bottom = pair.layout.box
    canvas = pair.layout.canvas
    assert left >= 0 and top >= 0 and right <= pair.target.shape[1] and bottom <= pair.target.shape[0]
    inside = canvas.mask > 0.99
    made = pair.image[top:bottom, left:right].astype(float)
    assert inside.any() and np.abs(made - canvas.pasted)[inside].max() <= 1
    assert np.array_equal(pair.target[top:bottom, left:right], canvas.mask > 0.5)


def test_candidates_of_one_task_share_the_mask(tasks, bank, photos, tiny_config, tiny_generator) -> None:
    recipe = dataclasses.replace(tasks[0].recipe, arm="B1", candidates=3)
    task = dataclasses.replace(tasks[1], recipe=recipe)
    masks = []

    def judge(image, target, layout) -> float:
        masks.append(target)
        return 0.0

    make_pairs(tiny_generator, bank, [task], photos, tiny_config, Miners(judge=judge))
    # Fine detail follows the shared coarse mask, not the candidate's colours.
    assert len(masks) == 3
    assert all(np.array_equal(masks[0], mask) for mask in masks)


def test_a_target_is_repainted_on_its_own_photo_and_the_others_are_kept(photos, tiny_config) -> None:
    target = photos.all_targets(s.sample_id for s in photos.samples)[0]
    left, top, right, bottom = target.box
    pose = Pose((left + right) / 2, (top + bottom) / 2, 0.0, 1.0, False, 0.0, 1.6)
    recipe = Recipe("given_mask", "B0", 1, 0.25, 4, "euler", "float32", 3, 1)
    task = GenerationTask(
        recipe, target.target_id, target.sample_id, pose, Strengths(2, 0.5), 0, Revisions("", "")
    )
    layout = spell_out(task, photos, tiny_config)
    assert np.array_equal(layout.kept, photos.mask(target.sample_id) & ~photos.target_mask(target.target_id))
    assert np.array_equal(layout.canvas.pasted, layout.canvas.background)


def test_a_new_target_beside_the_photos_own_gives_the_union(
    photos, bank, tiny_config, tiny_generator
) -> None:
    first, second = photos.all_targets(s.sample_id for s in photos.samples)[:2]
    pose = Pose(20.0, 20.0, 0.0, 1.0, False, 0.0, 1.6)
    recipe = Recipe("mask_first", "B0", 1, 0.25, 4, "euler", "float32", 3, 1)
    task = GenerationTask(
        recipe, first.target_id, second.sample_id, pose, Strengths(2, 0.25), 0, Revisions("", "")
    )
    pair = make_pairs(tiny_generator, bank, [task], photos, tiny_config)[0]
    own = photos.mask(second.sample_id)
    assert (pair.mask & own).sum() == own.sum()
    assert np.array_equal(pair.mask, own | pair.target)


def test_a_new_target_that_meets_the_photos_own_is_what_lies_beside_it(
    photos, bank, tiny_config, tiny_generator
) -> None:
    """The label of such a pair is right when both are read; hidden for the most part, it is no new target."""
    first, second = photos.all_targets(s.sample_id for s in photos.samples)[:2]
    own = photos.mask(second.sample_id)
    (left, top, right, bottom), (first_left, _, first_right, _) = second.box, first.box
    edge = right + 0.2 * (first_right - first_left)  # a paste there still meets the photo's own target
    recipe = Recipe("given_mask", "B0", 1, 0.25, 4, "euler", "float32", 3, 1)

    def made(scale: float, x: float, generator: Any = tiny_generator) -> Produced:
        pose = Pose(x, (top + bottom) / 2, 0.0, scale, False, 0.0, 1.6)
        task = GenerationTask(
            recipe, first.target_id, second.sample_id, pose, Strengths(2, 0.0), 0, Revisions("", "")
        )
        return make_pairs(generator, bank, [task], photos, tiny_config)[0]

    pair = made(1.0, edge)
    assert (pair.layout.canvas.mask > 0.5).sum() > pair.target.sum() > 0
    assert not (pair.target & own).any()
    reads = copy.deepcopy(tiny_generator)
    reads.denoiser = Heading(to_resolution(cut(pair.mask, pair.layout.box), 32) * 2 - 1)
    assert made(1.0, edge, reads).label_iou > 0.95
    assert not made(0.2, (left + right) / 2).target.any()


def test_real_detail_returns_fully_up_to_half_noise_and_not_at_all_from_pure_noise() -> None:
    assert [detail_share(tau) for tau in (0, 0.5, 0.75, 1)] == [1, 1, 0.5, 0]


@pytest.mark.parametrize("mode", ["L", "RGB"])
def test_a_grey_photo_stays_grey(tasks, bank, photos, tiny_config, tiny_generator, tmp_path, mode) -> None:
    """However many channels its file has: programs save greys in three as well."""
    from cdiff.data.dataset import Dataset

    samples = []
    for number, sample in enumerate(photos.samples):
        path = tmp_path / f"{number}.png"
        Image.open(sample.image).convert("L").convert(mode).save(path)
        samples.append(dataclasses.replace(sample, mode=mode, image=str(path)))
    grey = Dataset(samples, tiny_config.data)
    task = tasks[3]  # from pure noise: the network is free to bring colour
    coloured = make_pairs(tiny_generator, bank, [task], photos, tiny_config)[0]
    pair = make_pairs(tiny_generator, bank, [task], grey, tiny_config)[0]

    def tint(produced) -> int:
        changed = (produced.image != produced.layout.photo).any(axis=2)
        return int(np.ptp(produced.image[changed].astype(int), axis=1).max())

    assert tint(pair) == 0 < tint(coloured)  # the reference's own detail is coloured, too


class Heading(Denoiser):
    """A denoiser that is sure of one mask, whatever it is shown, and leaves the image as it is."""

    def __init__(self, mask_1RR: torch.Tensor) -> None:
        super().__init__()
        self.mask = mask_1RR

    def evaluate(self, image, mask, *_):
        return image, self.mask.expand_as(mask)


def test_a_mask_that_the_generator_loses_is_the_real_targets_own(
    tasks, bank, photos, tiny_config, tiny_generator
) -> None:
    blind = copy.deepcopy(tiny_generator)
    blind.denoiser = Heading(torch.full((1, 32, 32), -0.8))  # coverage a tenth: no pixel would be over a half
    task = dataclasses.replace(tasks[1], recipe=dataclasses.replace(tasks[1].recipe, mode="mask_first"))
    given = dataclasses.replace(task, recipe=dataclasses.replace(task.recipe, mode="given_mask"))
    drawn, own = (make_pairs(blind, bank, [t], photos, tiny_config)[0] for t in (task, given))
    assert own.target.any() and own.own_mask
    assert np.array_equal(drawn.target, own.target) and drawn.own_mask


def test_a_mask_that_the_generator_varies_is_the_drawn_one(
    tasks, bank, photos, tiny_config, tiny_generator
) -> None:
    task = dataclasses.replace(tasks[0], recipe=dataclasses.replace(tasks[0].recipe, mode="mask_first"))
    given = dataclasses.replace(task, recipe=dataclasses.replace(task.recipe, mode="given_mask"))
    own = make_pairs(tiny_generator, bank, [given], photos, tiny_config)[0]
    coarse = to_resolution(own.layout.canvas.mask, 32) * 2 - 1
    wider = copy.deepcopy(tiny_generator)
    wider.denoiser = Heading(torch.nn.functional.max_pool2d(coarse, 3, stride=1, padding=1))
    drawn = make_pairs(wider, bank, [task], photos, tiny_config)[0]
    assert not drawn.own_mask
    assert (
        drawn.target.sum() > 1.1 * own.target.sum()
        and (drawn.target & own.target).sum() > 0.9 * own.target.sum()
    )


def test_a_thin_mask_agrees_with_itself_and_not_with_another_place() -> None:
    thin = torch.zeros(1, 32, 32)
    thin[:, 10, 4:28] = 0.4  # a scratch of less than half a pixel
    haze = torch.where(thin > 0, thin, 0.05)  # what networks leave where there is nothing
    image, region, tokens = torch.zeros(3, 32, 32), torch.zeros(1, 32, 32), torch.zeros(2, 8)
    reader = Heading(haze * 2 - 1)
    condition = Condition.of(reader, image, region, tokens, image, thin)
    sampler = Sampler(reader, tokens, steps=4, micro_batch=2)

    def agreement(mask: torch.Tensor) -> float:
        return mask_agreement(sampler, [condition], [image], [mask], [0])[0]

    assert agreement(thin) == pytest.approx(1, abs=1e-4)
    assert agreement(torch.roll(thin, 2, 1)) < 0.1
    assert agreement(torch.roll(thin, 8, 2)) == pytest.approx(0.5, abs=0.05)  # 16 of 32 pixels in common
    assert agreement(torch.zeros(1, 32, 32)) == 0


def test_where_the_photo_shows_a_target_of_its_own_masks_are_not_compared() -> None:
    """A new target that meets the photo's own: the network reads both, and the mask of the new one is right."""
    own, new = torch.zeros(1, 32, 32), torch.zeros(1, 32, 32)
    own[:, 4:16, 4:16], new[:, 12:24, 12:24] = 1.0, 1.0
    both = torch.maximum(own, new)
    image, region, tokens = torch.zeros(3, 32, 32), torch.zeros(1, 32, 32), torch.zeros(2, 8)
    reader = Heading(both * 2 - 1)
    condition = Condition.of(reader, image, region, tokens, image, new)
    sampler = Sampler(reader, tokens, steps=4, micro_batch=2)

    def agreement(mask: torch.Tensor, *kept: torch.Tensor) -> float:
        return mask_agreement(sampler, [condition], [image], [mask], [0], kept)[0]

    assert agreement(new) == pytest.approx(144 / 272, abs=1e-3)  # 2 x 144 less 16 in common
    assert agreement(new, own) == pytest.approx(1, abs=1e-3)
    assert agreement(torch.roll(new, 6, 2), own) < 0.5  # elsewhere it is compared as ever
    assert agreement(own, own) == 0  # hidden by the photo's own: nothing new is shown


def test_pairs_and_real_targets_agree_by_coverage(photos, bank, tiny_config, tiny_generator, tasks) -> None:
    """A generator that reads every mask right finds thin labels right, on real targets and on made ones."""
    target = photos.target(tasks[1].reference)
    task = dataclasses.replace(tasks[1], recipe=dataclasses.replace(tasks[1].recipe, mode="given_mask"))
    pair = make_pairs(tiny_generator, bank, [task], photos, tiny_config)[0]
    reads = copy.deepcopy(tiny_generator)
    reads.denoiser = Heading(to_resolution(cut(pair.target, pair.layout.box), 32) * 2 - 1)
    again = make_pairs(reads, bank, [task], photos, tiny_config)[0]
    assert np.array_equal(again.target, pair.target)
    assert again.label_iou == pytest.approx(1, abs=1e-3)
    rows = label_agreement(reads, photos, [target.target_id], tiny_config, np.random.default_rng(0))
    assert 0 < rows[0][1]["label_iou"] < 1  # another pose than the one that this generator reads


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no NVIDIA GPU")
def test_pairs_are_made_on_a_gpu(tasks, photos, tiny_config, tiny_generator) -> None:
    moved = copy.deepcopy(tiny_generator).to("cuda")
    bank = moved.bank(photos, photos.all_targets(s.sample_id for s in photos.samples))
    for pair in make_pairs(moved, bank, tasks, photos, tiny_config):
        assert 0 <= pair.label_iou <= 1
