"""Three whole steps of fine-tuning against PyTorch: transformers' model and loss, torch's AdamW, the same clipping."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
import torch
import transformers

from distil_jax.config import FineTune, Optimizer
from distil_jax.hf import read_task_model
from distil_jax.models import EncoderInputs, TaskModel
from distil_jax.tasks.batches import TaskBatch
from distil_jax.training.optimizer import learning_rate_schedule, make_optimizer
from distil_jax.training.parallel import make_devices
from distil_jax.training.step import FrozenInputs, init_state, make_train_step
from distil_jax.training.task_step import TaskModels, task_step_config

STEPS, ROWS, LENGTH = 3, 6, 10
SETTINGS = Optimizer(learning_rate=3e-3, weight_decay=0.05, warmup_fraction=0.0, clip_norm=0.5, epsilon=1e-6)
SIZES: dict[str, dict[str, Any]] = {
    "bert": {
        "hidden_size": 16,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "intermediate_size": 24,
        "hidden_dropout_prob": 0.0,
        "attention_probs_dropout_prob": 0.0,
    },
    "distilbert": {
        "dim": 16,
        "n_layers": 2,
        "n_heads": 2,
        "hidden_dim": 24,
        "dropout": 0.0,
        "attention_dropout": 0.0,
        "seq_classif_dropout": 0.0,
    },
}


def draw_batch(step: int) -> Any:
    random = np.random.default_rng(step)
    mask = (np.arange(LENGTH)[None] < random.integers(4, LENGTH + 1, ROWS)[:, None]).astype(np.int32)
    arrays: Any = (random.integers(5, 50, (ROWS, LENGTH)) * mask).astype(np.int32), mask
    types: Any = ((np.arange(LENGTH)[None] > 4) * mask).astype(np.int32)
    shares = np.full(ROWS, 1 / ROWS, np.float32)
    labels = random.integers(0, 3, ROWS).astype(np.int32)
    tokens = np.full(ROWS, 1 / mask.sum(), np.float32)
    return TaskBatch(EncoderInputs(*arrays, token_type_ids=types), labels, shares, shares, tokens)


@pytest.mark.parametrize("family", ["bert", "distilbert"])
def test_three_steps_are_those_of_pytorch(family: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    config = transformers.AutoConfig.for_model(
        family, vocab_size=50, max_position_embeddings=16, num_labels=3, **SIZES[family]
    )
    reference = transformers.AutoModelForSequenceClassification.from_config(config)
    for parameter in reference.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    reference.config.problem_type = "single_label_classification"
    reference.save_pretrained(tmp_path / "model")
    encoder, params, head, *_ = read_task_model(tmp_path / "model", "sequence")
    devices, optimizer = make_devices("shard_map", 2), make_optimizer(SETTINGS, STEPS)
    assert head is not None
    models = TaskModels(TaskModel(encoder, head), (), FineTune())
    schedule: Any = learning_rate_schedule(SETTINGS, STEPS)
    step = devices.map(
        make_train_step(task_step_config(models, 3, ("encoder", "task_head")), optimizer, schedule), replicated=2
    )
    state = devices.replicate(init_state(params, optimizer, ("encoder", "task_head")))
    decayed = [p for p in reference.parameters() if p.ndim > 1]
    plain = [p for p in reference.parameters() if p.ndim == 1]
    torch_adam = torch.optim.AdamW(
        [{"params": decayed, "weight_decay": 0.05}, {"params": plain, "weight_decay": 0.0}],
        lr=1.0,
        betas=(SETTINGS.beta1, SETTINGS.beta2),
        eps=SETTINGS.epsilon,
    )
    for number in range(STEPS):
        batch = draw_batch(number)
        ids, mask, _, types, _ = batch.inputs
        inputs: dict[str, Any] = {"input_ids": ids, "attention_mask": mask, "labels": batch.labels}
        inputs |= {"token_type_ids": types} if family == "bert" else {}
        loss = reference(**{name: torch.from_numpy(values).long() for name, values in inputs.items()}).loss
        torch_adam.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(reference.parameters(), SETTINGS.clip_norm)
        for group in torch_adam.param_groups:
            group["lr"] = float(schedule(number))
        torch_adam.step()
        state, metrics = step(state, devices.replicate(FrozenInputs(np.int32(0))), devices.shard_batch(batch))
        np.testing.assert_allclose(metrics["loss"], loss.item(), rtol=1e-5)
    reference.save_pretrained(tmp_path / "after")
    _, expected, *_ = read_task_model(tmp_path / "after", "sequence")
    for (path, actual), value in zip(
        jax.tree_util.tree_leaves_with_path(state.params), jax.tree.leaves(expected), strict=True
    ):
        if "key" in str(path) and "bias" in str(path):
            continue  # its gradient is 0 but for rounding, which Adam scales up
        np.testing.assert_allclose(actual, value, atol=2e-5, err_msg=jax.tree_util.keystr(path))
