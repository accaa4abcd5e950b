"""What the processes of one run tell each other, beside what they compute together.

Texts by name are kept by the coordination service that JAX runs in the first process; nothing here waits for a device
but `share`.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from typing import Any

import jax
import numpy as np

from distil_jax.errors import FaultError, UserError

FAILED = "news/failed"  # why a process ended
STALLED = "news/stalled"  # that a process hangs
PREEMPTED = "news/preempted"  # a process was told to end
HEARING_SECONDS = 2.0  # after which all have heard what was told
_ROOT = "distil_jax/"
_LONGEST_BYTES = 16384


def are_several() -> bool:
    """Whether this process is one of several."""
    return jax.distributed.is_initialized() and jax.process_count() > 1


def name_of(process: int) -> str:
    """What messages call a process: "process 1 of 0 to 3"."""
    return f"process {process} of 0 to {jax.process_count() - 1}"


def tell(name: str, text: str, *, overwrite: bool = False) -> None:
    """Make `text` known as `name`; the first text of a name stays, unless `overwrite`."""
    # It is there already, or the service is gone, which JAX itself notices.
    with contextlib.suppress(jax.errors.JaxRuntimeError):
        _service().key_value_set(_ROOT + name, text, allow_overwrite=overwrite)


def fail(reason: str) -> None:
    """Tell all why this process ends, and give them time to hear it: the first one's end is theirs."""
    tell(FAILED, reason)
    if jax.process_index() == 0:
        time.sleep(HEARING_SECONDS)


def heard(folder: str) -> dict[str, str]:
    """What has been told under names that begin with `folder`/, by those names; empty where the service is gone."""
    try:
        found = _service().key_value_dir_get(f"{_ROOT}{folder}/")
    except jax.errors.JaxRuntimeError:
        return {}
    return {name.removeprefix(_ROOT): text for name, text in found}


def _service() -> Any:
    from jax._src import distributed  # JAX has no public name for it; Orbax takes the same way

    return distributed.global_state.client


def share(text: str) -> str:
    """The first process's text, in all of them; all have to call this."""
    if not are_several():
        return text
    from jax.experimental import multihost_utils

    content = np.zeros(_LONGEST_BYTES, np.uint8)
    given = text.encode()[:_LONGEST_BYTES]
    content[: len(given)] = np.frombuffer(given, np.uint8)
    # Every element is told in 32 bits: not every back end adds up bytes.
    found = np.asarray(multihost_utils.broadcast_one_to_all(content.astype(np.int32)))
    return found.astype(np.uint8).tobytes().rstrip(b"\0").decode(errors="ignore")


@contextlib.contextmanager
def first_process_in(context: Callable[[], AbstractContextManager[Any]]) -> Iterator[None]:
    """The first process is in `context()` for the length of the block; what keeps it out is raised in all."""
    # Getting in may take minutes, and the first computation of all fails if a process is half a minute late for it.
    share("")
    with contextlib.ExitStack() as stack:
        mistake: Exception | None = None
        if jax.process_index() == 0:
            try:
                stack.enter_context(context())
            except (UserError, FaultError) as error:
                mistake = error
        kind = "" if mistake is None else "fault " if isinstance(mistake, FaultError) else "error "
        verdict = share(f"{kind}{mistake or ''}")
        if mistake is not None:
            raise mistake
        if verdict:
            raise (FaultError if verdict.startswith("fault ") else UserError)(verdict.partition(" ")[2])
        yield
