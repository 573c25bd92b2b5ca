"""How pretrain trains: named presets of the one training loop, and what the command line says in their place."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from deeppatch.zoo.entries import IMAGENET_STATS


@dataclass(frozen=True)
class Recipe:
    """`options` are the defaults that it puts in place of the command line's own.

    `drops` are the shares of all epochs after which the learning rate falls to a tenth; where there are None, it falls
    to zero along a cosine. `augment` lets training images be cropped and mirrored where the data allow it. With
    `underfitted`, the state after half of the best epoch is left beside that of the best.
    """

    options: Mapping[str, Any] = field(default_factory=dict)
    drops: tuple[float, ...] | None = None
    augment: bool = True
    underfitted: bool = False


MEAN, STD = map(list, IMAGENET_STATS)
PUBLISHED = {
    "train": True, "lr": 0.01, "momentum": 0.9, "weight_decay": 1e-4, "batch_size": 128, "mean": MEAN, "std": STD,
}  # fmt: skip
# strong, weak and poorfit as in Qi et al., ASE 2022: a network to split, and weak ones for its modules to correct;
# hybrid as in the code of Li et al., ISSTA 2022: a network to repair, trained with --bias
RECIPES = {
    "default": Recipe(),
    "strong": Recipe({**PUBLISHED, "max_epoch": 200}, drops=(0.3, 0.6)),
    "weak": Recipe({**PUBLISHED, "max_epoch": 100}, drops=()),
    "poorfit": Recipe(
        {**PUBLISHED, "max_epoch": 200, "momentum": 0.0, "weight_decay": 0.0}, drops=(), augment=False, underfitted=True
    ),
    "hybrid": Recipe(
        {"train": True, "lr": 0.1, "momentum": 0.9, "weight_decay": 5e-4, "batch_size": 64, "max_epoch": 200},
        drops=(101 / 200, 151 / 200),
    ),
}


def told() -> str:
    """Say in a line of help what each recipe is."""
    return (
        "how to train: default, or as for CNNSplitter strong (SGD, learning rate 0.01, a tenth of it after 3/10 and "
        "6/10 of 200 epochs, weight decay 1e-4), weak (the same but constant, 100 epochs) or poorfit (constant, 200 "
        "epochs, no momentum, weight decay or augmentation; leaves the best epoch, over-fitted, and the one at half of "
        "it, under-fitted), all three with batches of 128 and ImageNet's normalisation; or as for HybridRepair hybrid "
        "(learning rate 0.1, a tenth of it after 101 and 151 of 200 epochs, weight decay 5e-4, batches of 64); options "
        "that are given override those of a recipe (default: default)"
    )
