"""What fits a configuration, what may be left out, and what is refused with every name."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.numpy
import torch

from distil_jax.errors import UserError
from distil_jax.hf import from_pretrained, read_pretrained, read_task_model
from distil_jax.hf.write import tensors_from_params


@pytest.fixture
def edit_tensors() -> Callable[..., None]:
    """A function (folder, change) that rewrites model.safetensors with what change(tensors) leaves in the dict."""

    def edit(folder: Path, change: Callable[[dict[str, np.ndarray]], Any]) -> None:
        path = folder / "model.safetensors"
        tensors = {name: np.array(values) for name, values in safetensors.numpy.load_file(path).items()}
        change(tensors)
        safetensors.numpy.save_file(tensors, path, metadata={"format": "pt"})

    return edit


def _flat(tree: dict[str, Any], prefix: str = ""):
    for name, value in tree.items():
        if isinstance(value, dict):
            yield from _flat(value, f"{prefix}{name}/")
        else:
            yield f"{prefix}{name}", value


def _same(left: dict[str, Any], right: dict[str, Any]) -> bool:
    left, right = dict(_flat(left)), dict(_flat(right))
    return left.keys() == right.keys() and all(np.array_equal(left[name], right[name]) for name in left)


@pytest.mark.parametrize(
    "architecture",
    [
        *("BertForMaskedLM", "BertModel", "DistilBertForMaskedLM", "DistilBertModel", "RobertaForMaskedLM"),
        *("MPNetForMaskedLM", "MPNetModel", "ElectraForMaskedLM", "ElectraModel"),
    ],
)
def test_there_and_back_is_byte_identical(make_folder: Callable[..., Path], architecture: str) -> None:
    folder = make_folder(architecture)
    reference = safetensors.numpy.load_file(folder / "model.safetensors")
    actual = tensors_from_params(*read_pretrained(folder)[:2])
    assert actual.keys() == reference.keys()
    for name, values in reference.items():
        assert (actual[name].tobytes(), actual[name].shape) == (values.tobytes(), values.shape), name
        assert actual[name].flags.c_contiguous


def test_a_discriminator_is_read_as_an_encoder(make_folder: Callable[..., Path]) -> None:
    folder = make_folder("ElectraForPreTraining", embedding_size=7)
    model = read_pretrained(folder)
    assert (model.params.keys(), model.notes, model.config.embedding_size) == ({"encoder"}, (), 7)
    model = read_pretrained(folder, "mlm")
    assert model.is_new_head
    assert model.params["mlm_head"]["transform"]["kernel"].shape == (12, 7)


def test_the_real_minilm_there_and_back(minilm: Path) -> None:
    reference = safetensors.numpy.load_file(minilm / "model.safetensors")
    reference.pop("embeddings.position_ids", None)
    actual = tensors_from_params(*read_pretrained(minilm)[:2])
    assert actual.keys() == reference.keys()
    assert all(actual[name].tobytes() == values.tobytes() for name, values in reference.items())


def test_kernels_are_transposed_weights(make_folder: Callable[..., Path], make_model: Callable[..., Any]) -> None:
    _, params, *_ = read_pretrained(make_folder("BertForMaskedLM"))
    layer = make_model("BertForMaskedLM").bert.encoder.layer[1]
    kernel = params["encoder"]["layer_1"]["ffn_in"]["kernel"]
    assert kernel.shape == (12, 20)
    np.testing.assert_array_equal(kernel, layer.intermediate.dense.weight.detach().numpy().T)


def test_old_layer_norm_names(make_folder: Callable[..., Path], edit_tensors: Callable[..., None]) -> None:
    folder = make_folder("BertForMaskedLM")
    _, expected, *_ = read_pretrained(folder)

    def age(tensors: dict[str, np.ndarray]) -> None:
        for name in [name for name in tensors if "LayerNorm" in name]:
            old = name.replace("LayerNorm.weight", "LayerNorm.gamma").replace("LayerNorm.bias", "LayerNorm.beta")
            tensors[old] = tensors.pop(name)

    edit_tensors(folder, age)
    assert _same(read_pretrained(folder)[1], expected)


@pytest.mark.parametrize("architecture", ["BertModel", "DistilBertModel"])
def test_with_and_without_prefix(
    make_folder: Callable[..., Path], edit_tensors: Callable[..., None], architecture: str
) -> None:
    folder = make_folder(architecture)
    _, expected, *_ = read_pretrained(folder)
    prefix = "bert." if architecture == "BertModel" else "distilbert."

    def add_prefix(tensors: dict[str, np.ndarray]) -> None:
        for name in list(tensors):
            tensors[prefix + name] = tensors.pop(name)

    edit_tensors(folder, add_prefix)
    assert _same(read_pretrained(folder)[1], expected)


def test_other_heads_and_buffers_are_left_out(
    make_folder: Callable[..., Path], edit_tensors: Callable[..., None]
) -> None:
    folder = make_folder("BertForMaskedLM")
    _, expected, *_ = read_pretrained(folder)
    edit_tensors(
        folder,
        lambda tensors: tensors.update(
            {
                "bert.embeddings.position_ids": np.arange(24)[None],
                "bert.pooler.dense.weight": np.zeros((12, 12), np.float32),
                "bert.pooler.dense.bias": np.zeros(12, np.float32),
                "cls.seq_relationship.weight": np.zeros((2, 12), np.float32),
                "cls.seq_relationship.bias": np.zeros(2, np.float32),
                "classifier.weight": np.zeros((3, 12), np.float32),
            }
        ),
    )
    assert _same(read_pretrained(folder)[1], expected)
    config, params, *_ = read_pretrained(folder, "none")
    assert config.pooler
    assert set(params) == {"encoder"}
    assert set(params["encoder"]["pooler"]) == {"kernel", "bias"}


@pytest.mark.parametrize(
    "architecture", ["BertForPreTraining", "BertForSequenceClassification", "DistilBertForQuestionAnswering"]
)
def test_checkpoints_of_other_tasks(make_folder: Callable[..., Path], architecture: str) -> None:
    """Models with other heads give the encoder, and the MLM head where there is one."""
    folder = make_folder(architecture)
    _, params, *_ = read_pretrained(folder)
    assert ("mlm_head" in params) == (architecture == "BertForPreTraining")


def test_head_choice(make_folder: Callable[..., Path]) -> None:
    folder = make_folder("DistilBertForMaskedLM")
    assert set(read_pretrained(folder)[1]) == set(read_pretrained(folder, "mlm")[1]) == {"encoder", "mlm_head"}
    assert set(read_pretrained(folder, "none")[1]) == {"encoder"}
    with pytest.raises(UserError, match="head = 'both'"):
        read_pretrained(folder, "both")  # pyright: ignore[reportArgumentType]


@pytest.mark.parametrize("architecture", ["BertModel", "DistilBertForSequenceClassification"])
def test_a_new_head_where_one_is_wanted(
    make_folder: Callable[..., Path], caplog: pytest.LogCaptureFixture, architecture: str
) -> None:
    folder = make_folder(architecture)
    model, again, other = (read_pretrained(folder, "mlm", seed=seed) for seed in (3, 3, 4))
    assert model.is_new_head and not model.config.pooler and not read_pretrained(folder).is_new_head
    assert _same(model.params, again.params) and not _same(model.params, other.params)
    encoder = read_pretrained(folder, "none").params["encoder"]
    encoder.pop("pooler", None)
    assert _same(model.params["encoder"], encoder)
    head = model.params["mlm_head"]
    assert head["transform"]["kernel"].std() == pytest.approx(0.4, rel=0.4) and not head["bias"].any()
    assert (head["norm"]["scale"] == 1).all()
    with caplog.at_level(logging.WARNING, logger="distil_jax"):
        module, params = from_pretrained(folder, head="mlm", seed=3)
    assert type(module).__name__ == "MaskedLM" and _same(params, model.params)
    assert "new" in caplog.text and "mlm head" in caplog.text and str(folder) in caplog.text


def test_half_a_head_is_refused(make_folder: Callable[..., Path], edit_tensors: Callable[..., None]) -> None:
    folder = make_folder("DistilBertForMaskedLM")
    edit_tensors(folder, lambda tensors: [tensors.pop(f"vocab_transform.{name}") for name in ("weight", "bias")])
    with pytest.raises(UserError, match=r"missing: vocab_transform\.weight, vocab_transform\.bias"):
        read_pretrained(folder, "mlm")


@pytest.mark.parametrize("architecture", ["BertForMaskedLM", "BertModel"])
def test_tensors_of_unknown_heads_are_left_out_with_one_note(
    make_folder: Callable[..., Path],
    edit_tensors: Callable[..., None],
    caplog: pytest.LogCaptureFixture,
    architecture: str,
) -> None:
    """TinyBERT's fit_denses, adapters' heads: what is missing is an error, what is extra is a note."""
    folder = make_folder(architecture)
    _, expected, *_, notes = read_pretrained(folder)
    assert notes == ()
    extra = {"fit_denses.0.weight": np.zeros((2, 12), np.float32), "heads.ner.1.bias": np.zeros(3, np.float32)}
    edit_tensors(folder, lambda tensors: tensors.update(extra))
    model = read_pretrained(folder)
    assert _same(model.params, expected)
    (note,) = model.notes
    assert all(name in note for name in (*extra, str(folder))) and "\n" not in note
    assert read_pretrained(folder, "none").notes == model.notes
    assert read_task_model(folder, "choice", num_outputs=1).notes == model.notes
    with caplog.at_level(logging.WARNING, logger="distil_jax"):
        from_pretrained(folder)
    assert note in caplog.text


def test_a_config_without_model_type_is_noted(
    make_folder: Callable[..., Path], edit_config: Callable[..., None]
) -> None:
    folder = make_folder("BertForMaskedLM")
    expected = read_pretrained(folder)
    edit_config(folder, model_type=None, architectures=None)
    model = read_pretrained(folder)
    assert model[:2] == (expected.config, model.params) and _same(model.params, expected.params)
    (note,) = model.notes
    assert "model_type" in note and "bert" in note and str(folder / "config.json") in note


def test_every_wrong_tensor_is_named_in_one_line(
    make_folder: Callable[..., Path], edit_tensors: Callable[..., None]
) -> None:
    folder = make_folder("BertForMaskedLM")

    def spoil(tensors: dict[str, np.ndarray]) -> None:
        del tensors["bert.encoder.layer.0.output.dense.bias"]
        del tensors["cls.predictions.bias"]
        tensors["bert.encoder.layer.0.adapter.weight"] = np.zeros(1, np.float32)
        tensors["lm_head.weight"] = np.zeros(1, np.float32)
        tensors["bert.encoder.layer.1.intermediate.dense.weight"] = np.zeros((12, 20), np.float32)
        tensors["bert.embeddings.LayerNorm.bias"] = np.zeros(13, np.float32)
        tensors["bert.embeddings.LayerNorm.weight"] = np.zeros(12, np.int32)

    edit_tensors(folder, spoil)
    with pytest.raises(UserError) as caught:
        read_pretrained(folder)
    message = str(caught.value)
    assert "\n" not in message
    assert "missing: bert.encoder.layer.0.output.dense.bias, cls.predictions.bias;" in message
    assert "adapter" not in message and "lm_head" not in message
    assert "bert.encoder.layer.1.intermediate.dense.weight is [12, 20], expected [20, 12]" in message
    assert "bert.embeddings.LayerNorm.bias is [13], expected [12]" in message
    assert "not a float tensor: bert.embeddings.LayerNorm.weight is int32" in message


def test_long_lists_are_counted(make_folder: Callable[..., Path], edit_tensors: Callable[..., None]) -> None:
    folder = make_folder("BertModel")
    edit_tensors(folder, lambda t: t.update({f"strange.{i:02}": np.zeros(1, np.float32) for i in range(25)}))
    (note,) = read_pretrained(folder).notes
    assert all(f"strange.{i:02}" in note for i in range(20))
    assert "and 5 more" in note


def test_a_larger_config_than_the_file_is_refused_before_anything_is_allocated(
    make_folder: Callable[..., Path], edit_config: Callable[..., None]
) -> None:
    folder = make_folder("BertForMaskedLM")
    edit_config(folder, hidden_size=60000, vocab_size=4_000_000, num_hidden_layers=1000, intermediate_size=240000)
    with pytest.raises(UserError, match=r"missing: .* and \d+ more; wrong shape: .*expected \[4000000, 60000\]"):
        read_pretrained(folder)


def test_tied_copies(make_folder: Callable[..., Path], edit_tensors: Callable[..., None]) -> None:
    folder = make_folder("BertForMaskedLM")
    _, expected, *_ = read_pretrained(folder)
    word = expected["encoder"]["embeddings"]["word"]["embedding"].copy()
    bias = expected["mlm_head"]["bias"].copy()
    copies = {"cls.predictions.decoder.weight": word, "cls.predictions.decoder.bias": bias}
    edit_tensors(folder, lambda tensors: tensors.update(copies))
    assert _same(read_pretrained(folder)[1], expected)
    edit_tensors(folder, lambda tensors: tensors.pop("cls.predictions.bias"))
    assert _same(read_pretrained(folder)[1], expected)
    edit_tensors(folder, lambda tensors: tensors.update({"cls.predictions.decoder.weight": word[:-1].copy()}))
    with pytest.raises(UserError, match=r"wrong shape: cls\.predictions\.decoder\.weight"):
        read_pretrained(folder)


@pytest.mark.parametrize(
    ("architecture", "name"),
    [
        ("BertForMaskedLM", "cls.predictions.decoder.weight"),
        ("DistilBertForMaskedLM", "vocab_projector.weight"),
        ("RobertaForMaskedLM", "lm_head.decoder.weight"),
    ],
)
def test_an_untied_head_is_refused(
    make_folder: Callable[..., Path], edit_tensors: Callable[..., None], architecture: str, name: str
) -> None:
    folder = make_folder(architecture)
    word = read_pretrained(folder)[1]["encoder"]["embeddings"]["word"]["embedding"] * np.float32(1.0001)
    edit_tensors(folder, lambda tensors: tensors.update({name: word}))
    with pytest.raises(UserError, match=rf"{name} differs from .*word_embeddings"):
        read_pretrained(folder)
    assert set(read_pretrained(folder, "none")[1]) == {"encoder"}


def test_untied_by_config_without_a_decoder(make_folder: Callable[..., Path], edit_config: Callable[..., None]) -> None:
    folder = make_folder("DistilBertForMaskedLM")
    edit_config(folder, tie_word_embeddings=False)
    with pytest.raises(UserError, match=r"tie_word_embeddings.*vocab_projector\.weight"):
        read_pretrained(folder)


def test_two_names_of_one_tensor(make_folder: Callable[..., Path], edit_tensors: Callable[..., None]) -> None:
    folder = make_folder("BertModel")
    name = "embeddings.LayerNorm.weight"
    edit_tensors(folder, lambda tensors: tensors.update({f"bert.{name}": tensors[name] + 1}))
    with pytest.raises(UserError, match="two names of one tensor"):
        read_pretrained(folder)


def test_no_remote_code(make_folder: Callable[..., Path], edit_config: Callable[..., None], tmp_path: Path) -> None:
    """A folder with code of its own is read without it."""
    folder = make_folder("DistilBertModel")
    (folder / "evil.py").write_text(f"open({str(tmp_path / 'was_run')!r}, 'w')")
    edit_config(folder, auto_map={"AutoModel": "evil.Model", "AutoConfig": "evil.Config"})
    from_pretrained(folder)
    assert not (tmp_path / "was_run").exists()


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_from_pretrained(make_folder: Callable[..., Path], dtype: str) -> None:
    folder = make_folder("BertForMaskedLM")
    module, params = from_pretrained(folder, dtype=dtype, attention="xla")
    ids = np.arange(8, dtype=np.int32)[None]
    logits = np.asarray(module.apply({"params": params}, ids))
    assert (module.attention, str(np.dtype(module.dtype)), logits.shape) == ("xla", dtype, (1, 8, 50))
    assert {value.dtype for _, value in _flat(params)} == {np.dtype(np.float32)}
    encoder, params = from_pretrained(folder, head="none", dtype=dtype)
    assert type(encoder).__name__ == "Encoder"
    assert np.asarray(encoder.apply({"params": params}, ids)).shape == (1, 8, 12)
    with pytest.raises(UserError, match="int8"):
        from_pretrained(folder, dtype="int8")


def test_donating_mapped_parameters_leaves_the_file_alone(make_folder: Callable[..., Path]) -> None:
    """JAX may alias NumPy memory on the CPU, and a donated buffer is written to; a mapped page must not be."""
    import jax

    folder = make_folder("DistilBertModel")
    before = (folder / "model.safetensors").read_bytes()
    _, params = from_pretrained(folder)
    double = jax.jit(lambda tree: jax.tree.map(lambda x: 2 * x, tree), donate_argnums=0)
    doubled = double(jax.device_put(params))
    np.testing.assert_array_equal(
        doubled["embeddings"]["norm"]["scale"], 2 * np.asarray(params["embeddings"]["norm"]["scale"])
    )
    assert (folder / "model.safetensors").read_bytes() == before


def test_parameters_that_do_not_fit_are_not_written(make_folder: Callable[..., Path]) -> None:
    config, params, *_ = read_pretrained(make_folder("DistilBertForMaskedLM"))
    params["encoder"]["extra"] = np.zeros(1)
    del params["mlm_head"]["bias"]
    params["encoder"]["layer_0"]["ffn_in"]["kernel"] = np.zeros((20, 12))
    with pytest.raises(UserError) as caught:
        tensors_from_params(config, params)
    for part in ("missing: mlm_head/bias", "unexpected: encoder/extra", "encoder/layer_0/ffn_in/kernel is [20, 12]"):
        assert part in str(caught.value)


def test_the_goldens_of_the_original(shared: Path) -> None:
    """Folders saved by the original system's own code."""
    root = shared / "goldens" / "triple_loss"
    for name, family in (("teacher", "bert"), ("student", "distilbert")):
        config, params, *_ = read_pretrained(root / name)
        assert (config.family, "mlm_head" in params) == (family, True)
        reference = safetensors.numpy.load_file(root / name / "model.safetensors")
        actual = tensors_from_params(config, params)
        assert all(reference[key].tobytes() == values.tobytes() for key, values in actual.items())
        assert json.loads((root / name / "config.json").read_text())["vocab_size"] == config.vocab_size


def test_torch_is_not_needed() -> None:
    import subprocess
    import sys

    heavy = ("torch", "transformers", "jax", "flax", "tokenizers", "safetensors", "huggingface_hub")
    code = f"import sys, distil_jax.hf; print([m for m in {heavy} if m in sys.modules])"
    assert torch.__version__  # installed here, so that the check can fail
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_reading_and_tokenizing_never_import_torch(make_folder: Callable[..., Path], minilm: Path) -> None:
    import subprocess
    import sys

    code = (
        "import sys; from distil_jax.hf import from_pretrained, load_tokenizer; "
        f"from_pretrained({str(make_folder('BertForMaskedLM'))!r}); load_tokenizer({str(minilm)!r}); "
        "print('torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"
