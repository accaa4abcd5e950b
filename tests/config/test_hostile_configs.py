"""Whatever a file or a command line says: a valid configuration, or one line that names key, value and range."""

from __future__ import annotations

import json
import math
import random
import resource
import time
import typing
from pathlib import Path
from typing import Any, Literal

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from distil_jax.config import (
    SECTIONS,
    Config,
    config_from_toml,
    config_to_toml,
    fields_of,
    load_config,
    parse_arguments,
    with_overrides,
)
from distil_jax.errors import UserError

pytestmark = pytest.mark.fault("hostile configurations")
FIELDS = {f"{section}.{key}": field for section, kind in SECTIONS.items() for key, field in fields_of(kind).items()}
NUMBERS = [name for name, field in FIELDS.items() if field.annotation in (int, float)]

# TOML values that somebody may write where something else is wanted.
LITERALS = [
    *("0", "-1", "1", "-0.0", "0.5", "1.5", "2147483647", "2147483648", "-2147483649", "9223372036854775808", "1e39"),
    *("1e308", "1e-320", "nan", "-nan", "inf", "-inf", "true", "false", '""', '"a\\u0000b"', '"a\\nb"', "'\\'", "[]"),
    *(
        "[[]]",
        "[0]",
        "[-1]",
        '["a", ""]',
        "[1, 2.5]",
        '["a", 1]',
        "{}",
        "{a = 1}",
        "1979-05-27",
        "07:32:00",
        "0x" + "f" * 5000,
    ),
    *("1979-05-27T07:32:00Z", "9" * 4000, "9" * 5000, '"' + "x" * 9000 + '"', "[" + "1," * 9000 + "]", "0o17", "0b1"),
    *("[" * 200 + "]" * 200, "1_000", '"""\na\n"""', '"\\U0010ffff"', "[true]", "[[1], [2]]", '"gpu"', '"-x"', '"~"'),
]
# The same on a command line, where everything is text.
ARGUMENTS = [
    "",
    " ",
    "-1",
    "--",
    "-",
    "nan",
    "inf",
    "1e400",
    "1e-400",
    "9" * 5000,
    "0x10",
    "1_0",
    "True",
    "[]",
    "a\nb",
    "\udc80",
]
ARGUMENTS += [
    "\x1b[2J",
    "x" * 9000,
    "None",
    "{}",
    "1,2",
    "'",
    '"',
    "@file",
    "=",
    "é",
    "٣",
    "\u2028",
    "--help",
    "-h",
    "1 2",
]


def outcome(make: typing.Callable[[], Any]) -> str:
    """ "" where a configuration came out, the message where it was refused; anything else is a defect here."""
    try:
        config = make()
    except UserError as error:
        assert str(error).isprintable() and len(str(error)) < 1000, str(error)[:2000]
        return str(error)
    assert isinstance(config, Config)
    assert config_from_toml(config_to_toml(config), "again") == config
    return ""


def is_valid(name: str, value: Any) -> bool:
    """Whether a value may stand, said independently: of the type, finite, in 32 bits."""
    annotation = FIELDS[name].annotation
    if typing.get_origin(annotation) is Literal:
        return value in typing.get_args(annotation)
    if typing.get_origin(annotation) is tuple:
        item = typing.get_args(annotation)[0]
        kinds = (int, float) if item is float else (item,)
        value = [value] if item is str and isinstance(value, str) else value  # one text is a list of one
        return isinstance(value, list) and all(type(one) in kinds for one in value)
    if annotation is float:
        return type(value) in (int, float) and math.isfinite(value)
    return type(value) is annotation and (annotation is not int or abs(value) < 2**31)


@pytest.mark.fault("hostile configurations", tries=len(LITERALS))
@pytest.mark.parametrize("name", FIELDS)
def test_every_field_with_every_value(name: str) -> None:
    """TOML: each of the values above is taken for what it is, or refused by name."""
    import tomllib

    section, key = name.split(".")
    for literal in LITERALS:
        text = f"[{section}]\n{key} = {literal}\n"
        message = outcome(lambda text=text: config_from_toml(text, "here"))
        try:
            value = tomllib.loads(text)[section][key]
        except (ValueError, RecursionError):
            assert message.startswith("here: not valid TOML"), (literal, message)
            continue
        if message:
            assert message.startswith("here: ") and (name in message or section in message), (literal, message)
        else:
            assert is_valid(name, value), literal


@pytest.mark.fault("hostile configurations", tries=3)
@pytest.mark.parametrize("name", FIELDS)
def test_every_flag_with_every_text(name: str) -> None:
    """The command line: a configuration, one line, or the help that was asked for."""
    flag, section = "--" + name.replace("_", "-"), name.partition(".")[0]
    number = [*FIELDS].index(name)
    for argument in (ARGUMENTS[(3 * number + i) % len(ARGUMENTS)] for i in range(3)):
        given_ = [flag, argument] if number % 2 else [f"{flag}={argument}"]
        try:
            message = outcome(lambda g=given_: parse_arguments(g, prog="distil-jax x", sections=[section]))
        except SystemExit as end:
            assert end.code == 0 and argument in ("--help", "-h")
            continue
        if not message and FIELDS[name].annotation in (int, float):
            assert math.isfinite(float(argument))


@pytest.mark.parametrize("name", NUMBERS)
def test_numbers_beyond_the_machine_name_key_value_and_range(name: str) -> None:
    whole = FIELDS[name].annotation is int
    for value in (2**31, -(2**31), 10**30) if whole else (3.5e38, -1e39, 10**400):
        message = outcome(lambda value=value: with_overrides(Config(), {name: value}))
        assert message.startswith(f"{name} = ") and "must be" in message
        assert (
            ("2147483648" in message or "65536" in message or "1073741824" in message)
            if whole
            else "float32" in message
        )
        assert FIELDS[name].allowed in message


BOUNDED = [name for name, field in FIELDS.items() if field.check and field.check.high < math.inf]


@pytest.mark.parametrize("name", BOUNDED)
def test_absurd_values_are_refused_and_sensible_ones_are_not(name: str) -> None:
    field = FIELDS[name]
    assert field.check is not None
    low, high = field.check.low, field.check.high
    listed = typing.get_origin(field.annotation) is tuple
    assert field.annotation in (int, float) or listed
    default = field.default if listed else (field.default,)
    assert all(low <= value <= high for value in default)
    value = int(high) + 1 if listed or field.annotation is int else high * 1.01
    message = outcome(lambda: with_overrides(Config(), {name: [value] if listed else value}))
    assert message.startswith(f"{name} = ") and f"{value}" in message and f"{high:.12g}" in message, message


COMBINATIONS: list[tuple[dict[str, Any], list[str]]] = [
    (
        {"model.num_layers": 1000, "model.hidden_size": 61440, "model.intermediate_size": 200_000},
        ["model.num_layers = 1000", "model.hidden_size = 61440", "weights; at most 1e+11"],
    ),
    (
        {"training.batch_size": 1 << 20, "corpus.sequence_length": 4096},
        ["training.batch_size = 1048576", "corpus.sequence_length = 4096", "at most 2147483647"],
    ),
    ({"corpus.min_tokens": 600}, ["corpus.min_tokens = 600", "corpus.sequence_length = 512"]),
    ({"masking.probability": 1e-30}, ["masking.probability = 1e-30", "from 0.001 to 0.999"]),  # nothing to predict
    ({"training.epochs": 0}, ["training.steps", "training.epochs", "set one of them above 0"]),
    ({"masking.mask": 0.0}, ["masking.mask + masking.random + masking.keep is 0.2, must be 1"]),
]


@pytest.mark.parametrize(("changes", "words"), COMBINATIONS)
def test_absurd_combinations_name_every_setting(changes: dict[str, Any], words: list[str]) -> None:
    message = outcome(lambda: with_overrides(Config(), changes))
    for word in words:
        assert word in message


SCALARS = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20) | st.binary(max_size=3)
VALUES = st.recursive(
    SCALARS, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=2)
)


@pytest.mark.fault("hostile configurations", tries=150)
@settings(max_examples=150, deadline=None)
@given(st.dictionaries(st.sampled_from([*FIELDS]) | st.text(max_size=20), VALUES, max_size=3))
def test_any_overrides(changes: dict[str, Any]) -> None:
    outcome(lambda: with_overrides(Config(), changes))


NAMES = st.sampled_from([key for name in FIELDS for key in name.split(".")]) | st.text(max_size=8).map(json.dumps)
LINES = st.one_of(
    st.sampled_from(sorted(SECTIONS)).map(lambda name: f"[{name}]"),
    st.tuples(NAMES, st.sampled_from(LITERALS)).map(" = ".join),
    st.tuples(NAMES, NAMES, st.sampled_from(LITERALS)).map(lambda parts: f"{parts[0]}.{parts[1]} = {parts[2]}"),
    st.text(max_size=12),
)


@pytest.mark.fault("hostile configurations", tries=150)
@settings(max_examples=150, deadline=None)
@given(st.lists(LINES, max_size=6).map("\n".join))
def test_any_file(text: str) -> None:
    outcome(lambda: config_from_toml(text, "here"))


@pytest.mark.fault("hostile configurations", tries=150)
@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.binary(max_size=60))
def test_any_bytes_in_a_file(tmp_path: Path, data: bytes) -> None:
    (tmp_path / "a.toml").write_bytes(data)
    said = outcome(lambda: load_config(tmp_path / "a.toml"))
    assert said == "" or said.startswith(f"{tmp_path}/a.toml: ")  # comments and white space are a configuration


@pytest.mark.fault("hostile configurations", tries=10)
@settings(max_examples=10, deadline=None)
@given(
    st.lists(
        st.sampled_from(["--" + name.replace("_", "-") for name in FIELDS])
        | st.sampled_from(ARGUMENTS)
        | st.text(max_size=9),
        max_size=4,
    )
)
def test_any_command_line(arguments: list[str]) -> None:
    try:
        outcome(lambda: parse_arguments(arguments, prog="distil-jax distill"))
    except SystemExit as end:
        assert end.code == 0 and {"-h", "--help"} & set(arguments)


BOMBS = {
    "a chain of dotted keys": "[run]\n" + "a." * 100_000 + "a = 1",
    "a chain of dotted tables": "[" + "a." * 100_000 + "a]",
    "a chain of quoted keys": "[run]\n" + '"a". ' * 40_000 + "a = 1",
    "chains in inline tables": "[run]\noutput = {" + "a." * 3000 + "b = 1}",
    "nested lists": "[run]\noutput = " + "[" * 50_000,
    "nested tables": "[run]\noutput = " + "{a = " * 900 + "1" + "}" * 900,
    "a key of 200 kB": "[run]\n" + "k" * 200_000 + " = 1",
    "a number of 200,000 digits": "[run]\nseed = " + "9" * 200_000,
    "quotes": "[run]\n" + '"\\"' * 60_000,
    "20,000 tables": "".join(f"[run.a{i}]\n" for i in range(20_000)),
    "2 MB": "#" * (2 << 20),
}


@pytest.mark.parametrize("name", BOMBS)
def test_bombs(tmp_path: Path, name: str) -> None:
    (tmp_path / "a.toml").write_text(BOMBS[name])
    began, before = time.process_time(), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    assert outcome(lambda: load_config(tmp_path / "a.toml")).startswith(f"{tmp_path / 'a.toml'}: ")
    assert time.process_time() - began < 1
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 100 << 10


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ('inherit = "../../../../../etc/passwd"', "not valid TOML"),
        ('inherit = "/dev/zero"', "must be the path of a TOML file"),
        ('inherit = "' + "x" * 5000 + '"', "must be the path of a TOML file"),
        ('inherit = "a\\u0000b"', "must be the path of a TOML file"),
        ('inherit = "."', "must be the path of a TOML file"),
        ("inherit = {a = 1}", "must be the path of a TOML file"),
    ],
)
def test_what_can_not_be_inherited(tmp_path: Path, text: str, words: str) -> None:
    (tmp_path / "a.toml").write_text(text)
    message = outcome(lambda: load_config(tmp_path / "a.toml"))
    assert words in message and "root:" not in message


def test_a_long_line_of_ancestors_ends(tmp_path: Path) -> None:
    for number in range(2000):
        (tmp_path / f"{number}.toml").write_text(f'inherit = "{number + 1}.toml"\n')
    assert "more than 16 files that inherit" in outcome(lambda: load_config(tmp_path / "0.toml"))


@pytest.mark.parametrize("name", ["\0", "a\nb", "x" * 5000, "~nobody/x", "", ".", "/dev/zero", "quickstar"])
def test_names_of_configurations(name: str) -> None:
    assert outcome(lambda: load_config(name))


@pytest.mark.slow
@pytest.mark.fault("hostile configurations", tries=3000)
def test_three_thousand_values() -> None:
    """Every field with values drawn at random, in files and on the command line."""
    chance, tries, refused = random.Random(11), 0, 0
    pieces = [*LITERALS, *map(json.dumps, ARGUMENTS[:-1]), *SECTIONS, "=", ".", "[", "]", "{", "}", "\n", '"', "#", ","]
    while tries < 3000:
        name = chance.choice([*FIELDS])
        section, key = name.split(".")
        if tries % 10:
            text = f"[{section}]\n{key} = " + "".join(chance.choices(pieces, k=chance.randint(1, 3)))
            refused += bool(outcome(lambda text=text: config_from_toml(text, "here")))
        else:
            argument = chance.choice([*ARGUMENTS[:-5], str(chance.uniform(-1e3, 1e3)), str(chance.randint(-9, 9**9))])
            flag = "--" + name.replace("_", "-")
            refused += bool(
                outcome(lambda a=(flag, argument), section=section: parse_arguments(a, prog="x", sections=[section]))
            )
        tries += 1
    assert refused > 1000
