"""The mining arms that learn or climb: B2, B3 and B4, against the control B0."""

import copy
import dataclasses

import numpy as np
import pytest
import torch
from torch import nn

from cdiff.errors import RunError
from cdiff.types import GenerationTask, Outcome, Pose, Recipe, Revisions, Strengths
from cdiff.wasm.adaptation import adapt
from cdiff.wasm.layout import composite, spell_out
from cdiff.wasm.mining import Miners, arm_of, condition_for, make_pairs, sampler_for, settle_masks
from cdiff.wasm.noise import NoiseMiner, train_noise_miner
from cdiff.wasm.production import local_loss
from cdiff.wasm.token import FEATURES, WeaknessToken, _others, features_of, train_weakness_token
from cdiff.wasm.view import difficulty, loss_around, seen_by


class Darkness(nn.Module):
    """A segmenter that takes what is dark for a target."""

    def __init__(self):
        super().__init__()
        self.scale = nn.Parameter(torch.tensor(-4.0))

    def forward(self, photos):
        return self.scale * photos.mean(dim=1, keepdim=True)


@pytest.fixture(scope="module")
def config(tiny_config):
    """No cap on difficulty: an untrained generator is hard everywhere."""
    wasm = tiny_config.wasm.model_copy(
        update={"kappa": 50.0, "miner_steps": 60, "miner_lr": 0.01, "miner_beta": 0.02, "token_steps": 8}
    )
    return tiny_config.model_copy(update={"wasm": wasm})


@pytest.fixture(scope="module")
def bank(tiny_generator, photos):
    return tiny_generator.bank(photos, photos.all_targets(s.sample_id for s in photos.samples))


@pytest.fixture
def tasks(photos):
    targets = photos.all_targets(s.sample_id for s in photos.samples)
    normals = [s.sample_id for s in photos.samples if s.is_normal]
    recipe = Recipe("given_mask", "B0", 1, 1.0, 4, "euler", "float32", 3, 1)
    return [
        GenerationTask(
            recipe,
            target.target_id,
            normals[number],
            Pose(40.0, 30.0 + number, 0.0, 1.0, False, 0.0, 1.6),
            Strengths(2.0, 0.5, weakness_strength=1.0, gradient_strength=0.2),
            number,
            Revisions("g", "b"),
        )
        for number, target in enumerate(targets[:5])
    ]


def under(tasks, arm):
    return [dataclasses.replace(task, recipe=dataclasses.replace(task.recipe, arm=arm)) for task in tasks]


def from_noise(task):
    """Up to half noise, pasting gives back what a target has lost of the real one: there it can hardly be made fainter."""
    return dataclasses.replace(task, strengths=dataclasses.replace(task.strengths, start_strength=1.0))


def jobs_of(tasks, photos, bank, generator, config, miners=None):
    sampler = sampler_for(generator, tasks[0].recipe, config)
    layouts = [spell_out(task, photos, config) for task in tasks]
    conditions = [condition_for(layout, generator, bank, miners or Miners()) for layout in layouts]
    return sampler, settle_masks(sampler, layouts, conditions, "given_mask")


def hardness(states, jobs, config):
    """As the segmenter sees the pasted photos, not the views that the arms climb on."""
    out = []
    for state, job in zip(states, jobs, strict=True):
        image, target = composite(job.layout, state.canvas_CSS, state.mask_1RR)
        out.append(local_loss(Darkness(), image, target | job.layout.kept, target, config))
    return np.array(out)


def finished(tasks, arm, photos, bank, generator, config, miners):
    sampler, jobs = jobs_of(under(tasks, arm), photos, bank, generator, config, miners)
    return arm_of(jobs[0].layout.task.recipe, miners, config).finish(sampler, jobs), jobs


def outcome(target, number):
    """Every second target is missed."""
    missed = float(number % 2)
    return Outcome(
        target.target_id,
        target.sample_id,
        target.category,
        target.type,
        target.group,
        0,
        0.1 + missed + 0.01 * number,
        1 - missed,
        missed,
        0.1,
        1 - missed,
        missed,
        0.1,
        0.2,
    )


@pytest.fixture(scope="module")
def outcomes(photos):
    targets = photos.all_targets(s.sample_id for s in photos.samples)
    return [outcome(target, number) for number, target in enumerate(targets)]


def test_a_view_is_as_hard_as_the_photo_that_is_pasted(tasks, photos, bank, tiny_generator, config):
    """Views leave out the bands of detail that pasting takes from the real target; the order must survive."""
    states, jobs = finished(tasks, "B0", photos, bank, tiny_generator, config, Miners())
    views = [seen_by(job, config) for job in jobs]
    images = torch.stack([state.canvas_CSS for state in states])
    seen = difficulty(Darkness(), views, images, 50.0).detach().numpy()
    pasted = hardness(states, jobs, config)
    assert seen == pytest.approx(pasted, rel=0.35)
    bare = [dataclasses.replace(view, detail=0.0) for view in views]
    plain = difficulty(Darkness(), bare, torch.stack([v.background_3RR for v in views]), 50.0)
    for view, value in zip(views, plain, strict=True):  # an unchanged crop is the background itself
        logits = Darkness()(view.photo_3SS[None])
        assert float(
            loss_around(logits.detach(), view.truth_1SS[None], view.target_1SS[None], view.counted_1SS[None])
        ) == pytest.approx(float(value.detach()), rel=1e-4)


@pytest.mark.parametrize("place", [(30, 30), (0, 30), (0, 0), (56, 10)])
def test_a_target_at_the_border_is_no_harder_than_one_amid_the_photo(place, config) -> None:
    """Beyond the border the photo is mirrored: who finds the mirrored half of a target as well is not wrong."""
    image, mask = np.full((64, 64, 3), 255, np.uint8), np.zeros((64, 64), bool)
    mask[place[0] : place[0] + 8, place[1] : place[1] + 8] = True
    image[mask] = 0
    segmenter = Darkness()
    segmenter.scale.data *= 3  # finds what is dark, and no more than that
    assert local_loss(segmenter, image, mask, mask, config) < 0.03


def test_the_gradient_makes_pairs_harder_and_leaves_the_mask_alone(
    tasks, photos, bank, tiny_generator, config
):
    miners = Miners(segmenter=Darkness())
    tasks = [from_noise(task) for task in tasks]
    plain, jobs = finished(tasks, "B0", photos, bank, tiny_generator, config, Miners())
    climbed, _ = finished(tasks, "B4", photos, bank, tiny_generator, config, miners)
    assert (hardness(climbed, jobs, config) > hardness(plain, jobs, config)).all()
    assert all(torch.equal(a.mask_1RR, b.mask_1RR) for a, b in zip(plain, climbed, strict=True))


def test_the_noise_miner_starts_as_plain_noise_and_learns_to_be_hard(
    tasks, photos, bank, tiny_generator, config
):
    tasks = [from_noise(task) for task in tasks]
    sampler, jobs = jobs_of(tasks, photos, bank, tiny_generator, config)
    fresh = NoiseMiner()
    noise = torch.randn(3, 32, 32, generator=torch.Generator().manual_seed(0))
    assert torch.equal(fresh.moved(jobs[0].condition, jobs[0].mask_1RR, noise), noise)
    miner = train_noise_miner(sampler, Darkness(), jobs, config, seed=0)
    moved = miner.moved(jobs[0].condition, jobs[0].mask_1RR, noise) - noise
    region = jobs[0].condition.scene.region_1SS.expand_as(moved) > 0
    assert (
        not moved[~region].any() and moved[region].any()
    )  # the surroundings keep the noise that the denoiser knows
    plain, _ = finished(tasks, "B0", photos, bank, tiny_generator, config, Miners())
    mined, _ = finished(tasks, "B2", photos, bank, tiny_generator, config, Miners(noise=miner))
    assert hardness(mined, jobs, config).mean() > hardness(plain, jobs, config).mean()


def test_a_heavy_divergence_term_holds_the_miner_at_plain_noise(tasks, photos, bank, tiny_generator, config):
    held = config.model_copy(update={"wasm": config.wasm.model_copy(update={"miner_beta": 1e4})})
    sampler, jobs = jobs_of(tasks, photos, bank, tiny_generator, config)
    noise = torch.randn(3, 32, 32, generator=torch.Generator().manual_seed(0))

    def moved(settings):
        miner = train_noise_miner(sampler, Darkness(), jobs, settings, seed=0)
        return float((miner.moved(jobs[0].condition, jobs[0].mask_1RR, noise) - noise).abs().mean())

    assert moved(held) < 0.3 * moved(config)


def test_a_token_of_no_weight_changes_nothing(tasks, photos, bank, tiny_generator, config, outcomes):
    token = WeaknessToken(config.safe.dim, features_of(outcomes, config.wasm.kappa))
    plain = make_pairs(tiny_generator, bank, tasks, photos, config)
    same = make_pairs(tiny_generator, bank, under(tasks, "B3"), photos, config, Miners(token=token))
    assert all(np.array_equal(a.image, b.image) for a, b in zip(plain, same, strict=True))


def test_a_learned_token_answers_to_the_wanted_difficulty(
    tasks, photos, bank, tiny_generator, config, outcomes
):
    before = copy.deepcopy(tiny_generator.state_dict())
    longer = config.model_copy(update={"wasm": config.wasm.model_copy(update={"token_steps": 40})})
    token = train_weakness_token(tiny_generator, photos, outcomes, longer, seed=0)
    assert all(torch.equal(before[k], v) for k, v in tiny_generator.state_dict().items())
    name = tasks[0].reference
    easy, hard = token.wanted(name, 0.1, 1.0), token.wanted(name, 0.9, 1.0)
    length = tiny_generator.safe.idle.shape[-1] ** 0.5  # of SAFE's tokens, which are normed
    assert float((hard - easy).norm()) > 0.005 * length, "by a thousandth no pixel changes"
    assert torch.allclose(token.wanted(name, 0.9, 2.0), 2 * hard)
    assert token.wanted("no such target", 0.5, 1.0).shape == (1, config.safe.dim)


def test_a_token_of_another_version_is_refused_by_name(tmp_path, config, outcomes):
    token = WeaknessToken(config.safe.dim, features_of(outcomes, config.wasm.kappa))
    token.gamma = torch.nn.Parameter(torch.zeros(()))  # as it was
    revision = token.save(tmp_path)
    with pytest.raises(RunError, match=f"{revision}.*another version"):
        WeaknessToken.load(tmp_path / f"{revision}.safetensors")


def test_a_target_stands_beside_another_of_its_type_unless_it_is_the_only_one() -> None:
    rng = np.random.default_rng(0)
    kinds = ["crack", "stain", "crack", "hole", "crack"]
    for _ in range(20):
        others = _others(kinds, np.array([0, 2, 3, 4]), rng)
        assert all(kinds[other] == kinds[i] for other, i in zip(others, [0, 2, 3, 4], strict=True))
        assert others[2] == 3 and all(others[place] != i for place, i in ((0, 0), (1, 2), (3, 4)))


def test_features_are_ranks_within_a_type_and_what_the_model_made_of_the_target(outcomes):
    table = features_of(outcomes, kappa=50.0)
    assert set(table) == {row.target_id for row in outcomes}
    pits = [table[row.target_id] for row in outcomes if row.type == "pit"]
    ranks = sorted(float(row[0]) for row in pits)
    assert ranks[0] == pytest.approx(0.5 / len(pits)) and ranks[-1] == pytest.approx(1 - 0.5 / len(pits))
    assert {float(row[FEATURES.index("missed")]) for row in table.values()} == {0.0, 1.0}


@pytest.mark.parametrize("arm", ["B2", "B3", "B4", "B3+B2"])
def test_a_pair_has_the_same_bytes_alone_and_among_others(
    arm, tasks, photos, bank, tiny_generator, config, outcomes, tmp_path
):
    miners = Miners(segmenter=Darkness())
    asked = under(tasks, arm)
    revisions = adapt(tiny_generator, bank, miners, asked, outcomes, photos, config, tmp_path, seed=0)
    assert bool(revisions.miner) == arm.endswith("B2") and bool(revisions.token) == arm.startswith("B3")
    if revisions.miner:
        miners = dataclasses.replace(
            miners, noise=NoiseMiner.load(tmp_path / f"{revisions.miner}.safetensors")
        )
    if revisions.token:
        miners = dataclasses.replace(
            miners, token=WeaknessToken.load(tmp_path / f"{revisions.token}.safetensors")
        )
    together = make_pairs(tiny_generator, bank, asked, photos, config, miners)
    alone = make_pairs(tiny_generator, bank, asked[3:4], photos, config, miners)[0]
    assert np.array_equal(alone.image, together[3].image)
    assert alone.label_iou == together[3].label_iou


@pytest.mark.parametrize(
    ("arm", "what"),
    [("B1", "a judge"), ("B2", "a noise miner"), ("B3", "a difficulty token"), ("B4", "a segmenter")],
)
def test_an_arm_without_what_it_needs_says_so(arm, what, tasks, photos, bank, tiny_generator, config):
    with pytest.raises(ValueError, match=f"arm {arm} needs {what}"):
        make_pairs(tiny_generator, bank, under(tasks, arm), photos, config)


def test_adaptation_repeats(tasks, photos, bank, tiny_generator, config, outcomes, tmp_path):
    found = [
        adapt(
            tiny_generator,
            bank,
            Miners(segmenter=Darkness()),
            under(tasks, "B3+B2"),
            outcomes,
            photos,
            config,
            tmp_path,
            3,
        )
        for _ in range(2)
    ]
    assert found[0] == found[1]
