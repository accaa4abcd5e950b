"""What a corpus is made from: the settings, and the plan by which a folder remembers them from one run to the next."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import MISSING, dataclass, fields
from pathlib import Path
from typing import Any, Literal, Protocol

from distil_jax.data.corpus.sources import Source
from distil_jax.data.corpus.tokens import INDEX, Corpus, file_sha256, open_corpus
from distil_jax.errors import UserError

PLAN = "prepare.json"
SPECIAL = ("pad", "unk", "cls", "sep", "mask")


class TokenizerLike(Protocol):
    """What is used of `distil_jax.hf.Tokenizer`; `backend` is a tokenizers.Tokenizer."""

    @property
    def backend(self) -> Any: ...
    @property
    def vocab_size(self) -> int: ...
    @property
    def pad_id(self) -> int: ...
    @property
    def unk_id(self) -> int: ...
    @property
    def cls_id(self) -> int: ...
    @property
    def sep_id(self) -> int: ...
    @property
    def mask_id(self) -> int: ...
    @property
    def sha256(self) -> str: ...


@dataclass(frozen=True)
class PrepareSettings:
    """What to prepare and how; lengths are in tokens and count [CLS] and [SEP].

    sources: files, folders, globs, hf:..., tfds:... (see `corpus.sources`). output: the corpus folder.
    sequence_length: tokens in a row. pack: several sequences a row (False: one a row, the original's form).
    sequence: a "line" or a whole "document" is a sequence before it is cut to length (the original: a line).
    min_tokens, max_unk_fraction: shorter sequences, and those with this fraction of [UNK] or more, are dropped (the
    original: 12, 0.5). text_column: the column of CSV, TSV, JSON, Parquet, hf: and tfds: rows. markup: "keep" or
    "drop" the lines `<doc ...>` and `</doc>` of WikiExtractor in plain text. on_error: "stop" at a bad
    line or "skip" it. max_documents: stop after so many (None: all). max_line_bytes: a longer line is an error.
    block_bytes: text a shard. workers: processes (0: one a core).
    """

    sources: tuple[str, ...]
    output: Path
    sequence_length: int = 128
    pack: bool = True
    sequence: str = "line"
    min_tokens: int = 12
    max_unk_fraction: float = 0.5
    text_column: str = "text"
    markup: Literal["keep", "drop"] = "keep"
    on_error: str = "stop"
    max_documents: int | None = None
    max_line_bytes: int = 64 << 20
    block_bytes: int = 4 << 20  # larger ones leave cores idle at the end of a small corpus
    workers: int = 0

    def __post_init__(self) -> None:
        """Raises UserError for a value that can't be."""
        rules = [
            ("sequence_length", "at least 3", self.sequence_length >= 3),
            ("min_tokens", "from 3 to sequence_length", 3 <= self.min_tokens <= self.sequence_length),
            ("max_unk_fraction", "above 0 and at most 1", 0 < self.max_unk_fraction <= 1),
            ("sequence", '"line" or "document"', self.sequence in ("line", "document")),
            ("on_error", '"stop" or "skip"', self.on_error in ("stop", "skip")),
            ("max_documents", "at least 1", self.max_documents is None or self.max_documents >= 1),
            ("max_line_bytes", "at least 1", self.max_line_bytes >= 1),
            ("block_bytes", "from 1 to 1073741824", 1 <= self.block_bytes <= 1 << 30),
            ("workers", "0 (all cores) or more", self.workers >= 0),
        ]
        for name, wanted, holds in rules:
            if not holds:
                raise UserError(f"prepare: {name} = {getattr(self, name)!r} must be {wanted}")


_DEFAULTS = {field.name: field.default for field in fields(PrepareSettings) if field.default is not MISSING}


def make_plan(settings: PrepareSettings, sources: Sequence[Source], tokenizer: TokenizerLike) -> dict[str, Any]:
    """What a folder is made from, as it is remembered in prepare.json."""
    # `output` and `workers` do not change the result.
    names = [field.name for field in fields(settings) if field.name not in ("output", "workers")]
    remembered = {name: getattr(settings, name) for name in names} | {"sources": [*settings.sources]}
    special = {name: getattr(tokenizer, f"{name}_id") for name in SPECIAL}
    for name, value in special.items():
        if not 0 <= value < tokenizer.vocab_size:
            raise UserError(
                f"the tokenizer's {name} token has id {value}, outside its vocabulary of {tokenizer.vocab_size}"
            )
    if len(set(special.values())) < len(special):
        raise UserError(f"the tokenizer's special tokens share an id ({special}); use another vocabulary")
    files = [
        {"name": s.name, "bytes": s.size, "modified_ns": s.path.stat().st_mtime_ns}
        for s in sources
        if s.path is not None
    ]
    return {
        "settings": remembered,
        "tokenizer": {"sha256": tokenizer.sha256, "vocab_size": tokenizer.vocab_size, **special},
        "files": files,
    }


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Makes the folder and holds it for this process.

    Raises UserError if it can't be made or written, is held by another process, or holds anything but a corpus.
    """
    import fcntl

    try:
        folder.mkdir(parents=True, exist_ok=True)
        handle = os.open(folder, os.O_RDONLY)
    except OSError as error:
        raise UserError(
            f"{folder}: cannot be made or opened as a folder ({error.strerror}); choose another output"
        ) from error
    try:
        if not os.access(folder, os.W_OK):
            raise UserError(f"{folder}: not writable; change its permissions or choose another output")
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise UserError(
                f"{folder}: another process is preparing this corpus; wait for it or choose another output"
            ) from error
        except OSError:
            pass  # a network file system without locks
        names = {path.name for path in folder.iterdir()}
        foreign = [name for name in names if not name.startswith(f".{PLAN}.")]  # a run killed while it wrote its plan
        if foreign and PLAN not in names:
            raise UserError(f"{folder}: holds {min(foreign)}, which no corpus does; choose another output or empty it")
        yield
        os.fsync(handle)
    finally:
        os.close(handle)


def is_finished(folder: Path, plan: dict[str, Any]) -> bool:
    """Whether the folder holds the corpus of this plan.

    Raises UserError where it holds, or is becoming, another one.
    """
    remedy = "give the same settings, or another output folder"
    try:
        old = json.loads((folder / PLAN).read_bytes())
        # A setting that the folder's version did not have stands at its default.
        before = {"settings": {**_DEFAULTS, **old["settings"]}, "tokenizer": old["tokenizer"]}
        changes = [
            f"{name} was {before[part].get(name)!r}, now is {value!r}"
            for part in ("settings", "tokenizer")
            for name, value in plan[part].items()
            if before[part].get(name) != value
        ]
        old_files = [{"name": file["name"], **file} for file in old["files"]]
    except (OSError, ValueError, KeyError, AttributeError, TypeError) as error:
        raise UserError(f"{folder / PLAN}: damaged ({error}); delete the folder and prepare again") from error
    if changes:
        raise UserError(f"{folder}: holds another corpus ({'; '.join(changes)}); {remedy}")
    if not (folder / INDEX).exists():
        return False
    changed = _changed_files(open_corpus(folder), old_files, plan["files"])
    if changed:
        raise UserError(f"{folder}: made from other files ({changed}); delete the folder or choose another output")
    for path in folder.glob("block-*.json"):  # left when a run was killed right after its commit
        path.unlink()
    return True


def _changed_files(corpus: Corpus, old: list[dict[str, Any]], new: list[dict[str, Any]]) -> str:
    """Says which source file differs, "" for none. A file that was only touched or copied is told by its hash.

    One that was not read to its end, as max_documents were reached, has none: its size has to do.
    """
    known = {source["name"]: source for source in corpus.index["sources"]}
    missing = {file["name"] for file in old} ^ {file["name"] for file in new}
    if missing:
        return f"{min(missing)} was added or removed"
    before = {file["name"]: file for file in old}
    for file in new:
        name, digest = file["name"], known[file["name"]]["sha256"]
        if file != before[name] and (
            file["bytes"] != before[name]["bytes"] or (digest is not None and file_sha256(Path(name)) != digest)
        ):
            return f"{name} has changed"
    return ""
