"""What the gate expects of a true target, measured on real ones."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Sequence

import numpy as np
import torch

from cdiff.config import Config
from cdiff.data.dataset import Dataset
from cdiff.generator.model import Generator
from cdiff.generator.placement import foreground, repaint_pose
from cdiff.types import GenerationTask, Recipe, Revisions, Strengths
from cdiff.wasm.dealing import recipe_of
from cdiff.wasm.labels import mask_agreement, not_compared
from cdiff.wasm.layout import condition_of, coverage, spell_out
from cdiff.wasm.measures import real_measures
from cdiff.wasm.mining import sampler_for
from cdiff.wasm.quality import Thresholds, thresholds

_MOST_SEEN, _MOST_READ = 400, 120  # enough for a 5th percentile, and bounded on large data sets


def calibrate(
    generator: Generator, dataset: Dataset, target_ids: Sequence[str], held_out: Sequence[str], config: Config
) -> Thresholds:
    """Thresholds at the configured percentile of real training targets.

    Args:
        target_ids: all training targets; what can be seen in pixels comes from them.
        held_out: training targets that the generator never saw; label agreement comes from them, since on targets that
            it knows by heart the generator agrees too well. Types with too few of them add those that it saw: thin
            cracks judged by the agreement of round blobs would all be turned away.
    """
    rng = np.random.default_rng([config.seed, 11])
    least = config.gate.min_targets
    seen = _some(dataset, [*target_ids, *held_out], _MOST_SEEN, least, rng)
    targets = [dataset.target(target_id) for target_id in seen]
    rows = real_measures(dataset, targets, foreground)
    unseen = _some(dataset, _unseen(dataset, target_ids, held_out, least), _MOST_READ, least, rng)
    rows += label_agreement(generator, dataset, unseen, config, rng)
    return thresholds(rows, config)


def label_agreement(
    generator: Generator,
    dataset: Dataset,
    target_ids: Sequence[str],
    config: Config,
    rng: np.random.Generator,
) -> list[tuple[str, dict[str, float]]]:
    """Agreement of real masks with the masks that the generator reads from the real crops, by category/type."""
    bank = generator.bank(dataset, [dataset.target(target_id) for target_id in target_ids])
    recipe = recipe_of(config)
    sampler = sampler_for(generator, recipe, config)
    conditions, images, masks, seeds, kept, keys = [], [], [], [], [], []
    for number, target_id in enumerate(target_ids):
        target = dataset.target(target_id)
        task = _repaint(target_id, target.sample_id, recipe, number, config, rng, dataset)
        layout = spell_out(task, dataset, config)
        tokens = generator.safe.fused(bank[target_id][None].to(generator.safe.idle.device)).detach()
        condition = condition_of(layout, generator, tokens[0])
        conditions.append(condition)
        images.append(condition.background_3RR)
        masks.append(coverage(condition.start_mask_1RR))
        seeds.append(number)
        kept.append(not_compared(layout, generator.config.resolution))
        keys.append(_kind(dataset, target_id))
    with torch.inference_mode():
        agreed = mask_agreement(sampler, conditions, images, masks, seeds, kept)
    return [(key, {"label_iou": value}) for key, value in zip(keys, agreed, strict=True)]


def _unseen(dataset: Dataset, target_ids: Sequence[str], held_out: Sequence[str], enough: int) -> list[str]:
    counts = Counter(_kind(dataset, target_id) for target_id in held_out)
    return [*held_out, *(target_id for target_id in target_ids if counts[_kind(dataset, target_id)] < enough)]


def _repaint(
    reference: str,
    sample: str,
    recipe: Recipe,
    seed: int,
    config: Config,
    rng: np.random.Generator,
    dataset: Dataset,
) -> GenerationTask:
    return GenerationTask(
        recipe=recipe,
        reference=reference,
        background=sample,
        pose=repaint_pose(dataset.target(reference), config.generator.margin, rng),
        strengths=Strengths(config.sampling.safe_strength, 1.0),
        seed=seed,
        revisions=Revisions("", ""),
    )


def _some(dataset: Dataset, ids: list[str], most: int, least: int, rng: np.random.Generator) -> list[str]:
    """As many as `most` of the targets, of each type as many as of another or all that it has, and `least` of each at least:
    drawn over all, a rare type would be left with too few for a bound of its own."""
    if len(ids) <= most:
        return sorted(ids)
    kinds: dict[str, list[str]] = defaultdict(list)
    for target_id in sorted(ids):
        kinds[_kind(dataset, target_id)].append(target_id)
    chosen: list[str] = []
    rarest_first = sorted(kinds.items(), key=lambda item: (len(item[1]), item[0]))
    for place, (_, members) in enumerate(rarest_first):
        each = max(
            least, (most - len(chosen)) // (len(kinds) - place)
        )  # what rare types leave is for the others
        chosen += [members[i] for i in rng.permutation(len(members))[:each]]
    return sorted(chosen)


def _kind(dataset: Dataset, target_id: str) -> str:
    target = dataset.target(target_id)
    return f"{target.category}/{target.type}"
