"""Fine-tuning that is killed again and again ends like the one that was left alone, bit for bit."""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from pathlib import Path

import pytest
from kill_runs import aimed_kills, run, survive, whole_of

from distil_jax.config import Config, config_to_toml


@pytest.mark.slow
@pytest.mark.fault("SIGKILL, aimed", tries=7)
def test_killed_at_every_moment(
    task_config: Callable[..., Config], command_environment: dict[str, str], tmp_path: Path
) -> None:
    """A run that keeps its best checkpoint besides the newest."""
    seed = random.randrange(10**6)
    print(f"kills drawn with seed {seed}")  # noqa: T201

    def command(output: Path, keep: int = 1) -> list[str]:
        changes = {"training.epochs": 4, "checkpoint.every_steps": 3, "checkpoint.keep": keep}
        config = tmp_path / f"{output.name}.toml"
        config.write_text(config_to_toml(task_config("classification", output, changes)))
        return ["finetune", "--config", str(config)]

    run(command(tmp_path / "whole", 1000), None, tmp_path / "whole", command_environment)
    survive(command, whole_of(tmp_path / "whole"), aimed_kills(random.Random(seed)), 7, tmp_path, command_environment)
    results = [json.loads((tmp_path / name / "result.json").read_text()) for name in ("whole", "run1")]
    assert results[0]["measures"] == results[1]["measures"]
    assert results[0]["step"] == results[1]["step"]
