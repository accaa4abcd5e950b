"""A text gets the ids that transformers gives it, for every layout of a tokenizer's folder, before and after saving."""

from __future__ import annotations

import dataclasses
import itertools
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import transformers
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from transformers import AutoTokenizer

from distil_jax.errors import UserError
from distil_jax.hf import Tokenizer, load_tokenizer, save_tokenizer

TRICKY = [
    "Plain words, punctuated; don't!",
    "Café naïve Ångström ÉCOLE ﬁn",
    "e\u0301 combining \u0130stanbul straße ΣΊΣΥΦΟΣ",
    "中文字符 and 日本語テキスト 한국어",
    "emoji 😀👩‍👩‍👧 🏳️‍🌈 family",
    "control \x00\x01\x07 tab\tnew\nline \u200b zero \ufeff bom \u00ad soft \ufffd",
    "العربية עברית हिन्दी ไทย",
    "unfriendliest" * 9,
    "x" * 101,
    "$1,234.56 #tag @user http://a.b/c?d=e&f",
    "a [CLS] b [MASK]c [PAD] <mask> d</s>",
    "",
    " \u3000\u00a0 ",
]
BASIC = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
Files = dict[str, Any]
Maker = Callable[[Files], Path]


@pytest.fixture
def vocab(shared: Path) -> Path:
    return shared / "data" / "vocab"


@pytest.fixture
def folder(tmp_path: Path) -> Maker:
    """A function {name: text, JSON or path of a file} -> the folder that holds these files."""

    def make(files: Files) -> Path:
        _write(tmp_path / "model", files)
        return tmp_path / "model"

    return make


def _write(folder: Path, files: Files) -> None:
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    for name, content in files.items():
        if isinstance(content, Path):
            shutil.copy(content, folder / name)
        else:
            (folder / name).write_text(content if isinstance(content, str) else json.dumps(content), encoding="utf-8")


def _assert_same_as_transformers(tokenizer: Tokenizer, folder: Path, texts: list[str] = TRICKY) -> None:
    reference = AutoTokenizer.from_pretrained(folder)
    assert {*tokenizer.tokens()} - {""} == {*reference.get_vocab()} - {""}
    for text in texts:
        expected = reference(text, truncation=False).input_ids
        assert tokenizer.backend.encode(text).ids == expected, text
        ids = tokenizer.backend.encode(text, add_special_tokens=False).ids
        assert tokenizer.bracket(ids)[0] == expected
    assert tokenizer.num_special() == reference.num_special_tokens_to_add(pair=False)
    assert tokenizer.num_special(pair=True) == reference.num_special_tokens_to_add(pair=True)
    first, second = (tokenizer.backend.encode(text, add_special_tokens=False).ids for text in ("one two", "three"))
    pair = reference("one two", "three", return_token_type_ids=True)
    assert tokenizer.bracket(first, second) == (pair.input_ids, pair.token_type_ids)
    one = reference("one two", return_token_type_ids=True)
    assert tokenizer.bracket(first) == (one.input_ids, one.token_type_ids)
    for role in ("pad", "unk", "cls", "sep", "mask"):
        assert getattr(reference, f"{role}_token_id") in (None, getattr(tokenizer, f"{role}_id"))


def _assert_saved_as_loaded(tokenizer: Tokenizer, folder: Path, texts: list[str] = TRICKY) -> None:
    save_tokenizer(folder, tokenizer, max_length=77)
    assert load_tokenizer(folder).sha256 == tokenizer.sha256
    _assert_same_as_transformers(tokenizer, folder, texts)
    assert AutoTokenizer.from_pretrained(folder).model_max_length == 77


# Real vocabularies


@pytest.mark.parametrize("family", ["bert", "distilbert"])
@pytest.mark.parametrize("name", ["uncased", "cased"])
def test_a_bare_vocabulary(vocab: Path, tmp_path: Path, family: str, name: str) -> None:
    path = vocab / f"bert-base-{name}-vocab.txt"
    tokenizer = load_tokenizer(path)
    assert ("hello" in tokenizer.backend.encode("Hello").tokens) == (name == "uncased")
    save_tokenizer(tmp_path, tokenizer, family=family)
    _assert_same_as_transformers(tokenizer, tmp_path)
    assert ("token_type_ids" in AutoTokenizer.from_pretrained(tmp_path)("a")) == (family == "bert")
    assert (tmp_path / "vocab.txt").read_bytes().rstrip() == path.read_bytes().rstrip()
    assert load_tokenizer(tmp_path).sha256 == tokenizer.sha256


def test_the_real_minilm(minilm: Path, tmp_path: Path) -> None:
    tokenizer = load_tokenizer(minilm)
    assert (tokenizer.vocab_size, tokenizer.special_ids) == (30522, (0, 100, 101, 102, 103))
    _assert_same_as_transformers(tokenizer, minilm)
    _assert_saved_as_loaded(tokenizer, tmp_path)


def test_vocabulary_and_json_of_one_model_are_the_same(vocab: Path) -> None:
    """This tokenizer.json cuts and pads to 128 tokens."""
    bare = load_tokenizer(vocab / "bert-base-uncased-vocab.txt")
    full = load_tokenizer(vocab / "bert-base-uncased-tokenizer.json")
    assert bare.sha256 == full.sha256
    assert full.backend.encode("word " * 300).ids == bare.backend.encode("word " * 300).ids
    assert len(full.backend.encode("word").ids) == 3


@pytest.mark.parametrize("config", [{}, {"config.json": {"model_type": "roberta"}}])
def test_roberta(vocab: Path, tmp_path: Path, folder: Maker, config: Files) -> None:
    files = {"vocab.json": vocab / "roberta-base-vocab.json", "merges.txt": vocab / "roberta-base-merges.txt"}
    tokenizer = load_tokenizer(folder(files | config))
    assert tokenizer.special_ids == (0, 1, 2, 3, 50264)
    if config:
        _assert_same_as_transformers(tokenizer, folder(files | config))
    assert tokenizer.bracket([5], [6, 7]) == ([0, 5, 2, 2, 6, 7, 2], [0] * 7)
    save_tokenizer(tmp_path / "saved", tokenizer, family="roberta")
    _assert_same_as_transformers(tokenizer, tmp_path / "saved")
    assert load_tokenizer(tmp_path / "saved").sha256 == tokenizer.sha256


def test_a_multilingual_vocabulary(tmp_path: Path, folder: Maker) -> None:
    """As bert-base-multilingual-cased has it: 119,547 tokens, case and accents kept, Chinese characters one by one."""
    letters = [chr(i) for start, end in ((0x21, 0x250), (0x370, 0x600), (0x4E00, 0x9FA6)) for i in range(start, end)]
    words = ["Plain", "words", "Caf\u00e9", "na", "##\u00efve", "\u65e5\u672c", "##\u8a9e", "stra\u00dfe"]
    tokens = ["[PAD]", *(f"[unused{i}]" for i in range(1, 100)), *BASIC[1:], *words, *letters]
    tokens += [f"##{letter}" for letter in letters]
    tokens += [f"word{i}" for i in range(119_547 - len(tokens))]
    files = {"vocab.txt": "\n".join(tokens) + "\n", "config.json": {"model_type": "bert"}}
    tokenizer = load_tokenizer(folder({**files, "tokenizer_config.json": {"do_lower_case": False}}))
    assert (tokenizer.vocab_size, tokenizer.special_ids) == (119_547, (0, 100, 101, 102, 103))
    assert tokenizer.backend.encode("Caf\u00e9 \u65e5\u672c", add_special_tokens=False).tokens == [
        *("Caf\u00e9", "\u65e5", "\u672c")
    ]
    _assert_same_as_transformers(tokenizer, tmp_path / "model")
    _assert_saved_as_loaded(tokenizer, tmp_path / "saved")


@pytest.mark.parametrize("named", ["config.json", "tokenizer_config.json"])
def test_mpnet(tmp_path: Path, folder: Maker, named: str) -> None:
    """WordPiece as BERT's, with RoBERTa's special tokens: <s> a </s></s> b </s>."""
    lines = ["<s>", "<pad>", "</s>", "[UNK]", "plain", "words", "one", "two", "three", "##s", *"abcdef.,!;'", "<mask>"]
    said = {"model_type": "mpnet"} if named == "config.json" else {"tokenizer_class": "MPNetTokenizer"}
    tokenizer = load_tokenizer(folder({"vocab.txt": "\n".join(lines) + "\n", named: said}))
    assert tokenizer.special_ids == (0, 1, 2, 3, len(lines) - 1)
    assert tokenizer.bracket([6], [7, 8]) == ([0, 6, 2, 2, 7, 8, 2], [0] * 7)
    _assert_same_as_transformers(tokenizer, tmp_path / "model")
    save_tokenizer(tmp_path / "saved", tokenizer, family="mpnet")
    _assert_same_as_transformers(tokenizer, tmp_path / "saved")
    assert load_tokenizer(tmp_path / "saved").sha256 == tokenizer.sha256
    assert "token_type_ids" not in AutoTokenizer.from_pretrained(tmp_path / "saved")("one", "two")


def _unigram() -> Any:
    """A tokenizer of transformers as XLM-R's are, of a few pieces."""
    pieces = [*(("<s>", 0.0), ("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0)), *((x, -9.0) for x in "\u2581abcdehlorst")]
    scored = [("\u2581the", -2.0), ("\u2581cat", -3.0), ("s", -4.0), ("\u2581hel", -4.0), ("lo", -4.5), ("<mask>", 0.0)]
    return transformers.XLMRobertaTokenizer(vocab=[*dict([*pieces, *scored]).items()])


@pytest.mark.parametrize("config", [{}, {"config.json": {"model_type": "xlm-roberta"}}])
def test_unigram(tmp_path: Path, config: Files) -> None:
    _write(tmp_path / "model", config)
    _unigram().save_pretrained(tmp_path / "model")
    tokenizer = load_tokenizer(tmp_path / "model")
    texts = ["the cats", "hello  the cat", "", " \u3000 ", "a <mask> b", "\u6771", "\uff43\uff41\uff54"]
    _assert_same_as_transformers(tokenizer, tmp_path / "model", texts)
    assert len(tokenizer.backend.encode("the cats").ids) == 5
    save_tokenizer(tmp_path / "saved", tokenizer, family="xlm-roberta")
    _assert_same_as_transformers(tokenizer, tmp_path / "saved", texts)
    assert load_tokenizer(tmp_path / "saved").sha256 == tokenizer.sha256


# Called, and cut


@pytest.mark.parametrize("family", ["bert", "distilbert", "roberta"])
@pytest.mark.parametrize("max_length", [None, 7])
def test_a_call_gives_padded_arrays(
    vocab: Path, tmp_path: Path, folder: Maker, family: str, max_length: int | None
) -> None:
    roberta = {"vocab.json": vocab / "roberta-base-vocab.json", "merges.txt": vocab / "roberta-base-merges.txt"}
    bert = {"vocab.txt": vocab / "bert-base-uncased-vocab.txt"}
    save_tokenizer(tmp_path / "saved", load_tokenizer(folder(roberta if family == "roberta" else bert)), family=family)
    tokenizer, reference = load_tokenizer(tmp_path / "saved"), AutoTokenizer.from_pretrained(tmp_path / "saved")
    before = tokenizer.backend.to_str()
    texts, pairs = ["the cat [MASK] sat", "", "one two three four five six seven eight"], ["a", "b c", "d"]
    for given_pairs in (None, pairs):
        found = tokenizer(texts, given_pairs, max_length=max_length)
        expected = reference(
            texts, given_pairs, padding=True, truncation=max_length is not None, max_length=max_length,
            return_tensors="np",
        )  # fmt: skip
        assert found.mask is not None and found.ids.dtype == found.mask.dtype == np.int32
        np.testing.assert_array_equal(found.ids, expected["input_ids"])
        np.testing.assert_array_equal(found.mask, expected["attention_mask"])
        assert (found.token_type_ids is None) == (family != "bert")
        if family == "bert":
            np.testing.assert_array_equal(found.token_type_ids, expected["token_type_ids"])
    assert tokenizer.backend.to_str() == before


def test_rows_of_one_length(vocab: Path, tmp_path: Path) -> None:
    save_tokenizer(tmp_path, load_tokenizer(vocab / "bert-base-uncased-vocab.txt"), family="bert")
    texts = ["a", "one two three four five six seven eight"]
    found = load_tokenizer(tmp_path)(texts, max_length=7, pad_to=9)
    reference = AutoTokenizer.from_pretrained(tmp_path)
    cut = reference(texts, truncation=True, max_length=7)
    expected = reference.pad(cut, padding="max_length", max_length=9, return_tensors="np")
    np.testing.assert_array_equal(found.ids, expected["input_ids"])
    np.testing.assert_array_equal(found.mask, expected["attention_mask"])
    np.testing.assert_array_equal(found.token_type_ids, expected["token_type_ids"])


def test_calls_that_cannot_be(vocab: Path) -> None:
    tokenizer = load_tokenizer(vocab / "bert-base-uncased-vocab.txt")
    assert tokenizer([]).ids.shape == (0, 0)
    with pytest.raises(ValueError, match="lists"):
        tokenizer("a")
    with pytest.raises(ValueError, match="shorter|longer"):
        tokenizer(["a"], ["b", "c"])
    with pytest.raises(ValueError, match="max_length = 2"):
        tokenizer(["a"], max_length=2)
    with pytest.raises(ValueError, match="pad_to = 3; give max_length=3"):
        tokenizer(["one two"], pad_to=3)


@given(st.integers(0, 12), st.integers(0, 12), st.integers(5, 20))
def test_pairs_are_cut_at_the_longer_text(first: int, second: int, max_length: int) -> None:
    """One id at a time, as in BERT's own code."""
    from distil_jax.hf.tokenizer import Bracket

    single = Bracket((1,), (), (2,), (0,), (), (0,))
    pair = Bracket((1,), (2,), (2,), (0, 1), (0,), (1,))
    tokenizer = Tokenizer(None, None, 99, 0, 3, 1, 2, 4, "", single, pair)  # type: ignore[arg-type]
    one, two = [*range(10, 10 + first)], [*range(30, 30 + second)]
    ids, types, cut = tokenizer.fit(one, two, max_length)
    while len(one) + len(two) > max_length - 3:
        (one if len(one) > len(two) else two).pop()
    assert (ids, types) == tokenizer.bracket(one, two)
    assert cut == (len(one) < first or len(two) < second)


# Every layout that transformers writes, or has written

PIECES = [
    *(
        *BASIC,
        "a",
        "b",
        "e",
        "é",
        "E",
        "É",
        "ß",
        "The",
        "the",
        "COVID",
        "中",
        "文",
        "中文",
        "river",
        "straße",
        "!",
        "'",
    ),
    *("##a", "##b", "##e", "##é", "##E", "##s", "##中", "##文", "##ver", "ri", "##iver", "1", "##1", "x", "##x", "["),
]
ADDED = {"[e1]": len(PIECES), "New York": len(PIECES) + 1, "été": len(PIECES) + 2}
SPECIALS = dict(zip(("pad_token", "unk_token", "cls_token", "sep_token", "mask_token"), BASIC, strict=True))


def _legacy(name: str, switches: Files) -> Files:
    """A layout of transformers 2 to 4."""
    decoder = {
        str(number): {"content": token, "lstrip": False, "normalized": False, "rstrip": False, "single_word": True}
        for token, number in ADDED.items()
    }
    config = {"tokenizer_class": name} | switches
    return {
        f"{name}, vocab.txt only": {"tokenizer_config.json": config},
        f"{name}, special_tokens_map.json": {"tokenizer_config.json": config, "special_tokens_map.json": SPECIALS},
        f"{name}, added_tokens.json": {"tokenizer_config.json": config | SPECIALS, "added_tokens.json": ADDED},
        f"{name}, added_tokens_decoder": {"tokenizer_config.json": config | {"added_tokens_decoder": decoder}},
        f"{name}, additional special tokens": {
            "tokenizer_config.json": config | {"additional_special_tokens": ["[e1]", "The"]}
        },
    }


def _layouts() -> dict[str, Any]:
    """{name: files, or the tokenizer of transformers that writes them}."""
    found: dict[str, Any] = {}
    text = "\n".join(PIECES) + "\n"
    for lower, accents, chinese in itertools.product((True, False), (None, True, False), (True, False)):
        switches = {"do_lower_case": lower, "strip_accents": accents, "tokenize_chinese_chars": chinese}
        label = ", ".join(f"{name}={value}" for name, value in switches.items())
        for name in ("BertTokenizer", "DistilBertTokenizer"):
            for layout, files in _legacy(name, switches).items():
                found[f"{layout}, {label}"] = {"vocab.txt": text} | files
            words = {token: number for number, token in enumerate(PIECES)}
            written = getattr(transformers, name)(vocab=words, **switches)
            written.add_tokens([transformers.AddedToken("New York"), transformers.AddedToken("été", lstrip=True)])
            found[f"{name}, tokenizer.json, {label}"] = written
    for model in ("bert", "distilbert"):
        found[f"config.json of a {model}"] = {"vocab.txt": text, "config.json": {"model_type": model}}
    return found


LAYOUTS = _layouts()
TEXTS = st.lists(
    st.sampled_from([*PIECES, *ADDED, "été", "e\u0301", "É", " ", "\t", "\u3000", "\u200b", "\x07", "THE", "İ"])
    | st.text(max_size=6)
).map("".join)


@pytest.fixture(scope="module")
def loaded(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], tuple[Tokenizer, Any, Tokenizer, Any]]:
    """A function (name of a layout) -> what we and transformers make of it, and of what we saved of it."""

    def load(name: str) -> tuple[Tokenizer, Any, Tokenizer, Any]:
        place, saved = tmp_path_factory.mktemp("layout"), tmp_path_factory.mktemp("saved")
        if isinstance(LAYOUTS[name], dict):
            _write(place, LAYOUTS[name])
        else:
            LAYOUTS[name].save_pretrained(place)
        tokenizer = load_tokenizer(place)
        save_tokenizer(saved, tokenizer)
        reference = AutoTokenizer.from_pretrained(place)
        return tokenizer, reference, load_tokenizer(saved), AutoTokenizer.from_pretrained(saved)

    return load


@pytest.mark.parametrize("name", LAYOUTS)
def test_every_layout(name: str, loaded: Callable[..., Any]) -> None:
    tokenizer, reference, again, reference_again = loaded(name)
    assert again.sha256 == tokenizer.sha256
    assert len(reference) == len(reference_again) == len({*tokenizer.tokens()})

    @settings(max_examples=5, deadline=None, database=None, suppress_health_check=[HealthCheck.too_slow])
    @given(st.lists(TEXTS, min_size=5, max_size=5))
    def same(texts: list[str]) -> None:
        for text in texts:
            expected = reference(text).input_ids
            assert tokenizer.backend.encode(text).ids == expected
            assert again.backend.encode(text).ids == expected
            assert reference_again(text).input_ids == expected

    same()


# What was misread


def _tokens(path: Path, text: str) -> list[str]:
    return load_tokenizer(path).backend.encode(text).tokens


def test_a_science_vocabulary_with_capitals_is_lower_casing(vocab: Path, folder: Maker) -> None:
    text = (vocab / "bert-base-uncased-vocab.txt").read_text(encoding="utf-8").replace("[unused1]\n", "COVID\n")
    words = ["[CLS]", "the", "protein", "kinase", "in", "mice", "[SEP]"]
    for config in ({}, {"config.json": {"model_type": "bert"}}):
        path = folder({"vocab.txt": text, **config})
        assert _tokens(path, "The Protein Kinase in Mice") == words
    _assert_same_as_transformers(load_tokenizer(path), path)


@pytest.mark.parametrize("kind", ["added_tokens.json", "added_tokens_decoder"])
def test_added_tokens_are_kept(vocab: Path, folder: Maker, tmp_path: Path, kind: str) -> None:
    added = {"[e1]": 30522, "[/e1]": 30523}
    config: Files = {"do_lower_case": True, "tokenizer_class": "BertTokenizer"}
    files: Files = {"vocab.txt": vocab / "bert-base-uncased-vocab.txt"}
    if kind == "added_tokens.json":
        files[kind] = added
    else:
        config[kind] = {str(number): {"content": token} for token, number in added.items()}
    tokenizer = load_tokenizer(folder(files | {"tokenizer_config.json": config}))
    assert tokenizer.vocab_size == 30524
    ids = [101, 30522, 3419, 30523, 2165, 2009, 102]
    assert tokenizer.backend.encode("[e1] tom [/e1] took it").ids == ids
    _assert_saved_as_loaded(tokenizer, tmp_path / "saved")
    again = load_tokenizer(tmp_path / "saved")
    assert (again.vocab_size, again.backend.encode("[e1] tom [/e1] took it").ids) == (30524, ids)


@pytest.mark.parametrize(
    "config",
    [
        {
            "tokenizer_class": "BertJapaneseTokenizer",
            "word_tokenizer_type": "basic",
            "subword_tokenizer_type": "character",
        },
        {"tokenizer_class": "KoBertTokenizer"},
        {"tokenizer_class": "BertModel"},
        {"auto_map": {"AutoTokenizer": ["tokenization_mine.MineTokenizer", None]}},
    ],
)
@pytest.mark.parametrize("model_type", ["bert", "distilbert", None])
def test_classes_without_a_fast_back_end_are_refused_by_name(
    folder: Maker, config: Files, model_type: str | None
) -> None:
    files: Files = {"vocab.txt": "\n".join(PIECES), "tokenizer_config.json": config}
    if model_type:
        files["config.json"] = {"model_type": model_type}
    with pytest.raises(UserError, match=config.get("tokenizer_class", "MineTokenizer")):
        load_tokenizer(folder(files))


def test_a_class_named_in_config_json(folder: Maker) -> None:
    files: Files = {"vocab.txt": "\n".join(PIECES), "config.json": {"tokenizer_class": "BertJapaneseTokenizer"}}
    with pytest.raises(UserError, match="BertJapaneseTokenizer"):
        load_tokenizer(folder(files))


@pytest.mark.parametrize("name", ["PreTrainedTokenizerFast", "KoBertTokenizer", "TokenizersBackend"])
def test_a_tokenizer_json_wins_over_switches_of_a_class_that_has_none(folder: Maker, vocab: Path, name: str) -> None:
    config = {"tokenizer_class": name, "do_lower_case": False}
    files: Files = {
        "tokenizer.json": vocab / "bert-base-uncased-tokenizer.json",
        "tokenizer_config.json": config | SPECIALS,
    }
    assert _tokens(folder(files), "Hello World") == ["[CLS]", "hello", "world", "[SEP]"]
    _assert_same_as_transformers(load_tokenizer(folder(files)), folder(files))


@pytest.mark.parametrize("switches", [{"do_lower_case": False}, {"do_lower_case": True, "strip_accents": False}])
def test_switches_win_over_the_tokenizer_json_of_berts_class(
    folder: Maker, minilm: Path, tmp_path: Path, switches: Files
) -> None:
    config = {"tokenizer_class": "BertTokenizer"} | switches
    path = folder({"tokenizer.json": minilm / "tokenizer.json", "tokenizer_config.json": config})
    tokenizer = load_tokenizer(path)
    _assert_same_as_transformers(tokenizer, path)
    assert tokenizer.sha256 != load_tokenizer(minilm).sha256
    _assert_saved_as_loaded(tokenizer, tmp_path / "saved")


def test_a_token_on_two_lines_has_the_last_lines_id(folder: Maker, tmp_path: Path) -> None:
    path = folder({"vocab.txt": "\n".join([*BASIC, "a", "b", "a", "c"]), "config.json": {"model_type": "bert"}})
    tokenizer = load_tokenizer(path)
    assert tokenizer.backend.encode("a b c").ids == [2, 7, 6, 8, 3]
    assert (tokenizer.vocab_size, tokenizer.tokens()[5:]) == (9, ["", "b", "a", "c"])
    _assert_same_as_transformers(tokenizer, path)
    _assert_saved_as_loaded(tokenizer, tmp_path / "saved")


def test_a_missing_special_token_is_added_as_in_transformers(folder: Maker) -> None:
    path = folder({"vocab.txt": "\n".join([*BASIC[:4], "a", "b"]), "config.json": {"model_type": "bert"}})
    assert load_tokenizer(path).mask_id == AutoTokenizer.from_pretrained(path).mask_token_id == 6


def _word_level(post_processor: bool) -> str:
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors

    words = [*BASIC, "a", "é", "##b", "-"]
    backend = Tokenizer(models.WordPiece({word: i for i, word in enumerate(words)}, unk_token="[UNK]"))
    backend.normalizer = normalizers.Sequence([normalizers.NFC(), normalizers.Lowercase()])  # type: ignore[assignment]
    backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()  # type: ignore[assignment]
    if post_processor:
        backend.post_processor = processors.BertProcessing(("[SEP]", 3), ("[CLS]", 2))  # type: ignore[assignment]
    return backend.to_str()


def test_a_pipeline_that_is_not_berts_own(folder: Maker, tmp_path: Path) -> None:
    tokenizer = load_tokenizer(folder({"tokenizer.json": _word_level(post_processor=True)}))
    assert tokenizer.backend.encode("AB É a-").ids == [2, 5, 7, 6, 1, 3]
    _assert_saved_as_loaded(tokenizer, tmp_path / "saved")


def test_a_tokenizer_that_adds_no_special_tokens_is_refused(folder: Maker) -> None:
    with pytest.raises(UserError, match="post_processor"):
        load_tokenizer(folder({"tokenizer.json": _word_level(post_processor=False)}))


def test_bracketing_by_a_post_processor_of_its_own(vocab: Path, folder: Maker) -> None:
    raw = json.loads((vocab / "bert-base-uncased-tokenizer.json").read_text())
    special = {token: {"id": token, "ids": [101 + n], "tokens": [token]} for n, token in enumerate(("[CLS]", "[SEP]"))}
    cls, sep = ({"SpecialToken": {"id": token, "type_id": 0}} for token in special)
    first, second = ({"Sequence": {"id": name, "type_id": n}} for n, name in enumerate("AB"))
    raw["post_processor"] = {
        "type": "TemplateProcessing",
        "single": [cls, first, sep],
        "pair": [cls, first, sep, cls, second, sep],
        "special_tokens": special,
    }
    path = folder({"tokenizer.json": raw})
    tokenizer = load_tokenizer(path)
    assert tokenizer.bracket([7], [8, 9]) == ([101, 7, 102, 101, 8, 9, 102], [0, 0, 0, 0, 1, 1, 0])
    _assert_same_as_transformers(tokenizer, path)


def test_identity_depends_on_all_that_decides_ids(vocab: Path, folder: Maker) -> None:
    base = (vocab / "bert-base-uncased-vocab.txt").read_text(encoding="utf-8")
    swapped = base.replace("\nthe\nof\n", "\nof\nthe\n")
    assert swapped != base
    config = {"tokenizer_class": "BertTokenizer"}
    variants: list[Files] = [
        {"vocab.txt": base},
        {"vocab.txt": swapped},
        *({"vocab.txt": base, "tokenizer_config.json": config | change} for change in (
            {"do_lower_case": False},
            {"strip_accents": False},
            {"tokenize_chinese_chars": False},
            {"additional_special_tokens": ["the"]},
            {"split_special_tokens": True},
            {"cls_token": "[unused5]"},
        )),
    ]  # fmt: skip
    found = [load_tokenizer(folder(files)).sha256 for files in variants]
    assert len(set(found)) == len(found)
    same = [{"vocab.txt": base, "tokenizer_config.json": config | {"strip_accents": value}} for value in (True, None)]
    assert {load_tokenizer(folder(files)).sha256 for files in same} == {found[0]}


def test_a_tokenizer_is_a_value_of_its_own(vocab: Path) -> None:
    one = load_tokenizer(vocab / "bert-base-uncased-vocab.txt")
    assert one != load_tokenizer(vocab / "bert-base-uncased-vocab.txt")
    with pytest.raises(dataclasses.FrozenInstanceError):
        one.pad_id = 3  # type: ignore[misc]


# Refusals


def test_damage(folder: Maker, vocab: Path) -> None:
    raw = json.loads((vocab / "bert-base-uncased-tokenizer.json").read_text())
    raw["model"]["vocab"]["gap"] = 40_000
    assert load_tokenizer(folder({"tokenizer.json": raw})).vocab_size == 40_001
    refused: list[tuple[Files, str]] = [
        ({"tokenizer.json": "{}"}, "tokenizer.json"),
        ({"tokenizer.json": {**raw, "model": {"type": "Nope", "vocab": {"a": 0}}}}, "model"),
        ({"tokenizer.json": {**raw, "model": raw["model"] | {"dropout": 0.5}}}, "dropout"),
        ({"config.json": {}}, "no tokenizer"),
        ({"vocab.txt": "\n".join(BASIC)}, "5 tokens"),
        ({"vocab.txt": "", "config.json": {"model_type": "bert"}}, "5 tokens"),
        ({"vocab.txt": "\n".join(PIECES), "tokenizer_config.json": {"vocab": "/etc/passwd"}}, "vocab"),
        ({"vocab.txt": "\n".join(PIECES), "tokenizer_config.json": {"init_inputs": ["/etc/passwd"]}}, "init_inputs"),
        ({"vocab.txt": "\n".join(PIECES), "tokenizer_config.json": "[]"}, "tokenizer_config.json"),
        ({"vocab.txt": "\n".join(PIECES), "tokenizer_config.json": {"cls_token": "[SEP]"}}, "share"),
        ({"vocab.txt": "\n".join(PIECES), "added_tokens.json": {"x y": "one"}}, "added_tokens"),
    ]
    for files, named in refused:
        with pytest.raises(UserError, match=named):
            load_tokenizer(folder(files))
    path = folder({})
    (path / "vocab.txt").write_bytes(b"\xff\xfe")
    with pytest.raises(UserError, match="UTF-8"):
        load_tokenizer(path)
