"""Pretrained weights by name: a folder of this machine, a repository of the Hugging Face hub at a pinned commit, or a folder on S3.

    /models/stable-diffusion-v1-5                                   as it lies there
    stable-diffusion-v1-5/stable-diffusion-v1-5@451f4fe1...         from the hub's cache; fetched where HF_HUB_OFFLINE=0
    s3://BUCKET/models/stable-diffusion-v1-5                        brought to CDIFF_CACHE, checked by SHA-256

Weights are safetensors: nothing is unpickled, no code comes with them.
"""

from __future__ import annotations

import functools
import hashlib
import os
import re
from fnmatch import fnmatchcase
from pathlib import Path

from cdiff.data.origin import listed, origin_of
from cdiff.errors import ConfigError, DataError, RunError

_HUB = re.compile(r"(?P<name>[\w.-]+/[\w.-]+)@(?P<revision>.+)")
_READ = re.compile(r"(diffusion_pytorch_model|model)(-\d+-of-\d+)?\.safetensors|[\w.]+\.(json|txt)")
# Settings, the words of a tokeniser, and weights of the one precision that is read: a repository may hold the same ones five times.
_WANTED = ("*.json", "*.txt", "*.model", "*model.safetensors", "*model-?????-of-?????.safetensors")
_UNUSED = ("safety_checker/*",)


def local_weights(source: str) -> Path:
    """The folder of this machine that holds what a user named; fetched first where it lies elsewhere.

    Raises:
        ConfigError: nothing is named, the folder is not there, or a hub id is not pinned to a commit.
        RunError: it cannot be fetched.
    """
    if not source:
        raise ConfigError(
            "no weights are named: give a folder, hub-owner/name@commit, or s3://BUCKET/FOLDER."
        )
    if "://" in source:
        try:
            origin = origin_of(source, _wanted)
            for name in origin.sums:
                # looked at once by each process: a damaged one is brought anew
                origin.bring(origin.folder / name)
        except DataError as error:
            raise RunError(f"weights {source}: {error}") from None
        return origin.folder
    folder = Path(source).expanduser()
    return folder if folder.is_dir() else _from_hub(*_pinned(source))


def _pinned(source: str) -> tuple[str, str]:
    """A repository of the hub and its commit; ConfigError where a user named something else."""
    found = _HUB.fullmatch(source)
    if found is None:
        raise ConfigError(
            f"weights {source!r}: no such folder. Give one, hub-owner/name@commit with all 40 digits, or s3://BUCKET/FOLDER."
        )
    if not re.fullmatch("[0-9a-f]{40}", found["revision"]):
        raise ConfigError(
            f"weights {source!r}: {found['revision']!r} is no commit. Branches and tags move; pin all 40 digits of a commit."
        )
    return found["name"], found["revision"]


def demand_weights(source: str) -> None:
    """Errors as in `local_weights`, before anything is fetched: what lies on S3 is listed, and what the hub may be asked for is left to it."""
    if "://" in source:
        try:
            if not any(map(_wanted, listed(source))):
                raise DataError("it holds no settings and no safetensors.")
        except DataError as error:
            raise RunError(f"weights {source}: {error}") from None
        return
    folder = Path(source).expanduser()
    if not folder.is_dir() and _pinned(source) and _online():
        return
    folder = local_weights(source)
    if not any(_wanted(path.relative_to(folder).as_posix()) for path in folder.rglob("*.safetensors")):
        raise ConfigError(f"weights {source}: {folder} holds no safetensors.")


def _online() -> bool:
    return os.environ.get("HF_HUB_OFFLINE", "1") == "0"


def _wanted(name: str) -> bool:
    return any(fnmatchcase(name, p) for p in _WANTED) and not any(fnmatchcase(name, p) for p in _UNUSED)


def _from_hub(name: str, revision: str) -> Path:
    from huggingface_hub import snapshot_download  # here: who has folders alone need not import it
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

    try:
        return Path(
            snapshot_download(
                name,
                revision=revision,
                allow_patterns=list(_WANTED),
                ignore_patterns=list(_UNUSED),
                local_files_only=not _online(),  # nothing is fetched unless the environment says so
            )
        )
    except (LocalEntryNotFoundError, HfHubHTTPError, OSError) as error:
        raise RunError(
            f"weights {name}@{revision} are not in this machine's hub cache, and cannot be fetched: {error}\n"
            f"Fetch them once (HF_HUB_OFFLINE=0 hf download {name} --revision {revision}), or allow it with HF_HUB_OFFLINE=0."
        ) from None


@functools.cache
def weights_sum(folder: Path, parts: tuple[str, ...] = ("",)) -> str:
    """16 hex digits over names and bytes of what is read of a folder; computed once per process.

    Args:
        parts: folders below it that count, "" for itself; of each the settings and the plain weights, not other precisions beside them.
    Raises:
        ConfigError: there are no safetensors.
    """
    found = (path for part in parts for path in (folder / part).glob("*") if _READ.fullmatch(path.name))
    files = sorted(path for path in found if path.is_file())
    if not any(path.suffix == ".safetensors" for path in files):
        raise ConfigError(
            f"{folder} holds no safetensors. Other formats can run code when they are read: convert them first."
        )
    digest = hashlib.sha256()
    for path in files:
        with path.open("rb") as file:
            digest.update(path.relative_to(folder).as_posix().encode() + b"\0")
            digest.update(hashlib.file_digest(file, "sha256").digest())
    return digest.hexdigest()[:16]
