"""Frost: textures of ice that are made, not photographed, laid over grey levels, uint8 (N, 3, H, W)."""

from __future__ import annotations

from functools import cache

import numpy as np
import torch
from torch import Tensor

from deeppatch import runtime
from deeppatch.data.corruptions.constants import SMALL, Row
from deeppatch.data.corruptions.draws import Draws
from deeppatch.data.corruptions.filters import truncated

# mean and standard deviation of red, green and blue in the five published photos, which have no known licence
COLOURS = (
    ((0.304, 0.584, 0.650), (0.105, 0.064, 0.060)),
    ((0.787, 0.805, 0.841), (0.084, 0.087, 0.089)),
    ((0.787, 0.805, 0.841), (0.084, 0.087, 0.089)),
    ((0.541, 0.601, 0.649), (0.114, 0.114, 0.119)),
    ((0.440, 0.483, 0.528), (0.174, 0.169, 0.163)),
)
SMALL_SIDE = 128
FALL = 1.5  # the power of a texture falls with this power of the frequency


def windows(draws: Draws, height: int, width: int, row: Row) -> tuple[Tensor, Tensor]:
    """Draw a texture, (N,), and the corner of a window in it, int64 (N, 2)."""
    side = texture_side(height, width)
    corners = [draws.integers(0, side - size, 1) for size in (height, width)]
    return draws.integers(0, len(COLOURS), 1).squeeze(1), torch.cat(corners, 1)


def frost(pixels: Tensor, row: Row, texture: Tensor, corner: Tensor) -> Tensor:
    """Lay a window of a texture over each image; `row` is the weight of the image and that of the texture."""
    height, width = pixels.shape[-2:]
    side, device = texture_side(height, width), pixels.device
    if side > SMALL_SIDE and device.type == "cpu":  # windows of large images are cut one by one
        whole = _channels_first(side)
        cut = [
            whole[kind, :, top : top + height, left : left + width]
            for kind, (top, left) in zip(texture.tolist(), corner.tolist(), strict=True)
        ]
        ice = torch.stack(cut).float() if cut else pixels.float()
        return truncated(pixels.float().mul_(row[0]).add_(ice.mul_(row[1])))
    rows = corner[:, :1] + torch.arange(height, device=device)
    columns = corner[:, 1:] + torch.arange(width, device=device)
    place = (texture.view(-1, 1, 1) * side + rows.unsqueeze(2)) * side + columns.unsqueeze(1)
    table = torch.from_numpy(textures(side)).to(device)
    ice = table[place].permute(0, 3, 1, 2).float()
    return truncated(pixels.float().mul_(row[0]).add_(ice.mul_(row[1])))


def texture_side(height: int, width: int) -> int:
    """Return the side of the textures for images of a size."""
    longer = max(height, width)
    return SMALL_SIDE if longer <= SMALL else max(512, 2 << (longer - 1).bit_length())


@cache
def _channels_first(side: int) -> Tensor:
    """Return the textures as uint8 (5, 3, side, side)."""
    found = torch.from_numpy(textures(side)).view(len(COLOURS), side, side, 3)
    return found.permute(0, 3, 1, 2).contiguous()


@cache
def textures(side: int) -> np.ndarray:
    """Return five textures of side x side pixels one after the other, uint8 (5 side^2, 3)."""
    frequency = np.hypot(np.fft.fftfreq(side)[:, None], np.fft.rfftfreq(side))
    frequency[0, 0] = 1
    shape = frequency ** (-FALL / 2)
    shape[0, 0] = 0
    found = []
    for index, (mean, deviation) in enumerate(COLOURS):
        noise = torch.randn(side, side, generator=runtime.generator(0, "frost", index), dtype=torch.float64).numpy()
        clouds = np.fft.irfft2(np.fft.rfft2(noise) * shape, s=(side, side))
        clouds = clouds / clouds.std()
        coloured = clouds[..., None] * np.array(deviation) + np.array(mean)
        found.append(np.round(255 * coloured.clip(0, 1)).astype(np.uint8).reshape(-1, 3))
    return np.concatenate(found)
