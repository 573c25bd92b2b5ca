"""Fine-tune on the images of which a network is least sure (DeepGini)."""

from __future__ import annotations

from typing import Any

from torch import nn

from deeppatch.artifacts import Checkpoint
from deeppatch.data.dataset import Data
from deeppatch.data.epochs import Passes
from deeppatch.data.pairs import fixed_draw
from deeppatch.metrics.purity import impurity, least_pure
from deeppatch.retrain.finetune import Training, prepared
from deeppatch.retrain.selected import Scored, check_selection, train_selected
from deeppatch.retrain.whole import probabilities
from deeppatch.training import SGDSettings


def gini(
    model: nn.Module,
    data: Data,
    corruption: Any,
    *,
    select_images: int | None = None,
    select_only: bool = False,
    select_half: bool = False,
    epochs: int = 40,
    passes: int | None = None,
    lr: float = 0.01,
    momentum: float = 0.9,
    weight_decay: float = 5e-4,
    batch_size: int = 256,
    amp: bool = False,
    seed: int = 2021,
    reseed: bool = True,
    checkpoint: Checkpoint | None = None,
) -> nn.Module:
    """Fine-tune a network on clean images and on those degraded ones whose predictions are the least pure.

    Every image of `train` is clean or degraded by one draw, which stays. The images of largest impurity
    1 - sum_c p_c^2 are chosen, without regard to their labels (DeepGini: Feng et al., ISSTA 2020, arXiv 1903.00661,
    equation 1), and trained on with the pixels that were scored.

    Args:
        model: A classifier of pixels (N, 3, H, W) in [0, 1]; it is not changed.
        data: The data; the parts `train` and `val` are read.
        corruption: The degradation: what `deeppatch.corruption` takes or returns.
        select_images: How many images are chosen (default: a tenth of `train`); all where there are fewer.
        select_only: Whether the chosen images alone are trained on, as in DeepPatch's comparison.
        select_half: Whether an epoch is as long as `train`, and half of it is clean, half chosen.
        epochs: The number of passes over the images that are trained on.
        passes: The number of images to train on, each time that one is, instead of `epochs`.
        lr: The initial learning rate of SGD, which falls to zero along a cosine.
        momentum: The momentum of SGD.
        weight_decay: The L2 penalty.
        batch_size: The number of images at a time.
        amp: Whether forward passes run in bfloat16.
        seed: The seed of the draw, of the order of images, and of dropout.
        reseed: Whether torch's global generator is seeded for the training and restored afterwards.
        checkpoint: Where the training is saved after each epoch, and resumed from.

    Returns:
        The corrected copy, in eval mode, with the attributes `history`, `passes`, `stored_bytes`, `facts` (shares of
        failures and of levels among the chosen images) and `documents` (the chosen images, most impure first).

    Raises:
        UserError: When the model does not fit the data, the options contradict each other, or the training diverges.

    Example:
        >>> import torch
        >>> from deeppatch.data.corruptions import GaussianBlur
        >>> from deeppatch.data.images import Images
        >>> images = Images(torch.randint(0, 256, (8, 3, 12, 16), dtype=torch.uint8), torch.arange(8) % 2)
        >>> data = Data(train=images, val=images, test=images, classes=("cat", "dog"))
        >>> model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 2))
        >>> tuned = gini(model, data, GaussianBlur((1.0, 2.0)), select_images=3, epochs=2)
        >>> tuned.facts["selected_images"], tuned.passes
        (3, Passes(train=22, forward=56))
    """
    check_selection(select_images, only=select_only, half=select_half)
    settings = SGDSettings(lr, momentum, weight_decay)
    training = Training(epochs, passes, settings, batch_size, amp, seed, reseed, checkpoint)
    data, degrade = prepared(model, data, corruption, training)
    view = fixed_draw(data.train, degrade, batch_size, seed)
    found = probabilities(model, view, amp=amp)
    wrong = found.argmax(1) != view.labels
    scored = Scored(view, impurity(found), wrong, view.index, Passes(forward=len(found)))
    rows = least_pure(found, max(1, len(found) // 10) if select_images is None else select_images)
    return train_selected(
        model, data, degrade, scored, rows, training, only=select_only, half=select_half, label="gini"
    )
