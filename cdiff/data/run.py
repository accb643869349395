"""The run folder: where everything of one run lies, and whose run it is.

HOME/runs/NAME/run.json  config.yaml  splits.parquet  ledger.jsonl  pairs/  checkpoints/  report/
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import re
import shutil
import uuid
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import yaml

from cdiff import __version__
from cdiff.config import Config
from cdiff.data.storage import Storage, checked, storage_at
from cdiff.errors import RunError, StorageError
from cdiff.types import content_hash

# sections that may change from one start of a run to the next
FREE = ("rounds", "control", "resources", "train", "tracking")
# settings of other sections that may, with the value by which they are compared: they decide nothing but memory
FREE_KEYS = {"data.cache_megabytes": Config().data.cache_megabytes}
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}")


class Splits(Protocol):
    """What a run needs of a split manifest."""

    @property
    def hash(self) -> str: ...

    @property
    def photos(self) -> str: ...


@dataclass(frozen=True, slots=True)
class Run:
    """A run by its absolute folder or s3:// URL; crosses to actors.

    A run on S3 has a mirror on every machine that works on it: files are written there and then published, and fetched when they are
    asked for. What is committed never changes, so what lies in a mirror is right; it can be deleted at any time.
    """

    place: Path | str

    @property
    def remote(self) -> bool:
        return isinstance(self.place, str)

    @property
    def url(self) -> str:
        """What messages call the run."""
        return str(self.place)

    @property
    def storage(self) -> Storage:
        return storage_at(self.place)

    @property
    def path(self) -> Path:
        """The folder on this machine: the run itself, or its mirror."""
        return mirror_of(self.place) if isinstance(self.place, str) else self.place

    @property
    def name(self) -> str:
        return self.path.name

    @property
    def home(self) -> Path:
        return self.path.parent.parent

    @property
    def splits_path(self) -> Path:
        return self.path / "splits.parquet"

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
        """File of one model's pixel counts, as `DownstreamActor.weigh` left it."""
        return self.local(f"tallies/{name}.npz")

    def checkpoint(self, revision: str) -> Path:
        """Folder of one revision's weights."""
        if not NAME.fullmatch(revision):
            raise RunError(f"{revision!r} is no revision; revisions are the names in {self.url}/checkpoints.")
        path = self.checkpoints / revision
        if self.remote and not path.exists() and not path.with_suffix(".safetensors").exists():
            self._fetch_folder(f"checkpoints/{revision}")
            self.local(f"checkpoints/{revision}.safetensors")  # token banks and miners are files
        return path

    def local(self, key: str, anew: bool = False) -> Path:
        """The file of a key on this machine, brought here first where the run is on S3; it need not exist.

        Args:
            anew: though it is here: the mirror of an earlier run of this name may have left it.
        """
        path = self.path / key
        if self.remote and (anew or not path.exists()):
            try:
                self.storage.fetch(key, path)
            except FileNotFoundError:
                path.unlink(missing_ok=True)  # of an earlier run of this name
        return path

    def demand_room(self, needed: int, what: str) -> None:
        """Return if there is room for so many bytes, or nobody can tell; StorageError otherwise, before the work and not in its midst."""
        for place in {self.url, str(self.path)}:  # on S3 the mirror needs room as well
            free = storage_at(place).free_bytes()
            if free is not None and free < needed:
                raise StorageError(
                    f"{what} need about {needed / 1e9:.1f} GB under {place}, where {free / 1e9:.1f} GB are free. Free the disk; the same "
                    "command goes on."
                )

    def publish(self, key: str) -> None:
        """Make durable what was written under `path`: a file, or all files of a folder and then its COMMIT; what is there is left."""
        if not self.remote:
            return
        path, storage = self.path / key, self.storage
        if path.is_file():
            storage.send(key, path)
            return
        files = sorted(part for part in path.rglob("*") if part.is_file())
        names = {part.relative_to(path).as_posix(): part for part in files}
        names = {name: part for name, part in names.items() if "/." not in f"/{name}"}  # left by a crash
        sums = {name: hashlib.sha256(part.read_bytes()).hexdigest() for name, part in names.items()}
        commit = json.dumps(sums, indent=1).encode()
        with contextlib.suppress(FileNotFoundError):
            if storage.read(f"{key}.COMMIT") == commit:
                return
        for name, part in names.items():
            storage.send(f"{key}/{name}", part)
        storage.write(f"{key}.COMMIT", commit)

    def _fetch_folder(self, key: str) -> None:
        """Bring a published folder here, whole or not at all; without effect where there is none."""
        try:
            sums = json.loads(self.storage.read(f"{key}.COMMIT"))
        except FileNotFoundError:
            return
        path = self.path / key
        temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex}")
        try:
            for name, expected in sums.items():
                self.storage.fetch(f"{key}/{checked(name)}", temporary / name)
                if hashlib.sha256((temporary / name).read_bytes()).hexdigest() != expected:
                    raise RunError(f"{self.url}/{key}/{name} was changed after its commit. Start a new run.")
            with contextlib.suppress(OSError):  # another process may have been first
                temporary.rename(path)
        finally:
            shutil.rmtree(temporary, ignore_errors=True)
        if not path.exists():
            raise RunError(f"cannot write {path}. Free the disk under CDIFF_CACHE, or name another.")


def mirror_of(url: str) -> Path:
    """Where the files of a run on S3 lie on this machine."""
    home, _, name = url.rstrip("/").rpartition("/runs/")
    if not NAME.fullmatch(name):
        raise RunError(f"{url!r} is no run: give s3://BUCKET/HOME/runs/NAME.")
    return cache_folder() / content_hash(home)[:16] / "runs" / name


def cache_folder() -> Path:
    """Where this machine keeps what lies on S3: CDIFF_CACHE, else ~/.cache/cdiff. It can be deleted while no run works."""
    return Path(os.path.abspath(Path(os.environ.get("CDIFF_CACHE") or "~/.cache/cdiff").expanduser()))


def home_of(flag: str | None = None, environment: Mapping[str, str] = os.environ) -> str:
    """Where all runs lie, an absolute folder or an s3:// URL: the flag, else CDIFF_HOME, else ~/cdiff."""
    told = flag or environment.get("CDIFF_HOME") or "~/cdiff"
    if "://" in told:
        storage_at(told)  # says what is wrong with it
    return told.rstrip("/") if "://" in told else os.path.abspath(Path(told).expanduser())


def home_folder(home: str) -> Path:
    """The folder of this machine that goes with a home: itself, or for one on S3 the mirror's, where demo data and MLflow's files lie."""
    return mirror_of(f"{home}/runs/any").parents[1] if "://" in home else Path(home)


def run_of(home: str | Path, name: str) -> Run:
    """The run of a name under a home, whether it exists or not."""
    if not NAME.fullmatch(name):
        raise RunError(f"run name {name!r}: use letters, digits, dots, dashes and underscores, 100 at most.")
    return Run(f"{home}/runs/{name}" if "://" in str(home) else Path(os.path.abspath(home)) / "runs" / name)


def create_run(home: str | Path, name: str, config: str, splits: Splits) -> Run:
    """Make a run folder, or open the one of that name to go on with it.

    Args:
        name: letters, digits, dots, dashes and underscores.
        config: the resolved configuration as YAML (`cdiff.config_file.dump_config`).
        splits: the manifest; its hashes tell whether the data are still the same.
    Raises:
        RunError: a name that is no folder name, an existing run of another configuration or of other data (with what
            differs), or a home that cannot be written.
    """
    run = run_of(home, name)
    storage = run.storage
    exists = storage.size("run.json") is not None
    if exists:
        _demand_equal(run, config, splits)
    elif run.remote:
        shutil.rmtree(run.path, ignore_errors=True)  # the mirror of an earlier run of this name
    try:
        for folder in (run.pairs, run.checkpoints, run.report_dir):
            folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise RunError(f"cannot write {run.path}: {error.strerror}. Choose another --home.") from None
    if not exists:
        storage.write("config.yaml", config.encode())
        identity = {
            "name": name,
            "version": __version__,
            "split_hash": splits.hash,
            "photos_hash": splits.photos,
        }
        storage.write("run.json", json.dumps(identity, indent=1).encode())  # last: from here on it exists
    return run


def open_run(path: str | Path) -> Run:
    """Open an existing run folder.

    Raises:
        RunError: there is no run.
    """
    told = str(path).rstrip("/")
    run = Run(told if "://" in told else Path(os.path.abspath(Path(path).expanduser())))
    if run.remote:
        mirror_of(run.url)  # refuses what leads out of the cache
    if run.storage.size("run.json") is None:
        raise RunError(f"{run.url} is no run: it has no run.json. Give a folder such as HOME/runs/NAME.")
    return run


def find_run(name: str | Path, home: str | None = None) -> Run:
    """Open a run by its folder, or by its name under the home; errors as in `open_run`."""
    if "://" in str(name) or Path(name).exists() or not NAME.fullmatch(str(name)):
        return open_run(name)
    named = run_of(home_of(home), str(name))
    return open_run(name) if named.storage.size("run.json") is None else named


def decisive(config: Config) -> dict[str, Any]:
    """What of a configuration decides results: all but what may change from one start of a run to the next."""
    out: dict[str, Any] = config.model_dump(mode="json", exclude=set(FREE))
    for key, value in FREE_KEYS.items():
        section, _, name = key.partition(".")
        out[section][name] = value
    return out


def safe_name(text: str) -> str:
    """A folder or file name for any text: unlike texts get unlike names; ordinary ones stay as they are."""
    plain = re.sub(r"[^\w.\- ]", "_", text).strip(" .")
    if plain == text and 0 < len(text) <= 80:
        return text
    return f"{plain[:80]}-{content_hash(text)[:6]}"


def _demand_equal(run: Run, config: str, splits: Splits) -> None:
    try:
        # what its version did not know yet has the value under which nothing changes
        stored = flat(Config().model_dump(mode="json")) | flat(
            yaml.safe_load(run.storage.read("config.yaml"))
        )
        identity = json.loads(run.storage.read("run.json"))
        split_hash, photos_hash = identity["split_hash"], identity.get("photos_hash", splits.photos)
    except (OSError, ValueError, yaml.YAMLError, KeyError, TypeError, AttributeError) as error:
        raise RunError(f"the run {run.url} is damaged ({error}). Choose another run name.") from None
    wanted, nothing = flat(yaml.safe_load(config)), "nothing"
    differing = [
        f"  {key}: {stored.get(key, nothing)!r} there, {wanted.get(key, nothing)!r} now"
        for key in sorted(stored | wanted)
        if stored.get(key, nothing) != wanted.get(key, nothing)
        and key.partition(".")[0] not in FREE
        and key not in FREE_KEYS
    ]
    if split_hash != splits.hash:
        differing.append(
            f"  data: split {split_hash} there, {splits.hash} now (other photos, masks or groups)"
        )
    elif photos_hash != splits.photos:
        differing.append("  data: photos or masks of the same names have other content now")
    if differing:
        raise RunError(
            f"the run {run.url} was started otherwise:\n" + "\n".join(differing) + "\n"
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
