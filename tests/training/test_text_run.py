"""Runs on text: what they train, from where, and the mistakes that they refuse before a program is compiled."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest

from distil_jax.config import Config, with_overrides
from distil_jax.errors import UserError
from distil_jax.hf import load_tokenizer, read_pretrained
from distil_jax.runs import read_metrics, read_model_file
from distil_jax.training.checkpoint import Checkpoints
from distil_jax.training.distill import distill, initial_student
from distil_jax.training.pretrain import pretrain, pretraining, scratch_encoder

Stage = Callable[[Config], Any]


def host(tree: Any) -> Any:
    return jax.tree.map(np.asarray, tree)


def test_pretraining_from_scratch(tiny_config: Callable[..., Config], tiny_world: Path, tmp_path: Path) -> None:
    """Without held-out text, with rows of metrics every second step and at the end, and with the default length.

    As where only `prepare` was told the length of the rows.
    """
    corpus = tmp_path / "corpus"
    shutil.copytree(tiny_world / "corpus" / "train", corpus / "train")
    changes = {"corpus.folder": str(corpus), "training.steps": 3, "logging.every_steps": 2, "model.num_layers": 1}
    changes |= {"corpus.sequence_length": 512}
    outcome = pretrain(tiny_config(tmp_path / "run", changes))
    assert outcome.evaluations == {}
    rows = read_metrics(tmp_path / "run")
    assert [(row["step"], row["kind"]) for row in rows] == [(2, "train"), (3, "train")]
    tokenizer = load_tokenizer(tmp_path / "run" / "tokenizer")
    assert rows[0]["metrics"]["loss_mlm"] == pytest.approx(np.log(tokenizer.vocab_size), rel=0.05), (
        "nothing learned yet"
    )
    saved = read_model_file(tmp_path / "run")
    assert saved["description"] == {"stage": "pretrain", "initial": "", "frozen_encoder": False}
    assert (saved["model"]["num_layers"], saved["model"]["type_vocab_size"]) == (1, 2)
    assert saved["corpus"]["sequence_length"] == 24
    assert set(outcome.state.params) == {"encoder", "mlm_head"}


def test_pretraining_takes_the_form_of_the_losses_that_is_set() -> None:
    plain = with_overrides(Config(), {"objective.vocabulary": "plain"})
    assert pretraining(plain, scratch_encoder(plain.model, 60, 0), {}).objective.vocabulary == "plain"


def test_pretraining_the_head_of_a_frozen_encoder(
    tiny_config: Callable[..., Config], model_folder: Callable[..., str], tmp_path: Path
) -> None:
    """A headless model keeps its encoder to the bit and gets a head that learns; its pooler is left behind."""
    source = model_folder(head=False, pooler=True)
    changes = {"model.initial": source, "model.freeze_encoder": True, "training.steps": 3}
    changes |= {"optimizer.learning_rate": 1e-2, "optimizer.schedule": "constant", "optimizer.warmup_fraction": 0.0}
    outcome = pretrain(tiny_config(tmp_path / "run", changes))
    state, (_, given, *_) = host(outcome.state), read_pretrained(Path(source))
    assert "pooler" in given["encoder"] and "mlm_head" not in given
    kept = {name: value for name, value in given["encoder"].items() if name != "pooler"}
    jax.tree.map(np.testing.assert_array_equal, state.params["encoder"], kept)
    moments = [leaf for leaf in jax.tree.leaves(state.opt_state) if leaf.ndim]
    assert len(moments) == 2 * len(jax.tree.leaves(state.params["mlm_head"]))
    assert all(np.any(moment) for moment in moments)
    assert outcome.evaluations[3]["mlm_loss"] < outcome.evaluations[0]["mlm_loss"]
    assert read_model_file(tmp_path / "run")["description"]["frozen_encoder"] is True


def test_a_student_starts_from_its_teachers_layers_and_moves(whole_run: Any, tiny_world: Path) -> None:
    _, teacher, *_ = read_pretrained(tiny_world / "teacher")
    encoder, start = initial_student(whole_run.config)
    assert (encoder.family, encoder.num_layers, encoder.type_vocab_size) == ("distilbert", 1, 0)
    jax.tree.map(np.testing.assert_array_equal, start["encoder"]["layer_0"], teacher["encoder"]["layer_1"])
    moved = jax.tree.map(lambda a, b: bool(np.any(a != b)), start, whole_run.state.params)
    assert all(jax.tree.leaves(moved)), moved
    saved = read_model_file(whole_run.folder)
    assert saved["description"] == {"stage": "distill", "teacher": str(tiny_world / "teacher"), "layers": [1]}
    assert Checkpoints(whole_run.folder / "checkpoints", read_only=True).metadata(12)["steps"] == 12
    tokenizer = load_tokenizer(tiny_world / "tokenizer")
    assert load_tokenizer(whole_run.folder / "tokenizer").sha256 == tokenizer.sha256
    evaluations = whole_run.outcome.evaluations
    assert evaluations[12]["kl"] < evaluations[0]["kl"], "nearer to its teacher than at the start"


def test_a_student_without_its_teachers_losses_is_still_compared_with_it(
    tiny_config: Callable[..., Config], tmp_path: Path
) -> None:
    alone = {"objective.kl": 0.0, "objective.cosine": 0.0, "objective.mlm": 1.0, "training.steps": 1}
    outcome = distill(tiny_config(tmp_path / "run", alone))
    (row,) = read_metrics(tmp_path / "run", "train")
    assert {name for name in row["metrics"] if name.startswith("loss")} == {"loss", "loss_mlm"}
    assert row["metrics"]["loss"] == pytest.approx(row["metrics"]["loss_mlm"])
    assert outcome.evaluations[1]["kl"] > 0


# Mistakes


class _Compilations(list[str]):
    """Names of the events by which JAX tells that it compiles; nothing can be taken back from `jax.monitoring`."""

    def __call__(self, event: str, duration_secs: float, **kwargs: str | int) -> None:
        if "backend_compile" in event:
            self.append(event)


@pytest.fixture(scope="module")
def compilations() -> _Compilations:
    found = _Compilations()
    jax.monitoring.register_event_duration_secs_listener(found)
    jax.jit(lambda x: x + 3.25)(np.float32(1))
    assert found, "JAX no longer tells when it compiles"
    return found


Refusal = Callable[[Stage, dict[str, Any], str], None]


@pytest.fixture
def refused(tiny_config: Callable[..., Config], compilations: _Compilations, tmp_path: Path) -> Refusal:
    """A function (stage, changes, pattern): the stage says so in one line, compiles nothing and writes nothing."""

    def check(stage: Stage, changes: dict[str, Any], pattern: str) -> None:
        config = tiny_config(tmp_path / "run", changes)
        compilations.clear()
        with pytest.raises(UserError, match=pattern) as caught:
            stage(config)
        assert "\n" not in str(caught.value)
        assert compilations == []
        assert not (tmp_path / "run").exists()

    return check


@pytest.fixture(scope="module")
def other_tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Any:
    path = tmp_path_factory.mktemp("vocabulary") / "vocab.txt"
    path.write_text("\n".join(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *"abcdef"]) + "\n")
    return load_tokenizer(path)


@pytest.mark.parametrize(
    ("changes", "pattern"),
    [
        ({"corpus.folder": "/nowhere"}, "/nowhere/train: no such folder.*distil-jax prepare"),
        ({"run.output": ""}, "run.output is not set"),
        ({"training.batch_size": 7, "parallel.devices": 0}, "batch_size = 7 is not a multiple"),
        ({"training.steps": 0, "training.epochs": 1, "training.batch_size": 4096}, "rows are fewer than .*4096"),
        ({"parallel.devices": 9, "training.batch_size": 36}, "parallel.devices = 9: only 8 devices"),
        ({"corpus.sequence_length": 32}, r"corpus.sequence_length = 32: .*corpus/train was prepared with 24; give"),
        ({"corpus.pack": False}, r"corpus.pack = false: .*corpus/train was prepared with true; give that"),
    ],
)
@pytest.mark.parametrize("stage", [pretrain, distill])
def test_mistakes_of_both_stages(refused: Refusal, stage: Stage, changes: dict[str, Any], pattern: str) -> None:
    automatic = {} if "parallel.devices" in changes else {"parallel.devices": 0}
    refused(stage, {**automatic, **changes}, pattern)


def test_rows_of_another_run_are_compared_with_those_it_was_started_with(
    tiny_config: Callable[..., Config], whole_run: Any
) -> None:
    """A run that older versions have begun with a length that is not that of its rows can go on."""
    with pytest.raises(UserError, match="corpus.sequence_length: was 24, is 32"):
        distill(tiny_config(whole_run.folder, {"corpus.sequence_length": 32}))


@pytest.mark.parametrize(
    ("changes", "pattern"),
    [
        ({"corpus.tokenizer": ""}, "corpus.tokenizer: name the tokenizer"),
        ({"model.max_position_embeddings": 16}, "rows of 24 tokens, but the model has 16 positions"),
        ({"model.initial": "/nowhere"}, "/nowhere"),
    ],
)
def test_mistakes_of_pretraining(refused: Refusal, changes: dict[str, Any], pattern: str) -> None:
    refused(pretrain, changes, pattern)


def test_pretraining_refuses_a_model_that_does_not_fit(
    refused: Refusal, model_folder: Callable[..., str], other_tokenizer: Any
) -> None:
    small = model_folder(vocab_size=20, tokenizer=None)
    refused(pretrain, {"model.initial": small}, "model: has 20 word embeddings")
    other = model_folder(tokenizer=other_tokenizer)
    refused(pretrain, {"model.initial": other, "corpus.tokenizer": ""}, "another vocabulary than that of .* 11 tokens")


@pytest.mark.parametrize(
    ("changes", "pattern"),
    [
        ({"teacher.path": ""}, "teacher.path is not set"),
        ({"student.layers": [0, 3]}, r"student.layers: \[0, 3\] names layers \[3\] but the teacher's are 0 to 1"),
        ({"student.init": "/nowhere"}, "/nowhere"),
    ],
)
def test_mistakes_of_distillation(refused: Refusal, changes: dict[str, Any], pattern: str) -> None:
    refused(distill, changes, pattern)


def test_distillation_refuses_a_teacher_that_does_not_fit(
    refused: Refusal, model_folder: Callable[..., str], other_tokenizer: Any
) -> None:
    def teacher(**fields: Any) -> dict[str, Any]:
        return {"teacher.path": model_folder(**fields)}

    refused(distill, teacher(head=False), "no masked-language-model head.*--model.freeze-encoder")
    refused(distill, teacher(vocab_size=20, tokenizer=None), "teacher.path: has 20 word embeddings")
    other = teacher(tokenizer=other_tokenizer)
    refused(distill, {**other, "corpus.tokenizer": ""}, "another vocabulary than that of .* 11 tokens")
    refused(distill, teacher(max_position_embeddings=16), "rows of 24 tokens, but the model has 16 positions")
    distilled = teacher(family="distilbert", type_vocab_size=0)
    refused(distill, {**distilled, "student.family": "bert"}, "student.family = bert: .*token types")


def test_distillation_refuses_a_start_that_does_not_fit(refused: Refusal, model_folder: Callable[..., str]) -> None:
    def start(**fields: Any) -> dict[str, Any]:
        sizes = {"family": "distilbert", "type_vocab_size": 0, "num_layers": 1, **fields}
        return {"student.init": model_folder(**sizes)}

    refused(distill, start(head=False), "student.init = .*no masked-language-model head")
    refused(distill, start(num_layers=2), "its num_layers is 2, .* is 1")
    refused(distill, {**start(), "student.hidden_size": 8}, "its hidden_size is 16, student.hidden_size is 8")
    refused(distill, {**start(), "student.family": "bert"}, "its family is distilbert, not bert")
    refused(distill, start(max_position_embeddings=16), "rows of 24 tokens, but the model has 16 positions")
    short = {"teacher.path": model_folder(max_position_embeddings=16)}
    refused(distill, {**start(), **short}, "rows of 24 tokens, but the teacher has 16 positions")


def test_a_random_student_is_refused_before_its_weights_are_drawn(refused: Refusal) -> None:
    changes = {"student.init": "random", "parallel.devices": 0}
    refused(distill, {**changes, "training.batch_size": 4}, "batch_size = 4 is not a multiple")
