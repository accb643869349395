"""Who trains, who validates, who tests: by source object, stratified by type, seeded (strict protocol).

Order of work: refuse overlap of given splits, find near-identical photos, drop or join them, pool types that are too
rare, give groups to splits, draw `data.train_images`, then cut the training groups into folds and set calibration
groups aside. A group is never parted: a normal photo of an object with a defect follows that object.
"""

from __future__ import annotations

import dataclasses
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence

import numpy as np

from cdiff.config import DataConfig
from cdiff.data.backdrops import ENOUGH, scarce
from cdiff.data.leaks import check_overlap, drop_copies, join_groups, near_duplicates
from cdiff.data.manifest import Manifest, Row, content_of, make_manifest, read_manifest, write_manifest
from cdiff.data.pooling import pool_rare
from cdiff.errors import DataError
from cdiff.types import Sample, Split

__all__ = ["Manifest", "Row", "make_splits", "read_manifest", "write_manifest"]

SPLITS: tuple[Split, ...] = ("train", "validation", "test")
_LEAST = {"train": 2, "validation": 1, "test": 1}  # groups of a type that is scored
_DRAWS = 16  # objects of several types may make one draw miss a type's least
_CALIBRATED = 4  # types with fewer training groups can spare none

Key = tuple[str, str]  # category and type, type "" for objects without any target


def make_splits(
    samples: Sequence[Sample], config: DataConfig, folds: int, progress: bool = False
) -> tuple[list[Sample], Manifest]:
    """Split samples into train, validation and test, and the training part into folds.

    Splits given by folders are kept; what they lack is taken from their training groups. Without any, each type's
    groups go 40/20/40 (`data.train_share`, `data.validation_share`), at least 2/1/1; normals may train in a share of
    their own (`data.normal_share`).

    Args:
        folds: folds of the training split, at least 2.
        progress: show a bar on stderr while near-identical photos are looked for.
    Returns:
        The samples that have a place (rare types renamed to "other", groups joined), sorted by id, and the manifest.
    Raises:
        LeakError: given splits share a file or a group, or near-identical photos with `data.leaks=stop`.
        DataError: no photo shows a target.
        ValueError: folds < 2.
    """
    if folds < 2:
        raise ValueError(f"cross-fitting needs at least 2 folds, not {folds}")
    if not any(sample.types for sample in samples):
        raise DataError(
            f"none of the {len(samples)} photos shows a target: every mask is empty. Check the masks."
        )
    samples, given = _named_splits(samples)
    check_overlap(samples)
    pairs = near_duplicates(samples, config, progress)
    current, notes = drop_copies(samples, pairs, config)
    current, joined = join_groups(current, pairs)
    current, pooled = pool_rare(current, current, config)
    splits = _assign(current, config)
    training = [sample for sample in current if splits[sample.group] == "train"]
    left_out, drawn = _draw(training, config)
    training = [sample for sample in training if sample.sample_id not in left_out]
    current, moved = _place_rest(current, left_out, splits, config)
    current, pooled_later = pool_rare(current, training, config)
    lacking = _lacking(current, splits)
    notes += joined + given + pooled + drawn + moved + pooled_later + _warnings(current, splits, lacking)
    training = [sample for sample in current if splits[sample.group] == "train"]
    fold_of = _folds(training, folds, config.split_seed)
    calibration = _calibration(training, config)
    rows = [_row(sample, splits[sample.group], fold_of, calibration) for sample in current]
    current.sort(key=lambda sample: sample.sample_id)
    return current, make_manifest(rows, lacking["test"], notes)


def _row(sample: Sample, split: Split, fold_of: Mapping[str, int], calibration: set[str]) -> Row:
    return Row(
        sample_id=sample.sample_id,
        split=split,
        group=sample.group,
        category=sample.category,
        types=sample.types,
        fold=fold_of.get(sample.group, -1) if split == "train" else -1,
        calibration=split == "train" and sample.group in calibration,
        content=content_of(sample),
    )


def _by_key(samples: Iterable[Sample]) -> dict[Key, list[str]]:
    """(category, type) -> its groups, sorted; groups without targets stand under (category, "")."""
    types: dict[str, set[Key]] = defaultdict(set)
    homes: dict[str, set[str]] = defaultdict(set)
    for sample in samples:
        types[sample.group] |= {(sample.category, type) for type in sample.types}
        homes[sample.group].add(sample.category)
    found: dict[Key, list[str]] = defaultdict(list)
    for group in sorted(homes):
        for key in types[group] or {(min(homes[group]), "")}:
            found[key].append(group)
    return dict(found)


def _rarest_first(groups: Mapping[Key, list[str]]) -> list[Key]:
    """Types before normals, rare before frequent: what has least choice chooses first."""
    return sorted(groups, key=lambda key: (key[1] == "", len(groups[key]), key))


def quotas(count: int, config: DataConfig, open_splits: Sequence[str] = SPLITS) -> dict[str, int]:
    """How many of a type's groups each split gets.

    Args:
        count: groups of the type.
        open_splits: splits that may get any; "train" must be one of them.
    Returns:
        Numbers that sum to `count`; fewer groups than the least of the open splits all train.
    """
    shares = {"train": config.train_share, "validation": config.validation_share}
    shares["test"] = 1 - config.train_share - config.validation_share
    wanted: dict[str, int] = dict.fromkeys(SPLITS, 0)
    if count < sum(_LEAST[split] for split in open_splits):
        wanted["train"] = count
        return wanted
    total = sum(shares[split] for split in open_splits)
    for split in open_splits:
        wanted[split] = max(_LEAST[split], round(count * shares[split] / total))
    while sum(wanted.values()) != count:
        step = 1 if sum(wanted.values()) < count else -1
        movable = [split for split in open_splits if step > 0 or wanted[split] > _LEAST[split]]
        # Rounding left one too many or too few: the split farthest from its share gives or takes it.
        split = max(movable, key=lambda split: step * (count * shares[split] / total - wanted[split]))
        wanted[split] += step
    return wanted


def _shares_of(key: Key, config: DataConfig) -> DataConfig:
    """The configuration that a key's quotas follow: normals may have a training share of their own."""
    if key[1] or not config.normal_share:
        return config
    rest = (1 - config.normal_share) / (1 - config.train_share)
    return config.model_copy(
        update={"train_share": config.normal_share, "validation_share": config.validation_share * rest}
    )


def _assign(samples: Sequence[Sample], config: DataConfig) -> dict[str, Split]:
    """Group -> split; the best of a few seeded draws, where one misses what a type needs."""
    fixed, open_splits = _given(samples)
    groups = _by_key(samples)
    best: tuple[int, dict[str, Split]] | None = None
    for attempt in range(_DRAWS):
        rng = np.random.default_rng([config.split_seed, attempt])
        splits = _draw_assignment(groups, fixed, open_splits, config, rng)
        short = 0
        for key, members in groups.items():
            counts = Counter(splits[group] for group in members)
            needed = quotas(_divided(members, fixed, open_splits[key[0]]), config, open_splits[key[0]])
            short += (
                sum(max(0, min(needed[split], _LEAST[split]) - counts[split]) for split in SPLITS)
                if key[1]
                else 0
            )
        if best is None or short < best[0]:
            best = (short, splits)
        if not short:
            break
    assert best is not None
    return best[1]


def _draw_assignment(
    groups: Mapping[Key, list[str]],
    fixed: Mapping[str, Split],
    open_splits: Mapping[str, Sequence[str]],
    config: DataConfig,
    rng: np.random.Generator,
) -> dict[str, Split]:
    splits = dict(fixed)
    for key in _rarest_first(groups):
        count = _divided(groups[key], fixed, open_splits[key[0]])
        wanted = quotas(count, _shares_of(key, config), open_splits[key[0]])
        free = [group for group in groups[key] if group not in splits]
        counts = Counter(splits[group] for group in groups[key] if group in splits)
        for index in rng.permutation(len(free)):
            # The split that has least of its due gets the next group: exact quotas where nothing was fixed before.
            due = [split for split in SPLITS if wanted[split]]
            split = min(
                due, key=lambda split: (counts[split] >= wanted[split], counts[split] / wanted[split])
            )
            splits[free[index]] = split
            counts[split] += 1
    return splits


def _divided(members: Sequence[str], fixed: Mapping[str, Split], open_splits: Sequence[str]) -> int:
    """How many of a type's groups the open splits have between them: those that folders fix in another one are not theirs."""
    return sum(group not in fixed or fixed[group] in open_splits for group in members)


def _named_splits(samples: Sequence[Sample]) -> tuple[list[Sample], list[str]]:
    """The samples without the split folders of categories that have none to train on, and notes on what folders lack."""
    sides: dict[str, set[str]] = defaultdict(set)
    for sample in samples:
        sides[sample.category] |= {sample.folder_split} - {""}
    notes = []
    for category, named in sorted(sides.items()):
        if named and len(named) < len(SPLITS):
            source = "its training photos" if "train" in named else "all its photos"
            notes.append(
                f"{category} has folders for {', '.join(sorted(named))} only: the rest is split off {source}"
            )
    return [
        sample if "train" in sides[sample.category] else dataclasses.replace(sample, folder_split="")
        for sample in samples
    ], notes


def _given(samples: Sequence[Sample]) -> tuple[dict[str, Split], dict[str, Sequence[str]]]:
    """Groups whose split the folders fix, and the splits that are open to each category's other groups."""
    sides: dict[str, set[str]] = defaultdict(set)
    for sample in samples:
        sides[sample.category] |= {sample.folder_split} - {""}
    open_splits: dict[str, Sequence[str]] = {}
    for category, named in sides.items():
        lacking = [split for split in ("validation", "test") if split not in named]
        open_splits[category] = ["train", *lacking] if named else SPLITS
    fixed: dict[str, Split] = {}
    for sample in samples:
        whole = len(sides[sample.category]) == len(SPLITS)
        for split in SPLITS:
            if sample.folder_split == split and (whole or split != "train"):
                fixed[sample.group] = split
    return fixed, open_splits


def _draw(training: Sequence[Sample], config: DataConfig) -> tuple[set[str], list[str]]:
    """Which training photos with targets `data.train_images` leaves out: a draw by seed, stratified by type."""
    shown = [sample for sample in training if sample.types]
    if not config.train_images or len(shown) <= config.train_images:
        return set(), []
    rng = np.random.default_rng([config.split_seed, 1])
    strata: dict[tuple[str, ...], list[str]] = defaultdict(list)
    for index in rng.permutation(len(shown)):
        strata[(shown[index].category, *shown[index].types)].append(shown[index].sample_id)
    # Each photo's place within its stratum, as a share: the lowest shares are a proportional draw.
    ranked = sorted(
        ((place + 0.5) / len(members), key, member)
        for key, members in strata.items()
        for place, member in enumerate(members)
    )
    kept = {member for _, _, member in ranked[: config.train_images]}
    note = f"trains on {len(kept)} of {len(shown)} photos with targets, drawn by data.split_seed={config.split_seed}"
    return {sample.sample_id for sample in shown} - kept, [note]


def _place_rest(
    current: Sequence[Sample], left_out: set[str], splits: dict[str, Split], config: DataConfig
) -> tuple[list[Sample], list[str]]:
    """Give what the draw left out to the split of `data.rest`, or drop it; `splits` learns the new homes of groups."""
    training = {
        sample.group
        for sample in current
        if splits[sample.group] == "train" and sample.sample_id not in left_out
    }
    rest = [sample for sample in current if sample.sample_id in left_out and sample.group not in training]
    if config.rest == "unused" or not rest:
        return [sample for sample in current if sample.sample_id not in left_out], []
    splits.update(dict.fromkeys((sample.group for sample in rest), config.rest))
    gone = left_out - {sample.sample_id for sample in rest}
    note = f"{len(rest)} of the photos that do not train go to {config.rest} (data.rest)"
    return [sample for sample in current if sample.sample_id not in gone], [note]


def _lacking(samples: Sequence[Sample], splits: Mapping[str, Split]) -> dict[Split, list[str]]:
    """The category/types that each split does not show."""
    found: dict[str, set[str]] = defaultdict(set)
    for sample in samples:
        for type in sample.types:
            found[f"{sample.category}/{type}"].add(splits[sample.group])
    return {split: sorted(name for name, sides in found.items() if split not in sides) for split in SPLITS}


def _warnings(
    samples: Sequence[Sample], splits: Mapping[str, Split], lacking: Mapping[Split, Sequence[str]]
) -> list[str]:
    """What comes of types that a split does not show."""
    effect = {
        "train": "never trained on",
        "validation": "no decision looks at them",
        "test": "not scored on test",
    }
    notes = [
        f"no {split} photo shows {', '.join(types)}: {effect[split]}"
        for split, types in lacking.items()
        if types
    ]
    for split in SPLITS:
        if not any(sample.types and splits[sample.group] == split for sample in samples):
            notes.append(f"no photo with a target in the {split} split")
    few = scarce([sample for sample in samples if splits[sample.group] == "train"])
    return notes + [
        f"{category}: the normal photos that train show {shown} object{'s' if shown > 1 else ''}, and {ENOUGH} are the least to paint on: photos "
        "with targets are painted on as well"
        for category, shown in few.items()
    ]


def _folds(training: Sequence[Sample], folds: int, seed: int) -> dict[str, int]:
    """Group -> fold, each type's groups spread evenly, and normals too."""
    groups = _by_key(training)
    sizes = Counter(sample.group for sample in training)
    rng = np.random.default_rng([seed, 2])
    placed: dict[str, int] = {}
    loads = np.zeros(folds)
    for key in _rarest_first(groups):
        counts = np.zeros(folds)
        for group in groups[key]:
            if group in placed:
                counts[placed[group]] += 1
        for index in rng.permutation(len(groups[key])):
            group = groups[key][index]
            if group not in placed:
                fold = int(np.lexsort((loads, counts))[0])
                placed[group] = fold
                counts[fold] += 1
                loads[fold] += sizes[group]
    return placed


def _calibration(training: Sequence[Sample], config: DataConfig) -> set[str]:
    """Groups set aside from the generator: `data.calibration_share` of each type that has enough of them, none that shows a
    type which has not."""
    groups = {key: members for key, members in _by_key(training).items() if key[1]}
    needed = {group for members in groups.values() if len(members) < _CALIBRATED for group in members}
    rng = np.random.default_rng([config.split_seed, 3])
    chosen: set[str] = set()
    for key in _rarest_first(groups):
        members = groups[key]
        wanted = max(1, round(config.calibration_share * len(members))) if config.calibration_share else 0
        wanted -= len(chosen & set(members))
        free = [members[index] for index in rng.permutation(len(members))]
        free = [group for group in free if group not in chosen | needed]
        if len(members) >= _CALIBRATED:
            chosen |= set(free[: max(0, wanted)])
    return chosen
