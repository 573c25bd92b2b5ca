"""Test whether the features of a class are essential: replace them, or all others, by noise."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import pandas as pd
import torch
from torch import Tensor, nn

from deeppatch.decomposition.features import Features
from deeppatch.decomposition.index_sets import membership
from deeppatch.runtime import generator


@dataclass(frozen=True)
class Essential:
    """Numbers of images of each class, int64: all `images` and those that the `whole` layer classifies correctly (C,).

    `noise_at` and `noise_elsewhere` (draws, C): those that are classified correctly under each draw of the noise.
    """

    images: Tensor
    whole: Tensor
    noise_at: Tensor
    noise_elsewhere: Tensor

    def by_class(self, classes: Sequence[str]) -> pd.DataFrame:
        """Return one row for each class: images, correct ones without noise, and mean and deviation over draws."""
        at, elsewhere = self.noise_at.double(), self.noise_elsewhere.double()
        return pd.DataFrame(
            {
                "class": classes,
                "images": self.images.tolist(),
                "whole": self.whole.tolist(),
                "noise_at": at.mean(0).tolist(),
                "noise_at_spread": at.std(0, correction=0).tolist(),
                "noise_elsewhere": elsewhere.mean(0).tolist(),
                "noise_elsewhere_spread": elsewhere.std(0, correction=0).tolist(),
            }
        )

    def percentages(self) -> dict[str, float]:
        """Return the accuracy over all classes in percent: without noise, and mean and deviation over draws."""
        images = self.images.sum()
        percentages_by_set = {"whole": (100 * self.whole.sum() / images).item()}
        for name, counts in {"noise_at": self.noise_at, "noise_elsewhere": self.noise_elsewhere}.items():
            percent = 100 * counts.sum(1).double() / images
            percentages_by_set |= {name: percent.mean().item(), f"{name}_spread": percent.std(correction=0).item()}
        return percentages_by_set


@torch.no_grad()
def essential(features: Features, head: nn.Linear, indices: Tensor, *, draws: int, seed: int) -> Essential:
    """Count correct images with the whole head: without noise, with N(0, 1) noise at a class's features, and elsewhere.

    The noise is at (or outside) the `indices` (C, k) of the image's own class (Badola et al., 2023).
    """
    classes = len(indices)
    values, labels = features.values, features.labels
    own = membership(indices.to(values.device), values.shape[1])[labels]

    def correct(disturbed: Tensor) -> Tensor:
        return torch.bincount(labels[head(disturbed).argmax(1) == labels], minlength=classes)

    at, elsewhere = [], []
    for draw in range(draws):
        noise = torch.randn(values.shape, generator=generator(seed, "essential", draw)).to(values.device)
        at.append(correct(torch.where(own, noise, values)))
        elsewhere.append(correct(torch.where(own, values, noise)))
    images = torch.bincount(labels, minlength=classes)
    return Essential(images, correct(values), torch.stack(at), torch.stack(elsewhere))
