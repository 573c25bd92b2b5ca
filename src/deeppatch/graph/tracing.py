"""Trace a network: its forward pass as a graph of operations."""

from __future__ import annotations

import copy

from torch import fx, nn

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
    """Return a copy of a network, in eval mode, as a graph; modules keep their names, and no tensor is shared.

    Raises:
        Untraceable: When the forward pass depends on the values of tensors.
    """
    tracer = _Tracer()
    try:
        graph = tracer.trace(copy.deepcopy(network).eval())
    except Exception as error:  # a network's code may raise anything when it receives a proxy instead of a tensor
        reason = (str(error) or type(error).__name__).splitlines()[0]
        raise Untraceable(f"its forward pass depends on values ({reason})") from error
    return fx.GraphModule(tracer.root, graph, type(network).__name__)
