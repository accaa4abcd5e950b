"""What the commands share: their entry in the table, their own arguments, the start of the process."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from distil_jax.config import Config


@dataclasses.dataclass(frozen=True)
class Command:
    """One entry of `distil-jax`: a line of help and the function that takes the arguments after its name.

    The function returns the exit status where it is not 0.
    """

    text: str
    run: Callable[[list[str]], int | None]


def parse(kind: type[Any], arguments: list[str], name: str, positional: str = "") -> Any:
    """The arguments of a command with a few of its own, as the dataclass `kind`."""
    from distil_jax.config.arguments import parse_dataclass

    return parse_dataclass(kind, arguments, prog=f"distil-jax {name}", positional=positional)


def spelled_out(arguments: Iterable[str], short: Mapping[str, str]) -> list[str]:
    """The arguments with short names of flags replaced by those that they stand for: `--task sst2`, `--task=sst2`."""
    parts = (argument.partition("=") for argument in arguments)
    return [f"{short.get(flag, flag)}{equals}{value}" for flag, equals, value in parts]


def start(config: Config) -> None:
    """Process start-up of commands that compute: environment, cluster, platform, compilation cache."""
    from distil_jax.runs import startup as runtime

    runtime.start(config)
    import asyncio

    from distil_jax.cli.event_loop import LoopPolicy

    asyncio.set_event_loop_policy(LoopPolicy())
