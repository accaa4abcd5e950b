"""Any number of workers, killed and started again, write the same shards."""

from __future__ import annotations

import dataclasses
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from distil_jax.config import CorpusSettings
from distil_jax.data.corpus import workers
from distil_jax.data.corpus.prepare import PrepareProgress, prepare
from distil_jax.data.corpus.tokens import open_corpus
from distil_jax.errors import UserError


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def folder_of(settings: CorpusSettings) -> Path:
    return Path(settings.folder) / "train"


def test_any_number_of_workers_and_sources_gives_the_same_bytes(settings: CorpusSettings, tiny: Any) -> None:
    prepare(settings, "train", tiny)
    several = dataclasses.replace(settings, folder=settings.folder + "-two", workers=2)
    prepare(several, "train", tiny)
    assert contents(folder_of(several)) == contents(folder_of(settings))


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
def test_killed_runs_continue_and_give_the_same_bytes(
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


def test_a_corrected_line_costs_only_its_own_block(tmp_path: Path, settings: CorpusSettings, tiny: Any) -> None:
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
