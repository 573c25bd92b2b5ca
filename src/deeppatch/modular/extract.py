"""Make smaller networks that keep some kernels of each layer, and count multiply-adds."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from deeppatch.modular.layers import Layer


def extract(network: nn.Module, layers: Sequence[Layer], kept: Sequence[Tensor]) -> nn.Module:
    """Return a smaller copy of a network, in eval mode, that holds only the `kept` kernels: bool (kernels,) by layer.

    Its output is that of the network with the outputs of all other kernels, after normalisation, set to zero
    (Qi et al., ASE 2022).
    """
    small = copy.deepcopy(network).eval()
    _keep_kernels(small, layers, kept)
    return small


@contextmanager
def sliced(network: nn.Module, layers: Sequence[Layer], kept: Sequence[Tensor]) -> Iterator[None]:
    """Turn a network into what `extract` returns, within the block; only the kept weights are copied."""
    names = {name for layer in layers for name in (*layer.convs, *layer.followers, *layer.readers)}
    modules = [network.get_submodule(name) for name in names]
    before = [
        {**vars(module), "_parameters": {**module._parameters}, "_buffers": {**module._buffers}} for module in modules
    ]
    try:
        _keep_kernels(network, layers, kept)
        yield
    finally:
        for module, state in zip(modules, before, strict=True):
            vars(module).update(state)


@torch.no_grad()
def _keep_kernels(network: nn.Module, layers: Sequence[Layer], kept: Sequence[Tensor]) -> None:
    if any(not mask.any() for mask in kept):
        raise ValueError("a layer keeps no kernel")
    outputs: dict[str, Tensor] = {}
    inputs: dict[str, Tensor] = {}
    for layer, mask in zip(layers, kept, strict=True):
        outputs.update(dict.fromkeys(layer.convs, mask))
        for name in layer.followers:
            _write(outputs, name, layer.span(name), mask, _channels(network.get_submodule(name)))
        for name, each in layer.readers.items():
            weight = network.get_submodule(name).weight
            assert isinstance(weight, Tensor)
            _write(inputs, name, layer.span(name), mask.repeat_interleave(each), weight.shape[1])
    for name, mask in outputs.items():
        _keep_outputs(network.get_submodule(name), mask.nonzero().squeeze(1))
    for name, mask in inputs.items():  # after all outputs, so that less is gathered
        _keep_inputs(network.get_submodule(name), mask.nonzero().squeeze(1))


def _write(masks: dict[str, Tensor], name: str, span: slice, mask: Tensor, total: int) -> None:
    """Write the mask of a layer into that of a module, which keeps what is of no layer."""
    if len(mask) == total:
        masks[name] = mask
        return
    if name not in masks:
        masks[name] = mask.new_ones(total)
    masks[name][span] = mask


def _channels(module: nn.Module) -> int:
    """Return the number of channels of a follower; 0 where it has no tensors."""
    return next((len(value) for value in (*module.parameters(), *module.buffers()) if value.ndim > 0), 0)


def _keep_outputs(module: nn.Module, index: Tensor) -> None:
    for values in (module._parameters, module._buffers):
        for name, value in values.items():
            if value is not None and value.ndim > 0:
                values[name] = _select(value, 0, index)  # type: ignore[assignment]
    count = len(index)
    if isinstance(module, nn.Conv2d):
        if module.groups > 1:
            module.groups = module.in_channels = count
        module.out_channels = count
    elif isinstance(module, nn.BatchNorm2d):
        module.num_features = count


def _keep_inputs(module: nn.Module, index: Tensor) -> None:
    assert isinstance(module, (nn.Conv2d, nn.Linear))
    module._parameters["weight"] = _select(module.weight, 1, index)  # type: ignore[assignment]
    if isinstance(module, nn.Conv2d):
        module.in_channels = len(index)
    else:
        module.in_features = len(index)


def _select(old: Tensor, axis: int, index: Tensor) -> Tensor:
    if old.ndim == 4 and not old.is_contiguous() and old.is_contiguous(memory_format=torch.channels_last):
        rows = old.permute(0, 2, 3, 1)  # as they lie in memory: whole rows are gathered ten times as fast
        chosen = rows.index_select(0, index) if axis == 0 else rows.flatten(0, 2).index_select(1, index)
        new = chosen.view(-1, *rows.shape[1:3], chosen.shape[-1]).permute(0, 3, 1, 2)
    else:
        new = old.index_select(axis, index)
    return nn.Parameter(new, requires_grad=old.requires_grad) if isinstance(old, nn.Parameter) else new


@torch.no_grad()
def multiply_adds(network: nn.Module, x: Tensor) -> int:
    """Return the multiply-adds of one pass over a batch (N, C, H, W), per sample."""
    with FlopCounterMode(display=False) as counter:
        network(x)
    return counter.get_total_flops() // 2 // len(x)
