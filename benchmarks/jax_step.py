"""The distillation step of `distil_jax`, as a worker of `step_comparison.py`: what `distil-jax distill` runs.

It also prepares what both sides start from: model folders, and a batch with the very masks that the step draws.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from distil_jax.benchmark.machine import describe_machine, peak_bytes
from distil_jax.benchmark.process import pin, serve
from distil_jax.benchmark.step import Step
from distil_jax.benchmark.synthetic import corpus_of_rows, random_params
from distil_jax.config import Config, Objective, with_overrides
from distil_jax.data.corpus.masking import MaskingRule, masking_log_weights, predictions_per_row
from distil_jax.data.corpus.sequences import sequence_numbers
from distil_jax.hf import save_pretrained
from distil_jax.models import MaskedLM
from distil_jax.objectives import student_config, student_params
from distil_jax.training.distill import distillation
from distil_jax.training.pretrain import scratch_encoder
from distil_jax.training.text_run import Corpora, read_model, text_run_spec
from distil_jax.training.text_step import TextModels, make_micro_batch

_STEPS = 100_000  # of the schedule, which is constant here: both sides always use the same learning rate


def configuration(changes: Mapping[str, Any], settings: Mapping[str, float]) -> Config:
    """The step's configuration: one device, one micro-batch, a constant learning rate.

    Args:
        changes: by "section.key"; sizes, rows, lengths.
        settings: losses and optimiser, as `pytorch_step.Settings` names them.
    """
    objective = {field.name for field in dataclasses.fields(Objective)}
    given = {f"{'objective' if name in objective else 'optimizer'}.{name}": value for name, value in settings.items()}
    fixed = {"optimizer.schedule": "constant", "optimizer.warmup_fraction": 0.0, "parallel.devices": 1}
    return with_overrides(Config(), {**fixed, **given, "run.output": "benchmark", **changes})


def prepare(folder: str, changes: dict[str, Any], vocabulary: int, layers: list[int]) -> dict[str, Any]:
    """Write teacher/, student/ and batch.npz below `folder`.

    batch.npz: `raw` [B, L] as from a corpus, `ids` [B, L] masked as the first step masks them, `mask` [B, L] 1 where
    real, `targets` [B, L], -100 where nothing is predicted.
    """
    config = configuration(changes, {})
    teacher = scratch_encoder(config.model, vocabulary, 0)
    # Logits of the order of 1, so that no loss is near a trivial value.
    params = random_params(MaskedLM(teacher), teacher.hidden_size**-0.5)
    student = student_config(teacher, layers, "distilbert")
    save_pretrained(Path(folder) / "teacher", teacher, params)
    save_pretrained(Path(folder) / "student", student, student_params(params, teacher, student, layers))
    rows, length = config.training.batch_size, config.corpus.sequence_length
    generator = np.random.default_rng(1)
    raw = 5 + generator.zipf(1.3, (rows, length)) % (vocabulary - 5)
    raw[:, 0], raw[:, -1] = 2, 3
    raw = raw.astype(np.uint16 if vocabulary <= 1 << 16 else np.uint32)
    masked: Any = masked_batch(config, raw, vocabulary)
    np.savez(Path(folder) / "batch.npz", raw=raw, **masked)
    return {"teacher_parameters": _size(params), "machine": describe_machine()}


def _size(tree: Any) -> int:
    return sum(leaf.size for leaf in jax.tree.leaves(tree))


def masked_batch(config: Config, raw: np.ndarray, vocabulary: int) -> dict[str, np.ndarray]:
    """The masks that the training step draws at step 0."""
    corpus = corpus_of_rows(raw, vocabulary, len(raw), packed=False)
    masking = config.masking
    models = TextModels(
        student=MaskedLM(scratch_encoder(config.model, vocabulary, 0)),
        teacher=None,
        objective=config.objective,
        rule=MaskingRule(corpus.mask_id, vocabulary, masking.probability, masking.mask, masking.random),
        cls_id=corpus.cls_id,
        pad_id=corpus.pad_id,
    )
    log_weights = jnp.asarray(masking_log_weights(corpus.token_counts, corpus.special_ids, masking.smoothing))
    ids = jnp.asarray(raw.astype(np.int32))
    sequences = sequence_numbers(ids, models.cls_id, models.pad_id)
    eligible = jnp.sum((log_weights[ids] > -jnp.inf) & (sequences > 0), axis=1)
    quotas = predictions_per_row(jnp.sum(sequences > 0, axis=1), eligible, masking.probability)
    step_key = jax.random.fold_in(jax.random.key(config.run.seed), 0)
    keys = jax.vmap(lambda row: jax.random.fold_in(step_key, row))(jnp.arange(len(raw)))
    laid = make_micro_batch(models, ids, keys, quotas, log_weights, dropout=False)
    targets = np.full(raw.shape, -100, np.int64)
    for row, (places, wanted, weights) in enumerate(zip(laid.positions, laid.targets, laid.weights, strict=True)):
        here = np.asarray(weights) > 0
        targets[row, np.asarray(places)[here]] = np.asarray(wanted)[here]
    return {"ids": np.asarray(laid.inputs.ids), "mask": np.asarray(sequences > 0, np.int64), "targets": targets}


class Side:
    """The worker's state between requests."""

    def open(self, **request: Any) -> dict[str, Any]:
        """Remember what to load."""
        pin(request["cores"])
        self._request = request
        return {"jax": jax.__version__, "platform": jax.default_backend()}

    def _load(self, *, dropout: bool, dtype: str) -> None:
        request = self._request
        teacher, params = read_model(request["teacher"])
        self._raw = np.load(request["batch"])["raw"]
        sizes = {
            "training.batch_size": len(self._raw),
            "training.micro_batch_size": len(self._raw),
            "corpus.sequence_length": self._raw.shape[1],
            "training.compute_dtype": dtype,
            "student.init": request["student"],
            "student.layers": tuple(request["layers"]),
            "teacher.path": request["teacher"],
        }
        if dtype == "bfloat16":
            sizes["teacher.dtype"] = "bfloat16"
        config = configuration({**sizes, **request["changes"]}, request["settings"])
        training = distillation(config, teacher, params)
        if not dropout:
            still = {"hidden_dropout": 0.0, "attention_dropout": 0.0, "attention_output_dropout": 0.0}
            training = dataclasses.replace(training, encoder=dataclasses.replace(training.encoder, **still))
        corpus = corpus_of_rows(self._raw, teacher.vocab_size, len(self._raw), packed=False)
        self._step = Step(text_run_spec(config, training, Corpora(corpus), {}, _STEPS))

    def _run(self, steps: int) -> dict[str, Any]:
        """Steps with the same batch; the metrics of the last."""
        return self._step.run([self._raw] * steps)[-1]

    def losses(self, dtype: str) -> dict[str, Any]:
        """Losses and gradient norm of the first step without dropout; in float32 no product's precision is lowered."""
        self._load(dropout=False, dtype=dtype)
        with jax.default_matmul_precision("highest" if dtype == "float32" else "default"):
            metrics = self._run(1)
        terms = {name: float(metrics[f"loss_{name}"]) for name in ("kl", "mlm", "cosine")}
        return {"loss": float(metrics["loss"]), **terms, "gradient_norm": float(metrics["gradient_norm"])}

    def warm_up(self) -> dict[str, Any]:
        """Two steps, the first of which compiles."""
        start = time.perf_counter()
        self._load(dropout=True, dtype=self._request["dtype"])
        loss = float(self._run(2)["loss"])
        return {"seconds": time.perf_counter() - start, "loss": loss}

    def round(self, steps: int) -> dict[str, Any]:
        """Seconds a step."""
        start = time.perf_counter()
        self._run(steps)
        return {"seconds": (time.perf_counter() - start) / steps}

    def memory(self) -> dict[str, Any]:
        """Bytes held at most."""
        return {"peak_bytes": peak_bytes(self._step.devices.local)}


if __name__ == "__main__":
    side = Side()
    own = {name: getattr(side, name) for name in ("open", "losses", "warm_up", "round", "memory")}
    serve({"prepare": prepare, **own})
