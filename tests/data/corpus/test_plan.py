"""A corpus folder remembers what it is made from, and is left alone by other commands."""

from __future__ import annotations

import dataclasses
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from distil_jax.config import CorpusSettings
from distil_jax.data.corpus.prepare import prepare
from distil_jax.errors import UserError


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def folder_of(settings: CorpusSettings) -> Path:
    return Path(settings.folder) / "train"


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
    # An unfinished one continues with the text as it is now: that is how a bad line is corrected.
    (folder_of(settings) / "index.json").unlink()
    prepare(settings, "train", tiny)
    assert contents(folder_of(settings)) == contents(folder_of(fresh))


def test_text_that_was_not_read_to_its_end_is_recognised_by_its_size(settings: CorpusSettings, tiny: Any) -> None:
    """As max_documents were reached before, so that its hash is not known."""
    text, limited = Path(settings.train[0]), dataclasses.replace(settings, max_documents=120)
    first = prepare(limited, "train", tiny)
    os.utime(text, (1, 1))  # touched, or copied
    assert prepare(limited, "train", tiny).sha256 == first.sha256
    text.write_text(text.read_text() + "\nthe old bird ran to the blue sea\n")
    with pytest.raises(UserError, match=r"made from other files \(.*text\.txt has changed\)"):
        prepare(limited, "train", tiny)


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
    with pytest.raises(UserError, match="another process prepares"):
        prepare(settings, "train", tiny)
    os.close(handle)
    with pytest.raises(UserError, match=r"text\.txt.*: cannot be used as a folder"):
        prepare(dataclasses.replace(settings, folder=settings.train[0]), "train", tiny)
    (folder_of(settings) / ".prepare.json.1.tmp").write_bytes(b"killed here")
    prepare(settings, "train", tiny)
    assert ".prepare.json.1.tmp" not in contents(folder_of(settings))


@pytest.mark.parametrize("special", [{"mask_id": 10_000}, {"cls_id": 3}])
def test_tokenizers_that_cannot_work(settings: CorpusSettings, tokenizer_with: Callable, special: dict) -> None:
    with pytest.raises(UserError, match=r"outside its vocabulary|share an id"):
        prepare(settings, "train", tokenizer_with(**special))
    assert not folder_of(settings).exists()


def test_a_folder_of_a_version_without_a_setting_is_continued(settings: CorpusSettings, tiny: Any) -> None:
    corpus = prepare(settings, "train", tiny)
    plan = json.loads((corpus.folder / "prepare.json").read_text())
    del plan["settings"]["markup"]
    (corpus.folder / "prepare.json").write_text(json.dumps(plan))
    assert prepare(settings, "train", tiny).sha256 == corpus.sha256
