"""How, where and when something was measured: what stands at the head of every benchmark's result."""

from __future__ import annotations

import datetime
import os
import platform
import shlex
import shutil
import subprocess
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import psutil

from cdiff.errors import shown_uri

_TOLD = ("torch", "diffusers", "ray", "monai", "numpy")


def how_measured(program: str, told: list[str]) -> dict[str, Any]:
    """Command, commit, date, machine and versions; packages that are not installed are left out."""
    return {
        "command": shown_uri(f"python {program} {shlex.join(generic(told))}"),
        "commit": _commit(),
        "date": datetime.date.today().isoformat(),
        "machine": {
            "processor": _processor(),
            "cores": os.cpu_count(),
            "memory_gib": round(psutil.virtual_memory().total / 2**30),
            "cards": _cards(),
        },
        "versions": {name: found for name in _TOLD if (found := _version(name))},
    }


def _processor() -> str:
    """The model where the system tells it, else the architecture."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        lines = []
    models = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return models[0] if models else platform.machine()


def _cards() -> list[str]:
    """GPUs of this machine, used or not; asked of the driver's own program, since PyTorch would take a part of their memory."""
    program = shutil.which("nvidia-smi")
    if not program:
        return []
    told = subprocess.run(
        [program, "--query-gpu=name", "--format=csv,noheader"], capture_output=True, text=True, check=False
    )
    return told.stdout.splitlines() if told.returncode == 0 else []


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
