"""A network as one graph in inference form: every step by name, normalisation folded into the convolution before it."""

from __future__ import annotations

import operator
from typing import Any

import torch
from torch import Tensor, fx, nn

from deeppatch.graph.folding import fold
from deeppatch.graph.operations import OUT_OF_PLACE
from deeppatch.graph.tracing import Untraceable, trace

Values = dict[fx.Node, Any]
IN_FLIGHT = 5  # largest maps that one edit holds at a time, copies and workspaces of convolutions among them


class Graph:
    """A copy of a network, in eval mode, that runs step by step and keeps what each step gave.

    `convs` has the node of each convolution by its name in the network; `silent` has, for each, what its channels give
    behind the folded normalisation when they are silenced before it, (C,).
    """

    def __init__(self, network: nn.Module, example: Tensor) -> None:
        """Trace and fold `network`; Untraceable unless the graph gives for `example` (N, C, H, W) what it gives."""
        self.module = trace(network)
        self._separate()
        norms = fold(self.module)
        self.convs = {str(node.target): node for node in self.module.graph.nodes if self._is(node, nn.Conv2d)}
        self.convs = {name: self.convs[name] for name, _ in network.named_modules() if name in self.convs}
        self.silent = {name: _silence(self.layer(node), norms.get(name)) for name, node in self.convs.items()}
        self.module.graph.lint()
        self.nodes: list[fx.Node] = list(self.module.graph.nodes)
        self.output = self.nodes[-1]
        with torch.no_grad():
            if not torch.allclose(self.run(example)[self.output], network.eval()(example), rtol=1e-3, atol=1e-3):
                raise Untraceable("it answers otherwise when it is run as a graph")

    def layer(self, node: fx.Node) -> nn.Module:
        """Return the module that a step calls."""
        return self.module.get_submodule(str(node.target))

    def run(self, x: Tensor) -> Values:
        """Return what each step gives for normalised images (N, C, H, W); the last one is the logits."""
        values: Values = {}
        for node in self.nodes:
            values[node] = x if node.op == "placeholder" else self.call(node, values)
        return values

    def call(self, node: fx.Node, values: Values) -> Any:
        """Run one step on the values of those before it."""
        if node.op == "get_attr":
            return operator.attrgetter(str(node.target))(self.module)
        args = fx.node.map_arg(node.args, values.__getitem__)
        kwargs = fx.node.map_arg(node.kwargs, values.__getitem__)
        if node.op == "output":
            return args[0]
        if node.op == "call_module":
            return self.layer(node)(*args, **kwargs)
        if node.op == "call_method":
            return getattr(args[0], str(node.target))(*args[1:], **kwargs)
        return node.target(*args, **kwargs)  # type: ignore[operator]

    def costs(self) -> dict[str, int]:
        """Return for each convolution how many convolutions an edit of one of its filters runs again, plus one."""
        return {
            name: 1 + sum(self._is(later, nn.Conv2d) for later in self.after(node)) for name, node in self.convs.items()
        }

    @torch.no_grad()
    def bytes_an_image(self, example: Tensor) -> int:
        """Return the bytes that one of the images (N, C, H, W) takes: what all steps give, and an edit on its way."""
        values = [value for value in self.run(example).values() if isinstance(value, Tensor)]
        sizes = {value.data_ptr(): value.nbytes for value in values}.values()
        return (sum(sizes) + IN_FLIGHT * max(sizes)) // len(example)

    def after(self, start: fx.Node) -> list[fx.Node]:
        """Return the steps that depend on one, in order."""
        reached = {start}
        for node in self.nodes:
            if any(source in reached for source in node.all_input_nodes):
                reached.add(node)
        return [node for node in self.nodes if node in reached and node is not start]

    def _is(self, node: fx.Node, kind: type[nn.Module]) -> bool:
        return node.op == "call_module" and isinstance(self.layer(node), kind)

    def _separate(self) -> None:
        """Let no step change what another one reads, and no layer run twice."""
        called: set[str] = set()
        for node in self.module.graph.nodes:
            if node.op == "call_module":
                if node.target in called and list(self.layer(node).parameters()):
                    raise Untraceable(f"it runs {node.target} more than once")
                called.add(str(node.target))
                if getattr(self.layer(node), "inplace", False):
                    self.layer(node).inplace = False  # type: ignore[assignment]
            elif node.op == "call_function":
                node.target = OUT_OF_PLACE.get(node.target, node.target)
                if node.kwargs.get("inplace"):
                    node.kwargs = {**node.kwargs, "inplace": False}
            elif node.op == "call_method" and str(node.target).endswith("_"):
                node.target = str(node.target).rstrip("_")


@torch.no_grad()
def _silence(conv: nn.Module, norm: nn.Module | None) -> Tensor:
    assert isinstance(conv, nn.Conv2d)
    zeros = conv.weight.new_zeros(conv.out_channels)
    return zeros if norm is None else norm(zeros.double().view(1, -1, 1, 1)).flatten().to(zeros)
