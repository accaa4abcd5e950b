"""The training loop that pre-training and distillation share.

The host only feeds rows and reads metrics that the device finished an interval ago; everything computed is in `step`.
"""

from __future__ import annotations

import collections
import dataclasses
import time
from pathlib import Path
from typing import Any

import jax
import numpy as np

from distil_jax.config import Config
from distil_jax.corpus import Corpus
from distil_jax.corpus.batches import training_batches
from distil_jax.training.checkpoint import Checkpoints
from distil_jax.training.evaluation import Evaluator, make_evaluator
from distil_jax.training.optimizer import learning_rate_schedule, make_optimizer
from distil_jax.training.parallel import Devices
from distil_jax.training.step import Constants, Metrics, Params, Task, TrainState, init_state, make_train_step
from distil_jax.training.telemetry import MetricsWriter, Progress, utilisation

_STEPS_AHEAD = 2  # steps the host may be ahead of the device: enough to hide its work, few enough to stop quickly


@dataclasses.dataclass(frozen=True)
class Job:
    """Everything that a run of the loop needs, ready made."""

    config: Config
    folder: Path
    steps: int
    task: Task
    params: Params
    constants: Constants
    train: Corpus
    validation: Corpus | None
    metadata: dict[str, Any]
    flops_per_token: float


@dataclasses.dataclass(frozen=True)
class Outcome:
    """What a finished run leaves: its last state, its held-out measures by step, where this process took it up.

    `is_main`: this is the process that speaks for all.
    """

    state: TrainState
    steps: int
    evaluations: dict[str, dict[str, float]]
    resumed_from: int
    is_main: bool


def run_training(job: Job, devices: Devices) -> Outcome:
    """Train until `job.steps`, from the newest checkpoint in the folder if there is one.

    Everything at step n (checkpoint, metrics, evaluation) is the same whether or not the run was interrupted.
    """
    config, optimizer = job.config, make_optimizer(job.config.optimizer, job.steps)
    schedule = learning_rate_schedule(config.optimizer, job.steps)
    checkpoints = Checkpoints(job.folder / "checkpoints", keep=config.checkpoint.keep)
    state = devices.replicate(init_state(job.params, optimizer, job.task.trainable))
    evaluations: dict[str, dict[str, float]] = {}
    start = checkpoints.latest_step()
    if start is not None:
        state = checkpoints.restore(start, state)
        evaluations = checkpoints.metadata(start)["evaluations"]
    main = jax.process_index() == 0
    with (
        MetricsWriter(job.folder, restored_step=start, tensorboard=config.logging.tensorboard, enabled=main) as writer,
        Progress(
            job.folder.name, job.steps, start=start or 0, mode=config.logging.progress if main else "none"
        ) as progress,
    ):
        run = _Run(job, devices, checkpoints, writer, _evaluator(job, devices), devices.replicate(job.constants))
        if start is None:
            run.evaluate(0, state, evaluations)
        if start != job.steps:
            step = devices.map(make_train_step(job.task, optimizer, schedule), replicated=2, donate=(0,))
            state = _train(run, step, state, start or 0, evaluations, progress)
    checkpoints.close()
    return Outcome(state, job.steps, evaluations, start or 0, main)


@dataclasses.dataclass(frozen=True)
class _Run:
    """The parts of a running job that do not change from step to step."""

    job: Job
    devices: Devices
    checkpoints: Checkpoints
    writer: MetricsWriter
    evaluator: Evaluator | None
    constants: Constants

    def evaluate(self, step: int, state: TrainState, evaluations: dict[str, dict[str, float]]) -> None:
        """Measure the held-out set and note the measures under this step."""
        if self.evaluator is not None:
            evaluations[str(step)] = self.evaluator(state.params, self.constants.teacher)
            self.writer.write(step, evaluations[str(step)], kind="validation")

    def save(self, state: TrainState, evaluations: dict[str, dict[str, float]]) -> None:
        """Save `state`; the metrics up to it are on disk first, so that a resumed log has no gap."""
        self.writer.flush()
        self.checkpoints.save(state, {**self.job.metadata, "evaluations": evaluations})


def _evaluator(job: Job, devices: Devices) -> Evaluator | None:
    settings = job.config.evaluation
    if job.validation is None:
        return None
    return make_evaluator(
        devices,
        job.task,
        job.validation,
        smoothing=job.config.masking.smoothing,
        rows=settings.rows,
        batch_size=settings.batch_size,
        seed=settings.seed,
    )


def _train(
    run: _Run, step: Any, state: TrainState, start: int, evaluations: dict[str, dict[str, float]], progress: Progress
) -> TrainState:
    config, steps = run.job.config, run.job.steps
    batches = training_batches(
        run.job.train,
        batch_size=config.training.batch_size,
        seed=config.run.seed,
        steps=range(start, steps),
        part=run.devices.process_part(config.training.batch_size),
    )
    in_flight: collections.deque[tuple[int, Metrics]] = collections.deque()
    meter = _Meter(run, progress, last_time=time.monotonic())
    saves = _SaveClock(config)
    for number, rows in zip(range(start + 1, steps + 1), batches, strict=True):
        state, metrics = step(state, run.constants, run.devices.place_rows(rows))
        in_flight.append((number, metrics))
        evaluate = number == steps or _due(number, config.evaluation.every_steps)
        save = number == steps or saves.due(number)
        while len(in_flight) > (0 if evaluate or save else _STEPS_AHEAD):
            meter.finished(*in_flight.popleft())
        if evaluate:
            run.evaluate(number, state, evaluations)
        if save:
            run.save(state, evaluations)
            saves.saved()
        if evaluate or save:
            meter.skip_pause()
    return state


@dataclasses.dataclass
class _Meter:
    """Turns the metrics of finished steps into rows and progress, with the speed since the row before."""

    run: _Run
    progress: Progress
    last_time: float
    tokens: float = 0.0
    steps: int = 0

    def finished(self, number: int, metrics: Metrics) -> None:
        """Take the metrics of step `number`; waits for that step, while later ones are queued on the device."""
        settings = self.run.job.config.logging
        tokens = float(metrics["tokens"])
        self.tokens, self.steps = self.tokens + tokens, self.steps + 1
        self.progress.update(number, amount=tokens, loss=float(metrics["loss"]))
        if number % settings.every_steps and number != self.run.job.steps:
            return
        now = time.monotonic()
        seconds = max(now - self.last_time, 1e-9)
        timing = {"tokens_per_second": self.tokens / seconds, "seconds_per_step": seconds / self.steps}
        use = self._utilisation(self.tokens / seconds)
        self.run.writer.write(number, metrics, timing=timing if use is None else {**timing, "mfu": use})
        self.tokens, self.steps, self.last_time = 0.0, 0, now

    def _utilisation(self, tokens_per_second: float) -> float | None:
        job, devices = self.run.job, self.run.devices
        kind, dtype = devices.local[0].device_kind, job.config.training.compute_dtype
        return utilisation(tokens_per_second, job.flops_per_token, devices.count, kind, dtype)

    def skip_pause(self) -> None:
        """Do not count the time of an evaluation or a save as training time."""
        self.tokens, self.steps, self.last_time = 0.0, 0, time.monotonic()


class _SaveClock:
    """When a checkpoint is due: every so many steps, or minutes (looked at when metrics are, by the first process)."""

    def __init__(self, config: Config) -> None:
        self._settings = config.checkpoint
        self._look_every = config.logging.every_steps
        self._last = time.monotonic()

    def due(self, number: int) -> bool:
        """Whether to save after step `number`; the same answer in all processes."""
        if _due(number, self._settings.every_steps):
            return True
        if not self._settings.every_minutes or not _due(number, self._look_every):
            return False
        elapsed = time.monotonic() - self._last >= 60 * self._settings.every_minutes
        if jax.process_count() > 1:
            from jax.experimental import multihost_utils

            elapsed = bool(multihost_utils.broadcast_one_to_all(np.asarray(elapsed)))
        return elapsed

    def saved(self) -> None:
        """Start counting minutes anew."""
        self._last = time.monotonic()


def _due(step: int, every: int) -> bool:
    return every > 0 and step % every == 0
