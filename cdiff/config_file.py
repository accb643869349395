"""Reading and writing a configuration: YAML over the defaults, then dotted overrides (`generator.steps=400`).

Unknown keys are refused with the nearest valid name.
"""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml
from pydantic import ValidationError

from cdiff.config import Config, Settings
from cdiff.errors import ConfigError, shown_uri


def load_config(
    path: str | Path | None = None,
    overrides: list[str] | None = None,
    overlay: str | Path | None = None,
) -> Config:
    """Read a YAML file over the defaults, then an overlay, then apply dotted overrides.

    Args:
        path: YAML file; None for the defaults alone.
        overrides: "section.key=value" strings; values are read as YAML.
        overlay: YAML file of some settings, as tune/sweep.py writes it.
    Raises:
        ConfigError: unreadable file, unknown key (with the nearest valid one), value out of range.
    """
    values: dict[str, Any] = _read(Path(path)) if path else {}
    for section, inner in (_read(Path(overlay)) if overlay else {}).items():
        both = isinstance(inner, dict) and isinstance(values.get(section), dict)
        values[section] = {**values[section], **inner} if both else inner
    for override in overrides or []:
        _apply(values, override)
    return build_config(values)


def overridden(config: Config, overrides: Sequence[str]) -> Config:
    """A configuration with dotted overrides on top; errors as in `load_config`."""
    values = config.model_dump()
    for override in overrides:
        _apply(values, override)
    return build_config(values)


def build_config(values: dict[str, Any]) -> Config:
    """Check a nested mapping and turn it into a Config; errors as in `load_config`."""
    try:
        return Config.model_validate(values)
    except ValidationError as error:
        raise ConfigError(shown_uri("\n".join(_explain(problem) for problem in error.errors()))) from None


def dump_config(config: Config) -> str:
    """The resolved configuration as YAML, every default included."""
    return yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False)


def valid_keys() -> list[str]:
    """All dotted keys."""
    return [
        f"{name}.{inner}" if inner else name
        for name, field in Config.model_fields.items()
        for inner in (_inner_keys(field.annotation) or [""])
    ]


def _inner_keys(annotation: Any) -> list[str]:
    return (
        list(annotation.model_fields)
        if isinstance(annotation, type) and issubclass(annotation, Settings)
        else []
    )


def _read(path: Path) -> dict[str, Any]:
    try:
        values = yaml.safe_load(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(
            f"cannot read the configuration {path}: {error.strerror}. Give an existing YAML file."
        ) from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path} is not valid YAML: {error}") from None
    if not isinstance(values or {}, dict):
        raise ConfigError(f"{path} must hold a mapping of sections, not a {type(values).__name__}.")
    return values or {}


def _apply(values: dict[str, Any], override: str) -> None:
    key, equals, text = override.partition("=")
    if not equals or not key:
        raise ConfigError(f"override {override!r} is not of the form section.key=value")
    try:
        value = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise ConfigError(f"override {override!r}: the value is not valid YAML: {error}") from None
    *sections, last = key.split(".")
    node = values
    for section in sections:
        inner = node.setdefault(section, {})
        if not isinstance(inner, dict):
            raise ConfigError(f"override {override!r}: {section} is not a section")
        node = inner
    node[last] = value


def _explain(problem: Any) -> str:
    key = ".".join(str(part) for part in problem["loc"])
    if isinstance(problem.get("input"), dict) and problem["type"] == "value_error":
        # of several settings together; it names them
        return str(problem["msg"].removeprefix("Value error, "))
    if problem["type"] != "extra_forbidden":
        return f"{key} = {problem.get('input')!r}: {problem['msg']}"
    near = difflib.get_close_matches(key, [*Config.model_fields, *valid_keys()], n=1, cutoff=0.4)
    near = near or [name for name in valid_keys() if name.split(".")[-1] == key.split(".")[-1]][:1]
    hint = f" Did you mean {near[0]}?" if near else " `--dry-run` prints every valid key."
    return f"unknown setting {key}.{hint}"
