"""Are a class's features essential: replace them by noise, or all the others, and count what is still right."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from deeppatch.decompose.features import Features
from deeppatch.decompose.index_sets import membership
from deeppatch.runtime import generator


@dataclass(frozen=True)
class Essential:
    """Right answers for the images of each class, int64: `images` and `whole` (C,), under noise (draws, C)."""

    images: Tensor
    whole: Tensor
    noise_at: Tensor
    noise_elsewhere: Tensor


@torch.no_grad()
def essential(features: Features, head: nn.Linear, indices: Tensor, *, draws: int, seed: int) -> Essential:
    """Count with the whole `head`: untouched, with N(0, 1) noise at a class's own features, and at all others.

    An image is disturbed at (or outside) the `indices` (C, k) of its own class. Badola et al., 2023.
    """
    classes = len(indices)
    values, labels = features.values, features.labels
    own = membership(indices.to(values.device), values.shape[1])[labels]

    def right(disturbed: Tensor) -> Tensor:
        return torch.bincount(labels[head(disturbed).argmax(1) == labels], minlength=classes)

    at, elsewhere = [], []
    for draw in range(draws):
        noise = torch.randn(values.shape, generator=generator(seed, "essential", draw)).to(values.device)
        at.append(right(torch.where(own, noise, values)))
        elsewhere.append(right(torch.where(own, values, noise)))
    images = torch.bincount(labels, minlength=classes)
    return Essential(images, right(values), torch.stack(at), torch.stack(elsewhere))
