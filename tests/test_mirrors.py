"""Every module has a test file of its own place and name, or stands here with the file that tests it."""

from __future__ import annotations

from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
# Module -> the test file of what it is a part of.
TESTED_BY = {
    "api/result": "api/test_training",
    **dict.fromkeys(
        ("benchmark/machine", "benchmark/report", "benchmark/step", "benchmark/worker"), "benchmark/test_run"
    ),
    "benchmark/plan_report": "benchmark/test_plan",
    "benchmark/latency_worker": "benchmark/test_latency",
    "benchmark/synthetic": "benchmark/test_inputs",
    "cli/benchmark": "benchmark/test_run",
    "cli/command": "test_cli",
    "cli/crash": "test_crashes",
    "cli/models": "test_cli",
    "cli/runs": "test_resume",
    "cli/training": "test_cli",
    "config/fields": "config/test_schema",
    **dict.fromkeys(("config/tasks", "config/terms"), "config/test_schema"),
    "data/corpus/index": "data/corpus/test_tokens",
    "data/rows/options": "data/rows/test_read",
    "data/rows/parquet": "data/rows/test_read",
    "errors": "test_disk_faults",
    "evaluation/study_inputs": "evaluation/test_study_runs",
    **dict.fromkeys(
        ("export/agreement", "export/check_rows", "export/jax_network", "export/source"), "export/test_write"
    ),
    **dict.fromkeys(
        (f"export/formats/{name}" for name in ("format", "huggingface", "litert", "onnx", "stablehlo")),
        "export/test_formats",
    ),
    "export/litert_session": "export/test_litert_model",
    "export/formats/coreml": "export/test_mil_program",
    **dict.fromkeys(("export/onnx_graph", "export/onnx_session"), "export/test_onnx_model"),
    "export/row_network": "export/test_predictor",
    "hf/checkpoint": "hf/test_read",
    "hf/checksums": "evaluation/test_check",
    **{
        f"hf/families/{name}": "hf/test_families"
        for name in ("bert", "distilbert", "electra", "family", "mpnet", "roberta")
    },
    "hf/fields": "hf/test_config",
    "hf/new_head": "hf/test_pretrained_tasks",
    "hf/torch_zip": "hf/test_torch_pickle",
    "export/upload": "hf/test_push",
    "runs/coordination": "test_multiprocess",
    "runs/preemption": "test_preemption",
    "serving/batcher": "serving/test_app",
    "serving/metrics": "serving/test_app",
    "target": "models/test_flash_attention",
    "tasks/data/columns": "tasks/data/test_gather",
    "tasks/encoded": "tasks/kinds/test_losses",
    "tasks/examples": "tasks/data/test_load",
    "tasks/kinds/kind": "tasks/kinds/test_losses",
    "tasks/measures": "training/test_task_result",
    "training/pretrain": "training/test_text_run",
    "training/task_run": "training/test_finetune",
    "training/teacher_cache": "training/test_cache_teacher",
    "training/text_step": "training/test_step_reference",
}


def test_every_module_has_its_tests() -> None:
    package = ROOT / "distil_jax"
    modules = {
        str(path.relative_to(package).with_suffix(""))
        for path in package.rglob("*.py")
        if path.stem not in ("__init__", "__main__")
    }
    mirrored = {name for name in modules if _tests(str(Path(name).with_name(f"test_{Path(name).name}"))).is_file()}
    assert modules - mirrored - set(TESTED_BY) == set(), "without tests"
    assert set(TESTED_BY) - (modules - mirrored) == set(), "gone, or has a file of its own now"
    assert [name for name in TESTED_BY.values() if not _tests(name).is_file()] == [], "no such test file"


def _tests(name: str) -> Path:
    return ROOT / "tests" / f"{name}.py"
