"""AugMix views of batches as tensor operations on the device, with a separate chain for each image."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

DEPTH = 3
MAX_LEVEL = 3.0
MIN_LEVEL = 0.1


@dataclass(frozen=True)
class Chains:
    """The augmentations of M images, on the CPU: chains of up to DEPTH operations, then a mixture with the image.

    Args:
        operations: Indices in OPERATIONS, -1 after the end of a chain, int64 (M, DEPTH).
        levels: The levels of the operations, (M, DEPTH) in [0.1, 3].
        signs: The signs of the levels, -1 or 1, (M, DEPTH).
        shares: The share of the chain's result in the mixture, (M,).
    """

    operations: Tensor
    levels: Tensor
    signs: Tensor
    shares: Tensor


def draw_chains(count: int, generator: torch.Generator) -> Chains:
    """Draw chains of 1 to 3 uniform operations at uniform levels, and uniform shares (AugMix of width 1, severity 3).

    Hendrycks et al., ICLR 2020, with the settings of HybridRepair.
    """
    depth = torch.randint(1, DEPTH + 1, (count, 1), generator=generator)
    operations = torch.randint(len(OPERATIONS), (count, DEPTH), generator=generator)
    levels = MIN_LEVEL + (MAX_LEVEL - MIN_LEVEL) * torch.rand(count, DEPTH, generator=generator)
    signs = 2.0 * torch.randint(2, (count, DEPTH), generator=generator) - 1
    shares = torch.rand(count, generator=generator)
    ended = torch.arange(DEPTH) >= depth
    return Chains(operations.masked_fill(ended, -1), levels, signs, shares)


def views(pixels: Tensor, count: int, generator: torch.Generator, *, width: int = 1) -> Tensor:
    """Return uint8 pixels (N, 3, H, W) with `count` views of each, float32 (N, count + 1, 3, H, W) in [0, 1].

    The image itself is view 0. A view mixes it with a mean of `width` chains, whose weights are drawn uniformly from
    the simplex (Dirichlet(1, ..., 1)). The generator is on the CPU; up to rounding the result does not depend on the
    device.
    """
    chains = draw_chains(len(pixels) * count * width, generator)
    copies = pixels.unsqueeze(1).expand(-1, count * width, -1, -1, -1)
    augmented = apply_chains(copies.reshape(-1, *pixels.shape[1:]), chains).view(copies.shape)
    shares = chains.shares.view(-1, width)[:, 0].to(pixels.device, non_blocking=True).view(len(pixels), count, 1, 1, 1)
    if width > 1:
        augmented = _mean_of_chains(augmented.view(len(pixels), count, width, *pixels.shape[1:]), generator)
    result = torch.empty(len(pixels), count + 1, *pixels.shape[1:], device=pixels.device)
    clean = torch.div(pixels, 255, out=result[:, 0])
    torch.lerp(clean.unsqueeze(1), augmented.float().div_(255), shares, out=result[:, 1:])
    return result


def _mean_of_chains(augmented: Tensor, generator: torch.Generator) -> Tensor:
    """Return the means (N, K, 3, H, W) of chains' results (N, K, W, 3, H, W) with weights drawn from the simplex."""
    exponential = -torch.rand(augmented.shape[:3], generator=generator, dtype=torch.float64).neg().log1p()
    weights = (exponential / exponential.sum(2, keepdim=True)).float().to(augmented.device, non_blocking=True)
    return (augmented * weights.view(*weights.shape, 1, 1, 1)).sum(2)


def apply_chains(pixels: Tensor, chains: Chains) -> Tensor:
    """Apply the operations of the chains to uint8 pixels (M, 3, H, W), with rounding to uint8 after each."""
    for step in range(DEPTH if len(pixels) else 0):
        levels = chains.levels[:, step] * chains.signs[:, step]
        results, order = [], []
        for operate, kinds in BATCHED.items():
            rows = (
                torch.isin(chains.operations[:, step], kinds).nonzero().flatten()
            )  # on the CPU, without synchronisation
            if len(rows):
                own = pixels.index_select(0, rows.to(pixels.device, non_blocking=True))
                results.append(operate(own, chains.operations[rows, step], levels[rows]))
                order.append(rows)
        # restored to order by gathering, which is many times as fast as scattering
        pixels = torch.cat(results).index_select(0, torch.cat(order).argsort().to(pixels.device, non_blocking=True))
    return pixels


def leave_unchanged(pixels: Tensor, _operations: Tensor, _levels: Tensor) -> Tensor:
    """Return images whose chain has ended unchanged."""
    return pixels


def autocontrast(pixels: Tensor, _operations: Tensor, _levels: Tensor) -> Tensor:
    """Stretch each channel of (M, 3, H, W) to [0, 255]; constant channels are unchanged."""
    flat = pixels.flatten(2)
    least, most = flat.amin(2, keepdim=True).double(), flat.amax(2, keepdim=True).double()
    scale = torch.full_like(most, 255) / (most - least)  # dividing a Python number by a tensor would round twice
    table = torch.arange(256, device=pixels.device) * scale - least * scale
    return _apply_tables(_table_indices(pixels), table, most > least)


def equalize(pixels: Tensor, _operations: Tensor, _levels: Tensor) -> Tensor:
    """Flatten the histogram of each channel of (M, 3, H, W), as PIL does."""
    flat = pixels.flatten(2)
    values = _table_indices(pixels)
    counts = torch.bincount(values.flatten(), minlength=256 * len(flat) * flat.shape[1]).view(*flat.shape[:2], 256)
    counts = counts.int()
    brightest_count = counts.gather(2, flat.amax(2, keepdim=True).long())
    step = (flat.shape[2] - brightest_count) // 255
    darker = counts.cumsum(2, dtype=torch.int32) - counts
    return _apply_tables(values, (step // 2 + darker) // step.clamp(min=1), step > 0)


def posterize(pixels: Tensor, _operations: Tensor, levels: Tensor) -> Tensor:
    """Keep the highest bits of each value: 4, or 3 at levels from 2.5."""
    dropped = 4 + (0.4 * levels.abs()).int()
    return pixels & (256 - 2**dropped).to(pixels).view(-1, 1, 1, 1)


def solarize(pixels: Tensor, _operations: Tensor, levels: Tensor) -> Tensor:
    """Invert the values from a threshold on: 256 at level 0, 25.6 less for each level."""
    threshold = (256 - (25.6 * levels.abs()).int()).clamp(max=255).to(pixels).view(-1, 1, 1, 1)
    # 255 - x is x with all bits flipped
    return (pixels >= threshold).view(torch.uint8).mul_(255).bitwise_xor_(pixels)


def warp(pixels: Tensor, operations: Tensor, levels: Tensor) -> Tensor:
    """Rotate or shear each image with one bilinear interpolation for all; the background is black."""
    height, width = pixels.shape[-2:]
    source = _inverse_transforms(operations, levels, height, width)
    x, y = (torch.arange(size, device=pixels.device) + 0.5 for size in (width, height))
    grid = torch.empty(len(levels), height, width, 2, device=pixels.device)
    for axis, size in enumerate((width, height)):
        # to [-1, 1] from edge to edge
        across, down, offset = (2 / size * source[:, axis]).to(pixels.device, non_blocking=True).unbind(1)
        by_row = (y * down.unsqueeze(1) + offset.unsqueeze(1) - 1).unsqueeze(2)
        torch.add(by_row, (x * across.unsqueeze(1)).unsqueeze(1), out=grid[..., axis])
    # truncated as by PIL, with a small offset against rounding errors of whole numbers
    warped = F.grid_sample(pixels.float().add_(1e-3), grid, padding_mode="border", align_corners=False)
    inside_image = (grid[..., 0].abs() < 1) & (grid[..., 1].abs() < 1)
    return warped.to(torch.uint8).mul_(inside_image.unsqueeze(1))


def shift(pixels: Tensor, operations: Tensor, levels: Tensor) -> Tensor:
    """Translate each image by whole pixels, a thirtieth of its size per level (1.07 for 32), on a black background."""
    count, channels, height, width = pixels.shape
    margin = int(MAX_LEVEL * max(height, width) / 30)
    padded = F.pad(pixels, (margin,) * 4)
    image, plane, line, _ = padded.stride()
    across = operations == OPERATIONS.index("translate_x")
    right, down = (
        torch.where(own, (levels * size / 30).int(), 0) for own, size in ((across, width), (~across, height))
    )
    corner = torch.arange(count) * image + (margin + down) * line + margin + right
    inside = (
        plane * torch.arange(channels).view(-1, 1, 1) + line * torch.arange(height).view(-1, 1) + torch.arange(width)
    )
    corner, inside = (tensor.int().to(pixels.device, non_blocking=True) for tensor in (corner, inside.flatten()))
    return padded.flatten().index_select(0, (corner.unsqueeze(1) + inside).flatten()).view(pixels.shape)


def _table_indices(pixels: Tensor) -> Tensor:
    """Return the index of the value of each pixel (M, 3, H, W) in concatenated tables of 256 entries per channel."""
    rows = torch.arange(len(pixels) * pixels.shape[1], device=pixels.device, dtype=torch.int32) * 256
    return pixels.int().add_(rows.view(len(pixels), pixels.shape[1], 1, 1))


def _apply_tables(values: Tensor, table: Tensor, changed: Tensor) -> Tensor:
    """Look up values (M, 3, H, W) in tables (M, 3, 256), truncated to whole numbers, for the `changed` channels."""
    identity = torch.arange(256, device=values.device, dtype=torch.uint8)
    table = torch.where(changed, table.clamp(0, 255).to(torch.uint8), identity)
    return table.flatten().index_select(0, values.flatten()).view(values.shape)


def _inverse_transforms(operations: Tensor, levels: Tensor, height: int, width: int) -> Tensor:
    """Return the affine maps from output to input pixels, in pixels from the top left corner, (M, 2, 3).

    Rotations are counter-clockwise about the centre, by whole degrees, 3 per level; shears are about the
    corner, by 0.03 per level.
    """
    kind = {name: operations == OPERATIONS.index(name) for name in OPERATION_GROUPS[warp]}
    angle = torch.deg2rad(torch.where(kind["rotate"], (3 * levels).trunc(), 0))
    cosine, sine = angle.cos(), angle.sin()
    x, y = width / 2, height / 2
    rows = [cosine, -sine, x - cosine * x + sine * y, sine, cosine, y - sine * x - cosine * y]
    source = torch.stack(rows, 1).view(-1, 2, 3)
    source[:, 0, 1] += torch.where(kind["shear_x"], 0.03 * levels, 0)
    source[:, 1, 0] += torch.where(kind["shear_y"], 0.03 * levels, 0)
    return source


# each function with the operations that it performs
OPERATION_GROUPS: dict[Callable[[Tensor, Tensor, Tensor], Tensor], tuple[str, ...]] = {
    autocontrast: ("autocontrast",), equalize: ("equalize",), posterize: ("posterize",), solarize: ("solarize",),
    warp: ("rotate", "shear_x", "shear_y"), shift: ("translate_x", "translate_y"),
}  # fmt: skip
OPERATIONS = tuple(name for names in OPERATION_GROUPS.values() for name in names)
BATCHED = {
    operate: torch.tensor([OPERATIONS.index(name) for name in names]) for operate, names in OPERATION_GROUPS.items()
}
BATCHED[leave_unchanged] = torch.tensor([-1])
