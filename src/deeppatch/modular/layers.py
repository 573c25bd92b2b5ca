"""Which convolutions of a network must keep the same kernels, and which modules read what they keep."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor, fx, nn
from torch.fx.passes.shape_prop import ShapeProp

from deeppatch.errors import UserError
from deeppatch.graph.operations import Operation, is_crop, is_spatial_mean, name_of, operation, padding
from deeppatch.graph.tracing import Untraceable, trace


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


class _ChannelGroup:
    """The channels of some values; spaces whose values are added become one."""

    def __init__(self, layer: Layer | None) -> None:
        self.layer = layer
        self.into: _ChannelGroup | None = None

    def found(self) -> _ChannelGroup:
        return self if self.into is None else self.into.found()

    def join(self, other: _ChannelGroup) -> None:
        """Make one space of two; one that holds more than outputs of convolutions has nothing to keep or drop."""
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


def find_layers(network: nn.Module, example: Tensor) -> list[Layer]:
    """Return a network's layers of kernels in order of execution (Qi et al., ASE 2022, residual ties included).

    `example` is a batch (N, C, H, W). Kernels that are added to something that is no convolution's output, or whose
    maps are padded with further channels, cannot be dropped and are in no layer. UserError for a network that is
    neither sequential nor residual.
    """
    try:
        graph = trace(network)
    except Untraceable as error:
        raise UserError(f"this network cannot be split: {error}; use one of the zoo") from error
    with torch.no_grad():
        ShapeProp(graph).propagate(example)
    return _LayerFinder(graph).layers()


class _LayerFinder:
    """One pass over the graph that gives every value its space, and how many inputs a channel of it makes."""

    def __init__(self, graph: fx.GraphModule) -> None:
        self.graph = graph
        self.spaces: dict[fx.Node, tuple[_ChannelGroup, int]] = {}
        self.made: list[_ChannelGroup] = []

    def layers(self) -> list[Layer]:
        for node in self.graph.graph.nodes:
            if node.op == "placeholder":
                self.spaces[node] = _ChannelGroup(None), 1
            elif node.op.startswith("call"):
                self.spaces[node] = self._called(node)
        layers = {id(space.found()): space.found().layer for space in self.made}.values()
        order = {str(node.target): index for index, node in enumerate(self.graph.graph.nodes)}
        for layer in (found := [layer for layer in layers if layer is not None]):
            layer.convs.sort(key=order.__getitem__)
            layer.followers.sort(key=order.__getitem__)
            layer.readers = dict(sorted(layer.readers.items(), key=lambda reader: order[reader[0]]))
        return sorted(found, key=lambda layer: order[layer.convs[0]])

    def _called(self, node: fx.Node) -> tuple[_ChannelGroup, int]:
        """Return the space of what a step gives, and how many inputs of a reader a channel of it makes."""
        sources = [source for source in node.all_input_nodes if source in self.spaces]
        space, inputs = self.spaces[sources[0]] if sources else (_ChannelGroup(None), 1)
        kind = operation(self.graph, node)
        if kind in (Operation.CONVOLUTION, Operation.LINEAR, Operation.NORMALISATION):
            return self._layer(node, space, inputs)
        if kind is Operation.SUM and len(sources) == 2:
            other, others = self.spaces[sources[1]]
            if inputs == others and _shape(sources[0])[1] == _shape(sources[1])[1]:
                space.join(other)
                return space, inputs
        elif len(sources) == 1 and self._apart(node, kind):
            return space, inputs
        elif kind is Operation.PADDING:  # a parameter-free shortcut: kernels would leave, and the new channels stay
            space.pin()
            return _ChannelGroup(None), 1
        elif kind is Operation.FLATTEN and len(_shape(node)) == 2:
            return space, inputs * _shape(sources[0])[2:].numel()
        name = name_of(self.graph, node)
        raise UserError(f"this network cannot be split: {name} mixes channels; use a sequential or residual one")

    def _apart(self, node: fx.Node, kind: Operation | None) -> bool:
        """Tell whether channels stay apart and in their order."""
        if kind is Operation.ITEM:
            return is_crop(node)
        if kind is Operation.MEAN:
            return is_spatial_mean(node) and len(_shape(node.all_input_nodes[0])) == 4
        if kind is Operation.PADDING:
            return len(padding(node)) <= 2 * (len(_shape(node)) - 2)
        return kind is Operation.CHANNELWISE

    def _layer(self, node: fx.Node, space: _ChannelGroup, inputs: int) -> tuple[_ChannelGroup, int]:
        name, layer = str(node.target), space.found().layer
        module = self.graph.get_submodule(name)
        if isinstance(module, nn.Conv2d) and module.groups == 1:
            if layer:
                layer.readers[name] = inputs
            made = _ChannelGroup(Layer([name], module.out_channels))
            self.made.append(made)
            return made, 1
        if isinstance(module, nn.Linear):
            if layer:
                layer.readers[name] = inputs
            return _ChannelGroup(None), 1
        if isinstance(module, nn.Conv2d) and not module.groups == module.in_channels == module.out_channels:
            raise UserError(
                f"this network cannot be split at {name} (Conv2d in groups); use a sequential or residual one"
            )
        if layer:
            layer.followers.append(name)
        return space, inputs


def _shape(node: fx.Node) -> torch.Size:
    found: torch.Size = node.meta["tensor_meta"].shape
    return found
