"""The 19 common corruptions one image at a time, from their definitions: the oracles of the batched operations.

Each function takes one image, uint8 (H, W, 3), the constants of a severity and what is random, and returns uint8. They
use numpy, scipy, Pillow and matplotlib's HSV only, and loops where the definition has them.
"""

from __future__ import annotations

import io
import math

import numpy as np
from matplotlib.colors import hsv_to_rgb, rgb_to_hsv
from PIL import Image
from scipy import ndimage

EPSILON = 1e-3  # levels: what is a whole level in exact arithmetic stays one


def quantised(values: np.ndarray) -> np.ndarray:
    return np.floor(255 * np.clip(values, 0, 1) + EPSILON).astype(np.uint8)


def gaussian_noise(image, row, noise):
    return quantised(image / 255 + row[0] * noise)


def speckle_noise(image, row, noise):
    return quantised(image / 255 * (1 + row[0] * noise))


def impulse_noise(image, row, uniform):
    return np.where(uniform < row[0] / 2, 255, np.where(uniform < row[0], 0, image)).astype(np.uint8)


def shot_noise(image, row, generator):
    return quantised(generator.poisson(image / 255 * row[0]) / row[0])


def gaussian_blur(image, row):
    return quantised(ndimage.gaussian_filter(image / 255, (row[0], row[0], 0), mode="nearest", truncate=4))


def defocus_blur(image, row):
    radius, sigma = row
    half, taps = (8, 3) if radius <= 8 else (math.ceil(radius), 5)
    y, x = np.mgrid[-half : half + 1, -half : half + 1]
    kernel = (x**2 + y**2 <= radius**2).astype(float)
    kernel /= kernel.sum()
    line = np.exp(-((np.arange(taps) - taps // 2) ** 2) / (2 * sigma**2))
    line /= line.sum()
    kernel = ndimage.correlate(kernel, np.outer(line, line), mode="mirror")
    return quantised(np.stack([ndimage.correlate(image[..., c] / 255, kernel, mode="mirror") for c in range(3)], 2))


def glass_blur(image, row, moves):
    """`moves`: (passes, 2, H, W), how far each pixel looks to the right and down."""
    sigma, distance, passes = row[0], int(row[1]), int(row[2])
    height, width = image.shape[:2]
    seen = gaussian_blur(image, (sigma,))
    for turn in range(passes):
        for h in range(height - distance, distance, -1):
            for w in range(width - distance, distance, -1):
                right, down = moves[turn, :, h, w]
                seen[h, w] = seen[h + down, w + right]
    return gaussian_blur(seen, (sigma,))


def along_line(levels, radius, sigma, angle):
    """Motion blur of grey levels (H, W, C) as ImageMagick defines it, pixel by pixel and tap by tap."""
    height, width = levels.shape[:2]
    weights = [math.exp(-(tap**2) / (2 * sigma**2)) for tap in range(2 * math.ceil(radius) + 1)]
    summed = np.zeros(levels.shape)
    rows, columns = np.arange(height), np.arange(width)
    for tap, weight in enumerate(weights):
        down = math.ceil(tap * math.sin(math.radians(angle)) - 0.5)
        right = math.ceil(tap * math.cos(math.radians(angle)) - 0.5)
        moved = levels[np.clip(rows + down, 0, height - 1)][:, np.clip(columns + right, 0, width - 1)]
        summed += weight / sum(weights) * moved
    return np.floor(summed + EPSILON)


def motion_blur(image, row, angle):
    return along_line(image, row[0], row[1], float(angle)).astype(np.uint8)


def centre_zoom(values, factor):
    """Enlarge the centre of (H, W) or (H, W, C), each axis by itself."""
    cuts = [math.ceil(size / factor) for size in values.shape[:2]]
    tops = [(size - cut) // 2 for size, cut in zip(values.shape, cuts, strict=False)]
    cut = values[tops[0] : tops[0] + cuts[0], tops[1] : tops[1] + cuts[1]]
    large = ndimage.zoom(cut, (factor, factor) + (1,) * (values.ndim - 2), order=1)
    trims = [(big - size) // 2 for big, size in zip(large.shape, values.shape, strict=False)]
    return large[trims[0] : trims[0] + values.shape[0], trims[1] : trims[1] + values.shape[1]]


def zoom_blur(image, row):
    factors = np.arange(1, 1 + (row[0] - 0.5) * row[1], row[1])
    assert len(factors) == row[0]
    summed = image / 255
    for factor in factors:
        summed = summed + centre_zoom(image / 255, factor)
    return quantised(summed / (len(factors) + 1))


def snow(image, row, noise, angle):
    mean, deviation, factor, threshold, radius, sigma, kept = row
    layer = centre_zoom(mean + deviation * noise[..., 0].astype(float), factor)
    layer[layer < threshold] = 0
    layer = along_line(quantised(layer)[..., None], radius, sigma, float(angle)) / 255
    x = image / 255
    grey = x @ np.array([0.299, 0.587, 0.114])
    whitened = kept * x + (1 - kept) * np.maximum(x, (1.5 * grey + 0.5)[..., None])
    return quantised(whitened + layer + np.rot90(layer, 2))


def frost(image, row, window):
    """`window`: a part of a texture, uint8 (H, W, 3)."""
    return quantised((row[0] * image + row[1] * window.astype(float)) / 255)


def plasma(values, side, decay):
    """The diamond-square algorithm, cell by cell, taking numbers of [-1, 1] from `values` in order."""
    numbers, clouds = iter(values), np.zeros((side, side))
    step, wibble = side, 100.0
    while step >= 2:
        half = step // 2

        def fill(rows, columns, around):
            means = {}
            for h in rows:
                for w in columns:
                    means[h, w] = sum(clouds[(h + y) % side, (w + x) % side] for y, x in around) / 4
                    means[h, w] += wibble**2 * next(numbers)  # noqa: B023
            for place, mean in means.items():
                clouds[place] = mean

        on, off = range(0, side, step), range(half, side, step)
        square = [(half, 0), (-half, 0), (0, half), (0, -half)]
        fill(off, off, [(half, half), (half, -half), (-half, half), (-half, -half)])
        fill(on, off, square)
        fill(off, on, square)
        step, wibble = half, wibble / decay
    clouds -= clouds.min()
    return clouds / clouds.max()


def fog(image, row, values, plasma=plasma):
    strength, decay = row
    height, width = image.shape[:2]
    side = 1
    while side < max(height, width):
        side *= 2
    x = image / 255
    clouds = plasma(values, side, decay)[:height, :width, None]
    return quantised((x + strength * clouds) * x.max() / (x.max() + strength))


def brightness(image, row):
    hsv = rgb_to_hsv(image / 255)
    hsv[..., 2] = np.clip(hsv[..., 2] + row[0], 0, 1)
    return quantised(hsv_to_rgb(hsv))


def saturate(image, row):
    hsv = rgb_to_hsv(image / 255)
    hsv[..., 1] = np.clip(hsv[..., 1] * row[0] + row[1], 0, 1)
    return quantised(hsv_to_rgb(hsv))


def contrast(image, row):
    x = image / 255
    mean = x.mean((0, 1))
    return quantised((x - mean) * row[0] + mean)


def elastic_transform(image, row, moves, fields):
    """`moves`: (3, 2), x and y of the three points; `fields`: (2, H, W), dx and dy."""
    strength, sigma, _bound = row
    height, width = image.shape[:2]
    reach = min(height, width) // 3
    centre = np.array([width // 2, height // 2], float)
    points = centre + reach * np.array([[1, 1], [1, -1], [-1, -1]])
    homogeneous = np.column_stack([points + moves, np.ones(3)])
    inverse = np.linalg.solve(homogeneous, points)  # (x', y', 1) -> (x, y)
    rows, columns = np.mgrid[:height, :width]
    source = np.stack([columns, rows, np.ones_like(rows)], 2) @ inverse
    x = image / 255
    mapped = np.stack(
        [
            ndimage.map_coordinates(x[..., c], [source[..., 1], source[..., 0]], order=1, mode="mirror")
            for c in range(3)
        ],
        2,
    )
    if strength:
        right, down = (
            strength * ndimage.gaussian_filter(f.astype(float), sigma, mode="reflect", truncate=3) for f in fields
        )
        at = [rows + down, columns + right]
        mapped = np.stack([ndimage.map_coordinates(mapped[..., c], at, order=1, mode="reflect") for c in range(3)], 2)
    return quantised(mapped)


def pixelate(image, row):
    height, width = image.shape[:2]
    small = Image.fromarray(image).resize((int(width * row[0]), int(height * row[0])), Image.Resampling.BOX)
    return np.asarray(small.resize((width, height), Image.Resampling.BOX))


def jpeg_compression(image, row):
    file = io.BytesIO()
    Image.fromarray(image).save(file, "JPEG", quality=int(row[0]))
    return np.asarray(Image.open(file))


def spatter(image, row, noise):
    mean, deviation, sigma, threshold, strength, mud = row
    x = image / 255
    liquid = mean + deviation * noise[..., 0].astype(float)
    liquid = ndimage.gaussian_filter(liquid, sigma, mode="nearest", truncate=4)
    if mud:
        mask = ndimage.gaussian_filter((liquid > threshold).astype(float), strength, mode="nearest", truncate=4)
        mask[mask < 0.8] = 0
        return quantised(x * (1 - mask[..., None]) + mask[..., None] * np.array([63, 42, 20]) / 255)
    liquid[liquid < threshold] = 0
    levels = np.floor(255 * liquid + EPSILON).astype(int) % 256
    far = np.minimum(chamfer(canny(levels, 50, 150)), 20 * 65536)
    rim = ndimage.correlate(far, np.ones((3, 3), int), mode="mirror") // (9 * 65536)
    rim = equalised(rim)
    rim = ndimage.correlate(rim, np.array([[-2, -1, 0], [-1, 1, 1], [0, 1, 2]]), mode="mirror").clip(0, 255)
    rim = np.floor(ndimage.uniform_filter(rim.astype(float), 3, mode="mirror") + 0.5)
    shine = levels * rim
    shine = shine / shine.max() if shine.max() > 0 else shine
    return quantised(x + strength * shine[..., None] * np.array([175, 238, 238]) / 255)


def canny(levels, low, high):
    x = ndimage.sobel(levels, 1, mode="nearest")
    y = ndimage.sobel(levels, 0, mode="nearest")
    size = np.pad(abs(x) + abs(y), 1)
    height, width = levels.shape
    kept = np.zeros((height, width), bool)
    for h, w in np.ndindex(height, width):
        here, around = size[h + 1, w + 1], size[h : h + 3, w : w + 3]
        flat, steep = abs(x[h, w]) * 13573, abs(y[h, w]) << 15
        if steep < flat:
            largest = here > around[1, 0] and here >= around[1, 2]
        elif steep > flat + (abs(x[h, w]) << 16):
            largest = here > around[0, 1] and here >= around[2, 1]
        else:
            side = -1 if (x[h, w] ^ y[h, w]) < 0 else 1
            largest = here > around[0, 1 - side] and here > around[2, 1 + side]
        kept[h, w] = largest and here > low
    strong = kept & (size[1:-1, 1:-1] > high)
    labels, _count = ndimage.label(kept, np.ones((3, 3)))
    return kept & np.isin(labels, np.unique(labels[strong]))


def chamfer(edges):
    """Two passes over the image, forwards and backwards, with the steps of a 5 x 5 mask, in 1/65,536 pixel."""
    height, width = edges.shape
    far = np.where(edges, 0, 10**9)
    side, diagonal, knight = (round(step * 65536) for step in (1, 1.4, 2.1969))
    steps = {(0, -1): side, (-1, 0): side, (-1, -1): diagonal, (-1, 1): diagonal}
    steps |= {(-1, -2): knight, (-1, 2): knight, (-2, -1): knight, (-2, 1): knight}
    for sign, order in ((1, 1), (-1, -1)):
        for h in range(height)[::order]:
            for w in range(width)[::order]:
                for (down, right), step in steps.items():
                    y, x = h + sign * down, w + sign * right
                    if 0 <= y < height and 0 <= x < width:
                        far[h, w] = min(far[h, w], far[y, x] + step)
    return far


def equalised(levels):
    counts = np.bincount(levels.flatten(), minlength=256)
    first = np.flatnonzero(counts)[0]
    if counts[first] == levels.size:
        return np.full(levels.shape, first)
    counts = np.where(np.arange(256) > first, counts, 0)
    table = np.round(np.cumsum(counts) * 255 / counts.sum()).astype(int)
    return table[levels]
