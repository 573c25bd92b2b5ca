"""Find which convolutions of a network must keep the same kernels, and which modules read their outputs."""

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

    Args:
        convs: The names of these convolutions.
        kernels: The number of output channels of each.
        followers: The batch normalisations and depthwise convolutions after them.
        readers: The convolutions and linear layers that read them, and for each the number of inputs per kernel
            (height times width after a flattening, else 1).

    All are in order of execution.
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
        """The name of the first convolution and the number of further ones, for plots."""
        return self.convs[0] + (f" + {len(self.convs) - 1} tied" if len(self.convs) > 1 else "")


class _ChannelGroup:
    """The channels of some tensors, as a set of a union-find structure; groups whose tensors are added are united."""

    def __init__(self, layer: Layer | None) -> None:
        self.layer = layer
        self.parent: _ChannelGroup | None = None

    def root(self) -> _ChannelGroup:
        return self if self.parent is None else self.parent.root()

    def unite(self, other: _ChannelGroup) -> None:
        """Unite two groups; if one has channels that are no convolution's output, no channel can be dropped."""
        one, two = self.root(), other.root()
        if one is two:
            return
        two.parent = one
        if one.layer is None or two.layer is None:
            one.layer = None
            return
        one.layer.convs += two.layer.convs
        one.layer.followers += two.layer.followers
        one.layer.readers |= two.layer.readers

    def exclude(self) -> None:
        """Remove the channels from their layer, so that all are kept."""
        self.root().layer = None


def find_layers(network: nn.Module, example: Tensor) -> list[Layer]:
    """Return a network's layers of kernels in order of execution (Qi et al., ASE 2022, with residual connections).

    `example` is a batch (N, C, H, W). Kernels that are added to something that is no convolution's output, or whose
    maps are padded with further channels, cannot be dropped and are in no layer. UserError for a network that is
    neither sequential nor residual.
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
    """Assigns to every value of the graph its channel group and the number of inputs per channel."""

    def __init__(self, graph: fx.GraphModule) -> None:
        self.graph = graph
        self.groups: dict[fx.Node, tuple[_ChannelGroup, int]] = {}
        self.created: list[_ChannelGroup] = []

    def layers(self) -> list[Layer]:
        for node in self.graph.graph.nodes:
            if node.op == "placeholder":
                self.groups[node] = _ChannelGroup(None), 1
            elif node.op.startswith("call") and "tensor_meta" in node.meta:  # others are sizes and checks of them
                self.groups[node] = self._called(node)
        layers = {id(group.root()): group.root().layer for group in self.created}.values()
        order = {str(node.target): index for index, node in enumerate(self.graph.graph.nodes)}
        for layer in (kept_layers := [layer for layer in layers if layer is not None]):
            layer.convs.sort(key=order.__getitem__)
            layer.followers.sort(key=order.__getitem__)
            layer.readers = dict(sorted(layer.readers.items(), key=lambda reader: order[reader[0]]))
        return sorted(kept_layers, key=lambda layer: order[layer.convs[0]])

    def _called(self, node: fx.Node) -> tuple[_ChannelGroup, int]:
        """Return the group of a step's output, and the number of a reader's inputs per channel."""
        sources = [source for source in node.all_input_nodes if source in self.groups]
        group, inputs = self.groups[sources[0]] if sources else (_ChannelGroup(None), 1)
        kind = operation(self.graph, node)
        if kind in (Operation.CONVOLUTION, Operation.LINEAR, Operation.NORMALISATION):
            return self._layer(node, group, inputs)
        if kind is Operation.SUM and len(sources) == 2:
            other, others = self.groups[sources[1]]
            if inputs == others and _shape(sources[0])[1] == _shape(sources[1])[1]:
                group.unite(other)
                return group, inputs
        elif len(sources) == 1 and self._keeps_channels_separate(node, kind):
            return group, inputs
        elif kind is Operation.PADDING:  # a parameter-free shortcut adds channels that cannot be dropped
            group.exclude()
            return _ChannelGroup(None), 1
        elif kind is Operation.FLATTEN and len(_shape(node)) == 2:
            return group, inputs * _shape(sources[0])[2:].numel()
        name = name_of(self.graph, node)
        raise UserError(f"this network cannot be split: {name} mixes channels; use a sequential or residual one")

    def _keeps_channels_separate(self, node: fx.Node, kind: Operation | None) -> bool:
        """Return whether channels stay separate and in order."""
        if kind is Operation.ITEM:
            return is_crop(node)
        if kind is Operation.MEAN:
            return is_spatial_mean(node) and len(_shape(node.all_input_nodes[0])) == 4
        if kind is Operation.PADDING:
            return len(padding(node)) <= 2 * (len(_shape(node)) - 2)
        return kind is Operation.CHANNELWISE

    def _layer(self, node: fx.Node, group: _ChannelGroup, inputs: int) -> tuple[_ChannelGroup, int]:
        name, layer = str(node.target), group.root().layer
        module = self.graph.get_submodule(name)
        if isinstance(module, nn.Conv2d) and module.groups == 1:
            if layer:
                layer.readers[name] = inputs
            created = _ChannelGroup(Layer([name], module.out_channels))
            self.created.append(created)
            return created, 1
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
        return group, inputs


def _shape(node: fx.Node) -> torch.Size:
    found: torch.Size = node.meta["tensor_meta"].shape
    return found
