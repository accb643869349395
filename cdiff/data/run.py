"""The run folder: where everything of one run lies, and whose run it is.

HOME/runs/NAME/run.json  config.yaml  splits.parquet  ledger.jsonl  pairs/  checkpoints/  report/
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import uuid
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import yaml

from cdiff import __version__
from cdiff.data.storage import Storage, storage_at
from cdiff.errors import RunError
from cdiff.types import content_hash

NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}")


class Splits(Protocol):
    """What a run needs of a split manifest."""

    @property
    def hash(self) -> str: ...


@dataclass(frozen=True, slots=True)
class Run:
    """A run folder by its absolute path; crosses to actors."""

    path: Path

    @property
    def storage(self) -> Storage:
        return storage_at(self.path)

    @property
    def name(self) -> str:
        return self.path.name

    @property
    def home(self) -> Path:
        return self.path.parent.parent

    @property
    def identity_path(self) -> Path:
        return self.path / "run.json"

    @property
    def config_path(self) -> Path:
        return self.path / "config.yaml"

    @property
    def splits_path(self) -> Path:
        return self.path / "splits.parquet"

    @property
    def ledger_path(self) -> Path:
        return self.path / "ledger.jsonl"

    @property
    def pairs(self) -> Path:
        return self.path / "pairs"

    @property
    def checkpoints(self) -> Path:
        return self.path / "checkpoints"

    @property
    def report_dir(self) -> Path:
        return self.path / "report"

    def tally(self, name: str) -> Path:
        """File of one model's pixel counts."""
        return self.path / "tallies" / f"{name}.npz"

    def checkpoint(self, revision: str) -> Path:
        """Folder of one revision's weights."""
        if not NAME.fullmatch(revision):
            raise RunError(f"{revision!r} is no revision; revisions are the names in {self.checkpoints}.")
        return self.checkpoints / revision


def home_folder(flag: str | None = None, environment: Mapping[str, str] = os.environ) -> Path:
    """The absolute folder of all runs: the flag, else CDIFF_HOME, else ~/cdiff."""
    return Path(os.path.abspath(Path(flag or environment.get("CDIFF_HOME") or "~/cdiff").expanduser()))


def create_run(home: Path, name: str, config: str, splits: Splits) -> Run:
    """Make a run folder, or open the one of that name to go on with it.

    Args:
        name: letters, digits, dots, dashes and underscores.
        config: the resolved configuration as YAML (`cdiff.config_file.dump_config`).
        splits: the manifest; its hash tells whether the data are still the same.
    Raises:
        RunError: a name that is no folder name, an existing run of another configuration or of other data (with what
            differs), or a home that cannot be written.
    """
    if not NAME.fullmatch(name):
        raise RunError(f"run name {name!r}: use letters, digits, dots, dashes and underscores, 100 at most.")
    run = Run(Path(os.path.abspath(home)) / "runs" / name)
    if run.identity_path.exists():
        _demand_equal(run, config, splits)
    try:
        for folder in (run.pairs, run.checkpoints, run.report_dir):
            folder.mkdir(parents=True, exist_ok=True)
        if not run.identity_path.exists():
            write_durably(run.config_path, config.encode())
            identity = {"name": name, "version": __version__, "split_hash": splits.hash}
            write_durably(
                run.identity_path, json.dumps(identity, indent=1).encode()
            )  # last: from here on it exists
    except OSError as error:
        raise RunError(f"cannot write the run {run.path}: {error.strerror}. Choose another --home.") from None
    return run


def open_run(path: str | Path) -> Run:
    """Open an existing run folder.

    Raises:
        RunError: there is no run.
    """
    run = Run(Path(os.path.abspath(Path(path).expanduser())))
    if not run.identity_path.is_file():
        raise RunError(f"{run.path} is no run: it has no run.json. Give a folder such as HOME/runs/NAME.")
    return run


def find_run(name: str | Path, home: str | None = None) -> Run:
    """Open a run by its folder, or by its name under the home; errors as in `open_run`."""
    named = home_folder(home) / "runs" / name
    return open_run(named if not Path(name).exists() and named.exists() else name)


def safe_name(text: str) -> str:
    """A folder or file name for any text: unlike texts get unlike names; ordinary ones stay as they are."""
    plain = re.sub(r"[^\w.\- ]", "_", text).strip(" .")
    if plain == text and 0 < len(text) <= 80:
        return text
    return f"{plain[:80]}-{content_hash(text)[:6]}"


def write_durably(path: Path, data: bytes) -> None:
    """Write a file so that a crash leaves the old one or the new one, never a part."""
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex}.tmp")  # two writers may make the same file
    try:
        with temporary.open("xb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
    _sync_folder(path.parent)


def _demand_equal(run: Run, config: str, splits: Splits) -> None:
    try:
        stored = flat(yaml.safe_load(run.config_path.read_text(encoding="utf-8")))
        split_hash = json.loads(run.identity_path.read_text(encoding="utf-8"))["split_hash"]
    except (OSError, ValueError, yaml.YAMLError, KeyError, TypeError, AttributeError) as error:
        raise RunError(f"the run {run.path} is damaged ({error}). Choose another run name.") from None
    wanted, nothing = flat(yaml.safe_load(config)), "nothing"
    differing = [
        f"  {key}: {stored.get(key, nothing)!r} there, {wanted.get(key, nothing)!r} now"
        for key in sorted(stored | wanted)
        if stored.get(key, nothing) != wanted.get(key, nothing)
    ]
    if split_hash != splits.hash:
        differing.append(
            f"  data: split {split_hash} there, {splits.hash} now (other photos, masks or groups)"
        )
    if differing:
        raise RunError(
            f"the run {run.path} was started otherwise:\n" + "\n".join(differing) + "\n"
            "Choose another run name, or go on with what it was started with."
        )


def flat(values: Mapping[str, Any], separator: str = ".") -> dict[str, Any]:
    """Nested mappings as one, with joined keys."""
    out: dict[str, Any] = {}
    for key, value in values.items():
        if isinstance(value, Mapping):
            out |= {f"{key}{separator}{inner}": item for inner, item in flat(value, separator).items()}
        else:
            out[key] = value
    return out


def _sync_folder(folder: Path) -> None:
    """Make a rename durable; some network file systems refuse to open folders, and need no such help."""
    with contextlib.suppress(OSError):
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)
