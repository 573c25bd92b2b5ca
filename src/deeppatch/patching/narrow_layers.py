"""Convolution, batch normalisation and ReLU of few channels as one step, on a CPU: full vectors, and little memory."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

TOGETHER = 8  # pixels that lie side by side
WIDE = 16  # channels that fill a vector by themselves
PARTS = 64  # into which rows are divided for sums, at most


def are_narrow(x: Tensor, filters: Tensor, norm: nn.BatchNorm2d) -> bool:
    """Tell whether `in_one_step` can be used: batch normalisation in training, of few channels.

    It is for float32 on a CPU, in channels_last, of one process. Elsewhere torch's own is as fast, or was not measured.
    """
    return (
        norm.training
        and "forward" not in vars(norm)  # of several processes, which normalise together
        and norm.momentum is not None
        and x.device.type == "cpu"
        and x.dtype == torch.float32
        and not torch.is_autocast_enabled("cpu")
        and len(filters) < WIDE
        and x.is_contiguous(memory_format=torch.channels_last)
        and x.numel() // x.shape[1] % TOGETHER == 0
    )


def in_one_step(x: Tensor, filters: Tensor, norm: nn.BatchNorm2d) -> Tensor:
    """Return ReLU(norm(convolution of x)) as in training, and update the running statistics of `norm`.

    Equals torch's three layers, and so do the gradients, up to rounding. A row of memory has the C channels of one
    pixel; here it has those of TOGETHER pixels, so that sums and products run over full vectors. Whatever is no longer
    needed is written over, because new memory costs more than arithmetic does.

    Args:
        x: The input, (N, C_in, H, W).
        filters: The weights of a convolution without bias that keeps height and width, (C, C_in, k, k), k odd.
        norm: A batch normalisation of C channels.
    """
    found: Tensor = _Step.apply(x, filters, norm.weight, norm.bias, norm)
    return found


class _Step(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, filters: Tensor, weight: Tensor, bias: Tensor, norm: nn.BatchNorm2d) -> Tensor:
        maps = F.conv2d(x, filters, padding=_padding(filters)).contiguous(memory_format=torch.channels_last)
        found = torch.empty_like(maps)
        centred, rows = _rows(maps), _rows(found)
        count = len(rows) * TOGETHER
        mean = _per_channel(centred) / count
        centred.sub_(mean.repeat(TOGETHER))
        variance = _per_channel(torch.mul(centred, centred, out=rows)) / count
        slope = torch.rsqrt(variance + norm.eps)
        torch.addcmul(bias.repeat(TOGETHER), centred, (weight * slope).repeat(TOGETHER), out=rows).relu_()
        _note(norm, mean, variance, count)
        ctx.save_for_backward(x, filters, weight, maps, slope, found)
        return found

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        x, filters, weight, maps, slope, found = ctx.saved_tensors
        of_maps = torch.ops.aten.threshold_backward(gradient, found, 0).contiguous(memory_format=torch.channels_last)
        centred, rows = _rows(maps), _rows(of_maps)
        count = len(rows) * TOGETHER
        of_bias, of_weight = _per_channel(rows), _per_channel(rows * centred) * slope
        scale = weight * slope
        torch.addcmul((scale * of_bias / -count).repeat(TOGETHER), rows, scale.repeat(TOGETHER), out=rows)
        rows.addcmul_(centred, (scale * slope * of_weight / -count).repeat(TOGETHER))
        padding, wanted = [_padding(filters)] * 2, [ctx.needs_input_grad[0], True, False]
        of_x, of_filters, _ = torch.ops.aten.convolution_backward(
            of_maps, x, filters, None, [1, 1], padding, [1, 1], False, [0, 0], 1, wanted
        )
        return of_x, of_filters, of_weight, of_bias, None


def _padding(filters: Tensor) -> int:
    return filters.shape[-1] // 2


def _rows(maps: Tensor) -> Tensor:
    """Return maps (N, C, H, W), which lie as channels_last, as rows (N * H * W / TOGETHER, TOGETHER * C)."""
    return maps.permute(0, 2, 3, 1).view(-1, TOGETHER * maps.shape[1])


def _per_channel(rows: Tensor) -> Tensor:
    """Return the sums over rows (R, TOGETHER * C) for each channel (C,).

    torch divides a sum over all rows among its threads by columns, and all other steps by rows. Each core would then
    hold parts of every row in its cache, and the next step, which writes the rows, could take ten times as long. Sums
    over parts of the rows are divided by rows, too.
    """
    parts = rows.view(math.gcd(len(rows), PARTS), -1, rows.shape[1])
    return parts.sum(1).view(-1, rows.shape[1] // TOGETHER).sum(0)


def _note(norm: nn.BatchNorm2d, mean: Tensor, variance: Tensor, count: int) -> None:
    """Update running statistics by those of a batch, whose variance is divided by its number of pixels."""
    if norm.track_running_stats:
        assert norm.momentum is not None
        assert norm.running_mean is not None
        assert norm.running_var is not None
        assert norm.num_batches_tracked is not None
        norm.num_batches_tracked.add_(1)
        norm.running_mean.lerp_(mean, norm.momentum)
        norm.running_var.lerp_(variance * (count / (count - 1)), norm.momentum)
