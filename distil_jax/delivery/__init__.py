"""From a run to something others can use: a Hugging Face folder with a model card."""

from distil_jax.delivery.export import Trained, export, read_run

__all__ = ["Trained", "export", "read_run"]
