"""`distil-jax check DIR`: every byte that was changed is found, named, and told by the exit status."""

from __future__ import annotations

import random
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest

from distil_jax.cli import main
from distil_jax.errors import UserError
from distil_jax.evaluation.check import Item, check_folder
from distil_jax.export import export
from distil_jax.hf import CHECKSUMS_FILE


@pytest.fixture(scope="module")
def model(tiny_run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("exported") / "model"
    export(tiny_run, folder)
    return folder


def damaged(folder: Path) -> list[str]:
    return [item.name for item in check_folder(folder) if item.damaged]


def flip(path: Path, chance: random.Random) -> None:
    content = bytearray(path.read_bytes())
    content[chance.randrange(len(content))] ^= 1 << chance.randrange(8)
    path.write_bytes(content)


def test_a_whole_run(tiny_run: Path) -> None:
    states = {item.name: item.state for item in check_folder(tiny_run)}
    assert damaged(tiny_run) == []
    for name in ("config.toml", "inputs.json", "checkpoints/1", "checkpoints/2", "model.json", "tokenizer/vocab.txt"):
        assert states[name] == "whole"
    assert states["metrics.jsonl"].startswith("readable: ")
    assert states["manifest.json"] == "readable: 1 start"


@pytest.mark.parametrize("name", ["config.toml", "inputs.json", "model.json", "tokenizer/vocab.txt"])
def test_a_damaged_file_of_a_run(name: str, tiny_run: Path, tmp_path: Path) -> None:
    shutil.copytree(tiny_run, tmp_path / "run")
    for seed in range(3):
        shutil.copy(tiny_run / name, tmp_path / "run" / name)
        flip(tmp_path / "run" / name, random.Random(seed))
        assert damaged(tmp_path / "run") == [name]
    (tmp_path / "run" / name).unlink()
    assert damaged(tmp_path / "run") == [name]


def test_a_damaged_checkpoint_is_named_with_its_leaf(tiny_run: Path, tmp_path: Path) -> None:
    """And left where it is."""
    shutil.copytree(tiny_run, tmp_path / "run")
    step = tmp_path / "run" / "checkpoints" / "1"
    data = max((path for path in step.rglob("*") if path.is_file()), key=lambda path: path.stat().st_size)
    content = bytearray(data.read_bytes())
    for place in range(0, len(content), 40):
        content[place] ^= 1
    data.write_bytes(content)
    (item,) = [item for item in check_folder(tmp_path / "run") if item.damaged]
    assert item.name == "checkpoints/1"
    assert item.state.startswith("damaged: step 1: ")
    assert step.is_dir()


def test_metrics_may_end_in_a_torn_line_only(tiny_run: Path, tmp_path: Path) -> None:
    shutil.copytree(tiny_run, tmp_path / "run")
    file = tmp_path / "run" / "metrics.jsonl"
    text = file.read_text()
    file.write_text(text + '{"step": 3, "ki')
    assert damaged(tmp_path / "run") == []
    file.write_text('{"step": 3, "ki\n' + text)
    assert damaged(tmp_path / "run") == ["metrics.jsonl"]


def test_a_run_that_has_saved_nothing_yet(tiny_run: Path, tmp_path: Path) -> None:
    shutil.copy(tiny_run / "config.toml", tmp_path)
    shutil.copy(tiny_run / "inputs.json", tmp_path)
    assert Item("checkpoints", "none") in check_folder(tmp_path)
    assert damaged(tmp_path) == []


def test_a_file_where_the_checkpoints_belong(tiny_run: Path, tmp_path: Path) -> None:
    shutil.copytree(tiny_run, tmp_path / "run", ignore=shutil.ignore_patterns("checkpoints"))
    (tmp_path / "run" / "checkpoints").write_text("x")
    assert damaged(tmp_path / "run") == ["checkpoints"]


def test_token_shards(tiny_world: Path, tmp_path: Path) -> None:
    shutil.copytree(tiny_world / "corpus", tmp_path / "corpus")
    assert [item.name for item in check_folder(tmp_path / "corpus")] == ["train", "validation"]
    assert damaged(tmp_path / "corpus") == []
    assert [item.name for item in check_folder(tmp_path / "corpus" / "train")] == ["."]
    for file in ("tokens-00000.bin", "documents-00000.bin", "token_counts.npy", "index.json"):
        shutil.copy(tiny_world / "corpus" / "train" / file, tmp_path / "corpus" / "train")
        flip(tmp_path / "corpus" / "train" / file, random.Random(0))
        assert damaged(tmp_path / "corpus") == ["train"]
        (state,) = [item.state for item in check_folder(tmp_path / "corpus") if item.damaged]
        assert file in state
        shutil.copy(tiny_world / "corpus" / "train" / file, tmp_path / "corpus" / "train")


def test_an_exported_model(model: Path, tmp_path: Path) -> None:
    shutil.copytree(model, tmp_path / "model")
    names = {path.name for path in model.iterdir()} - {CHECKSUMS_FILE}
    assert (
        {item.name for item in check_folder(tmp_path / "model")}
        == names
        >= {"model.safetensors", "config.json", "README.md"}
    )
    for name in sorted(names):
        flip(tmp_path / "model" / name, random.Random(0))
        assert damaged(tmp_path / "model") == [name]
        (tmp_path / "model" / name).unlink()
        assert Item(name, "damaged: missing", True) in check_folder(tmp_path / "model")
        shutil.copy(model / name, tmp_path / "model")


def test_the_hashes_are_those_of_sha256sum(model: Path) -> None:
    subprocess.run(["sha256sum", "--check", "--strict", CHECKSUMS_FILE], cwd=model, check=True, capture_output=True)


def test_transformers_reads_a_model_with_hashes_beside_it(model: Path) -> None:
    from transformers import AutoModelForMaskedLM, AutoTokenizer

    found: Any = AutoModelForMaskedLM.from_pretrained(model)
    assert found.config.hidden_size == 16
    AutoTokenizer.from_pretrained(model)


@pytest.mark.parametrize(
    "line",
    ["../secret", "/etc/passwd", "a/../b", ".a/b", "a\\b"],
)
def test_a_hostile_list_leads_nowhere(line: str, model: Path, tmp_path: Path) -> None:
    shutil.copytree(model, tmp_path / "model")
    (tmp_path / "secret").write_text("x")
    (tmp_path / "model" / CHECKSUMS_FILE).write_text(f"{'0' * 64}  {line}\n")
    (item,) = check_folder(tmp_path / "model")
    assert item.damaged
    assert "line 1: not a SHA-256" in item.state


def test_a_folder_of_folders(tiny_run: Path, model: Path, tmp_path: Path) -> None:
    """As a study is: runs and models in folders of their own, with a report."""
    shutil.copytree(tiny_run, tmp_path / "cola" / "seed0")
    shutil.copytree(model, tmp_path / "cola" / "model")
    (tmp_path / "report.json").write_text("{}")
    (tmp_path / "loop").symlink_to(tmp_path)
    assert damaged(tmp_path) == []
    names = [item.name for item in check_folder(tmp_path)]
    assert {"report.json", "cola/seed0/checkpoints/2", "cola/model/model.safetensors"} <= set(names)
    assert not [name for name in names if name.startswith("loop")]
    shutil.copy(tiny_run / "manifest.json", tmp_path)
    assert Item("manifest.json", "readable: 1 start") in check_folder(tmp_path)
    (tmp_path / "manifest.json").write_text("{")
    assert damaged(tmp_path) == ["manifest.json"]
    (tmp_path / "manifest.json").unlink()
    (tmp_path / "report.json").write_text("{")
    flip(tmp_path / "cola" / "model" / "model.safetensors", random.Random(0))
    assert damaged(tmp_path) == ["report.json", "cola/model/model.safetensors"]


def test_nothing_of_ours(tmp_path: Path) -> None:
    (tmp_path / "thesis.txt").write_text("mine")
    with pytest.raises(UserError, match="no run, study, prepared corpus or exported model"):
        check_folder(tmp_path)
    with pytest.raises(UserError, match="is a file; give a folder"):
        check_folder(tmp_path / "thesis.txt")
    with pytest.raises(UserError, match="no such folder"):
        check_folder(tmp_path / "nowhere")


def test_the_command(
    tiny_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("distil_jax.cli.models.start", lambda _: None)
    shutil.copytree(tiny_run, tmp_path / "run")
    before = sorted((path, path.stat().st_mtime_ns) for path in (tmp_path / "run").rglob("*"))
    assert main(["check", str(tmp_path / "run")]) == 0
    out, err = capsys.readouterr()
    assert re.search("^checkpoints/2 +whole$", out, re.MULTILINE) and err == ""
    assert sorted((path, path.stat().st_mtime_ns) for path in (tmp_path / "run").rglob("*")) == before
    flip(tmp_path / "run" / "config.toml", random.Random(0))
    assert main(["check", str(tmp_path / "run")]) == 1
    assert "distil-jax: 1 of " in capsys.readouterr().err
    assert main(["check", str(tmp_path)]) == 1
    assert main(["check", "/proc/self/fdinfo"]) == 2
