"""Batch normalisation of few channels, on a CPU: several pixels at a time, so that vectors are full."""

from __future__ import annotations

from typing import Any, TypeGuard

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

TOGETHER = 8  # pixels that lie side by side
WIDE = 16  # channels that fill a vector by themselves


def is_narrow(norm: nn.Module, x: Tensor) -> TypeGuard[nn.BatchNorm2d]:
    """Tell whether `normalise` can take the place of a module: batch normalisation in training, of few channels.

    It is for float32 on a CPU, in channels_last, of one process. Elsewhere torch's own is as fast, or was not measured.
    """
    return (
        type(norm) is nn.BatchNorm2d
        and norm.training
        and "forward" not in vars(norm)  # of several processes, which normalise together
        and norm.momentum is not None
        and x.device.type == "cpu"
        and x.dtype == torch.float32
        and not torch.is_autocast_enabled("cpu")
        and x.shape[1] < WIDE
        and x.is_contiguous(memory_format=torch.channels_last)
        and x.numel() // x.shape[1] % TOGETHER == 0
    )


def normalise(norm: nn.BatchNorm2d, x: Tensor) -> Tensor:
    """Return what `norm` makes of x (N, C, H, W) in training, and update its running statistics.

    Equals torch's batch normalisation, and so do the gradients, up to rounding. A row of memory has the C channels of
    one pixel; here it has those of TOGETHER pixels, so that sums and products run over full vectors.
    """
    with torch.no_grad():
        rows = _rows(x)
        count = len(rows) * TOGETHER
        mean = _per_channel(rows.sum(0)) / count
        normal = rows - mean.repeat(TOGETHER)
        variance = _per_channel((normal * normal).sum(0)) / count
        slope = torch.rsqrt(variance + norm.eps)
        normal.mul_(slope.repeat(TOGETHER))
        if norm.track_running_stats:
            assert norm.momentum is not None
            assert norm.running_mean is not None
            assert norm.running_var is not None
            assert norm.num_batches_tracked is not None
            norm.num_batches_tracked.add_(1)
            norm.running_mean.lerp_(mean, norm.momentum)
            norm.running_var.lerp_(variance * (count / (count - 1)), norm.momentum)
    found: Tensor = _Normalised.apply(x, norm.weight, norm.bias, normal, slope)
    return found


def _rows(maps: Tensor) -> Tensor:
    """Return maps (N, C, H, W), which lie as channels_last, as rows (N * H * W / TOGETHER, TOGETHER * C)."""
    return maps.permute(0, 2, 3, 1).reshape(-1, TOGETHER * maps.shape[1])


def _maps(rows: Tensor, like: Tensor) -> Tensor:
    """Return rows as maps of the shape of others."""
    count, channels, height, width = like.shape
    return rows.view(count, height, width, channels).permute(0, 3, 1, 2)


def _per_channel(values: Tensor) -> Tensor:
    """Return the sums over the pixels of a row (TOGETHER * C,) for each channel (C,)."""
    return values.view(TOGETHER, -1).sum(0)


class _Normalised(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor, normal: Tensor, slope: Tensor) -> Tensor:
        ctx.save_for_backward(weight, normal, slope)
        found = torch.empty_like(x)  # no view of rows, because what follows may write into it
        torch.addcmul(bias.repeat(TOGETHER), normal, weight.repeat(TOGETHER), out=_rows(found))
        return found

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        weight, normal, slope = ctx.saved_tensors
        rows = _rows(gradient)
        of_bias, of_weight = _per_channel(rows.sum(0)), _per_channel((rows * normal).sum(0))
        count = len(rows) * TOGETHER
        of_rows = rows - (of_bias / count).repeat(TOGETHER)
        of_rows.addcmul_(normal, (of_weight / -count).repeat(TOGETHER))
        of_rows.mul_((weight * slope).repeat(TOGETHER))
        return _maps(of_rows, gradient), of_weight, of_bias, None, None
