"""Named recipes to train a classifier from scratch."""

from __future__ import annotations

from dataclasses import dataclass

from deeppatch.zoo.entries import IMAGENET_STATS, Triple


@dataclass(frozen=True)
class Recipe:
    """How a classifier is trained with SGD.

    Args:
        lr: The initial learning rate.
        momentum: The momentum.
        weight_decay: The L2 penalty.
        epochs: The number of epochs.
        batch_size: The number of images in a batch.
        milestones: The shares of all epochs after which the learning rate is divided by ten; with None it is annealed
            to zero along a cosine.
        augment: Whether training images are cropped and mirrored, if the data allow it.
        underfitted: Whether the state at half of the best epoch is kept as well.
        statistics: Mean and standard deviation of each channel for normalisation (default: of the training images).
    """

    lr: float = 0.01
    momentum: float = 0.9
    weight_decay: float = 5e-4
    epochs: int = 50
    batch_size: int = 256
    milestones: tuple[float, ...] | None = None
    augment: bool = True
    underfitted: bool = False
    statistics: tuple[Triple, Triple] | None = None

    def steps(self, images: int) -> int:
        """Return the number of batches of the whole training on a number of images."""
        return self.epochs * -(-images // self.batch_size)


# strong, weak and poorfit as in Qi et al., ASE 2022: a network to split, and weak ones for its modules to correct;
# hybrid as in the code of Li et al., ISSTA 2022: a network to repair, trained on biased data
RECIPES = {
    "default": Recipe(),
    "strong": Recipe(
        weight_decay=1e-4, epochs=200, batch_size=128, milestones=(0.3, 0.6), statistics=IMAGENET_STATS
    ),
    "weak": Recipe(weight_decay=1e-4, epochs=100, batch_size=128, milestones=(), statistics=IMAGENET_STATS),
    "poorfit": Recipe(
        momentum=0.0, weight_decay=0.0, epochs=200, batch_size=128, milestones=(), augment=False, underfitted=True,
        statistics=IMAGENET_STATS,
    ),
    "hybrid": Recipe(lr=0.1, epochs=200, batch_size=64, milestones=(101 / 200, 151 / 200)),
}  # fmt: skip
