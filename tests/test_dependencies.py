"""Dependencies: each has a reason, all are pinned, and what is imported is declared."""

from __future__ import annotations

import ast
import importlib.metadata
import re
import sys
import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

ROOT = Path(__file__).resolve().parents[1]
PYPROJECT = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
PROJECT = tomllib.loads(PYPROJECT)["project"]
LOCK = (ROOT / "requirements.lock").read_text(encoding="utf-8").splitlines()
PINS = [line for line in LOCK if line and not line.startswith("#")]
EXTRAS: dict[str, list[str]] = PROJECT["optional-dependencies"]
LOCKED = [Requirement(text) for text in PROJECT["dependencies"] + EXTRAS["dev"]]

# where what only the latent backbone and frozen features need is imported, when they are asked for
LATENT = ("cdiff/generator/pretrained.py", "cdiff/safe/frozen.py")

# the last versions with published holes
UNSAFE = {
    "ray": "2.51.99",
    "mlflow": "3.17.1",
    "diffusers": "0.37.99",
    "transformers": "5.2.0",
    "torch": "2.5.99",
    "pillow": "12.2.99",
    "starlette": "1.0.0",
    "fastapi": "0.131.99",
}


def _pinned() -> dict[str, Version]:
    return {canonicalize_name(name): Version(version) for name, version in (pin.split("==") for pin in PINS)}


def test_every_dependency_has_a_reason_beside_it() -> None:
    declared = PROJECT["dependencies"] + [text for extra in EXTRAS.values() for text in extra]
    for text in declared:
        reason = re.search(rf'^ *"{re.escape(text)}", +# (.{{10,}})$', PYPROJECT, re.MULTILINE)
        assert reason, f"{text} has no one-line reason"


def test_the_lock_file_pins_exact_versions_and_names_no_place() -> None:
    for pin in PINS:
        assert re.fullmatch(r"[A-Za-z0-9._-]+==[0-9][A-Za-z0-9.]*", pin), f"not a plain pin: {pin}"
    assert len(_pinned()) == len(PINS), "no package twice"
    assert "torch==2.13.0" in PINS, "without a local build's suffix, which no registry has"
    assert "cdiff" not in _pinned()


@pytest.mark.parametrize("requirement", LOCKED, ids=str)
def test_the_lock_file_keeps_what_the_project_asks_for(requirement: Requirement) -> None:
    version = _pinned().get(canonicalize_name(requirement.name))
    assert version is not None, f"{requirement.name} is not pinned: make lock"
    assert version in requirement.specifier


def test_the_lock_file_pins_what_the_pinned_packages_need() -> None:
    pinned = _pinned()
    lacking = set()
    for name in pinned:
        try:
            needs = importlib.metadata.requires(name) or []
        except importlib.metadata.PackageNotFoundError:
            continue  # another platform's
        for need in map(Requirement, needs):
            if (need.marker is None or need.marker.evaluate({"extra": ""})) and canonicalize_name(
                need.name
            ) not in pinned:
                lacking.add(f"{name} needs {need.name}")
    # CUDA packages come with torch's ordinary build and are pinned by it
    assert not {line for line in lacking if not re.search(r"needs (nvidia|cuda|triton)", line)}


@pytest.mark.parametrize(("name", "unsafe"), UNSAFE.items())
def test_no_version_under_a_security_floor_is_allowed(name: str, unsafe: str) -> None:
    declared = [Requirement(text) for text in PROJECT["dependencies"] + EXTRAS["latent"]]
    (requirement,) = [need for need in declared if need.name == name]
    assert unsafe not in requirement.specifier
    assert "0.1" not in requirement.specifier


def test_what_is_imported_is_declared() -> None:
    """An import that only works because another package brought the module along breaks with that package's next release."""
    providers = importlib.metadata.packages_distributions()
    declared = {canonicalize_name(Requirement(text).name) for text in PROJECT["dependencies"]}
    tests = declared | {canonicalize_name(Requirement(text).name) for text in EXTRAS["dev"]}
    sweeps = declared | {canonicalize_name(Requirement(text).name) for text in EXTRAS["tune"]}
    latent = declared | {canonicalize_name(Requirement(text).name) for text in EXTRAS["latent"]}
    allowed = {"tests": tests, "tune": sweeps} | dict.fromkeys(LATENT, latent)
    for folder in ("cdiff", "actors", "jobs", "tune", "tests"):
        for path in sorted((ROOT / folder).rglob("*.py")):
            for module in _top_level_imports(path):
                names = {canonicalize_name(name) for name in providers.get(module, [module])}
                name = path.relative_to(ROOT).as_posix()
                assert names & allowed.get(name, allowed.get(folder, declared)), f"{name} imports {module}"


def _top_level_imports(path: Path) -> set[str]:
    modules = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            modules |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and not node.level and node.module:
            modules.add(node.module.split(".")[0])
    return modules - set(sys.stdlib_module_names) - {"cdiff", "actors", "jobs", "tune", "tests"}
