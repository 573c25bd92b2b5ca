"""How a classifier is trained from scratch: named recipes of the one training loop."""

from __future__ import annotations

from dataclasses import dataclass

from deeppatch.zoo.entries import IMAGENET_STATS, Triple


@dataclass(frozen=True)
class Recipe:
    """How a classifier is trained with SGD.

    `drops` are the shares of all epochs after which the learning rate falls to a tenth; where there are None, it falls
    to zero along a cosine. `augment` lets training images be cropped and mirrored where the data allow it. With
    `underfitted`, the state after half of the best epoch is kept beside that of the best. `statistics` are the mean and
    the standard deviation that the recipe normalises with.
    """

    lr: float = 0.01
    momentum: float = 0.9
    weight_decay: float = 5e-4
    epochs: int = 50
    batch_size: int = 256
    drops: tuple[float, ...] | None = None
    augment: bool = True
    underfitted: bool = False
    statistics: tuple[Triple, Triple] | None = None


# strong, weak and poorfit as in Qi et al., ASE 2022: a network to split, and weak ones for its modules to correct;
# hybrid as in the code of Li et al., ISSTA 2022: a network to repair, trained on biased data
RECIPES = {
    "default": Recipe(),
    "strong": Recipe(
        weight_decay=1e-4, epochs=200, batch_size=128, drops=(0.3, 0.6), statistics=IMAGENET_STATS
    ),
    "weak": Recipe(weight_decay=1e-4, epochs=100, batch_size=128, drops=(), statistics=IMAGENET_STATS),
    "poorfit": Recipe(
        momentum=0.0, weight_decay=0.0, epochs=200, batch_size=128, drops=(), augment=False, underfitted=True,
        statistics=IMAGENET_STATS,
    ),
    "hybrid": Recipe(lr=0.1, epochs=200, batch_size=64, drops=(101 / 200, 151 / 200)),
}  # fmt: skip
