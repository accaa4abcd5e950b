"""Curves come from the held-out rows of metrics.jsonl; a folder without them is refused."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from distil_jax.errors import UserError
from distil_jax.evaluation.plot import held_out_curve, plot_runs
from distil_jax.runs import MetricsWriter


@pytest.fixture
def run(tmp_path: Path) -> Path:
    with MetricsWriter(tmp_path / "run", tensorboard=False) as writer:
        writer.write(0, {"mlm_loss": 4.0, "accuracy": 0.1}, kind="validation")
        writer.write(1, {"loss": 9.0})
        writer.write(2, {"mlm_loss": 3.0, "accuracy": 0.2}, kind="validation")
    return tmp_path / "run"


def test_a_curve_holds_the_held_out_rows(run: Path) -> None:
    assert held_out_curve(run) == ([0, 2], [4.0, 3.0])
    assert held_out_curve(run, "accuracy") == ([0, 2], [0.1, 0.2])


def test_a_folder_without_measures_is_refused(run: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"elsewhere: no held-out mlm_loss"):
        held_out_curve(tmp_path / "elsewhere")
    with pytest.raises(UserError, match="no held-out kl"):
        held_out_curve(run, "kl")
    with pytest.raises(UserError, match="there are mlm_loss, accuracy"):
        plot_runs([run], tmp_path / "x.png", ["kl"])


def test_a_picture_is_drawn_or_the_extra_is_named(run: Path, tmp_path: Path) -> None:
    try:
        import matplotlib  # noqa: F401
    except ImportError:
        with pytest.raises(UserError, match=r"\.\[plot\]"):
            plot_runs([run], tmp_path / "curve.png")
        return
    plot_runs([run], tmp_path / "curve.png")
    assert (tmp_path / "curve.png").read_bytes().startswith(b"\x89PNG")
    plot_runs([run], tmp_path / "two.png", ["mlm_loss", "accuracy"])
    assert (tmp_path / "two.png").stat().st_size > (tmp_path / "curve.png").stat().st_size
    with pytest.raises(UserError, match="cannot be written"):
        plot_runs([run], tmp_path / "nowhere" / "curve.png")


def test_runs_of_one_name_are_told_apart(run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    axes = pytest.importorskip("matplotlib.axes")
    shutil.copytree(run, tmp_path / "other" / "run")
    labels: list[str] = []
    monkeypatch.setattr(axes.Axes, "plot", lambda *_, label, **__: labels.append(label))
    monkeypatch.setattr(axes.Axes, "legend", lambda _: None)  # there is nothing it could show
    plot_runs([run, tmp_path / "other" / "run"], tmp_path / "curve.svg")
    assert labels == [str(run), str(tmp_path / "other" / "run")]
    with pytest.raises(UserError, match="plot: a folder is given twice"):
        plot_runs([run, run], tmp_path / "curve.svg")
