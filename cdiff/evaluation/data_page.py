"""A data set as cdiff reads it, on one page: types and targets by split, what was left out, photos with the outlines of their masks."""

from __future__ import annotations

import statistics
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from tqdm import tqdm

from cdiff.data.dataset import Dataset
from cdiff.data.manifest import Manifest
from cdiff.data.storage import write_durably
from cdiff.evaluation import page
from cdiff.evaluation.pictures import FOUND, REGION, TRUTH, Pixels, tile
from cdiff.types import Sample, Target

SPLITS = ("train", "validation", "test")
_SHOWN, _SIDE = 8, 256  # photos of a type, and their side on the page
_COLOURS = (TRUTH, FOUND, REGION)  # of a photo's types, in their order


@dataclass(frozen=True, slots=True)
class TypeRow:
    """What a data set has of one type.

    Args:
        photos, objects, targets: how many, by split in the order of `SPLITS`.
        side: median of the targets' longer sides, pixels; share: the same as a share of their photo's longer side.
        least: the smallest target's longer side.
    """

    name: str  # category/type
    photos: tuple[int, ...]
    objects: tuple[int, ...]
    targets: tuple[int, ...]
    side: float
    share: float
    least: int


def types_of(dataset: Dataset, manifest: Manifest) -> list[TypeRow]:
    """Every type, by name; all masks are decoded for it, with a progress bar."""
    found: dict[str, list[tuple[Target, str]]] = {}
    known = {row.sample_id: row.split for row in manifest.rows}
    shown = [sample for sample in dataset.samples if not sample.is_normal]
    for sample in tqdm(shown, desc="reading masks", unit="photo", leave=False):
        for target in dataset.targets(sample.sample_id):
            found.setdefault(f"{target.category}/{target.type}", []).append((target, known[sample.sample_id]))
    return [_row(name, own, dataset) for name, own in sorted(found.items())]


def _row(name: str, own: Sequence[tuple[Target, str]], dataset: Dataset) -> TypeRow:
    apart = [[target for target, side in own if side == split] for split in SPLITS]
    photos = [dataset.sample(target.sample_id) for target, _ in own]
    sides = [target.longer_side for target, _ in own]
    shares = [side / max(photo.width, photo.height) for side, photo in zip(sides, photos, strict=True)]
    return TypeRow(
        name,
        tuple(len({target.sample_id for target in part}) for part in apart),
        tuple(len({target.group for target in part}) for part in apart),
        tuple(len(part) for part in apart),
        statistics.median(sides),
        statistics.median(shares),
        min(sides),
    )


def write_data_page(
    path: Path, title: str, dataset: Dataset, manifest: Manifest, rows: Sequence[TypeRow]
) -> Path:
    """Write the page, whole or not at all; returns where it is."""
    path.parent.mkdir(parents=True, exist_ok=True)
    write_durably(path, render(title, dataset, manifest, rows).encode())
    return path


def render(title: str, dataset: Dataset, manifest: Manifest, rows: Sequence[TypeRow]) -> str:
    """The page as HTML; it needs no other file, no script and no network."""
    counts = {split: manifest.count(split).removeprefix(f"{split}: ") for split in SPLITS}
    body = [
        f"<header><h1>{page.text(title)}</h1>{page.paragraph(_told(dataset, rows))}</header>",
        page.section("What to know", page.listing(manifest.notes)),
        page.section("Splits", page.facts(counts | {"split hash": manifest.hash})),
        page.section(
            "Types",
            _table(rows),
            page.paragraph(
                "Numbers are for train / validation / test. A target is a connected region of a mask, an object what a groups file says, else a "
                "photo. A type needs four objects to reach all splits.",
                True,
            ),
        ),
        page.section("Photos with their masks", *_galleries(dataset, manifest, rows)),
    ]
    return page.document(title, body)


def _told(dataset: Dataset, rows: Sequence[TypeRow]) -> str:
    normals = sum(sample.is_normal for sample in dataset.samples)
    targets = sum(sum(row.targets) for row in rows)
    return (
        f"{len(dataset)} photos, {normals} without a target; {targets} targets of {len(rows)} type{'s' if len(rows) != 1 else ''}. Look whether outlines lie where the targets "
        "are, and whether types are what you call them: all that follows rests on this."
    )


def _table(rows: Sequence[TypeRow]) -> str:
    header = ("type", "photos", "objects", "targets", "longer side, median", "of its photo", "smallest")
    return page.table(
        header,
        [
            (
                row.name,
                *(" / ".join(map(str, part)) for part in (row.photos, row.objects, row.targets)),
                f"{row.side:.0f} px",
                f"{row.share:.0%}",
                f"{row.least} px",
            )
            for row in rows
        ],
    )


def _galleries(dataset: Dataset, manifest: Manifest, rows: Sequence[TypeRow]) -> Iterator[str]:
    used = dataset.samples
    for row in rows:
        category, _, type = row.name.rpartition("/")
        own = [s for s in used if s.category == category and type in s.types]
        yield _gallery(row.name, own, dataset, manifest)
    for category in sorted({sample.category for sample in used if sample.is_normal}):
        own = [s for s in used if s.category == category and s.is_normal]
        yield _gallery(f"{category}, without a target", own, dataset, manifest)


def _gallery(title: str, samples: Sequence[Sample], dataset: Dataset, manifest: Manifest) -> str:
    """Some of the photos, spread evenly over them; outlines of a photo's types in colours."""
    places = np.linspace(0, len(samples) - 1, min(_SHOWN, len(samples))).round().astype(int)
    shown = [samples[place] for place in dict.fromkeys(places.tolist())]
    figures = "".join(
        page.figure(
            _outlined(sample, dataset),
            f"{sample.sample_id}, {manifest.row(sample.sample_id).split}{_legend(sample)}",
        )
        for sample in shown
    )
    return f'<h3>{page.text(title)}</h3><div class="pictures small">{figures}</div>'


def _outlined(sample: Sample, dataset: Dataset) -> Pixels:
    outlines = [
        (dataset.type_mask(sample.sample_id, type), _COLOURS[number % len(_COLOURS)])
        for number, type in enumerate(sample.types)
    ]
    return tile(dataset.image(sample.sample_id), _SIDE, *outlines)


def _legend(sample: Sample) -> str:
    names = ("green", "magenta", "blue")
    if len(sample.types) < 2:
        return ""
    told = [f"{type} {names[number % len(names)]}" for number, type in enumerate(sample.types)]
    return f": {', '.join(told)}"
