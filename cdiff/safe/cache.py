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
_PARTS = 2  # that are kept in memory: they are asked for in the order in which they were written

_SCHEMA = pa.schema([("key", pa.string()), ("vector", pa.list_(pa.float32()))])


class FeatureCache:
    """Vectors by content. What is put is durable after `flush`. In memory are keys, what is not written, and the parts that were read last: a vector may
    have tens of kilobytes.

    Args:
        folder: made when the first part is written; a part that cannot be read is passed over.
        writes: False where another process keeps the same.
    """

    def __init__(self, folder: Path, writes: bool = True) -> None:
        self.folder, self.writes = folder, writes
        self._new: dict[str, np.ndarray] = {}
        self._where: dict[str, tuple[Path, int]] = {}  # part and row
        self._read: OrderedDict[Path, Any] = OrderedDict()  # vectors of the last parts
        for part in sorted(folder.glob("*.parquet")):
            keys = _column(part, "key")
            if keys is not None:
                self._where |= {key: (part, row) for row, key in enumerate(keys.to_pylist())}

    def __len__(self) -> int:
        return len(self._where.keys() | self._new.keys())

    def get(self, key: str) -> torch.Tensor | None:
        if key in self._new:
            return torch.from_numpy(self._new[key].copy())
        if key not in self._where:
            return None
        part, row = self._where[key]
        vectors = self._vectors(part)
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
        pq.write_table(table, temporary)
        temporary.rename(part)
        self._where |= {key: (part, row) for row, key in enumerate(self._new)}
        self._new = {}

    def _vectors(self, part: Path) -> Any:
        if part not in self._read:
            self._read[part] = _column(part, "vector")
        self._read.move_to_end(part)
        while len(self._read) > _PARTS:
            self._read.popitem(last=False)
        return self._read[part]


def _column(part: Path, name: str) -> Any:
    """A column of a part; None where it cannot be read, as after a full disk."""
    try:
        return pq.read_table(part, columns=[name], schema=_SCHEMA)[name].combine_chunks()
    except (OSError, pa.ArrowException):
        return None


def keys_of(images_B3HW: torch.Tensor, masks_B1HW: torch.Tensor) -> Sequence[str]:
    """Of crops and masks, one each: equal where all their numbers are."""
    parts = (torch.cat([images_B3HW, masks_B1HW], dim=1)).detach().cpu().float().contiguous()
    return [hashlib.sha256(one.numpy().tobytes()).hexdigest() for one in parts]
