"""The training loop that pre-training, distillation and fine-tuning share.

The host only feeds rows and reads metrics that the device finished an interval ago; everything computed is in the step.
"""

from __future__ import annotations

import collections
import dataclasses
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax
import numpy as np
import optax

from distil_jax.config import Config
from distil_jax.training.checkpoint import Checkpoints
from distil_jax.training.optimizer import learning_rate_schedule, make_optimizer
from distil_jax.training.parallel import Devices
from distil_jax.training.selection import Selection
from distil_jax.training.step import Metrics, Params, TrainState, init_state
from distil_jax.training.telemetry import MetricsWriter, Progress, utilisation

_STEPS_AHEAD = 2  # steps the host may be ahead of the device: enough to hide its work, few enough to stop quickly

Batch = Any  # a tree of arrays [rows, ...]
TrainStep = Callable[[TrainState, Any, Any], tuple[TrainState, Metrics]]
Evaluator = Callable[[Params, Any], dict[str, float]]


@dataclasses.dataclass(frozen=True)
class Job:
    """Everything that a run of the loop needs, ready made.

    Attributes:
        config: settings of the run.
        folder: where it writes.
        steps: optimiser steps in all.
        params: parameters before the first step.
        trainable: their top-level groups that get updates.
        constants: what steps and evaluations only read; a tree of arrays.
        make_step: (optimizer, schedule) -> the per-device `(state, constants, batch) -> (state, metrics)`.
        make_batches: (steps, devices) -> this process's rows of the batches of those steps, on the host.
        make_evaluator: devices -> `(params, constants) -> measures`, or None where nothing is held out.
        metadata: what every checkpoint carries.
        flops_per_token: of one step, for the utilisation.
        evaluate_every: steps between evaluations; 0: at the end only.
        evaluate_start: also before the first step.
        selection: which evaluation is the best, whose checkpoint is kept, and when to stop early; None: the last one.
    """

    config: Config
    folder: Path
    steps: int
    params: Params
    trainable: tuple[str, ...]
    constants: Any
    make_step: Callable[[optax.GradientTransformation, optax.Schedule], TrainStep]
    make_batches: Callable[[range, Devices], Iterator[Batch]]
    make_evaluator: Callable[[Devices], Evaluator | None]
    metadata: dict[str, Any]
    flops_per_token: float
    evaluate_every: int
    evaluate_start: bool = True
    selection: Selection | None = None


@dataclasses.dataclass(frozen=True)
class Outcome:
    """What a finished run leaves.

    Attributes:
        state: after the last step.
        step: number of that step; below the planned one where training stopped early.
        best_step: the step to use, the best by the job's selection, else the last.
        evaluations: held-out measures by step.
        resumed_from: where this process took the run up.
        is_main: this is the process that speaks for all.
    """

    state: TrainState
    step: int
    best_step: int
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
    state = devices.replicate(init_state(job.params, optimizer, job.trainable))
    evaluations: dict[str, dict[str, float]] = {}
    start = None
    if (resumed := checkpoints.resume(state)) is not None:
        state, start, evaluations = resumed[0], int(resumed[0].step), resumed[1]["evaluations"]
    main = jax.process_index() == 0
    with (
        MetricsWriter(job.folder, restored_step=start, tensorboard=config.logging.tensorboard, enabled=main) as writer,
        Progress(
            job.folder.name, job.steps, start=start or 0, mode=config.logging.progress if main else "none"
        ) as progress,
    ):
        run = _Run(job, devices, checkpoints, writer, job.make_evaluator(devices), devices.replicate(job.constants))
        if start is None and job.evaluate_start:
            run.evaluate(0, state, evaluations)
        if start != job.steps and not run.exhausted(evaluations):
            step = devices.map(job.make_step(optimizer, schedule), replicated=2, donate=(0,))
            state = _train(run, step, state, start or 0, evaluations, progress)
    checkpoints.close()
    last = int(state.step)
    best = run.best_step(evaluations)
    return Outcome(state, last, last if best is None else best, evaluations, start or 0, main)


@dataclasses.dataclass(frozen=True)
class _Run:
    """The parts of a running job that do not change from step to step."""

    job: Job
    devices: Devices
    checkpoints: Checkpoints
    writer: MetricsWriter
    evaluator: Evaluator | None
    constants: Any

    def evaluate(self, step: int, state: TrainState, evaluations: dict[str, dict[str, float]]) -> None:
        """Measure the held-out set and note the measures under this step."""
        if self.evaluator is not None:
            evaluations[str(step)] = self.evaluator(state.params, self.constants)
            self.writer.write(step, evaluations[str(step)], kind="validation")

    def save(self, state: TrainState, evaluations: dict[str, dict[str, float]]) -> None:
        """Save `state`; the metrics up to it are on disk first, so that a resumed log has no gap."""
        self.writer.flush()
        metadata = {**self.job.metadata, "evaluations": evaluations}
        self.checkpoints.save(state, metadata, best=self.best_step(evaluations))

    def best_step(self, evaluations: dict[str, dict[str, float]]) -> int | None:
        """The best step by the job's selection, if it has one and something was measured."""
        return None if self.job.selection is None else self.job.selection.best_step(evaluations)

    def exhausted(self, evaluations: dict[str, dict[str, float]]) -> bool:
        """Whether to stop early."""
        return self.job.selection is not None and self.job.selection.exhausted(evaluations)


def _train(
    run: _Run, step: Any, state: TrainState, start: int, evaluations: dict[str, dict[str, float]], progress: Progress
) -> TrainState:
    config, steps = run.job.config, run.job.steps
    batches = run.job.make_batches(range(start, steps), run.devices)
    in_flight: collections.deque[tuple[int, Metrics]] = collections.deque()
    meter = _Meter(run, progress, last_time=time.monotonic())
    saves = _SaveClock(config)
    for number, rows in zip(range(start + 1, steps + 1), batches, strict=True):
        state, metrics = step(state, run.constants, run.devices.place_rows(rows))
        in_flight.append((number, metrics))
        evaluate = number == steps or _due(number, run.job.evaluate_every)
        # What may turn out to be the best has to be kept.
        save = number == steps or saves.due(number) or (evaluate and run.job.selection is not None)
        while len(in_flight) > (0 if evaluate or save else _STEPS_AHEAD):
            meter.finished(*in_flight.popleft())
        if evaluate:
            run.evaluate(number, state, evaluations)
        if save:
            run.save(state, evaluations)
            saves.saved()
        if evaluate or save:
            meter.skip_pause()
        if evaluate and run.exhausted(evaluations):
            break
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
