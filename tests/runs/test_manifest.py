"""manifest.json: an entry for every start, and never a reason not to start."""

from __future__ import annotations

import hashlib
import json
import logging
import os
import socket
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest

from distil_jax.config import Checkpoint, Config
from distil_jax.runs.folder import CONFIG_FILE, INPUTS_FILE, open_run_folder, read_inputs
from distil_jax.runs.manifest import MANIFEST_FILE, read_starts, record_start, source_state, versions

INPUTS = {"corpus.train": "a" * 64}


def test_a_start_says_with_what_on_what_and_from_what(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["/usr/bin/distil-jax", "distill", "--run.output", "a b"])
    with open_run_folder(tmp_path / "run", Config(), INPUTS, "distill"):
        pass
    (start,) = read_starts(tmp_path / "run")
    assert start["stage"] == "distill"
    assert start["command"] == "distil-jax distill --run.output 'a b'"
    assert (start["host"], start["process"], start["folder"]) == (socket.gethostname(), os.getpid(), str(Path.cwd()))
    assert start["devices"]["count"] == jax.device_count() == 8
    assert (start["devices"]["platform"], start["devices"]["processes"]) == ("cpu", 1)
    assert start["versions"]["jax"] == jax.__version__
    assert start["versions"]["numpy"] == np.__version__
    assert start["config_sha256"] == hashlib.sha256((tmp_path / "run" / CONFIG_FILE).read_bytes()).hexdigest()
    assert start["inputs"] == read_inputs(tmp_path / "run") == INPUTS


def test_starts_are_kept(tmp_path: Path) -> None:
    for every in (1, 2, 3):
        with open_run_folder(tmp_path, Config(checkpoint=Checkpoint(every_steps=every)), INPUTS, "pretrain"):
            pass
    starts = read_starts(tmp_path)
    assert len({start["config_sha256"] for start in starts}) == 3
    assert sorted(start["time"] for start in starts) == [start["time"] for start in starts]
    assert not list(tmp_path.glob("*.unfinished")) + list(tmp_path.glob(".*"))


@pytest.mark.parametrize("content", ["", "{", "[1]", "null", '{"starts": 3}', '{"starts": [3, null]}', "[" * 10**5])
def test_a_damaged_manifest_stops_nobody(content: str, tmp_path: Path) -> None:
    (tmp_path / MANIFEST_FILE).write_text(content)
    assert read_starts(tmp_path) == []
    record_start(tmp_path, Config(), INPUTS, "distill")
    assert len(read_starts(tmp_path)) == 1
    json.loads((tmp_path / MANIFEST_FILE).read_text())


def test_a_manifest_that_cannot_be_written_stops_nobody(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / MANIFEST_FILE).mkdir()
    with caplog.at_level(logging.WARNING, logger="distil_jax"), open_run_folder(tmp_path / "x", Config(), INPUTS):
        record_start(tmp_path, Config(), INPUTS, "distill")
    assert f"{tmp_path / MANIFEST_FILE}: not written (IsADirectoryError" in caplog.text
    assert (tmp_path / "x" / INPUTS_FILE).is_file()


def test_the_commit_of_a_source_tree(tmp_path: Path) -> None:
    assert source_state(tmp_path) is None
    git = ["git", "-C", str(tmp_path), "-c", "user.name=a", "-c", "user.email=a@b"]
    subprocess.run([*git, "init", "--quiet"], check=True)
    assert source_state(tmp_path) is None  # nothing is committed yet
    subprocess.run([*git, "commit", "--quiet", "--allow-empty", "--message", "one"], check=True)
    commit = subprocess.run([*git, "rev-parse", "HEAD"], check=True, capture_output=True, text=True).stdout.strip()
    assert source_state(tmp_path) == {"commit": commit, "changed": False}
    (tmp_path / "new.py").write_text("")
    assert source_state(tmp_path) == {"commit": commit, "changed": True}


def test_without_git(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / ".git").mkdir()
    monkeypatch.setenv("PATH", str(tmp_path))
    assert source_state(tmp_path) is None


def test_versions_name_what_is_installed() -> None:
    assert versions()["python"] == ".".join(map(str, sys.version_info[:3]))
    assert {"jax", "flax", "optax", "orbax-checkpoint", "numpy", "transformers"} <= versions().keys()
