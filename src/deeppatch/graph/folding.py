"""Networks in inference form: batch normalisations folded into the convolutions before them."""

from __future__ import annotations

from collections import Counter

from torch import fx, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from deeppatch.graph.affine import Affine
from deeppatch.graph.hooks import is_plain, swap
from deeppatch.graph.tracing import trace


def fold(graph: fx.GraphModule) -> dict[str, nn.BatchNorm2d]:
    """Fold batch normalisations into the convolutions before them, in place.

    A normalisation is folded when nothing else reads the output of its convolution, and both run once. Modules keep
    their names; new weights are computed in float64 and rounded once.

    Args:
        graph: A traced network in eval mode.

    Returns:
        The folded normalisations by the name of their convolution.
    """
    named = dict(graph.named_modules())
    calls = Counter(node.target for node in graph.graph.nodes if node.op == "call_module")
    folded_norms: dict[str, nn.BatchNorm2d] = {}
    for node in list(graph.graph.nodes):
        norm = named[node.target] if node.op == "call_module" else None
        if not isinstance(norm, nn.BatchNorm2d) or norm.running_mean is None:
            continue
        source = node.args[0]
        conv = named[source.target] if source.op == "call_module" else None
        once = calls[node.target] == calls[source.target] == len(source.users) == 1
        if isinstance(conv, nn.Conv2d) and is_plain(conv) and once:
            dtype = conv.weight.dtype
            swap(graph, source.target, fuse_conv_bn_eval(conv.double(), norm.double()).to(dtype))
            node.replace_all_uses_with(source)
            graph.graph.erase_node(node)
            folded_norms[source.target] = norm
    return folded_norms


def folded(network: nn.Module) -> fx.GraphModule:
    """Return a traced copy of a network for inference, without gradients.

    Batch normalisations are folded where possible (see `fold`); each of the others becomes an `Affine`.

    Raises:
        Untraceable: When the network cannot be traced.
    """
    graph = trace(network)
    fold(graph)
    for name in {str(node.target) for node in graph.graph.nodes if node.op == "call_module"}:
        norm = graph.get_submodule(name)
        if isinstance(norm, nn.BatchNorm2d) and norm.running_mean is not None:
            swap(graph, name, Affine(norm, norm.running_mean))
    graph.delete_all_unused_submodules()
    graph.recompile()
    return graph.requires_grad_(False)
