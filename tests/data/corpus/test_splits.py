"""The corpus of a configuration: both splits, with the settings given."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from distil_jax.config import CorpusSettings
from distil_jax.data.corpus import open_corpus, prepare_splits
from distil_jax.errors import UserError


@pytest.fixture
def settings(tmp_path: Path) -> CorpusSettings:
    lines = ["the cat sat on a mat and ran fast home to eat", "big old blue sea bird", "red fish " * 30]
    (tmp_path / "train.txt").write_text("\n\n".join(lines * 4))
    (tmp_path / "held.txt").write_text("\n\n".join(lines))
    return CorpusSettings(
        folder=str(tmp_path / "corpus"),
        train=(str(tmp_path / "train.txt"),),
        validation=(str(tmp_path / "held.txt"),),
        sequence_length=24,
        min_tokens=8,
        workers=1,
    )


def test_both_splits_are_prepared_with_the_same_settings(settings: CorpusSettings, tiny: Any) -> None:
    calls = []
    corpora = prepare_splits(settings, tiny, lambda split, progress: calls.append((split, progress.documents)))
    assert list(corpora) == ["train", "validation"]
    assert calls == [("train", 12), ("validation", 3)]
    for split, corpus in corpora.items():
        assert corpus.folder == Path(settings.folder) / split
        assert corpus.sequence_length == 24
        assert corpus.packed
        assert open_corpus(corpus.folder).sha256 == corpus.sha256
    assert corpora["train"].num_sequences == 4 * corpora["validation"].num_sequences
    assert corpora["train"].index["dropped"]["short"] == 4  # [CLS], five words, [SEP]: seven tokens


def test_missing_held_out_text_is_told_before_the_other_is_read(settings: CorpusSettings, tiny: Any) -> None:
    from dataclasses import replace

    calls: list[str] = []
    with pytest.raises(UserError, match=r"nothere\.txt: no such file"):
        prepare_splits(replace(settings, validation=("nothere.txt",)), tiny, lambda split, _: calls.append(split))
    assert not calls and not Path(settings.folder).exists()


def test_every_setting_arrives(settings: CorpusSettings, tiny: Any) -> None:
    from dataclasses import replace

    changed = replace(
        settings,
        folder=settings.folder + "2",
        validation=(),
        pack=False,
        sequence="document",
        min_tokens=3,
        max_unk_fraction=0.25,
        on_error="skip",
        max_documents=2,
        block_bytes=7,
        text_column="body",
    )
    corpora = prepare_splits(changed, tiny)
    assert list(corpora) == ["train"]
    assert not (Path(changed.folder) / "validation").exists()
    corpus = corpora["train"]
    assert (corpus.packed, corpus.num_documents, corpus.num_sequences, len(corpus.shards)) == (False, 2, 2, 2)
    same = (
        "pack",
        "sequence",
        "min_tokens",
        "max_unk_fraction",
        "on_error",
        "max_documents",
        "block_bytes",
        "text_column",
    )
    for name in same:
        assert corpus.index["settings"][name] == getattr(changed, name), name
    assert (np.asarray(corpus.read(np.arange(2)))[:, 0] == tiny.cls_id).all()


def test_again_it_is_done(settings: CorpusSettings, tiny: Any) -> None:
    prepare_splits(settings, tiny)
    states = []
    prepare_splits(settings, tiny, lambda _, progress: states.append(progress.already_done))
    assert states == [True, True]


def test_a_split_made_otherwise_is_refused(settings: CorpusSettings, tiny: Any) -> None:
    from dataclasses import replace

    prepare_splits(settings, tiny)
    with pytest.raises(UserError, match="sequence_length was 24, now is 16"):
        prepare_splits(replace(settings, sequence_length=16), tiny)
