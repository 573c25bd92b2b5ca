"""Trace a network: its forward pass as a graph of operations."""

from __future__ import annotations

import copy
import inspect
from typing import Any

from torch import fx, nn
from torch.fx.graph import CodeGen, _PyTreeCodeGen

from deeppatch.errors import UserError
from deeppatch.graph.affine import Affine


class Untraceable(UserError):
    """The network cannot be run as a graph; the message says why."""


class _Tracer(fx.Tracer):
    """Treats an `Affine` as a leaf module, like PyTorch's own modules."""

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        """Return whether the graph calls a module as one operation."""
        return isinstance(m, Affine) or super().is_leaf_module(m, module_qualified_name)


def trace(network: nn.Module) -> fx.GraphModule:
    """Return a copy of a network, in eval mode, as a graph of its first argument, the images.

    Modules keep their names, and no tensor is shared. Further arguments of the forward pass have their default values.

    Raises:
        Untraceable: When the forward pass depends on the values of tensors.
    """
    tracer = _Tracer()
    try:
        graph = tracer.trace(copy.deepcopy(network).eval(), concrete_args=_defaults(network))
        _keep_one_input(graph)
    except Exception as error:  # a network's code may raise anything when it receives a proxy instead of a tensor
        reason = (str(error) or type(error).__name__).strip().splitlines()[0]
        raise Untraceable(f"its forward pass depends on values ({reason})") from error
    return fx.GraphModule(tracer.root, graph, type(network).__name__)


def _defaults(network: nn.Module) -> dict[str, Any]:
    """Return the default values of all arguments of the forward pass but the first."""
    parameters = list(inspect.signature(type(network).forward).parameters.values())[2:]
    return {each.name: each.default for each in parameters if each.default is not inspect.Parameter.empty}


def _keep_one_input(graph: fx.Graph) -> None:
    """Remove the inputs that have fixed values, and the checks of these values."""
    for node in [node for node in graph.nodes if node.op == "placeholder"][1:]:
        checks = [node]
        for each in checks:
            checks += [user for user in each.users if user not in checks]
        for each in reversed(checks):
            graph.erase_node(each)
    if isinstance(graph._codegen, _PyTreeCodeGen):  # a default of several values: the tracer has flattened the output
        graph.set_codegen(CodeGen())
        (output,) = graph.find_nodes(op="output")
        output.args = tuple(output.args[0])
