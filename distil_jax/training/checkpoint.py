"""Checkpoints of a run; the only module that knows Orbax.

A checkpoint holds the train state and everything needed to use it without the run's inputs: the configuration, the
model's sizes and the tokenizer.
"""

from __future__ import annotations

import dataclasses
import logging
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
from orbax.checkpoint.checkpoint_managers import PolicyCheckpointInfo, PreservationContext, PreservationPolicy

from distil_jax.errors import FaultError, UserError, one_line
from distil_jax.training.integrity import DamagedError, json_hash, leaf_hashes, refuse_damage
from distil_jax.training.step import TrainState

# Orbax warns about options that are as they should be, such as that a read-only manager saves nothing.
logging.getLogger("absl").setLevel(logging.ERROR)


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

    def __init__(self, folder: Path, *, keep: int | None = None, read_only: bool = False) -> None:
        """Open `folder`.

        Args:
            folder: absolute or relative path; made if missing, unless `read_only`.
            keep: how many of the newest are kept; None keeps all.
            read_only: never write or clean up.
        """
        if read_only and not folder.is_dir():
            raise UserError(f"{folder}: no checkpoints here; is this the folder of a run?")
        self._kept = _Kept(None if read_only else keep)
        options = ocp.CheckpointManagerOptions(
            create=not read_only,
            read_only=read_only,
            # A deletion that is killed half-way must not leave a step that looks whole.
            todelete_subdir=None if read_only else TRASH,
            preservation_policy=self._kept,
            cleanup_tmp_directories=not read_only,
        )
        self._folder = folder
        self._trash = None if read_only or jax.process_index() else folder / TRASH
        self._empty_trash()
        self._manager = ocp.CheckpointManager(folder.absolute(), options=options)

    def all_steps(self) -> list[int]:
        """Numbers of all finished checkpoints, ascending."""
        return sorted(self._manager.all_steps())

    def latest_step(self) -> int | None:
        """Number of the newest finished checkpoint, None without one."""
        return self._manager.latest_step()

    def save(self, state: TrainState, metadata: dict[str, Any], *, best: int | None = None) -> None:
        """Start saving `state` under its step; the writing goes on in the background.

        `best` is a step that is kept however many newer ones there are.
        """
        step = int(state.step)
        self._kept.best = best
        if step == self.latest_step():  # Orbax would decline it without a word
            return
        optimizer = {"step": state.step, "opt_state": state.opt_state}
        items = ocp.args.Composite(
            params=ocp.args.StandardSave(state.params),
            optimizer=ocp.args.StandardSave(optimizer),
            metadata=ocp.args.JsonSave(metadata),
            hashes=ocp.args.JsonSave(
                {
                    "params": leaf_hashes(state.params),
                    "optimizer": leaf_hashes(optimizer),
                    "metadata": {"metadata": json_hash(metadata)},
                }
            ),
        )
        self._empty_trash()
        self._manager.save(step, args=items)

    def resume(self, like: TrainState) -> tuple[TrainState, dict[str, Any]] | None:
        """State and metadata of the newest whole checkpoint, None where there is none at all.

        DamagedError ones are said to be so in a line of the log and moved to `corrupt/`, all processes agreeing.

        Raises:
            FaultError: there are checkpoints, but none is whole; starting anew would lose the run without a word.
        """
        bad: list[str] = []
        while (step := self.latest_step()) is not None:
            state, metadata, complaint = like, {}, ""
            try:
                state, metadata = self.restore(step, like), self.metadata(step)
            except DamagedError as damage:
                complaint = str(damage)
            if _all_agree(not complaint):
                return state, metadata
            bad.append(complaint or f"step {step}: damaged for another process")
            self._put_aside(step, bad[-1])
        if bad:
            raise FaultError(
                f"{self._folder}: no checkpoint is whole ({'; '.join(bad)}); all are in {CORRUPT}/. Bring back a copy "
                "or start anew in another folder"
            )
        return None

    def _put_aside(self, step: int, complaint: str) -> None:
        if jax.process_index() == 0:
            target = self._folder / CORRUPT / str(step)
            target.parent.mkdir(exist_ok=True)
            shutil.rmtree(target, ignore_errors=True)
            (self._folder / str(step)).rename(target)
        _LOG.warning("%s: %s; moved to %s/, going back to the one before", self._folder, complaint, CORRUPT)
        _all_agree(True)  # nobody looks again before it is gone
        self._manager.reload()

    def restore(self, step: int, like: TrainState) -> TrainState:
        """The state of `step`, with the shapes, types and placement of `like`. Raises `DamagedError`."""
        optimizer = {"step": like.step, "opt_state": like.opt_state}
        found = self._read(step, {"params": like.params, "optimizer": optimizer})
        return TrainState(params=found["params"], **found["optimizer"])

    def params(self, step: int, like: Any) -> dict[str, Any]:
        """Only the parameters of `step`; `like` is their tree of arrays or ShapeDtypeStructs. Raises `DamagedError`."""
        return self._read(step, {"params": like})["params"]

    def metadata(self, step: int) -> dict[str, Any]:
        """What was saved beside the state of `step`. Raises `DamagedError`."""
        return self._read(step, {})["metadata"]

    def _read(self, step: int, trees: dict[str, Any]) -> Any:
        """Items of a checkpoint, as their hashes say they were saved: those of `trees`, or else the metadata."""
        items: dict[str, Any] = {name: ocp.args.StandardRestore(_abstract(tree)) for name, tree in trees.items()}
        if not trees:
            items["metadata"] = ocp.args.JsonRestore()
        try:
            found = self._manager.restore(step, args=ocp.args.Composite(**items, hashes=ocp.args.JsonRestore()))
        except (MemoryError, jax.errors.JaxRuntimeError):
            raise
        except Exception as error:  # the library raises what the bytes it met made it raise
            raise DamagedError(f"step {step}: cannot be read ({one_line(error, 150)})") from error
        hashes = found["hashes"] if isinstance(found["hashes"], dict) else {}
        for name in items:
            value = found[name]
            mine = {name: json_hash(value)} if name == "metadata" else leaf_hashes(value)
            refuse_damage(step, hashes.get(name), mine)
        return found

    def close(self) -> None:
        """Wait until everything is on disk; raises what went wrong in the background."""
        self._manager.wait_until_finished()
        self._manager.close()
        self._empty_trash()

    def _empty_trash(self) -> None:
        # Orbax only moves there what is not kept any longer.
        if self._trash is not None:
            shutil.rmtree(self._trash, ignore_errors=True)


def _all_agree(good: bool) -> bool:
    """Whether it is good in every process."""
    if jax.process_count() == 1:
        return good
    from jax.experimental import multihost_utils

    return bool(np.all(multihost_utils.process_allgather(np.asarray(good))))


def _abstract(tree: Any) -> Any:
    # Restoring without shardings would silently use other devices than the run does.
    def leaf(x: Any) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=getattr(x, "sharding", None))

    return jax.tree.map(leaf, tree)
