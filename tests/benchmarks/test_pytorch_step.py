"""The PyTorch step against the formulas, and its chunked form against the plain one."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

Script = Callable[[str], Any]


@pytest.fixture
def step_of(script: Script, tiny_step: Path) -> Callable[..., Any]:
    pytorch_step = script("pytorch_step")

    def make(kind: str, *, padded: bool = False, **options: Any) -> Any:
        batch = dict(np.load(tiny_step / "batch.npz"))
        if padded:
            batch["mask"][1:, 15:] = 0
            batch["targets"][1:, 15:] = -100
        folders = (tiny_step / "student", tiny_step / "teacher")
        return pytorch_step.Step(folders, batch, kind, dropout=False, **options)

    return make


def test_losses_are_those_of_the_formulas(script: Script) -> None:
    pytorch_step, random = script("pytorch_step"), np.random.default_rng(0)
    student, teacher = random.standard_normal((2, 6, 11)) * 2
    targets = np.array([3, -100, 0, -100, 10, -100])

    def softmax(x: np.ndarray) -> np.ndarray:
        return np.exp(x) / np.exp(x).sum(-1, keepdims=True)

    p, q = softmax(teacher / 3.0), softmax(student / 3.0)
    kl = 9.0 * (p * np.log(p / q)).sum(-1).mean()
    picked = targets >= 0
    mlm = -np.log(softmax(student)[picked, targets[picked]]).mean()
    arrays = (torch.from_numpy(x).float() for x in (student, teacher))
    found = pytorch_step.vocabulary_losses(*arrays, torch.from_numpy(targets), pytorch_step.Settings(temperature=3.0))
    assert [float(x) for x in found] == pytest.approx([kl, mlm], rel=1e-5)
    cosine = 1 - (student * teacher).sum(-1) / np.linalg.norm(student, axis=-1) / np.linalg.norm(teacher, axis=-1)
    rows = (torch.from_numpy(x) for x in (student, teacher))
    assert float(pytorch_step.cosine_loss(*rows)) == pytest.approx(cosine.mean(), rel=1e-5)


@pytest.mark.parametrize("padded", [False, True])
def test_the_chunked_step_has_the_plain_ones_losses_and_gradients(
    step_of: Callable[..., Any], script: Script, monkeypatch: pytest.MonkeyPatch, padded: bool
) -> None:
    monkeypatch.setattr(script("pytorch_step"), "_CHUNK", 7)
    plain, chunked = (step_of(kind, padded=padded) for kind in ("eager", "chunked"))
    (terms, norm), (other_terms, other_norm) = plain.gradients(), chunked.gradients()
    assert other_terms == pytest.approx(terms, rel=1e-5) and other_norm == pytest.approx(norm, rel=1e-5)
    assert norm > 0.1
    for (name, one), other in zip(plain.student.named_parameters(), chunked.student.parameters(), strict=True):
        torch.testing.assert_close(other.grad, one.grad, rtol=1e-4, atol=1e-5, msg=name)


def test_padding_counts_nowhere(step_of: Callable[..., Any]) -> None:
    step = step_of("eager", padded=True)
    assert len(step.targets) == 24 + 3 * 15
    before = step.gradients()[0]
    step.ids[1:, 15:] = 7
    assert step.gradients()[0] == pytest.approx(before, rel=1e-6)


def test_a_step_learns_and_leaves_the_teacher_alone(step_of: Callable[..., Any]) -> None:
    step = step_of("chunked")
    teacher = [value.clone() for value in step.teacher.parameters()]
    losses = [float(step()) for _ in range(4)]
    assert losses[-1] < losses[0]
    assert all(torch.equal(one, other) for one, other in zip(teacher, step.teacher.parameters(), strict=True))


def test_dropout_is_on_unless_switched_off(script: Script, tiny_step: Path) -> None:
    pytorch_step, batch = script("pytorch_step"), dict(np.load(tiny_step / "batch.npz"))
    folders = (tiny_step / "student", tiny_step / "teacher")
    still, dropping = (pytorch_step.Step(folders, batch, "eager", dropout=dropout) for dropout in (False, True))
    assert still.gradients()[0] == still.gradients()[0]
    assert dropping.gradients()[0]["mlm"] != dropping.gradients()[0]["mlm"]
    assert dropping.gradients()[0]["mlm"] != pytest.approx(still.gradients()[0]["mlm"], rel=1e-6)


def test_biases_and_layer_norms_do_not_decay(script: Script, step_of: Callable[..., Any]) -> None:
    step = step_of("eager", settings=script("pytorch_step").Settings(weight_decay=0.5))
    decayed, plain = step.optimizer.param_groups
    assert (decayed["weight_decay"], plain["weight_decay"]) == (0.5, 0.0)
    assert all(value.ndim == 2 for value in decayed["params"]) and all(value.ndim == 1 for value in plain["params"])
