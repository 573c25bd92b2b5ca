"""The table of operations: how each module, function and method of a traced network treats channels.

Ablation uses it to propagate an edit of one channel through a network, and splitting to find the kernels that must be
kept together.
"""

from __future__ import annotations

import operator
from enum import Enum
from typing import Any

import torch
from torch import fx, nn
from torch.nn import functional as F

from deeppatch.graph.affine import Affine


class Operation(Enum):
    """How an operation treats the channels of its input."""

    CHANNELWISE = "applies the same function to each channel separately"
    NORMALISATION = "scales and shifts each channel by its own constants"
    CONVOLUTION = "convolves"
    LINEAR = "multiplies features with a matrix"
    SUM = "adds two tensors"
    FLATTEN = "flattens"
    MEAN = "takes a mean; channels stay separate if it is over height and width"
    CONCATENATION = "concatenates"
    CHUNKS = "splits into chunks"
    ITEM = "selects one of several tensors, or a part of one"
    PADDING = "pads"


MODULES: dict[type[nn.Module], Operation] = {
    **dict.fromkeys(
        (nn.ReLU, nn.ReLU6, nn.Hardswish, nn.Hardtanh, nn.SiLU, nn.GELU, nn.ELU, nn.LeakyReLU, nn.Sigmoid, nn.Tanh,
         nn.Hardsigmoid, nn.Mish, nn.SELU, nn.CELU, nn.Softplus, nn.Dropout, nn.Dropout2d, nn.Identity,
         nn.MaxPool2d, nn.AvgPool2d, nn.AdaptiveAvgPool2d, nn.AdaptiveMaxPool2d), Operation.CHANNELWISE),
    nn.BatchNorm2d: Operation.NORMALISATION, Affine: Operation.NORMALISATION,
    nn.Conv2d: Operation.CONVOLUTION, nn.Linear: Operation.LINEAR, nn.Flatten: Operation.FLATTEN,
}  # fmt: skip
FUNCTIONS: dict[Any, Operation] = {
    **dict.fromkeys(
        (F.relu, F.relu_, torch.relu, torch.relu_, F.relu6, F.silu, F.gelu, F.hardswish, F.leaky_relu, torch.sigmoid,
         F.hardsigmoid, F.mish, F.elu, F.selu, torch.tanh, F.dropout, F.max_pool2d, torch.max_pool2d,
         F.avg_pool2d, F.adaptive_avg_pool2d),
        Operation.CHANNELWISE),
    operator.add: Operation.SUM, operator.iadd: Operation.SUM, torch.add: Operation.SUM,
    torch.flatten: Operation.FLATTEN, torch.mean: Operation.MEAN, torch.cat: Operation.CONCATENATION,
    torch.concat: Operation.CONCATENATION, torch.concatenate: Operation.CONCATENATION,
    torch.chunk: Operation.CHUNKS, operator.getitem: Operation.ITEM, F.pad: Operation.PADDING,
}  # fmt: skip
METHODS: dict[str, Operation] = {
    **dict.fromkeys(("relu", "relu_", "sigmoid", "contiguous"), Operation.CHANNELWISE),
    "add": Operation.SUM, "add_": Operation.SUM, "flatten": Operation.FLATTEN, "mean": Operation.MEAN,
    "chunk": Operation.CHUNKS,
}  # fmt: skip
# functions that work in place, and their out-of-place counterparts
OUT_OF_PLACE: dict[Any, Any] = {
    operator.iadd: operator.add, operator.imul: operator.mul, F.relu_: F.relu, torch.relu_: torch.relu
}  # fmt: skip


def operation(network: nn.Module, node: fx.Node) -> Operation | None:
    """Return the kind of a step of a traced network, or None when it is not in the table."""
    if node.op == "call_module":
        module = network.get_submodule(str(node.target))
        if getattr(module, "return_indices", False):  # the pooling returns a tuple then
            return None
        return next((kind for type_, kind in MODULES.items() if isinstance(module, type_)), None)
    if node.op == "call_function":
        return FUNCTIONS.get(node.target)
    return METHODS.get(str(node.target)) if node.op == "call_method" else None


def name_of(network: nn.Module, node: fx.Node) -> str:
    """Return the name of a step for messages: its module and type, its function or its method."""
    if node.op == "call_module":
        return f"{node.target} ({type(network.get_submodule(str(node.target))).__name__})"
    return node.target if isinstance(node.target, str) else getattr(node.target, "__name__", str(node.target))


def is_spatial_mean(node: fx.Node) -> bool:
    """Return whether a mean is over exactly height and width of maps (N, C, H, W)."""
    axes: Any = node.args[1] if len(node.args) > 1 else node.kwargs.get("dim")
    return isinstance(axes, (list, tuple)) and sorted(axis % 4 for axis in axes) == [2, 3]


def is_crop(node: fx.Node) -> bool:
    """Return whether indexing crops only height and width, and keeps all images and channels."""
    index = node.args[1]
    return isinstance(index, tuple) and index[:2] == (slice(None), slice(None))


def concatenated(node: fx.Node) -> tuple[list[fx.Node], int]:
    """Return the tensors that are concatenated, in order, and the dimension; [] where they are computed as a list."""
    tensors: Any = node.args[0] if node.args else node.kwargs.get("tensors")
    axis: Any = node.args[1] if len(node.args) > 1 else node.kwargs.get("dim", node.kwargs.get("axis", 0))
    return (list(tensors) if isinstance(tensors, (list, tuple)) else []), axis


def padding(node: fx.Node) -> tuple[int, ...]:
    """Return the padding at both ends of the last dimension, then of the one before it, and so on."""
    widths: Any = node.args[1] if len(node.args) > 1 else node.kwargs["pad"]
    return tuple(widths)
