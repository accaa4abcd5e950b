"""Ctrl-C at a random step of every training command: no finished step is lost, and the run ends with the same bits."""

from __future__ import annotations

import dataclasses
import json
import random
import re
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from delayed_command import Delay, Launched

from distil_jax.config import Config, config_to_toml, with_overrides
from distil_jax.runs import read_metrics

STEP_SECONDS = 0.3  # a step takes at least so long once the test waits for it
STEPS = 12
TRIES = {"distill": 7, "pretrain": 7, "finetune": 6}  # 20 in all
FAST = (("pretrain", 0), ("finetune", 0))  # test_preemption.py has one of a distillation
OFTEN = {"checkpoint.every_steps": 5, "checkpoint.keep": 10, "evaluation.every_steps": 4, "logging.every_steps": 1}


@dataclasses.dataclass(frozen=True)
class Bits:
    """What a finished run has computed: rows of metrics, hashes of every array of its checkpoints by step."""

    rows: list[Any]
    hashes: dict[int, Any]


@pytest.fixture(scope="module")
def settings_of(
    tiny_config: Callable[..., Config], task_config: Callable[..., Config]
) -> Callable[[str, Path], Config]:
    """A function (command, output) -> configuration of a run of `STEPS` steps."""

    def make(command: str, output: Path) -> Config:
        if command == "finetune":
            changes = {**OFTEN, "training.steps": STEPS, "finetune.keep": "last"}
            return task_config("classification", output, changes)
        config = tiny_config(output, OFTEN)
        return with_overrides(config, {"teacher.path": ""}) if command == "pretrain" else config

    return make


@pytest.fixture(scope="module")
def whole(
    settings_of: Callable[[str, Path], Config],
    command_environment: dict[str, str],
    tmp_path_factory: pytest.TempPathFactory,
) -> Callable[[str], Bits]:
    """A function (command) -> what its run computes that is left alone."""
    known: dict[str, Bits] = {}

    def make(command: str) -> Bits:
        if command not in known:
            folder = tmp_path_factory.mktemp(command)
            begin = start(command, settings_of(command, folder / "run"), Delay(), folder, command_environment)
            with begin as run:
                (end,) = run.ends()
            assert end.status == 0, end.err
            known[command] = bits_of(folder / "run")
        return known[command]

    return make


def start(command: str, config: Config, delay: Delay, folder: Path, environment: dict[str, str]) -> Launched:
    path = folder / "settings.toml"
    path.write_text(config_to_toml(config), encoding="utf-8")
    return Launched([command, "--config", str(path)], [delay], folder / "signs", environment)


def bits_of(folder: Path) -> Bits:
    hashes: dict[int, Any] = {}
    for path in folder.glob("checkpoints/*/hashes/metadata"):
        saved = json.loads(path.read_text(encoding="utf-8"))
        hashes[int(path.parts[-3])] = saved["params"], saved["optimizer"]
    return Bits([(row["step"], row["kind"], row["metrics"]) for row in read_metrics(folder)], hashes)


def tries() -> list[Any]:
    every = [(command, number) for command, count in TRIES.items() for number in range(count)]
    return [pytest.param(*one, marks=() if one in FAST else pytest.mark.slow, id=f"{one[0]}-{one[1]}") for one in every]


@pytest.mark.fault("Ctrl-C at a random step")
@pytest.mark.parametrize(("command", "number"), tries())
def test_no_finished_step_is_lost_and_the_bits_are_the_same(
    command: str,
    number: int,
    settings_of: Callable[[str, Path], Config],
    whole: Callable[[str], Bits],
    command_environment: dict[str, str],
    tmp_path: Path,
) -> None:
    chance, expected, folder = random.Random(f"{command} {number}"), whole(command), tmp_path / "run"
    hold = Delay("step", chance.randint(1, STEPS - 4), STEP_SECONDS)
    with start(command, settings_of(command, folder), hold, tmp_path, command_environment) as run:
        run.wait_for_signs()
        time.sleep(chance.uniform(0, 3 * STEP_SECONDS))  # the moment in the step is random, too
        run.send(signal.SIGINT)
        (end,) = run.ends()
    assert end.status == 128 + signal.SIGINT, end.err
    assert "Traceback" not in end.err and f"distil-jax resume {folder}" in end.err
    done = max((row["step"] for row in read_metrics(folder, "train")), default=0)
    saved = re.search(r"saved step (\d+)", end.err)
    newest = max(bits_of(folder).hashes, default=0)
    assert newest == (int(saved[1]) if saved else done) == done >= hold.number - 1, end.err

    with Launched(["resume", str(folder)], [Delay()], tmp_path / "resumed", command_environment) as run:
        (end,) = run.ends()
    assert end.status == 0, end.err
    found = bits_of(folder)
    assert found.rows == expected.rows
    assert {step: found.hashes[step] for step in expected.hashes} == expected.hashes
