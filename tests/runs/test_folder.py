"""The folder of a run: continued by the same run only, one process at a time, never half-written."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from distil_jax.config import Checkpoint, Config, Objective, Optimizer, Run
from distil_jax.errors import UserError
from distil_jax.runs.folder import CONFIG_FILE, INPUTS_FILE, STUDY_FILE, open_run_folder, read_config
from distil_jax.runs.lock import LOCK_FILE
from distil_jax.runs.manifest import MANIFEST_FILE

ROOT = Path(__file__).resolve().parents[2]
DEFAULT = Config()
INPUTS = {"corpus.train": "a" * 64, "teacher.path": "b" * 64}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """The folder of a run that was started with the default configuration."""
    with open_run_folder(tmp_path / "runs" / "one", Config(), INPUTS):
        pass
    return tmp_path / "runs" / "one"


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def refuse(folder: Path, pattern: str, config: Config = DEFAULT, inputs: dict[str, str] = INPUTS) -> None:
    """It says so in one line and leaves everything as it was."""
    before = contents(folder) if folder.is_dir() else None
    with (
        pytest.raises(UserError, match=pattern) as caught,
        open_run_folder(folder, config, inputs),
    ):
        raise AssertionError("the folder was given away")
    assert "\n" not in str(caught.value)
    assert str(folder) in str(caught.value)
    assert (contents(folder) if folder.is_dir() else None) == before


def test_a_new_folder_is_made_and_knows_its_run(folder: Path) -> None:
    assert {entry.name for entry in folder.iterdir()} == {CONFIG_FILE, INPUTS_FILE, LOCK_FILE, MANIFEST_FILE}
    assert read_config(folder) == Config()


def test_the_same_run_goes_on(folder: Path) -> None:
    """Where and how it is executed may change; the newest configuration is the one on record."""
    moved = Config(run=Run(output="elsewhere"), checkpoint=Checkpoint(every_steps=7))
    with open_run_folder(folder, moved, INPUTS):
        assert read_config(folder) == moved


def test_another_configuration_is_named_with_both_values(folder: Path) -> None:
    other = Config(optimizer=Optimizer(beta1=0.8), objective=Objective(cosine=0.0))
    refuse(folder, r"holds another run \(.*objective.cosine: was 1.0, is 0.0", other)
    refuse(folder, r"optimizer.beta1: was 0.9, is 0.8.*choose another folder", other)


def test_changed_inputs_are_named(folder: Path) -> None:
    refuse(folder, r"the contents of teacher.path changed\)", inputs={**INPUTS, "teacher.path": "c" * 64})
    refuse(folder, r"the contents of corpus.validation changed\)", inputs={**INPUTS, "corpus.validation": "d" * 64})


@pytest.mark.parametrize("content", [b"", b"{", b"[1]", b"\xff\xfe", b"[" * 100_000], ids=range(5))
def test_damaged_records_are_named(content: bytes, folder: Path) -> None:
    inputs = (folder / INPUTS_FILE).read_bytes()
    (folder / INPUTS_FILE).write_bytes(content)
    refuse(folder, f"{INPUTS_FILE}: damaged")
    (folder / INPUTS_FILE).write_bytes(inputs)
    (folder / CONFIG_FILE).write_bytes(content[:1000] or b"[")
    refuse(folder, CONFIG_FILE)


def test_a_folder_of_something_else(tmp_path: Path) -> None:
    (tmp_path / "thesis.txt").write_text("mine")
    refuse(tmp_path, "not empty and not the folder of a run")


def test_a_configuration_of_the_users_own_is_not_written_over(tmp_path: Path) -> None:
    (tmp_path / CONFIG_FILE).write_text("# my notes\n", encoding="utf-8")
    refuse(tmp_path, f"{CONFIG_FILE} that is of no run")


def test_an_empty_folder_will_do(tmp_path: Path) -> None:
    with open_run_folder(tmp_path, Config(), INPUTS):
        assert read_config(tmp_path) == Config()


def test_a_file_in_the_way(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("mine")
    refuse(tmp_path / "file", "is a file; give a folder")
    refuse(tmp_path / "file" / "run", r"cannot be written \(Not a directory\); choose another folder")
    assert (tmp_path / "file").read_text() == "mine"


def test_a_place_that_cannot_be_written() -> None:
    refuse(Path("/proc/distil_jax/run"), "cannot be written")


def test_a_folder_in_use_by_another_process(folder: Path) -> None:
    code = (
        "import sys\nfrom pathlib import Path\nfrom distil_jax.config import Config\n"
        "from distil_jax.runs.folder import open_run_folder\n"
        f"with open_run_folder(Path(sys.argv[1]), Config(), {INPUTS!r}):\n    print('mine', flush=True)\n    input()\n"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", code, str(folder)],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    try:
        assert process.stdout.readline() == "mine\n"
        refuse(folder, f"in use by .* process {process.pid}; wait for it")
        process.kill()
        process.wait()
        with open_run_folder(folder, Config(), INPUTS):  # a lock dies with its owner, however that ends
            pass
    finally:
        process.kill()
        process.communicate()


@pytest.mark.parametrize(
    "left", [[LOCK_FILE], [LOCK_FILE, INPUTS_FILE], [LOCK_FILE, INPUTS_FILE, "config.toml.unfinished"]]
)
def test_a_run_killed_at_its_very_start_can_be_started_again(tmp_path: Path, left: list[str]) -> None:
    for name in left:
        (tmp_path / name).write_text('{"corpus.train": "')
    with open_run_folder(tmp_path, Config(), INPUTS):
        assert read_config(tmp_path) == Config()
    with open_run_folder(tmp_path, Config(), INPUTS):
        pass


def test_reading_a_folder_that_is_none(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=f"{tmp_path}: not the folder of a run"):
        read_config(tmp_path)
    (tmp_path / STUDY_FILE).touch()
    with pytest.raises(UserError, match=f"{tmp_path}: the folder of a study, not of a run; give its TASK/seedN"):
        read_config(tmp_path)
