"""Distillation by hidden states alone: no vocabulary work, and no masked-LM head asked of the teacher."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from transformers import DistilBertModel

from distil_jax.config import Config
from distil_jax.errors import UserError
from distil_jax.export import export
from distil_jax.hf import load_tokenizer, read_pretrained, save_pretrained
from distil_jax.models import Encoder, EncoderInputs, TaskHead
from distil_jax.objectives import TERMS
from distil_jax.runs import read_metrics
from distil_jax.training.distill import distill, initial_student

HIDDEN = {"objective.kl": 0.0, "objective.mlm": 0.0, "objective.cosine": 0.0, "objective.hidden": 1.0}


@pytest.fixture(scope="module")
def headless(tiny_world: Path, tmp_path_factory: pytest.TempPathFactory) -> str:
    """The teacher of the tiny world without its head."""
    encoder, params, *_ = read_pretrained(tiny_world / "teacher")
    folder = tmp_path_factory.mktemp("headless") / "teacher"
    save_pretrained(folder, encoder, {"encoder": params["encoder"]}, tokenizer=load_tokenizer(tiny_world / "teacher"))
    return str(folder)


def test_a_student_of_a_teacher_without_a_head(
    headless: str, tiny_config: Callable[..., Config], tmp_path: Path
) -> None:
    config = tiny_config(tmp_path / "run", {**HIDDEN, "teacher.path": headless, "training.steps": 4})
    result = distill(config)
    assert result.state.params.keys() == {"encoder"}
    rows = [row["metrics"] for row in read_metrics(tmp_path / "run", "train")]
    assert all(row["loss"] == pytest.approx(row["loss_hidden"]) for row in rows)
    assert not any("loss_kl" in row or "loss_mlm" in row for row in rows)
    first, *_, last = (row["metrics"]["hidden"] for row in read_metrics(tmp_path / "run", "validation"))
    assert last < first
    check_export(tmp_path / "run", tmp_path / "hf", result.state.params["encoder"])


def check_export(run: Path, folder: Path, params: Any) -> None:
    """Transformers loads the whole export and nothing else, and computes what `params` compute."""
    export(run, folder)
    loaded: Any = DistilBertModel.from_pretrained(folder, output_loading_info=True)
    model, report = loaded
    assert not report["missing_keys"] and not report["unexpected_keys"]
    ids = np.arange(5, 13)[None]
    encoder = read_pretrained(folder).config
    found: Any = Encoder(encoder).apply({"params": params}, EncoderInputs(jnp.asarray(ids)))
    expected = model.eval()(torch.from_numpy(ids)).last_hidden_state.detach().numpy()
    np.testing.assert_allclose(found, expected, atol=1e-5)


def test_a_narrower_student_with_frozen_embeddings_and_projections_that_stay_behind(
    headless: str, tiny_config: Callable[..., Config], tmp_path: Path
) -> None:
    changes = {"objective.embeddings": 0.5, "objective.relations": 1.0, "objective.relation_heads": 4}
    changes |= {"teacher.path": headless, "training.steps": 2, "optimizer.weight_decay": 0.1}
    changes |= {"student.layers": [], "student.num_layers": 3, "student.hidden_size": 8}
    changes |= {"student.init": "teacher", "student.layer_choice": "lower", "student.freeze_embeddings": True}
    with pytest.raises(UserError, match="3 layers"):
        distill(tiny_config(tmp_path / "run", HIDDEN | changes))
    config = tiny_config(tmp_path / "run", HIDDEN | changes | {"student.num_layers": 2})
    encoder, start = initial_student(config)
    assert (encoder.hidden_size, encoder.num_layers) == (8, 2)
    params: Any = jax.tree.map(np.asarray, distill(config).state.params)
    assert {name: x.shape for name, x in params["projections"].items()} == dict.fromkeys(
        ("embeddings", "hidden"), (8, 16)
    )
    jax.tree.map(np.testing.assert_array_equal, params["encoder"]["embeddings"], start["encoder"]["embeddings"])
    assert np.abs(
        params["encoder"]["layer_1"]["query"]["kernel"] - start["encoder"]["layer_1"]["query"]["kernel"]
    ).max()
    check_export(tmp_path / "run", tmp_path / "hf", params["encoder"])


def test_a_student_starts_from_the_layers_of_a_fine_tuned_teacher(
    tiny_world: Path, tiny_config: Callable[..., Config], tmp_path: Path
) -> None:
    encoder, params, *_ = read_pretrained(tiny_world / "teacher")
    head = TaskHead("token", num_outputs=2)
    task = {"output": {"kernel": np.ones((encoder.hidden_size, 2), np.float32), "bias": np.zeros(2, np.float32)}}
    tree = {"encoder": params["encoder"], "task_head": task}
    save_pretrained(tmp_path / "task", encoder, tree, head=head, tokenizer=load_tokenizer(tiny_world / "teacher"))
    changes = {"teacher.path": str(tmp_path / "task"), "student.hidden_dropout": 0.0, "student.attention_dropout": 0.3}
    student, start = initial_student(tiny_config(tmp_path / "run", HIDDEN | changes))
    assert start.keys() == {"encoder"}
    assert (student.hidden_dropout, student.attention_dropout) == (0.0, pytest.approx(0.3))
    jax.tree.map(np.testing.assert_array_equal, start["encoder"]["layer_0"], params["encoder"]["layer_1"])


def test_a_folder_brings_a_student_of_its_own_sizes(
    headless: str, tiny_config: Callable[..., Config], model_folder: Callable[..., str], tmp_path: Path
) -> None:
    start = model_folder(family="distilbert", type_vocab_size=0, num_layers=3, hidden_size=8)
    changes = {"teacher.path": headless, "student.layers": [], "student.init": start}
    encoder, params = initial_student(tiny_config(tmp_path / "run", HIDDEN | changes))
    assert (encoder.family, encoder.num_layers, encoder.hidden_size) == ("distilbert", 3, 8)
    assert {"encoder"} <= params.keys() and "projections" not in params


def test_all_terms_on_activations_in_one_objective(
    headless: str, tiny_config: Callable[..., Config], tmp_path: Path
) -> None:
    names = [name for name, term in TERMS.items() if not term.over_vocabulary]
    weights = {name: 0.25 * (1 + number) for number, name in enumerate(names)}
    changes = {"objective.kl": 0.0, "objective.mlm": 0.0, "teacher.path": headless, "training.steps": 2}
    distill(tiny_config(tmp_path / "run", changes | {f"objective.{name}": x for name, x in weights.items()}))
    row = next(iter(read_metrics(tmp_path / "run", "train")))["metrics"]
    assert row["loss"] == pytest.approx(sum(x * row[f"loss_{name}"] for name, x in weights.items()), rel=1e-5)
    held_out = next(iter(read_metrics(tmp_path / "run", "validation")))["metrics"]
    assert weights.keys() <= held_out.keys() and all(held_out[name] > 0 for name in weights)


def test_rows_stay_as_they_are_where_nothing_is_predicted(
    headless: str, tiny_config: Callable[..., Config], tmp_path: Path
) -> None:
    changes = {**HIDDEN, "teacher.path": headless, "masking.probability": 0.0, "training.steps": 3}
    moving = ("hidden linear 1 0", "hidden_cosine cosine 0 1")
    distill(tiny_config(tmp_path / "run", changes | {"objective.schedules": moving, "logging.every_steps": 1}))
    for number, row in enumerate(row["metrics"] for row in read_metrics(tmp_path / "run", "train")):
        expected = (1 - number / 2) * row["loss_hidden"] + number / 2 * row["loss_hidden_cosine"]
        assert row["loss"] == pytest.approx(expected, rel=1e-5)
    measures = next(iter(read_metrics(tmp_path / "run", "validation")))["metrics"]
    assert {"hidden", "hidden_cosine"} <= measures.keys() and "mlm_loss" not in measures
    restricted = {"objective.restrict_kl_to_mask": True, "masking.probability": 0.0}
    with pytest.raises(UserError, match=r"masking.probability = 0.*kl and mlm"):
        distill(tiny_config(tmp_path / "other", restricted))


def test_terms_over_the_vocabulary_ask_for_the_head(
    headless: str, tiny_config: Callable[..., Config], tmp_path: Path
) -> None:
    with pytest.raises(UserError, match="masked-language-model head"):
        distill(tiny_config(tmp_path / "run", {"teacher.path": headless}))


def test_a_pair_of_layers_that_is_not_there_is_refused_before_training(
    headless: str, tiny_config: Callable[..., Config], tmp_path: Path
) -> None:
    changes = {**HIDDEN, "teacher.path": headless, "objective.hidden_layers": ["1:9"]}
    with pytest.raises(UserError, match="1:9"):
        distill(tiny_config(tmp_path / "run", changes))
    assert not (tmp_path / "run" / "checkpoints").exists()


@pytest.mark.slow
def test_projections_and_what_moves_resume_exactly(
    headless: str, tiny_config: Callable[..., Config], tmp_path: Path
) -> None:
    changes = HIDDEN | {
        "teacher.path": headless,
        "training.steps": 4,
        "checkpoint.every_steps": 2,
        "checkpoint.keep": 9,
    }
    changes |= {
        "student.hidden_size": 8,
        "objective.relations": 1.0,
        "objective.relation_heads": 4,
        "checkpoint.keep": 9,
    }
    changes |= {"objective.similarity": 1.0, "objective.schedules": ("hidden cosine 1 0.1", "relations linear 0 1")}
    whole: Any = jax.tree.map(np.asarray, distill(tiny_config(tmp_path / "run", changes)).state)
    assert whole.params["projections"].keys() == {"hidden"}
    for mapping in ("shard_map", "pmap"):
        folder = tmp_path / mapping
        shutil.copytree(tmp_path / "run", folder)
        shutil.rmtree(folder / "checkpoints" / "4")
        again = distill(tiny_config(folder, changes | {"parallel.mapping": mapping}))
        assert again.resumed_from == 2
        jax.tree.map(np.testing.assert_array_equal, jax.tree.map(np.asarray, again.state), whole)
