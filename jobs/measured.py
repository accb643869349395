"""How, where and when something was measured: what stands at the head of every benchmark's result."""

from __future__ import annotations

import datetime
import os
import platform
import subprocess
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

from cdiff.errors import shown_uri

_TOLD = ("torch", "diffusers", "ray", "monai", "numpy")


def how_measured(program: str, told: list[str]) -> dict[str, Any]:
    """Command, commit, date, machine and versions; packages that are not installed are left out."""
    return {
        "command": shown_uri(f"python {program} " + " ".join(generic(told))),
        "commit": _commit(),
        "date": datetime.date.today().isoformat(),
        "machine": {
            "processor": platform.processor() or platform.machine(),
            "cores": os.cpu_count(),
            "device": torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu",
        },
        "versions": {name: found for name in _TOLD if (found := _version(name))},
    }


def _version(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None


def _commit() -> str:
    told = subprocess.run(
        ["git", "describe", "--always", "--dirty", "--exclude=*"],
        capture_output=True,
        text=True,
        check=False,
        cwd=Path(__file__).parent,
    )
    return told.stdout.strip() or "unknown"


def generic(arguments: list[str]) -> list[str]:
    """The command without this machine's folders: the last part of a data path says which set it is."""
    folders = {"--data": "DATA/", "--home": "DATA/", "--groups": "DATA/"}
    folders |= dict.fromkeys(("--out", "--before", "--best", "--space", "--overlay", "--checkpoint"), "")
    out, after = [], ""
    for argument in arguments:
        local = after in folders and Path(argument).is_absolute()
        out.append(folders[after] + Path(argument).name if local else argument)
        after = argument
    return out
