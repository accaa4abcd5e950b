"""Settings from the command line: `--config FILE` with typed overrides, and commands with arguments of their own."""

from __future__ import annotations

import dataclasses
import difflib
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple, NoReturn, TypeVar

from distil_jax.config.commands import Arguments
from distil_jax.config.fields import Field, fields_of
from distil_jax.config.files import find_field, load_config, setting_names, to_tables, with_overrides
from distil_jax.config.schema import SECTIONS, Config
from distil_jax.config.short_help import ShortHelp, command_help, entry, full_help, no_flag_of, short_help
from distil_jax.errors import UserError, one_line

CONFIG_FLAG = "--config"
ALL_FLAG = "--help-all"
T = TypeVar("T", bound=Arguments)
_HELP = {"-h", "--help", ALL_FLAG}
_LONGEST_FLAG = 100  # characters of an unknown flag that are looked at
_INPUT = "--input"  # of a file of rows
_TRUTHS = ("True", "False", "None", "true", "false", "yes", "no", "0", "1")


class _Flag(NamedTuple):
    """What a flag gives: the name and schema of its setting, and its value where it takes none."""

    name: str
    field: Field
    value: bool | None = None


def parse_arguments(
    argv: Sequence[str],
    *,
    prog: str,
    description: str = "",
    sections: Iterable[str] | None = None,
    default: str | None = None,
    implied: Callable[[Mapping[str, Any]], Mapping[str, Any]] = lambda _: {},
    page: ShortHelp | None = None,
) -> Config:
    """The configuration that a command's arguments ask for.

    Args:
        argv: arguments after the command's name.
        prog: what the help calls the command, "distil-jax distill".
        description: first lines of the help.
        sections: sections, or settings "section.key", that the command uses. It shows and takes flags for these alone.
            None: all.
        default: configuration used where `--config` is not given; None: the schema's defaults.
        implied: further settings, which the command does not show, that follow from those it does.
        page: what `--help` shows; None: all settings, as `--help-all` does.

    Raises:
        UserError: whatever is wrong with a flag (the nearest valid one is named), its value, or the file.
        SystemExit: with status 0, after `--help` or `--help-all`, which show the file's values as defaults.
    """
    wanted = set(SECTIONS if sections is None else sections)
    shown = [name for name in setting_names() if name in wanted or name.partition(".")[0] in wanted]
    flags = _flags({f"--{name}": (name, find_field(name)[2]) for name in setting_names()})
    usable = {flag: found for flag, found in flags.items() if found.name in shown}
    for flag, _ in _parts(argv):
        if flag in flags and flag not in usable:
            raise UserError(f"{flag} has no effect on `{prog}`; leave it out, or set it in the file given by --config")
    _refuse_unknown(argv, ["--help", CONFIG_FLAG, *usable])
    source = _config_source(argv) or default
    config = Config() if source is None else load_config(source)
    if asked := _HELP & {*argv}:
        if page is None or ALL_FLAG in asked:
            _print_help(full_help(page, config, prog, description, shown))
        _print_help(short_help(page, config, prog, description, len(shown)))
    given = _values(argv, usable, {}, prog)
    tables = to_tables(config)
    values = {name: tables[name.partition(".")[0]][name.partition(".")[2]] for name in shown} | given
    return with_overrides(config, {**given, **implied(values)})


def parse_command(kind: type[T], argv: Sequence[str], *, prog: str) -> T:
    """The arguments of a command that takes no configuration.

    Args:
        kind: its arguments; its docstring and the texts of its fields are the help.
        argv: arguments after the command's name.
        prog: what the help calls the command.

    Raises:
        UserError: whatever is wrong with an argument.
        SystemExit: with status 0, after `--help`.
    """
    fields = fields_of(kind)
    positional = {name: fields[name] for name in kind.positional.split()}
    flags = _flags({kind.full_name(key): (key, field) for key, field in fields.items() if key not in positional})
    _refuse_unknown(argv, ["--help", *flags])
    if _HELP & {*argv}:
        _print_help(command_help(kind, prog))
    given = _values(argv, flags, positional, prog)
    required = [name for name, field in fields.items() if field.default is dataclasses.MISSING and name not in given]
    if empty := [name for name in required if name in positional and fields[name].is_list]:
        raise UserError(f"no {empty[0]} given; see `{prog} --help`")
    if required:
        rows = (" ".join(" ".join(entry(kind.label(name), fields[name])).split()) for name in required)
        raise UserError(f"not given: {', '.join(rows)}; see `{prog} --help`")
    return kind(**given)


def _print_help(text: str) -> NoReturn:
    sys.stdout.write(text + "\n")
    raise SystemExit(0)


def _flags(settings: Mapping[str, tuple[str, Field]]) -> dict[str, _Flag]:
    """The flags of settings by label: one each, and for a yes/no setting another one that says no."""
    found: dict[str, _Flag] = {}
    for label, (name, field) in settings.items():
        flag = label.replace("_", "-")
        found[flag] = _Flag(name, field, True if field.is_switch else None)
        if field.is_switch:
            found[no_flag_of(flag)] = _Flag(name, field, False)
    return found


def _parts(argv: Sequence[str]) -> Iterator[tuple[str, list[str]]]:
    """Each flag with the arguments up to the next one; first "" with those before all flags."""
    flag, texts = "", []
    for argument in argv:
        if argument.startswith("--"):
            yield flag, texts
            name, equals, value = argument.partition("=")
            flag, texts = name.replace("_", "-"), [value] if equals else []
        elif argument not in _HELP:
            texts.append(argument)
    yield flag, texts


def _values(
    argv: Sequence[str], flags: Mapping[str, _Flag], positional: Mapping[str, Field], prog: str
) -> dict[str, Any]:
    """The values that arguments give, by name; of a flag that is given twice the last one counts."""
    found: dict[str, Any] = {}
    rest: list[str] = []  # what no flag takes
    for flag, texts in _parts(argv):
        if flag not in flags:  # `--config`, which was read before
            rest += texts[1:] if flag else texts
            continue
        name, field, value = flags[flag]
        if value is not None and not (field.is_optional and texts and texts[0] in _TRUTHS):
            found[name], taken = value, 0
        else:
            taken = len(texts) if field.is_list else 1
            found[name] = _read(field, texts[:taken], flag, prog)
        rest += texts[taken:]
    for name, field in positional.items():
        taken = len(rest) if field.is_list else 1
        if rest:
            found[name] = _read(field, rest[:taken], name, prog)
        rest = rest[taken:]
    if rest:
        hint = " (yes/no flags take no value)" if rest[0] in _TRUTHS else ""
        if not hint and _INPUT in flags and flags[_INPUT][0] not in found:
            hint = f" (a file is read with {_INPUT})"
        raise UserError(f"no flag takes {one_line(' '.join(rest)) or 'an empty text'}{hint}; see `{prog} --help`")
    return found


def _read(field: Field, texts: Sequence[str], label: str, prog: str) -> Any:
    try:
        return field.read(texts)
    except ValueError:
        given = one_line("".join(f" {text}" for text in texts))
        raise UserError(f"{label}{given}: must be {field.allowed}; see `{prog} --help`") from None


def _config_source(argv: Sequence[str]) -> str | None:
    """Value of `--config`; the file gives the defaults of all others."""
    found = [texts[0] if texts else "" for flag, texts in _parts(argv) if flag == CONFIG_FLAG]
    if "" in found:
        raise UserError(f"{CONFIG_FLAG} needs the path of a TOML file or the name of a shipped configuration")
    if len(found) > 1:
        raise UserError(f"{CONFIG_FLAG} is given {len(found)} times: {', '.join(found)}; give it once")
    return found[0] if found else None


def _refuse_unknown(argv: Sequence[str], known: Sequence[str]) -> None:
    for flag, _ in _parts(argv):
        if flag and flag not in (*known, ALL_FLAG):
            near = max(known, key=lambda other: _likeness(flag[:_LONGEST_FLAG], other))
            raise UserError(f"there is no flag {one_line(flag, _LONGEST_FLAG)}; did you mean {near}?")


def _likeness(flag: str, known: str) -> tuple[bool, float]:
    """How near a known flag is: the same setting without its section first, then the letters they share."""
    same = known.rpartition(".")[2] == flag.lstrip("-")
    return same, difflib.SequenceMatcher(None, known, flag).ratio()
