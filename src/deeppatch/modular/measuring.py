"""Measure the modules of a network: the kernels that they keep, their cost, and the accuracy of all as one model."""

from __future__ import annotations

from dataclasses import dataclass

import pandas as pd
import torch
from torch import Tensor, nn

from deeppatch.data import views
from deeppatch.data.dataset import Data
from deeppatch.graph.hooks import eval_mode
from deeppatch.metrics import accuracy
from deeppatch.modular.extract import multiply_adds
from deeppatch.modular.layers import Layer, layers_to_split
from deeppatch.modular.modules import Modules, as_classifier
from deeppatch.training import predict
from deeppatch.zoo.classifier import device_of


@dataclass(frozen=True)
class ModuleMeasurements:
    """Measurements of the modules of a classifier with C classes; shares and accuracies are in [0, 1].

    Args:
        classes: The names of the classes.
        layers: The layers of kernels of the classifier, which is the strong model.
        kept: For each layer, how many of its kernels each module keeps, int64 (C,).
        shares: The share of kernels that each module keeps, counted in each convolution, (C,).
        dissimilarity: One minus the Jaccard index of the kernels of each pair of modules, (C, C).
        multiply_adds: The multiply-adds of the strong model, per image.
        module_multiply_adds: Those of each module without its head.
        strong_accuracy: The accuracy of the strong model on test.
        composed_accuracy: The accuracy of all modules as one classifier on test.
        val_accuracy: The accuracy of the strong model on val.
        test_images: The number of test images.
    """

    classes: tuple[str, ...]
    layers: list[Layer]
    kept: list[Tensor]
    shares: Tensor
    dissimilarity: Tensor
    multiply_adds: int
    module_multiply_adds: list[int]
    strong_accuracy: float
    composed_accuracy: float
    val_accuracy: float
    test_images: int

    @property
    def kernels(self) -> int:
        """The number of kernels of the strong model in the layers, counted in each convolution."""
        return sum(layer.kernels * len(layer.convs) for layer in self.layers)

    @property
    def mean_share(self) -> float:
        """The mean share of kernels that a module keeps."""
        return self.shares.mean().item()

    @property
    def mean_dissimilarity(self) -> float:
        """The mean dissimilarity of two different modules; 0 if there is only one."""
        count = len(self.classes)
        return self.dissimilarity.sum().item() / max(1, count * (count - 1))

    @property
    def multiply_adds_percent(self) -> float:
        """The mean multiply-adds of a module, in percent of those of the strong model."""
        return 100 * sum(self.module_multiply_adds) / len(self.module_multiply_adds) / self.multiply_adds

    def layer_shares(self) -> Tensor:
        """Return the share of the kernels of each layer that each module keeps, (C, layers)."""
        return torch.stack([count / layer.kernels for count, layer in zip(self.kept, self.layers, strict=True)], 1)

    def table(self) -> pd.DataFrame:
        """Return a row for each module: its class, the kernels that it keeps in each layer, and its cost."""
        return pd.DataFrame(
            {
                "class": self.classes,
                **{layer.name: count.numpy() for layer, count in zip(self.layers, self.kept, strict=True)},
                "kernels_kept_percent": 100 * self.shares.numpy(),
                "multiply_adds": self.module_multiply_adds,
                "multiply_adds_percent": [100 * cost / self.multiply_adds for cost in self.module_multiply_adds],
            }
        )


def accuracy_on_test(model: nn.Module, data: Data, *, batch_size: int = 256) -> float:
    """Return the accuracy of a classifier on the part `test` of some data, in [0, 1]."""
    test = views.clean(data.to(device_of(model)).test, batch_size)
    with eval_mode(model):
        return accuracy(predict(model, test, label="network that was split"), test.labels)


def measure_modules(
    model: nn.Module, modules: Modules, data: Data, *, batch_size: int = 256, amp: bool = False
) -> ModuleMeasurements:
    """Measure the modules of a classifier, and compare all of them as one classifier with it.

    Args:
        model: The classifier that was split, the strong model; it is not changed.
        modules: Its modules, which `split_into_modules` returned.
        data: The data; the parts `test` and `val` are read.
        batch_size: The number of images in a batch.
        amp: Whether networks run in bfloat16.

    Returns:
        The kernels that modules keep, their multiply-adds, and the accuracies of both classifiers.

    Raises:
        StaleArtifact: When another classifier was split.

    >>> from deeppatch.data.images import Images
    >>> from deeppatch.modular.gradient_search import GradientSearch
    >>> from deeppatch.modular.splitting import split_into_modules
    >>> images = Images(torch.randint(0, 256, (12, 3, 8, 8), dtype=torch.uint8), torch.arange(12) % 2)
    >>> data = Data(images, images, images, ("cat", "dog"))
    >>> network = nn.Sequential(nn.Conv2d(3, 6, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(6, 2))
    >>> modules = split_into_modules(network, data, method=GradientSearch(epochs=2))
    >>> found = measure_modules(network, modules, data)
    >>> found.kernels, found.test_images, 0 < found.mean_share <= 1
    (6, 12, True)
    >>> list(found.table().columns)
    ['class', '0', 'kernels_kept_percent', 'multiply_adds', 'multiply_adds_percent']
    """
    strong = as_classifier(model)
    data = data.to(device_of(strong))
    test, val = views.clean(data.test, batch_size), views.clean(data.val, batch_size)
    composed = modules.composed(strong, data.example)
    with eval_mode(strong):
        one = strong.normalize(data.example[:1])
        layers = layers_to_split(strong.network, one)
        whole = multiply_adds(strong.network, one)
        found = {
            label: accuracy(predict(network, view, amp=amp, label=label), view.labels)
            for label, network, view in (
                ("strong model", strong, test),
                ("composed modules", composed, test),
                ("strong model, val", strong, val),
            )
        }
    return ModuleMeasurements(
        classes=tuple(data.classes),
        layers=layers,
        kept=[modules.kept[layer.name].sum(1) for layer in layers],
        shares=modules.shares(),
        dissimilarity=modules.dissimilarity(),
        multiply_adds=whole,
        module_multiply_adds=[multiply_adds(network, one) for network in composed.networks()],
        strong_accuracy=found["strong model"],
        composed_accuracy=found["composed modules"],
        val_accuracy=found["strong model, val"],
        test_images=len(test.labels),
    )
