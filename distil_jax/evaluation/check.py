"""Checks that runs, token shards, caches, exported models, and folders of them are as they were written, by hashes.

Nothing is written, moved or repaired.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any

from distil_jax.config import config_from_toml
from distil_jax.data.corpus import CACHE_INDEX, INDEX, open_corpus, open_teacher_cache
from distil_jax.errors import UserError, one_line
from distil_jax.evaluation.study_report import REPORT_FILE, read_json
from distil_jax.hf import CHECKSUMS_FILE, check_files, file_sha256
from distil_jax.runs import (
    CONFIG_FILE,
    INPUTS_FILE,
    MANIFEST_FILE,
    METRICS_FILE,
    MODEL_FILE,
    STUDY_FILE,
    TOKENIZER_FOLDER,
    model_sha256,
    read_config,
    read_inputs,
    read_model_file,
    read_starts,
    tokenizer_flaws,
)
from distil_jax.training.checkpoint import CORRUPT, Checkpoints
from distil_jax.training.integrity import DamagedError
from distil_jax.training.task_result import RESULT_FILE

_DEPTH = 4  # folders below the given one: a study has tasks, points of a sweep, seeds
CHECKPOINTS = "checkpoints"


@dataclasses.dataclass(frozen=True)
class Item:
    """One checked file or folder: its path below the folder, its state, and whether that is damage."""

    name: str
    state: str
    damaged: bool = False


def check_folder(folder: Path) -> list[Item]:
    """Check everything that distil_jax wrote in `folder` and the folders below it.

    Raises:
        UserError: nothing in it is from distil_jax.
    """
    if not folder.is_dir():
        raise UserError(f"{folder}: {'is a file' if folder.exists() else 'no such folder'}; give a folder to check")
    items = list(_items(folder, folder, _DEPTH))
    if not items:
        raise UserError(
            f"{folder}: no run, study, prepared corpus or exported model in it (without {CHECKSUMS_FILE} a model has "
            "to be exported again)"
        )
    return items


def _items(folder: Path, top: Path, depth: int) -> Iterator[Item]:
    if (folder / CONFIG_FILE).is_file() or (folder / CHECKPOINTS).is_dir():
        yield from _run(folder, top)
    elif (folder / INDEX).is_file():
        yield _outcome(_name(folder, top), _corpus, folder)
    elif (folder / CACHE_INDEX).is_file():
        yield _outcome(_name(folder, top), _cache, folder)
    elif (folder / CHECKSUMS_FILE).is_file():
        yield from _model(folder, top)
    elif depth:
        for name, look in ((STUDY_FILE, _study), (REPORT_FILE, _report), (MANIFEST_FILE, _manifest)):
            if (folder / name).is_file():
                yield _outcome(_name(folder / name, top), look, folder)
        for below in sorted(folder.iterdir()):
            if below.is_dir() and not below.is_symlink():
                yield from _items(below, top, depth - 1)


def _name(path: Path, top: Path) -> str:
    return one_line(path.relative_to(top)) if path != top else "."


def _outcome(name: str, look: Callable[..., str], *arguments: Any) -> Item:
    """What `look` says of its arguments, or the mistake it met."""
    try:
        return Item(name, look(*arguments))
    except (UserError, DamagedError) as damage:
        return Item(name, f"damaged: {damage}", damaged=True)
    except OSError as error:
        return Item(name, f"damaged: cannot be read ({error})", damaged=True)


def _study(folder: Path) -> str:
    path = folder / STUDY_FILE
    config_from_toml(path.read_text(encoding="utf-8", errors="replace"), str(path))
    return "readable"


def _report(folder: Path, name: str = REPORT_FILE) -> str:
    read_json(folder / name)
    return "readable"


def _corpus(folder: Path) -> str:
    corpus = open_corpus(folder, verify=True)
    return f"whole: {len(corpus.shards)} shards, {corpus.num_rows:,} rows"


def _cache(folder: Path) -> str:
    cache = open_teacher_cache(folder)
    for number in range(len(cache.shards)):
        cache.verify(number)
    return f"whole: {len(cache.shards)} shards, {cache.steps:,} steps"


def _model(folder: Path, top: Path) -> Iterator[Item]:
    try:
        found = check_files(folder)
    except UserError as mistake:
        yield Item(_name(folder / CHECKSUMS_FILE, top), f"damaged: {mistake}", damaged=True)
    else:
        yield from _of_flaws(found, folder, top)


def _of_flaws(flaws: Mapping[str, str], folder: Path, top: Path) -> Iterator[Item]:
    """Files of a folder by their flaw, "" for none."""
    for name, flaw in flaws.items():
        yield Item(_name(folder / name, top), f"damaged: {flaw}" if flaw else "whole", damaged=bool(flaw))


def _run(folder: Path, top: Path) -> Iterator[Item]:
    for name, look in (
        (CONFIG_FILE, _config),
        (INPUTS_FILE, _inputs),
        (MANIFEST_FILE, _manifest),
        (METRICS_FILE, _metrics),
        (RESULT_FILE, partial(_report, name=RESULT_FILE)),
    ):
        if (folder / name).is_file() or name in (CONFIG_FILE, INPUTS_FILE):
            yield _outcome(_name(folder / name, top), look, folder)
    yield from _checkpoints(folder, top)


def _config(folder: Path) -> str:
    read_config(folder)
    starts = read_starts(folder)
    if not starts:
        return "readable"
    if starts[-1].get("config_sha256") != file_sha256(folder / CONFIG_FILE):
        raise UserError(f"not what {MANIFEST_FILE} says of the last start (its SHA-256 differs)")
    return "whole"


def _inputs(folder: Path) -> str:
    inputs, starts = read_inputs(folder), read_starts(folder)
    if starts and starts[-1].get("inputs") != inputs:
        raise UserError(f"not what {MANIFEST_FILE} says of the last start")
    return "whole" if starts else "readable"


def _model_file(folder: Path, named: set[str | None]) -> str:
    if named - {model_sha256(read_model_file(folder))}:
        raise UserError("not what the checkpoints say (its SHA-256 differs)")
    return "whole"


def _tokenizer(folder: Path, top: Path) -> Iterator[Item]:
    with contextlib.suppress(UserError):  # said of model.json itself
        yield from _of_flaws(tokenizer_flaws(folder, read_model_file(folder)), folder / TOKENIZER_FOLDER, top)


def _manifest(folder: Path) -> str:
    number = len(read_starts(folder))
    if not number:
        raise UserError("not a manifest; the run itself does without it")
    return f"readable: {number} start{'s' if number > 1 else ''}"


def _metrics(folder: Path) -> str:
    lines = (folder / METRICS_FILE).read_bytes().splitlines()
    for number, line in enumerate(lines, 1):
        try:
            json.loads(line)
        except (ValueError, RecursionError):
            if number < len(lines):  # the last line may be one that is being written
                raise UserError(f"line {number} is no JSON; the run itself does without it") from None
    return f"readable: {len(lines):,} rows"


def _checkpoints(folder: Path, top: Path) -> Iterator[Item]:
    place = folder / CHECKPOINTS
    if place.exists() and not place.is_dir():
        yield Item(_name(place, top), "damaged: is a file", damaged=True)
        return
    checkpoints = Checkpoints(place, read_only=True) if place.is_dir() else None
    steps = [] if checkpoints is None else checkpoints.all_steps()
    if not steps:
        yield Item(_name(place, top), "none")
    named: set[str | None] = set()  # SHA-256 of model.json, as checkpoints have it; None in older formats
    for step in steps:
        assert checkpoints is not None
        item = _outcome(_name(place / str(step), top), _verified, checkpoints, step)
        if item.damaged and not (place / str(step)).is_dir():
            continue  # a run that is under way has dropped it meanwhile
        yield item
        if not item.damaged:
            named.add(checkpoints.metadata(step).get("model_file"))
    if named - {None} or (folder / MODEL_FILE).is_file():
        yield _outcome(_name(folder / MODEL_FILE, top), _model_file, folder, named - {None})
        yield from _tokenizer(folder, top)
    for aside in sorted(place.glob(f"{CORRUPT}/*")):
        yield Item(_name(aside, top), "was found damaged and put aside earlier")


def _verified(checkpoints: Checkpoints, step: int) -> str:
    checkpoints.verify(step)
    return "whole"
