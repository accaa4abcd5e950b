from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import jax
import pytest

from distil_jax.benchmark import plan as module
from distil_jax.benchmark.accelerators import Target
from distil_jax.benchmark.compile import CompiledPlan, Memory
from distil_jax.benchmark.plan import PlanRequest, make_plan
from distil_jax.benchmark.plan_report import plan_markdown
from distil_jax.benchmark.program import Program
from distil_jax.cli import main
from distil_jax.config import Config, config_to_toml, with_overrides
from distil_jax.target import Device

TEXT = """HloModule jit_f

ENTRY %main (a: f32[1000,1000]) -> f32[1000,1000] {
  %a = f32[1000,1000]{1,0} parameter(0)
  %sum = f32[1000,1000]{1,0} all-reduce(%a), replica_groups={}, to_apply=%add
  ROOT %product = f32[1000,1000]{1,0} dot(%sum, %sum), lhs_contracting_dims={1}, rhs_contracting_dims={0}
}
"""
MIB = 1 << 20


@pytest.fixture
def compiled(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Compiling takes no time here; a row takes a mebibyte beside 40 fixed ones. Returns the rows asked for."""
    asked: list[int] = []

    def compile_step(spec: Any, target: Target) -> CompiledPlan:
        rows = spec.config.training.micro_batch_size
        asked.append(rows)
        return CompiledPlan(Memory(10 * MIB, 20 * MIB, 10 * MIB, 0, rows * MIB), Program(TEXT), 4096, 4000, 1.0)

    monkeypatch.setattr(module, "compile_step", compile_step)
    return asked


def target(memory: int) -> Target:
    return Target("h100:2", Device("cuda", (9, 0)), jax.devices()[:2], memory, 2e12, 4e9, 1e9)


def request_of(tiny: dict[str, Any], **changes: Any) -> PlanRequest:
    config = with_overrides(Config(), {**tiny, **{name.replace("__", "."): value for name, value in changes.items()}})
    return PlanRequest(config, "distill", 60, price=3.0)


def test_the_micro_batch_that_is_advised_divides_the_batch_and_fits(tiny: dict[str, Any], compiled: list[int]) -> None:
    asked = request_of(tiny, training__batch_size=192, training__micro_batch_size=8)
    found = make_plan(asked, target(80 * MIB))
    # 40 rows would fill it; 32 of the 96 rows of a device are the largest share within nine tenths.
    assert (found["rows_that_fit"], found["advised_micro_batch"], found["fits"]) == (40, 32, True)
    assert compiled == [8, 4, 32]
    assert "--training.micro-batch-size 32" in plan_markdown(found)


@pytest.mark.usefixtures("compiled")
def test_notes_say_what_tiles_of_a_tpu_add(tiny: dict[str, Any]) -> None:
    on_gpu = target(1 << 30)
    on_tpu = dataclasses.replace(on_gpu, name="v5e:1x2", device=Device("tpu"))
    asked = request_of(tiny, training__batch_size=64, training__micro_batch_size=8)
    assert "a vocabulary of 60 takes the place of 128" in plan_markdown(make_plan(asked, on_tpu))
    assert "tiles" not in plan_markdown(make_plan(asked, on_gpu))


@pytest.mark.usefixtures("compiled")
def test_what_does_not_fit_is_said(tiny: dict[str, Any]) -> None:
    found = make_plan(request_of(tiny, training__batch_size=64, training__micro_batch_size=8), target(30 * MIB))
    assert (found["fits"], found["advised_micro_batch"]) == (False, 0)
    assert "does not fit" in plan_markdown(found)


def test_memory_is_planned_where_jax_cannot_read_the_program(
    tiny: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    memory = Memory(10 * MIB, 20 * MIB, 10 * MIB, 0, 8 * MIB)
    for refused in (False, True):
        plan = CompiledPlan(memory, None, 4096, 4000, 1.0, refused)
        monkeypatch.setattr(module, "compile_step", lambda *_, plan=plan: plan)
        found = make_plan(request_of(tiny, training__batch_size=64, training__micro_batch_size=8), target(1 << 30))
        assert (found["fits"], "step" in found) == (not refused, False)
        assert any("not known" in note for note in found["notes"]) is not refused
        assert "fit" in plan_markdown(found)


@pytest.mark.usefixtures("compiled")
def test_time_transfers_and_cost_follow_from_the_program(tiny: dict[str, Any]) -> None:
    asked = request_of(tiny, training__batch_size=64, training__micro_batch_size=8, training__steps=3600)
    found = make_plan(asked, target(1 << 30))
    # Sum and product move 8 MB, 2 ms each; the product multiplies for 1 ms. Of two devices each sends 4 MB.
    assert found["step"]["matrix_seconds"] == pytest.approx(1e-3)
    assert found["step"]["least_seconds"] == pytest.approx(2e-3 + 2e-3)
    assert found["step"]["transfer_seconds"] == pytest.approx(4e-3)
    assert found["collectives"] == [{"operation": "all-reduce", "bytes": 4_000_000, "times": 1}]
    slow, fast = found["tokens_per_second"]
    assert slow < fast < 4096 / 8e-3
    assert found["hours"][0] * fast == pytest.approx(3600 * 4096 / 3600)
    assert found["cost"] == pytest.approx([3.0 * one for one in found["hours"]])


@pytest.mark.usefixtures("program_cache")
def test_the_command_plans_for_this_machine(
    tiny: dict[str, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "tiny.toml").write_text(config_to_toml(with_overrides(Config(), tiny)))
    given = ["plan", "--config", str(tmp_path / "tiny.toml"), "--command", "distill", "--vocabulary", "60"]
    assert main([*given, "--no-search", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["fits"] and not found["compiled_only"]
    assert sum(size for name, size in found["memory"].items() if name != "total") == found["memory"]["total"]
    assert found["parts"]["teacher"]["flops"] > 0


@pytest.mark.parametrize(
    "given", [["--on", "h300"], ["--on", "v5e:4"], ["--price", "-1"], ["--training.batch-size", "0"]]
)
def test_mistakes_are_one_line(given: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["plan", *given]) == 2
    out, err = capsys.readouterr()
    assert (out, len(err.strip().splitlines())) == ("", 1)
