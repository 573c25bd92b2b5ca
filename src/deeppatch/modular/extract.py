"""Build the physically smaller network that keeps some kernels of each layer."""

from __future__ import annotations

import copy
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from deeppatch.modular.layers import Layer


@torch.no_grad()
def extract(network: nn.Module, layers: Sequence[Layer], kept: Sequence[Tensor]) -> nn.Module:
    """Return a smaller copy of a network, in eval mode, that holds the `kept` kernels alone: bool (kernels,) by layer.

    It answers as the network does with the outputs of all other kernels, behind their normalisations, at zero
    (Qi et al., ASE 2022).
    """
    if any(not mask.any() for mask in kept):
        raise ValueError("a layer keeps no kernel")
    small = copy.deepcopy(network).eval()
    for layer, mask in zip(layers, kept, strict=True):
        for name in (*layer.convs, *layer.followers):
            _keep_outputs(small.get_submodule(name), mask)
        for name, inputs in layer.readers.items():
            _keep_inputs(small.get_submodule(name), mask.repeat_interleave(inputs))
    return small


def _keep_outputs(module: nn.Module, mask: Tensor) -> None:
    for values in (module._parameters, module._buffers):
        for name, value in values.items():
            if value is not None and value.ndim > 0:
                values[name] = _like(value, value[mask])  # type: ignore[assignment]
    count = int(mask.sum())
    if isinstance(module, nn.Conv2d):
        if module.groups > 1:
            module.groups = module.in_channels = count
        module.out_channels = count
    elif isinstance(module, nn.BatchNorm2d):
        module.num_features = count


def _keep_inputs(module: nn.Module, mask: Tensor) -> None:
    assert isinstance(module, (nn.Conv2d, nn.Linear))
    module.weight = _like(module.weight, module.weight[:, mask])  # type: ignore[assignment]
    count = int(mask.sum())
    if isinstance(module, nn.Conv2d):
        module.in_channels = count
    else:
        module.in_features = count


def _like(old: Tensor, new: Tensor) -> Tensor:
    return nn.Parameter(new, requires_grad=old.requires_grad) if isinstance(old, nn.Parameter) else new
