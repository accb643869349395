"""Pooled features of frozen encoders, kept by content: what was looked at once is not looked at again, whichever run asks.

    CDIFF_CACHE/features/NAME/*.parquet     columns: key (SHA-256 of crop and mask), vector (float32)

NAME is the hash of encoder and settings. Parts are written whole under names of their own, so that many processes may add to a folder.
"""

from __future__ import annotations

import hashlib
import uuid
from collections import OrderedDict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch

_PART = 256  # vectors after which a part is written
_GROUP = 16  # of these that are read together
_GROUPS = 16  # that are kept in memory
_UNREADABLE = (OSError, KeyError, pa.ArrowException)  # as a part that a full disk tore
_Place = tuple[Path, int, int]  # part, group of rows, row in it

_SCHEMA = pa.schema([("key", pa.string()), ("vector", pa.list_(pa.float32()))])


class FeatureCache:
    """Vectors by content. What is put is durable after `flush`. In memory are keys, what is not written, and the groups of rows that were read last: a
    vector may have tens of kilobytes.

    Args:
        folder: made when the first part is written; a part that cannot be read is passed over.
        writes: False where another process keeps the same.
    """

    def __init__(self, folder: Path, writes: bool = True) -> None:
        self.folder, self.writes = folder, writes
        self._new: dict[str, np.ndarray] = {}
        self._where: dict[str, _Place] = {}
        self._read: OrderedDict[tuple[Path, int], Any] = OrderedDict()  # vectors of the last groups
        for part in sorted(folder.glob("*.parquet")):
            self._find(part)

    def __len__(self) -> int:
        return len(self._where.keys() | self._new.keys())

    def get(self, key: str) -> torch.Tensor | None:
        if key in self._new:
            return torch.from_numpy(self._new[key].copy())
        if key not in self._where:
            return None
        part, group, row = self._where[key]
        vectors = self._vectors(part, group)
        return None if vectors is None else torch.from_numpy(np.array(vectors[row].values, np.float32))

    def put(self, key: str, vector: torch.Tensor) -> None:
        self._new[key] = vector.detach().cpu().float().numpy()
        if self.writes and len(self._new) >= _PART:
            self.flush()

    def flush(self) -> None:
        """Write what is new as one part."""
        if not self._new or not self.writes:
            return
        self.folder.mkdir(parents=True, exist_ok=True)
        table = pa.table([list(self._new), [v.tolist() for v in self._new.values()]], schema=_SCHEMA)
        name = uuid.uuid4().hex
        temporary, part = self.folder / f".{name}", self.folder / f"{name}.parquet"
        pq.write_table(table, temporary, row_group_size=_GROUP)
        temporary.rename(part)
        self._find(part)
        self._new = {}

    def _find(self, part: Path) -> None:
        """Learn where the vectors of a part lie."""
        try:
            file = pq.ParquetFile(part)
            for group in range(file.num_row_groups):
                keys = file.read_row_group(group, columns=["key"])["key"].to_pylist()
                self._where |= {key: (part, group, row) for row, key in enumerate(keys)}
        except _UNREADABLE:
            return

    def _vectors(self, part: Path, group: int) -> Any:
        """Of a group of rows; None where it cannot be read any more."""
        if (part, group) not in self._read:
            try:
                told = pq.ParquetFile(part).read_row_group(group, columns=["vector"])["vector"]
                self._read[part, group] = told.combine_chunks()
            except _UNREADABLE:
                return None
        self._read.move_to_end((part, group))
        while len(self._read) > _GROUPS:
            self._read.popitem(last=False)
        return self._read[part, group]


def keys_of(images_B3HW: torch.Tensor, masks_B1HW: torch.Tensor) -> Sequence[str]:
    """Of crops and masks, one each: equal where all their numbers are."""
    parts = (torch.cat([images_B3HW, masks_B1HW], dim=1)).detach().cpu().float().contiguous()
    return [hashlib.sha256(one.numpy().tobytes()).hexdigest() for one in parts]
