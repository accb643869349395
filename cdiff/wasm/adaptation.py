"""Fit what a mining arm learns anew each round: the difficulty token (B3) to the outcomes, the noise miner (B2) to the tasks."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

from cdiff.config import Config
from cdiff.data.dataset import Dataset
from cdiff.generator.model import Generator
from cdiff.safe.tokens import TokenBank
from cdiff.types import GenerationTask, Outcome, Revisions
from cdiff.wasm.layout import spell_out
from cdiff.wasm.mining import Miners, condition_for, sampler_for, settle_masks
from cdiff.wasm.noise import train_noise_miner
from cdiff.wasm.token import train_weakness_token


def adapt(
    generator: Generator,
    bank: TokenBank,
    miners: Miners,
    tasks: Sequence[GenerationTask],
    outcomes: Sequence[Outcome],
    dataset: Dataset,
    config: Config,
    checkpoints: Path,
    seed: int,
    progress: Callable[[int, int], None] | None = None,
) -> Revisions:
    """Fit and store the parts that the tasks' arm needs; the same arguments give the same weights.

    Args:
        miners: with the segmenter that B2 looks through.
        tasks: some of the round's, of one recipe.
        outcomes: of the real training targets, under models that never saw them.
    Returns:
        The tasks' revisions with those of the parts.
    Raises:
        ValueError: B2 without a segmenter, or tasks of several recipes.
    """
    revisions, recipe = tasks[0].revisions, tasks[0].recipe
    if any(task.recipe != recipe for task in tasks):
        raise ValueError("a mining arm is fitted to tasks of one recipe")
    if recipe.arm.startswith("B3"):
        token = train_weakness_token(generator, dataset, outcomes, config, seed, progress)
        miners = replace(miners, token=token)
        revisions = replace(revisions, token=token.save(checkpoints))
    if recipe.arm.endswith("B2"):
        if miners.segmenter is None:
            raise ValueError("arm B2 needs a segmenter to look through")
        sampler = sampler_for(generator, recipe, config)
        layouts = [spell_out(task, dataset, config) for task in tasks]
        conditions = [condition_for(layout, generator, bank, miners) for layout in layouts]
        jobs = settle_masks(sampler, layouts, conditions, recipe.mode)
        noise = train_noise_miner(sampler, miners.segmenter, jobs, config, seed, progress)
        revisions = replace(revisions, miner=noise.save(checkpoints))
    return revisions
