from __future__ import annotations

import dataclasses
import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar

import pytest

from distil_jax.benchmark import run, worker
from distil_jax.benchmark.inputs import make_inputs
from distil_jax.benchmark.process import WorkerDiedError
from distil_jax.benchmark.report import benchmark_markdown, write_benchmark
from distil_jax.benchmark.roofline import Roofline
from distil_jax.benchmark.run import largest_batch, run_benchmark
from distil_jax.cli import main
from distil_jax.cli.benchmark import split_arguments
from distil_jax.config import BenchmarkArguments, Config, config_from_toml, config_to_toml, load_config, with_overrides
from distil_jax.errors import FaultError, UserError
from distil_jax.training.flops import distillation_flops

WORK = Roofline(flops=1.0, extra_flops=0.0, bytes_moved=1.0, fill=1.0)
QUICK = BenchmarkArguments(repeats=2, steps=1, warm_start=False, vocabulary=60)


class Inside:
    """Does what a worker's process would do, in this one, or answers what `canned` has for a request."""

    asked: ClassVar[list[str]] = []
    sizes: ClassVar[list[tuple[int, int]]] = []
    canned: ClassVar[dict[str, Any]] = {}

    def __init__(self, *_: Any) -> None:
        pass

    def ask(self, do: str, **arguments: Any) -> Any:
        self.asked.append(do)
        if do == "measure":
            settings = config_from_toml(arguments["config"], "").training
            self.sizes.append((settings.micro_batch_size, settings.batch_size))
        if do in self.canned:
            answer: Any = self.canned[do]
            found: Any = answer(**arguments) if callable(answer) else answer
            return {**found}
        return json.loads(json.dumps(worker.HANDLERS[do](**arguments)))

    def __enter__(self) -> Inside:
        return self

    def __exit__(self, *_: object) -> None:
        pass


@pytest.fixture
def inside(monkeypatch: pytest.MonkeyPatch, program_cache: Path) -> type[Inside]:
    """Benchmarks without processes, on programs that the session keeps; the machine's peaks are invented."""
    monkeypatch.setattr(run, "_worker", Inside)
    monkeypatch.setattr(worker, "matmul_peak", lambda dtype: 1e12 if dtype == "float32" else 2e12)
    monkeypatch.setattr(worker, "memory_bandwidth", lambda: 1e11)
    monkeypatch.setattr(Inside, "asked", [])
    monkeypatch.setattr(Inside, "sizes", [])
    monkeypatch.setattr(Inside, "canned", {})
    return Inside


def measured(report: dict[str, Any]) -> dict[str, Any]:
    """What the worker answered for the first row."""
    added = {"variant", "length", "batch_size", "micro_batch_size", "compute_dtype", "predicted_speedup", "speedup"}
    return {name: value for name, value in report["rows"][0].items() if name not in added}


@pytest.fixture(scope="module")
def report(tiny: dict[str, Any], program_cache: Path) -> dict[str, Any]:
    """A tiny distillation's step, on packed and on padded rows."""
    given = dataclasses.replace(QUICK, variants=("packed", "padded"))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(run, "_worker", Inside)
        patch.setattr(worker, "matmul_peak", lambda dtype: 1e12)
        patch.setattr(worker, "memory_bandwidth", lambda: 1e11)
        return run_benchmark(with_overrides(Config(), tiny), "distill", given, command="the command")


def test_variants_are_compared_with_the_first(report: dict[str, Any]) -> None:
    packed, padded = report["rows"]
    assert [row["variant"] for row in report["rows"]] == ["packed", "padded"]
    assert (packed["speedup"], packed["predicted_speedup"]) == (1.0, 1.0)
    assert padded["speedup"] == pytest.approx(padded["tokens_per_second"] / packed["tokens_per_second"])
    # The same work on rows that are less full.
    assert padded["predicted_speedup"] == pytest.approx(
        padded["roofline"]["fill"] / packed["roofline"]["fill"], rel=1e-6
    )
    assert packed["positions"] == padded["positions"] == 8 * 32
    assert padded["tokens"] < packed["tokens"] <= packed["positions"]


def test_speed_utilisation_and_memory_follow_from_what_was_measured(report: dict[str, Any]) -> None:
    for row in report["rows"]:
        assert row["tokens_per_second"] == pytest.approx(row["tokens"] / row["median"])
        assert row["mfu_known"] is None
        assert row["mfu_measured"] == pytest.approx(row["flops_per_token"] * row["tokens_per_second"] / 1e12)
        assert len(row["rounds"]) == 2 and row["peak_bytes"] > row["planned_bytes"] > 0
        assert set(row["losses"]) == {"loss", "loss_kl", "loss_mlm", "loss_cosine"}
        assert row["first_step_seconds"] > row["compile_seconds"] > 0


def test_noise_slow_input_and_what_is_synthetic_are_noted(report: dict[str, Any]) -> None:
    for row in report["rows"]:
        assert row["noisy"] == (row["spread"] > 0.05)
        name = f"{row['variant']}, 32 tokens"
        assert any(note.startswith(f"{name}: noisy") for note in report["notes"]) == row["noisy"]
        slow = any(note.startswith(f"{name}: the input is only") for note in report["notes"])
        assert slow == (row["input_ratio"] < 3)
    text = benchmark_markdown(report)
    assert "distill, rows of 32 tokens" in text and "- command: the command" in text and "synthetic rows" in text


def test_operations_a_token_are_told_of_every_variant_where_they_differ(report: dict[str, Any]) -> None:
    rows = [{**row, "flops_per_token": flops} for row, flops in zip(report["rows"], (629e6, 470e6), strict=True)]
    assert "MFU: 629 MFLOP a token (padded at 32: 470) against" in benchmark_markdown({**report, "rows": rows})
    assert "MFU: 629 MFLOP a token against" in benchmark_markdown({**report, "rows": rows[:1]})


def test_the_work_per_token_is_that_of_the_formula(tiny_world: Path) -> None:
    config = load_config(tiny_world / "config.toml", {"teacher.path": str(tiny_world / "teacher")})
    inputs = make_inputs(config, "distill", 30_522)
    assert inputs.teacher is not None
    expected = distillation_flops(inputs.teacher, inputs.student, 24)
    assert inputs.spec.flops_per_token == pytest.approx(expected)


@pytest.mark.slow
@pytest.mark.usefixtures("inside")
@pytest.mark.parametrize("stage", ["pretrain", "finetune"])
def test_other_stages(tiny: dict[str, Any], stage: Any) -> None:
    config = with_overrides(load_config("finetune") if stage == "finetune" else Config(), tiny)
    (row,) = run_benchmark(config, stage, dataclasses.replace(QUICK, steps=2))["rows"]
    assert row["fits"] and row["rows_per_second"] > 0 and row["losses"]["loss"] > 0
    assert row["programs"] >= 1


@pytest.mark.slow
def test_the_largest_batch_fills_the_memory(tiny: dict[str, Any], inside: type[Inside]) -> None:
    given = dataclasses.replace(QUICK, fill=True, memory=0.004)
    (row,) = run_benchmark(with_overrides(Config(), tiny), "distill", given)["rows"]
    assert inside.asked[:2] == ["machine", "plan_memory"] and inside.asked[-1] == "measure"
    assert row["batch_size"] == row["micro_batch_size"] > 4
    assert 0.7 * 0.004 * 2**30 < row["planned_bytes"] <= 0.004 * 2**30


def test_the_batch_is_what_the_plans_say_and_smaller_while_it_does_not_fit(
    tiny: dict[str, Any], inside: type[Inside], report: dict[str, Any]
) -> None:
    mebi = 1 << 20
    inside.canned["plan_memory"] = lambda rows, **_: {
        "planned": {str(number): (10 + number) * mebi for number in rows},
        "devices": 3,
        "fits": True,
    }
    answers = [{"fits": False}, {"fits": False}, measured(report)]
    inside.canned["measure"] = lambda **_: answers.pop(0)
    given = dataclasses.replace(QUICK, fill=True, memory=110 / 1024 / 0.95)
    config = with_overrides(Config(), {**tiny, "parallel.devices": 3, "training.batch_size": 12})
    (row,) = run_benchmark(config, "distill", given)["rows"]
    # 10 MiB and 1 more a row: 100 rows, 96 in whole eights; then a tenth fewer, twice.
    assert inside.sizes == [(96, 288), (80, 240), (72, 216)]
    assert (row["micro_batch_size"], row["batch_size"], row["fits"]) == (72, 216, True)
    with pytest.raises(UserError, match=r"not even 2 rows of 32 tokens fit into 0.00 GiB; raise --memory"):
        run_benchmark(config, "distill", dataclasses.replace(given, memory=1e-5))


def test_a_plan_that_leaves_the_line_corrects_it(
    tiny: dict[str, Any], inside: type[Inside], report: dict[str, Any]
) -> None:
    mebi = 1 << 20
    inside.canned["plan_memory"] = lambda rows, **_: {
        "planned": {str(number): int(number**1.2 * mebi) for number in rows},
        "devices": 1,
        "fits": True,
    }
    inside.canned["measure"] = measured(report)
    given = dataclasses.replace(QUICK, fill=True, memory=100 / 1024)
    (row,) = run_benchmark(with_overrides(Config(), tiny), "distill", given)["rows"]
    # 46 rows would be 100 MiB; the line through 2 and 4 rows says 56.
    assert row["micro_batch_size"] == 40


def test_what_never_fits_is_said(tiny: dict[str, Any], inside: type[Inside]) -> None:
    inside.canned["measure"] = {"fits": False}
    found = run_benchmark(with_overrides(Config(), tiny), "distill", QUICK)
    assert not found["rows"][0]["fits"]
    assert found["rows"][0]["batch_size"] == tiny["training.batch_size"], "the batch that was tried"
    assert any("does not fit" in note for note in found["notes"])
    assert "does not fit" in benchmark_markdown(found)


@pytest.mark.parametrize(("status", "fits"), [(-9, False), (1, None)])
def test_a_killed_process_had_no_memory_and_another_death_is_a_fault(
    tiny: dict[str, Any], inside: type[Inside], status: int, fits: bool | None
) -> None:
    def dies(**_: Any) -> Any:
        raise WorkerDiedError("configured", status, "")

    inside.canned["measure"] = dies
    if fits is None:
        with pytest.raises(FaultError, match="status 1"):
            run_benchmark(with_overrides(Config(), tiny), "distill", QUICK)
    else:
        assert run_benchmark(with_overrides(Config(), tiny), "distill", QUICK)["rows"][0]["fits"] is fits


def test_a_variant_that_fails_does_not_lose_the_others(tiny: dict[str, Any], inside: type[Inside]) -> None:
    measure = worker.HANDLERS["measure"]

    def fails(**request: Any) -> Any:
        if "splash" in request["config"]:
            raise UserError("no TPU here")
        return json.loads(json.dumps(measure(**request)))

    inside.canned["measure"] = fails
    given = dataclasses.replace(QUICK, variants=("attention-splash", "attention-xla"))
    found = run_benchmark(with_overrides(Config(), tiny), "distill", given)
    assert [row.get("failed") for row in found["rows"]] == ["no TPU here", None]
    assert found["rows"][1]["speedup"] == 1.0
    assert "attention-splash, 32 tokens: failed: no TPU here" in benchmark_markdown(found)
    with pytest.raises(UserError, match="no TPU here"):
        run_benchmark(
            with_overrides(Config(), tiny), "distill", dataclasses.replace(given, variants=given.variants[:1])
        )


def test_running_out_of_memory_is_an_answer_and_other_errors_are_not() -> None:
    def fails(text: str) -> Callable[[], Any]:
        def call() -> Any:
            raise RuntimeError(text)

        return call

    assert worker.guarded(fails("RESOURCE_EXHAUSTED: Out of memory allocating 9 bytes"))() == {"fits": False}
    with pytest.raises(RuntimeError, match="INTERNAL"):
        worker.guarded(fails("INTERNAL: something else"))()


@pytest.mark.slow
@pytest.mark.usefixtures("program_cache")
def test_planned_memory_grows_with_the_rows(tiny: dict[str, Any]) -> None:
    text = config_to_toml(with_overrides(Config(), tiny))
    found = worker.plan_memory(text, "distill", 60, [2, 4, 8])["planned"]
    assert found["2"] < found["4"] < found["8"]


@pytest.mark.usefixtures("report")
def test_the_first_step_is_counted_from_where_it_is_said(tiny: dict[str, Any]) -> None:
    text = config_to_toml(with_overrides(Config(), tiny))
    found = worker.first_step(text, "distill", 60, time.time() - 100)
    assert found["first_step_seconds"] > 100 + found["compile_seconds"] > 100


@pytest.mark.parametrize(
    ("planned", "limit", "rows"),
    [
        ({2: 300, 4: 500}, 1100, 8),  # 100 bytes and 100 more a row: 10 rows, in whole eights
        ({2: 300, 4: 500}, 650, 5),
        ({2: 300, 4: 500}, 2500, 24),
        ({2: 300, 4: 500}, 150, 0),
        ({2: 300, 4: 300}, 1000, 4),
    ],
)
def test_rows_that_fit_on_the_line_through_two_plans(planned: dict[int, int], limit: float, rows: int) -> None:
    assert largest_batch(planned, limit) == rows


def test_arguments_are_the_commands_own_or_the_configurations() -> None:
    given = [
        "--stage",
        "distill",
        "--config",
        "x.toml",
        "--variants",
        "a=b",
        "c.d=e",
        "--training.steps",
        "3",
        "--fill",
    ]
    own, settings = split_arguments(BenchmarkArguments, given)
    assert own == ["--stage", "distill", "--variants", "a=b", "c.d=e", "--fill"]
    assert settings == ["--config", "x.toml", "--training.steps", "3"]


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--repeats", "1"], "--repeats 1"),
        (["--varients", "all"], "did you mean --variants?"),
        (["--training.stepz", "3"], "did you mean --training.steps?"),
        (["--config", "nothere"], "nothere"),
    ],
)
def test_mistakes_are_one_line(arguments: list[str], said: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["benchmark", *arguments]) == 2
    out, err = capsys.readouterr()
    assert (out, len(err.splitlines())) == ("", 1) and said in err


def test_the_command_prints_a_table_and_writes_files(
    tiny: dict[str, Any],
    inside: type[Inside],
    report: dict[str, Any],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    inside.canned["measure"] = measured(report)
    (tmp_path / "tiny.toml").write_text(config_to_toml(with_overrides(Config(), tiny)))
    output = tmp_path / "new" / "found"
    arguments = ["--config", str(tmp_path / "tiny.toml"), "--stage", "distill", "--repeats", "2", "--steps", "1"]
    assert main(["benchmark", *arguments, "--vocabulary", "60", "--no-warm-start", "--output", str(output)]) == 0
    out, err = capsys.readouterr()
    assert "| configured |" in out and "--no-warm-start" in out
    assert output.with_name("found.md").read_text() == out
    written = json.loads(output.with_name("found.json").read_text())
    assert written["stage"] == "distill" and written["machine"]["cores"] >= 1
    assert "measuring: configured" in err


@pytest.mark.parametrize("place", ["file/found", "folder"])
def test_a_place_that_cannot_be_written_is_a_mistake_before_anything_is_measured(
    place: str, tmp_path: Path, inside: type[Inside], capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").write_text("")
    (tmp_path / "folder.json").mkdir()
    assert main(["benchmark", "--stage", "distill", "--output", str(tmp_path / place)]) == 2
    out, err = capsys.readouterr()
    assert (out, len(err.splitlines()), inside.asked) == ("", 1, []) and "cannot be written" in err


def test_a_place_that_is_gone_after_measuring_is_told(tmp_path: Path, report: dict[str, Any]) -> None:
    with pytest.raises(UserError, match="cannot be written"):
        write_benchmark(str(tmp_path / "gone" / "found"), report)


def test_a_variant_that_failed_is_status_1(
    inside: type[Inside], report: dict[str, Any], capsys: pytest.CaptureFixture[str]
) -> None:
    def fails(**request: Any) -> Any:
        if 'remat = "layer"' in request["config"]:
            raise UserError("not here")
        return measured(report)

    inside.canned["measure"] = fails
    given = ["--stage", "distill", "--training.batch-size", "8", "--training.micro-batch-size", "8", "--no-warm-start"]
    assert main(["benchmark", *given, "--variants", "configured", "remat"]) == 1
    assert "remat, 512 tokens: failed: not here" in capsys.readouterr().out
    assert main(["benchmark", *given, "--variants", "configured"]) == 0


def test_a_second_start_that_fails_keeps_what_was_measured(
    tiny: dict[str, Any], inside: type[Inside], report: dict[str, Any]
) -> None:
    def dies(**_: Any) -> Any:
        raise WorkerDiedError("configured", -9, "")

    inside.canned |= {"measure": measured(report), "first_step": dies}
    found = run_benchmark(with_overrides(Config(), tiny), "distill", dataclasses.replace(QUICK, warm_start=True))
    assert found["rows"][0]["fits"] and "cached_first_step_seconds" not in found["rows"][0]
    assert any("configured: its process ended" in note for note in found["notes"])


def test_the_machine_is_the_one_that_the_run_would_have() -> None:
    one, eight = (worker.machine(config_to_toml(with_overrides(Config(), {"parallel.devices": n}))) for n in (1, 8))
    assert one["machine"]["platform"] == "cpu"
    # Devices of one CPU share its memory, of which other tests take and give back meanwhile.
    assert 4 < one["memory_limit"] / eight["memory_limit"] < 16
    with pytest.raises(UserError, match=r"run.platform = 'gpu', but JAX computes on 'cpu'"):
        worker.machine(config_to_toml(with_overrides(Config(), {"run.platform": "gpu"})))


@pytest.mark.slow
@pytest.mark.usefixtures("inside")
def test_choices_are_counted_as_rows_of_their_own_length(tiny: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    counted = []
    monkeypatch.setattr(worker, "roofline_of_step", lambda *_, **given: counted.append(given) or WORK)
    config = with_overrides(load_config("finetune"), {**tiny, "task.name": "swag", "finetune.buckets": (24,)})
    run_benchmark(config, "finetune", dataclasses.replace(QUICK, lengths=(24,)))
    (given,) = counted
    assert (given["length"], given["positions"]) == (24, tiny["training.batch_size"] * 4 * 24)


@pytest.mark.slow
def test_in_processes_of_their_own(tiny: dict[str, Any], tmp_path: Path) -> None:
    config = with_overrides(Config(), tiny)
    given = BenchmarkArguments(repeats=2, steps=1, vocabulary=60, variants=("packed", "training.warp=1"))
    with pytest.raises(UserError, match="training.warp"):
        run_benchmark(config, "distill", given)
    (row,) = run_benchmark(config, "distill", dataclasses.replace(given, variants=()))["rows"]
    assert row["fits"] and row["first_step_seconds"] > row["compile_seconds"] > 0
    assert row["cached_first_step_seconds"] > 0
