"""The training loop that pre-training, distillation and fine-tuning share.

The host only feeds rows and reads metrics that the device finished an interval ago; everything computed is in the step.
"""

from __future__ import annotations

import collections
import contextlib
import dataclasses
import json
import logging
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np

from distil_jax.config import Config
from distil_jax.errors import FaultError, UserError, one_line
from distil_jax.runs import (
    EVALUATION,
    NOTHING_NEW,
    OPENING_FILE,
    MetricsWriter,
    Progress,
    SaveClock,
    Watchdog,
    announce,
    broadcast,
    check_owner,
    config_sha256,
    is_distributed,
    is_due,
    model_sha256,
    read_all,
    read_evaluations,
    read_metrics,
    write_atomically,
)
from distil_jax.training.checkpoint import Checkpoints
from distil_jax.training.compiled_step import CompiledStep
from distil_jax.training.flops import utilisation
from distil_jax.training.nonfinite import NonfiniteError, Skips, refuse_nonfinite, write_report
from distil_jax.training.opening import About, measures_text, opening_lines
from distil_jax.training.optimizer import Phases, learning_rate_schedule, make_optimizer
from distil_jax.training.parallel import Devices
from distil_jax.training.pruning import magnitude_constraint
from distil_jax.training.selection import NO_CHOICE, Selection
from distil_jax.training.step import (
    Evaluator,
    FrozenInputs,
    Metrics,
    Params,
    StepConfig,
    TrainState,
    init_state,
    make_train_step,
)

_LOG = logging.getLogger("distil_jax")

Batch = Any  # a tree of arrays [rows, ...]
Evaluations = dict[int, dict[str, float]]  # held-out measures by step


@dataclasses.dataclass(frozen=True)
class RunSpec:
    """Everything that a run of the loop needs, ready made.

    Attributes:
        config: settings of the run.
        folder: where it writes.
        steps: optimiser steps in all.
        params: parameters before the first step.
        frozen: what steps and evaluations only read.
        step: how a batch is prepared, its loss, and which parameters it trains.
        make_batches: (steps, devices) -> this process's rows of the batches of those steps, on the host.
        batch_rows: number of a batch, from 0 -> numbers of the training rows in it, over all processes.
        make_evaluator: devices -> its `Evaluator`, or None where nothing is held out.
        model_file: the contents of the run's model.json, whose hash every checkpoint has.
        flops_per_token: of one step, for the utilisation.
        evaluate_every: steps between evaluations; 0: at the end only.
        evaluate_start: also before the first step.
        selection: which evaluation is the best, whose checkpoint is kept, and when to stop early.
        earlier_phases: steps and peak learning rate of each phase before the last; they are a part of `steps`.
        about: what the opening table says of models and data.
    """

    config: Config
    folder: Path
    steps: int
    params: Params
    frozen: FrozenInputs
    step: StepConfig
    make_batches: Callable[[range, Devices], Iterator[Batch]]
    batch_rows: Callable[[int], np.ndarray]
    make_evaluator: Callable[[Devices], Evaluator | None]
    model_file: Mapping[str, Any]
    flops_per_token: float
    evaluate_every: int
    evaluate_start: bool = True
    selection: Selection = NO_CHOICE
    earlier_phases: Phases = ()
    about: About = ()


@dataclasses.dataclass(frozen=True)
class TrainResult:
    """What a finished run leaves.

    Attributes:
        state: after the last step.
        step: number of that step; below the planned one where training stopped early.
        best_step: the step to use, the best by the spec's selection, else the last.
        evaluations: held-out measures by step.
        resumed_from: where this process took the run up.
        is_main: this is the process that speaks for all.
        skipped_steps: steps that changed nothing, since their loss or gradients were not finite.
    """

    state: TrainState
    step: int
    best_step: int
    evaluations: Evaluations
    resumed_from: int
    is_main: bool
    skipped_steps: int = 0


def run_training(spec: RunSpec, devices: Devices, watch: Watchdog) -> TrainResult:
    """Train until `spec.steps`, from the newest checkpoint in the folder if there is one.

    Everything at step n (checkpoint, metrics, evaluation) is the same whether or not the run was interrupted.

    Raises:
        NonfiniteError: too many steps in a row were not finite, or the state is not.
        FaultError: another process ended.
        PreemptedError: the run was asked to end, and its state is saved.
    """
    try:
        return _run_training(spec, devices, watch)
    except jax.errors.JaxRuntimeError as error:
        if not is_distributed():
            raise
        reason = next(iter(read_all("news").values()), "another one ended, or this one's devices failed")
        raise FaultError(f"a computation of all processes failed: {reason} ({one_line(error)})") from error


def _run_training(spec: RunSpec, devices: Devices, watch: Watchdog) -> TrainResult:
    config, main = spec.config, jax.process_index() == 0
    optimizer = make_optimizer(config.optimizer, spec.steps, spec.earlier_phases)
    schedule = learning_rate_schedule(config.optimizer, spec.steps, spec.earlier_phases)
    step = dataclasses.replace(spec.step, constrain=magnitude_constraint(config, spec.steps))
    saving = config.checkpoint
    checkpoints = Checkpoints(spec.folder / "checkpoints", keep=saving.keep, migrate=saving.migrate)
    state, frozen, cut = devices.place(init_state(spec.params, optimizer, spec.step.trainable), spec.frozen)
    state, start, skips = _resumed(spec, checkpoints, state)
    evaluator = spec.make_evaluator(devices)
    evaluations = _logged_evaluations(spec.folder, start)
    _announce(spec, devices, start)
    shown = config.logging.progress if main else "none"
    logs = config.logging
    with (
        _finished_saves(checkpoints),
        MetricsWriter(
            spec.folder, restored_step=start, tensorboard=logs.tensorboard, wandb=logs.wandb, enabled=main
        ) as writer,
        Progress(spec.folder.name, spec.steps, start=start or 0, mode=shown) as progress,
    ):
        run = _Run(spec, devices, watch, checkpoints, writer, progress, evaluator, frozen, evaluations)
        # A run that was stopped during an evaluation has saved the state before.
        if start is None:
            evaluate_now = spec.evaluate_start
        else:
            evaluate_now = _evaluation_due(spec, start) and start not in evaluations
        if evaluate_now:
            run.evaluate(start or 0, state, lambda: NOTHING_NEW)
        if start != spec.steps and not run.exhausted():
            compiled = CompiledStep(devices, make_train_step(step, optimizer, schedule, cut), cut)
            step_logger = StepLogger(run, compiled, skips)
            state, skips = _train(run, state, start or 0, step_logger), step_logger.skips
    checkpoints.close()
    last, best = int(state.step), run.best_step()
    return TrainResult(state, last, last if best is None else best, evaluations, start or 0, main, skips.total)


def _resumed(spec: RunSpec, checkpoints: Checkpoints, state: TrainState) -> tuple[TrainState, int | None, Skips]:
    """The state of the newest checkpoint, its step, and the steps skipped before; without one `state`, None and none.

    Raises:
        UserError: it is of a later step than the run has.
    """
    found = checkpoints.resume(state)
    if found is None:
        if jax.process_index() == 0 and (rows := read_metrics(spec.folder, "train")):
            # Expected after a kill before the first save; otherwise the checkpoints were deleted.
            _LOG.warning(
                "%s: no checkpoint, though metrics go to step %d; training starts again", spec.folder, rows[-1]["step"]
            )
        return state, None, Skips()
    state, metadata = found
    start = int(state.step)
    if start > spec.steps:
        raise UserError(f"{spec.folder}: is at step {start}, beyond the {spec.steps} of this command; give more")
    return state, start, Skips(**metadata.get("skipped_steps", {}))


def _announce(spec: RunSpec, devices: Devices, start: int | None) -> None:
    """Show the table that a run opens with, write it into the run's folder, and warn of attention that is not used."""
    config = spec.config
    opening = opening_lines(config, spec.about, spec.steps, devices, start)
    named, dropped = config.training.attention, spec.model_file["model"]["attention_dropout"]
    drawn_apart = named == "cudnn" and not config.training.exact_dropout
    if jax.process_index() == 0 and named not in ("auto", "xla") and dropped > 0 and not drawn_apart:
        _LOG.warning(
            "training.attention = '%s': the model that learns takes 'xla' in its steps, as it drops out a share %g of "
            "its attention; evaluations, and a teacher if there is one, take '%s'",
            *(named, dropped, named),
        )
    if config.logging.progress != "none":
        announce(opening)
    if jax.process_index() == 0:
        write_atomically(spec.folder / OPENING_FILE, "\n".join(opening) + "\n")


def _logged_evaluations(folder: Path, start: int | None) -> Evaluations:
    """The held-out measures of a resumed run up to its checkpoint, as the first process reads them, in all."""
    if start is None:
        return {}
    found = read_evaluations(folder, start) if jax.process_index() == 0 else {}
    return {int(step): measures for step, measures in json.loads(broadcast(json.dumps(found))).items()}


@contextlib.contextmanager
def _finished_saves(checkpoints: Checkpoints) -> Iterator[None]:
    """What is being saved when an error ends the block is still saved; not where other processes may be gone."""
    try:
        yield
    except BaseException as error:
        if isinstance(error, NonfiniteError) or not is_distributed():
            with contextlib.suppress(Exception):
                checkpoints.close()
        raise


@dataclasses.dataclass(frozen=True)
class _Run:
    """The parts of a running spec that do not change from step to step, but for what was measured."""

    spec: RunSpec
    devices: Devices
    watch: Watchdog
    checkpoints: Checkpoints
    writer: MetricsWriter
    progress: Progress
    evaluator: Evaluator | None
    frozen: Any
    evaluations: Evaluations

    def evaluate(self, step: int, state: TrainState, leave: Callable[[], str]) -> None:
        """Measure the held-out set and note the measures under this step; `leave` saves what there is on the way."""
        if self.evaluator is not None:
            self.progress.busy("measuring held-out data")
            with self.watch.preemption.interruptible(leave):
                measures = self.evaluator(state.params, self.frozen, self.watch.go)
            self.evaluations[step] = measures
            self.progress.note(f"step {step}: {measures_text(measures)}{self._best_text()}")
            self.writer.write(step, measures, kind=EVALUATION)

    def save(self, state: TrainState, skips: Skips) -> None:
        """Save `state`; the metrics up to it are on disk first, so that a resumed log has no gap.

        Raises:
            NonfiniteError: the state is not finite.
        """
        if jax.process_index() == 0:
            check_owner(self.spec.folder)
        self.writer.flush()
        refuse_nonfinite((state.params, state.opt_state), f"step {int(state.step)}")
        metadata = {
            "model_file": model_sha256(self.spec.model_file),
            "config": config_sha256(self.spec.config),
            "steps": self.spec.steps,
            "skipped_steps": dataclasses.asdict(skips),
        }
        self.checkpoints.save(state, metadata, best=self.best_step())
        self.watch.stall.progressed(f"the save of step {int(state.step)}")

    def best_step(self) -> int | None:
        """The best step by the spec's selection, if it has a measure and something was measured."""
        return self.spec.selection.best_step(self.evaluations)

    def _best_text(self) -> str:
        measure, best = self.spec.selection.measure, self.best_step()
        return "" if best is None else f"; best {measure} {self.evaluations[best][measure]:.4g} of step {best}"

    def exhausted(self) -> bool:
        """Whether to stop early."""
        return self.spec.selection.exhausted(self.evaluations)


def _train(run: _Run, state: TrainState, start: int, step_logger: StepLogger) -> TrainState:
    spec, steps = run.spec, run.spec.steps
    batches = spec.make_batches(range(start, steps), run.devices)
    saves = SaveClock(spec.config)

    def leave() -> str:
        step_logger.wait(0, state)
        if int(state.step) == start:
            return NOTHING_NEW
        run.save(state, step_logger.skips)
        run.checkpoints.close()
        return f"saved step {int(state.step)}"

    for number in range(start + 1, steps + 1):
        with run.watch.preemption.interruptible(leave):
            batch = next(batches)
            rows = run.devices.shard_batch(batch)
            step_logger.prepare(state, rows)
            run.watch.go()
        state, metrics = step_logger.compiled_step(state, run.frozen, rows)
        evaluate = _evaluation_due(spec, number)
        # What may turn out to be the best has to be kept.
        save = number == steps or saves.due(number) or (evaluate and bool(spec.selection.measure))
        step_logger.take(number, metrics, batch)
        step_logger.wait(0 if evaluate or save else run.devices.steps_ahead, state)
        if evaluate:
            run.evaluate(number, state, leave)
        if save:
            run.save(state, step_logger.skips)
            saves.saved()
        if evaluate or save:
            step_logger.restart_clock()
        if evaluate and run.exhausted():
            break
    return state


class StepLogger:
    """Follows the steps under way: has their program compiled, waits for them, writes their metrics and the progress.

    A row has the speed since the row before. Steps that are not finite end the run where there are too many in a row.
    """

    def __init__(self, run: _Run, compiled_step: CompiledStep, skips: Skips) -> None:
        """Begin after `skips`."""
        self.run, self.compiled_step, self.skips = run, compiled_step, skips
        self._in_flight: collections.deque[tuple[int, Metrics, Batch]] = collections.deque()
        self._began, self._first_step_seconds = time.monotonic(), 0.0
        self.restart_clock()

    def prepare(self, state: TrainState, rows: Any) -> None:
        """Have the program for such rows compiled, which is no time of the steps."""
        before = self.compiled_step.compile_seconds
        if not self.compiled_step.is_ready(rows):
            self.run.progress.busy("compiling")
        self.compiled_step.prepare(state, self.run.frozen, rows)
        self._last_time += self.compiled_step.compile_seconds - before

    def take(self, number: int, metrics: Metrics, batch: Batch) -> None:
        """Take the metrics of step `number`, still being computed, and what this process fed to it."""
        self._in_flight.append((number, metrics, batch))

    def wait(self, most: int, state: TrainState) -> None:
        """Wait until at most so many steps are under way; `state` is that after the last one.

        Raises:
            NonfiniteError: too many in a row were not finite.
        """
        while len(self._in_flight) > most:
            number, metrics, batch = self._in_flight.popleft()
            self.compiled_step.wait(metrics)
            skipped = bool(metrics["skipped"])
            self.skips = self.skips.after(skipped)
            self.finished(number, metrics)
            self.run.watch.stall.progressed(f"step {number}")
            if skipped:
                self._report_skipped(number, metrics, batch, state)

    def finished(self, number: int, metrics: Metrics) -> None:
        """Take note of step `number`, while later ones are queued on the device."""
        settings, total = self.run.spec.config.logging, self.skips.total
        tokens, loss = float(metrics["tokens"]), float(metrics["loss"])
        self._tokens, self._steps = self._tokens + tokens, self._steps + 1
        text = f"loss {loss:.3f}" + (f"  {total} steps skipped" if total else "")
        if not self._first_step_seconds:
            self._first_step_seconds = time.monotonic() - self._began
            text += f"  first step after {self._first_step_seconds:.0f} s"
        self.run.progress.update(number, amount=tokens, text=text)
        # An evaluation may end the run early, and the last step has a row.
        if number % settings.every_steps and not _evaluation_due(self.run.spec, number):
            return
        seconds = max(time.monotonic() - self._last_time, 1e-9)
        timing = {
            "tokens_per_second": self._tokens / seconds,
            "seconds_per_step": seconds / self._steps,
            "first_step_seconds": self._first_step_seconds,  # from the start of training, with its compilation
            "compile_seconds": self.compiled_step.compile_seconds,  # so far
        }
        config, devices = self.run.spec.config, self.run.devices
        kind, dtype = devices.local[0].device_kind, config.training.compute_dtype
        flops = self.run.spec.flops_per_token
        use = utilisation(timing["tokens_per_second"], flops, devices.count, kind, dtype)
        shown: dict[str, Any] = {"skipped_steps": total, **metrics}
        del shown["skipped"], shown["gradient_norms"]
        self.run.writer.write(number, shown, timing=timing if use is None else {**timing, "mfu": use})
        self.restart_clock()

    def _report_skipped(self, number: int, metrics: Metrics, batch: Batch, state: TrainState) -> None:
        spec, in_row = self.run.spec, self.skips.in_row
        if self.run.writer.enabled:
            _LOG.warning("step %d: loss or gradients are not finite; skipped, the %d. in a row", number, in_row)
        if in_row < spec.config.training.max_skipped_steps:
            return
        rows = spec.batch_rows(number - 1)
        folder = write_report(spec.folder, number, self.skips, metrics, rows, batch, state.params, spec.step.trainable)
        broadcast("")  # all have written
        raise NonfiniteError(
            f"step {number}: loss or gradients of {in_row} steps in a row are not finite; nothing of them is saved, "
            f"{folder} says what went in"
        )

    def restart_clock(self) -> None:
        """Count training time from now on: not that of an evaluation or a save."""
        self._tokens, self._steps, self._last_time = 0.0, 0, time.monotonic()


def _evaluation_due(spec: RunSpec, step: int) -> bool:
    return step == spec.steps or is_due(step, spec.evaluate_every)
