"""A run folder as its creation leaves it, for tests that need no photos."""

import dataclasses
from pathlib import Path

from cdiff.config import Config
from cdiff.config_file import dump_config
from cdiff.data.store import Run, create_run


@dataclasses.dataclass
class Splits:
    """What a split manifest tells of itself."""

    hash: str = "abc"
    photos: str = "def"


def bare_run(home: Path) -> Run:
    """A run named "one" under a home, with the defaults."""
    return create_run(home, "one", dump_config(Config()), Splits())
