"""A study with real training, from the command line to files for the GLUE server."""

from __future__ import annotations

import contextlib
import dataclasses
import io
import json
import random
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple

import pytest

from distil_jax.cli import main
from distil_jax.config import Config, load_config, with_overrides
from distil_jax.evaluation import study as study_module
from distil_jax.evaluation import write_report
from distil_jax.evaluation.study import run_study
from distil_jax.evaluation.study_plan import plan_study
from distil_jax.tasks.examples import TaskData
from distil_jax.tasks.registry import task_spec


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


def test_the_page_has_the_scores_and_the_best_run_of_each_task(real: Study, tmp_path: Path) -> None:
    assert f"{real.output}/report.html" in real.out
    report = json.loads((real.output / "report.json").read_text())
    moved = shutil.copytree(real.output, tmp_path / "moved")
    for folder in (real.output, moved):
        page = write_report([folder], tmp_path / "page.html").read_text()
        for task in ("cola", "rte"):
            row = report["tasks"][task]
            assert f"<td>{row['title']}</td>" in page and f"{100 * row['median']:.1f}" in page
            assert f"{task}/{Path(row['best_run']).name}" in page
        assert page.count("Confusion matrix") == 2


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
    """Data and models are only read to be compared with those of the runs."""

    def refuse(*_: Any, **__: Any) -> Any:
        raise AssertionError("not needed")

    for name in ("finetune", "export", "write_server_files"):
        monkeypatch.setattr(study_module, name, refuse)
    before = {path: path.stat().st_mtime_ns for path in real.output.rglob("seed*/*")}
    monkeypatch.setenv("JAX_COMPILATION_CACHE_DIR", "")
    assert main(real.arguments) == 1
    assert {path: path.stat().st_mtime_ns for path in real.output.rglob("seed*/*")} == before


def test_a_study_is_resumed_with_the_settings_on_record(
    real: Study, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """With everything made but the task that has no data, there is nothing to do but that."""
    before = json.loads((real.output / "report.json").read_text())
    monkeypatch.setenv("JAX_COMPILATION_CACHE_DIR", "")
    monkeypatch.chdir(real.output)
    assert main(["resume", "."]) == 1
    out, err = capsys.readouterr()
    assert "distil-jax: failed: SST-2 (2 times): " in err
    assert "| macro-average of 2 of 3 " in out
    after = json.loads((real.output / "report.json").read_text())
    assert [after["tasks"][task] for task in ("cola", "rte")] == [before["tasks"][task] for task in ("cola", "rte")]


def test_several_processes_say_what_they_do_not_write(
    real: Study, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As a checkpoint is read by one process: models and files for the server are left to it."""
    shutil.copytree(real.output, tmp_path / "out")
    recorded = load_config(real.output / "study.toml")
    config = with_overrides(recorded, {"run.output": str(tmp_path / "out"), "task.name": "cola,rte"})
    monkeypatch.setattr(study_module, "finetune", lambda *_: pytest.fail("nothing is to be trained"))
    said: list[str] = []
    for processes, count in ((2, 1), (1, 0)):
        monkeypatch.setattr(study_module.jax, "process_count", lambda processes=processes: processes)
        said.clear()
        found = run_study(config, say=said.append)
        assert sum("several processes write neither models" in line for line in said) == count
        assert found.text.count("- note: several processes write neither models") == count
        assert ["note" in row for row in found.report["tasks"].values() if "best_run" in row] == [count == 1] * 2


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
        assert [path.parent.name for path in (real.output / task).rglob("checkpoints")] == [f"seed{best}"]
        assert (real.output / task / "model" / "model.safetensors").is_file()
        assert f"\n# {real.output.name}-{task}\n" in (real.output / task / "model" / "README.md").read_text()


def test_a_plain_run_keeps_its_folder_and_takes_the_placeholder(
    real: Study, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A second distillation whose teacher is named by task."""
    from distil_jax.training import finetune as finetune_module

    asked: list[Config] = []
    data = TaskData(task_spec("rte"), (), [], {}, {}, "")

    def finetune(config: Config) -> Any:
        asked.append(config)
        outcome = SimpleNamespace(is_main=True, resumed_from=0, step=4, best_step=4, skipped_steps=0, evaluations={})
        return finetune_module.FineTuned(outcome, data, {"score": 0.5}, ())  # type: ignore[arg-type]

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
    from distil_jax.runs import read_config

    config = read_config(real.output / "cola" / "seed1")
    assert config.study == Config().study
    assert config.run.seed == 1 and config.task.name == "cola"
    (plan,) = plan_study(dataclasses.replace(config, study=dataclasses.replace(config.study, tasks=("cola",))))
    assert plan.runs[0].config.task == config.task


def test_finished_runs_of_a_model_that_changed_are_refused(
    real: Study, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Of the same name but other weights: neither taken for the study's own nor written over."""
    from safetensors.numpy import load_file, save_file

    shutil.copytree(real.output, tmp_path / "out")
    model = Path(real.arguments[real.arguments.index("--model.initial") + 1])
    shutil.copytree(model, tmp_path / "model")
    given = list(real.arguments)
    given[given.index("--task") + 1] = "rte"
    for name, path in (("--run.output", tmp_path / "out"), ("--model.initial", tmp_path / "model")):
        given[given.index(name) + 1] = str(path)
    for config in (tmp_path / "out").rglob("config.toml"):
        config.write_text(config.read_text().replace(str(model), str(tmp_path / "model")))
    monkeypatch.setattr(study_module, "finetune", lambda *_: pytest.fail("nothing is to be trained"))
    monkeypatch.setenv("JAX_COMPILATION_CACHE_DIR", "")
    assert main(given) == 0  # the copy is the same model
    capsys.readouterr()
    weights = {name: values.copy() for name, values in load_file(tmp_path / "model" / "model.safetensors").items()}
    next(iter(weights.values())).flat[0] += 1
    save_file(weights, tmp_path / "model" / "model.safetensors")
    before = (tmp_path / "out" / "rte" / "seed0" / "result.json").read_bytes()
    assert main(given) == 2  # nothing is left to report
    assert "holds another run (the contents of model.initial changed)" in capsys.readouterr().err
    assert (tmp_path / "out" / "rte" / "seed0" / "result.json").read_bytes() == before


def test_server_files_say_what_was_cut_and_what_is_missing(real: Study, tmp_path: Path) -> None:
    from distil_jax.evaluation.server_files import write_server_files
    from distil_jax.runs import read_config
    from distil_jax.tasks.data.load import load_task

    best = json.loads((real.output / "report.json").read_text())["tasks"]["cola"]
    config = with_overrides(read_config(Path(best["best_run"])), {"task.max_length": 8})
    data = load_task(config.task, 0)
    whole, _ = write_server_files(Path(best["best_run"]), best["best_step"], config, [data], tmp_path)
    kept = [example for example in data.test["test"] if example.id not in ("0", "3")]
    some = dataclasses.replace(data, test={"test": kept})
    files, notes = write_server_files(Path(best["best_run"]), best["best_step"], config, [some], tmp_path)
    assert files == whole == [tmp_path / "CoLA.tsv"]
    assert notes == [
        "CoLA.tsv: 5 examples cut to 8 tokens",
        "CoLA.tsv: 2 indices are missing (first: 0), as rows were skipped; the server takes no gaps",
    ]
