"""Damage to the checkpoints of a run: whatever it is, it is said and the one before is used, or it changes nothing.

The damages are drawn at random, the same ones every time, over all files of a checkpoint; the checkpoints are real.
"""

from __future__ import annotations

import dataclasses
import gc
import logging
import random
import re
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
from kill_runs import whole_of

from distil_jax.cli import main
from distil_jax.config import Config, config_to_toml
from distil_jax.training.checkpoint import CORRUPT, Checkpoints

# What the library leaves behind when it fails must not reach the terminal.
pytestmark = pytest.mark.filterwarnings("error::pytest.PytestUnraisableExceptionWarning")
NEWEST, BEFORE = 12, 10
LINE = re.compile(
    rf"checkpoints: step {NEWEST}: (([\w./]+) )?"
    r"(is not what was saved|is 10; it is another checkpoint under this name|cannot be read \(.*\)); "
    r"moved to corrupt/, going back to the one before"
)


@dataclasses.dataclass(frozen=True)
class Saved:
    """Checkpoints of a run, and what was saved in them."""

    folder: Path
    like: Any
    states: Mapping[int, Any]
    metadata: Mapping[int, Any]


@pytest.fixture(scope="module")
def saved(whole_run: Any, tmp_path_factory: pytest.TempPathFactory) -> Saved:
    """The last two checkpoints of `whole_run`; the state of the last one is known from the run itself."""
    folder, like = tmp_path_factory.mktemp("saved") / "checkpoints", whole_run.outcome.state
    checkpoints = Checkpoints(whole_run.folder / "checkpoints", read_only=True)
    for step in (BEFORE, NEWEST):
        shutil.copytree(whole_run.folder / "checkpoints" / str(step), folder / str(step))
    states = {BEFORE: jax.tree.map(np.asarray, checkpoints.restore(BEFORE, like)), NEWEST: whole_run.state}
    return Saved(folder, like, states, {step: checkpoints.metadata(step) for step in states})


def files_of(step: Path) -> list[Path]:
    return sorted(path for path in step.rglob("*") if path.is_file())


def flip(path: Path, chance: random.Random) -> None:
    content = bytearray(path.read_bytes())
    for _ in range(chance.choice((1, 1, 8))):
        content[chance.randrange(len(content))] ^= 1 << chance.randrange(8)
    path.write_bytes(content)


def cut(path: Path, chance: random.Random) -> None:
    content = path.read_bytes()
    path.write_bytes(content[: chance.choice((0, chance.randrange(len(content))))])


def blank(path: Path, chance: random.Random) -> None:
    """What a file system may leave of a file that was being written when the power went: blocks of zeros."""
    content = bytearray(path.read_bytes())
    at = chance.randrange(len(content))
    content[at : at + 512] = bytes(len(content[at : at + 512]))
    path.write_bytes(content)


def delete(path: Path, chance: random.Random) -> None:
    """A file, or the folder that it is in, but not a whole checkpoint."""
    if path.parent.name != str(NEWEST) and chance.random() < 0.3:
        shutil.rmtree(path.parent)
    else:
        path.unlink()


def swap(path: Path, chance: random.Random) -> None:
    """Puts a file of the checkpoint before, of the same name if there is one, in the place of this one."""
    folder = next(parent for parent in path.parents if parent.name == str(NEWEST)).parent
    same = folder / str(BEFORE) / path.relative_to(folder / str(NEWEST))
    others = [other for other in files_of(folder / str(BEFORE)) if other.stat().st_size]
    shutil.copyfile(same if same.is_file() else chance.choice(others), path)


DAMAGES: tuple[Callable[[Path, random.Random], None], ...] = (flip, flip, cut, blank, delete, swap)


def damage(step: Path, chance: random.Random) -> str:
    """Damages one file of a checkpoint; says what was done."""
    path, kind = chance.choice([path for path in files_of(step) if path.stat().st_size]), chance.choice(DAMAGES)
    kind(path, chance)
    return f"{kind.__name__} {path.relative_to(step)}"


def assert_not_silent(saved: Saved, folder: Path, caplog: pytest.LogCaptureFixture, what: str) -> list[str]:
    """The newest checkpoint comes back as it was saved; or the one before does, and it is said in one line."""
    newest = folder / str(NEWEST)
    damaged = {path.relative_to(newest): path.read_bytes() for path in files_of(newest)}
    caplog.clear()
    with caplog.at_level(logging.WARNING):
        checkpoints = Checkpoints(folder, keep=2)
        found = checkpoints.resume(saved.like)
        checkpoints.close()
    assert found is not None, what
    state, metadata = found
    step = int(state.step)
    assert step in saved.states, what
    assert metadata == saved.metadata[step], what
    jax.tree.map(lambda a, b: np.testing.assert_array_equal(np.asarray(a), b, what), state, saved.states[step])
    if step == NEWEST:
        assert not caplog.messages and not (folder / CORRUPT).exists(), (what, caplog.messages)
        return []
    assert len(caplog.messages) == 1 and LINE.search(caplog.messages[0]), (what, caplog.messages)
    kept = folder / CORRUPT / str(NEWEST)
    assert {path.relative_to(kept): path.read_bytes() for path in files_of(kept)} == damaged, what
    return caplog.messages[:]


Survive = Callable[[int], list[tuple[str, str]]]


@pytest.fixture
def survive(
    saved: Saved, tmp_path: Path, caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str]
) -> Survive:
    """A function (tries) that damages checkpoints -> (what was done, what was said) where it made a difference."""

    def run(tries: int) -> list[tuple[str, str]]:
        chance, folder, lines = random.Random(0), tmp_path / "checkpoints", []
        capfd.readouterr()
        for _ in range(tries):
            shutil.rmtree(folder, ignore_errors=True)
            shutil.copytree(saved.folder, folder)
            what = damage(folder / str(NEWEST), chance)
            lines += [(what, line) for line in assert_not_silent(saved, folder, caplog, what)]
            gc.collect()  # what the library leaves behind complains when it goes
            assert capfd.readouterr() == ("", ""), what
        return lines

    return run


@pytest.mark.fault("checkpoint damaged", tries=20)
def test_no_damage_is_silent(survive: Survive) -> None:
    assert 5 <= len(survive(20)) < 20  # some bytes are never read


@pytest.mark.slow
@pytest.mark.fault("checkpoint damaged", tries=200)
def test_no_damage_of_200_is_silent(survive: Survive) -> None:
    lines = survive(200)
    assert 50 <= len(lines) < 200
    named = [found[2] for _, line in lines if (found := LINE.search(line))]
    assert sum(map(bool, named)) >= 0.9 * len(lines), "the leaf or file that is damaged should be named"


@pytest.mark.fault("checkpoint damaged")
def test_another_checkpoint_under_the_name_of_the_newest(
    saved: Saved, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Whole in itself, but of another step."""
    folder = tmp_path / "checkpoints"
    shutil.copytree(saved.folder, folder)
    shutil.rmtree(folder / str(NEWEST))
    shutil.copytree(folder / str(BEFORE), folder / str(NEWEST))
    (line,) = assert_not_silent(saved, folder, caplog, "replaced")
    assert "step 12: step is 10" in line


Command = Callable[[Path], tuple[int, list[str], str]]


@pytest.fixture
def command(
    whole_run: Any,
    tiny_config: Callable[..., Config],
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
    capfd: pytest.CaptureFixture[str],
) -> Command:
    """A function (folder of a finished run) that gives its command again -> exit status, warnings, the rest of stderr.

    At a terminal, warnings are lines of stderr.
    """

    def run(folder: Path) -> tuple[int, list[str], str]:
        config = tmp_path / "config.toml"
        config.write_text(config_to_toml(tiny_config(folder)))
        capfd.readouterr()
        caplog.clear()
        with caplog.at_level(logging.WARNING):
            status = main(["distill", "--config", str(config)])
        gc.collect()
        return status, caplog.messages[:], capfd.readouterr().err

    return run


@pytest.mark.fault("checkpoint damaged")
def test_a_run_whose_last_checkpoint_is_damaged_ends_with_the_same_bits(
    command: Command, whole_run: Any, tmp_path: Path
) -> None:
    folder = tmp_path / "run"
    shutil.copytree(whole_run.folder, folder)
    for path in files_of(folder / "checkpoints" / str(NEWEST) / "params" / "d"):
        flip(path, random.Random(0))
    status, warnings, rest = command(folder)
    assert (status, len(warnings), rest) == (0, 1, "")
    assert LINE.search(warnings[0])
    assert whole_of(folder) == whole_of(whole_run.folder)
    assert (folder / "checkpoints" / CORRUPT / str(NEWEST)).is_dir()


@pytest.mark.fault("all checkpoints damaged")
@pytest.mark.parametrize("folder_too", [False, True])
def test_a_run_whose_checkpoints_are_all_gone_says_that_it_starts_anew(
    folder_too: bool, command: Command, whole_run: Any, tmp_path: Path
) -> None:
    """Which is as it should be where it was killed before the first was saved, which cannot be seen."""
    folder = tmp_path / "run"
    shutil.copytree(whole_run.folder, folder)
    shutil.rmtree(folder / "checkpoints")
    if not folder_too:
        (folder / "checkpoints").mkdir()
    status, warnings, rest = command(folder)
    assert (status, rest) == (0, "")
    (warning,) = warnings
    assert f"{folder}: no checkpoint" in warning and "step 12" in warning
    assert whole_of(folder) == whole_of(whole_run.folder)


@pytest.mark.fault("all checkpoints damaged", tries=2)
def test_a_run_without_a_whole_checkpoint_does_not_start_anew(command: Command, whole_run: Any, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    shutil.copytree(whole_run.folder, folder)
    steps = [step for step in (folder / "checkpoints").iterdir() if step.name.isdecimal()]
    for number, step in enumerate(sorted(steps)):
        DAMAGES[number % 4](step / "hashes" / "metadata", random.Random(0))
    before = (folder / "metrics.jsonl").read_bytes()
    status, warnings, rest = command(folder)
    assert (status, len(warnings)) == (1, len(steps))
    assert rest.startswith("distil-jax: fault: ") and "no checkpoint is whole" in rest and rest.count("\n") == 1
    # Nor does it when it is asked again, as a scheduler does.
    status, warnings, rest = command(folder)
    assert (status, warnings) == (1, [])
    assert "no checkpoint is whole (step 10; step 12; step 2;" in rest and rest.count("\n") == 1
    assert (folder / "metrics.jsonl").read_bytes() == before
    assert sorted(step.name for step in (folder / "checkpoints" / CORRUPT).iterdir()) == sorted(s.name for s in steps)
