from __future__ import annotations

import dataclasses
import json
import lzma
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable
from itertools import chain, pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from distil_jax.data.corpus import workers
from distil_jax.data.corpus.prepare import PrepareProgress, PrepareSettings, prepare
from distil_jax.data.corpus.tokens import open_corpus
from distil_jax.errors import UserError


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@pytest.fixture
def text(tmp_path: Path, make_documents: Callable) -> Path:
    path = tmp_path / "text.txt"
    path.write_text("\n\n".join("\n".join(lines) for lines in make_documents(300)))
    return path


@pytest.fixture
def settings(tmp_path: Path, text: Path) -> PrepareSettings:
    return PrepareSettings((str(text),), tmp_path / "corpus", 32, block_bytes=4000, workers=1)


def test_nothing_of_the_text_is_lost(
    settings: PrepareSettings, tiny: Any, make_documents: Callable, naive: Callable, unpack: Callable
) -> None:
    corpus = prepare(settings, tiny)
    expected, short, unknown = naive(make_documents(300), tiny, 32)
    found = unpack(corpus.row_range(0, corpus.num_rows), tiny)
    documents = np.concatenate([shard.documents() for shard in corpus.shards]).tolist()
    assert Counter(zip(documents, found, strict=True)) == Counter(expected)
    assert corpus.index["dropped"] == {"short": short, "unknown": unknown, "bad_lines": 0}
    assert corpus.num_documents == 300 and len(corpus.shards) > 10
    names = {"index.json", "prepare.json", "token_counts.npy"}
    shards = {f"{part}-{i:05d}.bin" for part in ("tokens", "documents") for i in range(len(corpus.shards))}
    assert set(contents(settings.output)) == names | shards
    assert open_corpus(settings.output, verify=True).sha256 == corpus.sha256


def test_documents_larger_than_a_block_keep_their_number(
    tmp_path: Path, tiny: Any, naive: Callable, unpack: Callable, make_documents: Callable
) -> None:
    long = [[*chain.from_iterable(make_documents(40, seed=1))]]
    documents = [*make_documents(3), *long, *make_documents(3, seed=2)]
    (tmp_path / "a.txt").write_text("\n\n".join("\n".join(lines) for lines in documents))
    corpus = prepare(PrepareSettings((str(tmp_path / "a.txt"),), tmp_path / "c", 32, block_bytes=3000, workers=1), tiny)
    numbers = np.concatenate([shard.documents() for shard in corpus.shards]).tolist()
    found = unpack(corpus.row_range(0, corpus.num_rows), tiny)
    assert Counter(zip(numbers, found, strict=True)) == Counter(naive(documents, tiny, 32)[0])
    assert len(corpus.shards) > 4 and corpus.num_documents == 7


def test_any_number_of_workers_and_sources_gives_the_same_bytes(settings: PrepareSettings, tiny: Any) -> None:
    prepare(settings, tiny)
    several = dataclasses.replace(settings, output=settings.output.parent / "two", workers=2)
    prepare(several, tiny)
    assert contents(several.output) == contents(settings.output)


def test_special_tokens_in_text_are_text(tmp_path: Path, tiny: Any) -> None:
    (tmp_path / "a.txt").write_text("[CLS] the [SEP] cat [PAD] sat [MASK] on the mat and ran fast\n")
    corpus = prepare(PrepareSettings((str(tmp_path / "a.txt"),), tmp_path / "c", 64), tiny)
    row = corpus.read(np.array([0]))[0].tolist()
    assert [row.count(i) for i in (tiny.cls_id, tiny.sep_id, tiny.mask_id)] == [1, 1, 0]
    switched = dataclasses.replace(tiny, backend=type(tiny.backend).from_str(tiny.backend.to_str()))
    switched.backend.enable_truncation(4)
    switched.backend.encode_special_tokens = False
    other = prepare(PrepareSettings((str(tmp_path / "a.txt"),), tmp_path / "d", 64), switched)
    assert other.sha256 == corpus.sha256  # the tokenizer's own switches don't matter


SCRIPT = """
import sys, types, tokenizers
from pathlib import Path
from distil_jax.data.corpus.prepare import PrepareSettings, prepare
if __name__ == "__main__":
    source, output, workers, vocabulary, tokenizer = sys.argv[1:]
    tiny = types.SimpleNamespace(backend=tokenizers.Tokenizer.from_str(tokenizer), vocab_size=int(vocabulary),
                                 pad_id=0, unk_id=1, cls_id=2, sep_id=3, mask_id=4, sha256="f" * 64)
    prepare(PrepareSettings((source,), Path(output), 32, block_bytes=4000, workers=int(workers)), tiny)
"""


def is_running(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


@pytest.mark.parametrize("processes", [1, 2])
def test_killed_runs_go_on_and_give_the_same_bytes(
    tmp_path: Path, settings: PrepareSettings, tiny: Any, make_documents: Callable, processes: int
) -> None:
    text = Path(settings.sources[0])
    text.write_text("\n\n".join("\n".join(lines) for lines in make_documents(1500)))
    prepare(settings, tiny)
    (tmp_path / "run.py").write_text(SCRIPT)
    killed = tmp_path / "killed"
    arguments = [str(text), str(killed), str(processes), str(tiny.vocab_size), tiny.backend.to_str()]
    environment = {**os.environ, "PYTHONPATH": str(Path(workers.__file__).parents[2])}
    kept = 0
    for target in (1, 20):
        run = subprocess.Popen([sys.executable, str(tmp_path / "run.py"), *arguments], env=environment)
        while run.poll() is None and len([*killed.glob("block-*.json")]) < kept + target:
            time.sleep(0.001)
        children = Path(f"/proc/{run.pid}/task/{run.pid}/children")
        pids = [*map(int, children.read_text().split())] if children.exists() else []
        run.send_signal(signal.SIGKILL)
        assert run.wait() == -signal.SIGKILL, "it was done before it could be killed"
        deadline = time.monotonic() + 60
        while any(map(is_running, pids)) and time.monotonic() < deadline:
            time.sleep(0.01)
        assert not any(map(is_running, pids)), "workers outlive their parent"
        kept = len([*killed.glob("block-*.json")])
        with pytest.raises(UserError, match="no finished corpus"):
            open_corpus(killed)
    # A file half-written, by a machine that lost power, is no reason to trust its sidecar.
    (killed / "tokens-00000.bin").write_bytes(b"")
    (killed / ".tokens-00001.bin.1.tmp").write_bytes(b"half")
    seen: list[PrepareProgress] = []
    prepare(dataclasses.replace(settings, output=killed), tiny, progress=seen.append)
    assert seen[-1].blocks_reused == kept - 1 > 0
    assert contents(killed) == contents(settings.output)


def test_a_finished_corpus_is_only_opened(
    settings: PrepareSettings, tiny: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = prepare(settings, tiny)
    before = contents(settings.output)
    monkeypatch.setattr(workers, "finish_block", None)
    os.utime(settings.sources[0], (1, 1))  # touched, but the same text
    seen: list[PrepareProgress] = []
    again = prepare(dataclasses.replace(settings, workers=3), tiny, progress=seen.append)
    assert again.sha256 == first.sha256 and contents(settings.output) == before
    assert [(p.already_done, p.tokens, p.blocks) for p in seen] == [(True, first.num_tokens, len(first.shards))]


CHANGES = [
    ({"sequence_length": 64}, "sequence_length was 32, now is 64"),
    ({"pack": False}, "pack was True, now is False"),
    ({"min_tokens": 3, "sequence": "document"}, "sequence was 'line'.*min_tokens was 12, now is 3"),
    ({"sources": ("another.txt",)}, "sources was"),
]


@pytest.mark.parametrize(("change", "words"), CHANGES)
@pytest.mark.parametrize("finished", [True, False])
def test_a_folder_of_other_settings_is_left_alone(
    settings: PrepareSettings, tiny: Any, monkeypatch: pytest.MonkeyPatch, change: dict, words: str, finished: bool
) -> None:
    prepare(settings, tiny)
    if not finished:
        (settings.output / "index.json").unlink()
    before = contents(settings.output)
    monkeypatch.chdir(settings.output.parent)
    Path("another.txt").write_text("the cat sat on the mat and the dog ran home fast")
    with pytest.raises(UserError, match=words):
        prepare(dataclasses.replace(settings, **change), tiny)
    with pytest.raises(UserError, match="sha256 was"):
        prepare(settings, dataclasses.replace(tiny, sha256="0" * 64))
    assert contents(settings.output) == before


def test_changed_text_under_a_finished_or_begun_corpus(settings: PrepareSettings, tiny: Any) -> None:
    text = Path(settings.sources[0])
    prepare(settings, tiny)
    text.write_text(text.read_text() + "\nthe old bird ran to the blue sea and ate a big red fish at home\n")
    with pytest.raises(UserError, match=r"made from other files \(.*text\.txt has changed\)"):
        prepare(settings, tiny)
    fresh = dataclasses.replace(settings, output=settings.output.parent / "fresh")
    prepare(fresh, tiny)
    # An unfinished one goes on with the text as it is now: that is how a bad line is mended.
    (settings.output / "index.json").unlink()
    prepare(settings, tiny)
    assert contents(settings.output) == contents(fresh.output)


def test_text_that_was_not_read_to_its_end_is_told_by_its_size(settings: PrepareSettings, tiny: Any) -> None:
    """As max_documents were reached before, so that its hash is not known."""
    text, limited = Path(settings.sources[0]), dataclasses.replace(settings, max_documents=120)
    first = prepare(limited, tiny)
    os.utime(text, (1, 1))  # touched, or copied
    assert prepare(limited, tiny).sha256 == first.sha256
    text.write_text(text.read_text() + "\nthe old bird ran to the blue sea\n")
    with pytest.raises(UserError, match=r"made from other files \(.*text\.txt has changed\)"):
        prepare(limited, tiny)


def test_a_mended_line_costs_only_its_own_block(tmp_path: Path, settings: PrepareSettings, tiny: Any) -> None:
    text = Path(settings.sources[0])
    good = text.read_bytes()
    text.write_bytes(good + b"\n\nna\xefve\n")
    with pytest.raises(UserError, match=r"text\.txt, line \d+: not valid UTF-8"):
        # The whole file is in the first megabyte, so look at the start alone first.
        prepare(settings, tiny)
    assert not settings.output.exists()  # found before the folder was made
    text.write_bytes(b"the cat sat on the mat and the dog ran home fast\n\n" * 30_000 + good + b"\n\nna\xefve\n")
    with pytest.raises(UserError, match=r"text\.txt, line \d+: not valid UTF-8"):
        prepare(dataclasses.replace(settings, block_bytes=200_000), tiny)
    with pytest.raises(UserError, match="no finished corpus"):
        open_corpus(settings.output)
    text.write_bytes(text.read_bytes().replace(b"na\xefve", b"naive"))
    seen: list[PrepareProgress] = []
    prepare(dataclasses.replace(settings, block_bytes=200_000), tiny, progress=seen.append)
    assert 0 < seen[-1].blocks_reused < seen[-1].blocks


def test_foreign_locked_and_unwritable_folders(tmp_path: Path, settings: PrepareSettings, tiny: Any) -> None:
    import fcntl

    settings.output.mkdir()
    (settings.output / "thesis.txt").write_text("mine")
    with pytest.raises(UserError, match=r"corpus: holds thesis\.txt"):
        prepare(settings, tiny)
    assert contents(settings.output) == {"thesis.txt": b"mine"}
    (settings.output / "thesis.txt").unlink()
    handle = os.open(settings.output, os.O_RDONLY)
    fcntl.flock(handle, fcntl.LOCK_EX)
    with pytest.raises(UserError, match="another process is preparing"):
        prepare(settings, tiny)
    os.close(handle)
    with pytest.raises(UserError, match=r"text\.txt: cannot be made or opened as a folder"):
        prepare(dataclasses.replace(settings, output=Path(settings.sources[0])), tiny)
    (settings.output / ".prepare.json.1.tmp").write_bytes(b"killed here")
    prepare(settings, tiny)
    assert ".prepare.json.1.tmp" not in contents(settings.output)


def test_a_full_disk_is_one_clear_line(settings: PrepareSettings, tiny: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(_: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(UserError, match=r"cannot be written \(No space left on device\)"):
        prepare(settings, tiny)
    assert contents(settings.output) == {}


def test_a_dead_worker_is_one_clear_line(settings: PrepareSettings, tiny: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(workers, "_start_worker", os._exit)  # fails, and so ends the process
    with pytest.raises(UserError, match="a worker process died"):
        prepare(dataclasses.replace(settings, workers=2), tiny)


def test_errors_of_workers_reach_the_user(settings: PrepareSettings, tokenizer_with: Callable) -> None:
    with pytest.raises(UserError, match="its vocabulary has 9"):
        prepare(dataclasses.replace(settings, workers=2), tokenizer_with(vocab_size=9))


@pytest.mark.parametrize("special", [{"mask_id": 10_000}, {"cls_id": 3}])
def test_tokenizers_that_cannot_work(settings: PrepareSettings, tokenizer_with: Callable, special: dict) -> None:
    with pytest.raises(UserError, match=r"outside its vocabulary|share an id"):
        prepare(settings, tokenizer_with(**special))
    assert not settings.output.exists()


def test_text_of_which_nothing_is_left(tmp_path: Path, tiny: Any) -> None:
    (tmp_path / "a.txt").write_text("too short\n")
    with pytest.raises(UserError, match=r"no sequence is left.*1 too short"):
        prepare(PrepareSettings((str(tmp_path / "a.txt"),), tmp_path / "c"), tiny)
    with pytest.raises(UserError, match="no finished corpus"):
        open_corpus(tmp_path / "c")


def test_max_documents_and_progress(settings: PrepareSettings, tiny: Any, text: Path, make_documents: Callable) -> None:
    (text.parent / "first.txt").write_text("\n\n".join("\n".join(lines) for lines in make_documents(300)[:120]))
    first = prepare(
        dataclasses.replace(settings, sources=(str(text.parent / "first.txt"),), output=text.parent / "first"), tiny
    )
    seen: list[PrepareProgress] = []
    limited = prepare(dataclasses.replace(settings, max_documents=120), tiny, progress=seen.append)
    assert limited.sha256 == first.sha256 and limited.num_documents == 120
    assert [p.blocks for p in seen] == list(range(1, len(limited.shards) + 1))
    assert seen[-1].tokens == limited.num_tokens and seen[-1].bytes_total == text.stat().st_size
    assert all(a.bytes_read <= b.bytes_read for a, b in pairwise(seen))


@pytest.mark.parametrize(
    "change",
    [
        {"sequence_length": 2},
        {"min_tokens": 2},
        {"min_tokens": 33},
        {"max_unk_fraction": 0.0},
        {"sequence": "page"},
        {"on_error": "ignore"},
        {"max_documents": 0},
        {"block_bytes": 0},
        {"workers": -1},
    ],
)
def test_settings_that_cannot_be(settings: PrepareSettings, change: dict) -> None:
    name, value = next(iter(change.items()))
    with pytest.raises(UserError, match=rf"prepare: {name} = {value!r} must be"):
        dataclasses.replace(settings, **change)


def test_row_sources_make_the_same_corpus_as_text(tmp_path: Path, settings: PrepareSettings, tiny: Any) -> None:
    corpus = prepare(settings, tiny)
    rows = Path(settings.sources[0]).read_text().split("\n\n")
    (tmp_path / "a.jsonl").write_text("".join(json.dumps({"body": row}) + "\n" for row in rows))
    changes = {"sources": (str(tmp_path / "a.jsonl"),), "text_column": "body", "output": tmp_path / "rows"}
    assert prepare(dataclasses.replace(settings, **changes), tiny).sha256 == corpus.sha256


def test_real_text_and_vocabulary(
    tmp_path: Path, shared: Path, tokenizer_with: Callable, naive: Callable, unpack: Callable
) -> None:
    import tokenizers

    backend = tokenizers.Tokenizer.from_file(str(shared / "data/vocab/bert-base-uncased-tokenizer.json"))
    backend.no_truncation()
    backend.no_padding()
    backend.encode_special_tokens = True
    bert = tokenizer_with(vocab_size=30522, pad_id=0, unk_id=100, cls_id=101, sep_id=102, mask_id=103)
    bert = dataclasses.replace(bert, backend=backend)
    with lzma.open(shared / "data/text/enwiki2015_valid.txt.xz", "rt", encoding="utf8") as stream:
        lines = stream.read(1_500_000).split("\n")[:-1]
    (tmp_path / "a.txt").write_text("\n".join(lines))
    corpus = prepare(PrepareSettings((str(tmp_path / "a.txt"),), tmp_path / "c", block_bytes=1 << 19, workers=2), bert)
    documents: list[list[str]] = [[]]
    for line in lines:
        documents = [*documents[:-1], [*documents[-1], line]] if line.strip() else [*documents, []]
    expected, short, _ = naive([d for d in documents if d], bert, 128)
    numbers = np.concatenate([shard.documents() for shard in corpus.shards]).tolist()
    found = zip(numbers, unpack(corpus.row_range(0, corpus.num_rows), bert), strict=True)
    assert Counter(found) == Counter(expected)
    assert corpus.index["dropped"]["short"] == short
    assert corpus.fill > 0.97
