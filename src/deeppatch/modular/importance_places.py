"""Where the importance of kernels is read: behind pooling, before it as published, or, as a control, nowhere."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

import torch
from torch import Tensor, fx, nn
from torch.nn import functional as F

from deeppatch.errors import UserError
from deeppatch.graph.operations import Operation, operation
from deeppatch.modular.importance import importances
from deeppatch.modular.layers import Layer
from deeppatch.modular.names import IMPORTANCES
from deeppatch.runtime import generator

BEFORE = "before_pooling_"  # and a number: what reads a map in front of max pooling
# what may stand, beside flattening, between a max pooling and the layer that reads the map: idle in eval mode
IDLE, IDLE_FUNCTIONS = (nn.Dropout, nn.Dropout2d, nn.Identity), (F.dropout,)


def measured_importance(
    place: str, network: fx.GraphModule, layers: Sequence[Layer], images: tuple[Tensor, Tensor], classes: int, seed: int
) -> list[Tensor]:
    """Return for each layer the importance (classes, kernels) of its kernels.

    Args:
        place: "pooled" reads maps where the next layer does, behind max pooling; "unpooled" before it, as the code of
            Qi et al. (ASE 2022) does; "random" draws numbers, as a control.
        network: A traced network in eval mode.
        layers: Its layers of kernels.
        images: Normalised inputs (N, C, H, W), and their labels (N,).
        classes: The number of classes.
        seed: The seed of random importance.

    Raises:
        UserError: When there is no such place.
    """
    if place not in IMPORTANCES:
        raise UserError(f"importance {place!r}: choose from {', '.join(IMPORTANCES)}")
    if place == "random":
        source, device = generator(seed, "importance"), images[1].device
        return [torch.rand(classes, layer.kernels, generator=source).to(device) for layer in layers]
    if place == "unpooled":
        network, layers = before_pooling(network, layers)
    return importances(network, layers, *images, classes)


def before_pooling(network: fx.GraphModule, layers: Sequence[Layer]) -> tuple[fx.GraphModule, list[Layer]]:
    """Return the same network and layers, with maps that are read in front of the max pooling after them.

    The network shares its modules with the given one. A layer whose last reader has no max pooling in front of it, or
    one over concatenated maps, is left as it is.
    """
    graph = fx.Graph()
    graph.output(graph.graph_copy(network.graph, {}))
    probed = fx.GraphModule(network, graph)
    nodes = {str(node.target): node for node in graph.nodes if node.op == "call_module"}
    found = []
    for index, layer in enumerate(layers):
        pooling = _max_pooling(probed, nodes[list(layer.readers)[-1]].all_input_nodes[0])
        if pooling is None or operation(probed, pooling.all_input_nodes[0]) is Operation.CONCATENATION:
            found.append(layer)
            continue
        name = f"{BEFORE}{index}"
        probed.add_module(name, nn.Identity())
        with graph.inserting_before(pooling):
            seen = graph.call_module(name, (pooling.all_input_nodes[0],))
        pooling.replace_input_with(pooling.all_input_nodes[0], seen)
        reader, inputs = list(layer.readers.items())[-1]
        found.append(replace(layer, readers={name: 1}, starts={name: layer.starts.get(reader, 0) // inputs}))
    probed.recompile()
    return probed.eval(), found


def _max_pooling(network: fx.GraphModule, node: fx.Node) -> fx.Node | None:
    """Return the max pooling whose maps reach a step unchanged, or None."""
    while not _is(network, node, (nn.MaxPool2d,), (F.max_pool2d, torch.max_pool2d)):
        if operation(network, node) is not Operation.FLATTEN and not _is(network, node, IDLE, IDLE_FUNCTIONS):
            return None
        node = node.all_input_nodes[0]
    return node


def _is(
    network: fx.GraphModule,
    node: fx.Node,
    kinds: tuple[type[nn.Module], ...],
    functions: tuple[Callable[..., object], ...],
) -> bool:
    if node.op == "call_module":
        return isinstance(network.get_submodule(str(node.target)), kinds)
    return node.op == "call_function" and node.target in functions
