"""The 19 common corruptions of Hendrycks and Dietterich (ICLR 2019) as operations on whole batches."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from deeppatch import runtime
from deeppatch.data.corruption_names import SEVERITIES
from deeppatch.data.corruptions import blurs, digital, elastic, frost, noise, spatter, weather
from deeppatch.data.corruptions.constants import Row, constants
from deeppatch.data.corruptions.draws import Draws, fingerprints, keys
from deeppatch.errors import UserError

SMALLEST = 8  # pixels of the shorter side
AT_ONCE = 1 << 18
AT_ONCE_IN_PARALLEL = {"cpu": 1 << 21, "cuda": 1 << 24}


@dataclass(frozen=True)
class Kind:
    """One type of corruption.

    Args:
        apply: Takes uint8 pixels (N, 3, H, W), the constants of a severity, and what `draw` returns; returns uint8
            pixels of the same shape.
        draw: Takes the streams of the images, height, width and constants; None where nothing is random.
    """

    apply: Callable[..., Tensor]
    draw: Callable[[Draws, int, int, Row], tuple[Tensor, ...]] | None = None


KINDS = {
    "gaussian_noise": Kind(noise.gaussian_noise, noise.normal_values),
    "shot_noise": Kind(noise.shot_noise, noise.random_bits),
    "impulse_noise": Kind(noise.impulse_noise, noise.uniform_values),
    "defocus_blur": Kind(blurs.defocus_blur),
    "glass_blur": Kind(blurs.glass_blur, blurs.moves),
    "motion_blur": Kind(blurs.motion_blur, blurs.line_angles),
    "zoom_blur": Kind(blurs.zoom_blur),
    "snow": Kind(weather.snow, weather.flakes),
    "frost": Kind(frost.frost, frost.windows),
    "fog": Kind(weather.fog, weather.plasma_values),
    "brightness": Kind(weather.brightness),
    "contrast": Kind(digital.contrast),
    "elastic_transform": Kind(elastic.elastic_transform, elastic.displacements),
    "pixelate": Kind(digital.pixelate),
    "jpeg_compression": Kind(digital.jpeg_compression),
    "speckle_noise": Kind(noise.speckle_noise, noise.normal_values),
    "gaussian_blur": Kind(blurs.gaussian_blur),
    "spatter": Kind(spatter.spatter, spatter.drops),
    "saturate": Kind(digital.saturate),
}


def degrade(pixels: Tensor, name: str, severity: int, seed: int = 0) -> Tensor:
    """Degrade uint8 pixels (N, 3, H, W) by a type at a severity from 1 to 5, and return uint8 pixels.

    Random numbers depend on the seed and on the bytes of each image, and not on the other images.

    >>> import torch
    >>> pixels = torch.arange(3 * 32 * 32).remainder(256).to(torch.uint8).view(1, 3, 32, 32)
    >>> degrade(pixels, "fog", 3).shape
    torch.Size([1, 3, 32, 32])
    >>> torch.equal(degrade(pixels.repeat(5, 1, 1, 1), "snow", 2)[3:4], degrade(pixels, "snow", 2))
    True
    """
    count, _, height, width = pixels.shape
    if min(height, width) < SMALLEST:
        raise UserError(f"images of {height}x{width} pixels are too small for {name}; use {SMALLEST} pixels or more")
    kind, row = KINDS[name], constants(name, height, width)[severity - 1]
    parts = pixels.split(max(1, _at_once(pixels.device) // pixels[0].numel())) if count else ()
    found = [torch.empty_like(pixels[:0])]
    with torch.inference_mode(False), torch.no_grad(), runtime.autocast(pixels.device, False):
        for part in parts:
            drawn: tuple[Tensor, ...] = ()
            if kind.draw:
                streams = Draws(keys(fingerprints(part), seed, name, severity))
                drawn = kind.draw(streams, height, width, row)
            found.append(kind.apply(part, row, *drawn))
    return torch.cat(found)


def _at_once(device: torch.device) -> int:
    """Return how many values are degraded at once: what stays in a cache, or what threads and GPUs need to be busy."""
    return (
        AT_ONCE
        if device.type == "cpu" and torch.get_num_threads() == 1
        else AT_ONCE_IN_PARALLEL.get(device.type, AT_ONCE)
    )


class CommonCorruption:
    """One type of common corruption at some severities; level i is `severities[i - 1]`.

    Pixels are rounded to 8 bits before and truncated to 8 bits after, as in the published data sets. Random numbers
    depend on the generator's initial seed and on the bytes of each image.
    """

    by_image = True

    def __init__(self, name: str, severities: Sequence[int] = SEVERITIES) -> None:
        self.name, self.severities = name, tuple(severities)
        self.draws = KINDS[name].draw is not None

    def __len__(self) -> int:
        return len(self.severities)

    @property
    def level_names(self) -> tuple[str, ...]:
        """Name and severity: fog-1 and so on."""
        return tuple(f"{self.name}-{severity}" for severity in self.severities)

    def __call__(self, pixels: Tensor, levels: Tensor | int, generator: torch.Generator | None = None) -> Tensor:
        """Degrade float pixels (N, 3, H, W) in [0, 1] at `levels`, an int64 tensor (N,) or one level for all."""
        seed = 0 if generator is None else generator.initial_seed()
        if isinstance(levels, int):
            return self._degrade(pixels, levels, seed) if levels else pixels
        degraded = pixels.clone()
        for level in levels.unique().tolist():
            if level:
                chosen = (levels == level).nonzero().squeeze(1)
                degraded[chosen] = self._degrade(pixels[chosen], level, seed)
        return degraded

    def _degrade(self, pixels: Tensor, level: int, seed: int) -> Tensor:
        whole = (pixels * 255).round().to(torch.uint8)
        return degrade(whole, self.name, self.severities[level - 1], seed).to(pixels.dtype).div_(255)
