"""The actor that reads the real training photos once: frames, SAFE tokens, and what the gate expects of real targets."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import ray

from actors.resources import join_driver, photos_of
from cdiff.config import Config
from cdiff.data.dataset import Dataset
from cdiff.data.store import Run
from cdiff.evaluation.fidelity import by_kind, coverage, kid, standardised
from cdiff.generator.model import Generator
from cdiff.generator.placement import Frame, cut_off, frame_of
from cdiff.types import Attempt
from cdiff.wasm.calibration import calibrate
from cdiff.wasm.dealing import recipe_of
from cdiff.wasm.features import pair_features, real_features
from cdiff.wasm.quality import Thresholds


@ray.remote(concurrency_groups={"status": 1})  # type: ignore[call-overload]  # missing in Ray's stubs
class ExtractorActor:
    """Holds the data set; a thin shell over cdiff.safe and cdiff.generator.placement."""

    def __init__(self, run: Run, config: Config, dataset: Dataset | list[Any]) -> None:
        join_driver(config)
        self.run, self.config, self.dataset = run, config, photos_of(dataset)
        self.done = (0, 0)

    def frames(self, sample_ids: list[str]) -> dict[str, Frame]:
        """The object's frame on each photo."""
        return {sample_id: frame_of(self.dataset.image(sample_id)) for sample_id in self._told(sample_ids)}

    def cut_off(self, sample_ids: list[str]) -> set[str]:
        """Target ids of targets that end at the black frame of their photo."""
        found: set[str] = set()
        for sample_id in self._told(sample_ids):
            names = [target.target_id for target in self.dataset.targets(sample_id)]
            masks = [self.dataset.target_mask(name) for name in names]
            ends = cut_off(self.dataset.image(sample_id), masks) if names else []
            found |= {name for name, it_does in zip(names, ends, strict=True) if it_does}
        return found

    def _told(self, sample_ids: list[str]) -> Iterator[str]:
        """Photo by photo, as steps: large ones by the hundred take longer than a run that stands still may."""
        for number, sample_id in enumerate(sample_ids):
            self.done = number, len(sample_ids)
            yield sample_id
        self.done = (0, 0)

    def bank(self, revision: str, target_ids: list[str]) -> str:
        """Build and store the token bank of real training targets; returns its revision."""
        generator = Generator.load(self.run.checkpoint(revision), self.config.resources.device)
        targets = [self.dataset.target(target_id) for target_id in target_ids]
        bank = generator.bank(self.dataset, targets, generator.feature_cache())
        bank.save(self.run.checkpoint(bank.revision).with_suffix(".safetensors"))
        self.run.publish(f"checkpoints/{bank.revision}.safetensors")
        return bank.revision

    def thresholds(self, revision: str, target_ids: list[str], held_out: list[str]) -> Thresholds:
        """The gate's thresholds: pixels from all real training targets, label agreement from held-out ones."""
        generator = Generator.load(self.run.checkpoint(revision), self.config.resources.device)
        recipe = recipe_of(self.config)  # ready as for the pairs that they will judge
        generator.for_sampling(recipe.dtype, recipe.compiled)
        return calibrate(generator, self.dataset, target_ids, held_out, self.config)

    def fidelity(
        self, revision: str, target_ids: list[str], attempts: list[Attempt]
    ) -> dict[str, float | None]:
        """Distance and coverage of made targets against real ones that the generator never saw, means over types."""
        generator = Generator.load(self.run.checkpoint(revision), self.config.resources.device)
        targets = [self.dataset.target(target_id) for target_id in target_ids]
        made = pair_features(generator, self.run, self.dataset, attempts)
        real, made = standardised(real_features(generator, self.dataset, targets), made)
        kinds = [f"{t.category}/{t.type}" for t in targets], [f"{a.category}/{a.type}" for a in attempts]
        return {"kid": by_kind(kid, real, made, kinds), "coverage": by_kind(coverage, real, made, kinds)}

    @ray.method(concurrency_group="status")
    def progress(self) -> tuple[int, int]:
        """Photos done and their number; of what tells no steps, that it lives."""
        return self.done
