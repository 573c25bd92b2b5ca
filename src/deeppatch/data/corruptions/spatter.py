"""Spatter: drops of water with a bright rim, or mud, on grey levels, uint8 (N, 3, H, W)."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from deeppatch.data.corruptions.constants import Row
from deeppatch.data.corruptions.draws import Draws
from deeppatch.data.corruptions.filters import EPSILON, gaussian, truncated

MUD, WATER = (63.0, 42.0, 20.0), (175.0, 238.0, 238.0)
LEAST_MUD = 0.8
WEAK, STRONG = 50, 150  # thresholds of gradients
TANGENT, FIXED = 13573, 15  # tan 22.5 degrees in fixed point
# steps of distances in units of 1/65,536 pixel: to the side, diagonally, and as a knight moves
STEPS = {(0, 1): 65536, (1, 1): 91750, (1, 2): 143976}
FARTHEST = 20  # pixels
EMBOSS = ((-2, -1, 0), (-1, 1, 1), (0, 1, 2))


def drops(draws: Draws, height: int, width: int, row: Row) -> tuple[Tensor]:
    """Draw a normal value for each pixel, (N, 1, H, W)."""
    return (draws.normal(1, height, width),)


def spatter(pixels: Tensor, row: Row, noise: Tensor) -> Tensor:
    """Put drops on the image.

    `row`: mean and standard deviation of the noise that drops are made of, the standard deviation of its blur, the
    threshold above which there is a drop, the strength of water or the standard deviation of the blur of mud, and
    whether it is mud (1) or water (0).
    """
    mean, deviation, sigma, threshold, strength, mud = row
    liquid = gaussian((noise * deviation).add_(mean), sigma)
    if mud:
        mask = gaussian((liquid > threshold).float(), strength)
        mask = torch.where(mask < LEAST_MUD, 0, mask)
        colour = torch.tensor(MUD, device=pixels.device).view(1, 3, 1, 1)
        return truncated(pixels.float() * (1 - mask) + mask * colour)
    liquid = torch.where(liquid < threshold, 0, liquid)
    levels = (liquid * 255 + EPSILON).int().bitwise_and_(255)
    shine = (levels * _rims(levels)).float()
    brightest = shine.amax((2, 3), keepdim=True)
    shine = torch.where(brightest > 0, shine / brightest.clamp(min=1), 0)
    colour = torch.tensor(WATER, device=pixels.device).view(1, 3, 1, 1)
    return truncated(pixels.float() + shine * strength * colour)


def _rims(levels: Tensor) -> Tensor:
    """Return how drops shine, int32 (N, 1, H, W), from their thickness in grey levels, int32 (N, 1, H, W)."""
    far = distances(edges(levels)).clamp_(max=FARTHEST << 16)
    mean = _window_sum(far) // (9 << 16)
    height, width = levels.shape[-2:]
    table = equalised(mean)
    padded = _reflected(table)
    embossed = torch.zeros_like(table)
    for top, weights in enumerate(EMBOSS):
        for left, weight in enumerate(weights):
            if weight:
                embossed += padded[..., top : top + height, left : left + width] * weight
    return (_window_sum(embossed.clamp_(0, 255)) * 2 + 9) // 18  # the mean of 9, rounded


def _shifted(padded: Tensor, down: int, right: int, border: int) -> Tensor:
    height, width = (size - 2 * border for size in padded.shape[-2:])
    return padded[..., border + down : border + down + height, border + right : border + right + width]


def _reflected(values: Tensor) -> Tensor:
    """Pad whole numbers by one pixel, reflected without the border."""
    return F.pad(values.float(), (1, 1, 1, 1), mode="reflect").int()


def _window_sum(values: Tensor) -> Tensor:
    """Sum whole numbers over windows of 3 x 3, borders reflected without repeating the edge."""
    top, bottom = values[..., 1:2, :], values[..., -2:-1, :]
    rows = torch.cat([top, values, bottom], 2)
    rows = rows[..., :-2, :] + rows[..., 1:-1, :] + rows[..., 2:, :]
    columns = torch.cat([rows[..., 1:2], rows, rows[..., -2:-1]], 3)
    return columns[..., :-2] + columns[..., 1:-1] + columns[..., 2:]


def edges(levels: Tensor) -> Tensor:
    """Find edges of grey levels, int32 (N, 1, H, W), by Canny's algorithm as OpenCV has it; bool (N, 1, H, W)."""
    padded = F.pad(levels.float(), (1, 1, 1, 1), mode="replicate").int()
    near = {(down, right): _shifted(padded, down, right, 1) for down in (-1, 0, 1) for right in (-1, 0, 1)}
    x = near[-1, 1] + 2 * near[0, 1] + near[1, 1] - near[-1, -1] - 2 * near[0, -1] - near[1, -1]
    y = near[1, -1] + 2 * near[1, 0] + near[1, 1] - near[-1, -1] - 2 * near[-1, 0] - near[-1, 1]
    size = x.abs() + y.abs()
    around = F.pad(size, (1, 1, 1, 1))
    steep, flat = y.abs() << FIXED, x.abs() * TANGENT
    beside = (size > _shifted(around, 0, -1, 1)) & (size >= _shifted(around, 0, 1, 1))
    above = (size > _shifted(around, -1, 0, 1)) & (size >= _shifted(around, 1, 0, 1))
    falling = (size > _shifted(around, -1, -1, 1)) & (size > _shifted(around, 1, 1, 1))
    rising = (size > _shifted(around, -1, 1, 1)) & (size > _shifted(around, 1, -1, 1))
    diagonal = torch.where((x ^ y) < 0, rising, falling)
    largest = torch.where(steep < flat, beside, torch.where(steep > flat + (x.abs() << 16), above, diagonal))
    weak = (largest & (size > WEAK)).float()
    found = weak * (size > STRONG)
    while True:
        grown = F.max_pool2d(found, 3, 1, 1) * weak
        if torch.equal(grown, found):
            return found > 0
        found = grown


def distances(edge: Tensor) -> Tensor:
    """Return the chamfer distance to the nearest edge, int32 (N, 1, H, W) in 1/65,536 pixel, right up to 20 pixels."""
    beyond = (FARTHEST + 1) << 16
    found = torch.where(edge, 0, beyond).int()
    moves: dict[tuple[int, int], int] = {}
    for (short, long), step in STEPS.items():
        for down, right in {(short, long), (long, short)}:
            moves |= {(y, x): step for y in {down, -down} for x in {right, -right}}
    for _round in range(FARTHEST):
        padded = F.pad(found, (2, 2, 2, 2), value=beyond)
        nearer = found
        for (down, right), step in moves.items():
            nearer = torch.minimum(nearer, _shifted(padded, down, right, 2) + step)
        if torch.equal(nearer, found):
            break
        found = nearer
    return found


def equalised(values: Tensor) -> Tensor:
    """Equalise the histograms of whole numbers from 0 to 20, int32 (N, 1, H, W), over 0 to 255 as OpenCV does."""
    bins = torch.arange(FARTHEST + 1, device=values.device)
    counts = (values.flatten(1).unsqueeze(2) == bins).sum(1)
    total = values[0].numel()
    lowest = (counts > 0).int().argmax(1, keepdim=True)
    first = counts.gather(1, lowest)
    later = torch.where(bins > lowest, counts, 0).cumsum(1)
    table = (later * 255.0 / (total - first).clamp(min=1)).round()
    table = torch.where(first == total, lowest, table).int()
    return table.gather(1, values.flatten(1).long()).view(values.shape)
