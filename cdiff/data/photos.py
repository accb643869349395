"""The photos of runs that exist, as their loops split them: for whoever works with a run and splits nothing anew.

Target ids are SAMPLE#INDEX in the order of the types' names. Where a rare type is pooled, the names change, and with them
the order: a run's ids mean nothing in photos that are just read.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

from cdiff.config import DataConfig
from cdiff.config_file import load_config
from cdiff.data.dataset import Dataset
from cdiff.data.formats import read_sources
from cdiff.data.manifest import Manifest, content_of, read_manifest
from cdiff.data.origin import brought
from cdiff.data.pooling import renamed
from cdiff.data.run import Run
from cdiff.errors import DataError
from cdiff.types import Sample


def photos_of(runs: Sequence[Run], data: Sequence[str], groups: str | None) -> list[Dataset]:
    """Read the photos of runs once, and give each run its own, with its types, groups and target ids.

    Args:
        data: folders and s3:// URLs, of all runs together. groups: as the loops were given it.
    Returns:
        One data set per run, in their order.
    Raises:
        DataError: as in `read_sources` and `as_split`, or a run whose split manifest cannot be read.
    """
    folders, origins = brought(data)
    read: dict[DataConfig, list[Sample]] = {}
    found = []
    for run in runs:
        config = load_config(run.local("config.yaml", anew=True)).data
        if config not in read:  # settings say what is refused and what is left out
            read[config] = read_sources(folders, groups, config)
        manifest = read_manifest(run.local("splits.parquet", anew=True))
        found.append(Dataset(as_split(read[config], manifest), config, origins))
    return found


def as_split(samples: Sequence[Sample], manifest: Manifest) -> list[Sample]:
    """The samples that `make_splits` gave a run: those that have a place, rare types renamed to "other", groups joined.

    Args:
        samples: as read from the run's folders, others among them.
    Returns:
        One sample per row, in the order of the rows.
    Raises:
        DataError: a photo of the run is not there, shows other types than it did, or is another one than it was, or its masks are
            (manifests of earlier versions do not know the last two).
    """
    by_id = {sample.sample_id: sample for sample in samples}
    missing = [row.sample_id for row in manifest.rows if row.sample_id not in by_id]
    if missing:
        raise DataError(
            f"{len(missing)} of the run's {len(manifest.rows)} photos are not in the data, first: {missing[0]}. "
            "Give --data as the loop was given it."
        )
    found, changed = [], []
    for row in manifest.rows:
        sample = renamed(by_id[row.sample_id], set(by_id[row.sample_id].types) - set(row.types))
        if sample.types != row.types:
            there, here = (
                ", ".join(row.types) or "nothing",
                ", ".join(by_id[row.sample_id].types) or "nothing",
            )
            raise DataError(
                f"{row.sample_id} shows {here}, and {there} in the run: its masks are not those that the run began with. "
                "Give --data as the loop was given it."
            )
        if row.content and content_of(sample) != row.content:
            changed.append(row.sample_id)
        found.append(dataclasses.replace(sample, group=row.group))
    if changed:
        raise DataError(
            f"{len(changed)} of the run's {len(manifest.rows)} photos, or their masks, are not those that the run began with, "
            f"first: {changed[0]}. Give --data as the loop was given it. Masks that were added to a folder since may "
            "have changed what its masks' values mean: move them away. Where photos or masks were corrected, start a new run."
        )
    return found
