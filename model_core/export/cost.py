"""What a graph really costs: multiply-adds counted from ONNX Runtime's own profile of a run.

A static count cannot tell sparse from dense: how many rows an expert multiplies is decided while
the graph runs. The profile records the shapes that every operator was given.
"""

from __future__ import annotations

import json
import math
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import onnxruntime as ort
from numpy.typing import NDArray

_PRODUCTS = frozenset(
    {
        "MatMul",
        "FusedMatMul",
        "Gemm",
        "MatMulNBits",
        "MatMulInteger",
        "MatMulIntegerToFloat",
        "DynamicQuantizeMatMul",
    }
)


def multiply_adds(graph: Path, feeds: Mapping[str, NDArray[Any]]) -> dict[str, int]:
    """Multiply-adds of every matrix product in one run, by operator type.

    Left sides must not be transposed (`transA`); the exported graphs have none.
    """
    with tempfile.TemporaryDirectory(prefix="auricle-") as folder:
        options = ort.SessionOptions()
        options.log_severity_level = 3
        options.enable_profiling = True
        options.profile_file_prefix = str(Path(folder) / "profile")
        session = ort.InferenceSession(str(graph), options, providers=["CPUExecutionProvider"])
        session.run(None, dict(feeds))
        events = json.loads(Path(session.end_profiling()).read_text(encoding="utf-8"))
    counts = dict.fromkeys(sorted(_PRODUCTS), 0)
    for event in events:
        arguments = event.get("args", {})
        if arguments.get("op_name") in _PRODUCTS and event["name"].endswith("_kernel_time"):
            counts[arguments["op_name"]] += _product(arguments)
    return counts


def _product(arguments: Mapping[str, Any]) -> int:
    """Rows times columns of the output, times the inner width."""
    left = _shape(arguments["input_type_shape"][0])
    output = _shape(arguments["output_type_shape"][0])
    return math.prod(output) * left[-1]


def _shape(typed: Mapping[str, list[int]]) -> list[int]:
    return next(iter(typed.values()))
