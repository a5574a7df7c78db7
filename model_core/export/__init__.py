"""The speech model for ONNX Runtime: export, INT8, and a runtime that needs no torch model.

Needs the extra `onnx` (onnx, onnxscript, onnxruntime). Importing this package without it raises
ExportError (onnx-missing).
"""

from __future__ import annotations

import importlib.util

from model_core.errors import ExportError

_NEEDED = ("onnx", "onnxscript", "onnxruntime")

if missing := [name for name in _NEEDED if importlib.util.find_spec(name) is None]:
    raise ExportError(
        f"not installed: {', '.join(missing)}",
        remedy="pip install 'auricle[onnx]'",
        code="onnx-missing",
    )
