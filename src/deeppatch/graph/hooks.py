"""Find, swap and hook the modules of a network; a hook ends with its `with` block."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn

Hook = Callable[..., Any]


def convolutions(network: nn.Module) -> dict[str, nn.Conv2d]:
    """Return the convolutions whose filters can be replaced, by name, in order of definition.

    Those in groups are excluded, those that compute something else than `nn.Conv2d` does (a subclass that pads or
    standardises its weight), and those whose weight is computed from other parameters (weight normalisation).
    """
    return {n: m for n, m in network.named_modules() if isinstance(m, nn.Conv2d) and m.groups == 1 and is_plain(m)}


def is_plain(conv: nn.Conv2d) -> bool:
    """Return whether a convolution computes what `nn.Conv2d` does, from a weight that is its own parameter."""
    same = all(getattr(type(conv), name) is getattr(nn.Conv2d, name) for name in ("forward", "_conv_forward"))
    return same and "weight" in conv._parameters


def swap(network: nn.Module, name: str, module: nn.Module) -> nn.Module:
    """Replace the module called `name` by `module` and return the previous one."""
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
    """Run `hook(module, inputs)` before each forward pass within the block; what it returns replaces the inputs."""
    handle = module.register_forward_pre_hook(hook)
    try:
        yield
    finally:
        handle.remove()


@contextmanager
def captured(module: nn.Module) -> Iterator[list[Tensor]]:
    """Collect copies of the outputs of `module` from all forward passes within the block."""
    outputs: list[Tensor] = []
    with hooked(module, lambda _module, _inputs, output: outputs.append(output.clone())):
        yield outputs


@contextmanager
def eval_mode(model: nn.Module) -> Iterator[None]:
    """Put a model into eval mode within the block, and restore the mode of each of its modules afterwards."""
    modes = {module: module.training for module in model.modules()}
    model.eval()
    try:
        yield
    finally:
        for module, training in modes.items():
            module.training = training


@torch.no_grad()
def execution_order(network: nn.Module, example: Tensor) -> tuple[list[str], dict[str, str]]:
    """Run a network once in eval mode, and find out in which order its layers run.

    Args:
        network: The network; the mode of its modules is restored afterwards.
        example: Normalised images (N, C, H, W).

    Returns:
        The names of all convolutions and batch normalisations in order of execution, and for each convolution the
        name of the batch normalisation that reads its output.
    """
    order: list[str] = []
    norm_after: dict[str, str] = {}
    producers: list[tuple[Tensor, str]] = []

    def record(name: str) -> Hook:
        def hook(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
            order.append(name)
            if isinstance(module, nn.Conv2d):
                producers.append((output, name))
            else:
                norm_after.update({conv: name for tensor, conv in producers if inputs and tensor is inputs[0]})

        return hook

    with eval_mode(network), ExitStack() as stack:
        for name, module in network.named_modules():
            if isinstance(module, (nn.Conv2d, nn.BatchNorm2d)):
                stack.enter_context(hooked(module, record(name)))
        network(example)
    return order, norm_after
