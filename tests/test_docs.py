"""What the documentation names is there: files, settings with values that they take, options of commands."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from cdiff.config_file import load_config
from cdiff.errors import ConfigError
from jobs import doctor, prepare, serve, session
from tune import sweep

ROOT = Path(__file__).resolve().parents[1]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]
PARSERS = {
    "jobs/loop.py": [session.parser],
    "jobs/doctor.py": [doctor.parser],
    "jobs/prepare.py": [prepare.parser],
    "jobs/serve.py": [serve.parser],
    "tune/sweep.py": [sweep.parser, session.parser],
}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page: Path) -> None:
    told = re.findall(r"\]\(([^)#]+)(#[^)]*)?\)", page.read_text(encoding="utf-8"))
    paths = [path for path, _ in told if not path.startswith(("http", "mailto:"))]
    assert not [path for path in paths if not (page.parent / path).exists()]


def test_the_readme_tells_the_versions_of_the_lock() -> None:
    lock = dict(re.findall(r"^(\w+)==(\d+\.\d+)", (ROOT / "requirements.lock").read_text(), re.MULTILINE))
    told = " ".join((ROOT / "README.md").read_text(encoding="utf-8").split())
    assert f"pins PyTorch {lock['torch']}, Ray {lock['ray']} and MLflow {lock['mlflow']}." in told


def test_settings_are_taken() -> None:
    text = "\n".join(page.read_text(encoding="utf-8") for page in PAGES if page.name != "decisions.md")
    told = set(re.findall(r"(?<![\w./-])((?:[a-z_]+\.[a-z_]+|rounds)=[^\s`,;)]+)(?=[\s`,;.)])", text))
    given = sorted(item.rstrip(".") for item in told if not re.search(r"=(N|FILE|WEIGHTS|value)$", item))
    assert len(given) > 30
    refused = {}
    for item in given:
        try:
            # alone: what goes together with others is refused for its company, and not for itself
            load_config(None, [item])
        except ConfigError as error:
            refused[item] = str(error)
    unknown = {
        item: said for item, said in refused.items() if "unknown setting" in said or "Input should" in said
    }
    assert not unknown


def test_options_of_commands_exist() -> None:
    lines = [
        line
        for page in PAGES
        for line in re.sub(r"\\\n\s*", "", page.read_text(encoding="utf-8")).splitlines()
    ]
    seen = 0
    for program, makers in PARSERS.items():
        known = {option for make in makers for action in make()._actions for option in action.option_strings}
        for line in lines:
            if f"python {program}" not in line:
                continue
            used = re.findall(r"(?<![\w-])--[a-z][a-z-]*", line.split(program, 1)[1].split("  #")[0])
            assert set(used) <= known, f"{line.strip()}: {set(used) - known}"
            seen += len(used)
    assert seen > 10
