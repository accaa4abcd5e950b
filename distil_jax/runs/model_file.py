"""model.json of a run: what its checkpoints are checkpoints of, written once, at the first start.

It holds the model's sizes and head, where it comes from, its data, and the SHA-256 of the tokenizer's files. Its own
SHA-256 stands in it, and in every checkpoint.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from distil_jax.errors import UserError, one_line
from distil_jax.hf import file_sha256
from distil_jax.runs.files import json_sha256, write_atomically

if TYPE_CHECKING:
    from distil_jax.hf import Tokenizer

MODEL_FILE = "model.json"
TOKENIZER_FOLDER = "tokenizer"
_OWN_HASH = "sha256"
_FILES = "tokenizer"


def keep_model_file(folder: Path, facts: Mapping[str, Any], tokenizer: Tokenizer, family: str) -> dict[str, Any]:
    """The contents of model.json of the run in `folder`, the same in all processes; all have to call this.

    The first process writes it, with the tokenizer, unless both are there and whole: a run that continues keeps what
    its first start wrote, since its checkpoints hold the hash of that.

    Args:
        folder: the run's, owned by the first process.
        facts: {"model": fields of EncoderConfig, "head": fields of TaskHead or None, ...}, JSON values.
        tokenizer: of the model.
        family: of the model.
    """
    import jax

    from distil_jax.runs.coordination import broadcast

    text = ""
    if jax.process_index() == 0:
        try:
            found = read_model_file(folder)
            whole = not any(tokenizer_flaws(folder, found).values())
        except UserError:
            whole = False
        if not whole:
            _write(folder, facts, tokenizer, family)
        text = (folder / MODEL_FILE).read_text(encoding="utf-8")
    return json.loads(broadcast(text))


def _write(folder: Path, facts: Mapping[str, Any], tokenizer: Tokenizer, family: str) -> None:
    from distil_jax.hf import save_tokenizer

    place = folder / TOKENIZER_FOLDER
    save_tokenizer(place, tokenizer, family=family)
    contents = {**facts, _FILES: {file.name: file_sha256(file) for file in sorted(place.iterdir())}}
    text = json.dumps({_OWN_HASH: json_sha256(contents), **contents}, indent=2, ensure_ascii=False)
    write_atomically(folder / MODEL_FILE, f"{text}\n")


def read_model_file(folder: Path) -> dict[str, Any]:
    """The contents of model.json of the run in `folder`.

    Raises:
        UserError: it is not there, or not what was written.
    """
    path = folder / MODEL_FILE
    if not path.is_file():
        raise UserError(
            f"{path}: missing; `distil-jax resume {folder}` writes it (with --checkpoint.migrate for a run of an older "
            "version)"
        )
    try:
        contents = json.loads(path.read_text(encoding="utf-8"))
        if model_sha256(contents) != json_sha256({key: contents[key] for key in contents if key != _OWN_HASH}):
            raise ValueError("its SHA-256 differs")
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise UserError(
            f"{path}: damaged ({one_line(error)}); bring back a copy, or `distil-jax resume {folder}` writes it again"
        ) from None
    return contents


def model_sha256(contents: Mapping[str, Any]) -> str:
    """The SHA-256 that model.json has of itself."""
    return contents[_OWN_HASH]


def tokenizer_flaws(folder: Path, contents: Mapping[str, Any]) -> dict[str, str]:
    """What is wrong with each of the tokenizer's files that model.json names, "" for nothing."""
    return {name: _flaw(folder / TOKENIZER_FOLDER / name, sha256) for name, sha256 in contents[_FILES].items()}


def _flaw(path: Path, sha256: str) -> str:
    try:
        return "" if file_sha256(path) == sha256 else f"not what {MODEL_FILE} says (its SHA-256 differs)"
    except OSError as error:
        return f"cannot be read ({error.strerror})"
