"""Elastic transform: an affine map and a smooth random displacement, of grey levels, uint8 (N, 3, H, W)."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from deeppatch.data.corruptions.constants import Row
from deeppatch.data.corruptions.draws import Draws
from deeppatch.data.corruptions.filters import by_axis, gaussian_matrix, matrix, truncated


def displacements(draws: Draws, height: int, width: int, row: Row) -> tuple[Tensor, Tensor]:
    """Draw how three points move, x and y in pixels, (N, 3, 2), and numbers in [-1, 1) for dx and dy, (N, 2, H, W)."""
    return draws.between(-row[2], row[2], 3, 2), draws.uniform(2, height, width).mul_(2).sub_(1)


def elastic_transform(pixels: Tensor, row: Row, moves: Tensor, fields: Tensor) -> Tensor:
    """Move three points, and everything with them; then displace each pixel.

    `row` is the strength of the displacement, the standard deviation of its filter, and how far points move at most.
    """
    strength, sigma, _farthest = row
    height, width = pixels.shape[-2:]
    images = _mapped(pixels.float(), moves)
    if not strength:
        return truncated(images)
    radius = int(3 * sigma + 0.5)
    rows, columns = (matrix(gaussian_matrix(size, sigma, radius, "symmetric"), images) for size in (height, width))
    right, down = (by_axis(fields, rows, columns) * strength).unbind(1)
    x = right + torch.arange(width, device=pixels.device)
    y = down + torch.arange(height, device=pixels.device).unsqueeze(1)
    # -1 and 1 are the outer edges of the outer pixels
    grid = torch.stack([(x * 2 + 1) / width - 1, (y * 2 + 1) / height - 1], 3)
    return truncated(F.grid_sample(images, grid, "bilinear", "reflection", align_corners=False))


def _mapped(images: Tensor, moves: Tensor) -> Tensor:
    """Map images affinely, so that three points (x, y) around the centre move by `moves`, float64 (N, 3, 2)."""
    height, width = images.shape[-2:]
    device = images.device
    centre = torch.tensor([width // 2, height // 2], dtype=torch.float64, device=device)
    reach = min(height, width) // 3
    points = centre + reach * torch.tensor([[1, 1], [1, -1], [-1, -1]], dtype=torch.float64, device=device)
    moved = points + moves
    # the inverse map by Cramer's rule: from moved points back to the original ones
    (ax, ay), (bx, by) = ((moved[:, index] - moved[:, 1]).unbind(1) for index in (0, 2))
    area = ax * by - ay * bx
    one, two = points[0] - points[1], points[2] - points[1]
    along_x = (by.unsqueeze(1) * one - ay.unsqueeze(1) * two) / area.unsqueeze(1)
    along_y = (ax.unsqueeze(1) * two - bx.unsqueeze(1) * one) / area.unsqueeze(1)
    start = points[1] - moved[:, 1, :1] * along_x - moved[:, 1, 1:] * along_y
    x = torch.arange(width, device=device, dtype=torch.float64)
    y = torch.arange(height, device=device, dtype=torch.float64).unsqueeze(1)
    sources = [
        start[:, axis, None, None] + along_x[:, axis, None, None] * x + along_y[:, axis, None, None] * y
        for axis in (0, 1)
    ]
    # -1 and 1 are the centres of the outer pixels
    scaled = [source * (2 / (size - 1)) - 1 for source, size in zip(sources, (width, height), strict=True)]
    grid = torch.stack(scaled, 3).float()
    return F.grid_sample(images, grid, "bilinear", "reflection", align_corners=True)
