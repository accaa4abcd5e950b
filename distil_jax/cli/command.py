"""What the commands share: their entry in the table, short flags, the start of the process."""

from __future__ import annotations

import dataclasses
import shutil
import sys
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from distil_jax.config import Arguments, Config, parse_command
from distil_jax.tables import narrowed


@dataclasses.dataclass(frozen=True)
class Command:
    """One entry of `distil-jax`.

    Attributes:
        text: its line in the overview.
        run: called with the command's arguments; returns the exit status where it is not 0.
        arguments: what they are parsed into; None: `run` takes the list as it is.
    """

    text: str
    run: Callable[[Any], int | None]
    arguments: type[Arguments] | None = None

    def __call__(self, name: str, argv: list[str]) -> int:
        """Run it with the arguments after its name; the exit status."""
        given = argv if self.arguments is None else parse_command(self.arguments, argv, prog=f"distil-jax {name}")
        return self.run(given) or 0


def with_long_flags(arguments: Iterable[str], short: Mapping[str, str]) -> list[str]:
    """The arguments with short flags replaced by those that they stand for: `--task sst2`, `--task=sst2`."""
    parts = (argument.partition("=") for argument in arguments)
    return [f"{short.get(flag, flag)}{equals}{value}" for flag, equals, value in parts]


def print_tables(text: str, keys: int = 1) -> None:
    """Print a text with tables, which are cut to the width of a terminal; a file or pipe gets them whole.

    `keys` columns name a row.
    """
    if sys.stdout.isatty():
        text = narrowed(text, shutil.get_terminal_size().columns, keys)
    print(text)


def say(line: str) -> None:
    """Print a line for people beside the results."""
    print(line, file=sys.stderr, flush=True)


def start(config: Config) -> None:
    """Start-up of a process that computes: environment, cluster, platform, compilation cache."""
    from distil_jax.runs import quiet_event_loops, startup

    startup.start(config)
    quiet_event_loops()
