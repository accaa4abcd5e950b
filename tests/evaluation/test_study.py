"""Studies: what is trained, what is left alone, what is reported, and that one failure is one failure."""

from __future__ import annotations

import dataclasses
import json
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple

import pytest

from distil_jax.config import Config, TaskSettings, load_config, with_overrides
from distil_jax.errors import UserError
from distil_jax.evaluation import study as study_module
from distil_jax.evaluation import study_inputs
from distil_jax.evaluation.study import run_study
from distil_jax.evaluation.study_inputs import TaskInputs
from distil_jax.runs import open_run_folder
from distil_jax.tasks.examples import SequenceExample, TaskData
from distil_jax.tasks.registry import task_spec

EXAMPLES = (SequenceExample("0", "the cat sat", label=0),)


def data_of(task: str, sha256: str = "0") -> TaskData:
    return TaskData(task_spec(task), ("neg", "pos"), EXAMPLES, {"validation": EXAMPLES}, {}, sha256)


class Trained(NamedTuple):
    """What stood in for `finetune` was asked for: tasks and seeds, and which data were read."""

    runs: list[str]
    read: list[int]


def patch_load(monkeypatch: pytest.MonkeyPatch, load_task: Any) -> None:
    for module in (study_module, study_inputs):
        monkeypatch.setattr(module, "load_task", load_task)


@pytest.fixture
def pretend(monkeypatch: pytest.MonkeyPatch) -> Callable[[Mapping[str, float | Exception]], Trained]:
    """Puts in the place of `finetune` one that only writes results: {"imdb/seed0": score or what it raises}."""

    def use(scores: Mapping[str, float | Exception]) -> Trained:
        trained = Trained([], [])

        def finetune(config: Config, data: TaskData) -> Any:
            folder = Path(config.run.output)
            name = "/".join(folder.parts[folder.parts.index(config.task.name) :])
            trained.runs.append(name)
            score = scores[name]
            if isinstance(score, Exception):
                raise score
            with open_run_folder(folder, config, {"task": data.sha256}):
                (folder / "checkpoints" / "4").mkdir(parents=True, exist_ok=True)
                measures = {"score": score, "accuracy": score}
                made = {"score": score, "measures": measures, "seed": config.run.seed, "seconds": 2.0}
                made |= {"examples": len(data.train), "step": 4, "steps": 4, "resumed_from": 0}
                (folder / "result.json").write_text(json.dumps(made))
            return SimpleNamespace(notes=())

        def load_task(settings: Any, seed: int, _: Any) -> TaskData:
            trained.read.append(seed)
            if settings.name == "codah":
                raise UserError("codah: no data of codah here")
            return data_of(settings.name)

        monkeypatch.setattr(study_module, "finetune", finetune)
        patch_load(monkeypatch, load_task)
        return trained

    return use


def config_of(output: Path, tasks: str, **study: Any) -> Config:
    study = {"tasks": tasks.split(","), **study}
    changes = {"run.output": str(output), "model.initial": "m"}
    return with_overrides(load_config("finetune"), {**changes, **{f"study.{name}": v for name, v in study.items()}})


def checkpoints_of(folder: Path) -> list[str]:
    return sorted(str(path.parent.relative_to(folder)) for path in folder.rglob("checkpoints"))


def test_one_failure_is_one_failure(pretend: Any, tmp_path: Path) -> None:
    scores = {
        "imdb/seed0": 0.5,
        "imdb/seed1": RuntimeError("out of\nmemory"),
        "imdb/seed2": 0.8,
        "swag/seed0": 0.25,
        "swag/seed1": UserError("too long"),
        "swag/seed2": 0.75,
    }
    trained = pretend(scores)
    found = run_study(config_of(tmp_path, "imdb,codah,swag", seeds=3))
    assert trained.runs == list(scores)  # nothing is trained on data that are not there
    rows = found.report["tasks"]
    assert {task: row.get("median") for task, row in rows.items()} == {"imdb": 0.65, "codah": None, "swag": 0.5}
    assert found.report["macro"] == {"median": 0.575, "tasks": ["imdb", "swag"], "missing": ["codah"]}
    assert found.failures == (
        "IMDb: RuntimeError: out of memory",
        "CODAH (3 times): codah: no data of codah here",
        "SWAG: too long",
    )
    assert json.loads((tmp_path / "report.json").read_text()) == found.report
    assert (tmp_path / "report.md").read_text() == found.text + "\n"


@pytest.mark.parametrize(
    ("tasks", "scores", "user_error"),
    [
        ("codah", {}, True),
        ("imdb,codah", {"imdb/seed0": UserError("too long"), "imdb/seed1": UserError("too long")}, True),
        ("imdb,codah", {"imdb/seed0": UserError("too long"), "imdb/seed1": 0.5}, False),
        ("imdb,codah", {"imdb/seed0": UserError("too long"), "imdb/seed1": OSError("disk full")}, False),
    ],
)
def test_only_a_study_of_mistakes_is_a_mistake(
    pretend: Any, tmp_path: Path, tasks: str, scores: Any, user_error: bool
) -> None:
    pretend(scores)
    assert run_study(config_of(tmp_path, tasks, seeds=2)).user_error is user_error


def test_again_only_what_failed_is_trained(pretend: Any, tmp_path: Path) -> None:
    config = config_of(tmp_path, "imdb", seeds=3)
    pretend({"imdb/seed0": 0.5, "imdb/seed1": ValueError("no"), "imdb/seed2": 0.8})
    run_study(config, command="first")
    trained = pretend({"imdb/seed1": 0.7})
    found = run_study(config, command="second")
    assert trained.runs == ["imdb/seed1"]
    assert (found.report["tasks"]["imdb"]["median"], found.failures) == (0.7, ())
    trained = pretend({})
    assert run_study(config, command="third").report == found.report  # with the command that trained last
    assert trained.runs == []


def test_rows_of_a_resumed_study_name_the_command_it_was_started_with(pretend: Any, tmp_path: Path) -> None:
    config = config_of(tmp_path, "imdb")
    pretend({"imdb/seed0": ValueError("no")})
    run_study(config, command="distil-jax finetune --task imdb --seeds 1")
    pretend({"imdb/seed0": 0.7})
    found = run_study(config, command=f"distil-jax resume {tmp_path}")
    assert found.report["tasks"]["imdb"]["command"] == "distil-jax finetune --task imdb --seeds 1"
    assert "distil-jax resume" not in found.text


def test_data_are_read_once_unless_the_seed_decides_what_is_in_them(monkeypatch: pytest.MonkeyPatch) -> None:
    read: list[int] = []

    def load(splits: bool) -> None:
        read.clear()

        def load_task(_: Any, seed: int, known: Any) -> TaskData:
            read.append(seed)
            return data_of("imdb", str(seed) if splits else "same")

        patch_load(monkeypatch, load_task)

    config = load_config("finetune", {"task.name": "imdb"})
    load(False)
    inputs = TaskInputs(config, print)
    assert {inputs.data(seed).sha256 for seed in (0, 0, 1, 2, 3, 4)} == {"same"}
    assert read == [0, 1]  # the second shows that they are the same
    load(True)
    inputs = TaskInputs(config, print)
    assert [inputs.data(seed).sha256 for seed in (0, 0, 1, 2, 2)] == ["0", "0", "1", "2", "2"]
    assert read == [0, 1, 2]


def test_data_that_cannot_be_read_are_asked_for_once(pretend: Any, tmp_path: Path) -> None:
    trained = pretend({})
    run_study(config_of(tmp_path, "codah", seeds=5))
    assert trained.read == [0]


def test_the_best_point_of_the_sweep_is_reported_and_its_best_run_kept(pretend: Any, tmp_path: Path) -> None:
    scores = {
        "imdb/lr1e-05_epochs3/seed0": 0.6,
        "imdb/lr2e-05_epochs3/seed0": 0.1,
        "imdb/lr1e-05_epochs3/seed1": 0.5,
        "imdb/lr2e-05_epochs3/seed1": 0.9,
    }
    pretend(scores)
    config = config_of(tmp_path, "imdb", seeds=2, learning_rates=[1e-5, 2e-5])
    row = run_study(config).report["tasks"]["imdb"]
    assert (row["median"], row["learning_rate"], row["seeds"]) == (0.55, 1e-5, 2)
    assert row["best_run"] == str(tmp_path / "imdb/lr1e-05_epochs3/seed0")
    # More seeds may make the other point the best, whose best run has its checkpoints still.
    assert checkpoints_of(tmp_path) == ["imdb/lr1e-05_epochs3/seed0", "imdb/lr2e-05_epochs3/seed1"]


def test_checkpoints_stay_while_runs_are_missing_or_all_are_wanted(pretend: Any, tmp_path: Path) -> None:
    pretend({"imdb/seed0": 0.6, "imdb/seed1": ValueError("no"), "imdb/seed2": 0.7})
    run_study(config_of(tmp_path / "failed", "imdb", seeds=3))
    assert checkpoints_of(tmp_path / "failed") == ["imdb/seed0", "imdb/seed2"]
    pretend({"imdb/seed0": 0.6, "imdb/seed1": 0.5})
    run_study(config_of(tmp_path / "all", "imdb", seeds=2, checkpoints="all"))
    assert checkpoints_of(tmp_path / "all") == ["imdb/seed0", "imdb/seed1"]


def test_tasks_of_earlier_commands_stay_in_the_report(pretend: Any, tmp_path: Path) -> None:
    pretend({"imdb/seed0": 0.5, "swag/seed0": 0.75})
    run_study(config_of(tmp_path, "imdb"), command="one")
    found = run_study(config_of(tmp_path, "swag"), command="two")
    assert list(found.report["tasks"]) == ["imdb", "swag"]
    assert found.report["macro"]["median"] == 0.625
    assert "- command: one; two\n" in found.text


def test_another_run_in_the_way_is_not_taken_for_this_one(pretend: Any, tmp_path: Path) -> None:
    pretend({"imdb/seed0": 0.5, "imdb/seed1": 0.5})
    run_study(config_of(tmp_path, "imdb", seeds=2))
    trained = pretend({})
    other = with_overrides(config_of(tmp_path, "imdb", seeds=2), {"optimizer.learning_rate": 0.125})
    found = run_study(other)
    assert trained.runs == []
    assert "holds another run (optimizer.learning_rate: was 5e-05, is 0.125)" in found.failures[0]
    assert "median" not in found.report["tasks"]["imdb"]


def test_damaged_files_are_one_line_and_one_run(pretend: Any, tmp_path: Path) -> None:
    config = config_of(tmp_path, "imdb,swag", seeds=2, export=False)
    pretend({"imdb/seed0": 0.5, "imdb/seed1": 0.75, "swag/seed0": 0.25, "swag/seed1": 0.5})
    run_study(config)
    (tmp_path / "imdb" / "seed0" / "result.json").write_text('{"score": 0.5}')
    (tmp_path / "imdb" / "written.json").write_text("{")
    pretend({})
    found = run_study(config)
    assert found.failures == (
        f"IMDb: {tmp_path}/imdb/seed0/result.json: 'measures' is missing or of another type; delete it and run "
        "the study again",
    )
    assert {task: row["median"] for task, row in found.report["tasks"].items()} == {"imdb": 0.75, "swag": 0.375}
    report = json.loads((tmp_path / "report.json").read_text())
    del report["tasks"]["swag"]["measures"]
    (tmp_path / "report.json").write_text(json.dumps(report))
    with pytest.raises(UserError, match=r"report\.json: damaged \(KeyError: 'measures'\); delete it"):
        run_study(config)


def test_folders_that_are_no_studies(pretend: Any, tmp_path: Path) -> None:
    pretend({"imdb/seed0": 0.5})
    run_study(config_of(tmp_path / "study", "imdb"))
    with pytest.raises(UserError, match="holds a single run"):
        run_study(config_of(tmp_path / "study" / "imdb" / "seed0", "imdb", seeds=2))
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="is a file"):
        run_study(config_of(tmp_path / "file", "imdb", seeds=2))
    with pytest.raises(UserError, match="cannot be written"):
        run_study(config_of(tmp_path / "file" / "x", "imdb", seeds=2))


# What is made of the best run


def test_mnli_predicts_the_diagnostic_set_too(pretend: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pretend({"mnli/seed0": 0.5})
    there = {"mnli": ("matched", "mismatched"), "ax": ("test",)}
    asked: list[list[tuple[str, tuple[str, ...]]]] = []

    def load_task(settings: TaskSettings, *_: Any) -> TaskData:
        if settings.name not in there:
            raise UserError(f"no {settings.name}")
        sets = dict.fromkeys(there[settings.name], EXAMPLES)
        assert settings.source == f"data/{settings.name}"
        return dataclasses.replace(data_of(settings.name), test=sets)

    def write(run: Path, step: int, _: Config, data: list[TaskData], folder: Path) -> tuple[list[Path], list[str]]:
        assert (run, step, folder) == (tmp_path / "mnli" / "seed0", 4, tmp_path / "server")
        asked.append([(task.spec.name, tuple(task.test)) for task in data])
        return [], ["AX.tsv: 3 examples cut to 128 tokens"]

    patch_load(monkeypatch, load_task)
    monkeypatch.setattr(study_module, "write_server_files", write)
    config = with_overrides(config_of(tmp_path, "mnli"), {"task.source": "data/{task}"})
    run_study(config)
    assert asked == [[("mnli", ("matched", "mismatched")), ("ax", ("test",))]]
    (tmp_path / "mnli" / "written.json").unlink()
    del there["ax"]
    said: list[str] = []
    assert run_study(config, say=said.append).failures == ()
    assert asked[1] == [("mnli", ("matched", "mismatched"))]
    assert "note: ax: not predicted: no ax" in said
    assert "note: AX.tsv: 3 examples cut to 128 tokens" in said


def test_what_cannot_be_written_is_a_failure_and_tried_again(
    pretend: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pretend({"imdb/seed0": 0.5, "imdb/seed1": 0.75})
    config = config_of(tmp_path, "imdb", seeds=2, export=True)
    found = run_study(config)  # what `pretend` trains has no real checkpoint
    assert found.report["tasks"]["imdb"]["median"] == 0.625
    assert len(found.failures) == 1 and f"model of {tmp_path}/imdb/seed1: " in found.failures[0]
    written: list[tuple[Path, Path, int]] = []

    def export(run: Path, output: Path, *, step: int, overwrite: bool, name: str) -> None:
        assert name == f"{tmp_path.name}-imdb" and overwrite  # another run may have been the best before
        written.append((run, output, step))
        output.mkdir()

    monkeypatch.setattr(study_module, "export", export)
    assert run_study(config).failures == ()
    assert run_study(config).report["tasks"]["imdb"]["model_folder"] == str(tmp_path / "imdb" / "model")
    assert written == [(tmp_path / "imdb" / "seed1", tmp_path / "imdb" / "model", 4)]


def test_a_dropped_run_is_made_again_where_it_has_become_the_best(
    pretend: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    written: list[str] = []

    def export(run: Path, output: Path, *, step: int, overwrite: bool, name: str) -> None:
        assert overwrite and (run / "checkpoints" / str(step)).is_dir()
        written.append(run.name)
        output.mkdir(exist_ok=True)

    monkeypatch.setattr(study_module, "export", export)
    pretend({"imdb/seed0": 0.6, "imdb/seed1": 0.5, "imdb/seed2": 0.75})
    run_study(config_of(tmp_path, "imdb", seeds=3, export=True))
    assert checkpoints_of(tmp_path) == ["imdb/seed2"]
    shutil.rmtree(tmp_path / "imdb" / "seed2")
    trained = pretend({"imdb/seed0": 0.6})
    found = run_study(config_of(tmp_path, "imdb", seeds=2, export=True))
    assert (trained.runs, written, found.failures) == (["imdb/seed0"], ["seed2", "seed0"], ())
    trained = pretend({})
    run_study(config_of(tmp_path, "imdb", seeds=2, export=True))
    assert trained.runs == [] and written == ["seed2", "seed0"]


# What a command finds of earlier ones


@pytest.mark.parametrize("study", [{}, {"learning_rates": [1e-5, 2e-5]}])
def test_fewer_seeds_than_before_lose_none(
    pretend: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, study: Any
) -> None:
    """A narrower command reports, delivers and keeps what a wider one made."""
    monkeypatch.setattr(study_module, "export", lambda *_, **__: (tmp_path / "imdb" / "model").mkdir())
    points = ["lr1e-05_epochs3/", "lr2e-05_epochs3/"] if study else [""]
    scores = {f"imdb/{point}seed{seed}": 0.5 + seed / 10 for seed in range(5) for point in points}
    pretend(scores)
    wide = run_study(config_of(tmp_path, "imdb", seeds=5, export=True, **study), command="wide")
    assert wide.report["tasks"]["imdb"]["seeds"] == 5
    trained, kept = pretend({}), checkpoints_of(tmp_path)
    narrow = run_study(config_of(tmp_path, "imdb", seeds=1, export=True, **study), command="narrow")
    assert (trained.runs, narrow.report, narrow.failures) == ([], wide.report, ())
    assert checkpoints_of(tmp_path) == kept


def test_seeds_of_other_settings_or_unfinished_do_not_count(pretend: Any, tmp_path: Path) -> None:
    pretend({f"imdb/seed{seed}": 0.5 + seed / 10 for seed in range(3)} | {"imdb/seed3": ValueError("no")})
    run_study(config_of(tmp_path, "imdb", seeds=4))
    config = tmp_path / "imdb" / "seed2" / "config.toml"
    config.write_text(config.read_text().replace("learning_rate = 5e-05", "learning_rate = 0.125"))
    trained = pretend({})
    row = run_study(config_of(tmp_path, "imdb", seeds=1)).report["tasks"]["imdb"]
    assert (trained.runs, row["scores"], row["seeds_planned"]) == ([], {"0": 0.5, "1": 0.6}, [0, 1])


def test_finished_runs_of_other_data_are_refused(pretend: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pretend({"imdb/seed0": 0.5, "imdb/seed1": 0.75})
    config = config_of(tmp_path, "imdb", seeds=2, export=False)
    run_study(config)
    trained = pretend({})
    patch_load(monkeypatch, lambda settings, *_: data_of(settings.name, "changed"))
    found = run_study(config)
    assert trained.runs == []
    assert all("holds another run (the contents of task changed)" in failure for failure in found.failures)
    assert (len(found.failures), "median" in found.report["tasks"]["imdb"]) == (2, False)


def test_finished_runs_stay_where_their_data_are_gone(
    pretend: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pretend({"imdb/seed0": 0.5, "imdb/seed1": 0.75})
    config = config_of(tmp_path, "imdb", seeds=2, export=False)
    before = run_study(config).report

    def load_task(*_: Any) -> TaskData:
        raise UserError("imdb: no data here")

    patch_load(monkeypatch, load_task)
    said: list[str] = []
    assert run_study(config, say=said.append).report == before
    assert [line for line in said if line.startswith("note: ")] == [
        "note: finished runs are not compared with what cannot be read: imdb: no data here"
    ]


def test_test_sets_left_by_several_processes_are_measured_then(pretend: Any, tmp_path: Path) -> None:
    """The run is given to `finetune` again, which trains nothing of what is finished."""
    pretend({"imdb/seed0": 0.5})
    config = config_of(tmp_path, "imdb", export=False)
    run_study(config)
    path = tmp_path / "imdb" / "seed0" / "result.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "untested": ["test"]}))
    trained = pretend({"imdb/seed0": 0.5})
    run_study(config)
    assert (trained.runs, "untested" in json.loads(path.read_text())) == (["imdb/seed0"], False)
