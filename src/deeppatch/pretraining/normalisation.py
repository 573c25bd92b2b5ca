"""Check mean and standard deviation of the normalisation, which are a common silent error with published weights."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from deeppatch.data import views
from deeppatch.data.files import Files, StoredPixels
from deeppatch.data.images import Images, to_float
from deeppatch.graph.hooks import eval_mode
from deeppatch.metrics import accuracy
from deeppatch.training import mean_loss, predict
from deeppatch.zoo.classifier import Classifier, device_of
from deeppatch.zoo.entries import COMMON_STATS, IMAGENET_STATS
from deeppatch.zoo.normalisation import OF_IMAGENET, OF_TRAINING_IMAGES, Normalisation

MARGIN_PERCENT = 2.0


@dataclass(frozen=True)
class NormalisationCheck:
    """The results of common normalisation constants on val.

    Args:
        published_percent: The published accuracy in percent.
        val: By name of the constants: accuracy in percent and mean cross entropy.
        best: The name of the constants with the lowest cross entropy.
        explains: Whether these reach the published accuracy, so that wrong constants explain the low accuracy.
    """

    published_percent: float
    val: dict[str, dict[str, float]]
    best: str
    explains: bool


def check_normalisation(
    model: Classifier, val: Images, *, measured: float, published: float, images: int, batch_size: int = 256
) -> NormalisationCheck | None:
    """Try common normalisation constants on val if the measured accuracy is far below the published one.

    Published networks were trained on val and are nearly always correct there, so the constants with the lowest
    cross entropy are chosen, not those with the highest accuracy.

    Args:
        model: The classifier with published weights; it is not changed.
        val: Images on the model's device.
        measured: Its accuracy in percent on clean test images.
        published: The published accuracy in percent.
        images: The number of test images; a difference of up to three standard errors is accepted.
        batch_size: The number of images in a batch.

    Returns:
        The results, or None if the accuracy is as published.
    """
    margin = max(MARGIN_PERCENT, noise := 3 * (published * (100 - published) / images) ** 0.5)
    if measured >= published - margin:
        return None
    view = views.clean(val, batch_size)
    device = device_of(model)
    results = {}
    with eval_mode(model):
        for name, (mean, std) in COMMON_STATS.items():
            candidate = Classifier(model.network, mean, std).to(device)
            share = accuracy(predict(candidate, view), view.labels)
            results[name] = {"accuracy_percent": 100 * share, "cross_entropy": mean_loss(candidate, view)}
    best = min(results, key=lambda name: results[name]["cross_entropy"])
    reached = results[best]["accuracy_percent"] >= published - MARGIN_PERCENT - noise
    return NormalisationCheck(published, results, best, reached)


def of_training_images(images: Images) -> Normalisation:
    """Return mean and standard deviation of each channel of training images, for pixels in [0, 1].

    For images that are decoded whenever they are read the constants of ImageNet are returned; of those that lie decoded
    on disk, the constants of 2,000 images at even distances.
    """
    if isinstance(images.pixels, Files):
        return Normalisation(*IMAGENET_STATS, OF_IMAGENET)
    chosen: slice | Tensor = slice(None)
    if isinstance(images.pixels, StoredPixels):
        chosen = torch.linspace(0, len(images) - 1, min(2000, len(images))).long()
    pixels = to_float(images.pixels[chosen])
    mean, std = (values.tolist() for values in (pixels.mean((0, 2, 3)), pixels.std((0, 2, 3))))
    return Normalisation(mean, std, OF_TRAINING_IMAGES)
