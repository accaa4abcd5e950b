"""Both sides compute the same step; what is timed and told of it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from distil_jax.cpu import MALLOC_SETTINGS
from distil_jax.errors import FaultError, UserError

Script = Callable[[str], Any]
ROOT = Path(__file__).resolve().parents[2]


def request(comparison: Any, folder: Path, **changes: Any) -> dict[str, Any]:
    places = {name: str(folder / name) for name in ("teacher", "student")}
    size = comparison.SIZES["tiny"]
    own = {"settings": comparison.SETTINGS, "cores": [], "dtype": "float32", "device": "cpu", "attention": "sdpa"}
    own |= {"layers": list(size.layers), "changes": {}, "kind": "eager"}
    return {**places, "batch": str(folder / "batch.npz"), **own, **changes}


@pytest.mark.usefixtures("program_cache")
def test_our_first_step_and_pytorchs_have_the_same_losses_and_gradient_norm(script: Script, tiny_step: Path) -> None:
    comparison, ours, theirs = script("step_comparison"), script("jax_step").Side(), script("pytorch_step").Side()
    ours.open(**request(comparison, tiny_step))
    for dtype, tolerance in comparison.TOLERANCES.items():
        found = ours.losses(dtype)
        assert found["kl"] > 0.01 and found["cosine"] > 0.01
        for kind in ("eager", "chunked"):
            theirs.open(**request(comparison, tiny_step, kind=kind))
            assert theirs.losses(dtype) == pytest.approx(found, rel=tolerance)
    theirs.open(**request(comparison, tiny_step, settings={**comparison.SETTINGS, "temperature": 3.0}))
    found = ours.losses("float32")
    assert theirs.losses("float32")["kl"] != pytest.approx(found["kl"], rel=comparison.TOLERANCES["float32"])


@pytest.mark.usefixtures("program_cache")
@pytest.mark.parametrize("module", ["jax_step", "pytorch_step"])
def test_a_side_times_rounds_and_tells_its_memory(script: Script, tiny_step: Path, module: str) -> None:
    side = script(module).Side()
    side.open(**request(script("step_comparison"), tiny_step))
    assert np.isfinite(side.warm_up()["loss"])
    assert 0 < side.round(steps=2)["seconds"] < 60
    assert side.memory()["peak_bytes"] > 1 << 20


def test_the_batch_is_masked_as_the_step_masks(tiny_step: Path) -> None:
    batch = np.load(tiny_step / "batch.npz")
    picked = batch["targets"] >= 0
    assert picked.sum() == np.ceil(0.15 * batch["raw"].size)
    assert (batch["targets"][picked] == batch["raw"][picked]).all()
    assert (batch["ids"][~picked] == batch["raw"][~picked]).all()
    assert (batch["ids"][picked] != batch["raw"][picked]).mean() > 0.5
    assert not np.isin(batch["raw"][picked], [0, 1, 2, 3, 4]).any()


class Told:
    """A worker that has its answers already."""

    def __init__(self, name: str, **answers: Any) -> None:
        self.name, self.answers, self.log = name, answers, []

    def ask(self, do: str, **_: Any) -> Any:
        ORDER.append((self.name, do))
        answer = self.answers[do]
        return answer.pop(0) if isinstance(answer, list) else answer

    def __enter__(self) -> Told:
        return self

    def __exit__(self, *_: object) -> None:
        pass


ORDER: list[tuple[str, str]] = []


def test_unequal_losses_end_the_comparison(script: Script, monkeypatch: pytest.MonkeyPatch) -> None:
    comparison = script("step_comparison")
    losses = {"jax": 1.0, "eager": 1.00005, "compile": 1.00002, "compile-chunked": 1.001}

    def opened(arguments: Any, side: str, setting: str, folder: Path) -> Told:
        return Told(side, losses={"loss": losses[side]})

    def check(*sides: str, dtype: str = "float32") -> float:
        worst, failed = comparison.check_losses(comparison.parse(["--sides", *sides]), dtype, Path())
        assert not failed
        return worst

    monkeypatch.setattr(comparison, "open_side", opened)
    assert check("eager", "compile") == pytest.approx(5e-5, rel=0.1)
    with pytest.raises(FaultError, match=r"loss of compile-chunked differs by .*\(jax 1, compile-chunked 1.001\)"):
        check("compile-chunked")
    assert check("compile-chunked", dtype="bfloat16") == pytest.approx(1e-3, rel=0.1)
    losses["eager"] = float("nan")
    with pytest.raises(FaultError, match="not the same step"):
        check("eager", dtype="bfloat16")


def test_a_side_that_cannot_compute_losses_is_left_out_and_ours_is_not(
    script: Script, monkeypatch: pytest.MonkeyPatch
) -> None:
    comparison, failing = script("step_comparison"), {"compile"}

    def opened(arguments: Any, side: str, setting: str, folder: Path) -> Told:
        if side in failing:
            raise FaultError(f"{side}: out of memory")
        return Told(side, losses={"loss": 1.0})

    monkeypatch.setattr(comparison, "open_side", opened)
    arguments = comparison.parse(["--sides", "eager", "compile"])
    assert comparison.check_losses(arguments, "float32", Path()) == (0.0, {"compile": "compile: out of memory"})
    failing.add("jax")
    with pytest.raises(FaultError, match="jax: out of memory"):
        comparison.check_losses(arguments, "float32", Path())


def test_rounds_are_taken_by_turns_and_compared_by_their_medians(
    script: Script, monkeypatch: pytest.MonkeyPatch
) -> None:
    comparison = script("step_comparison")
    seconds = {"jax": [1.0] * 6, "eager": [2.0, 2.0, 2.01], "chunked": [0.5, 0.5, 0.9]}

    def opened(arguments: Any, side: str, setting: str, folder: Path) -> Told:
        if side == "compile":
            raise FaultError("compile: out of memory")
        rounds = [{"seconds": one} for one in seconds[side]]
        return Told(side, warm_up={"seconds": 5.0}, round=rounds, memory={"peak_bytes": 100 if side == "jax" else 200})

    ORDER.clear()
    monkeypatch.setattr(comparison, "open_side", opened)
    sides = ["eager", "compile", "compile-chunked", "chunked"]
    arguments = comparison.parse(["--sides", *sides, "--rounds", "3"])
    failed = {"compile-chunked": "compile-chunked: no compiler"}
    rows, noise = comparison.time_sides(arguments, "4x32", "fairest", Path(), failed)
    rounds = [name for name, do in ORDER if do == "round"]
    assert rounds == ["jax", "eager", "eager", "jax", "jax", "eager", "jax", *["chunked"] * 2, *["jax"] * 2, "chunked"]
    ours, eager, without, untried, chunked = rows
    assert (ours["tokens_per_second"], eager["tokens_per_second"]) == (128.0, 64.0)
    assert (eager["speedup"], eager["memory_share"], ours["speedup"], chunked["speedup"]) == (2.0, 0.5, 1.0, 0.5)
    assert (without["failure"], untried["failure"]) == ("compile: out of memory", "compile-chunked: no compiler")
    assert len(ours["rounds"]) == 6 and [line.partition(":")[0] for line in noise] == ["chunked"]
    machine = {**dict.fromkeys(("devices", "processor", "cores", "system"), "?"), "memory_gib": 1.0}
    report = {"rows": rows, "notes": noise, "machine": {**machine, "versions": {}, "settings": {}}}
    text = comparison.report_markdown(report, "the command")
    assert "4x32, PyTorch fairest" in text and "2.00" in text and "| compile: failed" in text and "the command" in text


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--shapes", "8"], "'8' is not ROWSxTOKENS"),
        (["--shapes", "0x128"], "'0x128' is not ROWSxTOKENS"),
        (["--set", "training.remat"], "'training.remat' is not SECTION.KEY=VALUE"),
        (["--rounds", "0"], "'0' is no whole number above 0"),
    ],
)
def test_wrong_arguments_end_with_status_2(
    script: Script, capsys: pytest.CaptureFixture[str], arguments: list[str], said: str
) -> None:
    with pytest.raises(SystemExit) as caught:
        script("step_comparison").parse(arguments)
    assert caught.value.code == 2 and said in capsys.readouterr().err


def test_mistakes_and_faults_are_one_line(script: Script, capsys: pytest.CaptureFixture[str]) -> None:
    turns = script("interleaved")

    def raising(error: Exception) -> Callable[[], int]:
        def main() -> int:
            raise error

        return main

    assert turns.exit_status("script", lambda: 0) == 0
    assert turns.exit_status("script", raising(UserError("no such file"))) == 2
    assert turns.exit_status("script", raising(FaultError("it died"))) == 1
    assert capsys.readouterr().err == "script: no such file\nscript: it died\n"


def test_environments(script: Script, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    turns = script("interleaved")
    monkeypatch.setenv("MALLOC_ARENA_MAX", "7")
    installed = turns.environment("torch", turns.INSTALLED, tmp_path)
    assert not {*MALLOC_SETTINGS, "LD_PRELOAD"} & installed.keys()
    fairest = turns.environment("torch", turns.FAIREST, tmp_path)
    ours = turns.environment("jax", turns.INSTALLED, tmp_path)
    for name, value in MALLOC_SETTINGS.items():
        assert fairest[name] == ours[name] == value
    assert ours["JAX_COMPILATION_CACHE_DIR"] == "" and ours["JAX_PLATFORMS"] == "cpu"
    beside = turns.environment("jax", turns.INSTALLED, tmp_path, "cuda")
    assert beside["JAX_PLATFORMS"] == "cuda" and not MALLOC_SETTINGS.keys() & beside.keys()


def test_the_shim_answers_mkls_question(script: Script, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import ctypes

    turns = script("interleaved")
    monkeypatch.setattr(Path, "read_text", lambda *_, **__: "vendor_id : AuthenticAMD")
    library = ctypes.CDLL(turns.vendor_shim(tmp_path))
    assert library.mkl_serv_intel_cpu_true() == library.mkl_serv_intel_cpu() == 1
    monkeypatch.setattr(Path, "read_text", lambda *_, **__: "vendor_id : GenuineIntel")
    assert turns.vendor_shim(tmp_path) == ""


def test_what_is_missing_is_said(script: Script, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    turns = script("interleaved")
    monkeypatch.setattr(turns.shutil, "which", lambda _: None)
    with pytest.raises(FaultError, match=r"g\+\+"):
        turns.require_cpp()
    monkeypatch.setattr(Path, "read_text", lambda *_, **__: "vendor_id : AuthenticAMD")
    with pytest.raises(FaultError, match="gcc"):
        turns.vendor_shim(tmp_path)


@pytest.mark.slow
def test_the_whole_comparison(tmp_path: Path) -> None:
    command = [sys.executable, str(ROOT / "benchmarks" / "step_comparison.py"), "--size", "tiny", "--shapes", "4x32"]
    command += ["--sides", "eager", "chunked", "--settings", "fairest", "--rounds", "2", "--steps", "1"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "JAX_NUM_CPU_DEVICES": "1"}
    output = tmp_path / "step.md"
    done = subprocess.run([*command, "--output", str(output)], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    report = json.loads(Path(f"{output}.json").read_text())
    assert [row["side"] for row in report["rows"]] == ["jax", "eager", "chunked"]
    assert all(row["peak_bytes"] > 1 << 20 for row in report["rows"])
    assert "losses and gradient norm equal" in report["notes"][0] and output.read_text().strip() in done.stdout
