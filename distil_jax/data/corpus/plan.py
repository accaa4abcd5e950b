"""What a corpus is made from: the settings, and the plan by which a folder remembers them from one run to the next."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from distil_jax.config import CorpusSettings
from distil_jax.data.corpus.sources import Source
from distil_jax.data.corpus.tokens import INDEX, Corpus, open_corpus
from distil_jax.errors import UserError
from distil_jax.hf import file_sha256

if TYPE_CHECKING:
    from distil_jax.hf import Tokenizer

PLAN = "prepare.json"
SPECIAL = ("pad", "unk", "cls", "sep", "mask")
_OF_THE_WHOLE = ("folder", "train", "validation", "tokenizer", "workers")  # settings that change no split


def make_plan(
    settings: CorpusSettings, texts: Sequence[str], sources: Sequence[Source], tokenizer: Tokenizer
) -> dict[str, Any]:
    """What a split's folder is made from, as it is remembered in prepare.json: `texts` as given, `sources` as found."""
    remembered = {name: value for name, value in asdict(settings).items() if name not in _OF_THE_WHOLE}
    special = {name: getattr(tokenizer, f"{name}_id") for name in SPECIAL}
    for name, value in special.items():
        if not 0 <= value < tokenizer.vocab_size:
            raise UserError(f"the tokenizer's {name} id {value} is outside its vocabulary of {tokenizer.vocab_size}")
    if len(set(special.values())) < len(special):
        raise UserError(f"the tokenizer's special tokens share an id ({special}); use another vocabulary")
    files = [
        {"name": s.name, "bytes": s.size, "modified_ns": s.path.stat().st_mtime_ns}
        for s in sources
        if s.path is not None
    ]
    return {
        "settings": remembered | {"sources": [*texts]},
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
        raise UserError(f"{folder}: cannot be used as a folder ({error.strerror}); choose another output") from error
    try:
        if not os.access(folder, os.W_OK):
            raise UserError(f"{folder}: not writable; change its permissions or choose another output")
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise UserError(f"{folder}: another process prepares this corpus; wait or choose another output") from error
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
        before = {"settings": asdict(CorpusSettings()) | old["settings"], "tokenizer": old["tokenizer"]}
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
    """Says which source file differs, "" for none. A file that was only touched or copied is recognised by its hash.

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
