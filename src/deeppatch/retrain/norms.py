"""Correct the normalisation layers of a network only: their parameters by training, or just their statistics."""

from __future__ import annotations

import dataclasses
from typing import Any

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from deeppatch import runtime
from deeppatch.artifacts import Checkpoint
from deeppatch.data import corruptions, views
from deeppatch.data.dataset import Data
from deeppatch.data.epochs import Passes
from deeppatch.errors import UserError, check_positive
from deeppatch.evaluation import check_classifier
from deeppatch.graph.statistics import reestimate
from deeppatch.retrain.finetune import Training, changed_bytes, noted, train_parameters
from deeppatch.training import SGDSettings
from deeppatch.zoo.classifier import device_of

# the images that statistics are estimated on, and those of a batch
IMAGES, BATCH = 2400, 240
NORMS = (_BatchNorm, nn.GroupNorm, nn.LayerNorm, nn.modules.instancenorm._InstanceNorm)


def norms(
    model: nn.Module,
    data: Data,
    corruption: Any,
    *,
    epochs: int = 20,
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
    """Train scale and shift of every normalisation as `finetune` trains all parameters; the statistics run along.

    With `epochs=0` nothing is trained: the running statistics are estimated again on images of `train`, each at a level
    that is drawn uniformly. Such a network is of use behind a router only, because it loses much on clean images
    (compare the auxiliary normalisation of AdvProp, Xie et al., CVPR 2020, arXiv 1911.09665).

    Args:
        model: A classifier of pixels (N, 3, H, W) in [0, 1]; it is not changed.
        data: The data; the parts `train` and, with training, `val` are read.
        corruption: The degradation: what `deeppatch.corruption` takes or returns.
        epochs: The number of passes over `train`; 0 to estimate the statistics again, and to train nothing.
        passes: The number of images to train on, each time that one is, instead of `epochs`.
        lr: The initial learning rate of SGD, which falls to zero along a cosine.
        momentum: The momentum of SGD.
        weight_decay: The L2 penalty.
        batch_size: The number of images at a time, in training.
        amp: Whether forward passes run in bfloat16.
        seed: The seed of the order of images, and of their levels.
        reseed: Whether torch's global generator is seeded for the training and restored afterwards.
        checkpoint: Where the training is saved after each epoch, and resumed from.

    Returns:
        The corrected copy, in eval mode, with the attributes `history` (None without training), `passes`,
        `stored_bytes` (those of what differs from the base) and `facts`.

    Raises:
        UserError: When the model has no normalisation, does not fit the data, or the training diverges.

    Example:
        >>> import torch
        >>> from deeppatch.data.corruptions import GaussianBlur
        >>> from deeppatch.data.images import Images
        >>> images = Images(torch.randint(0, 256, (8, 3, 12, 16), dtype=torch.uint8), torch.arange(8) % 2)
        >>> data = Data(train=images, val=images, test=images, classes=("cat", "dog"))
        >>> network = [nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 2)]
        >>> model = nn.Sequential(*network)
        >>> corrected = norms(model, data, GaussianBlur((1.0, 2.0)), epochs=1)
        >>> bool((corrected[0].weight == model[0].weight).all()), bool((corrected[1].weight == model[1].weight).all())
        (True, False)
        >>> corrected.facts
        {'trained_parameters': 8}
        >>> norms(model, data, GaussianBlur((1.0, 2.0)), epochs=0).passes
        Passes(train=0, forward=8)
    """
    layers = {name: module for name, module in model.named_modules() if isinstance(module, NORMS)}
    names = {f"{layer}.{name}" for layer, module in layers.items() for name, _ in module.named_parameters()}
    if epochs == 0 and passes is None:
        return _estimated_again(model, data, corruption, amp=amp, seed=seed)
    training = Training(
        epochs, passes, SGDSettings(lr, momentum, weight_decay), batch_size, amp, seed, reseed, checkpoint
    )
    trained = train_parameters(model, data, corruption, training, names=names, label="norms")
    count = sum(each.numel() for name, each in model.named_parameters() if name in names)
    return noted(trained, facts={"trained_parameters": count})


def _estimated_again(model: nn.Module, data: Data, corruption: Any, *, amp: bool, seed: int) -> nn.Module:
    check_positive(images=len(data.train))
    data, degrade = data.to(device_of(model)), corruptions.corruption(corruption, seed=seed)
    check_classifier(model, data.example, len(data.classes))
    view = statistics_view(views.random_level_view(data.train, degrade, BATCH, seed), seed)
    estimated = reestimate(model, view, amp=amp)
    count = len(view.index)
    return noted(
        estimated,
        history=None,
        passes=Passes(forward=count),
        stored_bytes=changed_bytes(model, estimated),
        facts={"trained_parameters": 0, "statistics_images": count},
    )


def statistics_view(view: views.View, seed: int) -> views.View:
    """Return images of a view to estimate statistics on, drawn by seed: 2,400 in batches of 240, or fewer of one size.

    >>> images = views.Images(torch.zeros(500, 3, 4, 4, dtype=torch.uint8), torch.zeros(500, dtype=torch.long))
    >>> statistics_view(views.clean(images, 64), seed=1).sizes
    [240, 240]
    """
    count = min(IMAGES, len(view.index))
    count -= count % BATCH if count > BATCH else 0
    if not count:
        raise UserError("there are no training images to estimate statistics on")
    order = torch.randperm(len(view.index), generator=runtime.generator(seed, "statistics"))[:count]
    return views.ordered(dataclasses.replace(view, batch_size=BATCH), order.to(view.index.device))
