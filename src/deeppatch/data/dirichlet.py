"""Draw training images with unequal numbers of the classes, so that models of one data set know different classes."""

from __future__ import annotations

import torch

from deeppatch.data.images import Images
from deeppatch.errors import check_positive
from deeppatch.runtime import generator, numpy_generator


def dirichlet_subset(images: Images, seed: int, *, alpha: float = 0.5, at_least: int = 10) -> Images:
    """Return a random part of each class, whose size is that of a Dirichlet sample (Qi et al., TOSEM 2023).

    The shares of the classes are divided by the largest, of which all images are taken.

    Args:
        images: The images.
        seed: The seed of the shares and of the images.
        alpha: The concentration of the distribution: the smaller, the more unequal.
        at_least: The least number of images of a class, where it has as many.

    Returns:
        The images, in the order that they had.

    Raises:
        UserError: When alpha is not above 0.

    >>> images = Images(torch.zeros(60, 3, 2, 2, dtype=torch.uint8), torch.arange(60) % 3)
    >>> counts = torch.bincount(dirichlet_subset(images, 1, at_least=5).labels)
    >>> int(counts.max()), bool((counts >= 5).all())
    (20, True)
    """
    check_positive(alpha=alpha)
    labels = images.labels.cpu()
    classes = int(labels.max()) + 1
    shares = numpy_generator(seed, "dirichlet").dirichlet([alpha] * classes)
    chosen = []
    for label, share in enumerate(shares / shares.max()):
        own = (labels == label).nonzero().flatten()
        count = min(len(own), max(at_least, round(float(share) * len(own))))
        order = torch.randperm(len(own), generator=generator(seed, "dirichlet", label))
        chosen.append(own[order[:count]])
    return images.take(torch.cat(chosen).sort().values.to(images.labels.device))
