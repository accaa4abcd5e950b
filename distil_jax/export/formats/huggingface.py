"""Weights of a Hugging Face folder, for transformers and `from_pretrained`."""

from __future__ import annotations

from pathlib import Path

from distil_jax.export.formats.format import ExportFormat, Network, WriteOptions
from distil_jax.export.jax_network import network_of
from distil_jax.export.source import Source
from distil_jax.hf import WEIGHTS_FILE, read_pretrained, read_task_model, write_weights


def _write(source: Source, path: Path, options: WriteOptions) -> None:
    write_weights(path, source.encoder, source.params, source.head, options.dtype)


def _open(path: Path, source: Source) -> Network:
    """The folder, read again."""
    head = source.head
    read = read_pretrained(path.parent) if head is None else read_task_model(path.parent, head.kind)
    return network_of(read.config, read.params, head)


HUGGING_FACE = ExportFormat("hf", "Hugging Face folder", WEIGHTS_FILE, _write, _open, runtime="JAX")
