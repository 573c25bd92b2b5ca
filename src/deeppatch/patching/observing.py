"""What a router is fitted to: features of the calibration images, and which networks classify them correctly."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from deeppatch import runtime
from deeppatch.data import views
from deeppatch.data.corruptions import Corruption, families
from deeppatch.data.images import Images
from deeppatch.patching.names import AVERAGE, READ_ANSWERS
from deeppatch.patching.router import FEATURES, features_of
from deeppatch.patching.switch import Switch, averaged
from deeppatch.patching.switched import SwitchedModel
from deeppatch.progress import track

DRAWS = 4  # degraded versions of each image where levels are many


@dataclass(frozen=True)
class Observations:
    """What the networks of a switched model make of a view.

    Args:
        features: Of each network beside the original one: the router's features (rows, F), float64.
        right: Which networks are correct, bool (rows, networks), the original one first; for a router that averages,
            the others are those whose answer is averaged with the original one's.
    """

    features: tuple[np.ndarray, ...]
    right: np.ndarray


@torch.inference_mode()
def router_features(
    switched: SwitchedModel,
    router: str,
    images: Images,
    corruption: Corruption,
    *,
    batch_size: int = 256,
    amp: bool = False,
) -> Tensor:
    """Return a router's features of images, clean and at each level, float64 ((levels + 1) * images, features)."""
    view = views.append(images, corruption, batch_size)
    rows = []
    for pixels, _labels in track(view, len(view), "calibrating"):
        with runtime.autocast(pixels.device, amp):
            maps = switched.run_stem(pixels)[1]
        rows.append(FEATURES[router](maps).double())
    return torch.cat(rows)


@torch.inference_mode()
def observe(switched: Switch, router: str, view: views.View, *, amp: bool = False) -> Observations:
    """Run all networks on a view, and return the features for a kind of router, and who is right."""
    features: list[list[Tensor]] = [[] for _ in switched.names[1:]]
    right: list[Tensor] = []
    for pixels, labels in track(view, len(view), "calibrating"):
        with runtime.autocast(pixels.device, amp):
            crossing, maps = switched.look(pixels)
            original, *others = switched.run_all(crossing)
        answered = [original.logits, *(each.logits for each in others)]
        if router == AVERAGE:
            answered[1:] = [averaged(original.logits, each) for each in answered[1:]]
        right.append(torch.stack([logits.argmax(1) == labels for logits in answered], 1))
        for rows, each, other in zip(features, maps, others, strict=True):
            rows.append(features_of(router, each, (original, other) if router in READ_ANSWERS else ()))
    found = tuple(torch.cat(rows).cpu().numpy() for rows in features)
    return Observations(found, torch.cat(right).cpu().numpy())


def calibration_view(images: Images, corruption: Corruption, batch_size: int, router: str) -> views.View:
    """Return what a router is fitted to: every image clean, then degraded.

    Where levels are few, every image is read at each. Where they are many, it is read at one of them for the routers
    `probe` and `flips`, and at four for the others, which learn from the images that tell networks apart.
    """
    if len(corruption) <= views.MANY or router in ("probe", "flips"):
        return views.append(images, corruption, batch_size)
    draws = [views.random_level_view(images, corruption, batch_size, seed) for seed in range(DRAWS)]
    first = draws[0]
    levels = torch.cat([0 * first.levels, *(draw.levels for draw in draws)])
    return replace(first, index=torch.cat([first.index, *(draw.index for draw in draws)]), levels=levels)


def conditions(levels: np.ndarray, corruption: Corruption) -> np.ndarray:
    """Return what was done to images at some levels (rows,): 0 for nothing, else the level, or its type where many."""
    if len(corruption) <= views.MANY:
        return levels
    last = np.cumsum(families(corruption))
    return np.where(levels == 0, 0, 1 + np.searchsorted(last, levels))


def mixed_rows(image: np.ndarray, degraded: np.ndarray, seed: int) -> np.ndarray:
    """Draw the rows of a mixed stream: one for each image, clean with probability 1/2, else one of its degraded ones.

    Args:
        image: The index of the image of each row (rows,).
        degraded: Whether it is degraded (rows,).
        seed: The seed of the draw.

    Returns:
        One row number for each image, in the order of the images.

    >>> mixed_rows(np.array([0, 1, 0, 1]), np.array([False, False, True, True]), 1).shape
    (2,)
    """
    draw = runtime.numpy_generator(seed, "mixed calibration")
    order = np.argsort(image, kind="stable")
    rows = []
    for of_image in np.split(order, np.flatnonzero(np.diff(image[order])) + 1):
        wanted = of_image[degraded[of_image] == (draw.random() < 0.5)]
        rows.append(draw.choice(wanted if len(wanted) else of_image))
    return np.array(rows)
