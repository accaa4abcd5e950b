"""One GLUE task fine-tuned twice from the same folder: by distil_jax and by transformers' PyTorch `Trainer`.

    python benchmarks/trainer_comparison.py --task mrpc --source data/glue --model MODEL --seeds 3 --output FOLDER

Both see the same batches in the same order, with the same learning rate, schedule, epochs, weight decay and clipping;
only dropout and a new head's weights are drawn by each for itself. Seconds are those from loaded data to the score: the
model is read, trained, with all compiling, and measured once. Ours has the settings that `distil-jax` gives itself, and
starts without any program compiled before; PyTorch is as installed. Runs alternate, one after the other, in processes
of their own, so that both have the machine to themselves; the one that comes first changes from seed to seed. Prints a
table and writes it as JSON, with the seconds of every run.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from interleaved import INSTALLED, command_line, environment, exit_status, finish, footer, positive

from distil_jax.errors import FaultError, UserError, one_line

EPOCHS, BATCH, LEARNING_RATE = 3, 32, 5e-5
WARMUP, DECAY, CLIP = 0.1, 0.01, 1.0


def load(arguments: argparse.Namespace) -> tuple[Any, Any, Any]:
    """The configuration, the task's data and the encoded training set, as `distil-jax finetune` has them."""
    from distil_jax.config import load_config, with_overrides
    from distil_jax.hf import load_tokenizer
    from distil_jax.tasks.batches import steps_per_epoch
    from distil_jax.tasks.data.load import load_task

    settings = {
        "task.name": arguments.task,
        "task.source": arguments.source,
        "model.initial": arguments.model,
        "run.seed": arguments.seed,
        "run.output": str(Path(arguments.output) / f"jax{arguments.seed}"),
        "training.epochs": EPOCHS,
        "training.batch_size": BATCH,
        "training.micro_batch_size": BATCH,
        "optimizer.learning_rate": LEARNING_RATE,
        "optimizer.warmup_fraction": WARMUP,
        "optimizer.weight_decay": DECAY,
        "optimizer.clip_norm": CLIP,
        "finetune.keep": "last",
        "parallel.devices": 1,
        "logging.tensorboard": False,
        "logging.progress": "none",
    }
    config = load_config("finetune", settings)
    data = load_task(config.task, config.run.seed)
    train = data.spec.kind.encode(load_tokenizer(arguments.model), data.train, config.task, training=True)
    once = EPOCHS * steps_per_epoch(len(train), BATCH)  # measured at the end only
    return with_overrides(config, {"evaluation.every_steps": once}), data, train


def run_jax(arguments: argparse.Namespace) -> dict[str, Any]:
    """Our fine-tuning: score and seconds, and the machine."""
    from distil_jax.benchmark.machine import describe_machine
    from distil_jax.training.finetune import finetune

    config, data, _ = load(arguments)
    began = time.monotonic()
    found = finetune(config, data)
    seconds = time.monotonic() - began
    return {"score": found.measures["score"], "seconds": seconds, "machine": describe_machine()}


def trainer_items(encoded: Any, rows: Iterable[int]) -> list[dict[str, Any]]:
    """Encoded examples as a `Trainer` takes them."""
    return [
        {
            "input_ids": encoded.ids[row].tolist(),
            "token_type_ids": encoded.types[row].tolist(),
            "attention_mask": [1] * len(encoded.ids[row]),
            "labels": encoded.labels[row].item(),
        }
        for row in rows
    ]


def trainer_settings(arguments: argparse.Namespace, optimizer: Any, steps: int) -> Any:
    """`TrainingArguments` of `steps` steps with our optimiser's settings, on CPU, saving nothing."""
    import transformers

    return transformers.TrainingArguments(
        output_dir=str(Path(arguments.output) / f"torch{arguments.seed}"),
        max_steps=steps,  # the batches are those of all epochs
        per_device_train_batch_size=BATCH,
        per_device_eval_batch_size=64,
        learning_rate=LEARNING_RATE,
        warmup_steps=round(WARMUP * steps),
        weight_decay=DECAY,
        max_grad_norm=CLIP,
        adam_beta1=optimizer.beta1,
        adam_beta2=optimizer.beta2,
        adam_epsilon=optimizer.epsilon,
        lr_scheduler_type="linear",
        save_strategy="no",
        report_to=[],
        use_cpu=True,
        seed=arguments.seed,
        remove_unused_columns=False,
        disable_tqdm=True,
    )


def run_torch(arguments: argparse.Namespace) -> dict[str, float]:
    """The same with the PyTorch `Trainer`: our batches, each padded to its longest row."""
    import numpy as np
    import torch
    import transformers

    from distil_jax.hf import load_tokenizer
    from distil_jax.tasks.batches import choose_buckets, steps_per_epoch, training_plan
    from distil_jax.tasks.kinds import Predicted
    from distil_jax.tasks.measures import score

    config, data, train = load(arguments)
    began = time.monotonic()
    examples = next(iter(data.validation.values()))
    validation = data.spec.kind.encode(load_tokenizer(arguments.model), examples, config.task)
    steps = EPOCHS * steps_per_epoch(len(train), BATCH)
    plan = training_plan(train.lengths, choose_buckets(train.lengths, (), max(steps // 50, 1)), BATCH, arguments.seed)
    batches = [[int(row) for row in plan(step)[1]] for step in range(steps)]

    class InOrder(transformers.Trainer):
        def get_train_dataloader(self) -> Any:
            data: Any = self.train_dataset
            return torch.utils.data.DataLoader(data, batch_sampler=batches, collate_fn=self.data_collator)

    transformers.set_seed(arguments.seed)
    model = transformers.AutoModelForSequenceClassification.from_pretrained(
        arguments.model, num_labels=len(data.labels) or 1, problem_type=data.spec.kind.problem
    )
    tokenizer = transformers.AutoTokenizer.from_pretrained(arguments.model)
    trainer = InOrder(
        model=model,
        args=trainer_settings(arguments, config.optimizer, steps),
        train_dataset=trainer_items(train, range(len(train))),  # type: ignore[arg-type]
        data_collator=transformers.DataCollatorWithPadding(tokenizer),
    )
    trainer.train()
    logits: Any = trainer.predict(trainer_items(validation, range(len(validation)))).predictions  # type: ignore[arg-type]
    seconds = time.monotonic() - began
    predicted = Predicted(list(np.asarray(logits, np.float32)), validation, examples, config.task)
    measures = data.spec.kind.measure(data, predicted)
    return {"score": score(data.spec.headline, data.spec.metrics, measures), "seconds": seconds}


def order_of(seeds: int) -> list[tuple[str, int]]:
    """(system, seed) of all runs: by turns, and neither always after the other."""
    pairs = [("jax", "torch"), ("torch", "jax")]
    return [(system, seed) for seed in range(seeds) for system in pairs[seed % 2]]


def table(found: dict[str, list[dict[str, Any]]]) -> str:
    """Scores (x 100) and seconds of both over seeds, and how many times as long PyTorch took, by medians."""
    lines = ["| | score: median (min-max) | seconds: median (every seed) |", "|---|---|---|"]
    medians = {}
    for system, results in found.items():
        scores, seconds = ([row[name] for row in results] for name in ("score", "seconds"))
        medians[system] = statistics.median(seconds)
        spread = f"{100 * min(scores):.1f}-{100 * max(scores):.1f}"
        every = ", ".join(f"{value:.0f}" for value in seconds)
        lines.append(
            f"| {system} | {100 * statistics.median(scores):.1f} ({spread}) | {medians[system]:.0f} ({every}) |"
        )
    return "\n".join([*lines, "", f"seconds, torch / jax: {medians['torch'] / medians['jax']:.2f}"])


def main() -> int:
    """Run both by turns, each in a process of its own, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--task", default="mrpc")
    parser.add_argument("--source", required=True)
    parser.add_argument("--model", required=True)
    parser.add_argument("--seeds", type=positive, default=3)
    parser.add_argument("--output", required=True)
    parser.add_argument("--system", choices=("jax", "torch"), help=argparse.SUPPRESS)
    parser.add_argument("--seed", type=int, default=0, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.system:
        result = {"jax": run_jax, "torch": run_torch}[arguments.system](arguments)
        Path(arguments.output, f"{arguments.system}{arguments.seed}.json").write_text(json.dumps(result))
        return 0
    try:
        Path(arguments.output).mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"--output: {one_line(str(error))}; name a folder") from error
    from distil_jax.tasks.kinds.sequence import CLASSES, SCORES

    _, data, _ = load(arguments)  # what is wrong with the data or the model is said before anything is measured
    if data.spec.kind not in (CLASSES, SCORES):
        raise UserError(f"--task {arguments.task}: only tasks with one label or number a text, or pair, are compared")
    found: dict[str, list[dict[str, Any]]] = {"jax": [], "torch": []}
    settings = {name: environment(name, INSTALLED, Path(arguments.output)) for name in found}
    for system, seed in order_of(arguments.seeds):
        command = [sys.executable, __file__, *sys.argv[1:], "--system", system, "--seed", str(seed)]
        if subprocess.run(command, check=False, env=settings[system]).returncode:
            raise FaultError(f"{system}, seed {seed}, failed; what it said stands above")
        found[system].append(json.loads(Path(arguments.output, f"{system}{seed}.json").read_text()))
    text = f"{table(found)}\n\n{footer([], found['jax'][0]['machine'], command_line())}"
    finish(text, str(Path(arguments.output, "comparison.md")), found)
    return 0


if __name__ == "__main__":
    sys.exit(exit_status("trainer_comparison", main))
