"""Spatial transformations: each image turned, shifted, sheared, zoomed, and its brightness and contrast changed."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from deeppatch.data.corruption_names import SEVERITIES
from deeppatch.data.corruptions.draws import Draws, fingerprints, keys

# the greatest value of each parameter: degrees, pixels of 32, shares, grey levels, share
BOUNDS = {"rotate": 30.0, "right": 3.0, "down": 3.0, "shear": 0.1, "zoom": 0.1, "brightness": 32.0, "contrast": 0.2}
SIDE = 32  # shifts are pixels of an image of this side, and as large a share of a larger one
RINGS = len(SEVERITIES)


class Spatial:
    """A random setting of seven parameters for each image; at severity i each is (i - 1)/5 to i/5 of its bound.

    Signs are drawn too. The parameters are those of Gao et al., Fuzz Testing based Data Augmentation to Improve
    Robustness of DNNs, ICSE 2020. Images are sampled once, bilinearly, and black outside.
    """

    draws = True
    by_image = True

    def __init__(self, severities: Sequence[int] = SEVERITIES) -> None:
        self.severities = tuple(severities)

    def __len__(self) -> int:
        return len(self.severities)

    @property
    def level_names(self) -> tuple[str, ...]:
        """The severities: spatial-1 and so on."""
        return tuple(f"spatial-{severity}" for severity in self.severities)

    def __call__(self, pixels: Tensor, levels: Tensor | int, generator: torch.Generator | None = None) -> Tensor:
        """Transform float pixels (N, 3, H, W) in [0, 1] at `levels`, an int64 tensor (N,) or one level for all."""
        if isinstance(levels, int):
            levels = torch.full((len(pixels),), levels, device=pixels.device)
        rings = torch.tensor([0, *self.severities], device=pixels.device)[levels.to(pixels.device)]
        seed = 0 if generator is None else generator.initial_seed()
        image_keys = keys(fingerprints((pixels * 255).round().to(torch.uint8)), seed, "spatial")
        return torch.where((rings == 0).view(-1, 1, 1, 1), pixels, transformed(pixels, settings(image_keys, rings)))


def settings(image_keys: Tensor, rings: Tensor) -> Tensor:
    """Draw the parameters of each image, float64 (N, 7) in the order of `BOUNDS`, for its ring (N,) from 1 to 5."""
    draws = Draws(image_keys)
    sizes = (draws.between(0, 1, len(BOUNDS)) + rings.unsqueeze(1) - 1) / RINGS
    signs = draws.integers(0, 2, len(BOUNDS)) * 2 - 1
    return sizes * signs * torch.tensor(list(BOUNDS.values()), dtype=torch.float64, device=sizes.device)


def transformed(pixels: Tensor, parameters: Tensor) -> Tensor:
    """Transform each image of float pixels (N, 3, H, W) in [0, 1] by its parameters, float64 (N, 7).

    A positive angle turns the image clockwise. An image whose parameters are all 0 is returned bit for bit.
    """
    height, width = pixels.shape[-2:]
    angle, right, down, shear, zoom, brightness, contrast = (each.view(-1, 1, 1) for each in parameters.unbind(1))
    unit = min(height, width) / SIDE
    x = torch.arange(width, device=pixels.device, dtype=torch.float64) - (width - 1) / 2
    y = torch.arange(height, device=pixels.device, dtype=torch.float64).unsqueeze(1) - (height - 1) / 2
    # backwards from the result: undo the shift, the shear, the zoom and the turn
    x, y = x - right * unit, y - down * unit
    x, y = (x - shear * y) / (1 + zoom), y / (1 + zoom)
    sine, cosine = angle.deg2rad().sin(), angle.deg2rad().cos()
    x, y = cosine * x + sine * y, cosine * y - sine * x
    sampled = _bilinear(pixels, x + (width - 1) / 2, y + (height - 1) / 2)
    brightness, contrast = (each.float().unsqueeze(1) for each in (brightness / 255, contrast))
    brighter = sampled + brightness
    grey = brighter.mean((1, 2, 3), keepdim=True, dtype=torch.float64).float()
    contrasted = torch.where(contrast == 0, brighter, grey + (brighter - grey) * (1 + contrast))
    return contrasted.clamp(0, 1)


def _bilinear(pixels: Tensor, x: Tensor, y: Tensor) -> Tensor:
    """Sample pixels (N, C, H, W) at columns x and rows y, (N, H, W); what is outside is black."""
    count, channels, height, width = pixels.shape
    left, top = x.floor(), y.floor()
    flat, sampled = pixels.flatten(2), torch.zeros_like(pixels)
    for row, column in ((0, 0), (0, 1), (1, 0), (1, 1)):
        at_x, at_y = left + column, top + row
        share = (1 - (x - at_x).abs()) * (1 - (y - at_y).abs())
        share = torch.where((at_x >= 0) & (at_x < width) & (at_y >= 0) & (at_y < height), share, 0).float()
        place = at_y.clamp(0, height - 1) * width + at_x.clamp(0, width - 1)
        read = flat.gather(2, place.long().view(count, 1, -1).expand(-1, channels, -1)).view(pixels.shape)
        sampled += read * share.unsqueeze(1)
    return sampled
