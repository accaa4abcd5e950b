"""Task models in and out of folders: which head is taken, when it is new, and transformers reads it."""

# pyright: reportOptionalMemberAccess=false, reportArgumentType=false, reportCallIssue=false, reportAttributeAccessIssue=false

from __future__ import annotations

import dataclasses
import json
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
import safetensors.numpy
import torch
import transformers

from distil_jax.errors import UserError
from distil_jax.hf import (
    add_task_head,
    from_pretrained,
    read_pretrained,
    read_task_model,
    save_pretrained,
    task_head,
)
from distil_jax.hf.write import tensors_from_params
from distil_jax.models import TaskHead, TaskModel

CLASSES = [
    (f"{family}For{task}", kind)
    for family in ("Bert", "DistilBert", "Roberta", "XLMRoberta", "MPNet", "Electra")
    for task, kind in (
        ("SequenceClassification", "sequence"),
        ("TokenClassification", "token"),
        ("QuestionAnswering", "question"),
        ("MultipleChoice", "choice"),
    )
]
NAMES = {"id2label": {0: "cold", 1: "mild", 2: "hot"}, "label2id": {"cold": 0, "mild": 1, "hot": 2}}


def tensors_of(folder: Path) -> dict[str, np.ndarray]:
    return safetensors.numpy.load_file(folder / "model.safetensors")


def same(left: Any, right: Any) -> bool:
    return jax.tree.structure(left) == jax.tree.structure(right) and all(
        jax.tree.leaves(jax.tree.map(np.array_equal, left, right))
    )


@pytest.fixture
def edit_tensors() -> Callable[..., None]:
    def edit(folder: Path, change: Callable[[dict[str, np.ndarray]], Any]) -> None:
        tensors = {name: np.array(values) for name, values in tensors_of(folder).items()}
        change(tensors)
        safetensors.numpy.save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})

    return edit


@pytest.mark.parametrize(("architecture", "kind"), CLASSES)
def test_there_and_back(
    make_folder: Callable[..., Path], make_model: Callable[..., Any], tmp_path: Path, architecture: str, kind: Any
) -> None:
    """transformers -> here -> transformers: equal tensors and scores, no key missing or unexpected, labels kept."""
    named = kind in ("sequence", "token")
    settings: dict[str, Any] = NAMES if named else {}
    if kind == "sequence":
        settings = settings | {"problem_type": "single_label_classification"}
    reference = make_folder(architecture, **settings)
    config, params, head, is_new_head, *_ = read_task_model(reference, kind)
    assert not is_new_head
    assert head.labels == (("cold", "mild", "hot") if named else ())
    assert all(leaf.dtype == np.float32 for leaf in jax.tree.leaves(params))
    save_pretrained(tmp_path / "actual", config, params, head=head)
    left, right = tensors_of(reference), tensors_of(tmp_path / "actual")
    assert left.keys() == right.keys()
    assert all(left[name].tobytes() == right[name].tobytes() for name in left)
    loaded, report = getattr(transformers, architecture).from_pretrained(tmp_path / "actual", output_loading_info=True)
    assert all(not found for found in report.values()), report
    assert loaded.config.architectures == [architecture]
    assert loaded.config.problem_type == (settings.get("problem_type"))
    if named:
        assert loaded.config.id2label == NAMES["id2label"]
        assert loaded.config.label2id == NAMES["label2id"]
    ids = torch.arange(20).reshape(1, 2, 10) if kind == "choice" else torch.arange(20)[None]
    with torch.no_grad():
        # Not bit for bit: tensors in other places of memory may be added up in another order.
        assert torch.allclose(loaded.eval()(ids)[0], make_model(architecture, **settings)(ids)[0], rtol=0, atol=1e-6)


@pytest.mark.parametrize("architecture", ["BertForSequenceClassification", "DistilBertForTokenClassification"])
def test_a_pipeline_shows_our_labels_and_scores(
    make_folder: Callable[..., Path], tiny_inputs: Path, tmp_path: Path, architecture: str
) -> None:
    from distil_jax.hf import load_tokenizer

    tokenizer = load_tokenizer(tiny_inputs / "tokenizer")
    kind: Any = "sequence" if "Sequence" in architecture else "token"
    folder = make_folder(architecture, vocab_size=tokenizer.vocab_size, **NAMES)
    config, params, head, *_ = read_task_model(folder, kind)
    head = dataclasses.replace(head, labels=("north", "south", "west"))
    save_pretrained(tmp_path / "actual", config, params, head=head, tokenizer=tokenizer)
    task: Any = "text-classification" if kind == "sequence" else "token-classification"
    pipe = transformers.pipeline(task, model=str(tmp_path / "actual"), tokenizer=str(tmp_path / "actual"))
    shown: Any = pipe("the cat sat", top_k=None) if kind == "sequence" else pipe("the cat sat", ignore_labels=[])
    ids = transformers.AutoTokenizer.from_pretrained(tmp_path / "actual")("the cat sat")["input_ids"]
    logits = np.asarray(TaskModel(config, head).apply({"params": params}, np.array([ids], np.int32)))[0]
    scores = np.exp(logits) / np.exp(logits).sum(-1, keepdims=True)
    if kind == "sequence":
        assert {item["label"]: pytest.approx(item["score"], abs=1e-5) for item in shown} == dict(
            zip(head.labels, scores.tolist(), strict=True)
        )
    else:
        assert [item["entity"] for item in shown] == [head.labels[i] for i in scores[1:-1].argmax(-1)]


def test_label_ten_comes_after_label_two(make_folder: Callable[..., Path], tmp_path: Path) -> None:
    names = tuple(f"tag {i}" for i in range(12))
    config, params, head, *_ = read_task_model(make_folder("DistilBertForTokenClassification", num_labels=12), "token")
    save_pretrained(tmp_path / "actual", config, params, head=dataclasses.replace(head, labels=names))
    assert tuple(json.loads((tmp_path / "actual" / "config.json").read_text())["id2label"].values()) == names


def test_a_regression_there_and_back(make_folder: Callable[..., Path], tmp_path: Path) -> None:
    settings = {"num_labels": 1, "problem_type": "regression"}
    config, params, head, *_ = read_task_model(
        make_folder("DistilBertForSequenceClassification", **settings), "sequence"
    )
    assert (head.labels, head.num_outputs, head.problem) == ((), 1, "regression")
    save_pretrained(tmp_path / "actual", config, params, head=head)
    loaded = transformers.AutoConfig.from_pretrained(tmp_path / "actual")
    assert (loaded.num_labels, loaded.problem_type) == (1, "regression")
    assert read_task_model(tmp_path / "actual", "sequence").head == head


@pytest.mark.parametrize("family", ["Bert", "DistilBert", "Roberta", "MPNet", "Electra"])
def test_a_new_head_on_a_language_model(make_folder: Callable[..., Path], tmp_path: Path, family: str) -> None:
    folder = make_folder(f"{family}ForMaskedLM")
    encoder, *_ = read_pretrained(folder, "none")
    wanted = task_head(encoder, None, "sequence", ["bad", "good"])
    config, params, head, is_new_head, *_ = read_task_model(folder, "sequence", labels=["bad", "good"], seed=3)
    assert is_new_head and head == wanted and config.pooler == (family == "Bert")
    assert params.keys() == {"encoder", "task_head"}
    shapes = jax.eval_shape(lambda: TaskModel(config, head).init(jax.random.key(0), np.zeros((1, 4), np.int32)))
    assert jax.tree.map(np.shape, params) == jax.tree.map(lambda x: x.shape, shapes["params"])
    again = read_task_model(folder, "sequence", labels=["bad", "good"], seed=3).params
    other = read_task_model(folder, "sequence", labels=["bad", "good"], seed=4).params
    assert same(params, again)
    new = [params["task_head"]["output"], *([params["encoder"]["pooler"]] if config.pooler else [])]
    assert not same(params["task_head"], other["task_head"])
    for layer in new:
        assert layer["kernel"].std() == pytest.approx(0.4, rel=0.4) and not layer["bias"].any()
    untouched = {name: values for name, values in params["encoder"].items() if name != "pooler"}
    assert same(untouched, read_pretrained(folder, "mlm")[1]["encoder"])
    save_pretrained(tmp_path / "actual", config, params, head=head)
    model_class: Any = getattr(transformers, f"{family}ForSequenceClassification")
    _, report = model_class.from_pretrained(tmp_path / "actual", output_loading_info=True)
    assert all(not found for found in report.values()), report


def test_the_layers_of_a_new_head_are_unrelated_and_of_the_right_spread() -> None:
    from distil_jax.models import EncoderConfig

    config = EncoderConfig("distilbert", 8, 300, 0, 1, 4, 4, initializer_range=0.02)
    head = task_head(config, None, "sequence", num_outputs=300)
    _, params = add_task_head(config, {"encoder": {"embeddings": {}}}, head, seed=1)
    dense, output = (params["task_head"][name]["kernel"].ravel() for name in ("dense", "output"))
    assert dense.std() == pytest.approx(0.02, rel=0.02) and abs(dense.mean()) < 0.0003
    assert abs(np.corrcoef(dense, output)[0, 1]) < 0.02


def test_a_pooler_that_is_there_stays(make_folder: Callable[..., Path]) -> None:
    folder = make_folder("BertModel")
    config, params, *_ = read_pretrained(folder)
    found, completed, _, is_new_head, *_ = read_task_model(folder, "choice", num_outputs=1)
    assert is_new_head and found.pooler
    assert same(completed["encoder"], params["encoder"])
    token = task_head(config, None, "token", ["O", "B"])
    without, completed = add_task_head(config, params, token)
    assert not without.pooler and "pooler" not in completed["encoder"]
    assert "pooler" in params["encoder"]  # what was given is not changed


@pytest.mark.parametrize(
    ("own", "labels", "problem", "fits"),
    [
        (NAMES, ("cold", "mild", "hot"), "", True),
        (NAMES, (), "single_label_classification", True),
        (NAMES, ("LABEL_0", "LABEL_1", "LABEL_2"), "", True),
        ({"num_labels": 3}, ("a", "b", "c"), "", True),
        (NAMES, ("red", "green", "blue"), "", False),
        (NAMES, ("cold", "mild", "warm"), "", False),
        (NAMES, ("cold", "hot"), "", False),
        ({"num_labels": 3, "problem_type": "regression"}, (), "multi_label_classification", False),
    ],
)
def test_when_the_folders_head_is_used(
    make_folder: Callable[..., Path], own: Any, labels: Any, problem: str, fits: bool
) -> None:
    folder = make_folder("DistilBertForSequenceClassification", **own)
    asked: Any = {"labels": labels, "problem": problem, "num_outputs": len(labels) or 3}
    config, params, head, is_new_head, *_ = read_task_model(folder, "sequence", **asked)
    _, reference, original, *_ = read_task_model(folder, "sequence")
    assert is_new_head != fits
    assert same(params["task_head"], reference["task_head"]) == fits
    assert same(params["encoder"], reference["encoder"])
    assert head.problem == (problem or original.problem)
    if fits:
        assert head.labels == (original.labels if labels in ((), ("LABEL_0", "LABEL_1", "LABEL_2")) else labels)
    else:
        assert head == task_head(config, None, "sequence", labels, problem, num_outputs=len(labels) or 3)


def test_labels_in_another_order_put_the_outputs_into_it(make_folder: Callable[..., Path]) -> None:
    """MNLI's classes come in three orders; a trained head must not be read with its classes exchanged."""
    folder = make_folder("BertForSequenceClassification", **NAMES)
    config, reference, own, *_ = read_task_model(folder, "sequence")
    found, params, head, is_new_head, *_ = read_task_model(folder, "sequence", labels=["Hot", "Cold", "Mild"])
    assert not is_new_head and head.labels == ("Hot", "Cold", "Mild")
    ids = np.arange(12, dtype=np.int32)[None]
    before = np.asarray(jax.jit(lambda: TaskModel(config, own).apply({"params": reference}, ids))())
    after = np.asarray(jax.jit(lambda: TaskModel(found, head).apply({"params": params}, ids))())
    np.testing.assert_allclose(after, before[:, [2, 0, 1]], atol=1e-6)


@pytest.mark.parametrize(
    ("architecture", "kind", "parts"),
    [
        (
            "BertForMaskedLM",
            "sequence",
            ["is BertForMaskedLM, without classifier.weight, classifier.bias", "give labels"],
        ),
        (
            "BertForTokenClassification",
            "sequence",
            ["it is BertForTokenClassification;", "BertForSequenceClassification is wanted"],
        ),
        ("DistilBertForSequenceClassification", "choice", ["num_labels = 1"]),
        ("DistilBertModel", "question", ["qa_outputs.weight", "num_labels = 2"]),
    ],
)
def test_a_head_that_is_not_there(
    make_folder: Callable[..., Path], architecture: str, kind: Any, parts: list[str]
) -> None:
    folder = make_folder(architecture)
    readers: list[Callable[[], Any]] = [lambda: read_task_model(folder, kind)]
    if kind == "sequence":  # how many outputs a new one has is not known
        readers.append(lambda: from_pretrained(folder, head=kind))
    for read in readers:
        with pytest.raises(UserError) as caught:
            read()
        message = str(caught.value)
        assert all(part in message for part in [str(folder), *parts]) and "\n" not in message


def test_a_file_without_architectures_is_known_by_its_tensors(
    make_folder: Callable[..., Path], edit_config: Callable[..., None]
) -> None:
    folder = make_folder("BertForQuestionAnswering")
    edit_config(folder, architectures=None)
    assert not read_task_model(folder, "question").is_new_head
    with pytest.raises(UserError, match="has no sequence head"):
        read_task_model(folder, "sequence")


def test_a_head_that_does_not_fit_its_config(
    make_folder: Callable[..., Path], edit_config: Callable[..., None], edit_tensors: Callable[..., None]
) -> None:
    folder = make_folder("BertForSequenceClassification", num_labels=3)
    edit_tensors(folder, lambda tensors: tensors.update({"classifier.weight": np.zeros((3, 11), np.float32)}))
    with pytest.raises(UserError, match=r"classifier\.weight is \[3, 11\], expected \[3, 12\]"):
        read_task_model(folder, "sequence")
    edit_config(folder, id2label={"0": "a", "1": "b"})
    with pytest.raises(UserError, match=r"classifier\.bias is \[3\], expected \[2\]"):
        read_task_model(folder, "sequence")
    edit_tensors(folder, lambda tensors: tensors.pop("classifier.bias"))
    edit_tensors(folder, lambda tensors: tensors.pop("bert.pooler.dense.bias"))
    with pytest.raises(UserError, match=r"missing: bert\.pooler\.dense\.bias, classifier\.bias") as caught:
        read_task_model(folder, "sequence")
    assert "\n" not in str(caught.value)


def test_a_damaged_head_that_is_not_wanted_does_not_matter(
    make_folder: Callable[..., Path], edit_tensors: Callable[..., None]
) -> None:
    folder = make_folder("DistilBertForSequenceClassification", **NAMES)
    edit_tensors(folder, lambda tensors: tensors.update({"classifier.weight": np.zeros((3, 11), np.float32)}))
    assert read_task_model(folder, "sequence", labels=["x", "y"]).is_new_head
    assert set(from_pretrained(folder, head="none")[1]) == {"embeddings", "layer_0", "layer_1"}


@pytest.mark.parametrize(("architecture", "kind"), CLASSES)
def test_auto_takes_what_the_folder_has(make_folder: Callable[..., Path], architecture: str, kind: str) -> None:
    folder = make_folder(architecture)
    module, params = from_pretrained(folder, dtype="bfloat16", attention="xla")
    assert isinstance(module, TaskModel)
    assert (module.head.kind, module.dtype, module.attention) == (kind, np.dtype("bfloat16"), "xla")
    assert params.keys() == {"encoder", "task_head"}
    # The other rooms read the encoder alone, as before.
    assert read_pretrained(folder)[1].keys() == {"encoder"}


def test_labels_give_a_new_head_and_say_so(make_folder: Callable[..., Path], caplog: pytest.LogCaptureFixture) -> None:
    folder = make_folder("BertForMaskedLM")
    with caplog.at_level(logging.WARNING):
        module, params = from_pretrained(folder, head="token", labels=["O", "B", "I"], seed=2)
    assert isinstance(module, TaskModel) and module.head.labels == ("O", "B", "I")
    assert "new, untrained" in caplog.text and str(folder) in caplog.text
    logits: Any = jax.jit(module.apply)({"params": params}, np.arange(6, dtype=np.int32)[None])
    assert logits.shape == (1, 6, 3)
    caplog.clear()
    own = make_folder("DistilBertForQuestionAnswering")
    from_pretrained(own, head="question", num_labels=2)
    assert not caplog.text
    scored, _ = from_pretrained(own, head="sequence", problem="regression")
    assert isinstance(scored, TaskModel) and scored.head.num_outputs == 1
    assert "new, untrained" in caplog.text


@pytest.mark.parametrize(("kind", "outputs"), [("question", 2), ("choice", 1)])
@pytest.mark.parametrize("architecture", ["BertForMaskedLM", "DistilBertModel", "BertForTokenClassification"])
def test_a_new_head_whose_outputs_follow_from_its_kind(
    make_folder: Callable[..., Path], caplog: pytest.LogCaptureFixture, architecture: str, kind: Any, outputs: int
) -> None:
    folder = make_folder(architecture)
    with caplog.at_level(logging.WARNING):
        module, params = from_pretrained(folder, head=kind, seed=2)
    assert isinstance(module, TaskModel) and (module.head.kind, module.head.num_outputs) == (kind, outputs)
    assert f"no such {kind} head; a new, untrained one is used" in caplog.text
    assert same(params, from_pretrained(folder, head=kind, num_labels=outputs, seed=2)[1])


@pytest.mark.parametrize(
    ("given", "named"),
    [
        ({"labels": ["a", "b"]}, "head = 'auto'"),
        ({"head": "none", "num_labels": 2}, "head = 'none'"),
        ({"head": "ranking"}, "known: auto, mlm, none, sequence, token, question, choice"),
        ({"head": "sequence", "num_labels": 0}, "num_labels = 0"),
        ({"head": "sequence", "num_labels": 2.0}, "num_labels = 2.0"),
        ({"head": "sequence", "labels": "ab"}, 'is the text "ab"'),
        ({"head": "sequence", "labels": ["a", "b"], "seed": -1}, "seed = -1"),
    ],
)
def test_what_from_pretrained_refuses(make_folder: Callable[..., Path], given: dict[str, Any], named: str) -> None:
    with pytest.raises(UserError) as caught:
        from_pretrained(make_folder("DistilBertModel"), **given)
    assert named in str(caught.value) and "\n" not in str(caught.value)


def test_a_flax_file_of_transformers_4(make_folder: Callable[..., Path]) -> None:
    """Kernels [in, out] under dotted paths, as FlaxBertForTokenClassification saved them."""
    import flax.serialization

    folder = make_folder("BertForTokenClassification", **NAMES)
    _, expected, head, *_ = read_task_model(folder, "token")
    tree: dict[str, Any] = {}
    for name, values in tensors_of(folder).items():
        *path, last = name.split(".")
        norm, table = "LayerNorm" in name, "_embeddings" in name
        last = {"weight": "scale" if norm else "embedding" if table else "kernel"}.get(last, last)
        node = tree
        for part in path:
            node = node.setdefault(part, {})
        node[last] = np.ascontiguousarray(values.T) if last == "kernel" else values
    (folder / "model.safetensors").unlink()
    (folder / "flax_model.msgpack").write_bytes(flax.serialization.to_bytes(tree))
    found = read_task_model(folder, "token")
    assert found.head == head and same(found.params, expected)


def test_parameters_without_their_head_are_not_written(make_folder: Callable[..., Path], tmp_path: Path) -> None:
    config, params, head, *_ = read_task_model(make_folder("BertForSequenceClassification", **NAMES), "sequence")
    with pytest.raises(UserError, match=r"unexpected: task_head/.*give its head"):
        save_pretrained(tmp_path / "actual", config, params)
    with pytest.raises(UserError, match=r"task_head/output/kernel is \[12, 3\], expected \[12, 2\]"):
        save_pretrained(
            tmp_path / "actual", config, params, head=dataclasses.replace(head, labels=("a", "b"), num_outputs=2)
        )
    body = {name: value for name, value in params["encoder"].items() if name != "pooler"}
    with pytest.raises(UserError, match="missing: encoder/pooler/kernel"):
        save_pretrained(tmp_path / "actual", config, {**params, "encoder": body}, head=head)
    assert not (tmp_path / "actual").exists()
    token = TaskHead("token", labels=head.labels, num_outputs=3)
    assert not any("pooler" in name for name in tensors_from_params(config, params, token))
