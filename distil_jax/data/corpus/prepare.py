"""`distil-jax prepare`: text to memory-mapped token shards, on all cores, resumable, larger than memory.

The sources are cut into blocks of about `block_bytes` of whole documents, by their text alone; each block becomes one
shard. So the result is the same to the bit for any number of workers and however often it was interrupted. Two files
keep the state of a folder: `prepare.json` says what it is being made from, `block-00000.json` that a shard is finished;
`index.json`, written last, makes it a corpus.
"""

from __future__ import annotations

import hashlib
import io
import os
import re
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from distil_jax.config import CorpusSettings
from distil_jax.data.corpus.index import COUNTS
from distil_jax.data.corpus.packing import Recipe, token_dtype
from distil_jax.data.corpus.plan import PLAN, SPECIAL, is_finished, locked, make_plan
from distil_jax.data.corpus.sources import ReadState, Source, SourceOptions, check, documents, resolve
from distil_jax.data.corpus.tokens import INDEX, VERSION, Corpus, canonical, open_corpus, write_file, write_index
from distil_jax.data.corpus.workers import Block, Job, Result, finish_blocks
from distil_jax.data.rows import LINE_LIMIT
from distil_jax.errors import UserError

if TYPE_CHECKING:
    from distil_jax.hf import Tokenizer

_SHOWN = ("text_bytes", "documents", "sequences", "tokens", "rows")
_OWN_FILES = re.compile(r"(tokens|documents)-\d{5,}\.bin|block-\d{5,}\.json|\..+\.\d+\.tmp|token_counts\.npy")


@dataclass(frozen=True)
class PrepareProgress:
    """How far it is.

    `bytes_read` and `bytes_total` count bytes on disk (total None: unknown), `text_bytes` unpacked text, all of
    finished blocks. `blocks_reused` counts shards found finished; `already_done`: the folder held the whole corpus.
    elapsed: seconds.
    """

    bytes_read: int
    bytes_total: int | None
    text_bytes: int
    documents: int
    sequences: int
    tokens: int
    rows: int
    blocks: int
    blocks_reused: int
    elapsed: float
    already_done: bool = False


Split = Literal["train", "validation"]
ProgressCallback = Callable[[PrepareProgress], None]


def prepare(
    settings: CorpusSettings, split: Split, tokenizer: Tokenizer, *, progress: ProgressCallback | None = None
) -> Corpus:
    """Makes, continues or just opens the corpus of a split, and returns it.

    Args:
        settings: sources, folder and form of the rows.
        split: which sources are read, and the name of the folder in `settings.folder`.
        tokenizer: splits the text.
        progress: called after every block.

    Raises:
        UserError: anything wrong with the sources, the tokenizer or the split's folder, which must be new, empty or of
            the same settings and sources. Finished shards stay for the next run of the same command.
    """
    started = time.monotonic()
    texts: tuple[str, ...] = getattr(settings, split)
    sources, output = resolve(texts), Path(settings.folder) / split
    plan = make_plan(settings, texts, sources, tokenizer)
    options = SourceOptions(settings.text_column, settings.on_error, settings.markup, LINE_LIMIT, settings.block_bytes)
    begun = (output / PLAN).exists()
    if not begun:
        check(sources, options)  # before the folder is made: a mistake leaves nothing behind
    with locked(output):
        if begun and is_finished(output, plan):
            corpus = open_corpus(output)
            if progress:
                size, shards = sum(source["bytes"] or 0 for source in corpus.index["sources"]), len(corpus.shards)
                whole = {"bytes_read": size, "bytes_total": size, "already_done": True}
                progress(_progress(corpus.index, started, shards, shards, **whole))
            return corpus
        write_file(output / PLAN, canonical(plan))
        tally = _Tally(sources, progress, started)
        blocks = _blocks(sources, options, settings, tally.state)
        finish_blocks(blocks, _job(settings, output, tokenizer, plan), _workers(settings), tally.add)
        _commit(settings, output, sources, plan, tally)
        return open_corpus(output)


def prepare_splits(
    settings: CorpusSettings, tokenizer: Tokenizer, progress: Callable[[str, PrepareProgress], None] | None = None
) -> dict[str, Corpus]:
    """Prepare `folder`/train and, where there are sources for it, `folder`/validation.

    Args:
        settings: sources, folder and form of the rows.
        tokenizer: splits the text.
        progress: called with the split's name after every block.

    Raises:
        UserError: as `prepare`.
    """
    corpora = {}
    if settings.validation:
        resolve(settings.validation)  # a missing file is an error before hours go into the others
    for split in ("train", "validation"):
        if getattr(settings, split):
            report = None if progress is None else lambda state, split=split: progress(split, state)
            corpora[split] = prepare(settings, split, tokenizer, progress=report)
    return corpora


# Blocks


def _blocks(
    sources: Sequence[Source], options: SourceOptions, settings: CorpusSettings, state: ReadState
) -> Iterator[Block]:
    """Cuts the documents of all sources into blocks: a block is full when it holds block_bytes."""
    texts: list[bytes] = []
    most = settings.max_documents or None
    size = number = seen = before = first = 0

    def full() -> Block:
        text = b"".join(texts)
        digest = hashlib.sha256(text).hexdigest()
        return Block(number, first, seen - before, text, digest, state.bytes_read)

    for source in sources:
        for document in documents(source, options, state):
            if not document.continued:
                if seen == most:
                    break
                seen += 1
            if not texts:
                first = seen - 1
            texts.append(b"\n".join(document.lines) + b"\n\n")
            size += len(texts[-1])
            if size >= settings.block_bytes:
                yield full()
                texts, size, number, before = [], 0, number + 1, seen
        if seen == most:
            break
    if texts:
        yield full()


def _workers(settings: CorpusSettings) -> int:
    if settings.workers:
        return settings.workers
    # Fewer than the machine has where a scheduler or container pins the process.
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _job(settings: CorpusSettings, output: Path, tokenizer: Tokenizer, plan: dict[str, Any]) -> Job:
    recipe = Recipe(
        sequence_length=settings.sequence_length,
        pack=settings.pack,
        sequence=settings.sequence,
        min_tokens=settings.min_tokens,
        max_unk_fraction=settings.max_unk_fraction,
        vocab_size=tokenizer.vocab_size,
        pad_id=tokenizer.pad_id,
        unk_id=tokenizer.unk_id,
        cls_id=tokenizer.cls_id,
        sep_id=tokenizer.sep_id,
    )
    # A block's own text is checked by its hash, so a finished shard outlives a change elsewhere in the sources.
    fingerprint = hashlib.sha256(canonical([VERSION, asdict(recipe), plan["tokenizer"]])).hexdigest()
    return Job(tokenizer.backend.to_str(), recipe, output, fingerprint)


# Totals and the index


class _Tally:
    """Adds up the results of blocks, which come in any order, and reports progress."""

    def __init__(self, sources: Sequence[Source], progress: ProgressCallback | None, started: float) -> None:
        self.state, self.progress, self.started = ReadState(), progress, started
        self.bytes_total = sum(s.size for s in sources) if all(s.path for s in sources) else None
        self.entries: dict[int, dict[str, Any]] = {}
        self.counts: np.ndarray | None = None
        self.totals: dict[str, int] = dict.fromkeys(
            ("text_bytes", "documents", "sequences", "tokens", "rows", "dropped_short", "dropped_unknown"), 0
        )
        self.position = self.reused = 0

    def add(self, block: Block, result: Result) -> None:
        self.entries[block.number] = result.entry
        self.counts = result.counts if self.counts is None else self.counts + result.counts
        for name in self.totals:
            self.totals[name] += result.entry[name]
        self.position, self.reused = max(self.position, block.position), self.reused + result.reused
        if self.progress:
            bytes_of = {"bytes_read": self.position, "bytes_total": self.bytes_total}
            self.progress(_progress(self.totals, self.started, len(self.entries), self.reused, **bytes_of))


def _progress(totals: Mapping[str, Any], started: float, blocks: int, reused: int, **more: Any) -> PrepareProgress:
    shown: dict[str, Any] = {name: totals[name] for name in _SHOWN}
    elapsed = time.monotonic() - started
    return PrepareProgress(**shown, blocks=blocks, blocks_reused=reused, elapsed=elapsed, **more)


def _notes(settings: CorpusSettings, state: ReadState) -> list[str]:
    """What a user should know about the sources."""
    notes = [*state.notes[:20]]
    if state.markup_lines:
        done = "left out" if settings.markup == "drop" else 'kept as text; leave them out with corpus.markup = "drop"'
        notes.append(f"{state.markup_lines:,} lines <doc ...> and </doc> of WikiExtractor, {done}")
    if state.bad_lines:
        notes.append(f"{state.bad_lines:,} lines or rows that cannot be read left out")
    return notes


def _commit(
    settings: CorpusSettings, folder: Path, sources: Sequence[Source], plan: dict[str, Any], tally: _Tally
) -> None:
    """Writes token counts and, last of all, the index; then removes what only an unfinished corpus needs."""
    totals = tally.totals
    if not totals["rows"] or tally.counts is None:
        dropped = f"{totals['dropped_short']} too short, {totals['dropped_unknown']} of unknown tokens"
        raise UserError(f"{folder}: no sequence is left ({dropped}); lower corpus.min_tokens or give more text")
    shards = [tally.entries[number] for number in range(len(tally.entries))]
    buffer = io.BytesIO()
    np.save(buffer, tally.counts)
    counts = {"file": COUNTS, **write_file(folder / COUNTS, buffer.getbuffer())}
    keep = {INDEX, PLAN, COUNTS} | {file["file"] for shard in shards for file in shard["files"].values()}
    stale = [path for path in folder.iterdir() if path.name not in keep and _OWN_FILES.fullmatch(path.name)]
    known = plan["tokenizer"]
    index = {
        "sequence_length": settings.sequence_length,
        "packed": settings.pack,
        "dtype": token_dtype(known["vocab_size"]),
        "vocab_size": known["vocab_size"],
        "tokenizer_sha256": known["sha256"],
        "special_ids": {name: known[name] for name in SPECIAL},
        **{name: totals[name] for name in _SHOWN},
        "dropped": {
            "short": totals["dropped_short"],
            "unknown": totals["dropped_unknown"],
            "bad_lines": tally.state.bad_lines,
        },
        "settings": plan["settings"],
        "sources": [
            {
                "name": s.name,
                "kind": s.kind,
                "bytes": s.size if s.path else None,
                "sha256": tally.state.sha256.get(s.name),
            }
            for s in sources
        ],
        "token_counts": counts,
        "shards": shards,
    }
    if notes := _notes(settings, tally.state):
        index["notes"] = notes
    write_index(folder, index)
    for path in stale:
        path.unlink()
