"""A study of students: killed, continued and finished; nothing finished is made again."""

from __future__ import annotations

import itertools
import json
import random
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from distil_jax.config import Config, load_config, shipped_config, with_overrides
from distil_jax.errors import UserError
from distil_jax.evaluation import ablation
from distil_jax.evaluation.ablation import run_ablation

FINE_TUNING = """
inherit = "{shipped}"

[task]
source = "{folder}"
max_length = 24

[training]
steps = 2
batch_size = 8
micro_batch_size = 8

[optimizer]
learning_rate = 0.01
"""


def write_tasks(folder: Path) -> None:
    """CoLA and STS-B with few rows, in the form of the published files."""
    chance, words = random.Random(2), ["the", "cat", "dog", "sat", "red", "fish", "bird", "sky", "moon", "tree"]

    def sentence() -> str:
        return " ".join(chance.choices(words, k=5))

    (folder / "CoLA").mkdir(parents=True)
    (folder / "STS-B").mkdir()
    header = "index\tgenre\tfilename\tyear\told_index\tsource1\tsource2\tsentence1\tsentence2\tscore"
    for name, count in (("train", 24), ("dev", 12)):
        cola = [f"x\t{number % 2}\t\t{sentence()}" for number in range(count)]
        (folder / "CoLA" / f"{name}.tsv").write_text("\n".join(cola) + "\n")
        rows = [f"{n}\tg\tf\t1\t1\ta\tb\t{sentence()}\t{sentence()}\t{n % 6}.0" for n in range(count)]
        (folder / "STS-B" / f"{name}.tsv").write_text("\n".join([header, *rows]) + "\n")


@pytest.fixture(scope="module")
def config(tiny_world: Path, program_cache: Path, tmp_path_factory: pytest.TempPathFactory) -> Config:
    """A study of a base, a student with another objective and one as it starts, on CoLA and embeddings."""
    folder = tmp_path_factory.mktemp("ablation")
    write_tasks(folder / "glue")
    text = FINE_TUNING.format(shipped=shipped_config("finetune"), folder=folder / "glue")
    (folder / "tasks.toml").write_text(text)
    changes = {
        "run.output": str(folder / "study"),
        "teacher.path": str(tiny_world / "teacher"),
        "student.layers": [1],
        "study.tasks": ["cola", "stsb_embedding"],
        "study.seeds": 2,
        "study.finetune": str(folder / "tasks.toml"),
        "study.base_tokens": 4e-4,
        "study.objectives": ["hidden: objective.kl=0+objective.mlm=0+objective.cosine=0+objective.hidden=1"],
        "study.tokens": [0, 4e-4],
        "parallel.devices": 1,
    }
    return load_config(tiny_world / "config.toml", changes)


@pytest.mark.slow
def test_a_study_is_killed_continued_and_not_made_again(config: Config, monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[str] = []
    distill = ablation.distill

    def killed(config: Config) -> Any:
        made.append(Path(config.run.output).parent.name)
        if made == ["base", "hidden"]:
            raise KeyboardInterrupt
        return distill(config)

    monkeypatch.setattr(ablation, "distill", killed)
    with pytest.raises(KeyboardInterrupt):
        run_ablation(config)
    report = run_ablation(config, command="distil-jax study")
    assert made == ["base", "hidden", "hidden"]
    assert [(row["name"], row["state"]) for row in report["students"]] == [
        ("base", "finished"),
        ("0 M tokens", "finished"),
        ("hidden", "finished"),
    ]
    assert all({*row["scores"]["cola"]} == {"0", "1"} for row in report["students"])
    assert all(-1 <= row["scores"]["stsb_embedding"]["0"] <= 1 for row in report["students"])
    teacher = report["teacher_numbers"]
    assert teacher["parameters"] > report["students"][0]["parameters"] > 0

    folder = Path(config.run.output)
    assert json.loads((folder / "ablation.json").read_text()) == report
    page = (folder / "report.html").read_text()
    assert "<svg" in page and "http" not in page.replace("http://www.w3.org/2000/svg", "")

    monkeypatch.setattr(ablation, "_measured", lambda *_: pytest.fail("measured again"))
    monkeypatch.setattr(ablation, "_distilled", lambda *_: pytest.fail("distilled again"))
    monkeypatch.setattr("distil_jax.evaluation.study.finetune", lambda *_: pytest.fail("fine-tuned again"))
    again = run_ablation(config, command="distil-jax study")
    assert again == report


def test_what_is_not_afforded_is_listed(config: Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    numbers = {"scores": {"cola": {"0": 0.5, "1": 0.25}, "stsb_embedding": {"0": 0.5}}}
    monkeypatch.setattr(ablation, "_measured", lambda *_: {**numbers, "parameters": 9, "milliseconds": 1.0})
    monkeypatch.setattr(ablation, "_distilled", lambda *_: tmp_path)
    clock = itertools.count(0, 500)
    monkeypatch.setattr(ablation, "time", SimpleNamespace(monotonic=lambda: next(clock)))
    changes = {"run.output": str(tmp_path / "study"), "study.hours": 1.25, "study.tokens": [1e-3, 1.0]}
    report = run_ablation(with_overrides(config, changes))
    states = {row["name"]: row["state"] for row in report["students"]}
    assert states == {
        "base": "finished",
        "hidden": "finished",
        "0.001 M tokens": "finished",
        "1 M tokens": "not afforded",
    }
    assert "1 M tokens" in (tmp_path / "study" / "report.html").read_text().partition("Not made")[2]


def test_hours_of_students_that_fail_count_too(config: Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    numbers = {"scores": {"cola": {"0": 0.5, "1": 0.25}, "stsb_embedding": {"0": 0.5}}}
    monkeypatch.setattr(ablation, "_measured", lambda *_: {**numbers, "parameters": 9, "milliseconds": 1.0})
    monkeypatch.setattr(ablation, "_distilled", _raise)
    clock = itertools.count(0, 3600)
    monkeypatch.setattr(ablation, "time", SimpleNamespace(monotonic=lambda: next(clock)))
    report = run_ablation(with_overrides(config, {"run.output": str(tmp_path / "study"), "study.hours": 0.5}))
    first, *others = (row["state"] for row in report["students"])
    assert first == "failed" and {*others} == {"not afforded"}


def _raise(*_: Any) -> Any:
    raise UserError("no")


def test_a_student_of_other_settings_is_not_taken_for_one_of_these(
    config: Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    numbers = {"scores": {"cola": {"0": 0.5, "1": 0.25}, "stsb_embedding": {"0": 0.5}}}
    monkeypatch.setattr(ablation, "_measured", lambda *_: {**numbers, "parameters": 9, "milliseconds": 1.0})
    monkeypatch.setattr(ablation, "_distilled", lambda *_: tmp_path)
    config = with_overrides(config, {"run.output": str(tmp_path / "study")})
    run_ablation(config)
    with pytest.raises(UserError, match=r"base.*optimizer\.learning_rate"):
        run_ablation(with_overrides(config, {"optimizer.learning_rate": 0.02}))


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"study.tasks": []}, "study.tasks"),
        ({"study.tasks": ["nothing"]}, "nothing"),
        ({"study.objectives": ["one: objective.kll=0"]}, "objective.kll"),
    ],
)
def test_what_is_no_study_is_refused(changes: dict[str, Any], reason: str, config: Config, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=reason):
        run_ablation(with_overrides(config, {"run.output": str(tmp_path / "study"), **changes}))
