"""Find the features that are most influential for each class: those that are most often among the strongest."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import pandas as pd
import torch
from torch import Tensor, nn

from deeppatch.cache import ContentCache
from deeppatch.data.dataset import Data
from deeppatch.decomposition.features import Features, LastLayer
from deeppatch.errors import UserError
from deeppatch.progress import info


@dataclass(frozen=True)
class Influence:
    """The influence of D features of the last layer on C classes, all float64, in [0, 1] for features from a ReLU.

    Args:
        k: The number of features per class.
        frequency: The share of a class's images for which the feature is among the k strongest, (C, D).
        share: The mean share of the feature in the sum of an image's features, in magnitude, (C, D).
        mass: The mean share of an image's k strongest features in this sum, (C,).

    >>> frequency = torch.tensor([[0.9, 0.1, 0.5], [0.0, 1.0, 1.0]], dtype=torch.float64)
    >>> share = torch.tensor([[0.6, 0.2, 0.2], [0.1, 0.3, 0.6]], dtype=torch.float64)
    >>> Influence(2, frequency, share, torch.tensor([0.8, 0.9])).indices()
    tensor([[0, 2],
            [2, 1]])
    """

    k: int
    frequency: Tensor
    share: Tensor
    mass: Tensor

    def indices(self) -> Tensor:
        """Return the k most frequent features of each class, int64 (C, k), the most frequent first.

        Ties are broken by share, larger first, and then by index.
        """
        by_share = self.share.sort(dim=1, descending=True, stable=True).indices
        frequency = self.frequency.gather(1, by_share)
        order = frequency.sort(dim=1, descending=True, stable=True).indices
        return by_share.gather(1, order)[:, : self.k]

    def table(self, classes: Sequence[str]) -> pd.DataFrame:
        """Return a row for each class and feature, in this order.

        Args:
            classes: The names of the C classes.

        Returns:
            The columns `class`, `feature` (its index), `frequency`, `mean_share`, and `rank`: from 1 for the most
            frequent of the k features of the class to k, and 0 for features that are not among these.

        >>> found = Influence(1, torch.tensor([[0.2, 0.8]]), torch.tensor([[0.4, 0.6]]), torch.tensor([0.7]))
        >>> found.table(["cat"])["rank"].tolist()
        [0, 1]
        """
        count, width = self.frequency.shape
        rank = torch.zeros(count, width, dtype=torch.long)
        rank.scatter_(1, self.indices(), torch.arange(1, self.k + 1).expand(count, -1))
        return pd.DataFrame(
            {
                "class": [name for name in classes for _ in range(width)],
                "feature": list(range(width)) * count,
                "frequency": self.frequency.flatten(),
                "mean_share": self.share.flatten(),
                "rank": rank.flatten(),
            }
        )


def influence(
    model: nn.Module,
    data: Data,
    k: int = 5,
    *,
    batch_size: int = 256,
    amp: bool = False,
    cache: ContentCache | None = None,
) -> Influence:
    """Find the features of the last layer that are most often among the k strongest in the images of each class.

    Args:
        model: A classifier of float pixels (N, 3, H, W) in [0, 1] that ends in a linear layer.
        data: The data; the parts `train` and `val` are read.
        k: The number of features per class, 1 to the number D of inputs of the last layer.
        batch_size: The number of images in a batch.
        amp: Whether forward passes run in bfloat16.
        cache: Where features are stored, so that they are computed once.

    Returns:
        The influence of each feature; `.indices()` returns the k features of each class.

    Raises:
        UserError: When the network does not end in a linear layer, k is out of range, or a class has no image.

    Badola et al., "Decomposing the Deep: Finding Class Specific Filters in Deep CNNs", 2023.

    >>> from deeppatch.data.images import Images
    >>> pixels = torch.randint(0, 256, (12, 3, 4, 4), dtype=torch.uint8, generator=torch.Generator().manual_seed(1))
    >>> images = Images(pixels, torch.arange(12) % 2)
    >>> network = nn.Sequential(nn.Conv2d(3, 6, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(6, 2))
    >>> found = influence(network, Data(images, images, images, ("cat", "dog")), k=3)
    >>> found.indices().shape
    torch.Size([2, 3])
    """
    last = LastLayer(model, data, batch_size, amp, cache)
    return measure(last.training_features(), len(data.classes), [k])[0]


def measure(features: Features, classes: int, ks: Sequence[int]) -> list[Influence]:
    """Measure influence for each number k of strongest features (Badola et al., 2023: class-influential features).

    The features of every image are scaled to sum 1 and ranked, ties by index. Those of a network without a ReLU before
    its last layer can be negative: then their magnitudes sum to 1, which is logged. Every class must have an image, and
    every k must be 1 to D; UserError otherwise.
    """
    if negative := (features.values < 0).double().mean().item():
        info(
            f"{100 * negative:.0f} % of the features are negative, because no ReLU comes before the last layer: the "
            "strongest are those of the largest values, and shares are of the sum of magnitudes"
        )
    width = features.values.shape[1]
    for k in ks:
        if not 1 <= k <= width:
            raise UserError(f"k = {k}: the last layer reads {width} features; give 1 to {width}")
    frequency = torch.zeros(len(ks), classes, width, dtype=torch.float64)
    share = torch.zeros(classes, width, dtype=torch.float64)
    mass = torch.zeros(len(ks), classes, dtype=torch.float64)
    for label in range(classes):
        responses = features.values[features.labels == label].double()
        if not len(responses):
            raise UserError(f"class {label} has no training image, so that its features are unknown")
        parts = responses / responses.abs().sum(1, keepdim=True).clamp_min(torch.finfo(torch.float64).tiny)
        share[label] = parts.mean(0)
        ranked = parts.sort(dim=1, descending=True, stable=True)
        for row, k in enumerate(ks):
            counts = torch.bincount(ranked.indices[:, :k].flatten(), minlength=width)
            frequency[row, label] = counts.double() / len(parts)
            mass[row, label] = ranked.values[:, :k].sum(1).mean()
    return [Influence(k, frequency[row], share, mass[row]) for row, k in enumerate(ks)]
