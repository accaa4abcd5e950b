"""What is set aside, what is drawn, and what identifies the data."""

from __future__ import annotations

import collections
from pathlib import Path
from typing import Any

import pytest


@pytest.fixture
def many(tmp_path: Path, write: Any) -> str:
    """200 rows: three classes in the ratio 16 : 3 : 1."""
    names = ["common"] * 16 + ["rare"] * 3 + ["rarest"]
    return write(tmp_path / "many.csv", "text,label\n" + "".join(f"row {i},{names[i % 20]}\n" for i in range(200)))


def test_validation_is_set_aside_in_proportion_and_by_the_seed(many: str, load: Any) -> None:
    data = load("classification", train=many, validation_fraction=0.1)
    aside = data.validation["validation"]
    assert collections.Counter(e.label for e in aside) == {0: 16, 1: 3, 2: 1}
    together = sorted([*data.train, *aside], key=lambda e: int(e.id))
    assert [e.id for e in together] == [str(i) for i in range(200)]
    assert data.notes == ("validation: 20 of 200 training examples set aside (0.1), none was given",)
    again, other = load("classification", train=many), load("classification", train=many, seed=1)
    assert (again.sha256, again.train) == (data.sha256, data.train)
    assert other.sha256 != data.sha256 and other.validation != data.validation


def test_drawing_keeps_the_order_and_what_was_drawn_before(many: str, load: Any) -> None:
    def drawn(count: int, seed: int = 0) -> list[int]:
        return [
            int(e.id) for e in load("classification", seed=seed, train=many, validation=many, max_examples=count).train
        ]

    assert len(drawn(50)) == 50 and drawn(50) == sorted(drawn(50)) != drawn(50, seed=1)
    assert set(drawn(20)) < set(drawn(50))
    assert drawn(500) == drawn(0) == list(range(200))
    notes = load("classification", train=many, validation=many, max_examples=7).notes
    assert notes == ("train: 7 of 200 examples drawn",)


def test_questions_about_one_context_stay_together(tmp_path: Path, write: Any, load: Any) -> None:
    rows = [{"question": f"q {i}", "context": f"text {i // 5}", "answers": []} for i in range(100)]
    data = load("question", train=write(tmp_path / "a.jsonl", rows), validation_fraction=0.2)
    aside = data.validation["validation"]
    assert len(aside) == 20
    assert not {e.context for e in aside} & {e.context for e in data.train}


def test_the_digest_sees_every_change_and_nothing_else(tmp_path: Path, write: Any, load: Any) -> None:
    lines = ["text\tlabel", "one\ta", "two\tb", "three\ta"]
    train = write(tmp_path / "a.tsv", "\n".join(lines))
    base = load("classification", train=train, validation=train)
    same = load(
        "classification", train=write(tmp_path / "b.csv", "label,text\na,one\nb,two\na,three\n"), validation=train
    )
    assert same.sha256 == base.sha256  # another file, the same examples
    assert len(base.sha256) == 64
    for changed in ("one\ta|two\tb|three\tb", "one\ta|two \tb|three\ta", "two\tb|one\ta|three\ta", "one\ta|two\tb"):
        other = write(tmp_path / "c.tsv", lines[0] + "\n" + changed.replace("|", "\n"))
        assert load("classification", train=other, validation=train).sha256 != base.sha256, changed
        assert load("classification", train=train, validation=other).sha256 != base.sha256, changed
    assert load("classification", train=train, test=train, validation=train).sha256 != base.sha256
