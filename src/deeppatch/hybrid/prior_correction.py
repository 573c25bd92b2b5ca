"""Correct a network for the class shares of a pool: numbers that are added to the bias of its last layer."""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn

from deeppatch import runtime
from deeppatch.data.dataset import Data
from deeppatch.data.files import StoredPixels
from deeppatch.data.images import to_float
from deeppatch.data.pool import check_pool
from deeppatch.errors import UserError
from deeppatch.features import last_linear
from deeppatch.graph.hooks import eval_mode
from deeppatch.hybrid.prior import estimate_prior
from deeppatch.progress import info, track
from deeppatch.zoo.classifier import device_of


def correct_prior(
    model: nn.Module,
    data: Data,
    pool_pixels: Tensor,
    *,
    prior: Tensor | None = None,
    trust: bool = False,
    batch_size: int = 256,
    amp: bool = False,
    seed: int = 2021,
) -> nn.Module:
    """Correct a network for a pool in which classes occur more or less often than in its training images.

    No label is needed, and nothing is trained. The network is calibrated on `data.val`, the class shares q of the pool
    are estimated from its predictions, and T (b + log q - log p) is added to the logits, where T and b are temperature
    and biases of the calibration, and p are the class shares in val. It helps if only these shares differ between
    training images and pool, not what the images of a class look like; where predictions for the pool, their
    confidence or the size of its logits contradict that, the network is left as it is.

    Args:
        model: The classifier of float pixels (N, 3, H, W) in [0, 1]; it is not changed.
        data: The data; only `val` is read, whose classes must be distributed as those of the training images.
        pool_pixels: The images of the pool, uint8 (N, 3, H, W).
        prior: The class shares q of the pool, (C,), where they are known (default: they are estimated).
        trust: Whether the network is corrected even if the shift is not one of classes alone.
        batch_size: The number of images per forward pass.
        amp: Whether forward passes run in bfloat16.
        seed: The seed of the bootstrap.

    Returns:
        The corrected copy, in eval mode. Its attribute `prior` is the `PriorEstimate`: both priors, intervals, the
        decision and its reason.

    Raises:
        UserError: When the network does not end in a linear layer that has a bias, or `prior` is no distribution over
            the classes.

    Saerens, Latinne and Decaestecker, Neural Computation 14, 2002; Alexandari, Kundaje and Shrikumar, ICML 2020.

    >>> from deeppatch.data.images import Images
    >>> labels = torch.arange(300) % 2
    >>> noise = torch.randint(0, 130, (300, 3, 2, 2), generator=torch.Generator().manual_seed(1))
    >>> images = Images((noise + 125 * labels.view(-1, 1, 1, 1)).to(torch.uint8), labels)
    >>> network = nn.Sequential(nn.Flatten(), nn.Linear(12, 2))
    >>> _ = nn.init.constant_(network[1].weight[0], -1.0), nn.init.constant_(network[1].weight[1], 1.0)
    >>> pool = images.pixels[labels == 1].repeat(2, 1, 1, 1)
    >>> corrected = correct_prior(network, Data(images, images, images, ("dark", "light")), pool)
    >>> corrected.prior.decision, corrected.prior.pool.round(decimals=1).tolist()
    ('corrected', [0.0, 1.0])
    """
    check_pool(pool_pixels, data)
    if prior is not None:
        check_prior(prior, len(data.classes))
    device = device_of(model)
    parts = [
        logits_of(model, pixels, batch_size=batch_size, amp=amp, label=label)
        for pixels, label in ((data.val.pixels, "val"), (pool_pixels, "pool"))
    ]
    labels, generator = data.val.labels.to(device), runtime.generator(seed, "prior")
    estimate = estimate_prior(parts[0], labels, parts[1], generator, known=prior, trust=trust)
    info(f"prior: {estimate.decision}: {estimate.reason}")
    corrected = with_correction(model, to_float(pool_pixels[:1].to(device)), estimate.correction)
    corrected.prior = estimate  # type: ignore[assignment]
    return corrected


def check_prior(prior: Tensor, classes: int) -> None:
    """Raise UserError unless `prior` is a distribution over the classes, (C,)."""
    found = torch.as_tensor(prior).double()
    if found.shape != (classes,) or bool((found < 0).any()) or abs(found.sum().item() - 1) > 1e-3:
        raise UserError(f"prior={found.tolist()}: give {classes} shares of classes that sum to 1")


@torch.no_grad()
def logits_of(
    model: nn.Module,
    pixels: Tensor | StoredPixels,
    *,
    batch_size: int = 256,
    amp: bool = False,
    label: str = "predictions",
) -> Tensor:
    """Return the logits float32 (N, C) of uint8 pixels (N, 3, H, W), in eval mode and on the model's device."""
    device = device_of(model)
    starts = range(0, pixels.shape[0], batch_size)
    found = []
    with eval_mode(model):
        for start in track(starts, len(starts), label):
            batch = to_float(pixels[start : start + batch_size].to(device))
            with runtime.autocast(device, amp):
                found.append(model(batch).float())
    return torch.cat(found)


@torch.no_grad()
def with_correction(model: nn.Module, example: Tensor, correction: Tensor) -> nn.Module:
    """Return a copy, in eval mode, whose logits have `correction` (C,) added; `example` is one image, as floats.

    UserError where the network does not end in a linear layer that has a bias.
    """
    corrected = copy.deepcopy(model).eval()
    name, layer = last_linear(corrected, example)
    if layer.bias is None:
        raise UserError(
            f"the last linear layer, {name}, has no bias to which the correction of the prior could be added; give it "
            "one of zeros, or leave the correction out"
        )
    layer.bias.add_(correction.to(layer.bias))
    return corrected
