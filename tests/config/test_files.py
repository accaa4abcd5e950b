"""TOML files with inheritance, exact round trips, the identity of a run."""

from __future__ import annotations

import dataclasses
import json
import tomllib
import typing
from pathlib import Path
from typing import Any, Literal

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from distil_jax.config import (
    SECTIONS,
    Config,
    config_from_toml,
    config_to_toml,
    differences,
    fields_of,
    load_config,
    run_identity,
    shipped_config,
    with_overrides,
)
from distil_jax.config.fields import LAYER_PAIRS, Field
from distil_jax.errors import UserError

FIELDS = {f"{section}.{key}": field for section, kind in SECTIONS.items() for key, field in fields_of(kind).items()}


def write(folder: Path, name: str, text: str) -> Path:
    path = folder / name
    path.write_text(text, encoding="utf-8")
    return path


def refusal(path: Path | str, **overrides: Any) -> str:
    with pytest.raises(UserError) as caught:
        load_config(path, overrides)
    message = str(caught.value)
    assert "\n" not in message
    return message


@pytest.mark.parametrize(
    ("text", "nearest"),
    [
        ("[optimizer]\nlearning_rat = 1e-4", "optimizer.learning_rate"),
        ("[optimizer]\nlr_warmup_fraction = 0.1", "optimizer.warmup_fraction"),
        ("[training]\nlearning_rate = 1e-4", "optimizer.learning_rate"),
        ("[objective]\ncosin = 1.0", "objective.cosine"),
        ("[corpus]\nsequence_lenght = 64", "corpus.sequence_length"),
        ("learning_rate = 1e-4", "optimizer.learning_rate"),
        ("[optimiser]\nlearning_rate = 1e-4", "[optimizer]"),
        ("[eval]\nrows = 1", "[evaluation]"),
        ("[optimizer.adam]\nbeta1 = 0.9", "optimizer."),
        ("[logging]\nxyzzy = 1", "."),
    ],
)
def test_unknown_names_are_refused_with_the_nearest(text: str, nearest: str, tmp_path: Path) -> None:
    path = write(tmp_path, "typo.toml", text)
    message = refusal(path)
    assert message.startswith(str(path))
    assert nearest in message.split("did you mean")[1]


def test_a_section_must_be_a_section(tmp_path: Path) -> None:
    assert "[optimizer]" in refusal(write(tmp_path, "x.toml", "optimizer = 3"))


def test_files_that_are_no_configuration(tmp_path: Path) -> None:
    assert "line 2" in refusal(write(tmp_path, "broken.toml", "[run]\nseed = = 3"))
    binary = tmp_path / "binary.toml"
    binary.write_bytes(b"\xff\xfe\x00")
    assert "UTF-8" in refusal(binary)
    assert "is a folder" in refusal(tmp_path)
    assert "'quickstart'" in refusal("quickstrat")
    assert "'quickstart'" in refusal(tmp_path / "configs/quickstart.toml")
    assert "quickstart" in refusal("no-resemblance-at-all")


def test_inheritance_merges_section_by_section(tmp_path: Path) -> None:
    (tmp_path / "base").mkdir()
    write(tmp_path / "base", "root.toml", '[optimizer]\nbeta1 = 0.5\nbeta2 = 0.6\n[corpus]\ntrain = ["a", "b"]')
    write(tmp_path / "base", "middle.toml", 'inherit = "root.toml"\n[optimizer]\nbeta2 = 0.7\n[run]\nseed = 4')
    leaf = write(tmp_path, "leaf.toml", 'inherit = "base/middle.toml"\n[corpus]\ntrain = ["c"]')
    config = load_config(leaf, {"run.seed": 5})
    assert (config.optimizer.beta1, config.optimizer.beta2) == (0.5, 0.7)
    assert config.corpus.train == ("c",)
    assert config.run.seed == 5
    assert config.masking == Config().masking


def test_errors_name_the_file_they_stand_in(tmp_path: Path) -> None:
    parent = write(tmp_path, "parent.toml", "[optimizer]\nbeta3 = 0.5")
    assert refusal(write(tmp_path, "child.toml", 'inherit = "parent.toml"')).startswith(str(parent))


def test_inheritance_that_cannot_be_followed(tmp_path: Path) -> None:
    write(tmp_path, "a.toml", 'inherit = "b.toml"')
    path = write(tmp_path, "b.toml", 'inherit = "a.toml"')
    assert "inherits from itself" in refusal(path)
    assert "inherits from itself" in refusal(write(tmp_path, "self.toml", 'inherit = "self.toml"'))
    assert "missing.toml" in refusal(write(tmp_path, "c.toml", 'inherit = "missing.toml"'))
    assert "inherit = 3" in refusal(write(tmp_path, "d.toml", "inherit = 3"))


def test_overrides_are_checked_like_a_file() -> None:
    with pytest.raises(UserError, match="did you mean 'optimizer.beta1'"):
        with_overrides(Config(), {"optimizer.beta_1": 0.5})
    with pytest.raises(UserError, match="did you mean 'run.seed'"):
        with_overrides(Config(), {"seed": 1})


def texts() -> st.SearchStrategy[str]:
    return st.text(st.characters(exclude_categories=("Cs",), exclude_characters="\0"), max_size=12)


# Numbers that are awkward to write down; those that pass a field's check are tried besides ordinary ones.
AWKWARD = [-1, 0, 1, 2**31 - 1, 5e-324, 1e-7, 0.1, 1 / 3, 1 - 2**-53, 1.0, 123456789.125, 1e16, 1.7976931348623157e308]


def is_taken(name: str, value: Any) -> bool:
    try:
        FIELDS[name].checked(value, name)
    except UserError:
        return False
    return True


def values(name: str, field: Field) -> st.SearchStrategy[Any]:
    """Valid values of a field."""
    annotation, origin = field.annotation, typing.get_origin(field.annotation)
    if origin is Literal:
        return st.sampled_from(typing.get_args(annotation))
    if origin is tuple:
        items = {str: texts().filter(bool), int: st.integers(1, 99), float: st.floats(1e-9, 1)}
        return st.lists(items[typing.get_args(annotation)[0]], max_size=4).map(tuple)
    if annotation is str:
        return texts().filter(bool)
    if annotation is bool:
        return st.booleans()
    awkward = [value for value in AWKWARD if isinstance(value, annotation) and is_taken(name, value)]
    low, high = (field.check.low, field.check.high) if field.check else (0, 2**16)
    if annotation is int:
        ordinary = st.integers(8, int(min(high, 2**16)))
    else:
        ordinary = st.floats(max(low, 1e-30), min(high, 1), exclude_max=True)
    return ordinary | st.sampled_from(awkward) if awkward else ordinary


@st.composite
def configs(draw: st.DrawFn) -> Config:
    """Valid configurations: related settings are made to fit."""
    made = {name: draw(values(name, field)) for name, field in FIELDS.items()}
    heads, micro, mask = draw(st.integers(1, 64)), draw(st.integers(1, 64)), draw(st.floats(0, 1))
    made |= {"masking.mask": mask, "masking.random": 1 - mask, "masking.keep": 0.0}
    made |= {"masking.probability": draw(st.floats(0.001, 0.999))}
    schedules = draw(st.sampled_from(((), ("kl linear 5 1", "temperature cosine 4 1"))))
    made |= {"objective.schedules": schedules, "finetune.schedules": schedules}
    students = st.lists(st.sampled_from(("a: student.init=random", "b: objective.kl=2+objective.mlm=1")), max_size=2)
    made |= {"study.objectives": tuple(draw(students)), "study.starts": tuple(draw(students))}
    made |= {"model.num_heads": heads, "model.hidden_size": heads * draw(st.integers(1, 64))}
    made |= {"training.micro_batch_size": micro, "training.batch_size": micro * 64, "parallel.devices": 0}
    made |= {"training.epochs": 1, "objective.kl": 5.0}
    made |= {"parallel.coordinator": "", "parallel.num_processes": 0, "parallel.process_id": -1}
    pairs = draw(st.lists(st.sampled_from(("0:0", "1:2", "3:6")), max_size=3).map(tuple))
    made |= {name: pairs for name, field in FIELDS.items() if field.check is LAYER_PAIRS}
    made |= {"corpus.min_tokens": 0, "model.num_layers": draw(st.integers(1, 24))}
    made |= {"task.class_weights": draw(st.sampled_from(("none", "balanced", "1,3.5", "good = 2, bad=1e3")))}
    made |= {"task.separator": draw(st.sampled_from(("", ",", ";", "tab", "\t")))}
    if made["student.layers"]:
        made["student.num_layers"] = 0
    if made["parallel.mapping"] == "pmap":
        made |= {"parallel.fsdp": False, "parallel.teacher": "replicated"}
    if made["model.freeze_encoder"] or made["parallel.fsdp"]:
        made["pruning.sparsity"] = 0.0
    if made["finetune.keep"] == "last":
        made["finetune.patience"] = 0
    return with_overrides(Config(), made)


@settings(max_examples=40, deadline=None)
@given(configs())
def test_toml_round_trip_is_exact(config: Config) -> None:
    text = config_to_toml(config)
    assert config_from_toml(text, "round trip") == config
    assert config_to_toml(config_from_toml(text, "round trip")) == text
    flat = {f"{section}.{key}" for section, table in tomllib.loads(text).items() for key in table}
    assert flat == set(FIELDS)


def test_config_from_toml_names_where_the_text_is_from() -> None:
    for text in ("[run]\nsead = 1", "[run", "[training]\nbatch_size = 0"):
        with pytest.raises(UserError, match="^checkpoint 7: "):
            config_from_toml(text, "checkpoint 7")


def changed(field: Any) -> Any:
    """A valid value other than the default."""
    if typing.get_origin(field.annotation) is Literal:
        return next(choice for choice in typing.get_args(field.annotation) if choice != field.default)
    if typing.get_origin(field.annotation) is tuple:
        return (1,) if typing.get_args(field.annotation)[0] is int else ("1:2",)
    if field.annotation is bool:
        return not field.default
    return field.default + "x" if field.annotation is str else field.default / 2 if field.default else 1


@pytest.mark.parametrize("name", FIELDS)
def test_identity_holds_what_a_run_computes(name: str) -> None:
    """Everything but what says where and how a run is executed."""
    executed = (
        "parallel.",
        "logging.",
        "checkpoint.",
        "study.",
        "run.output",
        "run.platform",
        "corpus.workers",
        "training.micro_batch_size",
        "objective.vocabulary",
        "objective.chunk",
        "training.attention",
        "training.remat",
        "training.extend",
        "training.max_skipped_steps",
        "training.extend",
        "evaluation.batch_size",
    )
    section, key = name.split(".")
    config = Config()
    value = changed(FIELDS[name])
    value = int(value) if FIELDS[name].annotation is int else value
    part = dataclasses.replace(getattr(config, section))
    object.__setattr__(part, key, value)  # past the checks: some values don't go with other defaults
    other = dataclasses.replace(config)
    object.__setattr__(other, section, part)
    found = differences(run_identity(config), run_identity(other))
    assert len(found) == (0 if name.startswith(executed) else 1)
    assert all(name in line for line in found)


def test_identity_survives_json_and_differences_show_both_values() -> None:
    before = run_identity(with_overrides(Config(), {"student.layers": [0, 2], "corpus.train": ["ü"]}))
    assert json.loads(json.dumps(before)) == before
    now = run_identity(with_overrides(Config(), {"student.layers": [0, 3], "corpus.train": ["ü"]}))
    assert differences(before, now) == ["student.layers: was [0, 2], is [0, 3]"]
    assert differences(now, now) == []
    assert differences({"a.b": 1}, {"c.d": True}) == ["a.b: was 1, is not set", "c.d: was not set, is true"]


def test_shipped_configurations_are_found_by_name() -> None:
    assert shipped_config("quickstart").is_file()
    assert load_config("quickstart") == load_config(shipped_config("quickstart"))
