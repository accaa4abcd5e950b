"""Task heads: the same scores and losses as PyTorch from the same files."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest

from distil_jax.errors import UserError
from distil_jax.hf import from_pretrained, save_pretrained
from distil_jax.models import TaskModel
from distil_jax.tasks import kind_of

ROWS, LENGTH = 3, 24
# What is put on: transformers' class name without the family, its settings, our head.
TASKS = {
    "classes": ("ForSequenceClassification", {"num_labels": 3}, "sequence"),
    "one_score": ("ForSequenceClassification", {"num_labels": 1, "problem_type": "regression"}, "sequence"),
    "two_scores": ("ForSequenceClassification", {"num_labels": 2, "problem_type": "regression"}, "sequence"),
    "sets": ("ForSequenceClassification", {"num_labels": 4, "problem_type": "multi_label_classification"}, "sequence"),
    "tags": ("ForTokenClassification", {"num_labels": 5}, "token"),
    "answers": ("ForQuestionAnswering", {}, "question"),
    "choices": ("ForMultipleChoice", {}, "choice"),
}
RNG = np.random.default_rng(4)
LABELS: dict[str, dict[str, np.ndarray]] = {
    "classes": {"labels": np.array([2, 0, 1])},
    "one_score": {"labels": np.array([0.5, -1.0, 3.0], np.float32)},
    "two_scores": {"labels": RNG.standard_normal((ROWS, 2)).astype(np.float32)},
    "sets": {"labels": np.array([[1, 0, 0, 1], [0, 0, 0, 0], [1, 1, 1, 0]], np.float32)},
    "tags": {"labels": np.where(RNG.random((ROWS, LENGTH)) < 0.3, -100, RNG.integers(0, 5, (ROWS, LENGTH)))},
    # The second answer was cut off: its number lies behind the row, and it does not count.
    "answers": {"start_positions": np.array([3, LENGTH, 0]), "end_positions": np.array([9, LENGTH + 5, 1])},
    "choices": {"labels": np.array([1, 0, 1])},
}


def cross_entropy(logits: np.ndarray, labels: np.ndarray) -> Any:
    """logits [N, K], labels [N]: mean over the labels from 0 to K - 1."""
    counted = (labels >= 0) & (labels < logits.shape[-1])
    logits, labels = logits[counted].astype(np.float64), labels[counted]
    return np.mean(np.log(np.exp(logits).sum(-1)) - logits[np.arange(len(labels)), labels])


def loss_by_hand(task: str, logits: np.ndarray, labels: dict[str, np.ndarray]) -> Any:
    if task == "answers":
        ends = (cross_entropy(logits[..., i], labels[name]) for i, name in enumerate(labels))
        return sum(ends, np.zeros(())) / 2
    target = labels["labels"]
    if task in ("one_score", "two_scores"):
        return np.mean((logits.reshape(target.shape).astype(np.float64) - target) ** 2)
    if task == "sets":
        probability = 1 / (1 + np.exp(-logits.astype(np.float64)))
        return -np.mean(target * np.log(probability) + (1 - target) * np.log(1 - probability))
    return cross_entropy(logits.reshape(-1, logits.shape[-1]), target.ravel())


def batch_of(task: str, token_types: bool, vocab_size: int) -> dict[str, Any]:
    rng = np.random.default_rng(1)
    shape = (ROWS, 2, LENGTH) if task == "choices" else (ROWS, LENGTH)
    lengths = np.array([[LENGTH, 5], [7, 11], [1, 2]])[:, : shape[1] if task == "choices" else 1]
    mask = np.arange(LENGTH) < lengths[..., None]
    batch = {
        "ids": rng.integers(0, vocab_size, shape).astype(np.int32),
        "attention_mask": mask.reshape(shape).astype(np.int32),
    }
    if token_types:
        batch["token_type_ids"] = rng.integers(0, 2, shape).astype(np.int32)
    return batch


@pytest.mark.parametrize("family", ["Bert", "DistilBert", "Roberta", "MPNet", "Electra"])
@pytest.mark.parametrize("task", TASKS)
def test_scores_and_loss(
    make_folder: Callable[..., Path], make_model: Callable[..., Any], task: str, family: str
) -> None:
    import torch

    suffix, settings, kind = TASKS[task]
    settings = settings | {"initializer_range": 0.15}
    folder, reference = make_folder(family + suffix, **settings), make_model(family + suffix, **settings)
    module, params = from_pretrained(folder)
    assert getattr(module, "head").kind == kind  # noqa: B009
    batch = batch_of(task, family not in ("DistilBert", "MPNet"), module.config.vocab_size)
    inputs = {("input_ids" if k == "ids" else k): torch.from_numpy(v).long() for k, v in batch.items()}
    with torch.no_grad():
        found = reference(**inputs, **{name: torch.from_numpy(values) for name, values in LABELS[task].items()})
    parts = (found.start_logits, found.end_logits) if task == "answers" else (found.logits,)
    expected = torch.stack(parts, -1).numpy() if task == "answers" else parts[0].numpy()
    logits: Any = jax.jit(module.apply)({"params": params}, **batch)
    assert logits.dtype == np.float32
    assert np.ptp(expected) > 0.02  # rows and outputs differ by far more than the tolerance
    np.testing.assert_allclose(logits, expected, atol=1e-5, rtol=0)
    loss = loss_by_hand(task, np.asarray(logits), LABELS[task])
    assert float(loss) == pytest.approx(found.loss.item(), abs=1e-5)
    assert found.loss.item() > 0.1


def test_replaced_tokens(make_folder: Callable[..., Path], make_model: Callable[..., Any], tmp_path: Path) -> None:
    """A discriminator's own head: a score a token, of which PyTorch's loss takes the sigmoid."""
    import torch
    import transformers

    settings: dict[str, Any] = {"initializer_range": 0.15, "embedding_size": 7, "hidden_act": "gelu_new"}
    reference = make_model("ElectraForPreTraining", **settings)
    module, params = from_pretrained(make_folder("ElectraForPreTraining", **settings))
    assert isinstance(module, TaskModel)
    batch = batch_of("tags", True, 50)
    inputs = {("input_ids" if k == "ids" else k): torch.from_numpy(v).long() for k, v in batch.items()}
    with torch.no_grad():
        expected = reference(**inputs).logits.numpy()
    found = np.asarray(jax.jit(module.apply)({"params": params}, **batch))
    real = batch["attention_mask"] > 0
    assert np.ptp(expected[real]) > 0.1
    np.testing.assert_allclose(found[..., 0][real], expected[real], atol=1e-5, rtol=0)
    save_pretrained(tmp_path / "written", module.config, params, head=module.head)
    loaded: Any = transformers.AutoModelForPreTraining.from_pretrained(tmp_path / "written", output_loading_info=True)
    assert not any(loading := loaded[1].values()), loading
    assert type(loaded[0]) is type(reference)
    assert all(torch.equal(x, loaded[0].state_dict()[name]) for name, x in reference.state_dict().items())
    with pytest.raises(UserError, match="none of the tasks"):
        kind_of(module.head)


def test_pooler_output_and_hidden_states(make_folder: Callable[..., Path], make_model: Callable[..., Any]) -> None:
    """What FlaxBertModel's users read: pooler_output and, on demand, the hidden states of all layers."""
    import torch

    module, params = from_pretrained(make_folder("BertModel", initializer_range=0.15))
    batch = batch_of("classes", True, 50)
    inputs = {("input_ids" if k == "ids" else k): torch.from_numpy(v).long() for k, v in batch.items()}
    with torch.no_grad():
        reference = make_model("BertModel", initializer_range=0.15)(**inputs, output_hidden_states=True)
    variables = {"params": params}
    states: Any = jax.jit(lambda: module.apply(variables, **batch, method="hidden_states"))()
    pooled: Any = module.apply(variables, states[-1], method="pooled")
    np.testing.assert_allclose(pooled, reference.pooler_output.numpy(), atol=1e-5)
    assert len(states) == len(reference.hidden_states) == 3
    for actual, other in zip(states, reference.hidden_states, strict=True):
        np.testing.assert_allclose(actual, other.numpy(), atol=1e-5)
