"""Distil BERT-family encoders into small, fast ones with JAX, in and out of Hugging Face format.

`from_pretrained` and `save_pretrained` are the Python interface; the command line is `distil-jax`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from distil_jax.lazy import lazy_imports

if TYPE_CHECKING:
    from distil_jax.export import encode, load_embedder
    from distil_jax.hf import from_pretrained, load_tokenizer, save_pretrained
else:
    __getattr__ = lazy_imports(__name__)

__version__ = "0.1.0"
__all__ = ["__version__", "encode", "from_pretrained", "load_embedder", "load_tokenizer", "save_pretrained"]
