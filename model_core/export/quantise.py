"""INT8 in ONNX Runtime: every weight matrix, the experts' too, as eight-bit integers.

Two kernels, each where it is faster. The encoder multiplies hundreds of rows at once: dynamic
quantisation (weights per output channel, activations per tensor and call, MatMulInteger). The
decoder multiplies one: `MatMulNBits` (weights per block along the input, activations per row),
which reads weights at memory speed and keeps rows independent of each other. Routers stay in
float32: they are 0.03 % of the weights, and a flipped choice costs more than they do.

The encoder's weights use 7 of the 8 bits. On x86 without VNNI the integer product adds pairs in 16
bits that saturate silently beyond that; so a file gives the same text on every machine.

The token embedding is also the output projection. Its quantised blocks are stored once: the
projection multiplies them, the embedding gathers and rescales the rows that it needs.

Shape suffixes: I input width, O output width, K blocks along the input, N numbers in a block.
"""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import GraphProto, NodeProto, TensorProto, helper, numpy_helper
from onnxruntime.quantization import QuantType, quantize_dynamic
from onnxruntime.quantization.shape_inference import quant_pre_process

from model_core.errors import ExportError

LARGEST_BLOCK = 128
_ZERO_POINT = 128  # what MatMulNBits takes off eight-bit weights that come without zero points
_LARGEST = 127
_INTEGER_ACTIVATIONS = 4  # MatMulNBits' accuracy level that multiplies in int8
_CONTRIB = "com.microsoft"
_EMBEDDING = "embedding"
_PRODUCTS = ("MatMul", "Gemm", "Conv")


def quantise_encoder(source: Path, target: Path, scratch: Path) -> None:
    """Read a float32 encoder graph, write it with dynamic INT8 products.

    `scratch` is an empty folder for what ONNX Runtime's quantiser wants prepared. Raises
    ExportError (onnx-malformed) if a weight matrix stayed in floating point.
    """
    prepared = scratch / source.name
    quant_pre_process(
        source,
        prepared,
        skip_optimization=True,
        skip_symbolic_shape=True,
        save_as_external_data=True,
        external_data_location=f"{prepared.name}.data",
    )
    graph = onnx.load(str(prepared), load_external_data=False).graph
    quantize_dynamic(
        prepared,
        target,
        op_types_to_quantize=["MatMul"],
        nodes_to_exclude=[node.name for node in graph.node if is_router(node)],
        per_channel=True,
        reduce_range=True,
        weight_type=QuantType.QInt8,
        use_external_data_format=True,
    )
    _check(target)


def quantise_decoder(source: Path, target: Path) -> None:
    """Read a float32 decoder graph, write it with MatMulNBits and one quantised embedding.

    Raises ExportError (onnx-malformed) if a weight matrix stayed in floating point.
    """
    model = onnx.load(str(source))
    graph = model.graph
    constants = {i.name: i for i in graph.initializer}
    for node in list(graph.node):
        weight = constants.get(node.input[1]) if node.op_type == "MatMul" else None
        if weight is not None and not is_router(node):
            _add_blocks(graph, weight.name, numpy_helper.to_array(weight).T)
            _replace(graph, node, [_product(node, weight.name, *weight.dims)])
    _quantise_embedding(graph, numpy_helper.to_array(constants[_EMBEDDING]))
    _drop_unused(graph)
    model.opset_import.append(helper.make_opsetid(_CONTRIB, 1))
    onnx.save(model, str(target), save_as_external_data=True, location=f"{target.name}.data")
    _check(target)


def is_router(node: NodeProto) -> bool:
    """Whether the node multiplies by a router's weights."""
    return any(".router." in name for name in node.input)


def to_blocks(weight_OI: NDArray[np.float32]) -> tuple[NDArray[np.uint8], NDArray[np.float32]]:
    """Symmetric eight-bit blocks [O, K, N] around 128, and their scales [O, K].

    A weight is (block − 128) · scale, off by at most half a scale; a block's largest maps to ±127.
    """
    rows, width = weight_OI.shape
    blocks_OKN = weight_OI.reshape(rows, -1, _block(width))
    scale_OK = np.abs(blocks_OKN).max(-1) / _LARGEST
    divisor_OK = np.where(scale_OK > 0, scale_OK, 1)
    whole_OKN = np.rint(blocks_OKN / divisor_OK[..., None]) + _ZERO_POINT
    return whole_OKN.astype(np.uint8), scale_OK.astype(np.float32)


def _block(width: int) -> int:
    """Length of a block: the largest power of two up to 128 that divides the input width."""
    return math.gcd(width, LARGEST_BLOCK)


def _add_blocks(graph: GraphProto, name: str, weight_OI: NDArray[np.float32]) -> None:
    """Add the weight's blocks and scales, once however often it is used."""
    if any(i.name == f"{name}.blocks" for i in graph.initializer):
        return
    blocks_OKN, scale_OK = to_blocks(weight_OI)
    graph.initializer.append(numpy_helper.from_array(blocks_OKN, f"{name}.blocks"))
    graph.initializer.append(numpy_helper.from_array(scale_OK, f"{name}.scales"))


def _product(node: NodeProto, weight: str, width: int, rows: int) -> NodeProto:
    return helper.make_node(
        "MatMulNBits",
        [node.input[0], f"{weight}.blocks", f"{weight}.scales"],
        list(node.output),
        name=node.name,
        domain=_CONTRIB,
        K=width,
        N=rows,
        bits=8,
        block_size=_block(width),
        accuracy_level=_INTEGER_ACTIVATIONS,
    )


def _replace(graph: GraphProto, old: NodeProto, new: list[NodeProto]) -> None:
    at = list(graph.node).index(old)
    graph.node.remove(old)
    for offset, node in enumerate(new):
        graph.node.insert(at + offset, node)


def _quantise_embedding(graph: GraphProto, weight_VD: NDArray[np.float32]) -> None:
    """Project with the embedding's blocks [V, K, N], and embed by gathering rows of them."""
    rows, width = weight_VD.shape
    _add_blocks(graph, _EMBEDDING, weight_VD)
    projection = next(node for node in graph.node if node.output[0] == "logits")
    _replace(graph, projection, [_product(projection, _EMBEDDING, width, rows)])
    gather = next(n for n in graph.node if n.op_type == "Gather" and n.input[0] == _EMBEDDING)
    ids = gather.input[1]
    for name, value in (
        ("zero", np.array(_ZERO_POINT, np.float32)),
        ("axis", np.array([-1])),
        ("shape", np.array([0, 0, -1])),
    ):
        graph.initializer.append(numpy_helper.from_array(value, f"{_EMBEDDING}.{name}"))
    steps = (
        ("Gather", ["blocks", ids], "gathered"),
        ("Cast", ["gathered"], "cast"),
        ("Sub", ["cast", "zero"], "centred"),
        ("Gather", ["scales", ids], "own_scales"),
        ("Unsqueeze", ["own_scales", "axis"], "own_scale"),
        ("Mul", ["centred", "own_scale"], "scaled"),
        ("Reshape", ["scaled", "shape"], gather.output[0]),
    )
    local = {name for _, names, _ in steps for name in names} - {ids}
    nodes = [
        helper.make_node(
            operator,
            [f"{_EMBEDDING}.{name}" if name in local else name for name in names],
            [f"{_EMBEDDING}.{output}" if output in local else output],
        )
        for operator, names, output in steps
    ]
    cast = next(node for node in nodes if node.op_type == "Cast")
    cast.attribute.append(helper.make_attribute("to", TensorProto.FLOAT))
    _replace(graph, gather, nodes)


def _drop_unused(graph: GraphProto) -> None:
    """Remove the float32 weights that nothing reads any more, and the embedding's transpose."""
    outputs = {output.name for output in graph.output}
    read = {name for node in graph.node for name in node.input} | outputs
    for node in list(graph.node):
        if not read.intersection(node.output):
            graph.node.remove(node)
    read = {name for node in graph.node for name in node.input}
    for initializer in list(graph.initializer):
        if initializer.name not in read:
            graph.initializer.remove(initializer)


def _check(path: Path) -> None:
    """Raise ExportError if a matrix product other than the routers' has a float32 constant."""
    graph = onnx.load(str(path), load_external_data=False).graph
    matrices = {
        i.name for i in graph.initializer if i.data_type == TensorProto.FLOAT and len(i.dims) > 1
    }
    left = [
        node.name
        for node in graph.node
        if node.op_type in _PRODUCTS
        and not is_router(node)
        and matrices.intersection(node.input[:2])
    ]
    if left:
        raise ExportError(
            f"{len(left)} products of {path.name} were not quantised: {left[:3]}",
            remedy="use the tested versions of onnx, onnxscript and onnxruntime",
        )
