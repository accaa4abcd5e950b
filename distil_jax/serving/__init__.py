"""`distil-jax serve`: a model behind HTTP, with requests that arrive together computed together."""

from __future__ import annotations

from typing import TYPE_CHECKING

from distil_jax.lazy import lazy_imports

if TYPE_CHECKING:
    from distil_jax.serving.server import serve_model
else:
    __getattr__ = lazy_imports(__name__)
