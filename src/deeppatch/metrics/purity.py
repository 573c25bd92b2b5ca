"""Impurity of predictions, and the images whose predictions are the least pure (DeepGini)."""

from __future__ import annotations

from torch import Tensor


def impurity(probabilities: Tensor) -> Tensor:
    """Return 1 - sum_c p_c^2 of each row of probabilities (N, C): from 0 for a sure prediction to 1 - 1/C.

    Feng et al., DeepGini: Prioritizing Massive Tests to Enhance the Robustness of Deep Neural Networks, ISSTA 2020,
    arXiv 1903.00661, equation 1.

    >>> import torch
    >>> impurity(torch.tensor([[1.0, 0.0], [0.5, 0.5]]))
    tensor([0.0000, 0.5000])
    """
    return 1 - probabilities.square().sum(1)


def least_pure(probabilities: Tensor, budget: int) -> Tensor:
    """Return the indices (B,) of the images with the smallest sums of squared probabilities (N, C), in ascending order.

    DeepGini: Feng et al., ISSTA 2020. Of equals the first come first.

    >>> import torch
    >>> least_pure(torch.tensor([[1.0, 0.0], [0.5, 0.5], [0.9, 0.1]]), 2)
    tensor([1, 2])
    """
    return probabilities.square().sum(1).argsort(stable=True)[:budget]
