from __future__ import annotations

import dataclasses
import json
import lzma
import os
import shutil
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

from distil_jax.config import CorpusSettings
from distil_jax.data.corpus import workers
from distil_jax.data.corpus.prepare import PrepareProgress, prepare
from distil_jax.data.corpus.tokens import open_corpus
from distil_jax.errors import UserError
from distil_jax.hf import load_tokenizer


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@pytest.fixture
def text(tmp_path: Path, make_documents: Callable) -> Path:
    path = tmp_path / "text.txt"
    path.write_text("\n\n".join("\n".join(lines) for lines in make_documents(300)))
    return path


def folder_of(settings: CorpusSettings) -> Path:
    return Path(settings.folder) / "train"


@pytest.fixture
def settings(tmp_path: Path, text: Path) -> CorpusSettings:
    return CorpusSettings(
        folder=str(tmp_path / "corpus"), train=(str(text),), sequence_length=32, block_bytes=4000, workers=1
    )


def test_nothing_of_the_text_is_lost(
    settings: CorpusSettings, tiny: Any, make_documents: Callable, naive: Callable, unpack: Callable
) -> None:
    corpus = prepare(settings, "train", tiny)
    expected, short, unknown = naive(make_documents(300), tiny, 32)
    found = unpack(corpus.row_range(0, corpus.num_rows), tiny)
    documents = np.concatenate([shard.documents() for shard in corpus.shards]).tolist()
    assert Counter(zip(documents, found, strict=True)) == Counter(expected)
    assert corpus.index["dropped"] == {"short": short, "unknown": unknown, "bad_lines": 0}
    assert corpus.num_documents == 300 and len(corpus.shards) > 10
    names = {"index.json", "prepare.json", "token_counts.npy"}
    shards = {f"{part}-{i:05d}.bin" for part in ("tokens", "documents") for i in range(len(corpus.shards))}
    assert set(contents(folder_of(settings))) == names | shards
    assert open_corpus(folder_of(settings), verify=True).sha256 == corpus.sha256


def test_documents_larger_than_a_block_keep_their_number(
    tmp_path: Path, tiny: Any, naive: Callable, unpack: Callable, make_documents: Callable
) -> None:
    long = [[*chain.from_iterable(make_documents(40, seed=1))]]
    documents = [*make_documents(3), *long, *make_documents(3, seed=2)]
    (tmp_path / "a.txt").write_text("\n\n".join("\n".join(lines) for lines in documents))
    corpus = prepare(
        CorpusSettings(
            folder=str(tmp_path / "c"),
            train=(str(tmp_path / "a.txt"),),
            sequence_length=32,
            block_bytes=3000,
            workers=1,
        ),
        "train",
        tiny,
    )
    numbers = np.concatenate([shard.documents() for shard in corpus.shards]).tolist()
    found = unpack(corpus.row_range(0, corpus.num_rows), tiny)
    assert Counter(zip(numbers, found, strict=True)) == Counter(naive(documents, tiny, 32)[0])
    assert len(corpus.shards) > 4 and corpus.num_documents == 7


def test_any_number_of_workers_and_sources_gives_the_same_bytes(settings: CorpusSettings, tiny: Any) -> None:
    prepare(settings, "train", tiny)
    several = dataclasses.replace(settings, folder=settings.folder + "-two", workers=2)
    prepare(several, "train", tiny)
    assert contents(folder_of(several)) == contents(folder_of(settings))


def test_special_tokens_in_text_are_text(tmp_path: Path, tiny: Any) -> None:
    (tmp_path / "a.txt").write_text("[CLS] the [SEP] cat [PAD] sat [MASK] on the mat and ran fast\n")
    corpus = prepare(
        CorpusSettings(folder=str(tmp_path / "c"), train=(str(tmp_path / "a.txt"),), sequence_length=64), "train", tiny
    )
    row = corpus.read(np.array([0]))[0].tolist()
    assert [row.count(i) for i in (tiny.cls_id, tiny.sep_id, tiny.mask_id)] == [1, 1, 0]
    switched = dataclasses.replace(tiny, backend=type(tiny.backend).from_str(tiny.backend.to_str()))
    switched.backend.enable_truncation(4)
    switched.backend.encode_special_tokens = False
    other = prepare(
        CorpusSettings(folder=str(tmp_path / "d"), train=(str(tmp_path / "a.txt"),), sequence_length=64),
        "train",
        switched,
    )
    assert other.sha256 == corpus.sha256  # the tokenizer's own switches don't matter


SCRIPT = """
import sys, types, tokenizers
from distil_jax.config import CorpusSettings
from distil_jax.data.corpus.prepare import prepare
if __name__ == "__main__":
    source, output, workers, vocabulary, tokenizer = sys.argv[1:]
    tiny = types.SimpleNamespace(backend=tokenizers.Tokenizer.from_str(tokenizer), vocab_size=int(vocabulary),
                                 pad_id=0, unk_id=1, cls_id=2, sep_id=3, mask_id=4, sha256="f" * 64)
    settings = CorpusSettings(folder=output, train=(source,), sequence_length=32, block_bytes=4000,
                              workers=int(workers))
    prepare(settings, "train", tiny)
"""


def is_running(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


@pytest.mark.parametrize("processes", [1, 2])
def test_killed_runs_go_on_and_give_the_same_bytes(
    tmp_path: Path, settings: CorpusSettings, tiny: Any, make_documents: Callable, processes: int
) -> None:
    text = Path(settings.train[0])
    text.write_text("\n\n".join("\n".join(lines) for lines in make_documents(1500)))
    prepare(settings, "train", tiny)
    (tmp_path / "run.py").write_text(SCRIPT)
    killed = tmp_path / "killed" / "train"
    arguments = [str(text), str(killed.parent), str(processes), str(tiny.vocab_size), tiny.backend.to_str()]
    environment = {**os.environ, "PYTHONPATH": str(Path(workers.__file__).parents[3])}
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
    prepare(dataclasses.replace(settings, folder=str(tmp_path / "killed")), "train", tiny, progress=seen.append)
    assert seen[-1].blocks_reused == kept - 1 > 0
    assert contents(killed) == contents(folder_of(settings))


def test_a_finished_corpus_is_only_opened(settings: CorpusSettings, tiny: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    first = prepare(settings, "train", tiny)
    before = contents(folder_of(settings))
    monkeypatch.setattr(workers, "finish_block", None)
    os.utime(settings.train[0], (1, 1))  # touched, but the same text
    seen: list[PrepareProgress] = []
    again = prepare(dataclasses.replace(settings, workers=3), "train", tiny, progress=seen.append)
    assert again.sha256 == first.sha256 and contents(folder_of(settings)) == before
    assert [(p.already_done, p.tokens, p.blocks) for p in seen] == [(True, first.num_tokens, len(first.shards))]


CHANGES = [
    ({"sequence_length": 64}, "sequence_length was 32, now is 64"),
    ({"pack": False}, "pack was True, now is False"),
    ({"min_tokens": 3, "sequence": "document"}, "sequence was 'line'.*min_tokens was 12, now is 3"),
    ({"train": ("another.txt",)}, "sources was"),
]


@pytest.mark.parametrize(("change", "words"), CHANGES)
@pytest.mark.parametrize("finished", [True, False])
def test_a_folder_of_other_settings_is_left_alone(
    settings: CorpusSettings, tiny: Any, monkeypatch: pytest.MonkeyPatch, change: dict, words: str, finished: bool
) -> None:
    prepare(settings, "train", tiny)
    if not finished:
        (folder_of(settings) / "index.json").unlink()
    before = contents(folder_of(settings))
    monkeypatch.chdir(Path(settings.folder).parent)
    Path("another.txt").write_text("the cat sat on the mat and the dog ran home fast")
    with pytest.raises(UserError, match=words):
        prepare(dataclasses.replace(settings, **change), "train", tiny)
    with pytest.raises(UserError, match="sha256 was"):
        prepare(settings, "train", dataclasses.replace(tiny, sha256="0" * 64))
    assert contents(folder_of(settings)) == before


def test_changed_text_under_a_finished_or_begun_corpus(settings: CorpusSettings, tiny: Any) -> None:
    text = Path(settings.train[0])
    prepare(settings, "train", tiny)
    text.write_text(text.read_text() + "\nthe old bird ran to the blue sea and ate a big red fish at home\n")
    with pytest.raises(UserError, match=r"made from other files \(.*text\.txt has changed\)"):
        prepare(settings, "train", tiny)
    fresh = dataclasses.replace(settings, folder=settings.folder + "-fresh")
    prepare(fresh, "train", tiny)
    # An unfinished one goes on with the text as it is now: that is how a bad line is mended.
    (folder_of(settings) / "index.json").unlink()
    prepare(settings, "train", tiny)
    assert contents(folder_of(settings)) == contents(folder_of(fresh))


def test_text_that_was_not_read_to_its_end_is_told_by_its_size(settings: CorpusSettings, tiny: Any) -> None:
    """As max_documents were reached before, so that its hash is not known."""
    text, limited = Path(settings.train[0]), dataclasses.replace(settings, max_documents=120)
    first = prepare(limited, "train", tiny)
    os.utime(text, (1, 1))  # touched, or copied
    assert prepare(limited, "train", tiny).sha256 == first.sha256
    text.write_text(text.read_text() + "\nthe old bird ran to the blue sea\n")
    with pytest.raises(UserError, match=r"made from other files \(.*text\.txt has changed\)"):
        prepare(limited, "train", tiny)


def test_a_mended_line_costs_only_its_own_block(tmp_path: Path, settings: CorpusSettings, tiny: Any) -> None:
    text = Path(settings.train[0])
    good = text.read_bytes()
    text.write_bytes(good + b"\n\nna\xefve\n")
    with pytest.raises(UserError, match=r"text\.txt, line \d+: not valid UTF-8"):
        # The whole file is in the first megabyte, so look at the start alone first.
        prepare(settings, "train", tiny)
    assert not folder_of(settings).exists()  # found before the folder was made
    text.write_bytes(b"the cat sat on the mat and the dog ran home fast\n\n" * 30_000 + good + b"\n\nna\xefve\n")
    with pytest.raises(UserError, match=r"text\.txt, line \d+: not valid UTF-8"):
        prepare(dataclasses.replace(settings, block_bytes=200_000), "train", tiny)
    with pytest.raises(UserError, match="no finished corpus"):
        open_corpus(folder_of(settings))
    text.write_bytes(text.read_bytes().replace(b"na\xefve", b"naive"))
    seen: list[PrepareProgress] = []
    prepare(dataclasses.replace(settings, block_bytes=200_000), "train", tiny, progress=seen.append)
    assert 0 < seen[-1].blocks_reused < seen[-1].blocks


def test_foreign_locked_and_unwritable_folders(tmp_path: Path, settings: CorpusSettings, tiny: Any) -> None:
    import fcntl

    folder_of(settings).mkdir(parents=True)
    (folder_of(settings) / "thesis.txt").write_text("mine")
    with pytest.raises(UserError, match=r"train: holds thesis\.txt"):
        prepare(settings, "train", tiny)
    assert contents(folder_of(settings)) == {"thesis.txt": b"mine"}
    (folder_of(settings) / "thesis.txt").unlink()
    handle = os.open(folder_of(settings), os.O_RDONLY)
    fcntl.flock(handle, fcntl.LOCK_EX)
    with pytest.raises(UserError, match="another process is preparing"):
        prepare(settings, "train", tiny)
    os.close(handle)
    with pytest.raises(UserError, match=r"text\.txt.*: cannot be made or opened as a folder"):
        prepare(dataclasses.replace(settings, folder=settings.train[0]), "train", tiny)
    (folder_of(settings) / ".prepare.json.1.tmp").write_bytes(b"killed here")
    prepare(settings, "train", tiny)
    assert ".prepare.json.1.tmp" not in contents(folder_of(settings))


def test_a_full_disk_is_one_clear_line(settings: CorpusSettings, tiny: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(_: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(UserError, match=r"cannot be written \(No space left on device\)"):
        prepare(settings, "train", tiny)
    assert contents(folder_of(settings)) == {}


def test_a_dead_worker_is_one_clear_line(settings: CorpusSettings, tiny: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(workers, "_start_worker", os._exit)  # fails, and so ends the process
    with pytest.raises(UserError, match="a worker process died"):
        prepare(dataclasses.replace(settings, workers=2), "train", tiny)


def test_errors_of_workers_reach_the_user(settings: CorpusSettings, tokenizer_with: Callable) -> None:
    with pytest.raises(UserError, match="its vocabulary has 9"):
        prepare(dataclasses.replace(settings, workers=2), "train", tokenizer_with(vocab_size=9))


@pytest.mark.parametrize("special", [{"mask_id": 10_000}, {"cls_id": 3}])
def test_tokenizers_that_cannot_work(settings: CorpusSettings, tokenizer_with: Callable, special: dict) -> None:
    with pytest.raises(UserError, match=r"outside its vocabulary|share an id"):
        prepare(settings, "train", tokenizer_with(**special))
    assert not folder_of(settings).exists()


def test_text_of_which_nothing_is_left(tmp_path: Path, tiny: Any) -> None:
    (tmp_path / "a.txt").write_text("too short\n")
    with pytest.raises(UserError, match=r"no sequence is left.*1 too short"):
        prepare(
            CorpusSettings(folder=str(tmp_path / "c"), train=(str(tmp_path / "a.txt"),), sequence_length=128),
            "train",
            tiny,
        )
    with pytest.raises(UserError, match="no finished corpus"):
        open_corpus(tmp_path / "c" / "train")


def test_max_documents_and_progress(settings: CorpusSettings, tiny: Any, text: Path, make_documents: Callable) -> None:
    (text.parent / "first.txt").write_text("\n\n".join("\n".join(lines) for lines in make_documents(300)[:120]))
    first = prepare(
        dataclasses.replace(settings, train=(str(text.parent / "first.txt"),), folder=str(text.parent / "first")),
        "train",
        tiny,
    )
    seen: list[PrepareProgress] = []
    limited = prepare(dataclasses.replace(settings, max_documents=120), "train", tiny, progress=seen.append)
    assert limited.sha256 == first.sha256 and limited.num_documents == 120
    assert [p.blocks for p in seen] == list(range(1, len(limited.shards) + 1))
    assert seen[-1].tokens == limited.num_tokens and seen[-1].bytes_total == text.stat().st_size
    assert all(a.bytes_read <= b.bytes_read for a, b in pairwise(seen))


def test_no_smallest_length(settings: CorpusSettings, tiny: Any) -> None:
    corpus = prepare(dataclasses.replace(settings, min_tokens=0), "train", tiny)
    assert corpus.index["dropped"]["short"] == 0


def test_row_sources_make_the_same_corpus_as_text(tmp_path: Path, settings: CorpusSettings, tiny: Any) -> None:
    corpus = prepare(settings, "train", tiny)
    rows = Path(settings.train[0]).read_text().split("\n\n")
    (tmp_path / "a.jsonl").write_text("".join(json.dumps({"body": row}) + "\n" for row in rows))
    changes = {"train": (str(tmp_path / "a.jsonl"),), "text_column": "body", "folder": str(tmp_path / "rows")}
    assert prepare(dataclasses.replace(settings, **changes), "train", tiny).sha256 == corpus.sha256


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
    corpus = prepare(
        CorpusSettings(
            folder=str(tmp_path / "c"),
            train=(str(tmp_path / "a.txt"),),
            sequence_length=128,
            block_bytes=1 << 19,
            workers=2,
        ),
        "train",
        bert,
    )
    documents: list[list[str]] = [[]]
    for line in lines:
        documents = [*documents[:-1], [*documents[-1], line]] if line.strip() else [*documents, []]
    expected, short, _ = naive([d for d in documents if d], bert, 128)
    numbers = np.concatenate([shard.documents() for shard in corpus.shards]).tolist()
    found = zip(numbers, unpack(corpus.row_range(0, corpus.num_rows), bert), strict=True)
    assert Counter(found) == Counter(expected)
    assert corpus.index["dropped"]["short"] == short
    assert corpus.fill > 0.97


def test_what_a_user_should_know_is_noted(tmp_path: Path, tiny: Any) -> None:
    line = "the cat sat on a mat and ran fast home\n"
    (tmp_path / "wiki.txt").write_text(f'<doc id="1" url="x" title="y">\n{line * 3}</doc>\n')
    (tmp_path / "plain.txt").write_text(line)

    def made(name: str, **changes: Any) -> Any:
        folder = tmp_path / "-".join(("corpus", name, *changes.values()))
        settings = CorpusSettings(
            folder=str(folder), train=(str(tmp_path / name),), sequence_length=32, min_tokens=3, workers=1, **changes
        )
        corpus = prepare(settings, "train", tiny)
        assert prepare(settings, "train", tiny).notes == corpus.notes
        return corpus

    kept, dropped = made("wiki.txt"), made("wiki.txt", markup="drop")
    assert all(any("<doc" in note and "2" in note for note in corpus.notes) for corpus in (kept, dropped))
    assert (kept.num_sequences, dropped.num_sequences) == (5, 3)
    assert made("plain.txt").notes == ()


def test_a_folder_of_a_version_without_a_setting_goes_on(settings: CorpusSettings, tiny: Any) -> None:
    corpus = prepare(settings, "train", tiny)
    plan = json.loads((corpus.folder / "prepare.json").read_text())
    del plan["settings"]["markup"]
    (corpus.folder / "prepare.json").write_text(json.dumps(plan))
    assert prepare(settings, "train", tiny).sha256 == corpus.sha256


def test_a_byte_level_vocabulary(tmp_path: Path, shared: Path, unpack: Callable) -> None:
    for name in ("vocab.json", "merges.txt"):
        shutil.copy(shared / "data" / "vocab" / f"roberta-base-{name}", tmp_path / name)
    roberta = load_tokenizer(tmp_path)
    lines = [
        "A naïve <s> caf\u00e9, <mask>  with 1234 Unfriendliest \u6771\u4eac </s> in it.",
        " ".join(f"word {number}" for number in range(100)),
    ]
    (tmp_path / "a.txt").write_text("\n".join(lines))
    wanted = CorpusSettings(folder=str(tmp_path / "c"), train=(str(tmp_path / "a.txt"),), sequence_length=64)
    corpus = prepare(wanted, "train", roberta)
    found = unpack(corpus.row_range(0, corpus.num_rows), roberta)
    assert roberta.mask_id not in [*chain.from_iterable(found)]
    decoded = [roberta.backend.decode(list(one[1:-1]), skip_special_tokens=False) for one in found]
    assert lines[0] in decoded
    assert "".join(sorted(set(decoded) - {lines[0]}, key=lines[1].find)) == lines[1]
