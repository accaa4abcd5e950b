"""Both sides score the same rows alike, and are timed by turns."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from distil_jax.errors import FaultError

Script = Callable[[str], Any]
ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def folder(script: Script, tmp_path_factory: pytest.TempPathFactory) -> Path:
    place, latency = tmp_path_factory.mktemp("inference"), script("inference_latency")
    sizes, rest = latency.SIZES["tiny"]
    script("jax_inference").write_models(str(place), sizes, rest["vocabulary"], rest["layers"])
    latency.write_rows(place / "rows.npz", [5, 17, 30], rest["vocabulary"], rest["large"])
    return place


@pytest.mark.usefixtures("program_cache")
@pytest.mark.parametrize("model", ["teacher", "student"])
def test_scores_are_equal(script: Script, folder: Path, model: str) -> None:
    found = []
    for module, kind in (("jax_inference", "jax"), ("pytorch_inference", "eager"), ("pytorch_inference", "sdpa")):
        side = script(module).Side()
        side.open(model=str(folder / model), rows=str(folder / "rows.npz"), kind=kind, cores=[], lengths=(16, 32, 64))
        found.append(side.scores()["scores"])
        for what in ("single", "large"):
            assert side.round(what=what)["seconds"] > 0
    assert np.std(found[0]) > 1e-3
    np.testing.assert_allclose(found[1], found[0], atol=1e-4)
    np.testing.assert_allclose(found[2], found[0], atol=1e-4)


class Scores:
    def __init__(self, *scores: float) -> None:
        self.scores = scores

    def ask(self, _: str) -> dict[str, Any]:
        return {"scores": list(self.scores)}


def test_unequal_scores_end_the_comparison(script: Script) -> None:
    check = script("inference_latency").check_scores
    assert check({"jax": Scores(1.0, 2.0), "eager": Scores(1.0, 2.00005)}) == pytest.approx(5e-5)
    with pytest.raises(FaultError, match="not the same model"):
        check({"jax": Scores(1.0, 2.0), "eager": Scores(1.0, 2.1)})
    with pytest.raises(FaultError):
        check({"jax": Scores(1.0), "eager": Scores(float("nan"))})


def test_lengths_are_those_of_the_pairs(script: Script, shared: Path) -> None:
    latency = script("inference_latency")
    pairs, vocabulary = shared / "data/glue/STS-B/dev.tsv", shared / "data/vocab/bert-base-uncased-vocab.txt"
    found = latency.row_lengths(str(pairs), str(vocabulary), 1500)
    assert len(found) == 1500
    quantiles = np.quantile(found, (np.arange(26) + 0.5) / 26)
    assert [int(value) for value in quantiles] == list(latency.LENGTHS)
    assert latency.row_lengths("", "", 26) == list(latency.LENGTHS)
    assert latency.row_lengths("", "", 2) == [latency.LENGTHS[0], latency.LENGTHS[13]]


@pytest.mark.slow
def test_the_whole_comparison(tmp_path: Path) -> None:
    command = [sys.executable, str(ROOT / "benchmarks" / "inference_latency.py"), "--size", "tiny", "--rounds", "2"]
    command += [
        "--sides",
        "jax",
        "sdpa",
        "--settings",
        "installed",
        "--rows",
        "3",
        "--output",
        str(tmp_path / "out.md"),
    ]
    done = subprocess.run(command, env={**os.environ, "PYTHONPATH": str(ROOT)}, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    report = json.loads((tmp_path / "out.md.json").read_text())
    assert [(row["model"], row["side"]) for row in report["rows"]] == [
        ("teacher", "jax"),
        ("teacher", "sdpa"),
        ("student", "jax"),
        ("student", "sdpa"),
    ]
    assert all(row["milliseconds"] > 0 and row["rows_per_second"] > 0 for row in report["rows"])
