"""The tasks by name."""

from __future__ import annotations

import pytest

from distil_jax.errors import UserError
from distil_jax.tasks.kinds import KINDS
from distil_jax.tasks.registry import TASKS, glue_tasks, task_spec

OWN = {"classification", "regression", "multilabel", "tagging", "question", "choice"}


def test_every_task_is_either_known_with_its_data_or_for_own_data() -> None:
    with pytest.raises(UserError, match="task.name is not set") as caught:
        task_spec("")
    names = str(caught.value).partition(" one of ")[2].split(", ")
    published = {name for name, spec in TASKS.items() if spec.published}
    assert sorted(names) == sorted(published | OWN)
    assert len(glue_tasks()) == 9 and set(glue_tasks()) < published
    for name in names:
        spec = task_spec(name)
        assert spec.name == name and spec.metrics
        assert set(spec.headline) <= set(spec.metrics)
        assert bool(spec.kind.problem) == (spec.kind.head == "sequence") and spec.kind in KINDS.values()


def test_official_measures_and_class_numbers() -> None:
    """The numbers are those of the GLUE data sets on the hub, the files and labels those the GLUE server takes."""
    assert task_spec("cola").metrics == ("matthews",)
    assert task_spec("mrpc").headline == task_spec("qqp").headline == ("accuracy", "f1")
    assert task_spec("stsb").headline == ("pearson", "spearman")
    assert task_spec("squad").headline == ("squad_f1",)
    assert task_spec("mnli").labels == task_spec("ax").labels == ("entailment", "neutral", "contradiction")
    assert task_spec("qnli").labels == task_spec("rte").labels == ("entailment", "not_entailment")
    assert task_spec("wnli").labels == ("not_entailment", "entailment")
    assert task_spec("mnli").server_file == {"matched": "MNLI-m.tsv", "mismatched": "MNLI-mm.tsv"}
    assert task_spec("sst2").server_file == {"test": "SST-2.tsv"}
    numbers = {name for name in glue_tasks() if task_spec(name).server_labels == ("0", "1")}
    assert numbers == {"cola", "sst2", "mrpc", "qqp", "wnli"}
    assert task_spec("wnut17").labels[:3] == ("O", "B-corporation", "I-corporation")
    assert task_spec("conll2003").labels == (
        "O",
        *(f"{mark}-{kind}" for kind in ("PER", "ORG", "LOC", "MISC") for mark in "BI"),
    )


@pytest.mark.parametrize(("name", "near"), [("SST-2", "sst2"), ("squad2", "squad_v2"), ("", "task.name is not set")])
def test_an_unknown_name_is_met_with_the_nearest(name: str, near: str) -> None:
    with pytest.raises(UserError, match=near):
        task_spec(name)
