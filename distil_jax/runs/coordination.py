"""Messages between the processes of one run, besides what they compute together.

Texts by name are kept by the coordination service that JAX runs in the first process. Only `broadcast` and what uses
it wait for devices.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from typing import Any, TypeVar

import jax
import numpy as np

from distil_jax.errors import FaultError, UserError

FAILED = "news/failed"  # why a process ended
STALLED = "news/stalled"  # that a process hangs
STOPPED = "news/stopped"  # the number of the signal that asked a process to end
DELIVERY_SECONDS = 2.0  # after which all processes have read what was published
_ROOT = "distil_jax/"
T = TypeVar("T")


def is_distributed() -> bool:
    """Whether this process is one of several."""
    return jax.distributed.is_initialized() and jax.process_count() > 1


def process_name(process: int) -> str:
    """What messages call a process: "process 1 of 0 to 3"."""
    return f"process {process} of 0 to {jax.process_count() - 1}"


def publish(name: str, text: str, *, overwrite: bool = False) -> None:
    """Make `text` readable in all processes as `name`; the first text of a name stays, unless `overwrite`."""
    # It is there already, or the service is gone, which JAX itself notices.
    with contextlib.suppress(jax.errors.JaxRuntimeError):
        _service().key_value_set(_ROOT + name, text, allow_overwrite=overwrite)


def publish_failure(reason: str) -> None:
    """Publish why this process ends. The first process then waits until all have read it: it runs the service."""
    publish(FAILED, reason)
    if jax.process_index() == 0:
        time.sleep(DELIVERY_SECONDS)


def read_all(folder: str) -> dict[str, str]:
    """The published texts whose names begin with `folder`/, by name; empty where the service is gone."""
    try:
        found = _service().key_value_dir_get(f"{_ROOT}{folder}/")
    except jax.errors.JaxRuntimeError:
        return {}
    return {name.removeprefix(_ROOT): text for name, text in found}


def _service() -> Any:
    from jax._src import distributed  # JAX has no public name for it; Orbax uses the same one

    return distributed.global_state.client


def broadcast(text: str) -> str:
    """The first process's text, in all of them; all have to call this."""
    if not is_distributed():
        return text
    content = np.frombuffer(text.encode(), np.uint8)
    length = int(_broadcast(np.int32(content.size)))
    padded = np.resize(content, length) if content.size else np.zeros(length, np.uint8)
    # Every byte is sent in 32 bits: not every back end adds up bytes.
    return _broadcast(padded.astype(np.int32)).astype(np.uint8).tobytes().decode()


def _broadcast(values: Any) -> np.ndarray:
    from jax.experimental import multihost_utils

    return np.asarray(multihost_utils.broadcast_one_to_all(values))


def all_agree(good: bool) -> bool:
    """Whether `good` holds in every process; all have to call this."""
    if not is_distributed():
        return good
    from jax.experimental import multihost_utils

    return bool(np.all(multihost_utils.process_allgather(np.asarray(good))))


@contextlib.contextmanager
def first_process_in(context: Callable[[], AbstractContextManager[T]]) -> Iterator[T | None]:
    """The first process enters `context()` for the length of the block; its UserError or FaultError is raised in all.

    The other processes run the block without it, with None in the place of what it gives.
    """
    # Entering may take minutes, and the first computation of all fails if a process is half a minute late for it.
    broadcast("")
    with contextlib.ExitStack() as stack:
        error: UserError | FaultError | None = None
        entered: T | None = None
        if jax.process_index() == 0:
            try:
                entered = stack.enter_context(context())
            except (UserError, FaultError) as raised:
                error = raised
        kind = "" if error is None else "fault" if isinstance(error, FaultError) else "mistake"
        kind, _, message = broadcast(f"{kind} {error or ''}").partition(" ")
        if error is not None:
            raise error
        if kind:
            raise (FaultError if kind == "fault" else UserError)(message)
        yield entered
