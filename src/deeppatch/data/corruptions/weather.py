"""Weather: snow, fog and brightness, of grey levels, uint8 (N, 3, H, W)."""

from __future__ import annotations

import torch
from torch import Tensor

from deeppatch.data.corruptions.constants import Row
from deeppatch.data.corruptions.draws import Draws
from deeppatch.data.corruptions.filters import moved_along_lines, to_unit, truncated, zoomed

ROUGHNESS = 100.0  # of a plasma map at its coarsest level


def flakes(draws: Draws, height: int, width: int, row: Row) -> tuple[Tensor, Tensor]:
    """Draw a normal value for each pixel, (N, 1, H, W), and the angle at which snow falls, in degrees."""
    return draws.normal(1, height, width), draws.between(-135, -45)


def snow(pixels: Tensor, row: Row, noise: Tensor, angles: Tensor) -> Tensor:
    """Whiten the image, and add flakes that fall, and the same turned by 180 degrees.

    `row`: mean and standard deviation of the noise that flakes are made of, their enlargement, the threshold below
    which there is no flake, length and standard deviation of their fall, and how much of the colour remains.
    """
    mean, deviation, factor, threshold, radius, sigma, kept = row
    layer = zoomed((noise * deviation).add_(mean), factor)
    layer = truncated(torch.where(layer < threshold, 0, layer) * 255)
    layer = moved_along_lines(layer, radius, sigma, angles).float()
    images = pixels.float()
    red, green, blue = images.unbind(1)
    grey = (red * 0.299 + green * 0.587 + blue * 0.114).unsqueeze(1)
    whitened = images * kept + torch.maximum(images, grey * 1.5 + 127.5) * (1 - kept)
    return truncated(whitened + layer + layer.flip(2, 3))


def plasma_values(draws: Draws, height: int, width: int, row: Row) -> tuple[Tensor]:
    """Draw what a plasma map is made of: numbers in [-1, 1), (N, side^2 - 1)."""
    return (draws.uniform(plasma_side(height, width) ** 2 - 1).mul_(2).sub_(1),)


def plasma_side(height: int, width: int) -> int:
    """Return the side of the plasma map for an image: the power of two that holds its longer side."""
    return 1 << (max(height, width) - 1).bit_length()


def fog(pixels: Tensor, row: Row, values: Tensor) -> Tensor:
    """Add a plasma map; `row` is its strength and how fast it becomes smooth."""
    strength, decay = row
    height, width = pixels.shape[-2:]
    clouds = plasma(values, plasma_side(height, width), decay)[:, :height, :width].unsqueeze(1)
    images = to_unit(pixels)
    brightest = images.amax((1, 2, 3), keepdim=True)
    return truncated((images + clouds * strength) * (brightest * 255) / (brightest + strength))


def plasma(values: Tensor, side: int, decay: float) -> Tensor:
    """Return plasma maps (N, side, side) from 0 to 1, made by the diamond-square algorithm on a torus.

    Args:
        values: Numbers in [-1, 1], (N, side^2 - 1), in the order in which they are used.
        side: The side of a map, a power of two.
        decay: The factor by which the roughness falls from a level to the next; the amplitude is its square.
    """
    count, used, roughness, step = len(values), 0, ROUGHNESS, side
    clouds = torch.zeros(count, side, side, device=values.device)

    def rough(mean: Tensor) -> Tensor:
        nonlocal used
        size = mean.shape[1] * mean.shape[2]
        drawn = values[:, used : used + size].view(mean.shape)
        used += size
        return mean / 4 + drawn * roughness**2

    while step >= 2:
        half = step // 2
        corners = clouds[:, ::step, ::step]
        summed = corners + corners.roll(-1, 1)
        centres = rough(summed + summed.roll(-1, 2))
        clouds[:, half::step, half::step] = centres
        clouds[:, ::step, half::step] = rough(centres + centres.roll(1, 1) + corners + corners.roll(-1, 2))
        clouds[:, half::step, ::step] = rough(centres + centres.roll(1, 2) + corners + corners.roll(-1, 1))
        step, roughness = half, roughness / decay
    clouds -= clouds.amin((1, 2), keepdim=True)
    return clouds / clouds.amax((1, 2), keepdim=True)


def brightness(pixels: Tensor, row: Row) -> Tensor:
    """Raise the value of HSV by `row`, 1 being white; hue and saturation remain."""
    images = pixels.float()
    value = images.amax(1, keepdim=True)
    raised = (value + 255 * row[0]).clamp_(max=255)
    return truncated(torch.where(value > 0, images * raised / value.clamp(min=1), raised))
