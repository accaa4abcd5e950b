from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest

from distil_jax.benchmark.inputs import make_inputs
from distil_jax.benchmark.synthetic import random_params, synthetic_corpus, synthetic_tokenizer
from distil_jax.config import Config, load_config, with_overrides
from distil_jax.data.corpus.sequences import sequence_numbers
from distil_jax.errors import UserError
from distil_jax.models import EncoderConfig, MaskedLM
from distil_jax.training.parallel import make_devices


@pytest.mark.parametrize("pack", [True, False])
def test_synthetic_rows_are_like_prepared_ones(tiny: dict[str, Any], pack: bool) -> None:
    config = with_overrides(Config(), {**tiny, "corpus.pack": pack})
    corpus = synthetic_corpus(config, 100)
    ids = corpus.row_range(0, corpus.num_rows)
    assert corpus.num_rows >= 16 and ids.shape[1] == 32 and int(ids.max()) < 100
    assert (ids[:, 0] == corpus.cls_id).all()
    numbers = np.asarray(sequence_numbers(jax.numpy.asarray(ids.astype(np.int32)), corpus.cls_id, corpus.pad_id))
    assert int(numbers.max(axis=1).sum()) == corpus.num_sequences
    assert (numbers.max() > 1) == pack
    assert (ids == corpus.cls_id).sum() == (ids == corpus.sep_id).sum() == corpus.num_sequences
    assert (ids != corpus.pad_id).sum() == corpus.num_tokens == corpus.token_counts.sum()


def test_packed_rows_are_fuller() -> None:
    packed, padded = (
        synthetic_corpus(with_overrides(Config(), {"corpus.sequence_length": 512, "corpus.pack": pack}), 1000, rows=64)
        for pack in (True, False)
    )
    assert packed.fill > 0.9 > 2 * padded.fill


def test_random_weights_have_the_models_shapes_and_scales() -> None:
    encoder = EncoderConfig("bert", 50, 16, 1, 2, 24, 32, type_vocab_size=2)
    module = MaskedLM(encoder)
    params = random_params(module, 0.5)
    made = module.init(jax.random.key(0), jax.numpy.zeros((1, 4), "int32"))["params"]
    assert jax.tree.map(np.shape, params) == jax.tree.map(np.shape, dict(made))
    layer = params["encoder"]["layer_0"]
    assert layer["query"]["kernel"].std() == pytest.approx(0.5, rel=0.15)
    assert (layer["query"]["bias"] == 0).all() and (layer["output_norm"]["scale"] == 1).all()


def test_what_is_on_the_machine_is_used(tiny_world: Path) -> None:
    config = load_config(tiny_world / "config.toml", {"teacher.path": str(tiny_world / "teacher")})
    inputs = make_inputs(config, "distill", 30_522)
    assert inputs.notes == ()
    assert inputs.teacher is not None and inputs.teacher.vocab_size < 100
    rows = next(inputs.spec.make_batches(range(1), make_devices("shard_map", 1)))
    assert rows.shape == (8, 24)


def test_what_is_not_there_is_synthetic_and_noted(tiny: dict[str, Any], tmp_path: Path) -> None:
    config = with_overrides(Config(), {**tiny, "teacher.path": str(tmp_path / "gone"), "corpus.folder": "nowhere"})
    inputs = make_inputs(config, "distill", 60)
    assert inputs.teacher is not None and inputs.teacher.num_layers == 2 and inputs.student.num_layers == 1
    assert inputs.student.vocab_size == 60
    assert "gone: not on this machine" in inputs.notes[0] and "synthetic rows of 32 tokens" in inputs.notes[1]


def test_a_folder_with_sizes_alone_gives_random_weights(tiny: dict[str, Any], model_folder: Callable[..., str]) -> None:
    folder = Path(model_folder(num_layers=3))
    (folder / "model.safetensors").unlink()
    inputs = make_inputs(with_overrides(Config(), {**tiny, "teacher.path": str(folder)}), "distill", 60)
    assert inputs.teacher is not None and inputs.teacher.num_layers == 3
    assert "sizes in its config.json" in inputs.notes[0]


def test_shapes_alone_read_and_hold_nothing(tiny: dict[str, Any], model_folder: Callable[..., str]) -> None:
    config = with_overrides(Config(), {**tiny, "teacher.path": model_folder()})
    inputs = make_inputs(config, "distill", 60, shapes_only=True)
    real = make_inputs(config, "distill", 60)
    assert jax.tree.map(np.shape, inputs.spec.params) == jax.tree.map(np.shape, real.spec.params)
    assert all(leaf.strides == (0,) * leaf.ndim for leaf in jax.tree.leaves(inputs.spec.frozen.teacher))


def test_a_known_model_that_is_not_here_has_its_own_sizes(tiny: dict[str, Any]) -> None:
    changes = {"teacher.path": "google-bert/bert-large-uncased", "training.batch_size": 2, "corpus.sequence_length": 16}
    changes |= {"training.micro_batch_size": 1, "corpus.min_tokens": 4}
    inputs = make_inputs(with_overrides(Config(), changes), "distill", 60, shapes_only=True)
    assert inputs.teacher is not None and (inputs.teacher.num_layers, inputs.teacher.hidden_size) == (24, 1024)
    # Sizes that were given count.
    given = with_overrides(Config(), {**tiny, "teacher.path": "google-bert/bert-large-uncased"})
    assert make_inputs(given, "distill", 60, shapes_only=True).student.hidden_size == 16


def test_rows_longer_than_the_models_positions_are_refused(
    tiny: dict[str, Any], model_folder: Callable[..., str]
) -> None:
    changes = {**tiny, "teacher.path": model_folder(), "corpus.sequence_length": 64}
    with pytest.raises(UserError, match="64 tokens.*32 positions"):
        make_inputs(with_overrides(Config(), changes), "distill", 60)


def test_a_frozen_encoder_is_not_trained(tiny: dict[str, Any], model_folder: Callable[..., str]) -> None:
    changes = {**tiny, "model.initial": model_folder(head=False), "model.freeze_encoder": True}
    inputs = make_inputs(with_overrides(Config(), changes), "pretrain", 60)
    assert inputs.spec.step.trainable == ("mlm_head",) and inputs.teacher is None


@pytest.mark.parametrize("task", ["mrpc", "sst2", "stsb", "wnut17", "squad", "swag"])
@pytest.mark.parametrize("teacher", ["", "gone"])
def test_every_kind_of_task_has_synthetic_examples(tiny: dict[str, Any], task: str, teacher: str) -> None:
    changes = {**tiny, "task.name": task, "task.max_length": 64, "task.doc_stride": 16, "task.max_question_length": 16}
    config = with_overrides(load_config("finetune"), {**changes, "teacher.path": teacher})
    inputs = make_inputs(config, "finetune", 60)
    batch = next(inputs.spec.make_batches(range(1), make_devices("shard_map", 1)))
    assert batch.inputs.ids.shape[0] == 8 and batch.inputs.ids.shape[-1] <= 64
    assert batch.inputs.ids.max() < 60 and float(batch.weights.sum()) == pytest.approx(1.0, rel=1e-5)
    assert (inputs.teacher is not None) == bool(teacher)
    assert any("synthetic examples" in note for note in inputs.notes)


def test_a_teacher_of_a_task_that_is_not_here_is_synthetic_like_its_student(
    tiny: dict[str, Any], model_folder: Callable[..., str]
) -> None:
    changes = {**tiny, "task.name": "mrpc", "task.max_length": 64, "teacher.path": "gone/teacher"}
    config = with_overrides(load_config("finetune"), {**changes, "model.initial": model_folder(head=False)})
    inputs = make_inputs(config, "finetune", 60)
    assert inputs.teacher is not None
    assert any("teacher" in note for note in inputs.notes)


def test_a_synthetic_word_is_one_token() -> None:
    tokenizer = synthetic_tokenizer(40)
    assert tokenizer.vocab_size == 40
    assert tokenizer.backend.encode("w7 w39", add_special_tokens=False).ids == [7, 39]
