"""manifest.json of a run: an entry for every start, with command, host, devices, versions, source and inputs."""

from __future__ import annotations

import contextlib
import datetime
import hashlib
import importlib.metadata
import json
import logging
import os
import platform
import shlex
import socket
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from distil_jax.config import Config, config_to_toml
from distil_jax.cpu import settings_in_force
from distil_jax.runs.files import write_atomically

MANIFEST_FILE = "manifest.json"
OPENING_FILE = "opening.txt"  # the table that a run opens with
_PACKAGES = (
    *("distil_jax", "jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "numpy", "grain", "transformers"),
    *("tokenizers", "datasets"),
)
_SOURCE = Path(__file__).resolve().parents[2]
_GIT_SECONDS = 5.0  # a source tree on slow storage is not worth waiting for
_LOG = logging.getLogger("distil_jax")


def record_start(folder: Path, config: Config, inputs: Mapping[str, str], stage: str, *, command: str = "") -> None:
    """Append this start to the manifest of the run in `folder`; an error is logged and does not end the run.

    Args:
        folder: the run's, owned by this process.
        config: its settings from now on.
        inputs: what it reads, as name -> sha256.
        stage: what makes it, such as "distill".
        command: what the user typed; empty: the process's own arguments.
    """
    try:
        starts = [*read_starts(folder), _entry(config, inputs, stage, command)]
        write_atomically(folder / MANIFEST_FILE, json.dumps({"starts": starts}, indent=2, ensure_ascii=False) + "\n")
    except Exception as error:
        _LOG.warning("%s: not written (%s: %s)", folder / MANIFEST_FILE, type(error).__name__, error)


def read_starts(folder: Path) -> list[dict[str, Any]]:
    """The starts of a run so far, the first one first; none where the manifest is missing or damaged."""
    try:
        starts = json.loads((folder / MANIFEST_FILE).read_text(encoding="utf-8"))["starts"]
    except (OSError, ValueError, TypeError, KeyError, RecursionError):
        return []
    return [start for start in starts if isinstance(start, dict)] if isinstance(starts, list) else []


def _entry(config: Config, inputs: Mapping[str, str], stage: str, command: str) -> dict[str, Any]:
    return {
        "time": datetime.datetime.now().astimezone().isoformat(timespec="seconds"),
        "stage": stage,
        "command": command or shlex.join([Path(sys.argv[0]).name, *sys.argv[1:]]),
        "folder": str(Path.cwd()),  # where relative paths start
        "host": socket.gethostname(),
        "process": os.getpid(),
        "system": platform.platform(),
        "devices": _devices(),
        "environment": settings_in_force(os.environ),
        "versions": versions(),
        "source": source_state(_SOURCE),
        "config_sha256": config_sha256(config),
        "inputs": dict(inputs),
    }


def config_sha256(config: Config) -> str:
    """SHA-256 of the config.toml that a run of these settings has."""
    return hashlib.sha256(config_to_toml(config).encode()).hexdigest()


def _devices() -> dict[str, Any]:
    import jax

    return {
        "platform": jax.default_backend(),
        "kind": jax.devices()[0].device_kind,
        "count": jax.device_count(),
        "processes": jax.process_count(),
    }


def versions(*also: str) -> dict[str, str]:
    """Version of Python, and of the packages that results may depend on and those named, where they are installed."""
    found = {"python": platform.python_version()}
    for name in (*_PACKAGES, *also):
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            found[name] = importlib.metadata.version(name)
    return found


def source_state(folder: Path) -> dict[str, Any] | None:
    """The commit of the source tree in `folder`, and whether files differ from it; None where there is no tree."""
    if not (folder / ".git").exists():  # an installed package, perhaps inside another tree
        return None
    try:
        commit = _git(folder, "rev-parse", "HEAD")
        return {"commit": commit.strip(), "changed": bool(_git(folder, "status", "--porcelain").strip())}
    except (OSError, subprocess.SubprocessError):
        return None


def _git(folder: Path, *arguments: str) -> str:
    command = ["git", "--no-optional-locks", "-C", str(folder), *arguments]
    done = subprocess.run(command, capture_output=True, text=True, timeout=_GIT_SECONDS, check=True)
    return done.stdout


def processor_name() -> str:
    """Name and family of the first core. The family distinguishes processors that a cloud gives one name."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    fields = dict(line.split(":", 1) for line in lines[:30] if ":" in line)
    known = {name.strip(): value.strip() for name, value in fields.items()}
    name = known.get("model name", platform.machine())
    return f"{name} (family {known['cpu family']})" if "cpu family" in known else name
