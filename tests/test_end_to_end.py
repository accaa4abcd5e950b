"""Text in, a small model out that PyTorch loads: every command once, on a tiny world."""

# pyright: reportOptionalMemberAccess=false, reportArgumentType=false, reportCallIssue=false, reportAttributeAccessIssue=false

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from distil_jax.cli import main


def test_text_to_a_student_that_pytorch_loads(
    tiny_inputs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import torch
    from transformers import AutoTokenizer, DistilBertForMaskedLM

    monkeypatch.setenv("JAX_COMPILATION_CACHE_DIR", "")
    shared = ("--config", str(tiny_inputs / "config.toml"), "--corpus.folder", str(tmp_path / "corpus"))
    teacher, student = tmp_path / "teacher", tmp_path / "student"
    assert main(["prepare", *shared]) == 0
    assert main(["pretrain", *shared, "--run.output", f"{teacher}_run"]) == 0
    assert main(["export", f"{teacher}_run", "--output", str(teacher)]) == 0
    assert main(["distill", *shared, "--run.output", f"{student}_run", "--teacher.path", str(teacher)]) == 0
    assert main(["export", f"{student}_run", "--output", str(student)]) == 0
    measured = ["--corpus", str(tmp_path / "corpus" / "validation"), "--json", str(tmp_path / "measures.json")]
    assert main(["evaluate", str(teacher), str(student), *measured, "--teacher", str(teacher)]) == 0
    loaded: Any = DistilBertForMaskedLM.from_pretrained(student, output_loading_info=True)
    model, loading = loaded
    assert not any(loading.values()), loading
    ids = AutoTokenizer.from_pretrained(student)("the cat sat on the [MASK].", return_tensors="pt")
    assert torch.isfinite(model(**ids).logits).all()
    assert '"agreement": 1.0' in (tmp_path / "measures.json").read_text()  # of the teacher with itself


def _bpe(texts: Path, folder: Path) -> Any:
    """RoBERTa's tokenizer with a byte-level BPE of the tiny texts."""
    import transformers
    from tokenizers import ByteLevelBPETokenizer

    bpe = ByteLevelBPETokenizer()
    bpe.train([str(texts)], vocab_size=340, special_tokens=["<s>", "<pad>", "</s>", "<unk>", "<mask>"])
    bpe.save_model(str(folder))
    return transformers.RobertaTokenizer(*(str(folder / name) for name in ("vocab.json", "merges.txt")))


def _wordpiece(texts: Path, special: str) -> dict[str, int]:
    """A vocabulary of the special tokens and the letters of the tiny texts."""
    letters = sorted({letter for letter in texts.read_text(encoding="utf-8") if not letter.isspace()})
    tokens = [*special.split(), *letters, *(f"##{letter}" for letter in letters)]
    return {token: number for number, token in enumerate(tokens)}


def _mpnet(texts: Path, _: Path) -> Any:
    import transformers

    return transformers.MPNetTokenizer(vocab=_wordpiece(texts, "<s> <pad> </s> [UNK] <mask>"))


def _electra(texts: Path, _: Path) -> Any:
    import transformers

    return transformers.BertTokenizer(vocab=_wordpiece(texts, "[PAD] [UNK] [CLS] [SEP] [MASK]"))


FAMILIES = {
    "Roberta": (_bpe, {"type_vocab_size": 1}),
    "MPNet": (_mpnet, {}),
    "Electra": (_electra, {"embedding_size": 8}),
}


@pytest.fixture(params=["Roberta", *(pytest.param(name, marks=pytest.mark.slow) for name in ("MPNet", "Electra"))])
def teacher(request: pytest.FixtureRequest, tiny_inputs: Path, tmp_path: Path) -> Path:
    """A random model of a family as transformers saves it, with its tokenizer."""
    import torch
    import transformers

    make_tokenizer, settings = FAMILIES[request.param]
    tokenizer = make_tokenizer(tiny_inputs / "text" / "train.txt", tmp_path)
    torch.manual_seed(0)
    sizes: dict[str, Any] = {"hidden_size": 16, "num_attention_heads": 2, "intermediate_size": 24}
    config = getattr(transformers, f"{request.param}Config")(
        vocab_size=len(tokenizer),
        num_hidden_layers=2,
        max_position_embeddings=66,
        layer_norm_eps=1e-5,
        initializer_range=0.3,
        **sizes,
        **settings,
    )
    getattr(transformers, f"{request.param}ForMaskedLM")(config).save_pretrained(tmp_path / request.param)
    tokenizer.save_pretrained(tmp_path / request.param)
    return tmp_path / request.param


def test_a_model_of_a_family_becomes_a_student_and_a_classifier_of_pairs(
    teacher: Path, tiny_inputs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import numpy as np
    import torch
    import transformers

    from distil_jax.hf import from_pretrained, load_tokenizer

    monkeypatch.setenv("JAX_COMPILATION_CACHE_DIR", "")
    shared = ("--config", str(tiny_inputs / "config.toml"), "--corpus.folder", str(tmp_path / "corpus"))
    shared = (*shared, "--corpus.tokenizer", str(teacher))
    student, classifier = tmp_path / "student", tmp_path / "classifier"
    assert main(["prepare", *shared]) == 0
    assert main(["distill", *shared, "--run.output", f"{student}_run", "--teacher.path", str(teacher)]) == 0
    assert main(["export", f"{student}_run", "--output", str(student)]) == 0
    loaded: Any = transformers.AutoModelForMaskedLM.from_pretrained(student, output_loading_info=True)
    assert not any(loading := loaded[1].values()), loading
    assert (type(loaded[0]).__name__, loaded[0].config.num_hidden_layers) == (f"{teacher.name}ForMaskedLM", 1)

    lines = ["first,second,label", *(f"the cat {i},a dog {i % 3},{'same' if i % 2 else 'other'}" for i in range(16))]
    (tmp_path / "pairs.csv").write_text("\n".join(lines) + "\n", encoding="utf-8")
    task = ("--task.name", "classification", "--task.train", str(tmp_path / "pairs.csv"), "--task.max-length", "40")
    columns = ("--task.validation", str(tmp_path / "pairs.csv"), "--task.text", "first", "--task.pair", "second")
    size = ("--training.batch-size", "8", "--training.micro-batch-size", "8", "--training.epochs", "1")
    run = ("--model.initial", str(student), "--run.output", f"{classifier}_run", "--parallel.devices", "1")
    assert main(["finetune", *task, *columns, *size, *run]) == 0
    assert main(["export", f"{classifier}_run", "--output", str(classifier)]) == 0
    loaded = transformers.AutoModelForSequenceClassification.from_pretrained(classifier, output_loading_info=True)
    assert not any(loading := loaded[1].values()), loading
    pair = ("the cat sat", "a dog ran home")
    inputs = transformers.AutoTokenizer.from_pretrained(classifier)(*pair, return_tensors="pt")
    with torch.no_grad():
        expected = loaded[0].eval()(**inputs).logits.numpy()
    tokenizer = load_tokenizer(classifier)
    pieces = [tokenizer.backend.encode(text, add_special_tokens=False).ids for text in pair]
    ids, types = tokenizer.bracket(*pieces)
    assert [ids] == inputs.input_ids.tolist()
    module, params = from_pretrained(classifier)
    segments = {"token_type_ids": np.array([types], np.int32)} if "token_type_ids" in inputs else {}
    found = module.apply({"params": params}, np.array([ids], np.int32), **segments)
    np.testing.assert_allclose(found, expected, atol=1e-5)
