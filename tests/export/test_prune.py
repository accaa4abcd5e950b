"""`distil-jax prune`: importance against finite differences, and folders that transformers loads."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
from random_models import FAMILIES, made, real
from random_models import rows as rows_of

from distil_jax import cli
from distil_jax.config import load_config
from distil_jax.export.prune import gated, prune_model, unit_importance, without_units
from distil_jax.hf import load_tokenizer, read_json, read_task_model, save_pretrained
from distil_jax.models import EncoderConfig, TaskModel
from distil_jax.tasks import collate, kind_of
from distil_jax.tasks.examples import SequenceExample
from distil_jax.training.task_step import forward

TEXTS = ["the cat sat on a mat", "a dog ran fast", "red fish", "the moon over the sea and sky"] * 3


@pytest.fixture(scope="module")
def rows(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("rows") / "train.jsonl"
    labels = ["bad", "fair", "good"]
    found = [{"text": text, "label": labels[number % 3]} for number, text in enumerate(TEXTS)]
    path.write_text("".join(json.dumps(row) + "\n" for row in found))
    return path


def test_importance_is_how_much_the_loss_changes(task_folder: Callable[..., Path]) -> None:
    """By central differences of each gate, row by row."""
    folder = task_folder("classes")
    encoder, params, head, *_ = read_task_model(folder, "sequence")
    assert head is not None
    kind, model = kind_of(head), TaskModel(encoder, head)
    examples = [SequenceExample(str(n), text, None, n % 3) for n, text in enumerate(TEXTS[:3])]
    settings = load_config("finetune", {"task.name": "classification", "task.max_length": 16}).task
    encoded = kind.encode(load_tokenizer(folder), examples, settings)
    batch = collate(encoded, kind, np.arange(3), 16, 4)  # with one empty place
    found = unit_importance(model, params, [batch])
    loss_of = jax.jit(lambda gates, row: kind.loss(forward(model, gated(params, gates), row.inputs)[1], row))
    step, units = 1e-2, [("neurons", 0, 0), ("neurons", 1, 23), ("heads", 0, 0), ("heads", 1, encoder.num_heads - 1)]
    for name, layer, unit in units:
        differences = []
        for row in range(3):
            alone = collate(encoded, kind, np.array([row]), 16, 1)
            losses = []
            for change in (step, -step):
                gates = ones(encoder)
                gates[name][layer, unit] += change
                losses.append(float(loss_of(gates, alone)))
            differences.append(abs(losses[0] - losses[1]) / (2 * step))
        assert found[name][layer, unit] == pytest.approx(np.mean(differences), rel=2e-2, abs=1e-4)
    assert {name: one.shape for name, one in found.items()} == {name: one.shape for name, one in ones(encoder).items()}
    assert (found["neurons"] > 0).any() and (found["heads"] > 0).any()


def ones(encoder: EncoderConfig) -> dict[str, np.ndarray]:
    layers = encoder.num_layers
    sizes = {"neurons": encoder.intermediate_size, "heads": encoder.num_heads}
    return {name: np.ones((layers, size), np.float32) for name, size in sizes.items()}


def test_units_without_effect_may_go(task_folder: Callable[..., Path]) -> None:
    """A model whose other neurons and heads are switched off gives the same logits without them."""
    encoder, params, head, *_ = read_task_model(task_folder("classes"), "sequence")
    assert head is not None and encoder.num_heads == 2
    kept = {
        "neurons": np.array([[0, 3, 5, 6, 9, 12, 20, 23], [1, 2, 4, 8, 16, 17, 18, 22]]),
        "heads": np.array([[1], [0]]),
    }
    gates = {name: np.zeros_like(one) for name, one in ones(encoder).items()}
    for name, places in kept.items():
        np.put_along_axis(gates[name], places, 1, axis=1)
    ids: Any = np.arange(8, dtype=np.int32)[None] + 5
    small, rest = without_units(encoder, params, kept)
    assert (small.intermediate_size, small.num_heads, small.head_width) == (8, 1, encoder.head_width)
    before = jax.jit(TaskModel(encoder, head).apply)({"params": gated(params, gates)}, ids)
    after = jax.jit(TaskModel(small, head).apply)({"params": rest}, ids)
    np.testing.assert_allclose(np.asarray(after), np.asarray(before), atol=1e-5)


@pytest.mark.parametrize("family", FAMILIES)
def test_what_is_left_computes_what_transformers_computes_with_zeros(family: str, tmp_path: Path) -> None:
    """The columns of the output layer that read the other heads are zero there."""
    import torch
    from transformers import AutoModelForTokenClassification

    source = made(family, "token")
    assert source.head is not None and source.encoder.num_heads == 4
    heads = np.array([[0, 2], [0, 2]] if source.encoder.relative_buckets else [[0, 3], [1, 2]])
    save_pretrained(tmp_path / "whole", source.encoder, source.params, head=source.head)
    model: Any = AutoModelForTokenClassification.from_pretrained(tmp_path / "whole").eval()
    name = re.compile(r"\.(\d)\..*(attention\.output\.dense|out_lin|attn\.o)\.weight$")
    layers = {int(found[1]): weight for key, weight in model.named_parameters() if (found := name.search(key))}
    assert sorted(layers) == [0, 1]
    for index, weight in layers.items():
        for head in set(range(4)) - set(heads[index]):
            weight.data[:, 8 * head : 8 * head + 8] = 0
    neurons = np.arange(source.encoder.intermediate_size)[None].repeat(2, axis=0)
    encoder, params = without_units(source.encoder, source.params, {"neurons": neurons, "heads": heads})
    save_pretrained(tmp_path / "fewer", encoder, params, head=source.head)
    again, params, *_ = read_task_model(tmp_path / "fewer", "token")
    assert (again.num_heads, again.head_width) == (encoder.num_heads, encoder.head_width) == (2, 8)
    inputs = rows_of(source, 12)
    with torch.no_grad():
        mask = torch.tensor(np.asarray(inputs.mask))
        expected = model(input_ids=torch.tensor(np.asarray(inputs.ids)).long(), attention_mask=mask).logits.numpy()
    inputs = inputs._replace(token_type_ids=None)
    found = jax.jit(TaskModel(again, source.head).apply)({"params": params}, inputs)
    np.testing.assert_allclose(real(np.asarray(found), inputs, source), real(expected, inputs, source), atol=1e-5)
    with pytest.raises((RuntimeError, ValueError), match="mismatch|multiple"):
        AutoModelForTokenClassification.from_pretrained(tmp_path / "fewer")


def test_biases_of_relative_positions_go_with_their_heads(tmp_path: Path) -> None:
    """Layers share them, so the same heads stay in all."""
    source = made("mpnet", "token")
    table = source.params["encoder"]["relative_positions"]["bias"]
    kept = {"neurons": np.arange(48)[None].repeat(2, axis=0), "heads": np.array([[1, 3], [1, 3]])}
    _, params = without_units(source.encoder, source.params, kept)
    np.testing.assert_array_equal(params["encoder"]["relative_positions"]["bias"], table[:, [1, 3]])


def test_fewer_heads_are_read_again_and_exported(task_folder: Callable[..., Path], rows: Path, tmp_path: Path) -> None:
    """The folder is read here alone; ONNX computes what it says; transformers refuses it."""
    from transformers import AutoModelForSequenceClassification

    folder, out, files = task_folder("classes"), tmp_path / "out", tmp_path / "files"
    command = ["prune", str(folder), "--task", "classification", "--task.train", str(rows), "--task.max-length", "16"]
    assert cli.main([*command, "--pruning.heads", "0.5", "--output", str(out)]) == 0
    raw = read_json(out / "config.json")
    encoder, params, *_ = read_task_model(out, "sequence")
    whole, *_ = read_task_model(folder, "sequence")
    assert (encoder.num_heads, encoder.intermediate_size) == (1, whole.intermediate_size)
    assert raw["attention_head_size"] == whole.head_width == encoder.head_width
    assert params["encoder"]["layer_0"]["query"]["kernel"].shape == (whole.hidden_size, whole.head_width)
    with pytest.raises((RuntimeError, ValueError)):
        AutoModelForSequenceClassification.from_pretrained(out)
    assert cli.main(["export", str(out), "--format", "onnx", "--output", str(files)]) == 0
    report = json.loads((files / "export.json").read_text())
    assert "onnx" in json.dumps(report)


def test_the_folder_is_smaller_and_loads(
    task_folder: Callable[..., Path], rows: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    import torch
    from transformers import AutoModelForSequenceClassification

    folder = task_folder("classes")
    command = ["prune", str(folder), "--task", "classification", "--task.train", str(rows), "--task.max-length", "16"]
    assert cli.main([*command, "--pruning.feed-forward", "0.3", "--output", str(tmp_path / "out")]) == 0
    printed = capsys.readouterr()
    width = next(line for line in printed.out.splitlines() if "width" in line)
    assert width.split("|")[2].strip() == "24" and width.split("|")[3].strip() == "8"
    assert "finetune" in printed.err
    assert read_json(tmp_path / "out" / "config.json")["intermediate_size"] == 8
    weights = [(path / "model.safetensors").stat().st_size for path in (folder, tmp_path / "out")]
    assert weights[1] < weights[0]
    model, report = AutoModelForSequenceClassification.from_pretrained(tmp_path / "out", output_loading_info=True)
    assert not report["missing_keys"] and not report["unexpected_keys"]
    encoder, params, head, *_ = read_task_model(tmp_path / "out", "sequence")
    assert head is not None and head.labels == ("bad", "fair", "good")
    ids = np.arange(8)[None] + 5
    with torch.no_grad():
        expected = model.eval()(input_ids=torch.tensor(ids)).logits.numpy()
    found = jax.jit(TaskModel(encoder, head).apply)({"params": params}, ids.astype(np.int32))
    np.testing.assert_allclose(np.asarray(found), expected, atol=1e-5)


@pytest.mark.parametrize(
    ("changes", "fact"),
    [
        ({"pruning.feed_forward": 0.99}, "24"),
        ({"pruning.heads": 0.9}, "2 heads"),
        ({"run.output": ""}, "run.output"),
        ({"run.output": str(Path(__file__).parent), "model.initial": "nowhere/at/all"}, "not empty"),
        ({"task.name": "regression", "task.label": "number"}, "head"),
        ({"model.initial": "nowhere/at/all"}, "nowhere"),
    ],
)
def test_mistakes_are_said_before_anything_is_computed(
    changes: dict[str, Any], fact: str, task_folder: Callable[..., Path], rows: Path, tmp_path: Path
) -> None:
    from distil_jax.errors import UserError

    lines = [json.loads(line) | {"number": n} for n, line in enumerate(rows.read_text().splitlines())]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    settings = {
        "model.initial": str(task_folder("classes")),
        "run.output": str(tmp_path / "out"),
        "task.name": "classification",
        "task.train": str(tmp_path / "rows.jsonl"),
        "task.max_length": 16,
    }
    shares = {} if any(name.startswith("pruning.") for name in changes) else {"pruning.feed_forward": 0.5}
    with pytest.raises(UserError, match=fact):
        prune_model(load_config("finetune", {**settings, **shares, **changes}))
    assert not (tmp_path / "out").exists()
