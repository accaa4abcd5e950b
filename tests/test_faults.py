"""Runs that are killed, and started again with the same command, end like the run that was left alone, bit for bit.

`pytest -m fault` runs the tests of every fault and prints their table; `benchmarks/kill_runs.py` kills more often.
"""

from __future__ import annotations

import itertools
import random
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from kill_runs import (
    Command,
    Kill,
    Whole,
    aimed_kill,
    aimed_kills,
    assert_same,
    life_of,
    random_kill,
    survive,
    whole_of,
)

from distil_jax.config import Config, config_to_toml

Environment = dict[str, str]
KEEP = {"checkpoint.keep": 2}  # so that checkpoints are deleted, too


@pytest.fixture
def command(tiny_config: Callable[..., Config], tmp_path: Path) -> Command:
    """The command that `whole_run` is the result of, for any folder."""

    def make(output: Path) -> list[str]:
        config = tmp_path / f"{output.name}.toml"
        config.write_text(config_to_toml(tiny_config(output, KEEP)))
        return ["distill", "--config", str(config)]

    return make


@pytest.fixture(scope="module")
def whole(whole_run: Any) -> Whole:
    return whole_of(whole_run.folder)


@pytest.fixture
def chance() -> random.Random:
    """Other kills in every session; those of a test that failed are drawn again with the seed that it has printed."""
    seed = random.randrange(10**6)
    print(f"kills drawn with seed {seed}")  # noqa: T201
    return random.Random(seed)


@pytest.mark.fault("SIGKILL, aimed", tries=3)
def test_killed_at_moments_that_are_aimed_at(
    command: Command, command_environment: Environment, whole: Whole, chance: random.Random, tmp_path: Path
) -> None:
    """And the moments are those that they are said to be."""

    def kills() -> Iterator[Kill]:
        folder = tmp_path / "run1" / "checkpoints"
        yield Kill("deletion", 2, 0.0)  # 1 makes the folder for it
        assert [entry.name for entry in sorted(folder.glob("[0-9]*"))] == ["2", "4", "6"], "2 should be about to go"
        yield Kill("commit", 5, 0.0)  # four items and the whole
        (unfinished,) = folder.glob("*tmp*")
        assert unfinished.name.startswith("8.") and not list(unfinished.glob("*tmp*")), "only the last name is missing"
        yield from (aimed_kill(chance, moment) for moment in itertools.repeat("save"))

    survive(command, whole, kills(), 3, tmp_path, command_environment)


@pytest.mark.fault("SIGKILL at random moments", tries=2)
def test_killed_while_training(
    command: Command, command_environment: Environment, whole: Whole, chance: random.Random, tmp_path: Path
) -> None:
    """Within a second of the first rows of metrics."""
    kills = (Kill("metrics", chance.randint(2, 4), chance.uniform(0.001, 1)) for _ in itertools.count())
    survive(command, whole, kills, 2, tmp_path, command_environment)


@pytest.mark.slow
@pytest.mark.fault("SIGKILL at random moments", tries=20)
def test_killed_twenty_times_at_random_moments(
    command: Command, command_environment: Environment, whole: Whole, chance: random.Random, tmp_path: Path
) -> None:
    """From the start of the process on: while it imports, compiles, trains, saves."""
    duration = life_of(command, tmp_path / "measured", command_environment)
    assert_same(tmp_path / "measured", whole, "not killed at all")
    kills = (random_kill(chance, duration) for _ in itertools.count())
    survive(command, whole, kills, 20, tmp_path, command_environment)


@pytest.mark.slow
@pytest.mark.fault("SIGKILL, aimed", tries=20)
def test_killed_twenty_times_at_moments_that_are_aimed_at(
    command: Command, command_environment: Environment, whole: Whole, chance: random.Random, tmp_path: Path
) -> None:
    survive(command, whole, aimed_kills(chance), 20, tmp_path, command_environment)


def test_a_difference_would_be_noticed(whole: Whole, whole_run: Any, tmp_path: Path) -> None:
    """The comparison that the tests above rely on."""
    folder = tmp_path / "run"
    shutil.copytree(whole_run.folder, folder)
    assert_same(folder, whole, "")
    rows = (folder / "metrics.jsonl").read_text()
    for wrong in (rows.replace('"tokens": ', '"tokens": 1', 1), rows + '{"step": 12', rows[: rows.rindex("{")]):
        (folder / "metrics.jsonl").write_text(wrong)
        with pytest.raises((AssertionError, ValueError)):
            assert_same(folder, whole, "")
    (folder / "metrics.jsonl").write_text(rows)
    (folder / "checkpoints" / "10").rename(folder / "checkpoints" / "11")
    with pytest.raises(KeyError):
        assert_same(folder, whole, "")
    shutil.rmtree(folder / "checkpoints" / "11")
    shutil.rmtree(folder / "checkpoints" / "12")
    with pytest.raises(AssertionError, match="last checkpoint"):
        assert_same(folder, whole, "")
