"""The report of a study of students: what retention is, what counts as noise, and what the page says of both."""

from __future__ import annotations

from typing import Any

import pytest

from distil_jax.evaluation.ablation_report import ablation_page, base_dot, retention, verdict

TEACHER = {"scores": {"cola": {"0": 0.4, "1": 0.5, "2": 0.6}, "rte": {"0": 0.8}, "wnli": {"0": 0.5}}}
SIZES = {"parameters": 1_000_000, "milliseconds": 2.0, "state": "finished", "seconds": 60.0}


def row(name: str, cola: tuple[float, ...], axis: str = "objective", **more: Any) -> dict[str, Any]:
    scores = {"cola": {str(seed): score for seed, score in enumerate(cola)}, "rte": {"0": 0.4}, "wnli": {"0": 9.0}}
    return {"name": name, "axis": axis, "tokens": 4.0, "changes": {}, "scores": scores, **SIZES, **more}


def test_retention_is_the_mean_of_ratios_of_medians_without_wnli() -> None:
    found = retention(row("x", (0.1, 0.25, 0.2)), TEACHER)
    assert found is not None
    assert found.value == pytest.approx((40 + 50) / 2)
    assert (found.low, found.high) == (pytest.approx((20 + 50) / 2), pytest.approx((50 + 50) / 2))


def test_ranges_that_overlap_are_noise() -> None:
    base = retention(row("base", (0.2, 0.25, 0.3), "base"), TEACHER)
    near, far = retention(row("near", (0.28, 0.3, 0.4)), TEACHER), retention(row("far", (0.4, 0.4, 0.4)), TEACHER)
    assert base and near and far
    assert verdict(near, base, 3).startswith("noise")
    assert verdict(far, base, 3) == "above the base"
    assert verdict(base, far, 3) == "below the base"
    assert "one seed" in verdict(far, base, 1)


def test_the_base_has_the_range_of_all_its_distillations() -> None:
    rows = [row("base", (0.2, 0.25, 0.3), "base"), row("seed 1", (0.3, 0.35, 0.5), "seed")]
    found = base_dot(rows, TEACHER)
    assert found is not None
    assert (found.value, found.low, found.high) == (50.0, 45.0, 75.0)


def test_the_page_has_every_student_and_the_papers_ablation() -> None:
    rows = [
        row("base", (0.2, 0.25, 0.3), "base"),
        row("without KL", (0.1, 0.1, 0.1), changes={"objective.kl": "0"}),
        row("16 M tokens", (0.4, 0.45, 0.5), "tokens", tokens=16.0),
        {**row("broken", ()), "state": "failed", "reason": "no <space>"},
        {**row("64 M tokens", (), "tokens", tokens=64.0), "state": "not afforded", "estimate": 7200.0},
    ]
    teacher = {**TEACHER, "parameters": 2_000_000, "milliseconds": 3.0}
    facts = {"command": "distil-jax study", "machine": "cpu", "versions": {"jax": "1"}, "teacher": "t", "seeds": 3}
    found = ablation_page({**facts, "teacher_numbers": teacher, "students": rows})
    paper = found.partition("Beside DistilBERT")[2]
    # CoLA 25 -> 10, RTE the same: a mean of -7.5 points; the paper has -2.96.
    assert "<td>-7.50</td><td>-2.96</td>" in paper
    assert "no &lt;space&gt;" in found and "64 M tokens" in found and "2.0 h" in found
    assert found.count("<svg") == 4


def test_a_page_without_a_finished_student_can_be_written() -> None:
    facts = {"command": "", "machine": "cpu", "versions": {}, "teacher": "t", "seeds": 3}
    assert "<html" in ablation_page({**facts, "teacher_numbers": {**TEACHER, **SIZES}, "students": []})
