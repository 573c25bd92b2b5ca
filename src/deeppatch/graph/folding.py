"""Networks in inference form: batch normalisations folded into the convolutions before them."""

from __future__ import annotations

import copy
from collections import Counter

import torch
from torch import Tensor, fx, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from deeppatch.graph.hooks import swap


class Affine(nn.Module):
    """What a batch normalisation does at inference: a scale and a shift of each channel; the identity for None.

    `weight` (C, ...) says how many channels there are, where they lie and in which precision; of these, `channels` (K,)
    are normalised where they are given.
    """

    scale: Tensor
    shift: Tensor

    def __init__(self, norm: nn.Module | None, weight: Tensor, channels: Tensor | None = None) -> None:
        super().__init__()
        scale, shift = weight.new_ones(len(weight)), weight.new_zeros(len(weight))
        if isinstance(norm, nn.BatchNorm2d) and norm.running_mean is not None and norm.running_var is not None:
            exact = (norm.running_var.double() + norm.eps).rsqrt()
            exact = exact * norm.weight.detach() if norm.affine else exact
            centre = norm.bias.detach() if norm.affine else 0
            scale, shift = exact.to(weight), (centre - norm.running_mean * exact).to(weight)
        if channels is not None:
            scale, shift = scale[channels], shift[channels]
        self.register_buffer("scale", scale.view(-1, 1, 1))
        self.register_buffer("shift", shift.view(-1, 1, 1))

    def forward(self, y: Tensor) -> Tensor:
        """Normalise maps (N, C, H, W), or (N, K, H, W)."""
        return torch.addcmul(self.shift, y, self.scale).to(y.dtype)


def fold(graph: fx.GraphModule) -> dict[str, nn.BatchNorm2d]:
    """Let the convolutions of a graph, in eval mode, take in the normalisations after them.

    A normalisation is taken in where nothing else reads the output of its convolution, and both run once. Modules keep
    their names; new weights are computed in float64 and rounded once. Returns what was taken in, by convolution.
    """
    named = dict(graph.named_modules())
    calls = Counter(node.target for node in graph.graph.nodes if node.op == "call_module")
    taken: dict[str, nn.BatchNorm2d] = {}
    for node in list(graph.graph.nodes):
        norm = named[node.target] if node.op == "call_module" else None
        if not isinstance(norm, nn.BatchNorm2d) or norm.running_mean is None:
            continue
        source = node.args[0]
        conv = named[source.target] if source.op == "call_module" else None
        once = calls[node.target] == calls[source.target] == len(source.users) == 1
        if isinstance(conv, nn.Conv2d) and once:
            dtype = conv.weight.dtype
            swap(graph, source.target, fuse_conv_bn_eval(conv.double(), norm.double()).to(dtype))
            node.replace_all_uses_with(source)
            graph.graph.erase_node(node)
            taken[source.target] = norm
    return taken


def folded(network: nn.Module) -> fx.GraphModule:
    """Return a copy for inference alone, as a graph: normalisations folded (see `fold`), any other one an Affine.

    Nothing asks for gradients.
    """
    folding = fx.symbolic_trace(copy.deepcopy(network).eval())
    fold(folding)
    for name in {str(node.target) for node in folding.graph.nodes if node.op == "call_module"}:
        norm = folding.get_submodule(name)
        if isinstance(norm, nn.BatchNorm2d) and norm.running_mean is not None:
            swap(folding, name, Affine(norm, norm.running_mean))
    folding.delete_all_unused_submodules()
    folding.recompile()
    return folding.requires_grad_(False)
