"""Packed against padded rows, buckets against one length, the accelerator's table, the Trainer: settings and tables."""

from __future__ import annotations

import dataclasses
import json
import os
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from distil_jax.benchmark.variants import cells
from distil_jax.config import BenchmarkArguments, Config
from distil_jax.tasks.registry import task_spec

Script = Callable[[str], Any]
ROOT = Path(__file__).resolve().parents[2]
MACHINE = {
    **dict.fromkeys(("devices", "processor", "cores", "system"), "?"),
    "memory_gib": 1.0,
    "versions": {},
    "settings": {},
    "platform": "cpu",
}
ROW = {
    "median": 0.5,
    "spread": 0.01,
    "rounds": [0.5, 0.5],
    "noisy": False,
    "steps": 1,
    "fits": True,
    "programs": 2,
    "positions": 100.0,
    "tokens": 60.0,
    "rows_per_second": 8.0,
    "tokens_per_second": 120.0,
    "input_ratio": 9.0,
    "mfu_known": None,
    "mfu_measured": 0.5,
    "peak_bytes": 1 << 30,
    "compile_seconds": 1.0,
    "predicted_speedup": 1.0,
    "first_step_seconds": 2.0,
    "speedup": 1.0,
    "flops_per_token": 1e6,
    "peak_measured": 1e12,
    "compute_dtype": "float32",
}


class Benchmark:
    """Stands for `run_benchmark`: notes what it is asked for, and answers with made-up numbers."""

    def __init__(self, speeds: Sequence[float]) -> None:
        self.speeds, self.configs = list(speeds), []

    def __call__(self, config: Config, stage: Any, given: BenchmarkArguments, **_: Any) -> dict[str, Any]:
        self.configs.append(config)
        rows = []
        for cell in cells(config, stage, given, "cpu"):
            speed = self.speeds.pop(0)
            sizes = {"batch_size": 16, "micro_batch_size": 16, "variant": cell.variant, "length": cell.length}
            rows.append({**ROW, **sizes, "tokens_per_second": speed, "rows_per_second": speed})
            rows[-1]["median"] = 50.0 / speed
        return {"rows": rows, "notes": ["a note"], "machine": MACHINE, "stage": stage, "command": "the command"}


def test_packed_and_padded_rows_of_the_same_text(
    script: Script, tiny_inputs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    module, asked = script("packed_padded"), Benchmark([300.0, 100.0])
    monkeypatch.setattr(module, "run_benchmark", asked)
    output = tmp_path / "packed.md"
    arguments = ["--text", str(tiny_inputs / "text" / "train.txt"), "--tokenizer", str(tiny_inputs / "tokenizer")]
    config = ["--config", str(tiny_inputs / "config.toml"), "--lengths", "32", "--documents", "0"]
    assert module.main([*arguments, *config, "--output", str(output)]) == 0
    assert [config.corpus.pack for config in asked.configs] == [True, False]
    assert all(config.corpus.sequence_length == 32 for config in asked.configs)
    text = output.read_text()
    assert "| packed, 32" in text and "lines of like lengths, 32" in text and "a note" in text
    (report,) = json.loads(Path(f"{output}.json").read_text())
    forms = report["forms"]
    assert forms["packed"]["tokens"] == forms["padded"]["tokens"]
    assert min(forms["packed"]["fill"], forms["grouped"]["fill"]) > forms["padded"]["fill"]
    assert f"| {3 * forms['packed']['fill'] / forms['padded']['fill']:.2f}" in text.replace("  ", "")
    assert f"| {100 / 0.5 * forms['padded']['fill']:,.0f}" in text.replace("  ", "")


def test_the_fill_of_grouped_lines(script: Script) -> None:
    lengths = np.array([4, 1, 2, 8, 8])
    # Sorted in pairs: (1, 2), (4, 8), (8): 23 tokens in 4 + 16 + 8 places.
    assert script("packed_padded").grouped_fill(lengths, 2) == pytest.approx(23 / 28)


def test_buckets_against_one_length(script: Script, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    module, asked = script("finetune_buckets"), Benchmark([50.0, 20.0])
    monkeypatch.setattr(module, "run_benchmark", asked)
    assert module.main(["--tasks", "mrpc", "--max-length", "64", "--output", str(tmp_path / "b.md")]) == 0
    assert [config.finetune.buckets for config in asked.configs] == [(), (64,)]
    same = [dataclasses.replace(config, finetune=asked.configs[0].finetune) for config in asked.configs]
    assert same[0] == same[1] and same[0].task.max_length == 64
    text = (tmp_path / "b.md").read_text()
    assert "2.50" in text and "mrpc, all to the longest" in text


@pytest.mark.parametrize("name", ["packed_padded", "finetune_buckets"])
def test_what_does_not_fit_is_a_row_that_says_so(
    name: str, script: Script, tiny_inputs: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    module, asked = script(name), Benchmark([50.0, 20.0])

    def run(*given: Any, **others: Any) -> dict[str, Any]:
        report = asked(*given, **others)
        if not asked.speeds:  # the second form
            report["rows"] = [{"variant": "configured", "fits": False}]
        return report

    monkeypatch.setattr(module, "run_benchmark", run)
    given = ["--tasks", "mrpc"]
    if name == "packed_padded":
        given = ["--text", str(tiny_inputs / "text" / "train.txt"), "--tokenizer", str(tiny_inputs / "tokenizer")]
        given += ["--lengths", "32", "--documents", "0"]
    assert module.main(given) == 0
    first, second = [line for line in capsys.readouterr().out.splitlines() if line.startswith("| ")][1:3]
    assert "does not fit" in second and "does not fit" not in first and first.replace(" ", "").endswith("|-|")


def test_the_accelerators_table_in_tiny_form(script: Script, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    module, asked = script("gpu_table"), Benchmark([100.0] * 50)
    monkeypatch.setattr(module, "run_benchmark", asked)
    started: list[list[str]] = []
    status = 0

    def run(command: list[str], **_: Any) -> Any:
        started.append(command)
        Path(command[command.index("--output") + 1]).write_text("the comparison\n")
        return module.argparse.Namespace(returncode=status)

    monkeypatch.setattr(module.subprocess, "run", run)
    assert module.main(["--output", str(tmp_path / "gpu"), "--tiny", "--lengths", "16", "32"]) == 0
    assert asked.configs[0].run.platform == "cpu"
    text = (tmp_path / "gpu.md").read_text()
    assert "rows of 16 tokens" in text and "rows of 32 tokens" in text and "the comparison" in text
    status = 1  # a side failed, which its table says
    monkeypatch.setattr(module, "run_benchmark", Benchmark([100.0] * 50))
    assert module.main(["--output", str(tmp_path / "gpu"), "--tiny", "--lengths", "16", "32"]) == 1
    assert (tmp_path / "gpu.md").read_text() == text
    shapes = started[0][started[0].index("--shapes") + 1 :][:2]
    assert shapes == ["5x16", "5x32"]  # a third of the batch that fits
    assert {"configured", "plain", "fused", "packed", "padded"} <= {
        line.split("|")[1].strip() for line in text.split("\n") if "|" in line
    }


def test_the_accelerators_table_insists_on_one(script: Script, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    module, asked = script("gpu_table"), Benchmark([100.0] * 50)
    monkeypatch.setattr(module, "run_benchmark", asked)
    assert module.main(["--output", str(tmp_path / "gpu"), "--no-torch", "--lengths", "128"]) == 0
    assert asked.configs[0].run.platform == "gpu"


def test_the_accelerators_table_outlives_a_comparison_that_failed(
    script: Script, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    module = script("gpu_table")
    monkeypatch.setattr(module, "run_benchmark", Benchmark([100.0] * 50))
    monkeypatch.setattr(module.subprocess, "run", lambda *_, **__: module.argparse.Namespace(returncode=1))
    (tmp_path / "gpu_comparison.md").write_text("of another day")
    assert module.main(["--output", str(tmp_path / "gpu"), "--tiny", "--lengths", "16"]) == 1
    text = (tmp_path / "gpu.md").read_text()
    assert "rows of 16 tokens" in text and "Not compared with PyTorch" in text and "of another day" not in text
    assert json.loads((tmp_path / "gpu.md.json").read_text())["rows"]


@pytest.mark.slow
def test_the_accelerators_table_on_this_machine(tmp_path: Path) -> None:
    command = [sys.executable, str(ROOT / "benchmarks" / "gpu_table.py"), "--tiny", "--lengths", "16", "32"]
    command += ["--variants", "plain", "fused", "--repeats", "2", "--memory", "0.05", "--output", str(tmp_path / "gpu")]
    environment = {**os.environ, "JAX_NUM_CPU_DEVICES": "1"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    text = (tmp_path / "gpu.md").read_text()
    assert "rows of 32 tokens" in text and "| fused" in text and "losses and gradient norm equal" in text
    assert [row["side"] for row in json.loads((tmp_path / "gpu_comparison.md.json").read_text())["rows"]] == [
        "jax", "eager", "jax", "eager",
    ]  # fmt: skip


@pytest.mark.parametrize("task", ["squad", "conll2003", "swag"])
def test_the_trainer_comparison_refuses_what_it_cannot_run(
    task: str, script: Script, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    module = script("trainer_comparison")
    data = module.argparse.Namespace(spec=task_spec(task))
    monkeypatch.setattr(module, "load", lambda _: (None, data, None))
    given = ["trainer_comparison", "--task", task, "--source", "s", "--model", "m", "--output", str(tmp_path / "out")]
    monkeypatch.setattr(sys, "argv", given)
    assert module.exit_status("trainer_comparison", module.main) == 2
    assert capsys.readouterr().err.startswith(f"trainer_comparison: --task {task}: only tasks with one label")


def test_the_losses_memory(script: Script, tmp_path: Path) -> None:
    module, output = script("loss_memory"), tmp_path / "memory.v2.md"
    sizes = ["--tokens", "64", "128", "--vocabulary", "300", "600", "--hidden", "16"]
    assert module.main([*sizes, "--output", str(output), module.INSIDE]) == 0
    text, found = output.read_text(), json.loads(Path(f"{output}.json").read_text())
    assert [(row["tokens"], row["vocabulary"]) for row in found["rows"]] == [(64, 300), (128, 300), (128, 600)]
    assert all(row["plain"] > 0 and row["fused"] > 0 for row in found["rows"])
    assert "- machine: " in text and "- command: python benchmarks/" in text


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (["--cores", "0", "4096"], "'4096' is none of the cores 0"),
        (["--cores", "-1"], "'-1' is none of the cores"),
        (["--output", "file/below"], "file/below: cannot be written"),
    ],
)
def test_mistakes_of_comparisons_are_told_before_anything_is_measured(
    given: list[str],
    said: str,
    script: Script,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("file").write_text("")
    for name in ("step_comparison", "inference_latency"):
        module = script(name)
        monkeypatch.setattr(module, "run", lambda _: pytest.fail("measured"))
        with pytest.raises(SystemExit) as ending:
            module.main(given)
        assert ending.value.code == 2 and said in capsys.readouterr().err


def test_the_trainer_comparison_alternates_and_tells_every_seed(script: Script) -> None:
    module = script("trainer_comparison")
    assert module.order_of(3) == [
        ("jax", 0), ("torch", 0), ("torch", 1), ("jax", 1), ("jax", 2), ("torch", 2),
    ]  # fmt: skip
    found = {
        "jax": [{"score": 0.8, "seconds": 10.0}, {"score": 0.9, "seconds": 12.0}],
        "torch": [{"score": 0.7, "seconds": 30.0}, {"score": 0.75, "seconds": 36.0}],
    }
    text = module.table(found)
    assert "85.0 (80.0-90.0)" in text and "11 (10, 12)" in text and "33 (30, 36)" in text and "3.00" in text
