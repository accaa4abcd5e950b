"""WordPiece tokenizers of BERT and DistilBERT folders.

The `tokenizers` library is used directly: transformers takes a second to import and has traps (a bare vocab.txt, the
padding and truncation that a tokenizer.json brings along). What is written loads in transformers with the same ids.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

from distil_jax.errors import UserError, one_line
from distil_jax.hf.config import read_json
from distil_jax.hf.hub import home_resolved, locate
from distil_jax.hf.tokenizer_json import plain_tokenizer

if TYPE_CHECKING:
    import tokenizers

SPECIAL_TOKENS = {
    "pad_token": "[PAD]",
    "unk_token": "[UNK]",
    "cls_token": "[CLS]",
    "sep_token": "[SEP]",
    "mask_token": "[MASK]",
}
_LARGEST_TOKENIZER = 16 << 20  # bytes; half a million tokens have 10 MB
_MOST_TOKENS = 1 << 20
_LONGEST_TOKEN = 1000  # characters
_LONGEST_PATH = 200  # characters of a name that may be a file's; longer ones are for `locate` to refuse
_SWITCHES = {
    "do_lower_case": "lowercase",
    "strip_accents": "strip_accents",
    "tokenize_chinese_chars": "handle_chinese_chars",
}


@dataclasses.dataclass(frozen=True)
class Tokenizer:
    """A vocabulary and how text is split into it.

    `backend` neither truncates nor pads, brackets a text with [CLS] and [SEP] when asked for special tokens, and takes
    a special token's spelling in the text ("[CLS]") as ordinary characters. Ids are 0 to vocab_size - 1.
    `sha256` identifies the ids a text gets: it is taken over the vocabulary in id order and the normalisation.
    """

    backend: tokenizers.Tokenizer
    vocab_size: int
    pad_id: int
    unk_id: int
    cls_id: int
    sep_id: int
    mask_id: int
    lowercase: bool
    sha256: str

    @property
    def special_ids(self) -> tuple[int, ...]:
        """The five special ids, ascending."""
        return tuple(sorted((self.pad_id, self.unk_id, self.cls_id, self.sep_id, self.mask_id)))

    def tokens(self) -> list[str]:
        """The vocabulary in id order."""
        vocabulary = self.backend.get_vocab(with_added_tokens=True)
        return sorted(vocabulary, key=vocabulary.__getitem__)


def load_tokenizer(path_or_id: str | Path, *, lowercase: bool | None = None) -> Tokenizer:
    """The tokenizer of a folder or hub id, or of a single tokenizer.json or vocab.txt file.

    tokenizer.json comes first, else vocab.txt with BERT's rules. `do_lower_case`, `strip_accents` and
    `tokenize_chinese_chars` of tokenizer_config.json win over tokenizer.json, as in transformers. A vocab.txt without
    them is taken as lower-casing unless an ordinary token of it has an upper-case letter, which no lower-casing
    vocabulary has.

    Args:
        path_or_id: folder, hub id, or file.
        lowercase: what to do whatever the files say; None follows them.

    Raises:
        UserError: no tokenizer there, damaged files, a gap in the ids, or a special token that is missing.
    """
    path = home_resolved(path_or_id)
    settings: dict[str, Any] = {}
    if len(str(path)) > _LONGEST_PATH or not path.is_file():
        folder = locate(path_or_id, files="tokenizer")
        path = next((folder / name for name in ("tokenizer.json", "vocab.txt") if (folder / name).is_file()), folder)
        if path == folder:
            raise UserError(f"{folder}: no tokenizer; looked for tokenizer.json and vocab.txt")
        for name in ("special_tokens_map.json", "tokenizer_config.json"):
            settings |= read_json(folder / name) if (folder / name).is_file() else {}
    if lowercase is not None:
        settings["do_lower_case"] = lowercase
    specials = {role: _spelling(settings.get(role), default) for role, default in SPECIAL_TOKENS.items()}
    backend = _from_json(path) if path.suffix == ".json" else _from_vocabulary(path, specials, settings)
    _apply_switches(backend, settings)
    return _checked(backend, specials, str(path))


def _spelling(value: Any, default: str) -> str:
    """A special token of a settings file: the text itself, or an object with it as "content"."""
    if isinstance(value, dict):
        value = value.get("content")
    return value if isinstance(value, str) and value else default


def _from_json(path: Path) -> tokenizers.Tokenizer:
    import tokenizers

    try:
        content = plain_tokenizer(_bytes_of(path), str(path))
        return tokenizers.Tokenizer.from_str(content)
    except UserError:
        raise
    except BaseException as error:
        # The library raises bare Exception for a file it cannot parse, and where its Rust code panics a
        # PanicException, which is no Exception.
        if not isinstance(error, Exception) and type(error).__name__ != "PanicException":
            raise
        raise UserError(f"{path}: not a tokenizer.json ({one_line(error)})") from error


def _bytes_of(path: Path) -> bytes:
    try:
        with path.open("rb") as file:
            data = file.read(_LARGEST_TOKENIZER + 1)
    except OSError as error:
        raise UserError(f"{path}: not readable ({one_line(error)})") from error
    if len(data) > _LARGEST_TOKENIZER:
        raise UserError(f"{path}: more than {_LARGEST_TOKENIZER} bytes, too large for a tokenizer")
    return data


def _from_vocabulary(path: Path, specials: dict[str, str], settings: dict[str, Any]) -> tokenizers.Tokenizer:
    """BERT's pipeline over the lines of a vocab.txt."""
    import tokenizers
    from tokenizers import decoders, models, normalizers, pre_tokenizers

    data = _bytes_of(path)
    try:
        text = data.decode("utf-8")
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: not readable as UTF-8 text, one token a line ({one_line(error)})") from error
    if data.count(b"\n") > _MOST_TOKENS:
        raise UserError(f"{path}: more than {_MOST_TOKENS} lines, too many for a vocabulary")
    tokens = text.replace("\r\n", "\n").replace("\r", "\n").removesuffix("\n").split("\n") if text else []
    longest = max(map(len, tokens), default=0)
    if longest > _LONGEST_TOKEN:
        raise UserError(f"{path}: a token of {longest} characters, at most {_LONGEST_TOKEN} are taken")
    vocabulary = {token: number for number, token in enumerate(tokens)}
    if len(vocabulary) != len(tokens):
        twice = next(token for number, token in enumerate(tokens) if vocabulary[token] != number)
        raise UserError(f"{path}: the token {one_line(twice, 60)!r} is on two lines, so its id is not certain")
    lowercase = settings.get("do_lower_case", not _has_upper_case(tokens))
    backend = tokenizers.Tokenizer(models.WordPiece(vocabulary, unk_token=specials["unk_token"]))
    backend.normalizer = normalizers.BertNormalizer(lowercase=bool(lowercase))
    backend.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    backend.decoder = decoders.WordPiece(prefix="##")
    present = [spelling for spelling in specials.values() if spelling in vocabulary]
    backend.add_special_tokens([tokenizers.AddedToken(spelling, special=True) for spelling in present])
    return backend


def _has_upper_case(tokens: list[str]) -> bool:
    return any(token != token.lower() and not re.fullmatch(r"\[.*\]|<.*>", token) for token in tokens)


def _apply_switches(backend: tokenizers.Tokenizer, settings: dict[str, Any]) -> None:
    """tokenizer_config.json's word on normalisation; no truncation, no padding, no special tokens out of raw text."""
    from tokenizers import normalizers

    backend.no_truncation()
    backend.no_padding()
    backend.encode_special_tokens = True
    normalizer = backend.normalizer
    if isinstance(normalizer, normalizers.BertNormalizer):
        for name, attribute in _SWITCHES.items():
            value = settings.get(name)
            if isinstance(value, bool) and getattr(normalizer, attribute) is not value:
                setattr(normalizer, attribute, value)
        backend.normalizer = normalizer


def _checked(backend: tokenizers.Tokenizer, specials: dict[str, str], where: str) -> Tokenizer:
    from tokenizers import models, processors

    if not isinstance(backend.model, models.WordPiece):
        raise UserError(f"{where}: a {type(backend.model).__name__} tokenizer; BERT and DistilBERT need WordPiece")
    vocabulary = backend.get_vocab(with_added_tokens=True)
    absent = [spelling for spelling in specials.values() if spelling not in vocabulary]
    if absent:
        named = ", ".join(one_line(token, 60) for token in absent)
        raise UserError(f"{where}: the special tokens {named} are not in the vocabulary of {len(vocabulary)}")
    if len(vocabulary) <= len(SPECIAL_TOKENS):
        raise UserError(f"{where}: only {len(vocabulary)} tokens, so no text can be encoded")
    if sorted(vocabulary.values()) != list(range(len(vocabulary))):
        raise UserError(
            f"{where}: the ids of the {len(vocabulary)} tokens are not 0 to {len(vocabulary) - 1} without gap"
        )
    ids = {role: vocabulary[spelling] for role, spelling in specials.items()}
    if len(set(ids.values())) != len(ids):
        raise UserError(f"{where}: two special tokens share one id: {ids}")
    cls, sep = specials["cls_token"], specials["sep_token"]
    if backend.encode("").ids != [ids["cls_token"], ids["sep_token"]]:
        backend.post_processor = processors.TemplateProcessing(
            single=f"{cls}:0 $A:0 {sep}:0",
            pair=f"{cls}:0 $A:0 {sep}:0 $B:1 {sep}:1",
            special_tokens=[(cls, ids["cls_token"]), (sep, ids["sep_token"])],
        )
    lowercase, sha256 = _identity(backend)
    return Tokenizer(
        backend=backend,
        vocab_size=len(vocabulary),
        pad_id=ids["pad_token"],
        unk_id=ids["unk_token"],
        cls_id=ids["cls_token"],
        sep_id=ids["sep_token"],
        mask_id=ids["mask_token"],
        lowercase=lowercase,
        sha256=sha256,
    )


def _pipeline(backend: tokenizers.Tokenizer) -> dict[str, Any]:
    return json.loads(backend.to_str())


def _identity(backend: tokenizers.Tokenizer) -> tuple[bool, str]:
    """Whether text is lower-cased, and the hash of everything the ids of a text depend on."""
    settings = _pipeline(backend)
    normalizer = settings["normalizer"] or {}
    parts = normalizer.get("normalizers", [normalizer])  # a Sequence lists its parts
    lowercase = any(part.get("type") == "Lowercase" or part.get("lowercase") is True for part in parts)
    vocabulary = backend.get_vocab(with_added_tokens=True)
    identity: list[Any] = [sorted(vocabulary, key=vocabulary.__getitem__), lowercase]
    if not _is_plain_bert(settings):
        identity += [settings["normalizer"], settings["pre_tokenizer"]]
    return lowercase, hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()


def _is_plain_bert(settings: dict[str, Any]) -> bool:
    """BERT's own rules, which follow from the vocabulary and the lower-casing alone."""
    normalizer, pre_tokenizer = settings["normalizer"] or {}, settings["pre_tokenizer"] or {}
    return (
        normalizer.get("type") == "BertNormalizer"
        and normalizer["clean_text"]
        and normalizer["handle_chinese_chars"]
        and normalizer["strip_accents"] in (None, normalizer["lowercase"])
        and pre_tokenizer.get("type") == "BertPreTokenizer"
    )


def save_tokenizer(folder: str | Path, tokenizer: Tokenizer, *, family: str = "bert", max_length: int = 512) -> None:
    """Write tokenizer.json, tokenizer_config.json, special_tokens_map.json and vocab.txt for transformers.

    Args:
        folder: made if it is not there; files of these names are replaced.
        tokenizer: what to write.
        family: "bert" or "distilbert", decides the class that transformers makes of it.
        max_length: tokens a sequence of the model may have (model_max_length).

    Raises:
        UserError: the folder cannot be written.
    """
    try:
        Path(folder).mkdir(parents=True, exist_ok=True)
        write_tokenizer(Path(folder), tokenizer, family=family, max_length=max_length)
    except OSError as error:
        raise UserError(f"{folder}: cannot be written ({error})") from error


def write_tokenizer(
    folder: Path, tokenizer: Tokenizer, *, family: str, max_length: int, split_specials: bool = False
) -> None:
    """`save_tokenizer` into a folder that exists, with the system's own errors.

    With `split_specials` transformers, too, takes a special token's spelling in a text as ordinary characters.
    """
    tokens = tokenizer.tokens()
    settings = _pipeline(tokenizer.backend)
    ids = (tokenizer.pad_id, tokenizer.unk_id, tokenizer.cls_id, tokenizer.sep_id, tokenizer.mask_id)
    specials = {role: tokens[number] for role, number in zip(SPECIAL_TOKENS, ids, strict=True)}
    standard = _rebuilds(settings, len(tokens))
    bert_class = "DistilBertTokenizer" if family == "distilbert" else "BertTokenizer"
    config: dict[str, Any] = {
        # transformers builds its BERT classes anew from the vocabulary and these switches; any other pipeline must be
        # taken from tokenizer.json as it stands.
        "tokenizer_class": bert_class if standard else "PreTrainedTokenizerFast",
        "do_lower_case": tokenizer.lowercase,
        "model_max_length": max_length,
        "model_input_names": ["input_ids", "attention_mask"]
        if family == "distilbert"
        else ["input_ids", "token_type_ids", "attention_mask"],
        **specials,
    }
    if standard:
        config["strip_accents"] = settings["normalizer"]["strip_accents"]
        config["tokenize_chinese_chars"] = settings["normalizer"]["handle_chinese_chars"]
    if split_specials:
        config["split_special_tokens"] = True

    def write_json(name: str, content: dict[str, Any]) -> None:
        (folder / name).write_text(json.dumps(content, indent=2, sort_keys=True) + "\n", encoding="utf-8")

    (folder / "tokenizer.json").write_text(tokenizer.backend.to_str(), encoding="utf-8")
    write_json("tokenizer_config.json", config)
    write_json("special_tokens_map.json", specials)
    with (folder / "vocab.txt").open("w", encoding="utf-8", newline="\n") as file:
        file.write("".join(f"{token}\n" for token in tokens))


def _rebuilds(settings: dict[str, Any], size: int) -> bool:
    """Whether transformers' BERT class, given the vocabulary and the switches, makes this very pipeline again."""
    normalizer, pre_tokenizer, model = settings["normalizer"] or {}, settings["pre_tokenizer"] or {}, settings["model"]
    return (
        normalizer.get("type") == "BertNormalizer"
        and normalizer["clean_text"]
        and pre_tokenizer.get("type") == "BertPreTokenizer"
        and model["continuing_subword_prefix"] == "##"
        and model["max_input_chars_per_word"] == 100
        and len(model["vocab"]) == size
    )
