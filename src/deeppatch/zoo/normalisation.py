"""Choose the mean and standard deviation that a network's input is normalised by."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from deeppatch.zoo.entries import PROTOCOL_STATS, Entry

# the origins of constants, in words
GIVEN = "as given"
FROM_FILE = "from the weights file"
OF_PROTOCOL = "HybridRepair's"
OF_ZOO = "of the zoo"
OF_LIBRARY = "of its library"
OF_TRAINING_IMAGES = "of the training images"
OF_IMAGENET = "ImageNet's"
NONE = "none"


@dataclass(frozen=True)
class Normalisation:
    """The mean and standard deviation of each channel, for pixels in [0, 1], and their origin in words."""

    mean: Sequence[float]
    std: Sequence[float]
    origin: str


def no_normalisation() -> Normalisation:
    """Return the constants that leave pixels as they are."""
    return Normalisation((0.0, 0.0, 0.0), (1.0, 1.0, 1.0), NONE)


def choose_normalisation(
    *,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
    saved: tuple[Sequence[float], Sequence[float]] | None = None,
    protocol: str | None = None,
    entry: Entry | None = None,
    library: tuple[Sequence[float], Sequence[float]] | None = None,
    otherwise: Callable[[], Normalisation] = no_normalisation,
) -> Normalisation:
    """Return the first constants that there are: given, saved with the weights, of a protocol, published,
    a library's, or others.

    Args:
        mean: The given mean; it replaces only the mean of the other constants.
        std: The given standard deviation, likewise.
        saved: Mean and standard deviation in the file of the weights (`deeppatch.zoo.weights.saved_normalisation`).
        protocol: The name of the data set whose constants of HybridRepair's protocol are used, if it has some.
        entry: The published weights of the network.
        library: The constants with which a library (timm, torchvision) feeds the network.
        otherwise: Returns the constants where there are no others, such as those of the training images
            (`deeppatch.pretraining.normalisation.of_training_images`); it is called only then.

    Returns:
        The constants; their origin is `GIVEN` only if both are given.

    >>> choose_normalisation(saved=((0.5,) * 3, (0.25,) * 3), protocol="svhn")
    Normalisation(mean=(0.5, 0.5, 0.5), std=(0.25, 0.25, 0.25), origin='from the weights file')
    """
    if mean is not None and std is not None:
        return Normalisation(mean, std, GIVEN)
    if saved is not None:
        found = Normalisation(*saved, FROM_FILE)
    elif protocol in PROTOCOL_STATS:
        found = Normalisation(*PROTOCOL_STATS[protocol], OF_PROTOCOL)
    elif entry is not None:
        found = Normalisation(entry.mean, entry.std, OF_ZOO)
    elif library is not None:
        found = Normalisation(*library, OF_LIBRARY)
    else:
        found = otherwise()
    return Normalisation(found.mean if mean is None else mean, found.std if std is None else std, found.origin)
