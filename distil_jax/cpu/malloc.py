"""What glibc's malloc holds, and giving back what is free."""

from __future__ import annotations

import ctypes
import functools
import platform
from typing import Any


class _MallocInfo(ctypes.Structure):
    """glibc's struct mallinfo2."""

    _fields_ = [
        (name, ctypes.c_size_t)
        for name in (
            *("arena", "ordblks", "smblks", "hblks", "hblkhd"),
            *("usmblks", "fsmblks", "uordblks", "fordblks", "keepcost"),
        )
    ]


@functools.cache
def _glibc() -> Any:
    """The C library if it is glibc, else None."""
    if platform.libc_ver()[0] != "glibc":
        return None
    library = ctypes.CDLL(None)
    if hasattr(library, "mallinfo2"):
        library.mallinfo2.restype = _MallocInfo
    return library


def trim_memory() -> None:
    """Have glibc's malloc give back to the system what is free.

    Reading a model and compiling leave holes into which none of XLA's large buffers fits.
    """
    if library := _glibc():
        library.malloc_trim(0)


def memory_in_use() -> int | None:
    """Bytes that malloc has given out and not got back; None without glibc 2.33 or later.

    Those of malloc's first arena and of buffers mapped by themselves: all large ones, whatever its settings.
    """
    library = _glibc()
    if not hasattr(library, "mallinfo2"):
        return None
    found = library.mallinfo2()
    return found.uordblks + found.hblkhd
