"""The blocks of a network: what runs between one halving of the maps and the next, found by running it once."""

from __future__ import annotations

from collections.abc import Collection
from contextlib import ExitStack

import torch
from torch import Tensor, nn

from deeppatch.graph.hooks import Hook, eval_mode, hooked, hooked_before


@torch.no_grad()
def blocks(model: nn.Module, pixels: Tensor) -> list[list[str]]:
    """Return the layers of each block of a network, in order of execution.

    A block ends before the first layer whose maps have at most half the height of those before it. A layer that leaves
    maps of a single pixel (a pooling over the whole map) begins no block. A layer that has parameters of its own and
    further layers within, such as a transformer with position embeddings, is of the block in which it begins.

    Args:
        model: A model of pixels; the mode of its modules is restored afterwards.
        pixels: Pixels (N, 3, H, W), which the model is run on once.

    Returns:
        The names of the layers of each block: modules without modules within, or with parameters of their own. Layers
        that do not run are in none.

    >>> pool = nn.MaxPool2d(2)
    >>> network = nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), nn.ReLU(), pool, nn.Conv2d(4, 4, 3, padding=1))
    >>> blocks(network, torch.rand(1, 3, 8, 8))
    [['0', '1'], ['2', '3']]
    """
    recorder = _Recorder()
    with eval_mode(model), ExitStack() as stack:
        for name, module in model.named_modules():
            if not list(module.children()):
                stack.enter_context(hooked(module, recorder.leaving(name)))
            elif module._parameters:
                stack.enter_context(hooked_before(module, recorder.beginning(name)))
        model(pixels)
    return recorder.found


class _Recorder:
    """Collects layers in blocks as they run; `height` is that of the smallest maps so far, in pixels."""

    def __init__(self) -> None:
        self.found: list[list[str]] = [[]]
        self.seen: set[str] = set()
        self.height = 0

    def beginning(self, name: str) -> Hook:
        return lambda _module, _inputs: self.enter(name)

    def leaving(self, name: str) -> Hook:
        def hook(_module: nn.Module, _inputs: tuple[Tensor, ...], output: Tensor) -> None:
            is_maps = isinstance(output, Tensor) and output.ndim == 4 and output.shape[-2] > 1
            if is_maps and name not in self.seen:
                if output.shape[-2] <= (self.height + 1) // 2:
                    self.found.append([])
                self.height = min(self.height or output.shape[-2], output.shape[-2])
            self.enter(name)

        return hook

    def enter(self, name: str) -> None:
        if name not in self.seen:
            self.seen.add(name)
            self.found[-1].append(name)


def parameters_of(model: nn.Module, layers: Collection[str]) -> set[str]:
    """Return the names of the parameters that layers have of their own, as `named_parameters` spells them."""
    own = {id(each) for name in layers for each in model.get_submodule(name)._parameters.values()}
    return {name for name, parameter in model.named_parameters() if id(parameter) in own}


def modules_without(model: nn.Module, layers: Collection[str]) -> list[str]:
    """Return the modules in which none of some layers may be: all but those layers and what holds nothing else."""
    leaves = {name for name, module in model.named_modules() if not list(module.children())}
    other = leaves - set(layers)
    holding = {name for name, _ in model.named_modules() if any(within(leaf, name) for leaf in other)}
    return sorted(other | holding)


def within(name: str, module: str) -> bool:
    """Tell whether a module called `name` is another module, or within it."""
    return not module or name == module or name.startswith(f"{module}.")
