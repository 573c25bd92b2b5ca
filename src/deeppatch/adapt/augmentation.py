"""Random views of a batch: jittered colours, an affine map, blur, mirroring and noise, one draw for all images."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F
from torchvision.transforms import InterpolationMode
from torchvision.transforms import functional as V

JITTERS = {
    "brightness": V.adjust_brightness,
    "contrast": V.adjust_contrast,
    "saturation": V.adjust_saturation,
    "hue": V.adjust_hue,
    "gamma": V.adjust_gamma,
}
RANGES = {
    "brightness": (0.6, 1.4),
    "contrast": (0.7, 1.3),
    "saturation": (0.5, 1.5),
    "hue": (-0.06, 0.06),
    "gamma": (0.7, 1.3),
}


@dataclass(frozen=True)
class Augmentation:
    """One random view.

    Args:
        jitters: Names of `JITTERS` with their amounts, in the order in which they are applied.
        angle: The angle of the turn in degrees.
        shift: The shift to the right and down, as shares of the size of the padded image.
        zoom: The factor of the enlargement.
        sigma: The standard deviation of the blur in pixels; None for no blur.
        mirror: Whether the view is mirrored.
        noise: The standard deviation of the noise.
        padding: How the border is continued outside the image, as `torch.nn.functional.pad` names it.
    """

    jitters: tuple[tuple[str, float], ...] = ()
    angle: float = 0.0
    shift: tuple[float, float] = (0.0, 0.0)
    zoom: float = 1.0
    sigma: float | None = None
    mirror: bool = False
    noise: float = 0.0
    padding: str = "replicate"

    def __call__(self, pixels: Tensor, generator: torch.Generator) -> Tensor:
        """Return the view of float pixels (N, 3, H, W) in [0, 1]; only the noise is drawn from the generator."""
        height, width = pixels.shape[-2:]
        views = pixels.clamp(0, 1)
        for name, amount in self.jitters:
            views = JITTERS[name](views, amount)
        views = F.pad(views, (width // 2, width // 2, height // 2, height // 2), mode=self.padding)
        shift = [round(self.shift[0] * views.shape[-1]), round(self.shift[1] * views.shape[-2])]
        views = V.affine(views, self.angle, shift, self.zoom, [0.0, 0.0], InterpolationMode.BILINEAR)
        if self.sigma is not None:
            views = V.gaussian_blur(views, [5, 5], [self.sigma, self.sigma])
        views = V.center_crop(views, [height, width])
        views = views.flip(-1) if self.mirror else views
        if self.noise:
            views = views + self.noise * torch.randn(views.shape, generator=generator).to(views.device)
        return views.clamp(0, 1)


def draw(generator: torch.Generator, *, padding: str = "replicate", blur_and_noise: bool = True) -> Augmentation:
    """Draw a view as in CoTTA (Q. Wang et al., CVPR 2022, arXiv 2203.13591), from a generator of the CPU."""

    def between(low: float, high: float) -> float:
        return low + (high - low) * torch.rand((), generator=generator).item()

    names = list(JITTERS)
    order = torch.randperm(len(names), generator=generator).tolist()
    return Augmentation(
        jitters=tuple((names[number], between(*RANGES[names[number]])) for number in order),
        angle=between(-15, 15),
        shift=(between(-1 / 16, 1 / 16), between(-1 / 16, 1 / 16)),
        zoom=between(0.9, 1.1),
        sigma=between(0.001, 0.5) if blur_and_noise else None,
        mirror=between(0, 1) < 0.5,
        noise=0.005 if blur_and_noise else 0.0,
        padding=padding,
    )
