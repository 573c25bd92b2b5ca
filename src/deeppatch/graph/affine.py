"""Batch normalisation at inference as a scale and a shift of each channel."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class Affine(nn.Module):
    """Batch normalisation at inference: a scale and a shift of each channel.

    Args:
        norm: The batch normalisation; None for the identity.
        weight: A tensor (C, ...) that gives the number of channels, the device and the dtype.
        channels: Channel indices (K,) if only some of the channels are normalised.
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
