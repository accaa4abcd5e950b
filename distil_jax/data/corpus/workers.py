"""Blocks of text to shards, on all cores: each worker process tokenises a block and writes its files itself.

Processes and not the tokenizer's own threads, because handing ids over to Python holds the interpreter's lock. They are
spawned, not forked (the parent may run JAX, whose threads don't survive a fork), and import only NumPy and tokenizers.
"""

from __future__ import annotations

import json
import os
import signal
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from dataclasses import dataclass, replace
from itertools import chain, islice
from pathlib import Path
from typing import Any

import numpy as np

from distil_jax.data.corpus.index import flaw_of_shard, shard_names
from distil_jax.data.corpus.packing import Recipe, Rows, rows_of
from distil_jax.data.corpus.tokens import canonical, write_file
from distil_jax.errors import UserError
from distil_jax.hf import file_sha256


@dataclass(frozen=True)
class Block:
    """Consecutive documents, the unit of work: one block becomes one shard.

    `text`: a line a line, a blank line after every document (UTF-8). `first_document` is the number in the corpus of
    the first one; `documents` counts those that start here; `position` is how many bytes of the sources were read when
    the block was full.
    """

    number: int
    first_document: int
    documents: int
    text: bytes
    sha256: str
    position: int


@dataclass(frozen=True)
class Job:
    """What a worker needs to know besides the block; `tokenizer` is a tokenizers.Tokenizer as JSON."""

    tokenizer: str
    recipe: Recipe
    folder: Path
    fingerprint: str


@dataclass(frozen=True)
class Result:
    """A finished shard: its entry in the index, its token counts [vocab_size] int64, and whether an earlier run had
    made it.
    """

    entry: dict[str, Any]
    counts: np.ndarray
    reused: bool


def sidecar(number: int) -> str:
    """Name of the file that says that a block's shard is finished; written after the shard's files."""
    return f"block-{number:05d}.json"


def load_backend(tokenizer: str) -> Any:
    """The tokenizer as blocks are encoded with it: whole lines, and "[CLS]" in a text is just text."""
    import tokenizers

    backend = tokenizers.Tokenizer.from_str(tokenizer)
    backend.no_truncation()
    backend.no_padding()
    backend.encode_special_tokens = True
    return backend


def finish_block(block: Block, job: Job, backend: Any) -> Result:
    """Tokenises a block and writes its shard, then the sidecar. Raises UserError where the folder can't be written."""
    rows = rows_of(block.text.decode(), backend, job.recipe)
    entry: dict[str, Any] = {
        "rows": len(rows.ids),
        "tokens": int(rows.counts.sum()),
        "sequences": len(rows.documents),
        "first_document": block.first_document,
        "documents": block.documents,
        "dropped_short": rows.dropped_short,
        "dropped_unknown": rows.dropped_unknown,
        "text_bytes": len(block.text),
        "text_sha256": block.sha256,
    }
    entry["files"] = _write_shard(block.number, rows, job.folder)
    write_file(job.folder / sidecar(block.number), canonical({"fingerprint": job.fingerprint, "entry": entry}))
    return Result(entry, rows.counts, reused=False)


def _write_shard(number: int, rows: Rows, folder: Path) -> dict[str, Any]:
    written = {}
    for part, name, array in zip(("tokens", "documents"), shard_names(number), (rows.ids, rows.documents), strict=True):
        data = np.ascontiguousarray(array).astype(array.dtype.newbyteorder("<"), copy=False).reshape(-1)
        written[part] = {"file": name, **write_file(folder / name, data.view(np.uint8).data)}
    return written


def reuse(block: Block, job: Job) -> Result | None:
    """The result of an earlier run for the same text and settings, if its files are whole; None to make it again."""
    try:
        saved = json.loads((job.folder / sidecar(block.number)).read_bytes())
        entry = saved["entry"]
        same = (saved["fingerprint"], entry["text_sha256"], entry["first_document"], entry["documents"])
        if same != (job.fingerprint, block.sha256, block.first_document, block.documents):
            return None
        for part, name in zip(("tokens", "documents"), shard_names(block.number), strict=True):
            known = entry["files"][part]
            if known["file"] != name or file_sha256(job.folder / name) != known["sha256"]:
                return None
        ids = np.fromfile(job.folder / shard_names(block.number)[0], job.recipe.dtype)
        flaw = flaw_of_shard(entry, block.number, job.recipe.sequence_length, ids.itemsize)
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return None
    if flaw or (ids.size and int(ids.max()) >= job.recipe.vocab_size):
        return None
    counts = np.bincount(ids, minlength=job.recipe.vocab_size).astype(np.int64)
    counts[job.recipe.pad_id] = 0
    return Result(entry, counts, reused=True)


def finish_blocks(blocks: Iterator[Block], job: Job, workers: int, done: Callable[[Block, Result], None]) -> None:
    """Makes every block's shard, but for those that an earlier run finished, and calls `done` with each, in any order.

    Holds a few blocks a worker at a time; `done` gets the block without its text. Raises UserError where reading or
    writing fails or a worker dies; what is finished stays for the next run.
    """

    def unfinished() -> Iterator[Block]:
        for block in blocks:
            result = reuse(block, job)
            if result is None:
                yield block
            else:
                done(replace(block, text=b""), result)

    todo = unfinished()
    first = [*islice(todo, 2)]
    todo = chain(first, todo)
    # A single block is done sooner here than a process starts.
    if workers == 1 or len(first) < 2:
        _in_process(todo, job, done)
    else:
        _in_pool(todo, job, workers, done)


def _in_process(blocks: Iterator[Block], job: Job, done: Callable[[Block, Result], None]) -> None:
    backend = load_backend(job.tokenizer)
    for block in blocks:
        with _one_thread():
            result = finish_block(block, job, backend)
        done(replace(block, text=b""), result)


@contextmanager
def _one_thread() -> Iterator[None]:
    """One worker means one core: the tokenizer's threads are switched off while it runs."""
    before = os.environ.get("TOKENIZERS_PARALLELISM")
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    try:
        yield
    finally:
        if before is None:
            del os.environ["TOKENIZERS_PARALLELISM"]
        else:
            os.environ["TOKENIZERS_PARALLELISM"] = before


def _in_pool(blocks: Iterator[Block], job: Job, workers: int, done: Callable[[Block, Result], None]) -> None:
    import multiprocessing

    context = multiprocessing.get_context("spawn")
    pool = ProcessPoolExecutor(workers, context, initializer=_start_worker, initargs=(job,))
    waiting: dict[Future[Result], Block] = {}
    in_flight = workers + 2 + workers // 4  # enough that no worker waits for the reader, few enough to bound memory
    try:
        for block in chain(blocks, [None]):
            if block is not None:
                waiting[pool.submit(_work, block)] = replace(block, text=b"")
            while waiting and (block is None or len(waiting) >= in_flight):
                for future in wait(waiting, return_when=FIRST_COMPLETED).done:
                    done(waiting.pop(future), future.result())
    except BrokenProcessPool as error:
        hint = "run the same command again with fewer workers: it continues with the blocks that are missing"
        raise UserError(f"{job.folder}: a worker process died, perhaps out of memory; {hint}") from error
    finally:
        pool.shutdown(cancel_futures=True)


_worker: tuple[Job, Any] | None = None


def _start_worker(job: Job) -> None:
    global _worker
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the whole group; the parent winds the workers up
    threading.Thread(target=_die_with_parent, daemon=True).start()
    _worker = job, load_backend(job.tokenizer)


def _die_with_parent() -> None:
    """A killed parent can't stop its workers, and they would wait for work for ever."""
    import multiprocessing

    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)


def _work(block: Block) -> Result:
    assert _worker is not None
    return finish_block(block, *_worker)
