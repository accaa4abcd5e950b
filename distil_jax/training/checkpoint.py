"""Checkpoints of a run: the train state, every leaf with its hash. The only module that imports Orbax.

What a checkpoint is one of (sizes, tokenizer, settings) and what was measured stand in the run's folder, in model.json,
config.toml and metrics.jsonl; a checkpoint's metadata holds the hashes of the first two.
"""

from __future__ import annotations

import contextlib
import dataclasses
import logging
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import jax
import orbax.checkpoint as ocp
from orbax.checkpoint.checkpoint_managers import PolicyCheckpointInfo, PreservationContext, PreservationPolicy

from distil_jax.errors import FaultError, UserError, naming, one_line, storage_reason, writing
from distil_jax.runs import all_agree, filter_storage_logs, json_sha256
from distil_jax.training.integrity import DamagedError, as_stored, fitted, leaf_hashes, refuse_damage, unreadable_part
from distil_jax.training.step import TrainState

filter_storage_logs()

# 1: leaves under Python's own spelling of their paths; 2: under dotted ones; 3: metadata names the files of the run's
# folder by their hashes, where it held copies of them.
FORMAT = 3
TRASH = "trash"
CORRUPT = "corrupt"
_LOG = logging.getLogger("distil_jax")


@dataclasses.dataclass
class _Kept(PreservationPolicy):
    """Keeps the newest `newest` checkpoints (None: all) and the one of step `best`."""

    newest: int | None
    best: int | None = None

    def should_preserve(
        self, checkpoints: Sequence[PolicyCheckpointInfo], *, context: PreservationContext
    ) -> Sequence[bool]:
        del context
        first = 0 if self.newest is None else len(checkpoints) - self.newest
        return [number >= first or info.step == self.best for number, info in enumerate(checkpoints)]


class Checkpoints:
    """The checkpoints in one folder, newest last."""

    def __init__(
        self, folder: Path, *, keep: int | None = None, read_only: bool = False, migrate: bool = False
    ) -> None:
        """Open `folder`.

        Args:
            folder: absolute or relative path; made if missing, unless `read_only`.
            keep: how many of the newest are kept; None keeps all.
            read_only: never write or clean up.
            migrate: accept states of older formats and of other floating-point types too.

        Raises:
            UserError: there is no such folder, or it cannot be written.
        """
        if read_only and not folder.is_dir():
            raise UserError(f"{folder}: no checkpoints here; is this the folder of a run?")
        if folder.exists() and not folder.is_dir():  # which Orbax would find out at the first save
            raise UserError(f"{folder}: is a file, where the checkpoints belong; move it away")
        self._kept = _Kept(None if read_only else keep)
        options = ocp.CheckpointManagerOptions(
            create=not read_only,
            read_only=read_only,
            # A deletion that is killed half-way must not leave a step that looks whole.
            todelete_subdir=None if read_only else TRASH,
            preservation_policy=self._kept,
            cleanup_tmp_directories=not read_only,
        )
        self._folder, self._migrate = folder, migrate
        self._saved: int | None = None  # by this process
        self._trash = None if read_only or jax.process_index() else folder / TRASH
        self._empty_trash()
        with writing(folder):
            self._manager = ocp.CheckpointManager(folder.absolute(), options=options)

    def all_steps(self) -> list[int]:
        """Numbers of all finished checkpoints, ascending."""
        return sorted(self._manager.all_steps())

    def latest_step(self) -> int | None:
        """Number of the newest finished checkpoint, None without one."""
        return self._manager.latest_step()

    def save(self, state: TrainState, metadata: dict[str, Any], *, best: int | None = None) -> None:
        """Start saving `state` under its step, in the background; a step that is saved already stays as it is.

        Args:
            state: what is saved.
            metadata: JSON values that are saved with it.
            best: a step that is kept however many newer ones there are.

        Raises:
            FaultError: the save before this one failed, or this one cannot begin; those before are whole.
        """
        step = int(state.step)
        self._kept.best = best
        if step == self.latest_step():  # Orbax would decline it silently
            return
        metadata, optimizer = {**metadata, "format": FORMAT}, _without_params(state)
        items = ocp.args.Composite(
            params=ocp.args.StandardSave(state.params),
            optimizer=ocp.args.StandardSave(optimizer),
            metadata=ocp.args.JsonSave(metadata),
            hashes=ocp.args.JsonSave(
                {
                    "params": leaf_hashes(state.params),
                    "optimizer": leaf_hashes(optimizer),
                    "metadata": {"metadata": json_sha256(metadata)},
                }
            ),
        )
        self._wait()
        self._empty_trash()
        self._saved = step
        with self._faults():
            self._manager.save(step, args=items)

    def _wait(self) -> None:
        """Wait for the save that is under way, and check that it is there: Orbax makes a deleted folder again."""
        with self._faults():
            self._manager.wait_until_finished()
        if self._saved is not None and jax.process_index() == 0:
            saved = self._folder / str(self._saved)
            if not saved.is_dir():
                raise FaultError(f"{saved}: the checkpoint was deleted or moved during the run, and all others too")

    @contextlib.contextmanager
    def _faults(self) -> Iterator[None]:
        """Raises errors of the storage as FaultError."""
        try:
            with naming(self._folder):
                yield
        except Exception as error:
            if (reason := storage_reason(error, own=True)) is None:
                raise
            step, self._saved = self._saved, None
            raise FaultError(f"checkpoint of step {step} was not saved: {reason}") from error

    def resume(self, like: TrainState) -> tuple[TrainState, dict[str, Any]] | None:
        """State and metadata of the newest whole checkpoint, None where there is none at all.

        A damaged one is moved to `corrupt/`, which a line of the log says; all processes agree on it.

        Raises:
            FaultError: there are checkpoints, but none is whole; a start from step 0 would lose the run silently.
            UserError: it is whole, but of another format, or of other shapes or types than `like`.
        """
        bad: list[str] = []
        while (step := self.latest_step()) is not None:
            state, metadata, reason = like, {}, ""
            try:
                state, metadata = self._restore(step, like)
            except DamagedError as damage:
                reason = str(damage)
            if all_agree(not reason):
                return state, metadata
            bad.append(reason or f"step {step}: damaged for another process")
            self._put_aside(step, bad[-1])
        # The same command, given again, must not start from step 0 either.
        bad = bad or [f"step {entry.name}" for entry in sorted((self._folder / CORRUPT).glob("*"))]
        if bad:
            raise FaultError(
                f"{self._folder}: no checkpoint is whole ({'; '.join(bad)}); all are in {CORRUPT}/. Bring back a copy "
                "or start again in another folder"
            )
        return None

    def _put_aside(self, step: int, reason: str) -> None:
        if jax.process_index() == 0:
            target = self._folder / CORRUPT / str(step)
            target.parent.mkdir(exist_ok=True)
            shutil.rmtree(target, ignore_errors=True)
            (self._folder / str(step)).rename(target)
        _LOG.warning("%s: %s; moved to %s/, going back to the one before", self._folder, reason, CORRUPT)
        all_agree(True)  # no process looks again before it is gone
        self._manager.reload()

    def restore(self, step: int, like: TrainState) -> TrainState:
        """The state of `step`, with the shapes, types and placement of `like`.

        Raises:
            DamagedError: it is not what was saved.
            UserError: it is of another format, or of other shapes or types than `like`.
        """
        return self._restore(step, like)[0]

    def _restore(self, step: int, like: TrainState) -> tuple[TrainState, dict[str, Any]]:
        trees = {"params": like.params, "optimizer": _without_params(like)}
        found = self._read(step, trees)
        number = _format(step, found["metadata"])
        older = number < FORMAT
        if older and not self._migrate:
            raise UserError(
                f"{self._folder}: checkpoint step {step} is of format {number}, this program writes format {FORMAT}; "
                "checkpoint.migrate = true reads it"
            )
        state = {
            name: fitted(step, found[name], tree, cast=self._migrate, fill=older and name == "optimizer")
            for name, tree in trees.items()
        }
        if (inside := int(state["optimizer"]["step"])) != step:
            raise DamagedError(f"step {step}: step is {inside}; it is another checkpoint under this name")
        return TrainState(params=state["params"], **state["optimizer"]), found["metadata"]

    def params(self, step: int, like: Any) -> dict[str, Any]:
        """Only the parameters of `step`, in any format: they are the same in all.

        Args:
            step: which.
            like: their tree of arrays or ShapeDtypeStructs; top-level groups that it lacks are left out.

        Raises:
            DamagedError: they are not what was saved.
            UserError: they are of other shapes or types than `like`.
        """
        found = self._read(step, {"params": like})
        _format(step, found["metadata"])
        groups = {name: tree for name, tree in found["params"].items() if name in like}
        return fitted(step, groups, like, cast=self._migrate, fill=False)

    def metadata(self, step: int) -> dict[str, Any]:
        """What was saved with the state of `step`. Raises `DamagedError`."""
        return self._read(step, {})["metadata"]

    def verify(self, step: int) -> None:
        """Read a whole checkpoint. Raises `DamagedError` where it is not what was saved."""
        self._read(step, {"params": {}, "optimizer": {}})

    def _read(self, step: int, trees: dict[str, Any]) -> Any:
        """Metadata and items of a checkpoint, placed like `trees`, checked against their hashes."""
        folder, handler = self._manager.directory / str(step), ocp.StandardCheckpointHandler()
        try:
            items = {
                name: ocp.args.StandardRestore(as_stored(like, handler.metadata(folder / name).tree))
                for name, like in trees.items()
            }
            texts = {"metadata": ocp.args.JsonRestore(), "hashes": ocp.args.JsonRestore()}
            found = self._manager.restore(step, args=ocp.args.Composite(**items, **texts))
        except (MemoryError, jax.errors.JaxRuntimeError):
            raise
        except Exception as error:  # of any kind: the library fails on whatever the damaged bytes say
            part, reason = unreadable_part(Path(folder)) or ("", error)
            named = f"{part} " if part else ""
            raise DamagedError(f"step {step}: {named}cannot be read ({one_line(reason, 150)})") from error
        hashes = found["hashes"] if isinstance(found["hashes"], dict) else {}
        for name in (*items, "metadata"):
            value = found[name]
            actual = {name: json_sha256(value)} if name == "metadata" else leaf_hashes(value)
            refuse_damage(step, hashes.get(name), actual)
        return found

    def close(self) -> None:
        """Wait until everything is on disk. Raises FaultError where it cannot be written."""
        self._wait()
        self._manager.close()
        self._empty_trash()

    def _empty_trash(self) -> None:
        # Orbax only moves old checkpoints there.
        if self._trash is not None:
            shutil.rmtree(self._trash, ignore_errors=True)


def _without_params(state: TrainState) -> dict[str, Any]:
    fields = (field.name for field in dataclasses.fields(state))
    return {name: getattr(state, name) for name in fields if name != "params"}


def _format(step: int, metadata: dict[str, Any]) -> int:
    number = metadata.get("format", 1)
    if number > FORMAT:
        raise UserError(
            f"checkpoint step {step}: is of format {number}, this program reads formats up to {FORMAT}; use the "
            "version of distil_jax that wrote it"
        )
    return number
