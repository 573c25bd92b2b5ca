"""The targets and the loss of semi-supervised repair: smoothed labels, pseudo-labels and mixup."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F


def smooth_labels(labels: Tensor, classes: int, amount: float) -> Tensor:
    """Return targets (N, C) for labels (N,): 1 - `amount` for the label, and equal shares of `amount` for all others.

    The label smoothing of torch distributes it over all C classes, including the label.
    """
    others = amount / (classes - 1)
    return F.one_hot(labels, classes) * (1 - amount - others) + others


def sharpen(probabilities: Tensor, temperature: float) -> Tensor:
    """Return p^(1/T) / sum p^(1/T) along the last axis (Berthelot et al., MixMatch, 2019, equation 7)."""
    powers = probabilities.pow(1 / temperature)
    return powers / powers.sum(-1, keepdim=True)


@torch.no_grad()
def pseudo_labels(model: nn.Module, views: Tensor, temperature: float) -> Tensor:
    """Return a pseudo-label (n, C) for each image from its views (n, V, 3, H, W): the mean prediction, sharpened.

    The mode of the model is not changed: in training mode its batch normalisations are updated by the views too.
    """
    logits = model(views.flatten(0, 1)).float()
    return sharpen(logits.softmax(1).unflatten(0, views.shape[:2]).mean(1), temperature)


def mix_rows(values: Tensor, partners: Tensor, share: Tensor) -> Tensor:
    """Return `share` times each row of `values` (N, ...) plus 1 - `share` times its partner, a row index in (N,)."""
    return torch.lerp(values[partners], values, share)


def mixing_shares(count: int, alpha: float, generator: torch.Generator) -> Tensor:
    """Draw `count` mixing shares max(l, 1 - l) with l ~ Beta(alpha, alpha) (MixMatch, equations 8 and 9)."""
    # torch's Beta distribution does not take a generator
    seed = int(torch.randint(2**62, (), generator=generator))
    shares = torch.from_numpy(np.random.default_rng(seed).beta(alpha, alpha, count)).float()
    return torch.maximum(shares, 1 - shares)


def weighted_loss(model: nn.Module, batch: tuple[Tensor, ...]) -> Tensor:
    """Return the sum over rows of w0 x cross entropy + w1 x squared error averaged over classes.

    `batch` is pixels (N, 3, H, W), targets (N, C) that sum to 1, and weights w (2, N). With w0 = 1 / n for n labelled
    rows and w1 = lambda / m for m rows with pseudo-labels this is L_x + lambda L_u (MixMatch, equations 2 to 4).
    """
    pixels, targets, weights = batch
    log_predictions = F.log_softmax(model(pixels).float(), 1)
    cross_entropy = -(targets * log_predictions).sum(1)
    squared_error = (log_predictions.exp() - targets).square().mean(1)
    return (weights[0] * cross_entropy + weights[1] * squared_error).sum()


def row_weights(labelled: int, unlabelled: int, weight: float, device: torch.device) -> Tensor:
    """Return row weights (2, labelled + unlabelled) for `weighted_loss`: the mean of each kind, the second scaled."""
    weights = torch.zeros(2, labelled + unlabelled, device=device)
    weights[0, :labelled] = 1 / labelled
    weights[1, labelled:] = weight / max(1, unlabelled)
    return weights
