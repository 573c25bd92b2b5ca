"""Insert units into a network and remove them again."""

from __future__ import annotations

import copy
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from deeppatch.errors import UserError
from deeppatch.graph import hooks
from deeppatch.patching.units import UNITS, ReplacedConv2d, Unit


@dataclass(frozen=True)
class Attachment:
    """Units and batch normalisations that replace modules of a network.

    The replaced modules are kept unchanged in `original_modules`, so `remove` restores the network bit for bit.

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
    original_modules: dict[str, nn.Module]
    previously_trainable: list[nn.Parameter]

    def parameters(self) -> list[nn.Parameter]:
        """Return the new parameters: the only ones to train."""
        return [parameter for unit in self.units.values() for parameter in _new_parameters(unit)]

    def draw_filters(self) -> None:
        """Let the new filters start fresh instead of at the original ones; correction units are fresh anyway."""
        for unit in self.units.values():
            if isinstance(unit, ReplacedConv2d):
                unit.draw()

    def enter_training(self) -> None:
        """Set the training mode: the patch's batch normalisations use batch statistics, all else is in eval mode."""
        self.network.eval()
        for norm in self.norms.values():
            norm.train()
        for unit in self.units.values():
            if unit.kind == "crtunit":
                unit.get_submodule("unit").train()

    def merge(self) -> None:
        """Replace the units by their inference form: ReplaceCorrect units become plain convolutions."""
        for name, unit in self.units.items():
            hooks.swap(self.network, name, unit.for_inference())

    def remove(self) -> None:
        """Restore the original modules, and make the parameters trainable that were so before."""
        for name, module in self.original_modules.items():
            hooks.swap(self.network, name, module)
        for parameter in self.previously_trainable:
            parameter.requires_grad_(True)


def attach(network: nn.Module, channels: dict[str, list[int]], kind: str, example: Tensor) -> Attachment:
    """Insert units into a network in place, and freeze its parameters.

    Batch normalisations that run after the first patched convolution are replaced by copies, whose running statistics
    belong to the patch.

    Args:
        network: A network that reads normalised images.
        channels: The output channels to patch, by the name of their convolution.
        kind: `replace` or `crtunit`, a key of UNITS.
        example: Normalised images (N, C, H, W), which are run once to learn the order of execution.

    Raises:
        UserError: When no channel is given, there is no such kind, or a convolution does not run exactly once in a
            forward pass.
    """
    if kind not in UNITS:
        raise UserError(f"kind {kind!r}: choose from {', '.join(UNITS)}")
    order, norm_after = hooks.execution_order(network, example)
    _check_channels(network, channels, order)
    device = next(network.parameters()).device
    first = min(order.index(name) for name in channels)
    named = dict(network.named_modules())
    names = [name for name in order[first:] if _has_statistics(named[name])]
    previously_trainable = [parameter for parameter in network.parameters() if parameter.requires_grad]
    for parameter in previously_trainable:
        parameter.requires_grad_(False)
    original_modules: dict[str, nn.Module] = {}
    norms: dict[str, nn.BatchNorm2d] = {}
    for name in dict.fromkeys(names):
        norms[name] = copy.deepcopy(named[name])
        original_modules[name] = hooks.swap(network, name, norms[name])
    units: dict[str, Unit] = {}
    for name in sorted(channels, key=order.index):
        rows = torch.tensor(sorted(channels[name]), dtype=torch.long, device=device)
        units[name] = UNITS[kind](network.get_submodule(name), rows)  # type: ignore[arg-type]
        original_modules[name] = hooks.swap(network, name, units[name])
    return Attachment(network, units, norms, norm_after, original_modules, previously_trainable)


def _check_channels(network: nn.Module, channels: dict[str, list[int]], order: list[str]) -> None:
    if not channels:
        raise UserError("no channel is chosen in any layer; choose at least one, or a larger ratio")
    sizes = {name: conv.out_channels for name, conv in hooks.convolutions(network).items()}
    for name, chosen in channels.items():
        if name not in sizes:
            grouped = isinstance(dict(network.named_modules()).get(name), nn.Conv2d)
            reason = "grouped convolutions are not patched" if grouped else "the network has no such convolution"
            raise UserError(f"{name}: {reason}; {'choose from' if grouped else 'it has'} {', '.join(sizes) or 'none'}")
        if not chosen or len(set(chosen)) < len(chosen) or not set(chosen) <= set(range(sizes[name])):
            raise UserError(f"channels {list(chosen)} of {name}: give each once, from 0 to {sizes[name] - 1}")
    if twice := [name for name in channels if order.count(name) > 1]:
        raise UserError(f"{twice[0]} runs more than once in a forward pass and cannot be patched")
    if absent := [name for name in channels if name not in order]:
        raise UserError(f"{absent[0]} is not called in a forward pass and cannot be patched")


def _has_statistics(module: nn.Module) -> bool:
    return isinstance(module, nn.BatchNorm2d) and module.running_mean is not None


def _new_parameters(unit: Unit) -> list[nn.Parameter]:
    frozen = {id(parameter) for parameter in unit.original.parameters()}
    return [parameter for parameter in unit.parameters() if id(parameter) not in frozen]
