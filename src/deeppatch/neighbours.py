"""Robust accuracy: which of many degraded versions of each image a classifier classifies correctly."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pandas as pd
import torch
from torch import Tensor, nn

from deeppatch.data import corruptions, views
from deeppatch.data.corruptions import Corruption, depends_on_batch
from deeppatch.data.images import Images
from deeppatch.errors import UserError, check_positive
from deeppatch.graph.hooks import eval_mode
from deeppatch.training import predict
from deeppatch.zoo.classifier import device_of

NEIGHBOURS = 50  # of each image, as in DeepPatch
SHARE, ALL = "right neighbours", "images with all right"
OVERALL = "overall"


def right_neighbours(
    model: nn.Module,
    images: Images,
    corruption: Corruption,
    neighbours: int = NEIGHBOURS,
    *,
    batch_size: int = 256,
    amp: bool = False,
    label: str = "neighbours",
) -> Tensor:
    """Count the right ones among degraded versions of each image, int64 (levels, images).

    A neighbour is the image with its own random numbers at one level; all networks see the same neighbours.

    Raises:
        UserError: When the corruption draws no random numbers for each image, so that all neighbours are alike.
    """
    check_positive(neighbours=neighbours, batch_size=batch_size)
    if not corruption.draws or depends_on_batch(corruption):
        raise UserError("neighbours: this degradation has one version of an image at each level; take spatial")
    index = torch.arange(len(images), device=images.labels.device)
    rows = []
    with eval_mode(model):
        for level in range(1, len(corruption) + 1):
            right = torch.zeros_like(index)
            for number in range(neighbours):
                at_level = torch.full_like(index, level)
                view = views.View(images, corruption, index, at_level, batch_size, purpose=f"neighbour {number}")
                right += predict(model, view, amp=amp, label=f"{label}, level {level}, {number + 1}") == view.labels
            rows.append(right)
    return torch.stack(rows)


def robust_accuracy(
    models: Mapping[str, nn.Module],
    images: Images,
    corruption: Any,
    neighbours: int = NEIGHBOURS,
    *,
    batch_size: int = 256,
    amp: bool = False,
    seed: int = 2021,
) -> pd.DataFrame:
    """Measure classifiers on many degraded versions of each image.

    Args:
        models: Classifiers of pixels (N, 3, H, W) in [0, 1], by name.
        images: Labelled images; they are moved to each model's device.
        corruption: What `deeppatch.corruption` takes or returns; it draws random numbers for each image, as `spatial`.
        neighbours: The number of versions of each image at each level.
        batch_size: The number of images in a batch.
        amp: Whether networks run in bfloat16.
        seed: The seed of degradations that are made here.

    Returns:
        Two rows for each model, in percent: the share of right neighbours, in the mean over images, and the share of
        images of which all are right; at each level, and `overall`, over the neighbours at all levels.

    Raises:
        UserError: When all neighbours of an image would be alike.

    >>> from torch import nn
    >>> network = nn.Sequential(nn.Flatten(), nn.Linear(3 * 8 * 8, 4))
    >>> images = Images(torch.randint(0, 256, (6, 3, 8, 8), dtype=torch.uint8), torch.arange(6) % 4)
    >>> table = robust_accuracy({"mine": network}, images, "spatial", 3)
    >>> list(table.columns)[:3], list(table.columns)[-1], len(table)
    (['network', 'measure', 'spatial-1'], 'overall', 2)
    """
    degrade = corruptions.corruption(corruption, seed=seed)
    rows = []
    for name, model in models.items():
        own = images.to(device_of(model))
        right = right_neighbours(model, own, degrade, neighbours, batch_size=batch_size, amp=amp, label=name)
        share = 100 * right.double() / neighbours
        everywhere = 100 * (right == neighbours).double()
        for measure, found, overall in ((SHARE, share, share.mean(0)), (ALL, everywhere, everywhere.amin(0))):
            levels = dict(zip(degrade.level_names, found.mean(1).tolist(), strict=True))
            rows.append({"network": name, "measure": measure, **levels, OVERALL: overall.mean().item()})
    return pd.DataFrame(rows)
