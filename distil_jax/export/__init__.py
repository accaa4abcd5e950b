"""From a run to something others can use: a Hugging Face folder with a model card, predictions, embeddings."""

from __future__ import annotations

from typing import TYPE_CHECKING

from distil_jax.lazy import lazy_imports

if TYPE_CHECKING:
    from distil_jax.export.checkpoint import Trained, read_run
    from distil_jax.export.embedder import Embedder, choose_pooling, encode, load_embedder
    from distil_jax.export.embeddings import embed_rows
    from distil_jax.export.formats import FORMATS, ExportFormat, WriteOptions
    from distil_jax.export.jax_network import make_module, network_of
    from distil_jax.export.latency import encoder_latency
    from distil_jax.export.litert_session import open_litert
    from distil_jax.export.onnx_session import open_onnx
    from distil_jax.export.predictions import predict_rows
    from distil_jax.export.predictor import Predictor
    from distil_jax.export.prune import prune_model
    from distil_jax.export.source import read_source
    from distil_jax.export.task_models import ReadyModel, has_task_head, load_predictor, predict, read_ready
    from distil_jax.export.trim import trim_vocabulary
    from distil_jax.export.upload import push
    from distil_jax.export.write import ExportChecks, Exported, export, write_model
else:
    __getattr__ = lazy_imports(__name__)
