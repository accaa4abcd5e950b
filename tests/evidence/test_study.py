"""Studies: what is trained, what is left alone, what is reported, and that one failure is one failure."""

from __future__ import annotations

import dataclasses
import json
import random
from collections.abc import Callable, Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple

import numpy as np
import pytest

from distil_jax.cli import main
from distil_jax.config import Config, TaskSettings, load_config, with_overrides
from distil_jax.errors import UserError
from distil_jax.evidence import study as study_module
from distil_jax.evidence.server_files import spelled
from distil_jax.evidence.study import TaskDataBySeed, run_study
from distil_jax.evidence.study_plan import plan_study
from distil_jax.tasks.examples import SequenceExample, TaskData
from distil_jax.tasks.registry import task_spec
from distil_jax.training.run_folder import open_run_folder

EXAMPLES = (SequenceExample("0", "the cat sat", label=0),)


def data_of(task: str, sha256: str = "0") -> TaskData:
    return TaskData(task_spec(task), ("neg", "pos"), EXAMPLES, {"validation": EXAMPLES}, {}, sha256)


class Trained(NamedTuple):
    """What stood in for `finetune` was asked for: tasks and seeds, and which data were read."""

    runs: list[str]
    read: list[int]


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
            with open_run_folder(folder, config, {}):
                (folder / "checkpoints" / "4").mkdir(parents=True)
                measures = {"score": score, "accuracy": score}
                made = {"score": score, "measures": measures, "seed": config.run.seed, "seconds": 2.0}
                made |= {"examples": len(data.train), "step": 4, "steps": 4, "resumed_from": 0}
                (folder / "result.json").write_text(json.dumps(made))
            return SimpleNamespace(notes=())

        def load_task(settings: Any, seed: int) -> TaskData:
            trained.read.append(seed)
            if settings.name == "codah":
                raise UserError("codah: no data of codah here")
            return data_of(settings.name)

        monkeypatch.setattr(study_module, "finetune", finetune)
        monkeypatch.setattr(study_module, "load_task", load_task)
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
    assert trained == Trained([], [])


def test_data_are_read_once_unless_the_seed_decides_what_is_in_them(monkeypatch: pytest.MonkeyPatch) -> None:
    read: list[int] = []

    def load(splits: bool) -> None:
        read.clear()

        def load_task(_: Any, seed: int) -> TaskData:
            read.append(seed)
            return data_of("imdb", str(seed) if splits else "same")

        monkeypatch.setattr(study_module, "load_task", load_task)

    settings = TaskSettings(name="imdb")
    load(False)
    data = TaskDataBySeed(settings)
    assert {data.of(seed).sha256 for seed in (0, 0, 1, 2, 3, 4)} == {"same"}
    assert read == [0, 1]  # the second shows that they are the same
    load(True)
    data = TaskDataBySeed(settings)
    assert [data.of(seed).sha256 for seed in (0, 0, 1, 2, 2)] == ["0", "0", "1", "2", "2"]
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

    def load_task(settings: TaskSettings, _: int) -> TaskData:
        if settings.name not in there:
            raise UserError(f"no {settings.name}")
        sets = dict.fromkeys(there[settings.name], EXAMPLES)
        assert settings.source == f"data/{settings.name}"
        return dataclasses.replace(data_of(settings.name), test=sets)

    def write(run: Path, step: int, _: Config, data: list[TaskData], folder: Path) -> list[Path]:
        assert (run, step, folder) == (tmp_path / "mnli" / "seed0", 4, tmp_path / "server")
        asked.append([(task.spec.name, tuple(task.test)) for task in data])
        return []

    monkeypatch.setattr(study_module, "load_task", load_task)
    monkeypatch.setattr(study_module, "write_server_files", write)
    config = with_overrides(config_of(tmp_path, "mnli"), {"task.source": "data/{task}"})
    run_study(config)
    assert asked == [[("mnli", ("matched", "mismatched")), ("ax", ("test",))]]
    (tmp_path / "mnli" / "delivered.json").unlink()
    del there["ax"]
    said: list[str] = []
    assert run_study(config, say=said.append).failures == ()
    assert asked[1] == [("mnli", ("matched", "mismatched"))]
    assert "note: ax: not predicted: no ax" in said


def test_what_cannot_be_written_is_a_failure_and_tried_again(
    pretend: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pretend({"imdb/seed0": 0.5, "imdb/seed1": 0.75})
    config = config_of(tmp_path, "imdb", seeds=2, export=True)
    found = run_study(config)  # what `pretend` trains has no real checkpoint
    assert found.report["tasks"]["imdb"]["median"] == 0.625
    assert len(found.failures) == 1 and f"model of {tmp_path}/imdb/seed1: " in found.failures[0]
    written: list[tuple[Path, Path, int]] = []

    def export(run: Path, output: Path, *, step: int, overwrite: bool) -> None:
        assert overwrite  # another run may have been the best before
        written.append((run, output, step))
        output.mkdir()

    monkeypatch.setattr(study_module, "export", export)
    assert run_study(config).failures == ()
    assert run_study(config).report["tasks"]["imdb"]["model_folder"] == str(tmp_path / "imdb" / "model")
    assert written == [(tmp_path / "imdb" / "seed1", tmp_path / "imdb" / "model", 4)]


# The prediction files


@pytest.mark.parametrize(
    ("task", "expected"),
    [
        ("cola", ["1", "0"]),
        ("sst2", ["1", "0"]),
        ("mrpc", ["1", "0"]),
        ("qqp", ["1", "0"]),
        ("wnli", ["1", "0"]),
        ("rte", ["not_entailment", "entailment"]),
        ("qnli", ["not_entailment", "entailment"]),
    ],
)
def test_classes_are_spelled_as_the_server_wants_them(task: str, expected: list[str]) -> None:
    assert spelled(task_spec(task), np.array([[0.1, 0.2], [3.0, -1.0]])) == expected


def test_entailment_and_scores_are_spelled_as_the_server_wants_them() -> None:
    for task in ("mnli", "ax"):
        assert spelled(task_spec(task), np.eye(3)) == ["entailment", "neutral", "contradiction"]
    scores = np.array([[-0.5], [2.34567], [5.25], [4.9996]], np.float32)
    assert spelled(task_spec("stsb"), scores) == ["0.000", "2.346", "5.000", "5.000"]


# With real training


class Study(NamedTuple):
    """A small study of two tasks with data and one without, made by the command line."""

    output: Path
    arguments: list[str]
    status: int
    out: str
    err: str


def write_glue(folder: Path) -> None:
    """CoLA (a fish or bird?) and RTE (first sentence of a cat or dog?) in the form of the published files."""
    chance = random.Random(1)
    nouns = ("cat", "dog", "fish", "bird")

    def sentence(noun: str) -> str:
        return f"the {chance.choice(('big', 'old', 'red'))} {noun} sat under a {chance.choice(('tree', 'door'))}"

    (folder / "CoLA").mkdir(parents=True)
    (folder / "RTE").mkdir()
    for name, count in (("train", 64), ("dev", 10), ("test", 7)):
        chosen = [nouns[i % 4] for i in range(count)]
        texts = [sentence(noun) for noun in chosen]
        cola = [f"x\t{int(noun in ('fish', 'bird'))}\t\t{text}" for noun, text in zip(chosen, texts, strict=True)]
        header = []
        if name == "test":
            cola, header = [f"{i}\t{text}" for i, text in enumerate(texts)], ["index\tsentence"]
        (folder / "CoLA" / f"{name}.tsv").write_text("\n".join([*header, *cola]) + "\n")
        label = ("not_entailment", "entailment")
        rows = [f"{i}\t{text}\t{sentence('cat')}" for i, text in enumerate(texts)]
        header = ["index\tsentence1\tsentence2"]
        if name != "test":
            rows = [f"{row}\t{label[noun in ('cat', 'dog')]}" for row, noun in zip(rows, chosen, strict=True)]
            header = [f"{header[0]}\tlabel"]
        (folder / "RTE" / f"{name}.tsv").write_text("\n".join([*header, *rows]) + "\n")


@pytest.fixture(scope="module")
def real(tmp_path_factory: pytest.TempPathFactory, tiny_world: Path, program_cache: Path) -> Study:
    del program_cache  # runs of several seeds share their programs
    import contextlib
    import io

    folder = tmp_path_factory.mktemp("study")
    write_glue(folder / "glue")
    output = folder / "out"
    arguments = [
        *("finetune", "--task", "cola,rte,sst2", "--seeds", "2", "--run.output", str(output)),
        *("--model.initial", str(tiny_world / "teacher"), "--task.source", str(folder / "glue"), "--study.export"),
        *("--task.max-length", "32", "--training.epochs", "3", "--training.batch-size", "8"),
        *("--training.micro-batch-size", "8", "--parallel.devices", "1", "--finetune.buckets", "32"),
        *("--logging.progress", "none", "--logging.no-tensorboard", "--evaluation.batch-size", "8"),
        *("--optimizer.learning-rate", "1e-2"),
    ]
    with (
        contextlib.redirect_stdout(io.StringIO()) as out,
        contextlib.redirect_stderr(io.StringIO()) as err,
        pytest.MonkeyPatch.context() as patch,
    ):
        patch.setenv("JAX_COMPILATION_CACHE_DIR", "")  # JAX has its cache already
        status = main(arguments)
    return Study(output, arguments, status, out.getvalue(), err.getvalue())


def test_the_table_is_that_of_the_runs(real: Study) -> None:
    report = json.loads((real.output / "report.json").read_text())
    for task in ("cola", "rte"):
        made = [json.loads((real.output / task / f"seed{seed}" / "result.json").read_text()) for seed in (0, 1)]
        scores = sorted(result["score"] for result in made)
        row = report["tasks"][task]
        assert [row["min"], row["median"], row["max"]] == pytest.approx([scores[0], sum(scores) / 2, scores[1]])
        assert (row["seeds"], row["examples"]) == (2, 64)
    assert real.status == 1  # as the third task has no data
    assert "distil-jax: failed: SST-2 (2 times): " in real.err and "holds no data of sst2" in real.err
    assert "| macro-average of 2 of 3 " in real.out and "| SST-2 " in real.out


def test_finished_runs_are_left_alone(real: Study, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing is read but results: no data, no models, no checkpoints."""

    def refuse(*_: Any, **__: Any) -> Any:
        raise AssertionError("not needed")

    for name in ("finetune", "export", "write_server_files"):
        monkeypatch.setattr(study_module, name, refuse)
    real_load = study_module.load_task
    monkeypatch.setattr(
        study_module, "load_task", lambda task, seed: real_load(task, seed) if task.name == "sst2" else refuse()
    )
    before = {path: path.stat().st_mtime_ns for path in real.output.rglob("seed*/*")}
    monkeypatch.setenv("JAX_COMPILATION_CACHE_DIR", "")
    assert main(real.arguments) == 1
    assert {path: path.stat().st_mtime_ns for path in real.output.rglob("seed*/*")} == before


def test_server_files_hold_what_pytorch_predicts_with_the_exported_model(real: Study) -> None:
    """Every row of the test set, with the model folder of the run that the report calls the best."""
    import torch
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    spellings = {"CoLA.tsv": ("0", "1"), "RTE.tsv": ("entailment", "not_entailment")}
    for (file, spelling), task in zip(spellings.items(), ("cola", "rte"), strict=True):
        rows = [line.split("\t") for line in (real.output / "server" / file).read_text().splitlines()]
        assert rows[0] == ["index", "prediction"]
        assert [number for number, _ in rows[1:]] == [str(i) for i in range(7)]
        model: Any = AutoModelForSequenceClassification.from_pretrained(real.output / task / "model")
        tokenizer: Any = AutoTokenizer.from_pretrained(real.output / task / "model")
        source = Path(real.arguments[real.arguments.index("--task.source") + 1])
        lines = [line.split("\t")[1:] for line in (source / file[:-4] / "test.tsv").read_text().splitlines()[1:]]
        with torch.no_grad():
            logits = [model(**tokenizer(*line, return_tensors="pt")).logits[0] for line in lines]
        assert len({name for _, name in rows[1:]}) == 2  # else any model would do
        assert [name for _, name in rows[1:]] == [spelling[int(row.argmax())] for row in logits]


def test_the_model_folder_is_that_of_the_best_run(real: Study) -> None:
    report = json.loads((real.output / "report.json").read_text())
    for task in ("cola", "rte"):
        results = [json.loads((real.output / task / f"seed{seed}" / "result.json").read_text()) for seed in (0, 1)]
        scores = {result["seed"]: result["score"] for result in results}
        best = max(scores, key=lambda seed: (scores[seed], -seed))
        assert report["tasks"][task]["best_run"] == str(real.output / task / f"seed{best}")
        assert checkpoints_of(real.output / task) == [f"seed{best}"]
        assert (real.output / task / "model" / "model.safetensors").is_file()


def test_a_plain_run_keeps_its_folder_and_takes_the_placeholder(
    real: Study, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A second distillation whose teacher is named by task."""
    from distil_jax.tasks import finetune as finetune_module

    asked: list[Config] = []

    def finetune(config: Config) -> Any:
        asked.append(config)
        outcome = SimpleNamespace(is_main=True, resumed_from=0, step=4, best_step=4)
        return finetune_module.FineTuned(outcome, data_of("rte"), {"score": 0.5}, ())  # type: ignore[arg-type]

    monkeypatch.setattr(finetune_module, "finetune", finetune)
    monkeypatch.setenv("JAX_COMPILATION_CACHE_DIR", "")
    given = [argument for argument in real.arguments if argument not in ("--seeds", "2", "--study.export")]
    given[given.index("--task") + 1] = "rte"
    given[given.index("--run.output") + 1] = str(tmp_path / "run")
    assert main([*given, "--teacher.path", str(real.output / "{task}" / "model")]) == 0
    (config,) = asked
    assert (config.run.output, config.task.name) == (str(tmp_path / "run"), "rte")
    assert config.teacher.path == f"{real.output}/rte/model"
    assert f"{tmp_path}/run: RTE finished" in capsys.readouterr().out


def test_a_run_of_a_study_is_an_ordinary_run(real: Study) -> None:
    """Its stored configuration is that of the plain run, so that `finetune` itself can continue it."""
    from distil_jax.training.run_folder import read_config

    config = read_config(real.output / "cola" / "seed1")
    assert config.study == Config().study
    assert config.run.seed == 1 and config.task.name == "cola"
    (plan,) = plan_study(dataclasses.replace(config, study=dataclasses.replace(config.study, tasks=("cola",))))
    assert plan.runs[0].config.task == config.task
