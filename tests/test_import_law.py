"""The import law: jobs, tune -> actors -> cdiff; inside cdiff: evaluation, wasm -> downstream, generator -> safe -> data."""

from __future__ import annotations

import ast
import importlib.metadata
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PACKAGES = ("cdiff", "actors", "jobs", "tune")

# what each package of the project may import of the project, besides itself
MAY_IMPORT = {
    "cdiff": set[str](),
    "actors": {"cdiff"},
    "jobs": {"actors", "cdiff", "tune"},
    "tune": {"actors", "cdiff", "jobs"},
}
# lower levels are imported by higher ones; packages of one level stay apart, but for the pair named below
LEVELS = [
    {"errors"},
    {"types"},
    {"settings"},
    {"config"},
    {"config_file", "workers"},
    {"data"},
    {"safe"},
    {"downstream", "generator"},
    {"evaluation", "wasm", "tracking"},
    {"service"},
]
BESIDE = {("tracking", "evaluation")}


def _files(package: str) -> list[Path]:
    return sorted((ROOT / package).rglob("*.py"))


def _imports(path: Path, source: str | None = None) -> Iterator[tuple[int, str]]:
    """(line, dotted module) of every import statement, also inside functions; relative ones made absolute."""
    text = path.read_text(encoding="utf-8") if source is None else source
    package = path.relative_to(ROOT).with_suffix("").parts[:-1]
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield node.lineno, alias.name
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) + 1 - node.level] if node.level else ()
            module = ".".join([*base, *filter(None, [node.module])])
            # "from cdiff import wasm" names a package too
            for alias in node.names:
                yield node.lineno, f"{module}.{alias.name}"


def _level(part: str) -> int:
    return next(number for number, level in enumerate(LEVELS) if part in level)


def _broken(path: Path, source: str | None = None) -> list[str]:
    """What a file imports against the law."""
    here = path.relative_to(ROOT).with_suffix("").parts
    found = []
    for line, module in _imports(path, source):
        parts = module.split(".")
        if parts[0] in PACKAGES and parts[0] != here[0] and parts[0] not in MAY_IMPORT[here[0]]:
            found.append(f"{'/'.join(here)}:{line} imports {module}: {here[0]} stands below {parts[0]}")
        if here[0] == "cdiff" == parts[0] and len(here) > 1 and len(parts) > 1 and parts[1] != "__version__":
            mine, theirs = here[1], parts[1]
            if mine != theirs and _level(mine) <= _level(theirs) and (mine, theirs) not in BESIDE:
                found.append(
                    f"{'/'.join(here)}:{line} imports {module}: cdiff.{mine} stands below or beside cdiff.{theirs}"
                )
        if here[0] == "cdiff" and parts[0] in {"ray", "fastapi"}:
            found.append(f"{'/'.join(here)}:{line} imports {module}: the library runs without a cluster")
        if parts[0] in {"pickle", "dill", "joblib", "marshal", "shelve"}:
            found.append(
                f"{'/'.join(here)}:{line} imports {module}: reading its files runs whatever they hold"
            )
        if parts[0] == "mlflow" and here != ("cdiff", "tracking"):
            found.append(f"{'/'.join(here)}:{line} imports {module}: only cdiff/tracking.py speaks to MLflow")
    return found


def test_imports_point_one_way() -> None:
    broken = [line for package in PACKAGES for path in _files(package) for line in _broken(path)]
    assert not broken, "\n".join(broken)


@pytest.mark.parametrize(
    ("place", "statement"),
    [
        ("cdiff/data/x.py", "from cdiff.generator.model import Generator"),
        ("cdiff/data/x.py", "def f():\n    from cdiff import wasm"),
        ("cdiff/data/x.py", "from ..safe import tokens"),
        ("cdiff/generator/x.py", "import cdiff.downstream.scoring"),
        ("cdiff/evaluation/x.py", "from cdiff.wasm import budget"),
        ("cdiff/types.py", "from cdiff.config import Config"),
        ("cdiff/wasm/x.py", "import ray"),
        ("cdiff/wasm/x.py", "from actors.group import ActorGroup"),
        ("actors/x.py", "from jobs.loop import loop"),
        ("actors/x.py", "import mlflow.pyfunc"),
        ("actors/x.py", "from tune import space"),
        ("cdiff/data/x.py", "import pickle"),
    ],
)
def test_the_law_sees_each_kind_of_breach(place: str, statement: str) -> None:
    assert len(_broken(ROOT / place, statement)) == 1


def test_weights_are_read_from_safetensors_alone() -> None:
    """torch.load unpickles, and so may run what a file holds."""
    texts = {path: path.read_text(encoding="utf-8") for package in PACKAGES for path in _files(package)}
    assert not [path for path, text in texts.items() if "torch.load(" in text or "allow_pickle=True" in text]


def test_every_part_of_the_library_has_a_level() -> None:
    parts = {path.relative_to(ROOT / "cdiff").with_suffix("").parts[0] for path in _files("cdiff")}
    assert parts - {"__init__"} <= set().union(*LEVELS)


@pytest.mark.parametrize("folder", ["jobs", "tune"])
def test_no_entry_point_hides_an_installed_package(folder: str) -> None:
    """`python jobs/x.py` puts jobs/ first on sys.path: a jobs/ray.py would be imported in ray's place, in workers too."""
    taken = set(importlib.metadata.packages_distributions()) | set(sys.stdlib_module_names) | set(PACKAGES)
    names = {path.stem for path in (ROOT / folder).iterdir() if path.suffix == ".py" or path.is_dir()}
    assert not (names - {"__init__", "__pycache__"}) & taken
