"""How the step grows, from the compiler's plans and the program's text."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

Script = Callable[[str], Any]
HLO = """HloModule jit_step, is_scheduled=true

%add (x: f32[], y: f32[]) -> f32[] {
  ROOT %sum = f32[] add(f32[] %x, f32[] %y)
}

%inner (p: f32[4]) -> f32[4] {
  ROOT %all-reduce.9 = f32[4]{0} all-reduce(f32[4]{0} %p), to_apply=%add
}

%body (state: (s32[], f32[4])) -> (s32[], f32[4]) {
  %called = f32[4]{0} fusion(f32[4]{0} %p), kind=kLoop, calls=%inner
}

%condition (state: (s32[], f32[4])) -> pred[] {
  ROOT %less = pred[] compare(s32[] %i, s32[] %n), direction=LT
}

ENTRY %main (a: f32[8,2], b: bf16[3]) -> f32[8,2] {
  %loop = (s32[], f32[4]) while((s32[], f32[4]) %init), condition=%condition, body=%body
  %all-reduce.1 = (f32[8,2]{1,0}, bf16[3]{0}) all-reduce(f32[8,2]{1,0} %a, bf16[3]{0} %b), to_apply=%add
  %gathered = s32[16,2]{1,0} all-gather(s32[2,2]{1,0} %c), dimensions={0}
  ROOT %not-one = f32[8,2]{1,0} add(f32[8,2]{1,0} %all-reduce.1, f32[8,2]{1,0} %a)
}
"""


def test_collectives_are_found_with_their_bytes_and_whether_they_repeat(script: Script) -> None:
    found = script("collectives").find_collectives(HLO)
    assert [(one.kind, one.size, one.in_loop) for one in found] == [
        ("all-reduce", 16, True),
        ("all-reduce", 8 * 2 * 4 + 3 * 2, False),
        ("all-gather", 16 * 2 * 4, False),
    ]


def test_a_step_on_eight_devices_reduces_its_gradients_once(script: Script) -> None:
    found = script("scaling").traffic("tiny")
    large = [one for one in found["collectives"] if one["size"] >= found["gradients"] // 8]
    assert sum(one["size"] for one in large) == pytest.approx(found["gradients"], rel=0.01)
    assert all(one["kind"] == "all-reduce" for one in large)
    assert not any(one["in_loop"] for one in found["collectives"])
    small = sum(one["size"] for one in found["collectives"]) - sum(one["size"] for one in large)
    assert small < 4096  # counts of tokens, sums of losses


@pytest.mark.usefixtures("program_cache")
def test_accumulation_keeps_memory(script: Script, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(script("scaling"), "ACCUMULATIONS", (1, 8))
    rows = script("scaling").memory_against_batch("tiny")
    assert [row["rows"] for row in rows] == [2, 16]
    rest = [row["temporary"] - row["gradients"] for row in rows]
    assert max(rest) < 1.6 * rest[0]  # eight times as many rows; their ids and labels alone are held


@pytest.mark.slow
def test_a_larger_vocabulary_is_planned_with_its_own_gradients(script: Script) -> None:
    rows = script("scaling").memory_against_vocabulary("tiny")
    assert [row["vocabulary"] for row in rows] == [50, 100, 200, 400]
    grown = [rows[i + 1]["gradients"] - rows[i]["gradients"] for i in range(3)]
    assert grown == [4 * 17 * more for more in (50, 100, 200)]  # width 16 and a bias
    assert rows[-1]["logits"] == 4 * 8 * 16 * 400


def test_the_line_through_points_on_a_line(script: Script) -> None:
    x = np.array([1.0, 2.0, 4.0])
    found = script("scaling").fit_line(x, 0.5 * x + 3)
    assert (found["per_token"], found["fixed"], found["r2"]) == pytest.approx((0.5, 3.0, 1.0))
    assert script("scaling").fit_line(x, np.array([1.0, 3.0, 1.0]))["r2"] < 0.5


@pytest.mark.slow
def test_time_against_tokens_and_the_report(script: Script) -> None:
    scaling = script("scaling")
    line = scaling.time_against_tokens("tiny", 2)
    assert [point["tokens"] for point in line["points"]] == [32, 64, 128]
    assert all(point["seconds"] > 0 for point in line["points"])
    plan = {"rows": 2, "micro": 2, "temporary": 3 << 20, "gradients": 1 << 20, "vocabulary": 50, "logits": 1 << 20}
    sent = {"collectives": [{"kind": "all-reduce", "size": 1234, "in_loop": False}], "gradients": 1200}
    text = scaling.report_markdown({"tokens": line, "batch": [plan], "vocabulary": [plan], "traffic": sent})
    assert "R²" in text and "1,234" in text and "| 2 in 2s" in text and "2.0" in text


def test_scanned_layers_compute_what_layer_after_layer_computes(script: Script) -> None:
    module = script("scanned_layers")
    arguments = module.argparse.Namespace(size="tiny", rows=2, length=8, rounds=1)
    report = module.measure(arguments)
    assert report["agreed"] < 1e-5 and set(report["rows"]) == {"unrolled", "scanned"}
    text = module.report_markdown(report, "the command")
    assert "| scanned" in text and "loss and gradient norm equal" in text and "the command" in text
