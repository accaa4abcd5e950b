"""Kill a run again and again (SIGKILL): does it end with the same bits as the run that is left alone?

    python benchmarks/kill_runs.py --kills 100                         # a small synthetic distillation
    python benchmarks/kill_runs.py --kills 20 --folder FOLDER distill --config quickstart ...

Half of the kills come at a random time, half are aimed (`killed_command.py`): while files of the folder are made,
while a checkpoint is saved or gets its name, while an old one is deleted, while metrics are written, while a program
is compiled, while the held-out set is measured. After each, every checkpoint that is listed must hold the bits of the
uninterrupted run at that step; a run that was killed some times is then left to finish, and its last checkpoint
(parameters, moments, step) and its metrics must be the uninterrupted run's. Prints a row for each kind: fault, tries,
survived, seconds. Ends with status 1 where something differs.

Any training command can be tested, without --run.output and --checkpoint.keep; FOLDER is made and holds all its runs.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
GUARD_SECONDS = 3600.0  # only ends a process that hangs
KILLS_A_RUN = 7  # then it is left to finish, and another one is begun
LATEST = 0.03  # seconds after an event that kills aimed at it may come
# Events of each moment in one life of a small run, of which one is drawn.
EVENTS = {"start": 4, "save": 60, "commit": 15, "deletion": 40, "metrics": 8, "compile": 8, "evaluation": 3}

Command = Callable[[Path], list[str]]


@dataclasses.dataclass(frozen=True)
class Kill:
    """One kill: `seconds` after the `number`-th event of `moment`, or after the start where `moment` is ""."""

    moment: str
    number: int
    seconds: float

    def __str__(self) -> str:
        when = f"{self.moment} {self.number}" if self.moment else "its start"
        return f"{self.seconds:.3f} s after {when}"


def random_kill(chance: random.Random, duration: float) -> Kill:
    """A kill at any time of a life of `duration` seconds."""
    return Kill("", 0, chance.uniform(0, duration))


def aimed_kill(chance: random.Random, moment: str) -> Kill:
    """A kill at one of the events of `moment`: just before it, or a little later."""
    return Kill(moment, chance.randint(1, EVENTS[moment]), chance.choice((0.0, chance.uniform(0, LATEST))))


def aimed_kills(chance: random.Random) -> Iterator[Kill]:
    """Kills at all moments in turn, without an end."""
    while True:
        for moment in chance.sample(list(EVENTS), len(EVENTS)):
            yield aimed_kill(chance, moment)


def begin(command: list[str], kill: Kill, folder: Path, environment: Mapping[str, str]) -> subprocess.Popen[str]:
    """Start `distil-jax` with the arguments `command`, with the kill prepared where it is an aimed one."""
    aim = [str(HERE / "killed_command.py"), kill.moment, str(kill.number), str(kill.seconds), str(folder)]
    return subprocess.Popen(
        [sys.executable, *(aim if kill.moment else ["-m", "distil_jax.cli"]), *command],
        env={
            **os.environ,
            "PYTHONPATH": str(HERE.parent),
            "DISTIL_JAX_RESTART": "0",  # which would start another process
            "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
            **environment,
        },
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def run(command: list[str], kill: Kill | None, folder: Path, environment: Mapping[str, str]) -> bool:
    """Run a command, killed or not; whether the kill came before it ended by itself. It must not fail."""
    process = begin(command, kill or Kill("", 0, 0), folder, environment)
    wait = GUARD_SECONDS if kill is None or kill.moment else kill.seconds
    try:
        _, err = process.communicate(timeout=wait)
    except subprocess.TimeoutExpired:
        process.send_signal(signal.SIGKILL)
        _, err = process.communicate()
        if wait == GUARD_SECONDS:
            raise AssertionError(f"{command}: hangs") from None
    if process.returncode == -signal.SIGKILL and kill is not None:
        return True
    assert process.returncode == 0, f"{command}: status {process.returncode}: {err}"
    return False


@dataclasses.dataclass(frozen=True)
class Whole:
    """An uninterrupted run: its rows of metrics, and the hashes of every leaf of its checkpoints by step."""

    rows: list[Any]
    hashes: dict[int, dict[str, str]]


def rows_of(folder: Path) -> list[Any]:
    """What the run computed, row by row; a line that is no row is an error, in a finished run."""
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    return [(row["step"], row["kind"], row["metrics"]) for row in rows]


def hashes_of(folder: Path) -> dict[int, dict[str, str]]:
    """The hashes of every leaf (parameters, moments, step) of every checkpoint that is listed, by step.

    Raises:
        DamagedError: one of them cannot be read, or is not what was saved.
    """
    from distil_jax.training.checkpoint import Checkpoints

    if not (folder / "checkpoints").is_dir():
        return {}
    checkpoints, found = Checkpoints(folder / "checkpoints", read_only=True), {}
    for step in checkpoints.all_steps():
        checkpoints.verify(step)
        saved = json.loads((folder / "checkpoints" / str(step) / "hashes" / "metadata").read_text(encoding="utf-8"))
        found[step] = {**saved["params"], **{f"optimizer{name}": value for name, value in saved["optimizer"].items()}}
    checkpoints.close()
    return found


def whole_of(folder: Path) -> Whole:
    """What an uninterrupted run, which has kept all its checkpoints, has left."""
    return Whole(rows_of(folder), hashes_of(folder))


def assert_listed_are_whole(folder: Path, whole: Whole, story: str) -> None:
    """Every checkpoint that a killed run lists has the bits of the uninterrupted run at its step."""
    for step, hashes in hashes_of(folder).items():
        assert hashes == whole.hashes[step], f"checkpoint {step} differs; {story}"


def assert_same(folder: Path, whole: Whole, story: str) -> None:
    """A finished run has the last checkpoint and the metrics of the uninterrupted one, and nothing broken."""
    assert_listed_are_whole(folder, whole, story)
    assert max(hashes_of(folder)) == max(whole.hashes), f"the last checkpoint is missing; {story}"
    assert rows_of(folder) == whole.rows, f"metrics differ; {story}"
    assert not (folder / "checkpoints" / "corrupt").exists(), f"a checkpoint was found damaged; {story}"


def survive(
    command: Command,
    whole: Whole,
    kills: Iterator[Kill],
    count: int,
    folder: Path,
    environment: Mapping[str, str],
    say: Callable[[str], Any] = lambda _: None,
) -> None:
    """Kill runs of `command` in folders below `folder`, `count` times in all; an error where one is not survived.

    A process that ends before its kill is due does not count.
    """
    done, number = 0, 0
    while done < count:
        number += 1
        output, story, mine = folder / f"run{number}", f"run {number}:", 0
        while done < count and mine < KILLS_A_RUN:
            kill = next(kills)
            if not run(command(output), kill, output, environment):
                break
            done, mine, story = done + 1, mine + 1, f"{story} {kill};"
            assert_listed_are_whole(output, whole, story)
            say(f"kill {done} of {count}")
        run(command(output), None, output, environment)
        assert_same(output, whole, story)


def life_of(command: Command, folder: Path, environment: Mapping[str, str]) -> float:
    """Seconds that one uninterrupted process takes, its programs compiled before."""
    began = time.monotonic()
    run(command(folder), None, folder, environment)
    return time.monotonic() - began


# On its own


def small_world(folder: Path) -> list[str]:
    """Text, vocabulary, token shards and teacher of a distillation of seconds -> its command."""
    chance, words = random.Random(0), [f"{a}{b}" for a in "bdfgklmnprst" for b in "aeiou"]
    folder.mkdir(parents=True)
    for name, lines in (("train", 400), ("validation", 60)):
        text = "".join(" ".join(chance.choices(words, k=chance.randint(6, 30))) + "\n" for _ in range(lines))
        (folder / f"{name}.txt").write_text(text, encoding="utf-8")
    (folder / "vocab.txt").write_text("\n".join(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *words]) + "\n")
    text = [f"--corpus.{name}={folder}/{name}.txt" for name in ("train", "validation")]
    data = [f"--corpus.folder={folder}/corpus", f"--corpus.tokenizer={folder}/vocab.txt"]
    training = ["--training.batch-size=8", "--training.micro-batch-size=4", "--parallel.devices=1"]
    training += ["--evaluation.rows=12", "--evaluation.batch-size=4", "--logging.progress=none"]
    training += ["--logging.no-tensorboard"]
    sizes = "--model.num-layers=2 --model.hidden-size=16 --model.num-heads=2 --model.intermediate-size=24".split()  # noqa: SIM905
    teacher = folder / "teacher"
    run(["prepare", *data, *text, "--corpus.sequence-length=24", "--corpus.min-tokens=6"], None, folder, {})
    run(["pretrain", *data, *training, *sizes, "--training.steps=2", f"--run.output={teacher}"], None, folder, {})
    run(["export", str(teacher), f"--output={folder}/model"], None, folder, {})
    often = [
        "--training.steps=12",
        "--checkpoint.every-steps=2",
        "--evaluation.every-steps=3",
        "--logging.every-steps=1",
    ]
    return ["distill", *data, *training, *often, f"--teacher.path={folder}/model"]


def main() -> int:
    """Kill, compare, print the rows; the exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=100)
    parser.add_argument(
        "--folder", type=Path, help="where the runs go; default: a temporary folder, deleted at the end"
    )
    parser.add_argument("--seed", type=int, help="of the kills; default: another one every time")
    arguments, given = parser.parse_known_args()
    seed = random.randrange(10**6) if arguments.seed is None else arguments.seed
    with tempfile.TemporaryDirectory() as temporary:
        folder = (arguments.folder or Path(temporary) / "runs").absolute()
        base = given or small_world(folder / "inputs")
        return 0 if kill_runs(base, folder, arguments.kills, random.Random(seed), f"seed {seed}") else 1


def kill_runs(base: list[str], folder: Path, kills: int, chance: random.Random, name: str) -> bool:
    """Run `base` whole, then with kills of both kinds; whether all were survived. Prints the rows."""
    environment = {"JAX_COMPILATION_CACHE_DIR": str(folder / "programs")}

    def command(keep: int) -> Command:
        return lambda output: [*base, f"--checkpoint.keep={keep}", f"--run.output={output}"]

    run(command(1000)(folder / "whole"), None, folder / "whole", environment)
    whole = whole_of(folder / "whole")
    duration, all_good = life_of(command(2), folder / "measured", environment), True
    randomly = iter(lambda: random_kill(chance, duration), None)
    table = ["| fault | tries | survived | seconds |", "|---|---:|---:|---:|"]
    for fault, drawn, count in (
        ("SIGKILL at random moments", randomly, kills - kills // 2),
        ("SIGKILL, aimed", aimed_kills(chance), kills // 2),
    ):
        began, said, survived = time.monotonic(), [f"{fault}, {name}"], count

        def say(text: str, said: list[str] = said) -> None:
            said.append(text)
            print(f"{said[0]}: {text}", file=sys.stderr, flush=True)

        try:
            survive(command(2), whole, drawn, count, folder / fault.split()[-1], environment, say)
        except AssertionError as error:
            print(f"{said[0]}: not survived: {error}", file=sys.stderr)
            survived, all_good = len(said) - 1, False
        table.append(f"| {fault} | {count} | {survived} | {time.monotonic() - began:.0f} |")
    print("\n".join(table))
    return all_good


if __name__ == "__main__":
    sys.exit(main())
