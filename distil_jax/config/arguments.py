"""Settings from the command line: `--config FILE` with typed overrides, and commands with arguments of their own."""

from __future__ import annotations

import contextlib
import dataclasses
import difflib
import io
import itertools
import operator
import re
import sys
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from typing import Annotated, Any, TypeVar

from distil_jax.config.commands import Arguments
from distil_jax.config.fields import Field, fields_of
from distil_jax.config.files import find_field, load_config, setting_names, to_tables, with_overrides
from distil_jax.config.schema import SECTIONS, Config
from distil_jax.config.short_help import ShortHelp, command_help, short_help
from distil_jax.errors import UserError, one_line

CONFIG_FLAG = "--config"
ALL_FLAG = "--help-all"
T = TypeVar("T", bound=Arguments)
_LONGEST_FLAG = 100  # characters of an unknown flag that are looked at
_TRUTHS = ("True", "False", "true", "false", "yes", "no", "0", "1")


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
    source = _config_source(argv) or default
    config = Config() if source is None else load_config(source)
    fields = {name: find_field(name)[2] for name in setting_names()}
    names = {flag: name for name, field in fields.items() for flag in _flags(f"--{name}", field)}
    usable = [CONFIG_FLAG, *(flag for flag, name in names.items() if name in shown)]
    for flag in _given_flags(argv):
        if flag in names and flag not in usable:
            raise UserError(f"{flag} has no effect on `{prog}`; leave it out, or set it in the file given by --config")
    asked = {"-h", "--help"} & {*argv}
    if asked and page is not None:
        _refuse_unknown(argv, ["--help", *usable])
        sys.stdout.write(short_help(page, config, prog, description, len(shown)) + "\n")
        raise SystemExit(0)
    argv = ["--help" if argument == ALL_FLAG else argument for argument in argv]
    allowed = {flag: fields[name].allowed for flag, name in names.items()}
    needed = () if page is None else page.needed
    parsed = _parse(_config_class(config, shown, source, needed), argv, prog, description, usable, allowed)
    given = {name: operator.attrgetter(name)(parsed) for name in shown}
    return with_overrides(config, {**given, **implied(given)})


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
    rows = [_row(key, field, field.default, positional=key in kind.positional.split()) for key, field in fields.items()]
    described = dataclasses.make_dataclass(kind.__name__, rows, frozen=True)
    described.__doc__ = kind.__doc__
    named = {kind.full_name(key): field for key, field in fields.items() if key not in kind.positional.split()}
    allowed = {flag: field.allowed for label, field in named.items() for flag in _flags(label, field)}
    if {"-h", "--help", ALL_FLAG} & {*argv}:
        _refuse_unknown(argv, ["--help", ALL_FLAG, *allowed])
        sys.stdout.write(command_help(kind, prog) + "\n")
        raise SystemExit(0)
    parsed = kind(**vars(_parse(described, argv, prog, "", allowed, allowed)))
    for name in kind.positional.split():
        if getattr(parsed, name) == ():
            raise UserError(f"no {name} given; see `{prog} --help`")
    return parsed


def _config_source(argv: Sequence[str]) -> str | None:
    """Value of `--config`; it is needed before the rest can be parsed, as the file gives the defaults."""
    found: list[str] = []
    for position, argument in enumerate(argv):
        if argument == CONFIG_FLAG:
            value = argv[position + 1] if position + 1 < len(argv) else ""
            if not value or value.startswith("--"):
                raise UserError(f"{CONFIG_FLAG} needs the path of a TOML file or the name of a shipped configuration")
            found.append(value)
        elif argument.startswith(f"{CONFIG_FLAG}="):
            found.append(argument.partition("=")[2])
    if len(found) > 1:
        raise UserError(f"{CONFIG_FLAG} is given {len(found)} times: {', '.join(found)}; give it once")
    return found[0] if found else None


def _given_flags(argv: Sequence[str]) -> list[str]:
    return [argument.partition("=")[0].replace("_", "-") for argument in argv if argument.startswith("--")]


def _flags(label: str, field: Field) -> list[str]:
    """The flags of a setting: one, or the two of a pair for a yes/no setting."""
    flag = label.replace("_", "-")
    section, dot, key = flag.removeprefix("--").rpartition(".")
    return [flag, *([f"--{section}{dot}no-{key}"] if field.annotation is bool else [])]


def _row(key: str, field: Field, default: Any, *, positional: bool = False) -> tuple[Any, ...]:
    """A field of a dataclass for tyro."""
    import tyro

    typed: Any = Annotated[
        field.annotation, tyro.conf.arg(help=field.help, metavar=key.upper() if positional else None)
    ]
    typed = tyro.conf.Positional[typed] if positional else typed
    return (key, typed) if default is dataclasses.MISSING else (key, typed, dataclasses.field(default=default))


def _config_class(config: Config, names: list[str], source: str | None, needed: Collection[str]) -> type[Any]:
    """A dataclass for tyro: these settings' names, types and help, with the values of `config` as defaults."""
    import tyro

    tables = to_tables(config)
    made: list[tuple[str, Any, Any]] = []
    for section in dict.fromkeys(name.partition(".")[0] for name in names):
        fields = fields_of(SECTIONS[section]).items()
        marked = (
            (key, dataclasses.replace(field, help=f"needed: {field.help}") if f"{section}.{key}" in needed else field)
            for key, field in fields
        )
        rows = [_row(key, field, tables[section][key]) for key, field in marked if f"{section}.{key}" in names]
        kind = dataclasses.make_dataclass(section, rows, frozen=True)
        kind.__doc__ = SECTIONS[section].__doc__
        made.append((section, kind, dataclasses.field(default=kind())))
    text = "TOML file, or name of a shipped configuration; its values are the defaults below"
    named = Annotated[str, tyro.conf.arg(help=text, metavar="FILE")]
    return dataclasses.make_dataclass("Arguments", [("config", named, dataclasses.field(default=source or "")), *made])


def _parse(
    kind: type[Any],
    argv: Sequence[str],
    prog: str,
    description: str,
    flags: Iterable[str],
    allowed: Mapping[str, str],
) -> Any:
    """What tyro makes of the arguments. A mistake becomes one line, for which `allowed` has what each flag takes."""
    _refuse_unknown(argv, ["--help", *flags])
    import tyro

    complaint = io.StringIO()
    try:
        with contextlib.redirect_stderr(complaint):
            return tyro.cli(kind, args=list(argv), prog=prog, description=description or None)
    except SystemExit as end:
        if not end.code:
            raise
    frames = r"\x1b\[[0-9;]*m|[\u2500-\u257f]+|-{3,}|[|+]"  # colours and boxes, drawn in ASCII on some terminals
    text = " ".join(re.sub(frames, " ", complaint.getvalue()).split())
    text = text.partition(" For full helptext")[0]
    raise UserError(_reworded(text, argv, allowed) + f"; see `{prog} --help`")


def _refuse_unknown(argv: Sequence[str], known: Sequence[str]) -> None:
    for flag in _given_flags(argv):
        if flag not in known:
            near = max(known, key=lambda other: _likeness(flag[:_LONGEST_FLAG], other))
            raise UserError(f"there is no flag {one_line(flag, _LONGEST_FLAG)}; did you mean {near}?")


def _likeness(flag: str, known: str) -> tuple[bool, float]:
    """How near a known flag is: the same setting without its section first, then the letters they share."""
    same = known.rpartition(".")[2] == flag.lstrip("-")
    return same, difflib.SequenceMatcher(None, known, flag).ratio()


def _reworded(text: str, argv: Sequence[str], allowed: Mapping[str, str]) -> str:
    """The parser's complaint in the words of the schema."""
    absent = re.search(r"Missing from [^:]*: (.*)", text)
    if absent:
        return "not given: " + one_line(absent[1].replace(" (required)", ",").rstrip(", "))
    stray = re.search(r"Unrecognized options:\s*(.*)", text)
    if stray:
        return f"no flag takes {one_line(stray[1]) or 'an empty text'}" + (
            " (yes/no flags take no value)" if stray[1] in _TRUTHS else ""
        )
    about = next((flag for flag in re.findall(r"--[a-z0-9.-]*[a-z0-9]", text) if flag in allowed), None)
    return f"{about}{one_line(_given(about, argv))}: must be {allowed[about]}" if about else one_line(text)


def _given(flag: str, argv: Sequence[str]) -> str:
    """The values given to `flag`: " fast", or nothing."""
    for position, argument in enumerate(argv):
        name, equals, value = argument.partition("=")
        if name.replace("_", "-") == flag:
            values = itertools.takewhile(lambda item: not item.startswith("--"), argv[position + 1 :])
            return "".join(f" {item}" for item in ([value] if equals else values))
    return ""
