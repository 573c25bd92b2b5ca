"""AugMix views of whole batches as tensor operations on the device; each image has a chain of its own."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

DEPTH = 3
SEVERITY = 3.0
GENTLEST = 0.1


@dataclass(frozen=True)
class Chains:
    """What is done to M images, on the CPU: up to DEPTH operations each, one after the other, then a mixture.

    `operations` int64 (M, DEPTH): places in OPERATIONS, or -1 where a chain has ended; `levels` (M, DEPTH) in [0.1, 3];
    `signs` (M, DEPTH), -1 or 1; `shares` (M,): how much of the mixture is the chain's result.
    """

    operations: Tensor
    levels: Tensor
    signs: Tensor
    shares: Tensor


def drawn_chains(count: int, draw: torch.Generator) -> Chains:
    """Draw chains of 1 to 3 uniform operations at uniform levels, and uniform shares (AugMix of width 1, severity 3).

    Hendrycks et al., ICLR 2020, with the settings of HybridRepair.
    """
    depth = torch.randint(1, DEPTH + 1, (count, 1), generator=draw)
    operations = torch.randint(len(OPERATIONS), (count, DEPTH), generator=draw)
    levels = GENTLEST + (SEVERITY - GENTLEST) * torch.rand(count, DEPTH, generator=draw)
    signs = 2.0 * torch.randint(2, (count, DEPTH), generator=draw) - 1
    shares = torch.rand(count, generator=draw)
    ended = torch.arange(DEPTH) >= depth
    return Chains(operations.masked_fill(ended, -1), levels, signs, shares)


def views(pixels: Tensor, count: int, draw: torch.Generator) -> Tensor:
    """Return each of uint8 pixels (N, 3, H, W) and `count` views of it, float32 (N, count + 1, 3, H, W) in [0, 1].

    The image itself is view 0. `draw` is a generator on the CPU; the result does not depend on the device but for
    rounding.
    """
    chains = drawn_chains(len(pixels) * count, draw)
    copies = pixels.unsqueeze(1).expand(-1, count, -1, -1, -1)
    chained = applied(copies.reshape(-1, *pixels.shape[1:]), chains).view(copies.shape)
    shares = chains.shares.to(pixels.device, non_blocking=True).view(len(pixels), count, 1, 1, 1)
    found = torch.empty(len(pixels), count + 1, *pixels.shape[1:], device=pixels.device)
    clean = torch.div(pixels, 255, out=found[:, 0])
    torch.lerp(clean.unsqueeze(1), chained.float().div_(255), shares, out=found[:, 1:])
    return found


def applied(pixels: Tensor, chains: Chains) -> Tensor:
    """Return uint8 pixels (M, 3, H, W) after the operations of their chains, rounded after each as images are."""
    pixels = pixels.clone()
    for step in range(DEPTH):
        levels = chains.levels[:, step] * chains.signs[:, step]
        for operate, kinds in BATCHED.items():
            rows = torch.isin(chains.operations[:, step], kinds).nonzero().flatten()  # on the CPU: nothing waits
            if len(rows):
                which = rows.to(pixels.device, non_blocking=True)
                pixels[which] = operate(pixels[which], chains.operations[rows, step], levels[rows])
    return pixels


def autocontrast(pixels: Tensor, _operations: Tensor, _levels: Tensor) -> Tensor:
    """Stretch each channel of (M, 3, H, W) to [0, 255]; one that is all of a value stays."""
    flat = pixels.flatten(2)
    least, most = flat.amin(2, keepdim=True).double(), flat.amax(2, keepdim=True).double()
    scale = torch.full_like(most, 255) / (most - least)  # a number over a tensor would be rounded twice
    table = torch.arange(256, device=pixels.device) * scale - least * scale
    return _looked_up(pixels, table, most > least)


def equalize(pixels: Tensor, _operations: Tensor, _levels: Tensor) -> Tensor:
    """Flatten the histogram of each channel of (M, 3, H, W), as PIL does."""
    flat = pixels.flatten(2)
    rows = torch.arange(flat.shape[0] * flat.shape[1], device=pixels.device).view(*flat.shape[:2], 1)
    counts = torch.bincount((rows * 256 + flat).flatten(), minlength=256 * rows.numel()).view(*flat.shape[:2], 256)
    brightest = counts.gather(2, flat.amax(2, keepdim=True).long())
    step = (flat.shape[2] - brightest) // 255
    darker = counts.cumsum(2) - counts
    return _looked_up(pixels, (step // 2 + darker) // step.clamp(min=1), step > 0)


def posterize(pixels: Tensor, _operations: Tensor, levels: Tensor) -> Tensor:
    """Keep the highest bits of each value: 4, or 3 at levels from 2.5."""
    dropped = 4 + (0.4 * levels.abs()).int()
    return pixels & (256 - 2**dropped).to(pixels).view(-1, 1, 1, 1)


def solarize(pixels: Tensor, _operations: Tensor, levels: Tensor) -> Tensor:
    """Invert the values from a threshold on: 256 at level 0, 25.6 less for each level."""
    threshold = (256 - (25.6 * levels.abs()).int()).clamp(max=255).to(pixels).view(-1, 1, 1, 1)
    return torch.where(pixels >= threshold, 255 - pixels, pixels)


def warp(pixels: Tensor, operations: Tensor, levels: Tensor) -> Tensor:
    """Rotate, shear or shift each image: one bilinear interpolation for all, black where there is nothing to see."""
    height, width = pixels.shape[-2:]
    source = torch.zeros(len(levels), 2, 3)  # output to input coordinates, in pixels from the top left corner
    source[:, 0, 0] = source[:, 1, 1] = 1
    for name, fill in WARPS.items():
        rows = operations == OPERATIONS.index(name)
        source[rows] = fill(source[rows], levels[rows], height, width)
    x, y = (torch.arange(size, device=pixels.device) + 0.5 for size in (width, height))
    grid = torch.empty(len(levels), height, width, 2, device=pixels.device)
    for axis, size in enumerate((width, height)):
        # to [-1, 1] from edge to edge
        across, down, shift = (2 / size * source[:, axis]).to(pixels.device, non_blocking=True).unbind(1)
        by_row = (y * down.unsqueeze(1) + shift.unsqueeze(1) - 1).unsqueeze(2)
        torch.add(by_row, (x * across.unsqueeze(1)).unsqueeze(1), out=grid[..., axis])
    found = F.grid_sample(pixels.float(), grid, mode="bilinear", padding_mode="border", align_corners=False)
    seen = (grid[..., 0].abs() < 1) & (grid[..., 1].abs() < 1)
    # cut off as PIL does, with room for the rounding of what should be whole
    return found.add_(1e-3).mul_(seen.unsqueeze(1)).to(torch.uint8)


def _looked_up(pixels: Tensor, table: Tensor, changed: Tensor) -> Tensor:
    """Return `table` (M, 3, 256), cut to whole numbers, at the values of pixels (M, 3, H, W), where `changed`."""
    identity = torch.arange(256, device=pixels.device, dtype=torch.uint8)
    table = torch.where(changed, table.clamp(0, 255).to(torch.uint8), identity)
    return table.gather(2, pixels.flatten(2).long()).view(pixels.shape)


def _rotation(source: Tensor, levels: Tensor, height: int, width: int) -> Tensor:
    """Rotate about the centre, counter-clockwise, by 3 degrees for each level, whole ones."""
    angle = torch.deg2rad((3 * levels).trunc())
    cosine, sine = angle.cos(), angle.sin()
    x, y = width / 2, height / 2
    rows = [cosine, -sine, x - cosine * x + sine * y, sine, cosine, y - sine * x - cosine * y]
    return torch.stack(rows, 1).view_as(source)


def _entry(row: int, column: int, amount: Callable[[Tensor, int, int], Tensor]) -> Callable[..., Tensor]:
    """Return the function that sets one entry of the matrices to `amount(levels, height, width)`."""

    def fill(source: Tensor, levels: Tensor, height: int, width: int) -> Tensor:
        source[:, row, column] = amount(levels, height, width)
        return source

    return fill


# a tenth of 0.3 for each level; a tenth of a third of the image, whole pixels (1.07 for 32, as published)
WARPS: dict[str, Callable[[Tensor, Tensor, int, int], Tensor]] = {
    "rotate": _rotation,
    "shear_x": _entry(0, 1, lambda levels, height, width: 0.03 * levels),
    "shear_y": _entry(1, 0, lambda levels, height, width: 0.03 * levels),
    "translate_x": _entry(0, 2, lambda levels, height, width: (levels * width / 30).trunc()),
    "translate_y": _entry(1, 2, lambda levels, height, width: (levels * height / 30).trunc()),
}
POINTWISE = {"autocontrast": autocontrast, "equalize": equalize, "posterize": posterize, "solarize": solarize}
OPERATIONS = (*POINTWISE, *WARPS)
# each function with the operations that it does at once
BATCHED = {operate: torch.tensor([OPERATIONS.index(name)]) for name, operate in POINTWISE.items()} | {
    warp: torch.tensor([OPERATIONS.index(name) for name in WARPS])
}
