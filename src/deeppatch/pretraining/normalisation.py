"""Check mean and standard deviation: wrong ones are the most common silent error in this field."""

from __future__ import annotations

from dataclasses import dataclass

from deeppatch.data import views
from deeppatch.data.files import Files
from deeppatch.data.images import Images, to_float
from deeppatch.evaluation import in_eval_mode
from deeppatch.metrics import accuracy
from deeppatch.training import mean_loss, predict
from deeppatch.zoo.classifier import Classifier, device_of
from deeppatch.zoo.entries import COMMON_STATS, IMAGENET_STATS

MARGIN_PERCENT = 2.0


@dataclass(frozen=True)
class NormalisationCheck:
    """What common constants give on val: accuracy in percent and mean cross entropy, by name.

    `best` has the lowest cross entropy. It `explains` a low accuracy where it reaches the published one.
    """

    published_percent: float
    val: dict[str, dict[str, float]]
    best: str
    explains: bool


def check_normalisation(
    model: Classifier, val: Images, *, measured: float, published: float, images: int, batch_size: int = 256
) -> NormalisationCheck | None:
    """Try common normalisation constants on val where an accuracy is far under the published one, else return None.

    Published networks have seen val in training and are nearly always correct there, so the constants with the lowest
    cross entropy are named, not those with the highest accuracy.

    Args:
        model: the classifier with published weights; it is left as it was.
        val: images on the model's device.
        measured: its accuracy in percent on clean test images.
        published: the published accuracy in percent.
        images: the number of test images; three standard errors of an accuracy on them are no reason to doubt.
        batch_size: images a batch.
    """
    margin = max(MARGIN_PERCENT, noise := 3 * (published * (100 - published) / images) ** 0.5)
    if measured >= published - margin:
        return None
    view = views.clean(val, batch_size)
    device = device_of(model)
    tried = {}
    with in_eval_mode(model):
        for name, (mean, std) in COMMON_STATS.items():
            other = Classifier(model.network, mean, std).to(device)
            share = accuracy(predict(other, view), view.labels)
            tried[name] = {"accuracy_percent": 100 * share, "cross_entropy": mean_loss(other, view)}
    best = min(tried, key=lambda name: tried[name]["cross_entropy"])
    reached = tried[best]["accuracy_percent"] >= published - MARGIN_PERCENT - noise
    return NormalisationCheck(published, tried, best, reached)


def normalisation_of(images: Images) -> tuple[list[float], list[float]]:
    """Return mean and standard deviation of each channel of images, in the unit of pixels in [0, 1].

    Those of images that stay on disk are taken to be ImageNet's.
    """
    if isinstance(images.pixels, Files):
        mean, std = IMAGENET_STATS
        return list(mean), list(std)
    pixels = to_float(images.pixels)
    return pixels.mean((0, 2, 3)).tolist(), pixels.std((0, 2, 3)).tolist()
