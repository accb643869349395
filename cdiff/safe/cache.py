"""Pooled features of frozen encoders, kept by content: what was looked at once is not looked at again, whichever run asks.

    CDIFF_CACHE/features/NAME/*.parquet     columns: key (SHA-256 of crop and mask), vector (float32)

NAME is the hash of encoder and settings. Parts are written whole under names of their own, so that many processes may add to a folder.
"""

from __future__ import annotations

import hashlib
import uuid
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch

_PART = 256  # vectors after which a part is written

_SCHEMA = pa.schema([("key", pa.string()), ("vector", pa.list_(pa.float32()))])


class FeatureCache:
    """Vectors by content. What is put is durable after `flush`.

    Args:
        folder: made when the first part is written; a part that cannot be read is passed over.
        writes: False where another process keeps the same.
    """

    def __init__(self, folder: Path, writes: bool = True) -> None:
        self.folder, self.writes = folder, writes
        self._known: dict[str, np.ndarray] = {}
        self._new: dict[str, np.ndarray] = {}
        for part in sorted(folder.glob("*.parquet")):
            try:
                table = pq.read_table(part, schema=_SCHEMA)
            except (OSError, pa.ArrowException):
                continue
            vectors = table["vector"].combine_chunks()
            self._known |= {
                key: np.asarray(vectors[i].values, np.float32)
                for i, key in enumerate(table["key"].to_pylist())
            }

    def __len__(self) -> int:
        return len(self._known)

    def get(self, key: str) -> torch.Tensor | None:
        found = self._known.get(key)
        return None if found is None else torch.from_numpy(found.copy())

    def put(self, key: str, vector: torch.Tensor) -> None:
        self._known[key] = vector.detach().cpu().float().numpy()
        if self.writes:
            self._new[key] = self._known[key]
        if len(self._new) >= _PART:
            self.flush()

    def flush(self) -> None:
        """Write what is new as one part."""
        if not self._new:
            return
        self.folder.mkdir(parents=True, exist_ok=True)
        table = pa.table([list(self._new), [v.tolist() for v in self._new.values()]], schema=_SCHEMA)
        name = uuid.uuid4().hex
        temporary = self.folder / f".{name}"
        pq.write_table(table, temporary)
        temporary.rename(self.folder / f"{name}.parquet")
        self._new = {}


def keys_of(images_B3HW: torch.Tensor, masks_B1HW: torch.Tensor) -> Sequence[str]:
    """Of crops and masks, one each: equal where all their numbers are."""
    parts = (torch.cat([images_B3HW, masks_B1HW], dim=1)).detach().cpu().float().contiguous()
    return [hashlib.sha256(one.numpy().tobytes()).hexdigest() for one in parts]
