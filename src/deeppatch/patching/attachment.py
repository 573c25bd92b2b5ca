"""Put units into a network and take them out again."""

from __future__ import annotations

import copy
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from deeppatch.graph import hooks
from deeppatch.patching.units import UNITS, Unit


@dataclass(frozen=True)
class Attachment:
    """Units and normalisations that are attached to a network, each in place of one of its own modules.

    The network's own modules are kept unchanged in `own`, so `remove` restores the network bit for bit.

    Example:
        >>> network = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU())
        >>> attachment = attach(network, {"0": [1, 2]}, "replace", torch.rand(2, 3, 8, 8))
        >>> [tuple(parameter.shape) for parameter in attachment.parameters()]
        [(2, 3, 3, 3)]
        >>> attachment.remove()
        >>> network[0]
        Conv2d(3, 4, kernel_size=(3, 3), stride=(1, 1))
    """

    network: nn.Module
    units: dict[str, Unit]
    norms: dict[str, nn.BatchNorm2d]
    norm_after: dict[str, str]
    own: dict[str, nn.Module]
    trained_before: list[nn.Parameter]

    def parameters(self) -> list[nn.Parameter]:
        """Return the new parameters, which are the only ones to train."""
        return [parameter for unit in self.units.values() for parameter in _new_module(unit)]

    def enter_training(self) -> None:
        """Set the training mode: batch statistics in the patch's own normalisations, all else as at inference."""
        self.network.eval()
        for norm in self.norms.values():
            norm.train()
        for unit in self.units.values():
            if unit.kind == "crtunit":
                unit.get_submodule("unit").train()

    def merge(self) -> None:
        """Replace the units by what computes the same at inference: ReplaceCorrect becomes a plain convolution."""
        for name, unit in self.units.items():
            hooks.swap(self.network, name, unit.for_inference())

    def remove(self) -> None:
        """Put the network's own modules back, and let its parameters train again where they did."""
        for name, module in self.own.items():
            hooks.swap(self.network, name, module)
        for parameter in self.trained_before:
            parameter.requires_grad_(True)


def attach(network: nn.Module, channels: dict[str, list[int]], kind: str, example: Tensor) -> Attachment:
    """Put units of `kind` into a network (in place) at the convolutions named by `channels`.

    Normalisations executed after the first of them are replaced by copies, whose running statistics become the
    patch's own; `example` (N, C, H, W) is run once to learn the order. The network's own parameters are frozen.
    """
    if not channels:
        raise ValueError("no channel is chosen in any layer")
    order, norm_after = hooks.execution_order(network, example)
    if twice := [name for name in channels if order.count(name) > 1]:
        raise ValueError(f"{twice[0]} runs more than once in a forward pass and cannot be patched")
    device = next(network.parameters()).device
    first = min(order.index(name) for name in channels)
    named = dict(network.named_modules())
    names = [name for name in order[first:] if _has_statistics(named[name])]
    trained_before = [parameter for parameter in network.parameters() if parameter.requires_grad]
    for parameter in trained_before:
        parameter.requires_grad_(False)
    own: dict[str, nn.Module] = {}
    norms: dict[str, nn.BatchNorm2d] = {}
    for name in dict.fromkeys(names):
        norms[name] = copy.deepcopy(named[name])
        own[name] = hooks.swap(network, name, norms[name])
    units: dict[str, Unit] = {}
    for name in sorted(channels, key=order.index):
        chosen = torch.tensor(sorted(channels[name]), dtype=torch.long, device=device)
        units[name] = UNITS[kind](network.get_submodule(name), chosen)  # type: ignore[arg-type]
        own[name] = hooks.swap(network, name, units[name])
    return Attachment(network, units, norms, norm_after, own, trained_before)


def _has_statistics(module: nn.Module) -> bool:
    return isinstance(module, nn.BatchNorm2d) and module.running_mean is not None


def _new_module(unit: Unit) -> list[nn.Parameter]:
    own = {id(parameter) for parameter in unit.original.parameters()}
    return [parameter for parameter in unit.parameters() if id(parameter) not in own]
