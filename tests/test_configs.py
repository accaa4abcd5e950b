"""Every configuration that is shipped."""

from __future__ import annotations

from pathlib import Path

import pytest

from distil_jax.config import Config, load_config, shipped_config

SHIPPED = sorted(path.stem for path in (Path(__file__).resolve().parents[1] / "configs").glob("*.toml"))
FINE_TUNING = ["finetune", "glue", "minilm_tasks", "minilm_task_stage", "tinybert_task"]
ON_TEXT = [name for name in SHIPPED if name not in FINE_TUNING]


def test_the_shipped_configurations_are_these() -> None:
    assert SHIPPED == [
        "distilbert_base_uncased",
        "embedding",
        "finetune",
        "glue",
        "hidden",
        "minilm_hidden",
        "minilm_l3",
        "minilm_l3_teacher",
        "minilm_task_stage",
        "minilm_tasks",
        "minilmv2",
        "quickstart",
        "quickstart_teacher",
        "study_minilm_l3",
        "tinybert",
        "tinybert_task",
    ]


@pytest.mark.parametrize("name", FINE_TUNING)
def test_fine_tuning_has_what_is_usual_for_it(name: str) -> None:
    config = load_config(name)
    assert config == load_config(shipped_config(name))
    assert (config.optimizer.beta2, config.optimizer.weight_decay, config.optimizer.clip_norm) == (0.999, 0.01, 1.0)
    assert config.training.batch_size == 32
    assert bool(config.model.initial) == bool(config.run.output) == (name != "finetune")
    assert not config.task.name, "which task is said on the command line"


@pytest.mark.parametrize("name", ON_TEXT)
def test_loads_by_name_and_by_path(name: str) -> None:
    config = load_config(name)
    assert config == load_config(shipped_config(name))
    assert config.run.output
    assert config.corpus.folder
    assert config.corpus.train
    assert config.corpus.validation
    assert bool(config.teacher.path) != name.endswith("_teacher")
    assert config.corpus.tokenizer or config.teacher.path or config.model.initial


@pytest.mark.parametrize("name", SHIPPED)
def test_header_holds_the_command_and_the_hardware(name: str) -> None:
    header = shipped_config(name).read_text().partition("\n[")[0]
    command = "pretrain" if name.endswith("_teacher") else "finetune" if name in FINE_TUNING else "distill"
    command = "study" if name.startswith("study") else command
    assert f"distil-jax {command}" in " ".join(header.split())
    assert f"--config {name}" in header or name == "finetune"  # which it has by itself
    assert "# Hardware:" in header


def test_the_papers_run() -> None:
    """Sanh et al. 2019, and the released code where the paper says nothing."""
    config = load_config("distilbert_base_uncased")
    assert config.student.layers == (0, 2, 4, 7, 9, 11)
    assert config.objective == Config().objective
    assert config.optimizer == Config().optimizer
    assert (config.training.batch_size, config.training.epochs) == (4096, 3)


def test_a_student_uses_its_teachers_corpus() -> None:
    for student, teacher in (("quickstart", "quickstart_teacher"), ("minilm_l3", "minilm_l3_teacher")):
        assert load_config(student).corpus == load_config(teacher).corpus
        assert load_config(student).run.output != load_config(teacher).run.output
