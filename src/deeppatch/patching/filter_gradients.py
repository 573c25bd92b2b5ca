"""A convolution with some new filters, of which only these get gradients: less work than gradients of all filters."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

_NO_BIAS_NO_INPUT, _NO_BIAS_NO_WEIGHT = [False, True, False], [True, False, False]


def can_spare(conv: nn.Conv2d, x: Tensor) -> bool:
    """Tell whether `with_new_filters` can be used: on a CPU, in float32, with zeros as padding.

    Elsewhere it was not measured, or autocast decides which types are computed with.
    """
    plain = conv.padding_mode == "zeros" and not isinstance(conv.padding, str) and conv.groups == 1
    return plain and x.device.type == "cpu" and not torch.is_autocast_enabled("cpu")


def with_new_filters(x: Tensor, rows: Tensor, conv: nn.Conv2d, channels: Tensor, bias: Tensor | None) -> Tensor:
    """Return the convolution of x (N, C_in, H, W) with the weights of `conv`, in which `rows` are the filters I.

    Equals the plain form, `conv` with the rows written into a copy of its weights, and so do the gradients of x and of
    the rows, up to rounding.

    Args:
        x: The input, (N, C_in, H, W).
        rows: The new filters, (|I|, C_in, k, k).
        conv: The frozen convolution, without groups.
        channels: Their output channels, I, int64 (|I|,).
        bias: The bias (C_out,), which gets no gradient.
    """
    result: Tensor = _NewFilters.apply(x, rows, conv, channels, bias)
    return result


class _NewFilters(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, rows: Tensor, conv: nn.Conv2d, channels: Tensor, bias: Tensor | None) -> Tensor:
        weight = conv.weight.clone().index_copy_(0, channels, rows)  # in place, because index_copy loses the layout
        ctx.save_for_backward(x, rows, weight)
        ctx.conv, ctx.channels = conv, channels
        return conv._conv_forward(x, weight, bias)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        x, rows, weight = ctx.saved_tensors
        of_x = _backward(ctx.conv, gradient, x, weight, _NO_BIAS_NO_WEIGHT)[0] if ctx.needs_input_grad[0] else None
        return of_x, gradient_of_filters(maps_of(gradient, ctx.channels), x, rows, ctx.conv), None, None, None


def maps_of(gradient: Tensor, channels: Tensor) -> Tensor:
    """Return the maps of some channels, (N, |I|, H, W), of those of all: gather takes half of the time of indexing."""
    pixels = gradient.permute(0, 2, 3, 1)
    found = pixels.reshape(-1, pixels.shape[3]).gather(1, channels.expand(pixels.shape[:3].numel(), -1))
    return found.view(*pixels.shape[:3], len(channels)).permute(0, 3, 1, 2)


def gradient_of_filters(gradient: Tensor, x: Tensor, rows: Tensor, conv: nn.Conv2d) -> Tensor:
    """Return the gradient of filters (|I|, C_in, k, k) from that of their maps (N, |I|, H', W') and the input x.

    It is the correlation of both, dW[o, i, a] = sum over n, p of dy[n, o, p] x[n, i, p + a - padding]. With stride 1
    this is also the gradient of a convolution that maps dy to x, transposed and turned by half a turn. Kernels of CPUs
    fill their vectors with the channels of what takes the place of the output, so the larger number of channels goes
    there: for four filters of 16 that takes a quarter of the time.
    """
    reach = [dilation * (size - 1) for dilation, size in zip(conv.dilation, conv.kernel_size, strict=True)]
    padding = [int(each) for each in conv.padding]
    turned = [most - pad for most, pad in zip(reach, padding, strict=True)]
    if conv.stride == (1, 1) and gradient.shape[1] < x.shape[1] and min(turned) >= 0:
        shape = x.new_empty(x.shape[1], gradient.shape[1], *conv.kernel_size)
        shape = shape.contiguous(memory_format=torch.channels_last)
        found = torch.ops.aten.convolution_backward(
            x, gradient, shape, None, [1, 1], turned, list(conv.dilation), False, [0, 0], 1, _NO_BIAS_NO_INPUT
        )[1]
        return found.transpose(0, 1).flip(2, 3)
    return _backward(conv, gradient, x, rows, _NO_BIAS_NO_INPUT)[1]


def _backward(conv: nn.Conv2d, gradient: Tensor, x: Tensor, weight: Tensor, wanted: list[bool]) -> tuple[Tensor, ...]:
    """Return the gradients of input, weight and bias of a convolution with other weights; None for unwanted ones."""
    padding = [int(each) for each in conv.padding]
    found: tuple[Tensor, ...] = torch.ops.aten.convolution_backward(
        gradient, x, weight, None, list(conv.stride), padding, list(conv.dilation), False, [0, 0], 1, wanted
    )
    return found
