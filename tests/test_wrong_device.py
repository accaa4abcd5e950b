"""A run that asks for another kind of device than there is ends before it reads anything."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from distil_jax.cli import main

ROOT = Path(__file__).resolve().parents[1]
# None of the inputs exists: whoever looked at one would complain of that.
COMMANDS = {
    "pretrain": ["--corpus.folder=nothing", "--corpus.tokenizer=nothing"],
    "distill": ["--corpus.folder=nothing", "--teacher.path=nothing"],
    "finetune": ["--task=classification", "--task.train=nothing.csv", "--model.initial=nothing"],
}


def command(stage: str, platform: str, output: Path) -> list[str]:
    return [stage, f"--run.platform={platform}", f"--run.output={output}", *COMMANDS[stage]]


@pytest.mark.fault("wrong device")
@pytest.mark.parametrize("platform", ["gpu", "tpu"])
@pytest.mark.parametrize("stage", COMMANDS)
def test_ends_before_data_is_read(
    stage: str, platform: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("JAX_COMPILATION_CACHE_DIR", "")
    monkeypatch.chdir(tmp_path)
    assert main(command(stage, platform, tmp_path / "run")) == 2
    out, err = capsys.readouterr()
    assert out == "" and len(err.splitlines()) == 1, err
    assert f"run.platform {platform}, but JAX computes on 'cpu'" in err
    assert not any(tmp_path.iterdir())


@pytest.mark.slow
@pytest.mark.fault("wrong device")
@pytest.mark.parametrize("platforms", ["", "cpu", "cuda,cpu", "cuda"])
def test_whatever_jax_is_told(platforms: str, tmp_path: Path) -> None:
    """JAX itself falls back to CPU without a word, where it may."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "JAX_PLATFORMS": platforms}
    arguments = [sys.executable, "-m", "distil_jax.cli", *command("distill", "gpu", tmp_path / "run")]
    ended = subprocess.run(arguments, env=environment, capture_output=True, text=True, cwd=tmp_path)
    assert ended.returncode == 2, ended.stderr
    line = ended.stderr.splitlines()[-1]
    assert "run.platform gpu, but JAX computes on 'cpu'" in line or "no usable device: " in line
    assert "Traceback" not in ended.stderr
    assert not any(tmp_path.iterdir())
