"""A network as a graph of steps, with batch normalisations folded into the convolutions before them."""

from __future__ import annotations

import operator
from typing import Any

import torch
from torch import Tensor, fx, nn

from deeppatch.graph.folding import fold
from deeppatch.graph.operations import OUT_OF_PLACE
from deeppatch.graph.tracing import Untraceable, trace

Values = dict[fx.Node, Any]
MAPS_PER_EDIT = 5  # maps of the largest size in memory during one edit, workspaces of convolutions included


class Graph:
    """A copy of a network, in eval mode, that runs step by step and returns the output of each step.

    `convs` has the node of each convolution by its name in the network. `silenced` has for each convolution the output
    (C,) of its channels after the folded normalisation when they are set to zero before it.
    """

    def __init__(self, network: nn.Module, example: Tensor) -> None:
        """Trace and fold a network.

        Args:
            network: The network.
            example: Normalised images (N, C, H, W), for which graph and network must have the same output.

        Raises:
            Untraceable: When the network cannot be traced, or the graph computes something else.
        """
        self.module = trace(network)
        self._remove_side_effects()
        norms = fold(self.module)
        self.convs = {str(node.target): node for node in self.module.graph.nodes if self._is(node, nn.Conv2d)}
        self.convs = {name: self.convs[name] for name, _ in network.named_modules() if name in self.convs}
        self.silenced = {
            name: _silenced_outputs(self.layer(node), norms.get(name)) for name, node in self.convs.items()
        }
        self.module.graph.lint()
        self.nodes: list[fx.Node] = list(self.module.graph.nodes)
        self.output = self.nodes[-1]
        with torch.no_grad():
            expected = network.eval()(example)
            try:
                logits = self.run(example)[self.output]
            except Exception as error:  # a step may have come to mean something else in a graph
                raise Untraceable(f"a step fails ({(str(error) or type(error).__name__).splitlines()[0]})") from error
            if not torch.allclose(logits, expected, rtol=1e-3, atol=1e-3):
                raise Untraceable("it computes something else when it is run as a graph")

    def layer(self, node: fx.Node) -> nn.Module:
        """Return the module that a step calls."""
        return self.module.get_submodule(str(node.target))

    def run(self, x: Tensor) -> Values:
        """Return the output of each step for normalised images (N, C, H, W); that of the last step is the logits."""
        values: Values = {}
        for node in self.nodes:
            values[node] = x if node.op == "placeholder" else self.call(node, values)
        return values

    def call(self, node: fx.Node, values: Values) -> Any:
        """Run one step on the outputs of earlier ones."""
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
        """Return for each convolution 1 plus the number of convolutions that an edit of one of its filters reruns."""
        return {
            name: 1 + sum(self._is(later, nn.Conv2d) for later in self.after(node)) for name, node in self.convs.items()
        }

    @torch.no_grad()
    def bytes_per_image(self, example: Tensor) -> int:
        """Return the memory in bytes for one image of `example` (N, C, H, W): all outputs, and those of an edit."""
        values = [value for value in self.run(example).values() if isinstance(value, Tensor)]
        sizes = {value.data_ptr(): value.nbytes for value in values}.values()
        return (sum(sizes) + MAPS_PER_EDIT * max(sizes)) // len(example)

    def after(self, start: fx.Node) -> list[fx.Node]:
        """Return the steps that depend on one, in order."""
        reached = {start}
        for node in self.nodes:
            if any(source in reached for source in node.all_input_nodes):
                reached.add(node)
        return [node for node in self.nodes if node in reached and node is not start]

    def _is(self, node: fx.Node, kind: type[nn.Module]) -> bool:
        return node.op == "call_module" and isinstance(self.layer(node), kind)

    def _remove_side_effects(self) -> None:
        """Make in-place steps out-of-place, and refuse layers that run twice."""
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
def _silenced_outputs(conv: nn.Module, norm: nn.Module | None) -> Tensor:
    assert isinstance(conv, nn.Conv2d)
    zeros = conv.weight.new_zeros(conv.out_channels)
    return zeros if norm is None else norm(zeros.double().view(1, -1, 1, 1)).flatten().to(zeros)
