"""Fine-tune one block of a network only."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import nn

from deeppatch.artifacts import Checkpoint
from deeppatch.data.dataset import Data
from deeppatch.errors import UserError
from deeppatch.evaluation import check_classifier
from deeppatch.retrain.blocks import blocks, modules_without, parameters_of
from deeppatch.retrain.finetune import Training, noted, train_parameters
from deeppatch.training import SGDSettings
from deeppatch.zoo.classifier import device_of


def surgical(
    model: nn.Module,
    data: Data,
    corruption: Any,
    *,
    block: int | Sequence[int] = 1,
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
    """Fine-tune one block of a network as `finetune` trains all of it, and keep the rest, statistics included.

    For shifts of the input, such as blur, Lee et al. train the first block (Surgical Fine-Tuning Improves Adaptation to
    Distribution Shifts, ICLR 2023, arXiv 2210.11466). A block is what runs before the next layer that halves the maps:
    of resnet32, the first convolution and the first third of the residual ones.

    Args:
        model: A classifier of pixels (N, 3, H, W) in [0, 1]; it is not changed.
        data: The data; the parts `train` and `val` are read.
        corruption: The degradation: what `deeppatch.corruption` takes or returns.
        block: The block to train, counted from 1 at the input, or several.
        epochs: The number of passes over `train`.
        passes: The number of images to train on, each time that one is, instead of `epochs`.
        lr: The initial learning rate of SGD, which falls to zero along a cosine.
        momentum: The momentum of SGD.
        weight_decay: The L2 penalty.
        batch_size: The number of images at a time.
        amp: Whether forward passes run in bfloat16.
        seed: The seed of the order of images, of their levels, and of dropout.
        reseed: Whether torch's global generator is seeded for the training and restored afterwards.
        checkpoint: Where the training is saved after each epoch, and resumed from.

    Returns:
        The corrected copy, in eval mode, with the attributes `history`, `passes`, `stored_bytes` (those of the block)
        and `facts`.

    Raises:
        UserError: When there is no such block, the model does not fit the data, or the training diverges.

    Example:
        >>> import torch
        >>> from deeppatch.data.corruptions import GaussianBlur
        >>> from deeppatch.data.images import Images
        >>> images = Images(torch.randint(0, 256, (8, 3, 12, 16), dtype=torch.uint8), torch.arange(8) % 2)
        >>> data = Data(train=images, val=images, test=images, classes=("cat", "dog"))
        >>> head = [nn.Conv2d(4, 4, 3, stride=2), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 2)]
        >>> model = nn.Sequential(nn.Conv2d(3, 4, 3), *head)
        >>> corrected = surgical(model, data, GaussianBlur((1.0, 2.0)), epochs=1)
        >>> corrected.facts
        {'block': [1], 'blocks': 2, 'trained_parameters': 112}
        >>> bool((corrected[0].weight == model[0].weight).all()), bool((corrected[1].weight == model[1].weight).all())
        (False, True)
    """
    example = data.example.to(device_of(model))
    check_classifier(model, example, len(data.classes))
    found = blocks(model, example)
    chosen = sorted({block} if isinstance(block, int) else set(block))
    if not chosen or not 1 <= chosen[0] <= chosen[-1] <= len(found):
        raise UserError(f"block {block}: this network has {len(found)} blocks; give numbers from 1 to {len(found)}")
    layers = [name for number in chosen for name in found[number - 1]]
    names = parameters_of(model, layers)
    # a layer that does not run is of no block: with all blocks nothing is frozen
    frozen = [] if len(chosen) == len(found) else modules_without(model, layers)
    training = Training(
        epochs, passes, SGDSettings(lr, momentum, weight_decay), batch_size, amp, seed, reseed, checkpoint
    )
    trained = train_parameters(model, data, corruption, training, names=names, frozen=frozen, label="surgical")
    count = sum(each.numel() for name, each in model.named_parameters() if name in names)
    return noted(trained, facts={"block": chosen, "blocks": len(found), "trained_parameters": count})
