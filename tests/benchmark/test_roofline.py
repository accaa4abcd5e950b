from __future__ import annotations

import dataclasses

import pytest

from distil_jax.benchmark.roofline import Roofline, predicted_speedup, roofline_of_step
from distil_jax.config import Config, with_overrides
from distil_jax.models import EncoderConfig
from distil_jax.training.flops import encoder_flops

BASE = EncoderConfig("bert", 30_522, 768, 12, 12, 3072)
STUDENT = dataclasses.replace(BASE, num_layers=6)


def work(config: Config, accelerator: bool = True, student: EncoderConfig = STUDENT) -> Roofline:
    return roofline_of_step(
        config,
        student,
        BASE,
        flops=1e12,
        positions=4096,
        length=512,
        vocabulary_positions=4096.0,
        parameters=(67_000_000, 110_000_000),
        fill=0.9,
        accelerator=accelerator,
    )


def test_what_changes_the_counted_roofline() -> None:
    half = with_overrides(Config(), {"training.compute_dtype": "bfloat16"})
    written = with_overrides(half, {"training.attention": "xla"})
    assert work(half).bytes_moved < work(Config()).bytes_moved
    assert work(half).bytes_moved < work(written).bytes_moved == work(half, accelerator=False).bytes_moved
    # Scores of the teacher, 12 heads x 512 keys at 2.5 values of two bytes, of 12 layers passed twice; the student's
    # are written in any case, for their dropout.
    difference = 4096 * 12 * 512 * 5 * 12 * 2
    assert work(written).bytes_moved - work(half).bytes_moved == pytest.approx(difference)
    still = dataclasses.replace(STUDENT, attention_dropout=0.0)
    more = 4096 * 12 * 512 * 5 * 6 * 5
    assert work(half).bytes_moved - work(half, student=still).bytes_moved == pytest.approx(more)


def test_a_prediction_is_operations_over_peak_plus_bytes_over_bandwidth() -> None:
    row = {"positions": 100, "peak_measured": 10.0, "bandwidth": 5.0}
    one = {**row, "roofline": {"flops": 20.0, "extra_flops": 0.0, "bytes_moved": 10.0, "fill": 0.5}}
    other = {**row, "roofline": {"flops": 20.0, "extra_flops": 20.0, "bytes_moved": 20.0, "fill": 1.0}}
    assert predicted_speedup(one, one) == 1.0
    assert predicted_speedup(other, one) == pytest.approx((100 * 1.0 / 8.0) / (100 * 0.5 / 4.0))


def test_rematerialisation_is_another_forward_pass() -> None:
    plain, again = (work(with_overrides(Config(), {"training.remat": remat})) for remat in ("none", "layer"))
    assert again.extra_flops == encoder_flops(STUDENT, 512) * 4096 and plain.extra_flops == 0
    assert again.bytes_moved > plain.bytes_moved


def test_the_fused_loss_passes_over_logits_less_often() -> None:
    forms = ("plain", "fused")
    plain, fused = (work(with_overrides(Config(), {"objective.vocabulary": form})) for form in forms)
    assert plain.bytes_moved - fused.bytes_moved == pytest.approx(4 * 4 * 4096 * 30_522)
    assert plain.flops == fused.flops
