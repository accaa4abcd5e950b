"""Tokenizers of model folders, as transformers reads them.

The class that transformers takes for a folder reads it, and its back end (a `tokenizers.Tokenizer`) is used from then
on. So a text gets the ids of `AutoTokenizer.from_pretrained(folder)`, and what is saved loads there again.
`AutoTokenizer` itself is not imported: it brings PyTorch along where that is installed, which takes seconds.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import re
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from distil_jax.errors import UserError, one_line
from distil_jax.hf.families import FAMILIES
from distil_jax.hf.fields import read_json
from distil_jax.hf.hub import home_resolved, locate
from distil_jax.hf.tokenizer_files import checked_files, json_object

if TYPE_CHECKING:
    import tokenizers

    from distil_jax.models import EncoderInputs

Ids = Sequence[int]
# Spellings of the special tokens, where the files name none.
_SPECIAL = {
    "pad": ("[PAD]", "<pad>"),
    "unk": ("[UNK]", "<unk>"),
    "cls": ("[CLS]", "<s>"),
    "sep": ("[SEP]", "</s>"),
    "mask": ("[MASK]", "<mask>"),
}
_ANY_CLASS = ("TokenizersBackend", "PreTrainedTokenizerFast", "PythonBackend", "PreTrainedTokenizer")
_NO_ADVICE = "TRANSFORMERS_NO_ADVISORY_WARNINGS"
_LONGEST_PATH = 200  # characters of a name that may be a file's; longer ones are for `locate` to refuse
_CASED_SHARE = 0.1  # of the tokens; lower-casing vocabularies have under 1 % with an upper-case letter


@dataclasses.dataclass(frozen=True)
class Bracket:
    """Ids that stand before, between and after texts, and the type (segment) of each text with the ids after it."""

    before: tuple[int, ...]
    between: tuple[int, ...]
    after: tuple[int, ...]
    types: tuple[int, ...]
    between_types: tuple[int, ...]
    after_types: tuple[int, ...]


@dataclasses.dataclass(frozen=True, eq=False)
class Tokenizer:
    """A vocabulary and how text is split into it.

    Attributes:
        source: the tokenizer of transformers that was made of the files; used for saving only.
        backend: its `tokenizers.Tokenizer`, without truncation and padding. A special token's spelling in a text
            ("[MASK]") is that token, as in transformers.
        vocab_size: the largest id plus one. Ids may have gaps.
        pad_id, unk_id, cls_id, sep_id, mask_id: ids of the special tokens.
        sha256: identifies all that decides the ids of a text.
        single, pair: what stands around one text and around two.
    """

    source: Any
    backend: tokenizers.Tokenizer
    vocab_size: int
    pad_id: int
    unk_id: int
    cls_id: int
    sep_id: int
    mask_id: int
    sha256: str
    single: Bracket
    pair: Bracket

    @property
    def special_ids(self) -> tuple[int, ...]:
        """The five special ids, ascending."""
        return tuple(sorted((self.pad_id, self.unk_id, self.cls_id, self.sep_id, self.mask_id)))

    def tokens(self) -> list[str]:
        """The vocabulary in id order, "" where no token has an id."""
        return [self.backend.id_to_token(number) or "" for number in range(self.vocab_size)]

    def num_special(self, pair: bool = False) -> int:
        """How many special tokens `bracket` adds to a text, or to a pair of texts."""
        bracket = self.pair if pair else self.single
        return len(bracket.before) + len(bracket.between) + len(bracket.after)

    def bracket(self, first: Ids, second: Ids | None = None) -> tuple[list[int], list[int]]:
        """The ids of one or two texts with the special tokens of the tokenizer's class, and the type of each id.

        BERT: [CLS] first [SEP] second [SEP] with types 0 and 1. RoBERTa: <s> first </s></s> second </s>, types 0.
        """
        if second is None:
            bracket, ids = self.single, [*self.single.before, *first, *self.single.after]
            return ids, [bracket.types[0]] * (len(ids) - len(bracket.after)) + [*bracket.after_types]
        bracket = self.pair
        ids = [*bracket.before, *first, *bracket.between, *second, *bracket.after]
        one, two = bracket.types
        types = [one] * (len(bracket.before) + len(first)) + [*bracket.between_types]
        return ids, types + [two] * len(second) + [*bracket.after_types]

    def fit(self, first: Ids, second: Ids | None, max_length: int) -> tuple[list[int], list[int], bool]:
        """`bracket` of as much as `max_length` ids hold, and whether a text was cut.

        A pair that is too long loses ids at the end of its longer text, as in BERT's own code.

        Raises:
            ValueError: `max_length` leaves nothing of a text.
        """
        space = max_length - self.num_special(second is not None)
        if space < (1 if second is None else 2):
            raise ValueError(f"max_length = {max_length} holds special tokens alone")
        if second is None:
            return *self.bracket(first[:space]), space < len(first)
        shorter = min(len(first), len(second))
        one = min(
            len(first), max(space - shorter, (space + 1) // 2) if len(first) > len(second) else space - space // 2
        )
        two = min(len(second), space - one)
        one = min(len(first), space - two)
        return *self.bracket(first[:one], second[:two]), one < len(first) or two < len(second)

    def __call__(
        self,
        texts: Sequence[str],
        pairs: Sequence[str] | None = None,
        *,
        max_length: int | None = None,
        pad_to: int | None = None,
    ) -> EncoderInputs:
        """What a model reads for N texts or pairs of texts.

        Args:
            texts: the texts.
            pairs: the second text of each.
            max_length: ids a row may have; longer ones are cut as `fit` does. None: no limit.
            pad_to: length of the rows, for which a step under `jax.jit` compiles once. None: that of the longest.

        Returns:
            ids [N, L] int32, padded to the longest row or to `pad_to`; mask [N, L] int32, 1 where a token stands;
            token_type_ids [N, L] int32, None where the tokenizer's models have none.

        Raises:
            ValueError: other numbers of texts and pairs, a `max_length` that leaves nothing of a text, or a row that is
                longer than `pad_to`.
        """
        from distil_jax.models import EncoderInputs

        if isinstance(texts, str) or isinstance(pairs, str):
            raise ValueError("texts and pairs are lists of texts; give [text] for one")
        first, second = (
            [one.ids for one in self.backend.encode_batch_fast(list(some), add_special_tokens=False)]
            for some in (texts, () if pairs is None else pairs)
        )
        seconds = [None] * len(first) if pairs is None else second
        limit = sys.maxsize if max_length is None else max_length
        rows = [self.fit(one, two, limit) for one, two in zip(first, seconds, strict=True)]
        longest = max((len(ids) for ids, _, _ in rows), default=0)
        if pad_to is not None and longest > pad_to:
            raise ValueError(
                f"a row has {longest} ids, more than pad_to = {pad_to}; give max_length={pad_to} to cut it"
            )
        shape = len(rows), longest if pad_to is None else pad_to
        arrays: tuple[Any, ...] = tuple(np.full(shape, fill, np.int32) for fill in (self.pad_id, 0, 0))
        ids, mask, types = arrays
        for number, (of_row, types_of_row, _) in enumerate(rows):
            ids[number, : len(of_row)], types[number, : len(of_row)] = of_row, types_of_row
            mask[number, : len(of_row)] = 1
        has_types = "token_type_ids" in self.source.model_input_names
        return EncoderInputs(ids, mask, token_type_ids=types if has_types else None)


def load_tokenizer(path_or_id: str | Path) -> Tokenizer:
    """The tokenizer of a folder or hub id, or of a single tokenizer.json or vocab.txt file.

    A text gets the ids of `transformers.AutoTokenizer.from_pretrained(folder)(text)`. A vocab.txt without any settings,
    which transformers cannot read, gets the class of BERT: lower-casing, unless a tenth of its tokens have upper-case
    letters.

    Raises:
        UserError: no tokenizer there, damaged files, a class that runs Python code for each text or is unknown, or a
            special token that is missing.
    """
    path = home_resolved(path_or_id)
    if len(str(path)) > _LONGEST_PATH or not path.is_file():
        path = locate(path_or_id, files="tokenizer")
    files = checked_files(path)
    model = read_json(path / "config.json") if (path / "config.json").is_file() else {}
    settings = json_object(files.get("tokenizer_config.json", b"{}"), str(path))
    try:
        tokenizer_class = _class_of(settings, model, files, path)
        with tempfile.TemporaryDirectory(prefix="tokenizer-") as folder:
            for name, content in (files | {"tokenizer_config.json": json.dumps(settings).encode()}).items():
                (Path(folder) / name).write_bytes(content)
            source = tokenizer_class.from_pretrained(folder, local_files_only=True)
        lines = set() if "tokenizer.json" in files else _lines(files.get("vocab.txt", b""))
        return _tokenizer_of(source, path, len(lines))
    except UserError:
        raise
    except BaseException as error:
        # The library raises bare Exception for a file it cannot parse, and where its Rust code panics a
        # PanicException, which is no Exception.
        if not isinstance(error, Exception) and type(error).__name__ != "PanicException":
            raise
        raise UserError(f"{path}: not a tokenizer that transformers can load ({one_line(error, 300)})") from error


def _class_of(settings: dict[str, Any], model: dict[str, Any], files: dict[str, bytes], path: Path) -> Any:
    """The class that AutoTokenizer would take; `settings` gets what a bare vocabulary leaves open.

    Raises:
        UserError: a class of transformers without a fast back end, or an unknown one without a tokenizer.json.
    """
    os.environ.setdefault(_NO_ADVICE, "1")  # that PyTorch is missing, which a tokenizer does not need
    import transformers

    named = settings.get("tokenizer_class") or model.get("tokenizer_class")
    family = FAMILIES.get(str(model.get("model_type")))
    known = "" if family is None else family.tokenizer
    bare = "tokenizer.json" not in files
    if not named and not known and bare:
        known = FAMILIES["roberta" if "vocab.json" in files else "bert"].tokenizer
        if not settings and "vocab.txt" in files:
            tokens = [token for token in _lines(files["vocab.txt"]) if not re.match(r"\[.*\]|<.*>", token)]
            cased = sum(token != token.lower() for token in tokens)
            settings["do_lower_case"] = cased <= _CASED_SHARE * len(tokens)
    name = str(named or known or _ANY_CLASS[0])
    if name in _ANY_CLASS:
        return transformers.PreTrainedTokenizerFast
    name = name.removesuffix("Fast")
    found = getattr(transformers, name, None) if re.fullmatch(r"\w+Tokenizer", name) else None
    if found is None and not bare:
        return transformers.PreTrainedTokenizerFast  # as AutoTokenizer does: the tokenizer.json says everything
    if found is None or not issubclass(found, transformers.PreTrainedTokenizerFast):
        what = "is not one of transformers" if found is None else "has no fast back end in transformers"
        raise UserError(
            f"{path}: the tokenizer class {one_line(name, 60)} {what}; use a model whose tokenizer is a tokenizer.json "
            "or of a class such as BertTokenizer"
        )
    return found


def _lines(vocabulary: bytes) -> set[str]:
    return {line.rstrip() for line in vocabulary.decode("utf-8").split("\n")} - {""}


def _tokenizer_of(source: Any, path: Path, lines: int) -> Tokenizer:
    backend = source.backend_tokenizer
    backend.no_truncation()
    backend.no_padding()
    vocabulary: dict[str, int] = backend.get_vocab(with_added_tokens=True)
    if len(vocabulary) <= len(_SPECIAL) or len(vocabulary) < lines:
        raise UserError(f"{path}: only {len(vocabulary)} tokens, so no text can be encoded")
    ids = {role: _special_id(source, role, vocabulary, path) for role in _SPECIAL}
    if len(set(ids.values())) != len(ids):
        raise UserError(f"{path}: two special tokens share one id: {ids}")
    backend.encode("\u0378 \U0010ffff")  # some models raise an error of their own for a text without any known piece
    single, pair = _brackets(backend, list(vocabulary))
    if single.before != (ids["cls"],) or single.after != (ids["sep"],):
        raise UserError(
            f"{path}: puts the ids {single.before} before a text and {single.after} after it, expected those of its "
            f"cls_token ({ids['cls']}) and sep_token ({ids['sep']}); check post_processor in tokenizer.json"
        )
    return Tokenizer(
        source=source,
        backend=backend,
        vocab_size=max(vocabulary.values()) + 1,
        **{f"{role}_id": number for role, number in ids.items()},
        sha256=_identity(backend, (single, pair)),
        single=single,
        pair=pair,
    )


def _special_id(source: Any, role: str, vocabulary: dict[str, int], path: Path) -> int:
    number = getattr(source, f"{role}_token_id")
    if number is None:
        number = next((vocabulary[spelling] for spelling in _SPECIAL[role] if spelling in vocabulary), None)
    if number is None:
        raise UserError(
            f"{path}: no {role}_token; name it in tokenizer_config.json, or add {' or '.join(_SPECIAL[role])} to the "
            "vocabulary"
        )
    return number


def _brackets(backend: tokenizers.Tokenizer, tokens: list[str]) -> tuple[Bracket, Bracket]:
    """What the post-processor puts around one text and two, seen on a text that has at least one piece."""
    text = next(text for text in ("a", "the", *tokens) if backend.encode(text, add_special_tokens=False).ids)
    single, pair = backend.encode(text), backend.encode(text, text)

    def parts(found: tokenizers.Encoding, last: int) -> Bracket:
        owners = found.sequence_ids
        first_text, last_text = owners.index(0), len(owners) - 1 - owners[::-1].index(last)
        middle = slice(len(owners) - owners[::-1].index(0), owners.index(last)) if last else slice(0, 0)
        types = tuple(found.type_ids[owners.index(owner)] for owner in range(last + 1))
        return Bracket(
            before=tuple(found.ids[:first_text]),
            between=tuple(found.ids[middle]),
            after=tuple(found.ids[last_text + 1 :]),
            types=types,
            between_types=tuple(found.type_ids[middle]),
            after_types=tuple(found.type_ids[last_text + 1 :]),
        )

    return parts(single, 0), parts(pair, 1)


def _identity(backend: tokenizers.Tokenizer, brackets: tuple[Bracket, Bracket]) -> str:
    """The hash of all that the ids of a text depend on."""
    parts = json.loads(backend.to_str())
    for name in ("version", "truncation", "padding", "decoder", "post_processor"):
        parts.pop(name, None)
    normalizer = parts["normalizer"] or {}
    if normalizer.get("type") == "BertNormalizer" and normalizer["strip_accents"] is None:
        normalizer["strip_accents"] = normalizer["lowercase"]
    parts |= {"brackets": [dataclasses.astuple(one) for one in brackets], "split": backend.encode_special_tokens}
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()


def save_tokenizer(folder: str | Path, tokenizer: Tokenizer, *, family: str = "bert", max_length: int = 512) -> None:
    """Write what transformers writes for a tokenizer, and vocab.txt for a WordPiece model.

    Args:
        folder: made if it is not there; files of these names are replaced.
        tokenizer: what to write.
        family: of the model that goes with it, which may take token types.
        max_length: tokens a sequence of the model may have (model_max_length).

    Raises:
        UserError: the folder cannot be written.
    """
    try:
        Path(folder).mkdir(parents=True, exist_ok=True)
        write_tokenizer(Path(folder), tokenizer, family=family, max_length=max_length)
    except OSError as error:
        raise UserError(f"{folder}: cannot be written ({error})") from error


def write_tokenizer(folder: Path, tokenizer: Tokenizer, *, family: str, max_length: int) -> None:
    """`save_tokenizer` into a folder that exists, with the system's own errors."""
    tokenizer.source.save_pretrained(folder)
    path = folder / "tokenizer_config.json"
    config = json.loads(path.read_text(encoding="utf-8"))
    for name in ("is_local", "local_files_only"):
        config.pop(name, None)
    config["model_max_length"] = max_length
    types = ["token_type_ids"] if FAMILIES[family].reads_token_types else []
    config["model_input_names"] = ["input_ids", *types, "attention_mask"]
    if config["tokenizer_class"] == "TokenizersBackend":
        config["tokenizer_class"] = "PreTrainedTokenizerFast"  # the name that transformers 4 knows as well
    special = {token.content for token in tokenizer.backend.get_added_tokens_decoder().values() if token.special}
    for role in _SPECIAL:
        spelling = tokenizer.backend.id_to_token(getattr(tokenizer, f"{role}_id"))
        if spelling in special:
            config.setdefault(f"{role}_token", spelling)
    path.write_text(json.dumps(config, indent=2, sort_keys=True) + "\n", encoding="utf-8")
    if type(tokenizer.backend.model).__name__ == "WordPiece":
        with (folder / "vocab.txt").open("w", encoding="utf-8", newline="\n") as file:
            file.write("".join(f"{token}\n" for token in tokenizer.tokens()))
