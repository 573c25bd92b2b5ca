"""Walk, swap, hook, fold and cut networks; a hook ends with its `with` block."""

from __future__ import annotations

import copy
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

Hook = Callable[..., Any]


def convolutions(network: nn.Module) -> dict[str, nn.Conv2d]:
    """Return the convolutions that can be patched, by name, in order of definition; grouped ones are left out."""
    return {n: m for n, m in network.named_modules() if isinstance(m, nn.Conv2d) and m.groups == 1}


def swap(network: nn.Module, name: str, module: nn.Module) -> nn.Module:
    """Put `module` in the place called `name` and return what was there."""
    parent_name, _, leaf = name.rpartition(".")
    parent = network.get_submodule(parent_name)
    before = network.get_submodule(name)
    setattr(parent, leaf, module)
    return before


@contextmanager
def hooked(module: nn.Module, hook: Hook) -> Iterator[None]:
    """Run `hook(module, inputs, output)` after each forward pass of `module` within the block."""
    handle = module.register_forward_hook(hook)
    try:
        yield
    finally:
        handle.remove()


@contextmanager
def hooked_before(module: nn.Module, hook: Hook) -> Iterator[None]:
    """Run `hook(module, inputs)` before each forward pass of `module` within the block; what it returns is read."""
    handle = module.register_forward_pre_hook(hook)
    try:
        yield
    finally:
        handle.remove()


@contextmanager
def captured(module: nn.Module) -> Iterator[list[Tensor]]:
    """Collect copies of the outputs of `module`, pass after pass, within the block."""
    outputs: list[Tensor] = []
    with hooked(module, lambda _module, _inputs, output: outputs.append(output.clone())):
        yield outputs


@torch.no_grad()
def trace(network: nn.Module, example: Tensor) -> tuple[list[str], dict[str, str]]:
    """Run `example` (N, C, H, W) once, in eval mode, and report on convolutions and batch normalisations.

    Returns their names in order of execution, and for each convolution the normalisation that reads its output.
    """
    order: list[str] = []
    norm_after: dict[str, str] = {}
    producers: list[tuple[Tensor, str]] = []

    def note(name: str) -> Hook:
        def hook(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
            order.append(name)
            if isinstance(module, nn.Conv2d):
                producers.append((output, name))
            else:
                norm_after.update({conv: name for tensor, conv in producers if tensor is inputs[0]})

        return hook

    modes = {module: module.training for module in network.modules()}
    network.eval()
    try:
        with ExitStack() as stack:
            for name, module in network.named_modules():
                if isinstance(module, (nn.Conv2d, nn.BatchNorm2d)):
                    stack.enter_context(hooked(module, note(name)))
            network(example)
    finally:
        for module, training in modes.items():
            module.training = training
    return order, norm_after


class _Reached(Exception):
    """Ends a forward pass at the place where it is cut."""


def input_of(network: nn.Module, name: str, x: Tensor) -> Tensor:
    """Run the network only as far as the module called `name` and return what that module would read."""
    found: list[Tensor] = []

    def stop(_module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        found.append(inputs[0])
        raise _Reached

    handle = network.get_submodule(name).register_forward_pre_hook(stop)
    try:
        network(x)
    except _Reached:
        return found[0]
    finally:
        handle.remove()
    raise ValueError(f"{name} is not reached by the forward pass")


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


def cut(network: fx.GraphModule, name: str) -> tuple[fx.GraphModule, fx.GraphModule]:
    """Cut a graph at the module called `name`, which runs once, into what comes before it and what comes after.

    `before(x)` returns a tuple: what the module reads, then all else that is computed before it and read after it.
    `after(y, *else)` goes on from the module's output. Both share their modules with `network`.
    """
    nodes = list(network.graph.nodes)
    place = next(i for i, node in enumerate(nodes) if node.op == "call_module" and node.target == name)
    early, gate, late = nodes[:place], nodes[place], nodes[place + 1 :]
    constants = [node for node in early if node.op == "get_attr"]  # read anew rather than handed over
    crossing = [node for node in early if node not in constants and not node.users.keys().isdisjoint(late)]

    before, copies = fx.Graph(), dict[fx.Node, fx.Node]()
    for node in early:
        copies[node] = before.node_copy(node, copies.__getitem__)
    before.output(tuple(copies[node] for node in (gate.args[0], *crossing)))

    after = fx.Graph()
    copies = {node: after.placeholder(node.name) for node in (gate, *crossing)}
    for node in (*constants, *late):
        copies[node] = after.node_copy(node, copies.__getitem__)
    return fx.GraphModule(network, before), fx.GraphModule(network, after)
