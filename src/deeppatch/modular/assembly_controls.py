"""What an assembled classifier is compared with: its base models, all of them together, and a network for the task."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import pandas as pd
import torch
from torch import Tensor, nn

from deeppatch.data import views
from deeppatch.data.dataset import Data
from deeppatch.data.images import Images
from deeppatch.graph.hooks import eval_mode
from deeppatch.metrics import accuracy
from deeppatch.modular.assembling import AssembledClassifier, SplitModel
from deeppatch.training import predict
from deeppatch.zoo.classifier import device_of

ASSEMBLED, BEST, MEAN, ENSEMBLE = "assembled", "best base model", "mean of base models", "base models together"


class Together(nn.Module):
    """Whole models as one classifier: of each class the mean probability that the models with this class give it.

    Where all models have the same classes, this is their ensemble.
    """

    def __init__(self, models: Sequence[SplitModel], classes: Sequence[str]) -> None:
        super().__init__()
        self.models = nn.ModuleList(each.model for each in models)
        self.columns = [
            [(index, label) for index, each in enumerate(models) for label in each.offers(wanted)] for wanted in classes
        ]

    def forward(self, pixels: Tensor) -> Tensor:
        """Map pixels (N, 3, H, W) in [0, 1] to mean probabilities (N, classes), which need not sum to one."""
        probabilities = [model(pixels).softmax(1) for model in self.models]
        means = [torch.stack([probabilities[m][:, label] for m, label in own]).mean(0) for own in self.columns]
        return torch.stack(means, 1)


class _Answers(nn.Module):
    """A model's logits of some of its classes, in another order."""

    def __init__(self, model: nn.Module, labels: Sequence[int]) -> None:
        super().__init__()
        self.model = model
        self.labels = list(labels)

    def forward(self, pixels: Tensor) -> Tensor:
        logits: Tensor = self.model(pixels)[:, self.labels]
        return logits


def compare_assembled(
    assembled: AssembledClassifier,
    models: Sequence[SplitModel],
    data: Data,
    others: Mapping[str, nn.Module] | None = None,
    *,
    batch_size: int = 256,
    amp: bool = False,
) -> pd.DataFrame:
    """Measure an assembled classifier beside its base models, on test.

    Args:
        assembled: What `assemble` returned.
        models: The models that it is assembled from.
        data: The data of the classifier; the best base model is chosen on val, everything is measured on test.
        others: Further classifiers of the same classes by name, such as one that was trained for them from scratch.
        batch_size: The number of images in a batch.
        amp: Whether networks run in bfloat16.

    Returns:
        A row for each network: `network`, `val_accuracy` and `accuracy` in percent. Base models are there where they
        have all classes: each, the one that is best on val, and their mean; all models together always.
    """
    data = data.to(device_of(models[0].model))
    whole = {
        each.name: _Answers(each.model, [each.offers(wanted)[0] for wanted in data.classes])
        for each in models
        if all(each.offers(wanted) for wanted in data.classes)
    }
    networks = {ASSEMBLED: assembled, ENSEMBLE: Together(models, data.classes), **(others or {}), **whole}

    def percent(network: nn.Module, images: Images) -> float:
        with eval_mode(network):
            view = views.clean(images, batch_size)
            return 100 * accuracy(predict(network, view, amp=amp, label="comparing"), view.labels)

    found = {name: (percent(each, data.val), percent(each, data.test)) for name, each in networks.items()}
    bases = {name: found.pop(name) for name in whole}
    if bases:
        found[BEST] = max(bases.values(), key=lambda each: each[0])
        found[MEAN] = (
            sum(val for val, _ in bases.values()) / len(bases),
            sum(test for _, test in bases.values()) / len(bases),
        )
    rows = [(name, *numbers) for name, numbers in {**found, **bases}.items()]
    return pd.DataFrame(rows, columns=["network", "val_accuracy", "accuracy"])
