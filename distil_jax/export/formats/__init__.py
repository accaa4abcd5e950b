"""The formats that a model is exported to, one file each, registered here by name.

To add a format: write its file and add its value to `FORMATS`.
"""

from distil_jax.export.formats.coreml import COREML_FORMATS
from distil_jax.export.formats.format import ExportFormat, Network, WriteOptions
from distil_jax.export.formats.huggingface import HUGGING_FACE
from distil_jax.export.formats.litert import LITERT_FORMATS
from distil_jax.export.formats.onnx import ONNX_FORMATS
from distil_jax.export.formats.stablehlo import STABLEHLO

FORMATS: dict[str, ExportFormat] = {
    one.name: one for one in (HUGGING_FACE, *ONNX_FORMATS, *LITERT_FORMATS, *COREML_FORMATS, STABLEHLO)
}
