"""`distil-jax latency`: every model in every runtime, in one table; the rows of a report are what was measured."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from distil_jax.benchmark import latency_markdown
from distil_jax.benchmark.latency import RUNTIMES, _summary, measure_latency
from distil_jax.cli import main
from distil_jax.config import LatencyArguments
from distil_jax.errors import UserError


def test_median_percentile_and_rate_of_all_calls() -> None:
    found = _summary([[0.001, 0.002, 0.003], [0.004, 0.005, 0.100]], batch=8)
    assert found["median_ms"] == pytest.approx(3.5)
    assert found["p95_ms"] == pytest.approx(76.25)
    assert found["rows_per_second"] == pytest.approx(8 / 0.0035)
    assert found["spread"] == pytest.approx((5 - 2) / 2 / 3.5)


@pytest.mark.slow
def test_models_and_runtimes_side_by_side(
    task_folder: Callable[..., Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("onnx", reason="needs onnx")
    pytest.importorskip("onnxruntime", reason="needs onnxruntime")
    folder, output = str(task_folder("classes")), tmp_path / "times.json"
    runtimes, sizes = ("jax", "onnx-int8"), ("--lengths", "8", "--batch", "2", "--rounds", "2", "--calls", "2")
    assert main(["latency", folder, "--runtimes", *runtimes, *sizes, "--json", str(output)]) == 0
    report = json.loads(output.read_text())
    assert [row["runtime"] for row in report["rows"]] == [*runtimes]
    assert all(
        {*row["times"]} == {"one thread, 1 x 8", "all threads, 1 x 8", "all threads, 2 x 8"} for row in report["rows"]
    )
    assert all(time["median_ms"] > 0 for row in report["rows"] for time in row["times"].values())
    assert latency_markdown(report) in capsys.readouterr().out


def test_no_model_is_refused(tmp_path: Path) -> None:
    assert main(["latency", str(tmp_path / "nothing"), "--runtimes", "jax"]) == 2
    assert main(["latency"]) == 2


def test_rows_longer_than_a_model_are_refused_before_files_are_written(
    task_folder: Callable[..., Path], capsys: pytest.CaptureFixture[str]
) -> None:
    folder = str(task_folder("classes"))
    assert main(["latency", folder, "--runtimes", "jax", "--lengths", "8", "30000"]) == 2
    error = capsys.readouterr().err.splitlines()[-1]
    assert "--lengths 30000" in error and folder in error


def test_runtimes_that_are_not_installed_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(RUNTIMES, "pytorch", ("no_such_module", "model.safetensors"))
    with pytest.raises(UserError, match="pytorch"):
        measure_latency(LatencyArguments(("model",), ("pytorch",)))
