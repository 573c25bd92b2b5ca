"""Find which convolutions of a network must keep the same kernels, and which modules read their outputs."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor, fx, nn
from torch.fx.passes.shape_prop import ShapeProp

from deeppatch.errors import UserError
from deeppatch.graph.operations import (
    Operation,
    concatenated,
    is_crop,
    is_spatial_mean,
    name_of,
    operation,
    padding,
)
from deeppatch.graph.tracing import Untraceable, trace


@dataclass
class Layer:
    """Kernels that are kept or dropped together: those of one convolution, or of several whose outputs are added.

    Args:
        convs: The names of these convolutions.
        kernels: The number of output channels of each.
        followers: The batch normalisations and depthwise convolutions after them.
        readers: The convolutions and linear layers that read them, and for each the number of inputs per kernel
            (height times width after a flattening, else 1).
        starts: For a follower or a reader of concatenated maps the index of its first input that is this layer's,
            where that is not 0.

    Followers and readers are in order of execution, and so are convolutions.
    """

    convs: list[str]
    kernels: int
    followers: list[str] = field(default_factory=list)
    readers: dict[str, int] = field(default_factory=dict)
    starts: dict[str, int] = field(default_factory=dict)

    @property
    def name(self) -> str:
        """The names of its convolutions, joined by +."""
        return "+".join(self.convs)

    @property
    def short_name(self) -> str:
        """The name of the first convolution and the number of further ones, for plots."""
        return self.convs[0] + (f" + {len(self.convs) - 1} tied" if len(self.convs) > 1 else "")

    def span(self, name: str) -> slice:
        """Return which inputs of a follower or reader are this layer's."""
        start = self.starts.get(name, 0)
        return slice(start, start + self.kernels * self.readers.get(name, 1))

    @property
    def touched(self) -> set[str]:
        """The names of its followers and readers."""
        return {*self.followers, *self.readers}


class _ChannelGroup:
    """The channels of some tensors, as a set of a union-find structure; groups whose tensors are added are united."""

    def __init__(self, layer: Layer | None) -> None:
        self.layer = layer
        self.parent: _ChannelGroup | None = None

    def root(self) -> _ChannelGroup:
        return self if self.parent is None else self.parent.root()

    def unite(self, other: _ChannelGroup) -> None:
        """Unite two groups; no channel can be dropped where one is no convolution's output, or one layer reads both."""
        one, two = self.root(), other.root()
        if one is two:
            return
        two.parent = one
        if one.layer is None or two.layer is None or one.layer.touched & two.layer.touched:
            one.layer = None
            return
        one.layer.convs += two.layer.convs
        one.layer.followers += two.layer.followers
        one.layer.readers |= two.layer.readers
        one.layer.starts |= two.layer.starts

    def exclude(self) -> None:
        """Remove the channels from their layer, so that all are kept."""
        self.root().layer = None


@dataclass(frozen=True)
class _Part:
    """The channels of one group within a value, each of which is `inputs` entries of its second dimension.

    Values are described by their parts in order: several where maps were concatenated.
    """

    group: _ChannelGroup
    channels: int
    inputs: int = 1

    @property
    def width(self) -> int:
        return self.channels * self.inputs


def find_layers(network: nn.Module, example: Tensor) -> list[Layer]:
    """Return a network's layers of kernels in order of execution (Qi et al., ASE 2022; TOSEM 2023).

    They are found through residual connections and through branches whose maps are concatenated. `example` is a batch
    (N, C, H, W). Kernels that are added to something that is no convolution's output, whose maps are padded with
    further channels, or which one module reads twice cannot be dropped and are in no layer. UserError for a network
    that mixes channels in another way.
    """
    try:
        graph = trace(network)
    except Untraceable as error:
        raise UserError(f"this network cannot be split: {error}; use one of the zoo") from error
    with torch.no_grad():
        try:
            ShapeProp(graph).propagate(example)
        except RuntimeError as error:
            reason = str(error.__cause__ or error).splitlines()[0]
            raise UserError(
                f"this network cannot be split: a step of it fails ({reason}); use one of the zoo"
            ) from error
    return _LayerFinder(graph).layers()


def layers_to_split(network: nn.Module, example: Tensor) -> list[Layer]:
    """Return the layers of `find_layers` that another layer reads; UserError where there is none.

    What no layer reads are the logits, of which a module can drop none.
    """
    layers = [layer for layer in find_layers(network, example) if layer.readers]
    if not layers:
        raise UserError(
            "this network cannot be split: it has no convolution whose kernels can be dropped; use a sequential or "
            "residual one"
        )
    return layers


class _LayerFinder:
    """Assigns to every value of the graph its parts: channel groups, and the number of inputs per channel."""

    def __init__(self, graph: fx.GraphModule) -> None:
        self.graph = graph
        self.parts: dict[fx.Node, list[_Part]] = {}
        self.created: list[_ChannelGroup] = []

    def layers(self) -> list[Layer]:
        for node in self.graph.graph.nodes:
            if node.op == "placeholder":
                self.parts[node] = _fixed(_shape(node)[1])
            elif node.op.startswith("call") and "tensor_meta" in node.meta:  # others are sizes and checks of them
                self.parts[node] = self._called(node)
        layers = {id(group.root()): group.root().layer for group in self.created}.values()
        order = {str(node.target): index for index, node in enumerate(self.graph.graph.nodes)}
        for layer in (kept_layers := [layer for layer in layers if layer is not None]):
            layer.convs.sort(key=order.__getitem__)
            layer.followers.sort(key=order.__getitem__)
            layer.readers = dict(sorted(layer.readers.items(), key=lambda reader: order[reader[0]]))
        return sorted(kept_layers, key=lambda layer: order[layer.convs[0]])

    def _called(self, node: fx.Node) -> list[_Part]:
        """Return the parts of a step's output."""
        sources = [source for source in node.all_input_nodes if source in self.parts]
        parts = self.parts[sources[0]] if sources else []
        kind = operation(self.graph, node)
        if kind in (Operation.CONVOLUTION, Operation.LINEAR, Operation.NORMALISATION):
            return self._layer(node, parts)
        if kind is Operation.SUM and len(sources) == 2:
            if _shape(sources[0])[1] == _shape(sources[1])[1]:
                return _united(parts, self.parts[sources[1]])
        elif kind is Operation.CONCATENATION:
            tensors, axis = concatenated(node)
            if axis in (1, 1 - len(_shape(node))) and all(tensor in self.parts for tensor in tensors):
                return [part for tensor in tensors for part in self.parts[tensor]]
        elif len(sources) == 1 and self._keeps_channels_separate(node, kind):
            return parts
        elif kind is Operation.PADDING:  # a parameter-free shortcut adds channels that cannot be dropped
            for part in parts:
                part.group.exclude()
            return _fixed(_shape(node)[1])
        elif kind is Operation.FLATTEN and len(_shape(node)) == 2:
            each = _shape(sources[0])[2:].numel()
            return [replace(part, inputs=part.inputs * each) for part in parts]
        raise self._mixing(node)

    def _keeps_channels_separate(self, node: fx.Node, kind: Operation | None) -> bool:
        """Return whether channels stay separate and in order."""
        if kind is Operation.ITEM:
            return is_crop(node)
        if kind is Operation.MEAN:
            return is_spatial_mean(node) and len(_shape(node.all_input_nodes[0])) == 4
        if kind is Operation.PADDING:
            return len(padding(node)) <= 2 * (len(_shape(node)) - 2)
        return kind is Operation.CHANNELWISE

    def _layer(self, node: fx.Node, parts: list[_Part]) -> list[_Part]:
        name = str(node.target)
        module = self.graph.get_submodule(name)
        if isinstance(module, nn.Linear) or (isinstance(module, nn.Conv2d) and module.groups == 1):
            if sum(part.width for part in parts) != module.weight.shape[1]:
                raise self._mixing(node)
            for layer, part in _touched_by(name, parts):
                layer.readers[name] = part.inputs
            if isinstance(module, nn.Linear):
                return _fixed(module.out_features)
            self.created.append(_ChannelGroup(Layer([name], module.out_channels)))
            return [_Part(self.created[-1], module.out_channels)]
        if isinstance(module, nn.Conv2d) and not module.groups == module.in_channels == module.out_channels:
            raise UserError(
                f"this network cannot be split at {name} (Conv2d in groups); use a sequential or residual one"
            )
        for layer, _part in _touched_by(name, parts):
            layer.followers.append(name)
        return parts

    def _mixing(self, node: fx.Node) -> UserError:
        name = name_of(self.graph, node)
        return UserError(f"this network cannot be split: {name} mixes channels; use a sequential or residual one")


def _fixed(channels: int) -> list[_Part]:
    """Return the parts of a value of which no channel can be dropped."""
    return [_Part(_ChannelGroup(None), channels)]


def _united(one: list[_Part], two: list[_Part]) -> list[_Part]:
    """Unite the groups of two values that are added; where their parts lie differently, all channels are kept."""
    if [(part.channels, part.inputs) for part in one] == [(part.channels, part.inputs) for part in two]:
        for part, other in zip(one, two, strict=True):
            part.group.unite(other.group)
        return one
    for part in (*one, *two):
        part.group.exclude()
    return _fixed(sum(part.width for part in one))


def _touched_by(name: str, parts: list[_Part]) -> Iterator[tuple[Layer, _Part]]:
    """Yield the layers that a module follows or reads, after setting their starts; what is there twice is kept."""
    start = 0
    for part in parts:
        layer = part.group.root().layer
        if layer is not None and name in layer.touched:
            part.group.exclude()
        elif layer is not None:
            if start:
                layer.starts[name] = start
            yield layer, part
        start += part.width


def _shape(node: fx.Node) -> torch.Size:
    found: torch.Size = node.meta["tensor_meta"].shape
    return found
