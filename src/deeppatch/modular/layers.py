"""Which convolutions of a network must keep the same kernels, and which modules read what they keep."""

from __future__ import annotations

import copy
import operator
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.fx.passes.shape_prop import ShapeProp
from torch.nn import functional as F

from deeppatch.errors import UserError
from deeppatch.graph.folding import Affine

APART = (
    nn.ReLU, nn.ReLU6, nn.Dropout, nn.Identity, nn.MaxPool2d, nn.AvgPool2d, nn.AdaptiveAvgPool2d, nn.Hardtanh, nn.SiLU,
    nn.GELU, nn.LeakyReLU, nn.Sigmoid, nn.Tanh, nn.Dropout2d, nn.Hardswish,
)  # fmt: skip
APART_FUNCTIONS = {
    F.relu, torch.relu, F.relu6, F.max_pool2d, torch.max_pool2d, F.avg_pool2d, F.adaptive_avg_pool2d, F.dropout,
    "relu", "contiguous", "relu_",
}  # fmt: skip
SUMS = {operator.add, operator.iadd, torch.add, "add", "add_"}
FLATTENINGS = {torch.flatten, "flatten"}


@dataclass
class Layer:
    """Kernels that are kept or dropped together: those of one convolution, or of several whose outputs are added.

    `convs` are those convolutions, `kernels` how many output channels each has, `followers` the normalisations and
    depthwise convolutions behind them, and `readers` the convolutions and linear layers that read them: for each how
    many inputs a kernel makes (height times width behind a flattening, else 1). All are in order of execution.
    """

    convs: list[str]
    kernels: int
    followers: list[str] = field(default_factory=list)
    readers: dict[str, int] = field(default_factory=dict)

    @property
    def name(self) -> str:
        """The names of its convolutions, joined by +."""
        return "+".join(self.convs)

    @property
    def short_name(self) -> str:
        """The name of its first convolution, and how many are tied to it: for plots."""
        return self.convs[0] + (f" + {len(self.convs) - 1} tied" if len(self.convs) > 1 else "")


class _Space:
    """The channels of some values; spaces whose values are added become one."""

    def __init__(self, layer: Layer | None) -> None:
        self.layer = layer
        self.into: _Space | None = None

    def found(self) -> _Space:
        return self if self.into is None else self.into.found()

    def join(self, other: _Space) -> None:
        """Make one space of two; one that holds no convolution's output alone has nothing to keep or drop."""
        one, two = self.found(), other.found()
        if one is two:
            return
        two.into = one
        if one.layer is None or two.layer is None:
            one.layer = None
            return
        one.layer.convs += two.layer.convs
        one.layer.followers += two.layer.followers
        one.layer.readers |= two.layer.readers

    def pin(self) -> None:
        """Take its channels out of every layer, so that all are kept."""
        self.found().layer = None


def find(network: nn.Module, example: Tensor) -> list[Layer]:
    """Return a network's layers of kernels in order of execution (Qi et al., ASE 2022, residual ties included).

    `example` is a batch (N, C, H, W). Kernels that are added to something that is no convolution's output, or whose
    maps are padded with further channels, cannot be dropped and are in no layer. UserError for a network that is
    neither sequential nor residual.
    """
    try:
        graph = fx.symbolic_trace(copy.deepcopy(network).eval())
    except Exception as error:  # whatever a network's own code raises when it meets a stand-in for a tensor
        raise UserError(f"this network cannot be split: {str(error).splitlines()[0]}; use one of the zoo") from error
    with torch.no_grad():
        ShapeProp(graph).propagate(example)
    return _Walk(graph).layers()


class _Walk:
    """One pass over the graph that gives every value its space, and how many inputs a channel of it makes."""

    def __init__(self, graph: fx.GraphModule) -> None:
        self.graph = graph
        self.spaces: dict[fx.Node, tuple[_Space, int]] = {}
        self.made: list[_Space] = []

    def layers(self) -> list[Layer]:
        for node in self.graph.graph.nodes:
            if node.op == "placeholder":
                self.spaces[node] = _Space(None), 1
            elif node.op.startswith("call"):
                self.spaces[node] = self._called(node)
        layers = {id(space.found()): space.found().layer for space in self.made}.values()
        place = {str(node.target): number for number, node in enumerate(self.graph.graph.nodes)}
        for layer in (found := [layer for layer in layers if layer is not None]):
            layer.convs.sort(key=place.__getitem__)
            layer.followers.sort(key=place.__getitem__)
            layer.readers = dict(sorted(layer.readers.items(), key=lambda reader: place[reader[0]]))
        return sorted(found, key=lambda layer: place[layer.convs[0]])

    def _called(self, node: fx.Node) -> tuple[_Space, int]:
        sources = [self.spaces[source] for source in node.all_input_nodes if source in self.spaces]
        module = self.graph.get_submodule(str(node.target)) if node.op == "call_module" else None
        if module is not None and not isinstance(module, nn.Flatten):
            return self._module(str(node.target), module, *sources[0])
        if (node.target in APART_FUNCTIONS and len(sources) == 1) or _cropped_or_padded(node):
            return sources[0]
        if node.target is F.pad:  # a parameter-free shortcut: kernels would leave, and the new channels stay
            sources[0][0].pin()
            return _Space(None), 1
        if node.target in SUMS and len(sources) == 2 and sources[0][1] == sources[1][1]:
            sources[0][0].join(sources[1][0])
            return sources[0]
        if module is not None or node.target in FLATTENINGS:
            space, inputs = sources[0]
            return space, inputs * _shape(node.all_input_nodes[0])[2:].numel()
        if node.target in (torch.mean, "mean") and _axes(node) in ([2, 3], [-2, -1], [-1, -2]):
            return sources[0]
        name = node.target if isinstance(node.target, str) else getattr(node.target, "__name__", str(node.target))
        raise UserError(f"this network cannot be split: {name} mixes channels; use a sequential or residual one")

    def _module(self, name: str, module: nn.Module, space: _Space, inputs: int) -> tuple[_Space, int]:
        layer = space.found().layer
        if isinstance(module, nn.Conv2d) and module.groups == 1:
            if layer:
                layer.readers[name] = inputs
            made = _Space(Layer([name], module.out_channels))
            self.made.append(made)
            return made, 1
        if isinstance(module, nn.Linear):
            if layer:
                layer.readers[name] = inputs
            return _Space(None), 1
        depthwise = isinstance(module, nn.Conv2d) and module.groups == module.in_channels == module.out_channels
        if isinstance(module, (nn.BatchNorm2d, Affine)) or depthwise:
            if layer:
                layer.followers.append(name)
            return space, inputs
        if isinstance(module, APART):
            return space, inputs
        kind = type(module).__name__
        raise UserError(f"this network cannot be split at {name} ({kind}); use a sequential or residual one")


def _shape(node: fx.Node) -> torch.Size:
    found: torch.Size = node.meta["tensor_meta"].shape
    return found


def _cropped_or_padded(node: fx.Node) -> bool:
    """Tell whether a value is cropped, strided or padded along height and width alone."""
    if node.target is operator.getitem:
        index = node.args[1]
        return isinstance(index, tuple) and index[:2] == (slice(None), slice(None))
    if node.target is F.pad:
        pad: Any = node.args[1] if len(node.args) > 1 else node.kwargs["pad"]
        return len(pad) <= 2 * (len(_shape(node.all_input_nodes[0])) - 2)
    return False


def _axes(node: fx.Node) -> Any:
    return list(node.args[1] if len(node.args) > 1 else node.kwargs.get("dim", ()))  # type: ignore[arg-type]
