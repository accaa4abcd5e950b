"""Do exported models say in PyTorch what they say here? Every validation example of fine-tuning runs, compared.

    python benchmarks/export_agreement.py runs/teacher/sst2/seed0 runs/teacher/cola/seed1 ...

Each run's chosen checkpoint is exported, the folder is loaded with transformers, and both compute the logits of the
whole validation set from the same token ids. Prints examples, the share of equal decisions and the largest difference
of two logits. Ends with status 1 where decisions differ or logits by more than 1e-4.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
from interleaved import exit_status

from distil_jax.errors import UserError
from distil_jax.tasks.encoded import NO_TOKEN

LARGEST_DIFFERENCE = 1e-4


def torch_logits(folder: Path, kind: str, encoded: Any) -> list[np.ndarray]:
    """Logits of every row by transformers' model in `folder`, one row at a time, without padding."""
    import torch
    import transformers

    classes = {
        "sequence": transformers.AutoModelForSequenceClassification,
        "token": transformers.AutoModelForTokenClassification,
        "question": transformers.AutoModelForQuestionAnswering,
        "choice": transformers.AutoModelForMultipleChoice,
    }
    model: Any = classes[kind].from_pretrained(folder).eval()
    segments = getattr(model.config, "type_vocab_size", 0) > 1
    found = []
    for ids, types in zip(encoded.ids, encoded.types, strict=True):
        real = ids != NO_TOKEN
        inputs = {"input_ids": np.where(real, ids, encoded.pad_id)[None], "attention_mask": real[None]}
        inputs |= {"token_type_ids": types[None]} if segments else {}
        with torch.no_grad():
            output = model(**{name: torch.from_numpy(values).long() for name, values in inputs.items()})
        if kind == "question":
            found.append(torch.stack([output.start_logits[0], output.end_logits[0]], dim=-1).numpy())
        else:
            found.append(output.logits[0].numpy())
    return found


def decision(logits: np.ndarray, spec: Any) -> np.ndarray:
    """What a row's logits say: a class, a class a token, the ends of a span, or which labels hold."""
    if spec.kind.problem == "multi_label_classification":
        return logits > 0
    return logits.argmax(axis=0 if spec.kind.head == "question" else -1)


def compare(run: Path) -> tuple[int, int, float]:
    """(examples, how many decisions are equal, largest difference of two logits) of the run's validation sets."""
    from distil_jax.export import export, read_run
    from distil_jax.models import TaskModel
    from distil_jax.runs import read_config
    from distil_jax.tasks.data.load import load_task
    from distil_jax.training.inference import make_predictor
    from distil_jax.training.parallel import make_devices

    config, trained = read_config(run), read_run(run)
    if trained.head is None:
        raise UserError(f"{run} is no run of `distil-jax finetune`; only those have predictions to compare")
    data, devices = load_task(config.task, config.run.seed), make_devices("shard_map")
    predict = make_predictor(devices, TaskModel(trained.encoder, trained.head), config.evaluation.batch_size)
    params = devices.replicate(trained.params)
    rows, equal, largest = 0, 0, 0.0
    with tempfile.TemporaryDirectory() as temporary:
        export(run, Path(temporary) / "model")
        for examples in data.validation.values():
            encoded = data.spec.kind.encode(trained.tokenizer, examples, config.task)
            expected = torch_logits(Path(temporary) / "model", data.spec.kind.head, encoded)
            for one, other in zip(predict(params, encoded), expected, strict=True):
                rows += 1
                largest = max(largest, float(np.abs(one - other).max()))
                equal += np.array_equal(decision(one, data.spec), decision(other, data.spec))
    return rows, equal, largest


def main() -> int:
    """Print a line a run."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", nargs="+", type=Path)
    status = 0
    print("| run | examples | equal decisions | largest difference of logits |\n|---|---:|---:|---:|")
    for run in parser.parse_args().runs:
        rows, equal, largest = compare(run)
        status |= int(equal < rows or largest > LARGEST_DIFFERENCE)
        print(f"| {run} | {rows:,} | {100 * equal / rows:.2f} % | {largest:.1e} |", flush=True)
    return status


if __name__ == "__main__":
    sys.exit(exit_status("export_agreement", main))
